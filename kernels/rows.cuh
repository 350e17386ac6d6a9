// What a kernel is told: which rows go where, and where rows lie. Written by src/cuda/abi.rs, whose structs are
// held to these by a test.
//
// Everything is in `words`: the kernel's own parameters where they suffice, else a buffer of the caller's. Whoever
// reads them need not know which. Indices named `..._at` count words from the start.

#pragma once

#include <numbers.cuh>

constexpr u32 NONE = 0xffffffffu;

// Words of a call's parameters: what a typical edit takes, as all of them are copied at every launch, and the most
// that a driver takes.
constexpr u32 SMALL = 1024;
constexpr u32 LARGE = 8188;

// Where rows lie. Strides in bytes.
struct Side {
    u64 batch_stride;
    u64 block_stride;
    u64 row_stride;
    u64 head_stride;
    u64 pack_stride;
    // Dimensions of a pack.
    u32 pack;
    u32 block_rows;
    // row / block_rows = (high half of row * magic, + row) >> shift, for rows below 2³¹.
    u32 magic;
    u32 shift;
    // Blocks are where a table says, whose entry for block 0 would be here among the words (modulo 2³²: those before
    // the call's first row are left out); else they are in order.
    u32 table_at;
    u32 has_table;
};

// Everything that the keys (of one rope) or the values of all layers have in common.
struct Shape {
    Side source;
    Side destination;
    u32 batches;
    u32 heads;
    // Items of a head vector: first those that turn, then the chunks of the dimensions around the window, two by
    // two. A thread takes one.
    u32 items;
    u32 turning_items;
    u32 window;
    u32 window_width;
    // Dimensions from one item's first chunk to the next one's, and from an item's first chunk to its second.
    u32 item_step;
    u32 partner;
    // Chunks around the window.
    u32 around;
    u32 pairs;
    // The table's first row; NONE: nothing turns.
    u32 cos_sin_at;
    // How a block is shared out: items, then heads, then rows.
    u32 group;
    u32 head_group;
    // 16 bytes at a time.
    u32 wide;
    // Pairs lie inside the chunks.
    u32 inside;
    // Every row turns by a row of the table that is its own.
    u32 row_by_row;
};

// Rows that follow each other on both sides. `before`: rows of all earlier spans.
struct Span {
    u32 src;
    u32 dst;
    u32 len;
    u32 before;
    // The table row that turns all of it, in tables of a row for each delta; NONE: keys do not turn.
    u32 delta;
    // The table row of the first row, in tables of a row for each row.
    u32 own;
};

struct Header {
    // 0: the words are the parameters.
    u64 workspace;
    u32 rows;
    // `rotate`: rows that each thread takes.
    u32 steps;
    u32 spans_at;
    u32 spans;
    // Of each job (one layer's keys or values): two addresses, and which of the shapes it has.
    u32 sources_at;
    u32 destinations_at;
    u32 shape_of_at;
    u32 shapes_at;
    // Rows stay where they are.
    u32 in_place;
    u32 unused;
};

template <u32 WORDS>
struct alignas(16) Parameters {
    u32 words[WORDS];
};

template <u32 WORDS>
DEVICE const u32* words_of(const Parameters<WORDS>& parameters) {
    const u64 workspace = reinterpret_cast<const Header*>(parameters.words)->workspace;
    return workspace == 0 ? parameters.words : reinterpret_cast<const u32*>(workspace);
}

template <class T>
DEVICE const T& at(const u32* words, u32 index) {
    return *reinterpret_cast<const T*>(words + index);
}

// One thread's share of a head vector.
struct Item {
    bool turns;
    // There is a second chunk.
    bool two;
    // The dimensions of both.
    u32 a;
    u32 b;
    // Where its cosines are in a row of the table, the second half of them apart.
    u32 first_pair;
    u32 second_pair;
};

template <class Access>
DEVICE Item item_of(const Shape& shape, u32 index) {
    constexpr u32 COUNT = Access::COUNT;
    Item item;
    item.turns = index < shape.turning_items;
    if (item.turns) {
        item.two = true;
        item.a = shape.window + index * shape.item_step;
        item.b = item.a + shape.partner;
        item.first_pair = index * (shape.inside ? COUNT / 2 : COUNT);
        item.second_pair = item.first_pair + (shape.inside ? shape.pairs / 2 : COUNT / 2);
        return item;
    }
    // Half of the chunks away, so that neighbouring threads touch neighbouring chunks.
    const u32 first = index - shape.turning_items;
    const u32 second = first + (shape.around + 1) / 2;
    item.two = second < shape.around;
    item.a = first * COUNT;
    item.b = second * COUNT;
    item.a += item.a >= shape.window ? shape.window_width : 0;
    item.b += item.b >= shape.window ? shape.window_width : 0;
    item.first_pair = item.second_pair = 0;
    return item;
}

// The cosines and sines of an item's pairs, from a row of the table.
template <class Access>
DEVICE void turn_of(const u32* words, const Shape& shape, const Item& item, u32 row, Turn<Access::COUNT>& turn) {
    const float* cos = &at<float>(words, shape.cos_sin_at) + static_cast<u64>(row) * (2 * shape.pairs);
    const float* sin = cos + shape.pairs;
    Access::floats(cos + item.first_pair, cos + item.second_pair, turn.cos);
    Access::floats(sin + item.first_pair, sin + item.second_pair, turn.sin);
}

// A thread's place in its block, and its block's in the grid.
struct Lane {
    u32 batch;
    u32 head;
    u32 item;
    // Of the rows that the block takes at once.
    u32 row;
    u32 rows_at_once;
    // Of the blocks that share a lane.
    u32 tile;
    bool busy;
};

DEVICE Lane lane_of(const Shape& shape) {
    const u32 item_groups = (shape.items + shape.group - 1) / shape.group;
    const u32 head_groups = (shape.heads + shape.head_group - 1) / shape.head_group;
    const u32 lanes = shape.batches * head_groups * item_groups;
    const u32 block = block_x() % lanes;
    const u32 thread = thread_index();
    const u32 vector = thread / shape.group;
    Lane lane;
    lane.tile = block_x() / lanes;
    lane.item = block % item_groups * shape.group + thread % shape.group;
    lane.head = block / item_groups % head_groups * shape.head_group + vector % shape.head_group;
    lane.batch = block / item_groups / head_groups;
    lane.row = vector / shape.head_group;
    lane.rows_at_once = thread_count() / (shape.group * shape.head_group);
    lane.busy = lane.item < shape.items && lane.head < shape.heads && lane.row < lane.rows_at_once;
    return lane;
}

// Where a dimension of a head vector is, from the start of its row.
DEVICE u64 dim_of(const Side& side, u32 dim) {
    return dim / side.pack * side.pack_stride + dim % side.pack * SIZE;
}

// Where a row is, from the first one.
DEVICE u64 row_of(const u32* words, const Side& side, u32 row) {
    u32 block = (multiply_high(row, side.magic) + row) >> side.shift;
    const u32 inside = row - block * side.block_rows;
    if (side.has_table) {
        block = at<u32>(words, side.table_at + block);
    }
    return block * side.block_stride + inside * side.row_stride;
}

// Where one thread's chunks are, but for the row.
struct End {
    u64 a;
    u64 b;

    DEVICE End of(const Side& side, u64 base, const Lane& lane, const Item& item) {
        const u64 vector = base + lane.batch * side.batch_stride + lane.head * side.head_stride;
        return End{vector + dim_of(side, item.a), vector + dim_of(side, item.b)};
    }
};

// A row of the call: where it is, where it goes, and the row of the table that turns it (NONE: none).
struct Row {
    u32 src;
    u32 dst;
    u32 turn;
};

// Goes through the call's rows, in its order. A span that moves right goes from its last row to its first, so that
// no row lands on one that has not been read yet.
//
// What rows need is worked out when their span is entered, into steps along the order. A row then costs three
// products, and does not wait: for fields kept as they were loaded the device would wait at every row, and with them
// for all else that is on its way, which is the cache's rows.
struct Walk {
    const u32* words;
    u32 spans_at;
    u32 spans;
    u32 index;
    // The span's rows in the order.
    u32 before;
    u32 len;
    // In row `i` of the order: `src = first_src + i * step`, `dst = src + shift`, `turn = first_turn + i * turn_step`,
    // all modulo 2³².
    u32 first_src;
    u32 step;
    u32 shift;
    u32 first_turn;
    u32 turn_step;
    bool row_by_row;

    DEVICE Walk from(const u32* words, const Header& header, const Shape& shape) {
        Walk walk{words, header.spans_at, header.spans, 0, 0, 0, 0, 0, 0, 0, 0, shape.row_by_row != 0};
        walk.enter();
        return walk;
    }

    __device__ __forceinline__ const Span& span(u32 index) const {
        return at<Span>(words, spans_at + index * (sizeof(Span) / 4));
    }

    __device__ __forceinline__ void enter() {
        const Span entered = span(index);
        const bool right = entered.dst > entered.src;
        before = entered.before;
        len = entered.len;
        shift = entered.dst - entered.src;
        step = right ? -1u : 1;
        turn_step = row_by_row ? step : 0;
        // The row of the order at which the span's first row would be, and from there to the order's row 0.
        const u32 origin = right ? before + len - 1 : before;
        first_src = entered.src - origin * step;
        first_turn = row_by_row ? entered.own - origin * step : entered.delta;
    }

    // Row `row` of the order; no row before the last one's span.
    __device__ __forceinline__ Row at_row(u32 row) {
        if (row - before >= len) {
            u32 low = index, high = spans;
            while (high - low > 1) {
                const u32 middle = low + (high - low) / 2;
                (span(middle).before <= row ? low : high) = middle;
            }
            index = low;
            enter();
        }
        const u32 src = first_src + row * step;
        return Row{src, src + shift, first_turn + row * turn_step};
    }
};

// Both chunks of a thread in one row.
template <class Access>
struct Chunks {
    typename Access::Chunk a;
    typename Access::Chunk b;
};
