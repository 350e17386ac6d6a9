// `splice`: rows move inside their buffer, keys turn on the way, and there is no second buffer.
//
//     K_new = R(p_new) · R(p_old)ᵀ · K_old
//
// The equation is that of `rotate.cu`; what is new is that rows land on rows. The call's order of rows settles it
// (src/check.rs, `splice_order`): spans that move right come first, from the last row of the last to the first row
// of the first, then those that move left, from the first row on. In that order no row lands on one that comes
// later.
//
// Mapping. Dimensions never mix but for the two halves of a pair, so each item of each head vector is a `memmove`
// of its own down the rows: a lane. y is jobs, x is lanes, and one block walks the lanes of its items and heads,
// tile by tile, to the end. A tile is in registers before any of it is written:
//
//     load tile t;  barrier;  turn and store tile t
//
// One barrier a tile is enough. What tile t overwrites are sources of tile t or of earlier ones: those of t have
// been loaded by every thread of the block when the barrier opens, and other blocks have other dimensions. So a
// thread that has stored its share of tile t need not wait to load tile t + 1.
//
// No second tile is loaded ahead: all loads that wait for nothing between them (`rotate.cu`) share one counter, so
// waiting for tile t would be waiting for tile t + 1 as well. Two blocks share a multiprocessor; while one of them
// waits, the other turns and stores.
//
// What bounds it. Memory, as in `rotate.cu`, while there are lanes enough: layers × 2 × heads × item groups. Where
// a cache has few heads the host makes groups narrower, down to whole sectors of 32 bytes.

#include <rows.cuh>

// Rows of a thread in a tile.
constexpr int DEPTH = 4;

template <class Access>
DEVICE void splice(const u32* words, const Header& header, const Shape& shape) {
    // 1. Which lanes. No thread leaves before the last barrier, unless all of its block do.
    const u32 job = block_y();
    const Lane lane = lane_of(shape);
    if (lane.tile != 0) {
        return;
    }
    const Item item = item_of<Access>(shape, lane.busy ? lane.item : 0);
    // Rows stay in their buffer, so what holds for the source holds for the destination. It is a copy, which stays in
    // registers; what is read through a reference is read again for every row.
    const Side side = shape.source;
    const End end = End::of(side, at<u64>(words, header.sources_at + 2 * job), lane, item);
    const bool turns = item.turns && shape.cos_sin_at != NONE;
    const bool inside = shape.inside;

    // 2. Tile by tile.
    Walk walk = Walk::from(words, header, shape);
    Turn<Access::COUNT> turn;
    u32 turn_row = NONE;
    for (u32 start = 0; start < header.rows; start += DEPTH * lane.rows_at_once) {
        u64 from[DEPTH];
        u32 to[DEPTH];
        u32 turn_rows[DEPTH];
        bool used[DEPTH];
        // 3. Where. Past the end, where the last row is: nothing is loaded there.
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            const u32 at_row = start + k * lane.rows_at_once + lane.row;
            const Row row = walk.at_row(min(at_row, header.rows - 1));
            from[k] = row_of(words, side, row.src);
            to[k] = row.dst;
            turn_rows[k] = turns ? row.turn : NONE;
            // A row that turns where it is has dimensions, and values, that stay.
            const bool stays = row.src == row.dst && turn_rows[k] == NONE;
            used[k] = lane.busy && at_row < header.rows && !stays;
        }
        // 4. Read.
        Chunks<Access> held[DEPTH];
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            if (used[k]) {
                held[k].a = Access::load(end.a + from[k]);
            }
            if (used[k] && item.two) {
                held[k].b = Access::load(end.b + from[k]);
            }
        }
        block_barrier();
        // 5. Turn and write.
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            if (!used[k]) {
                continue;
            }
            if (turn_rows[k] != NONE) {
                if (turn_rows[k] != turn_row) {
                    turn_row = turn_rows[k];
                    turn_of<Access>(words, shape, item, turn_row, turn);
                }
                turn_chunks<Access>(held[k].a, held[k].b, turn, inside);
            }
            const u64 target = row_of(words, side, to[k]);
            Access::store(end.a + target, held[k].a);
            if (item.two) {
                Access::store(end.b + target, held[k].b);
            }
        }
    }
}

DEVICE void splice(const u32* words, const Header& header) {
    const u32 index = at<u32>(words, header.shape_of_at + block_y());
    const Shape& shape = at<Shape>(words, header.shapes_at + index * (sizeof(Shape) / 4));
    if (shape.wide) {
        splice<Wide>(words, header, shape);
    } else {
        splice<Narrow>(words, header, shape);
    }
}

KERNEL(NAME(splice, small), Parameters<SMALL>, parameters) {
    splice(words_of(parameters), at<Header>(parameters.words, 0));
}

KERNEL(NAME(splice, large), Parameters<LARGE>, parameters) {
    splice(words_of(parameters), at<Header>(parameters.words, 0));
}
