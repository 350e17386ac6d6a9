// `rotate` and `copy`: rows that stay where they are, or go where no row is read.
//
//     K_new = R(p_new) · R(p_old)ᵀ · K_old
//
// The order of rows does not matter, so the grid covers all of them: x tiles of `TILE` rows, y head vectors (and
// groups of their items), z layers. An invocation owns one item of a head vector, that is both halves of its
// pairs, and walks down the rows of its tile; its cosines and sines stay in registers until the delta changes.
// Neighbouring invocations take neighbouring items, then neighbouring rows, so that their accesses coalesce; the
// other way round where rows are closer, as in x-packed pages.

// Rows of a workgroup: enough to reuse the table's values, few enough to fill a GPU.
const TILE = 64u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if ELEMENT == F16 && PAIRS != NO_PAIRS {
        probe_f16();
    }
    // 1. Which item of which head vector.
    let job = jobs[call.first_job + workgroup.z];
    let groups = (job.items + job.group - 1u) / job.group;
    let lane = call.first_lane + workgroup.y;
    let vector = lane / groups;
    let share = share_of(job, thread);
    let index = lane % groups * job.group + share.item;
    if vector >= job.batches * job.heads || index >= job.items || !share.some {
        return;
    }
    let item = item_of(job, index);
    let ends = ends_of(job, item, job.first_batch + vector / job.heads, job.first_head + vector % job.heads);

    // 2. Down the rows.
    let start = (call.first_tile + workgroup.x) * TILE;
    let end = job.first_row + min(start + TILE, job.rows);
    var span = 0u;
    var turn_row = NONE;
    var turn: Turn;
    for (var at = job.first_row + start + share.row; at < end; at += share.rows) {
        span = span_of(at, span);
        let row = row_of(job, at, span);
        let source = locate(job.source, select(row.src, at - job.source.dense, job.source.dense != NONE));
        let destination = locate(job.destination, select(row.dst, at - job.destination.dense, job.destination.dense != NONE));
        if !source.bound || !destination.bound {
            continue;
        }
        // 3. Read, turn, write.
        let apart = PAIRS == APART && item.turns;
        var chunks = Chunks(load(ends.source + source.element), Words(0u));
        if apart {
            chunks.b = load(ends.source_partner + source.element);
        }
        if PAIRS != NO_PAIRS && item.turns && row.turn != NONE {
            if row.turn != turn_row {
                turn_row = row.turn;
                turn = turn_of(job, item, turn_row);
            }
            if PAIRS == APART {
                chunks = turn_apart(chunks, turn);
            } else {
                chunks.a = turn_inside(chunks.a, turn);
            }
        }
        store(ends.destination + destination.element, chunks.a);
        if apart {
            store(ends.destination_partner + destination.element, chunks.b);
        }
    }
}
