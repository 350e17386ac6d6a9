// What a kernel asks of the device: every access to a cache, every number that is converted, every barrier.
//
// Kernels use no other header, so NVRTC compiles them from these files alone. `tests/emulator/device.cuh` defines
// the same names for the processor; that is how kernels run, and are watched, on machines without a GPU.

#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
// Threads of a block at most; two blocks on a multiprocessor leave 128 registers to a thread.
#define KERNEL(name, Type, variable) \
    extern "C" __global__ void __launch_bounds__(256, 2) name(const __grid_constant__ Type variable)

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 thread_count() { return blockDim.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }

// Memory, and the barrier between a tile's loads and its stores. `volatile` keeps the compiler from moving one of
// these past another, which is what `splice` counts on; none of them says that it changes memory, so that what a
// kernel was told stays in registers. Parameters and workspace are never written while they are read.
DEVICE void block_barrier() { asm volatile("bar.sync 0;"); }
DEVICE uint4 load_wide(u64 address) {
    uint4 words;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(address));
    return words;
}
DEVICE u32 load_word(u64 address) {
    u32 word;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(address));
    return word;
}
DEVICE u16 load_half(u64 address) {
    u16 half;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(half) : "l"(address));
    return half;
}
DEVICE void store_wide(u64 address, uint4 words) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(words.x), "r"(words.y),
                 "r"(words.z), "r"(words.w));
}
DEVICE void store_word(u64 address, u32 word) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(word));
}
DEVICE void store_half(u64 address, u16 half) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(address), "h"(half));
}

DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }

// Numbers. Roundings are to nearest even, nothing is flushed to zero, and a NaN that comes out has a clear sign
// and all value bits set, as the CPU backend's has.
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float number) { return __float_as_uint(number); }
DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

DEVICE float from_f16(u16 half) {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(half));
    return number;
}
DEVICE u16 to_f16(float number) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(number));
    return half;
}
DEVICE u32 to_f16_pair(float low, float high) { return to_f16(low) | static_cast<u32>(to_f16(high)) << 16; }

// Turing has no instruction for bf16; later ones round in one.
#if __CUDA_ARCH__ >= 800
DEVICE u32 to_bf16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
DEVICE u16 to_bf16(float number) { return static_cast<u16>(to_bf16_pair(number, 0.0f)); }
#else
DEVICE u16 to_bf16(float number) {
    u32 bits = as_bits(number);
    u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<u16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded);
}
DEVICE u32 to_bf16_pair(float low, float high) { return to_bf16(low) | static_cast<u32>(to_bf16(high)) << 16; }
#endif
