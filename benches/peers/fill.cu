// Fresh random numbers of about unit size for the benchmark: random bits, of which some are set and some cleared so
// that what remains is sign and fraction.

#include <device.cuh>

struct Fill {
    u64 to;
    // Of 16 bytes.
    u64 chunks;
    u32 seed;
    u32 keep;
    u32 set;
    u32 unused;
};

// A bijection of 32 bits in which every bit of the input reaches every bit of the output.
DEVICE u32 mixed(u32 bits) {
    bits = (bits ^ bits >> 16) * 0x85ebca6bu;
    bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
    return bits ^ bits >> 16;
}

KERNEL(fill, Fill, call) {
    const u64 chunk = static_cast<u64>(block_x()) * thread_count() + thread_index();
    if (chunk >= call.chunks) {
        return;
    }
    const u32 high = mixed(static_cast<u32>(chunk >> 30) + call.seed);
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        words[i] = (mixed(static_cast<u32>(4 * chunk + i) ^ high) & call.keep) | call.set;
    }
    store_wide(call.to + 16 * chunk, uint4{words[0], words[1], words[2], words[3]});
}
