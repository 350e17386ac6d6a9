//! How a launch is shared out: to blocks, and inside a block to items, heads and rows.

use super::abi::Shape;
use super::modules::Verb;
use crate::{Error, Result};

/// Threads of a block, at least and at most: the latter is what the kernels' `__launch_bounds__` say.
pub(super) const WARP: u32 = 32;
pub(super) const THREADS: u32 = 256;

/// Blocks that a multiprocessor runs at a time (`__launch_bounds__`): as many lanes of `splice` keep all of them busy.
const RESIDENT: u64 = 2;

/// Blocks of `rotate` that follow each other there, so that all multiprocessors finish at about the same time.
const WAVES: u64 = 4;

/// Rows that a thread of `rotate` takes, at most, and how many of them it loads at once (its `DEPTH`).
const STEPS: u32 = 16;
const DEPTH: u32 = 4;

/// Threads that one row is shared out to, at most: 1 KiB of neighbouring chunks on each side of a window, and four
/// rows to a block.
const ACROSS: u32 = 64;

/// Items of a lane of `splice`: whole cache lines of 128 bytes if there are lanes enough, whole sectors of 32 bytes
/// if not.
const SPLICE_ITEMS: [u32; 3] = [8, 4, 2];

/// What launches are fitted to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) multiprocessors: u32,
    /// Threads of a block, at most.
    pub(super) threads: u32,
}

/// A launch, but for where its words are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub(super) grid: [u32; 2],
    pub(super) threads: u32,
    /// Rows that a thread of `rotate` takes.
    pub(super) steps: u32,
}

/// Shares out `rows` rows of shapes that `jobs` layers each have.
///
/// # Errors
/// [`Error::Limit`] if that is more than a launch takes.
pub(super) fn fit(
    verb: Verb,
    rows: u32,
    shapes: &mut [Shape],
    jobs: &[u64],
    device: Device,
) -> Result<Launch> {
    let resident = u64::from(device.multiprocessors) * RESIDENT;
    match verb {
        Verb::Rotate => {
            let most = ACROSS.min(device.threads);
            shapes.iter_mut().for_each(|shape| share_out(shape, most));
        }
        Verb::Splice => {
            for most in SPLICE_ITEMS {
                for shape in shapes.iter_mut() {
                    cut_lanes(shape, most, device.threads);
                }
                let lanes = shapes
                    .iter()
                    .zip(jobs)
                    .map(|(shape, jobs)| jobs * lanes(shape));
                if lanes.sum::<u64>() >= resident {
                    break;
                }
            }
        }
    }
    let across = |shape: &Shape| shape.group * shape.head_group;
    let busy = shapes
        .iter()
        .map(|shape| u64::from(across(shape)) * u64::from(rows));
    let threads = busy.max().unwrap_or(0).next_multiple_of(WARP.into());
    let threads = threads.min(device.threads.into()) as u32;
    // How often a block would take rows, if it were one for all of them.
    let rounds = |shape: &Shape| u64::from(rows.div_ceil(threads / across(shape)));
    let steps = match verb {
        Verb::Rotate => {
            let all = shapes.iter().zip(jobs);
            let all: u64 = all
                .map(|(shape, jobs)| jobs * lanes(shape) * rounds(shape))
                .sum();
            let steps = (all / (resident * WAVES)).clamp(1, STEPS.into()) as u32;
            if steps > DEPTH {
                steps / DEPTH * DEPTH
            } else {
                steps
            }
        }
        // To the end.
        Verb::Splice => u32::MAX,
    };
    let blocks = shapes
        .iter()
        .map(|shape| lanes(shape) * rounds(shape).div_ceil(steps.into()));
    let blocks = blocks.max().unwrap_or(0);
    let jobs: u64 = jobs.iter().sum();
    if blocks >= 1 << 31 || jobs >= 1 << 16 {
        return Err(Error::Limit(format!(
            "{blocks} blocks for each of {jobs} key and value buffers are more than a launch takes"
        )));
    }
    Ok(Launch {
        grid: [blocks as u32, jobs as u32],
        threads,
        steps,
    })
}

/// How many independent lanes a shape has in each job: blocks, but for the rows.
fn lanes(shape: &Shape) -> u64 {
    u64::from(shape.batches)
        * u64::from(shape.heads.div_ceil(shape.head_group))
        * u64::from(shape.items.div_ceil(shape.group))
}

/// Shares a block out to items, heads and rows for `rotate`: neighbouring threads to what is near in memory.
fn share_out(shape: &mut Shape, most: u32) {
    let side = &shape.destination;
    (shape.group, shape.head_group) = (1, 1);
    if side.pack_stride > side.row_stride {
        // The rows of a pack are neighbours: x-packed pages.
        return;
    }
    shape.group = evenly(shape.items, most);
    if side.head_stride < side.row_stride {
        shape.head_group = evenly(shape.heads, most / shape.group);
    }
}

/// The same for `splice`, whose items are each a lane of their own.
fn cut_lanes(shape: &mut Shape, most: u32, threads: u32) {
    let side = &shape.destination;
    (shape.group, shape.head_group) = (1, 1);
    if side.pack_stride <= side.row_stride {
        // As many bytes of narrow items.
        let most = if shape.wide == 1 { most } else { most * 8 };
        shape.group = evenly(shape.items, most.min(threads));
    }
}

/// The largest of the equal parts, as equal as can be, of no more than `most` that `all` has.
fn evenly(all: u32, most: u32) -> u32 {
    all.div_ceil(all.div_ceil(most.max(1)).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Device = Device {
        multiprocessors: 132,
        threads: THREADS,
    };

    /// `[1, heads, seq, 128]`, or with heads inside a row, in 16 bits.
    fn shape(heads: u32, heads_inside: bool) -> Shape {
        let mut shape = Shape {
            batches: 1,
            heads,
            items: 8,
            wide: 1,
            ..Shape::default()
        };
        let (row, head) = (256, 256 * 8192);
        let strides = if heads_inside {
            (256 * u64::from(heads), row)
        } else {
            (row, head)
        };
        (shape.destination.row_stride, shape.destination.head_stride) = strides;
        shape
    }

    #[test]
    fn equal_parts() {
        for all in 1..200 {
            for most in 1..70 {
                let part = evenly(all, most);
                assert!((1..=most).contains(&part));
                // As few as there can be, and none that could be smaller.
                let parts = all.div_ceil(part);
                assert_eq!(parts, all.div_ceil(most));
                assert!((part - 1) * parts < all);
            }
        }
    }

    #[test]
    fn every_row_of_every_lane_has_a_thread() {
        for verb in [Verb::Rotate, Verb::Splice] {
            for heads in [1, 2, 8, 20, 56] {
                for inside in [false, true] {
                    for rows in [1, 31, 128, 8192, 131_072] {
                        for threads in [32, 256] {
                            let mut shapes = [shape(heads, inside)];
                            let device = Device { threads, ..DEVICE };
                            let launch = fit(verb, rows, &mut shapes, &[64], device).unwrap();
                            let [shape] = shapes;
                            let across = shape.group * shape.head_group;
                            assert!(across <= launch.threads && launch.threads <= threads);
                            let tile = u64::from(launch.threads / across) * u64::from(launch.steps);
                            let tiles = u64::from(launch.grid[0]) / lanes(&shape);
                            assert!(tiles * tile >= u64::from(rows), "{verb:?} {heads} {rows}");
                            assert_eq!(launch.grid[1], 64);
                            assert!(verb == Verb::Rotate || tiles == 1);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn small_calls_are_spread_and_large_ones_keep_their_tables() {
        let steps = |rows| {
            fit(Verb::Rotate, rows, &mut [shape(8, false)], &[32], DEVICE)
                .unwrap()
                .steps
        };
        assert_eq!(steps(128), 1);
        assert_eq!(steps(131_072), STEPS);
    }

    #[test]
    fn lanes_are_narrow_where_there_are_few() {
        let group = |layers| {
            let mut shapes = [shape(8, false)];
            fit(Verb::Splice, 8192, &mut shapes, &[layers], DEVICE).unwrap();
            shapes[0].group
        };
        assert_eq!([group(64), group(32), group(1)], [8, 4, 2]);
    }

    #[test]
    fn more_than_a_launch_takes() {
        let refused = |heads, layers| {
            let fitted = fit(
                Verb::Rotate,
                1,
                &mut [shape(heads, false)],
                &[layers],
                DEVICE,
            );
            assert!(matches!(fitted, Err(Error::Limit(_))));
        };
        refused(1, 1 << 16);
        refused(u32::MAX, 1);
    }
}
