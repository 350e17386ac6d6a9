// The names of kernels/device.cuh, for the processor: kernels compile against this file unchanged, and every access
// to a cache is watched (shadow.h), every number is the GPU's, every barrier stops the thread (machine.h).

#pragma once

#include <cstring>

#include "machine.h"

typedef emulator::u16 u16;
typedef emulator::u32 u32;
typedef emulator::u64 u64;

struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define DEVICE static __device__ __forceinline__

// A kernel makes itself known to the driver, with the size of what it takes. (Two macros, for its name may be one.)
#define KERNEL(name, Type, variable) KERNEL_NAMED(name, Type, variable)
#define KERNEL_NAMED(name, Type, variable)                                                     \
    static void name(const Type& variable);                                                    \
    static const emulator::Kernel name##_kernel(#name, sizeof(Type), [](const void* parameters) { \
        name(*static_cast<const Type*>(parameters));                                           \
    });                                                                                        \
    static void name(const Type& variable)

DEVICE u32 thread_index() { return emulator::running->thread; }
DEVICE u32 thread_count() { return emulator::running->threads; }
DEVICE u32 block_x() { return emulator::running->block_x; }
DEVICE u32 block_y() { return emulator::running->block_y; }

DEVICE void block_barrier() { emulator::barrier(); }

template <class Word>
DEVICE Word load(u64 address) {
    emulator::touch<false, sizeof(Word)>(address);
    Word word;
    std::memcpy(&word, reinterpret_cast<const void*>(address), sizeof word);
    return word;
}
template <class Word>
DEVICE void store(u64 address, Word word) {
    emulator::touch<true, sizeof(Word)>(address);
    std::memcpy(reinterpret_cast<void*>(address), &word, sizeof word);
}
DEVICE uint4 load_wide(u64 address) { return load<uint4>(address); }
DEVICE u32 load_word(u64 address) { return load<u32>(address); }
DEVICE u16 load_half(u64 address) { return load<u16>(address); }
DEVICE void store_wide(u64 address, uint4 words) { store(address, words); }
DEVICE void store_word(u64 address, u32 word) { store(address, word); }
DEVICE void store_half(u64 address, u16 half) { store(address, half); }

DEVICE u32 min(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 multiply_high(u32 a, u32 b) { return static_cast<u32>(static_cast<u64>(a) * b >> 32); }

// Numbers. Compiled with -ffp-contract=off, so that nothing is fused but what says so. The processor hands NaNs
// on, a GPU has one of its own: a clear sign and all value bits set.
DEVICE float as_float(u32 bits) { return __builtin_bit_cast(float, bits); }
DEVICE u32 as_bits(float number) { return __builtin_bit_cast(u32, number); }
DEVICE float one_nan(float number) { return number != number ? as_float(0x7fffffffu) : number; }
DEVICE float multiply(float a, float b) { return one_nan(a * b); }
DEVICE float multiply_add(float a, float b, float c) { return one_nan(__builtin_fmaf(a, b, c)); }

DEVICE float from_f16(u16 half) {
    const float number = static_cast<float>(__builtin_bit_cast(_Float16, half));
    return (half & 0x7fffu) > 0x7c00u ? as_float(0x7fffffffu) : number;
}
DEVICE u16 to_f16(float number) {
    const u16 half = __builtin_bit_cast(u16, static_cast<_Float16>(number));
    return number != number ? 0x7fffu : half;
}
DEVICE u32 to_f16_pair(float low, float high) { return to_f16(low) | static_cast<u32>(to_f16(high)) << 16; }

DEVICE u16 to_bf16(float number) {
    const u32 bits = as_bits(number);
    const u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<u16>(number != number ? 0x7fffu : rounded);
}
DEVICE u32 to_bf16_pair(float low, float high) { return to_bf16(low) | static_cast<u32>(to_bf16(high)) << 16; }
