// A peer for the benchmark: keys un-rotated, then rotated, each with arithmetic in the stored type.
//
//     K_new = R(p_new) · (R(p_old)ᵀ · K_old)
//
// The shape is that of LMCache's `rotary_embedding_k_fused`: keys of all layers lie in one contiguous staging buffer
// `[layers · rows, heads, dim]`; a block takes one token and walks its pairs, two bytes at a time; each token brings
// its old and its new position; cosines and sines of every position are in a table of the stored type, here bf16.
// Every product and every sum is rounded to bf16. Written from that description; blocks have up to 256 threads
// instead of 512, at which a multiprocessor is as full.

#include <device.cuh>

struct TwoTurns {
    u64 keys;
    // Of each token, 64 bits each.
    u64 old_positions;
    u64 new_positions;
    // A row for each position: cosines, then sines.
    u64 table;
    u32 heads;
    u32 dims;
    u32 window;
    u32 pairs;
    // Dimensions from one pair's first to the next one's, and from a pair's first to its second.
    u32 step;
    u32 partner;
};

struct Position {
    const u16* cos;
    const u16* sin;

    DEVICE Position of(const TwoTurns& call, u64 positions) {
        const u64 position = reinterpret_cast<const u64*>(positions)[block_x()];
        const u16* row = reinterpret_cast<const u16*>(call.table) + position * (2 * call.pairs);
        return Position{row, row + call.pairs};
    }
};

DEVICE float from_bf16(u16 half) { return as_float(static_cast<u32>(half) << 16); }
DEVICE float rounded(float number) { return from_bf16(to_bf16(number)); }

// a · c + b · d
DEVICE float sum_of_products(float a, float c, float b, float d) {
    return rounded(rounded(multiply(a, c)) + rounded(multiply(b, d)));
}

KERNEL(two_turns, TwoTurns, call) {
    const Position before = Position::of(call, call.old_positions);
    const Position after = Position::of(call, call.new_positions);
    const u64 token = call.keys + static_cast<u64>(block_x()) * (call.heads * call.dims * 2);
    for (u32 i = thread_index(); i < call.heads * call.pairs; i += thread_count()) {
        const u32 pair = i % call.pairs;
        const u64 a = token + 2 * (i / call.pairs * call.dims + call.window + pair * call.step);
        const u64 b = a + 2 * call.partner;
        const float x = from_bf16(load_half(a));
        const float y = from_bf16(load_half(b));
        const float old_cos = from_bf16(before.cos[pair]), old_sin = from_bf16(before.sin[pair]);
        const float new_cos = from_bf16(after.cos[pair]), new_sin = from_bf16(after.sin[pair]);
        const float plain_x = sum_of_products(x, old_cos, y, old_sin);
        const float plain_y = sum_of_products(y, old_cos, x, -old_sin);
        store_half(a, to_bf16(sum_of_products(plain_x, new_cos, plain_y, -new_sin)));
        store_half(b, to_bf16(sum_of_products(plain_y, new_cos, plain_x, new_sin)));
    }
}
