// What a kernel is told: which rows go where, and where rows lie. Written by src/webgpu/abi.rs, whose structs
// are held to these by a test.

const NONE = 0xffffffffu;
// Invocations of a workgroup.
override THREADS: u32;

// Source and destination are one binding, `dst`.
override WITHIN: bool;

// Where rows lie. Counts and strides in elements; arithmetic wraps, since a binding may begin after the layout.
struct Side {
    // The first element of all, counted from the start of the binding.
    first: u32,
    batch_stride: u32,
    block_stride: u32,
    row_stride: u32,
    head_stride: u32,
    pack_stride: u32,
    // Dimensions of a pack.
    pack: u32,
    // Rows of a block.
    block_rows: u32,
    // Where block 0 of the sequence is in `tables`; NONE: blocks are in order.
    table: u32,
    // Blocks, and rows of a block, that this binding holds. All other rows are another dispatch's.
    first_block: u32,
    blocks: u32,
    first_row: u32,
    rows: u32,
    // Rows are numbered by this call's order instead of the sequence's, from this one; NONE: they are not.
    dense: u32,
}

// The keys or the values of one layer.
struct Job {
    source: Side,
    destination: Side,
    first_batch: u32,
    batches: u32,
    first_head: u32,
    heads: u32,
    // Rows of this job, in the call's order.
    first_row: u32,
    rows: u32,
    // Items of a head vector: first those that turn, then chunks of the dimensions around the window. An
    // invocation takes one.
    items: u32,
    // How many of them one workgroup takes.
    group: u32,
    // 1: neighbours in memory are rows; 0: items.
    rows_first: u32,
    turning_items: u32,
    window: u32,
    window_width: u32,
    // From one item's first chunk to the next one's, in dimensions.
    item_step: u32,
    // From a turning item's first chunk to its second one, in dimensions, if pairs lie apart.
    partner: u32,
    // Where the layer's table begins in `cos_sin`.
    table: u32,
    // 1: every row turns by a row of the table that is its own.
    row_by_row: u32,
    pairs: u32,
}

// Rows that follow each other on both sides. `before`: rows of all earlier spans.
struct Span {
    src: u32,
    dst: u32,
    len: u32,
    before: u32,
    // The table row that turns all of it, in tables of a row for each delta; NONE: keys do not turn.
    delta: u32,
    // The table row of the first row, in tables of a row for each row.
    own: u32,
}

// One dispatch's share of the grid.
struct Call {
    // What `probe_f16` converts.
    probe: vec4<f32>,
    extremes: vec4<f32>,
    halves: vec2<u32>,
    first_job: u32,
    first_lane: u32,
    first_tile: u32,
}

@group(0) @binding(2) var<storage, read> spans: array<Span>;
@group(0) @binding(3) var<storage, read> tables: array<u32>;
// Rows of `pairs` cosines and `pairs` sines.
@group(0) @binding(4) var<storage, read> cos_sin: array<f32>;
@group(0) @binding(5) var<storage, read> jobs: array<Job>;
@group(0) @binding(6) var<uniform> call: Call;

// The span that row `row` of the call's order is in, at `start` or after. Mostly it is the one before's.
fn span_of(row: u32, start: u32) -> u32 {
    var low = start;
    var high = arrayLength(&spans);
    if low + 1u >= high || row < spans[low + 1u].before {
        return low;
    }
    while high - low > 1u {
        let middle = low + (high - low) / 2u;
        if spans[middle].before <= row {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

struct Row {
    src: u32,
    dst: u32,
    turn: u32,
}

// Row `row` of the call's order, which is inside span `index`. A span that moves right goes from its last row to
// its first, so that no row lands on one that has not been read yet.
fn row_of(job: Job, row: u32, index: u32) -> Row {
    let span = spans[index];
    var inside = row - span.before;
    if span.dst > span.src {
        inside = span.len - 1u - inside;
    }
    let turn = select(span.delta, span.own + inside, job.row_by_row != 0u);
    return Row(span.src + inside, span.dst + inside, turn);
}

struct Place {
    element: u32,
    bound: bool,
}

// Where a row is, relative to its batch and head; `bound`: in this binding.
fn locate(side: Side, row: u32) -> Place {
    var block = row / side.block_rows;
    let inside = row - block * side.block_rows;
    if side.table != NONE {
        block = tables[side.table + block];
    }
    let bound = block - side.first_block < side.blocks && inside - side.first_row < side.rows;
    return Place(block * side.block_stride + inside * side.row_stride, bound);
}

fn dim_of(side: Side, dim: u32) -> u32 {
    return dim / side.pack * side.pack_stride + dim % side.pack;
}

// What an invocation takes of its workgroup's items and rows: neighbours take what is neighbours in memory.
struct Share {
    item: u32,
    row: u32,
    // Rows that the workgroup takes at once.
    rows: u32,
    // Not every invocation has one.
    some: bool,
}

fn share_of(job: Job, thread: u32) -> Share {
    let rows = THREADS / job.group;
    let some = thread < rows * job.group;
    if job.rows_first != 0u {
        return Share(thread / rows, thread % rows, rows, some);
    }
    return Share(thread % job.group, thread / job.group, rows, some);
}

// One invocation's share of a head vector.
struct Item {
    turns: bool,
    // Its first chunk's dimension.
    dim: u32,
    // Its first pair.
    pair: u32,
}

fn item_of(job: Job, index: u32) -> Item {
    if index < job.turning_items {
        let dims = select(CHUNK, CHUNK / 2u, PAIRS == INSIDE);
        return Item(true, job.window + index * job.item_step, index * dims);
    }
    var dim = (index - job.turning_items) * CHUNK;
    if dim >= job.window {
        dim += job.window_width;
    }
    return Item(false, dim, 0u);
}

// The cosines and sines of an item's pairs in a row of the table.
fn turn_of(job: Job, item: Item, row: u32) -> Turn {
    let cos = job.table + row * 2u * job.pairs + item.pair;
    let sin = cos + job.pairs;
    // Chunks of words of two elements: neighbouring pairs go to `even` and `odd` in turn.
    if PAIRS == APART && CHUNK > LANES {
        return Turn(
            Numbers(table_floats(cos, 2u), table_floats(cos + 1u, 2u)),
            Numbers(table_floats(sin, 2u), table_floats(sin + 1u, 2u)),
        );
    }
    let nothing = Floats(0.0);
    return Turn(Numbers(table_floats(cos, 1u), nothing), Numbers(table_floats(sin, 1u), nothing));
}

// Where an invocation's chunks are.
struct Ends {
    source: u32,
    destination: u32,
    // To the second chunk.
    source_partner: u32,
    destination_partner: u32,
}

fn ends_of(job: Job, item: Item, batch: u32, head: u32) -> Ends {
    let origin = job.source;
    let goal = job.destination;
    let source = origin.first + batch * origin.batch_stride + head * origin.head_stride;
    let destination = goal.first + batch * goal.batch_stride + head * goal.head_stride;
    let second = item.dim + job.partner;
    return Ends(
        source + dim_of(origin, item.dim),
        destination + dim_of(goal, item.dim),
        source + dim_of(origin, second),
        destination + dim_of(goal, second),
    );
}
