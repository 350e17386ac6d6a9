// From stored bits to numbers, a rotation, and back: the arithmetic of every kernel.
//
// Compiled once for each stored type: ELEMENT is F32, F16 or BF16. Every output is one f32 product and one fused
// multiply-add on the table's values, rounded once to the stored type: the CPU backend's bits.

#pragma once

#include <device.cuh>

#define F32 0
#define F16 1
#define BF16 2

// A kernel's name: `rotate_f16_small`.
#if ELEMENT == F32
#define NAME(verb, size) verb##_f32_##size
#elif ELEMENT == F16
#define NAME(verb, size) verb##_f16_##size
#else
#define NAME(verb, size) verb##_bf16_##size
#endif

constexpr u32 SIZE = ELEMENT == F32 ? 4 : 2;

// The cosines and sines of what one thread turns.
template <int COUNT>
struct Turn {
    float cos[COUNT];
    float sin[COUNT];
};

// 16 bytes at a time, for caches whose addresses, strides and windows allow it.
struct Wide {
    typedef uint4 Chunk;
    static constexpr int COUNT = 16 / SIZE;

    DEVICE Chunk load(u64 address) { return load_wide(address); }
    DEVICE void store(u64 address, Chunk chunk) { store_wide(address, chunk); }

    DEVICE void unpack(Chunk chunk, float (&numbers)[COUNT]) {
        const u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#if ELEMENT == F32
            numbers[i] = as_float(words[i]);
#elif ELEMENT == F16
            numbers[2 * i] = from_f16(static_cast<u16>(words[i]));
            numbers[2 * i + 1] = from_f16(static_cast<u16>(words[i] >> 16));
#else
            numbers[2 * i] = as_float(words[i] << 16);
            numbers[2 * i + 1] = as_float(words[i] & 0xffff0000u);
#endif
        }
    }

    DEVICE Chunk pack(const float (&numbers)[COUNT]) {
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
#if ELEMENT == F32
            words[i] = as_bits(numbers[i]);
#elif ELEMENT == F16
            words[i] = to_f16_pair(numbers[2 * i], numbers[2 * i + 1]);
#else
            words[i] = to_bf16_pair(numbers[2 * i], numbers[2 * i + 1]);
#endif
        }
        return Chunk{words[0], words[1], words[2], words[3]};
    }

    // `COUNT` floats of the table, half of them from `first` on, half from `second` on.
    DEVICE void floats(const float* first, const float* second, float (&numbers)[COUNT]) {
#if ELEMENT == F32
        const float2 low = *reinterpret_cast<const float2*>(first);
        const float2 high = *reinterpret_cast<const float2*>(second);
        numbers[0] = low.x, numbers[1] = low.y, numbers[2] = high.x, numbers[3] = high.y;
#else
        const float4 low = *reinterpret_cast<const float4*>(first);
        const float4 high = *reinterpret_cast<const float4*>(second);
        numbers[0] = low.x, numbers[1] = low.y, numbers[2] = low.z, numbers[3] = low.w;
        numbers[4] = high.x, numbers[5] = high.y, numbers[6] = high.z, numbers[7] = high.w;
#endif
    }
};

// One element at a time, for all others.
struct Narrow {
#if ELEMENT == F32
    typedef u32 Chunk;
    DEVICE Chunk load(u64 address) { return load_word(address); }
    DEVICE void store(u64 address, Chunk chunk) { store_word(address, chunk); }
#else
    typedef u16 Chunk;
    DEVICE Chunk load(u64 address) { return load_half(address); }
    DEVICE void store(u64 address, Chunk chunk) { store_half(address, chunk); }
#endif
    static constexpr int COUNT = 1;

    DEVICE void unpack(Chunk chunk, float (&numbers)[1]) {
#if ELEMENT == F32
        numbers[0] = as_float(chunk);
#elif ELEMENT == F16
        numbers[0] = from_f16(chunk);
#else
        numbers[0] = as_float(static_cast<u32>(chunk) << 16);
#endif
    }

    DEVICE Chunk pack(const float (&numbers)[1]) {
#if ELEMENT == F32
        return as_bits(numbers[0]);
#elif ELEMENT == F16
        return to_f16(numbers[0]);
#else
        return to_bf16(numbers[0]);
#endif
    }

    DEVICE void floats(const float* first, const float*, float (&numbers)[1]) { numbers[0] = *first; }
};

// (a, b) → (a cos − b sin, b cos + a sin)
DEVICE void turn_pair(float& a, float& b, float cos, float sin) {
    const float turned = multiply_add(a, cos, -multiply(b, sin));
    b = multiply_add(b, cos, multiply(a, sin));
    a = turned;
}

// Turns two chunks: pairs lie across them, or (`inside`) side by side in each, the first chunk's pairs first.
template <class Access, int COUNT = Access::COUNT>
DEVICE void turn_chunks(typename Access::Chunk& a, typename Access::Chunk& b, const Turn<COUNT>& turn, bool inside) {
    float x[COUNT], y[COUNT];
    Access::unpack(a, x);
    Access::unpack(b, y);
    if (inside) {
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            turn_pair(x[2 * i], x[2 * i + 1], turn.cos[i], turn.sin[i]);
            turn_pair(y[2 * i], y[2 * i + 1], turn.cos[COUNT / 2 + i], turn.sin[COUNT / 2 + i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            turn_pair(x[i], y[i], turn.cos[i], turn.sin[i]);
        }
    }
    a = Access::pack(x);
    b = Access::pack(y);
}
