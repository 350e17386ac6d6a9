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
//     load tile t + 1;  barrier;  turn and store tile t
//
// One barrier a tile is enough. What tile t overwrites are sources of tile t or of earlier ones: those of t have
// been loaded by every thread of the block when the barrier opens, and other blocks have other dimensions. So the
// next tile's loads need not wait for anything, and are on their way while this one is turned and stored.
//
// What bounds it. Memory, as in `rotate.cu`, while there are lanes enough: layers × 2 × heads × item groups. Where
// a cache has few heads the host makes groups narrower, down to whole sectors of 32 bytes.

#include <rows.cuh>

// Rows of a thread in a tile.
constexpr int DEPTH = 2;

template <class Access>
struct Tile {
    Chunks<Access> held[DEPTH];
    u64 target[DEPTH];
    u32 turn_rows[DEPTH];
    bool used[DEPTH];
};

template <class Access>
struct Splice {
    const u32* words;
    const Header& header;
    const Shape& shape;
    const Lane lane;
    const Item item;
    const End source;
    const End destination;

    __device__ __forceinline__ void load(Walk& walk, u32 start, Tile<Access>& tile) const {
        const bool turns = item.turns && shape.cos_sin_at != NONE;
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            const u32 at_row = start + k * lane.rows_at_once + lane.row;
            tile.used[k] = lane.busy && at_row < header.rows;
            if (!tile.used[k]) {
                continue;
            }
            const Row row = walk.at_row(at_row);
            tile.turn_rows[k] = turns ? row.turn : NONE;
            // A row that turns where it is has dimensions, and values, that stay.
            if (row.src == row.dst && tile.turn_rows[k] == NONE) {
                tile.used[k] = false;
                continue;
            }
            const u64 from = row_of(words, shape.source, row.src);
            tile.target[k] = row_of(words, shape.destination, row.dst);
            tile.held[k].a = Access::load(source.a + from);
            if (item.two) {
                tile.held[k].b = Access::load(source.b + from);
            }
        }
    }

    __device__ __forceinline__ void store(Tile<Access>& tile, u32& turn_row, Turn<Access::COUNT>& turn) const {
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            if (!tile.used[k]) {
                continue;
            }
            if (tile.turn_rows[k] != NONE) {
                if (tile.turn_rows[k] != turn_row) {
                    turn_row = tile.turn_rows[k];
                    turn_of<Access>(words, shape, item, turn_row, turn);
                }
                turn_chunks<Access>(tile.held[k].a, tile.held[k].b, turn, shape.inside);
            }
            Access::store(destination.a + tile.target[k], tile.held[k].a);
            if (item.two) {
                Access::store(destination.b + tile.target[k], tile.held[k].b);
            }
        }
    }
};

template <class Access>
DEVICE void splice(const u32* words, const Header& header, const Shape& shape) {
    // 1. Which lanes. No thread leaves before the last barrier, unless all of its block do.
    const u32 job = block_y();
    const Lane lane = lane_of(shape);
    if (lane.tile != 0) {
        return;
    }
    const Item item = item_of<Access>(shape, lane.busy ? lane.item : 0);
    const Splice<Access> splice{
        words,
        header,
        shape,
        lane,
        item,
        End::of(shape.source, at<u64>(words, header.sources_at + 2 * job), lane, item),
        End::of(shape.destination, at<u64>(words, header.destinations_at + 2 * job), lane, item),
    };

    // 2. Tile by tile.
    Walk walk = Walk::from(words, header);
    Turn<Access::COUNT> turn;
    u32 turn_row = NONE;
    const u32 rows = DEPTH * lane.rows_at_once;
    Tile<Access> next;
    splice.load(walk, 0, next);
    for (u32 start = 0; start < header.rows; start += rows) {
        Tile<Access> tile = next;
        // 3. Read the next one. (Past the end there is none, and nothing is read.)
        splice.load(walk, start + rows, next);
        block_barrier();
        // 4. Turn and write this one.
        splice.store(tile, turn_row, turn);
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
