// `rotate` and `copy`: rows that stay where they are, or go where no row is read.
//
//     K_new = R(p_new) · R(p_old)ᵀ · K_old
//
// The equation, for each pair (a, b) of a head vector, with the angle already composed into one table row:
//
//     a' = fma(a, cos, −(b · sin))        b' = fma(b, cos, a · sin)
//
// Mapping. The order of rows does not matter here, so the grid covers all of them: x is lanes × tiles of rows, y
// is jobs (the keys or values of a layer). A block is items × heads × rows. A thread owns one item, that is two
// 16-byte chunks of a head vector with both halves of their pairs, so no thread reads what another writes; it
// walks down the rows of its tile, and its cosines and sines stay in registers until the delta changes.
// Neighbouring threads take neighbouring chunks, then whatever is nearest in memory, heads or rows, so that every
// sector that is fetched is used whole.
//
// What bounds it. Per row and thread: 32 bytes in, 32 bytes out, and about 116 instructions in f16, a quarter of what
// a multiprocessor issues in the time that the bytes take. So memory does, if enough of it is asked for at once:
// `DEPTH` rows are loaded before the first of them is used, 128 bytes a thread; at two blocks of 256 threads that
// is 64 KiB a multiprocessor, where latency times bandwidth is about 20.
//
// Loads are on their way together only if nothing between them waits, and the device waits by counters, of which a
// load that is used in another block of code than its own shares one with all others of that kind. So all places
// are worked out before the first load, and every load is under one condition, short enough to become a predicate
// instead of a branch. `scripts/sass` holds the compiler to it.

#include <rows.cuh>

// Rows in flight.
constexpr int DEPTH = 4;

template <class Access>
DEVICE void rotate(const u32* words, const Header& header, const Shape& shape) {
    // 1. Which item of which head vector.
    const u32 job = block_y();
    const Lane lane = lane_of(shape);
    // The grid is as long as the longest shape takes, so for others a tile may be past the end, and past 2³².
    const u32 tile_rows = lane.rows_at_once * header.steps;
    const u64 first = static_cast<u64>(lane.tile) * tile_rows + lane.row;
    if (!lane.busy || first >= header.rows) {
        return;
    }
    const u32 start = lane.tile * tile_rows;
    const u32 end = min(header.rows, start + tile_rows);
    const Item item = item_of<Access>(shape, lane.item);
    const End destination = End::of(shape.destination, at<u64>(words, header.destinations_at + 2 * job), lane, item);
    const End source = End::of(shape.source, at<u64>(words, header.sources_at + 2 * job), lane, item);
    const bool turns = item.turns && shape.cos_sin_at != NONE;
    // Copies, which stay in registers; what is read through a reference is read again for every row. The destination
    // is: only copies ask for it, and while their loads are on their way.
    const Side side = shape.source;
    const bool inside = shape.inside;
    const bool in_place = header.in_place;

    // 2. Down the rows.
    Walk walk = Walk::from(words, header, shape);
    Turn<Access::COUNT> turn;
    u32 turn_row = NONE;
    for (u32 next = start + lane.row; next < end; next += DEPTH * lane.rows_at_once) {
        u64 from[DEPTH];
        u32 to[DEPTH];
        u32 turn_rows[DEPTH];
        // 3. Where. Past the end, where the last row is: nothing is loaded there.
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            const Row row = walk.at_row(min(next + k * lane.rows_at_once, end - 1));
            from[k] = row_of(words, side, row.src);
            to[k] = row.dst;
            turn_rows[k] = turns ? row.turn : NONE;
        }
        // 4. Read.
        Chunks<Access> held[DEPTH];
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            const bool used = next + k * lane.rows_at_once < end;
            if (used) {
                held[k].a = Access::load(source.a + from[k]);
            }
            if (used && item.two) {
                held[k].b = Access::load(source.b + from[k]);
            }
        }
        // 5. Turn and write.
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            if (next + k * lane.rows_at_once >= end) {
                continue;
            }
            if (turn_rows[k] != NONE) {
                if (turn_rows[k] != turn_row) {
                    turn_row = turn_rows[k];
                    turn_of<Access>(words, shape, item, turn_row, turn);
                }
                turn_chunks<Access>(held[k].a, held[k].b, turn, inside);
            }
            const u64 target = in_place ? from[k] : row_of(words, shape.destination, to[k]);
            Access::store(destination.a + target, held[k].a);
            if (item.two) {
                Access::store(destination.b + target, held[k].b);
            }
        }
    }
}

DEVICE void rotate(const u32* words, const Header& header) {
    const u32 index = at<u32>(words, header.shape_of_at + block_y());
    const Shape& shape = at<Shape>(words, header.shapes_at + index * (sizeof(Shape) / 4));
    if (shape.wide) {
        rotate<Wide>(words, header, shape);
    } else {
        rotate<Narrow>(words, header, shape);
    }
}

KERNEL(NAME(rotate, small), Parameters<SMALL>, parameters) {
    rotate(words_of(parameters), at<Header>(parameters.words, 0));
}

KERNEL(NAME(rotate, large), Parameters<LARGE>, parameters) {
    rotate(words_of(parameters), at<Header>(parameters.words, 0));
}
