//! The verbs by address, on any stream: what all other doors lead to.

use std::ffi::c_void;
use std::sync::PoisonError;

use cudarc::driver::{result, sys};

use super::abi::{LARGE, SMALL, UPLOAD, Upload};
use super::call::{Builder, Call, Place, Transfer, words_at_most};
use super::modules::{Function, Verb};
use super::{Cuda, CudaRawLayer, CudaWorkspace, within};
use crate::order::Order;
use crate::rotations::TurnedSpan;
use crate::{CacheLayout, Error, KeyLayout, Result, Rotations, check};

/// Threads of a block of `upload`.
const UPLOAD_THREADS: u32 = 256;

impl Cuda {
    /// [`rotate`](Cuda::rotate) by device address.
    ///
    /// # Safety
    /// This is the one door through which unchecked memory comes in, and the rules are the same for all three
    /// verbs:
    ///
    /// - every address of a [`CudaRawLayer`] is valid on the context's device for reads and writes of its length
    ///   (for reads alone if it is only copied from), and holds elements of the layout's type; likewise the
    ///   workspace;
    /// - `stream` is of the backend's context (null: the default stream), and what else touches these buffers and
    ///   the workspace is ordered before or after it;
    /// - no element that the layouts name is in two buffers of a call (interleaved views of one allocation share
    ///   none), except that a layer's keys and values may be *one* buffer (equal addresses), and that source and
    ///   destination of a copy may be the same layers (equal addresses). Both are then checked, by their layouts, to
    ///   have no element in common.
    ///
    /// # Errors
    /// See [`Cuda`].
    pub unsafe fn rotate_raw(
        &self,
        stream: sys::CUstream,
        rotations: &Rotations,
        layout: &CacheLayout<'_>,
        layers: &[CudaRawLayer],
        workspace: CudaWorkspace,
    ) -> Result<()> {
        check::in_place(
            rotations,
            layout,
            layers.iter().map(CudaRawLayer::buffers),
            false,
        )?;
        let call = rotate(rotations, layout, layers)?;
        // SAFETY: `check::in_place` has held layouts to lengths; memory and stream are what the caller promises above.
        unsafe { self.launch(stream, &call, workspace) }
    }

    /// [`splice`](Cuda::splice) by device address.
    ///
    /// # Safety
    /// See [`rotate_raw`](Cuda::rotate_raw).
    ///
    /// # Errors
    /// See [`Cuda`].
    pub unsafe fn splice_raw(
        &self,
        stream: sys::CUstream,
        rotations: &Rotations,
        layout: &CacheLayout<'_>,
        layers: &[CudaRawLayer],
        workspace: CudaWorkspace,
    ) -> Result<()> {
        check::in_place(
            rotations,
            layout,
            layers.iter().map(CudaRawLayer::buffers),
            true,
        )?;
        let call = splice(rotations, layout, layers)?;
        // SAFETY: `check` has passed, as in `rotate_raw`, whose promises the caller makes.
        unsafe { self.launch(stream, &call, workspace) }
    }

    /// [`copy`](Cuda::copy), or [`copy_within`](Cuda::copy_within) if both layers are the same, by device address.
    ///
    /// # Safety
    /// See [`rotate_raw`](Cuda::rotate_raw).
    ///
    /// # Errors
    /// See [`Cuda`].
    pub unsafe fn copy_raw(
        &self,
        stream: sys::CUstream,
        rotations: &Rotations,
        src: (&CacheLayout<'_>, &[CudaRawLayer]),
        dst: (&CacheLayout<'_>, &[CudaRawLayer]),
        workspace: CudaWorkspace,
    ) -> Result<()> {
        let buffers =
            |layers: &[CudaRawLayer]| layers.iter().map(CudaRawLayer::buffers).collect::<Vec<_>>();
        let within = src
            .1
            .iter()
            .zip(dst.1)
            // Empty slices share an address without sharing memory.
            .any(|(src, dst)| {
                src.keys == dst.keys && src.keys_len > 0
                    || src.values == dst.values && src.values != 0 && src.values_len > 0
            });
        check::copy(
            rotations,
            (src.0, &buffers(src.1)),
            (dst.0, &buffers(dst.1)),
            within,
        )?;
        let call = copy(rotations, src, dst)?;
        // SAFETY: `check` has passed, as in `rotate_raw`, whose promises the caller makes.
        unsafe { self.launch(stream, &call, workspace) }
    }

    /// Bytes of workspace that any verb takes at most for these rotations, on `layers` layers that lie as `layouts`
    /// say (of a copy, both); 0 if the parameters of a launch hold everything. See [`Cuda`](Cuda#workspace).
    pub fn workspace_len(
        &self,
        rotations: &Rotations,
        layouts: &[&CacheLayout<'_>],
        layers: usize,
    ) -> usize {
        let words = words_at_most(rotations, layouts, layers);
        if words <= LARGE { 0 } else { 4 * words }
    }

    /// Launches what a checked call comes to.
    ///
    /// # Safety
    /// See [`rotate_raw`](Cuda::rotate_raw).
    unsafe fn launch(
        &self,
        stream: sys::CUstream,
        call: &Call<'_>,
        workspace: CudaWorkspace,
    ) -> Result<()> {
        // Taken out, so that nobody waits for a driver that waits: a second thread meanwhile has one of its own.
        let lock = || self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut builder = std::mem::take(&mut *lock());
        // SAFETY: what the caller of this function promises is what `launch_by` asks.
        let launched = unsafe { self.launch_by(&mut builder, stream, call, workspace) };
        *lock() = builder;
        launched
    }

    /// Launches, with a builder's memory.
    ///
    /// # Safety
    /// See [`rotate_raw`](Cuda::rotate_raw).
    unsafe fn launch_by(
        &self,
        builder: &mut Builder,
        stream: sys::CUstream,
        call: &Call<'_>,
        workspace: CudaWorkspace,
    ) -> Result<()> {
        let launch = builder.build(call, self.device)?;
        let (Some(launch), Some(first)) = (launch, call.transfers.first()) else {
            return Ok(());
        };
        let needed = builder.workspace();
        if needed > 0 {
            check_workspace(needed, workspace)?;
        }
        let element = first.destination.layout.element();
        within(self.context, || {
            // Both before anything is launched.
            let small = builder.is_small() || needed > 0;
            let kernel = self.modules.kernel(call.verb, element, small)?;
            if needed > 0 {
                let upload = self.modules.upload()?;
                // SAFETY: `check_workspace` has found it long enough; that it is memory is what the caller promises.
                unsafe { fill(upload, stream, builder, workspace.address) }?;
                builder.set_workspace(workspace.address);
            }
            let words = if small { SMALL } else { LARGE };
            if builder.words.len() < words {
                builder.words.resize(words, 0);
            }
            // SAFETY: the kernel takes `words` words of parameters by value; what they point to, the caller
            // answers for.
            unsafe {
                start(
                    kernel,
                    stream,
                    launch.grid,
                    launch.threads,
                    &mut builder.words,
                )
            }
        })
    }
}

/// The rows and buffers of a `rotate`.
fn rotate<'a>(
    rotations: &'a Rotations,
    layout: &'a CacheLayout<'a>,
    layers: &[CudaRawLayer],
) -> Result<Call<'a>> {
    let spans = rotations.spans().iter().filter(|span| span.turns());
    let order = Order::new(spans.map(|&span| TurnedSpan {
        dst: span.src,
        ..span
    }))?;
    let mut transfers = keys(rotations, (&layout.keys, layers), (&layout.keys, layers));
    transfers.retain(|transfer| transfer.table.is_some());
    Ok(Call {
        verb: Verb::Rotate,
        rotations,
        order,
        transfers,
    })
}

/// The rows and buffers of a `splice`, but for buffers where nothing happens.
fn splice<'a>(
    rotations: &'a Rotations,
    layout: &'a CacheLayout<'a>,
    layers: &[CudaRawLayer],
) -> Result<Call<'a>> {
    let order = Order::new(check::splice_order(rotations.spans()).copied())?;
    let mut transfers = keys(rotations, (&layout.keys, layers), (&layout.keys, layers));
    values(&mut transfers, (layout, layers), (layout, layers));
    if order.spans.iter().all(|span| span.src == span.dst) {
        transfers.retain(|transfer| transfer.table.is_some());
    }
    Ok(Call {
        verb: Verb::Splice,
        rotations,
        order,
        transfers,
    })
}

/// The rows and buffers of a `copy`.
fn copy<'a>(
    rotations: &'a Rotations,
    src: (&'a CacheLayout<'a>, &[CudaRawLayer]),
    dst: (&'a CacheLayout<'a>, &[CudaRawLayer]),
) -> Result<Call<'a>> {
    let order = Order::new(rotations.spans().iter().copied())?;
    let mut transfers = keys(rotations, (&src.0.keys, src.1), (&dst.0.keys, dst.1));
    values(&mut transfers, src, dst);
    Ok(Call {
        verb: Verb::Rotate,
        rotations,
        order,
        transfers,
    })
}

type Buffers<'a, 'l, L> = (&'a L, &'l [CudaRawLayer]);

/// The keys of every layer.
fn keys<'a>(
    rotations: &Rotations,
    src: Buffers<'a, '_, KeyLayout<'a>>,
    dst: Buffers<'a, '_, KeyLayout<'a>>,
) -> Vec<Transfer<'a>> {
    let transfers = src
        .1
        .iter()
        .zip(dst.1)
        .enumerate()
        .map(|(layer, (from, to))| Transfer {
            source: Place {
                address: from.keys,
                layout: src.0,
            },
            destination: Place {
                address: to.keys,
                layout: dst.0,
            },
            table: rotations.table_index(layer),
            values: false,
        });
    transfers.collect()
}

/// Adds the values of the layers that have some.
fn values<'a>(
    transfers: &mut Vec<Transfer<'a>>,
    src: Buffers<'a, '_, CacheLayout<'a>>,
    dst: Buffers<'a, '_, CacheLayout<'a>>,
) {
    let Some((from, to)) = src.0.values.as_ref().zip(dst.0.values.as_ref()) else {
        return;
    };
    let layers = src
        .1
        .iter()
        .zip(dst.1)
        .filter(|(src, dst)| src.values != 0 && dst.values != 0);
    transfers.extend(layers.map(|(src, dst)| Transfer {
        source: Place {
            address: src.values,
            layout: from,
        },
        destination: Place {
            address: dst.values,
            layout: to,
        },
        table: None,
        values: true,
    }));
}

fn check_workspace(needed: usize, workspace: CudaWorkspace) -> Result<()> {
    let refuse = |problem: String| {
        Err(Error::Argument {
            argument: "workspace",
            problem,
        })
    };
    if workspace.address == 0 || workspace.len < needed {
        return refuse(format!(
            "this call needs {needed} bytes of it, there are {} (`Cuda::workspace_len`)",
            if workspace.address == 0 {
                0
            } else {
                workspace.len
            }
        ));
    }
    if !workspace.address.is_multiple_of(16) {
        return refuse(format!(
            "its address {:#x} is no multiple of 16",
            workspace.address
        ));
    }
    Ok(())
}

/// Fills a workspace with a builder's words, by launches that carry them.
///
/// # Safety
/// `address` is valid for as many words; the kernel is `upload`, of the current context, as is the stream.
unsafe fn fill(
    kernel: Function,
    stream: sys::CUstream,
    builder: &mut Builder,
    address: u64,
) -> Result<()> {
    let Builder { words, upload, .. } = builder;
    // What an earlier part leaves behind a shorter one is not looked at.
    upload.resize(LARGE, 0);
    for (index, part) in words.chunks(UPLOAD).enumerate() {
        let head = Upload {
            to: address + 4 * (index * UPLOAD) as u64,
            count: part.len() as u32,
            unused: 0,
        };
        let (front, rest) = upload.split_at_mut(LARGE - UPLOAD);
        front.copy_from_slice(bytemuck::cast_slice(&[head]));
        rest[..part.len()].copy_from_slice(part);
        let blocks = (part.len() as u32).div_ceil(UPLOAD_THREADS);
        // SAFETY: the kernel takes the `LARGE` words there are, and writes `count` of them to `to`, where the caller
        // promises room for all.
        unsafe { start(kernel, stream, [blocks, 1], UPLOAD_THREADS, upload) }?;
    }
    Ok(())
}

/// Launches a kernel whose one parameter is a struct of words. The driver has copied them when this returns.
///
/// # Safety
/// The kernel is of the current context, as is the stream, and takes no more than `words` by value.
unsafe fn start(
    kernel: Function,
    stream: sys::CUstream,
    [x, y]: [u32; 2],
    threads: u32,
    words: &mut [u32],
) -> Result<()> {
    let mut parameters = [words.as_mut_ptr().cast::<c_void>()];
    // SAFETY: the caller promises what `launch_kernel` asks; `parameters` is one pointer, to those words.
    unsafe {
        result::launch_kernel(
            kernel.0,
            (x, y, 1),
            (threads, 1, 1),
            0,
            stream,
            &mut parameters,
        )
    }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ops::Range;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::abi::Shape;
    use super::super::grid::{Device, THREADS};
    use super::*;
    use crate::{ElementType, ModelRope, Plan, Rope};

    const DEVICE: Device = Device {
        multiprocessors: 132,
        threads: THREADS,
    };

    /// A call of any verb takes no more words than it is said to take at most; one that uses all of what it is given,
    /// hardly fewer.
    #[test]
    fn a_call_takes_the_words_that_it_is_said_to_take() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let rope = Rope::from_theta(10_000.0, 16).unwrap();
        let (mut builder, mut large) = (Builder::default(), 0);
        for _ in 0..300 {
            let rows = random.random_range(1..6000);
            let kept: Vec<usize> = (0..rows).filter(|_| random.random_ratio(4, 5)).collect();
            let plan = Plan::from_kept(rows, &kept).unwrap();
            let number = random.random_range(1..300);
            let ropes = (0..number).map(|layer| (layer % 3 > 0).then(|| rope.clone()));
            let rotations = Rotations::for_model(&plan, &ModelRope::from_layers(ropes)).unwrap();
            let block = random.random_range(1..17);
            let blocks = rows.div_ceil(block);
            let pages = KeyLayout::nhd(ElementType::F16, [4 * blocks, block, 2, 16]);
            // Of keys and values, to read and to write.
            let tables: [Vec<u32>; 4] =
                std::array::from_fn(|part| (0..blocks).map(|i| (4 * i + part) as u32).collect());
            let layout = |keys: usize| {
                let [keys, values] = [keys, keys + 1].map(|table| pages.with_table(&tables[table]));
                CacheLayout::new(keys, values)
            };
            let (src, dst) = (layout(0), layout(2));
            // Keys and values that are accessed by 16 bytes, and others.
            let steps: Vec<[u64; 2]> = (0..number)
                .map(|_| [(); 2].map(|()| if random.random() { 256 } else { 8 }))
                .collect();
            let mut layers = || -> Vec<CudaRawLayer> {
                let mut address = |step| step * (2 * random.random_range(1..1 << 30) + 1);
                let layer = |&[keys, values]: &[u64; 2]| CudaRawLayer {
                    keys: address(keys),
                    keys_len: usize::MAX,
                    values: address(values),
                    values_len: usize::MAX,
                };
                steps.iter().map(layer).collect()
            };
            let (from, to) = (layers(), layers());

            let call = copy(&rotations, (&src, &from), (&dst, &to)).unwrap();
            if builder.build(&call, DEVICE).unwrap().is_some() {
                let words = builder.words.len();
                let most = words_at_most(&rotations, &[&src, &dst], number);
                // What is said of all rows and every kind of shape, less those that are there.
                let mut kinds = HashSet::new();
                for (layer, [keys, values]) in steps.iter().enumerate() {
                    kinds.insert((rotations.table_index(layer), false, *keys));
                    kinds.insert((None, true, *values));
                }
                let used = |rows: Range<usize>| rows.end.div_ceil(block) - rows.start / block;
                let read = kept[0]..kept[kept.len() - 1] + 1;
                let all_kinds = 2 * (rotations.tables().len() + 2);
                let spare = (all_kinds - kinds.len()) * size_of::<Shape>() / 4 + 4 * (blocks + 1)
                    - 2 * (used(read) + used(0..kept.len()));
                assert!(
                    words + spare <= most && most <= words + spare + 11,
                    "{words}, {spare}, {most}"
                );
                let needed = if words <= LARGE { 0 } else { 4 * words };
                assert_eq!(builder.workspace(), needed);
                large += usize::from(needed > 0);
            }
            for call in [rotate(&rotations, &dst, &to), splice(&rotations, &dst, &to)] {
                builder.build(&call.unwrap(), DEVICE).unwrap();
                let most = words_at_most(&rotations, &[&dst], number);
                assert!(builder.words.len() <= most);
            }
        }
        assert!(
            (30..270).contains(&large),
            "{large} of 300 need a workspace"
        );
    }

    #[test]
    fn nothing_to_do_is_nothing_to_launch() {
        let rope = Rope::from_theta(10_000.0, 8).unwrap();
        let layers = [CudaRawLayer {
            keys: 256,
            keys_len: usize::MAX,
            values: 512,
            values_len: usize::MAX,
        }];
        let launches = |batch, plan: &Plan| {
            let layout = KeyLayout::bhsd(ElementType::F16, [batch, 2, 20, 8]).into();
            let rotations = Rotations::new(plan, &rope).unwrap();
            let here = (&layout, &layers[..]);
            [
                rotate(&rotations, &layout, &layers),
                splice(&rotations, &layout, &layers),
                copy(&rotations, here, here),
            ]
            .map(|call| {
                let launch = Builder::default().build(&call.unwrap(), DEVICE);
                launch.unwrap().is_some()
            })
        };
        let inserted = Plan::from_edits(16, &[crate::Edit::insert(4, 2)]).unwrap();
        assert_eq!(launches(1, &inserted), [true; 3]);
        assert_eq!(launches(0, &inserted), [false; 3]);
        let unchanged = Plan::from_edits(16, &[]).unwrap();
        assert_eq!(launches(1, &unchanged), [false, false, true]);
    }
}
