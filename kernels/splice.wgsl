// `splice`: rows move inside their buffer, keys turn on the way.
//
//     K_new = R(p_new) · R(p_old)ᵀ · K_old
//
// Each head vector's rows are a lane, and each lane (or group of its items) is a `memmove` of its own: one
// workgroup walks it, tile by tile, in the call's order of rows, in which no row lands on one that comes later.
// A tile is in registers before any of it is written; the barrier between the two is the only one needed, since
// what a tile overwrites belongs to itself or to tiles before it, and those have been read.

// Rows that an invocation holds at once.
const DEPTH = 4u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if ELEMENT == F16 && PAIRS != NO_PAIRS {
        probe_f16();
    }
    // 1. Which item of which head vector. No invocation leaves before the last barrier.
    let job = jobs[call.first_job + workgroup.z];
    let groups = (job.items + job.group - 1u) / job.group;
    let lane = call.first_lane + workgroup.y;
    let vector = lane / groups;
    let share = share_of(job, thread);
    let index = lane % groups * job.group + share.item;
    let busy = vector < job.batches * job.heads && index < job.items && share.some;
    let item = item_of(job, index);
    let ends = ends_of(job, item, job.first_batch + vector / job.heads, job.first_head + vector % job.heads);
    let apart = PAIRS == APART && item.turns;

    // 2. Tile by tile.
    let tile = DEPTH * share.rows;
    let end = job.first_row + job.rows;
    var span = 0u;
    var turn_row = NONE;
    var turn: Turn;
    var held: array<Chunks, DEPTH>;
    var places: array<Place, DEPTH>;
    for (var start = job.first_row; start < end; start += tile) {
        // 3. Read and turn.
        for (var k = 0u; k < DEPTH; k++) {
            let at = start + k * share.rows + share.row;
            places[k].bound = false;
            if !busy || at >= end {
                continue;
            }
            span = span_of(at, span);
            let row = row_of(job, at, span);
            if row.src == row.dst && !item.turns {
                continue;
            }
            let source = locate(job.source, row.src).element;
            places[k] = Place(locate(job.destination, row.dst).element, true);
            held[k].a = load(ends.source + source);
            if apart {
                held[k].b = load(ends.source_partner + source);
            }
            if PAIRS != NO_PAIRS && item.turns && row.turn != NONE {
                if row.turn != turn_row {
                    turn_row = row.turn;
                    turn = turn_of(job, item, turn_row);
                }
                if PAIRS == APART {
                    held[k] = turn_apart(held[k], turn);
                } else {
                    held[k].a = turn_inside(held[k].a, turn);
                }
            }
        }
        storageBarrier();
        // 4. Write.
        for (var k = 0u; k < DEPTH; k++) {
            if places[k].bound {
                store(ends.destination + places[k].element, held[k].a);
                if apart {
                    store(ends.destination_partner + places[k].element, held[k].b);
                }
            }
        }
    }
}
