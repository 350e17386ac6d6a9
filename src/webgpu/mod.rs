//! The wgpu backend: the three verbs as hand-written WGSL (`kernels/*.wgsl`), on whatever wgpu runs on: Vulkan,
//! Metal, DX12, GL, and WebGPU in a browser.

mod abi;
mod layer;
mod open;
mod pipelines;
mod record;
mod schedule;
mod windows;

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

pub use layer::{WgpuLayer, WgpuSlice};

use crate::check::{self, Buffers};
use crate::order::Order;
use crate::rotations::TurnedSpan;
use crate::{CacheLayout, Error, Result, Rotations};
use pipelines::Pipelines;
use record::Pool;
use schedule::{Schedule, Transfer};
use windows::Place;

/// Bytes of the buffer through which rows go where windows of a cache cannot be bound together.
const SCRATCH: u64 = 32 << 20;

/// Invocations of a workgroup, at least and at most: WebGPU guarantees the latter.
const FEWEST: u32 = 64;
const MOST: u32 = 256;

/// Turns and moves cached rows in the memory of a GPU, by commands in the engine's own encoder.
///
/// ```no_run
/// use pie_rope::{Edit, ElementType, KeyLayout, Plan, Rope, Rotations, Wgpu, WgpuLayer, wgpu};
///
/// # fn example(device: wgpu::Device, queue: wgpu::Queue, keys: wgpu::Buffer, values: wgpu::Buffer)
/// # -> pie_rope::Result<()> {
/// // Once: from the engine's device and queue, or from `Wgpu::open()?`, which finds one.
/// let gpu = Wgpu::new(&device, &queue)?;
///
/// // Once per edit. One layer, `[batch, heads, seq, dim]`; three tokens are inserted before token 4.
/// let layout = KeyLayout::bhsd(ElementType::F16, [1, 8, 4096, 128]);
/// let plan = Plan::from_edits(1000, &[Edit::insert(4, 3)])?;
/// let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 128)?)?;
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// gpu.splice(&mut encoder, &rotations, layout, &[WgpuLayer::new(&keys, &values)])?;
/// // ... what the engine does next, in the same encoder ...
/// queue.submit([encoder.finish()]);
/// # Ok(())
/// # }
/// ```
///
/// # What a verb does
///
/// As on the [`Cpu`](crate::Cpu): [`rotate`](Wgpu::rotate) turns keys where they lie, [`splice`](Wgpu::splice)
/// moves rows inside their buffer and turns keys on the way, [`copy`](Wgpu::copy) and
/// [`copy_within`](Wgpu::copy_within) bring rows to other places.
///
/// A verb records and returns; nothing runs before the engine submits the encoder, and nothing is waited for.
/// All layers go into one compute pass; layers that share a buffer into one dispatch. Buffers need
/// [`STORAGE`](wgpu::BufferUsages::STORAGE), and may be larger than the device's largest binding. Submit to the
/// queue that the backend was made with: the call's parameters (a few KB) travel by it.
///
/// # Exactness
///
/// Each output is an f32 product and a fused multiply-add on the table's f32 values, rounded to nearest even to
/// the stored type, subnormals of f16 included. WGSL lets a device do a fused multiply-add in two roundings, so
/// an f32 may be off by half a unit in the last place more than on the CPU, and a 16-bit result rounds to its
/// other neighbour where the exact one lies between the two. NaN keys turn to NaN, of no particular bits.
///
/// # Errors
///
/// All verbs check all of their arguments before they record: [`Error::Layout`] and [`Error::Argument`] as on
/// the CPU (buffers without `STORAGE`, offsets and overlaps too), [`Error::Limit`] where a device's limits do not
/// suffice, [`Error::OutOfMemory`], [`Error::DeviceLost`] and [`Error::Device`] as wgpu reports them. A refused
/// call has recorded nothing. Device, queue, encoder and buffers must be of one [`wgpu::Instance`]: wgpu itself
/// panics where it meets another one's.
///
/// A clone shares device, pipelines and buffers with its original.
#[derive(Clone, Debug)]
pub struct Wgpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipelines: Arc<Pipelines>,
    pool: Pool,
    scratch: Arc<OnceLock<wgpu::Buffer>>,
    /// Bound where a kernel has no source besides its destination.
    nothing: wgpu::Buffer,
    /// Bytes of a cache that are bound at once.
    largest: u64,
    /// Bytes of a call's parameters that can be bound at once.
    largest_table: u64,
    most_workgroups: u32,
    /// Invocations of a workgroup.
    threads: u32,
    faults: Arc<Faults>,
}

impl std::fmt::Display for Wgpu {
    /// The adapter in one line: its name, kind, API and driver.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let info = self.adapter();
        write!(
            f,
            "{} ({:?}, {}, driver {} {})",
            info.name, info.device_type, info.backend, info.driver, info.driver_info
        )
    }
}

/// What went wrong on a device of this backend's own, outside of any call.
#[derive(Debug, Default)]
struct Faults(Mutex<Option<Error>>);

impl Wgpu {
    /// On the engine's own device and queue. Cheap: pipelines are made when they are first needed.
    ///
    /// # Errors
    /// [`Error::Limit`] if the device's limits are below WebGPU's guaranteed ones, [`Error::DeviceLost`],
    /// [`Error::OutOfMemory`] or [`Error::Device`] if it can make no more buffers.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Wgpu> {
        let limits = device.limits();
        check_limits(&limits)?;
        let (pipelines, nothing) = scoped(device, || {
            let nothing = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("pie-rope nothing"),
                size: 16,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
            (Pipelines::new(device), nothing)
        })?;
        let largest = limits.max_storage_buffer_binding_size;
        Ok(Wgpu {
            device: device.clone(),
            queue: queue.clone(),
            pipelines: Arc::new(pipelines),
            pool: Pool::default(),
            scratch: Arc::default(),
            nothing,
            // Elements are counted in 32 bits, and the last of them is out of bounds on purpose.
            largest: (largest - largest % 4).min(4 << 30),
            largest_table: largest,
            most_workgroups: limits.max_compute_workgroups_per_dimension,
            threads: match device.adapter_info().device_type {
                wgpu::DeviceType::Cpu => FEWEST,
                _ => MOST,
            },
            faults: Arc::default(),
        })
    }

    /// Binds no more than `bytes` of a cache at once, for devices that slow down with large bindings and for
    /// tests; by default, what the device allows.
    ///
    /// # Errors
    /// [`Error::Limit`] if that is less than 4 KiB or more than the device allows.
    pub fn with_window(mut self, bytes: u64) -> Result<Wgpu> {
        if !(4096..=self.largest).contains(&bytes) {
            return Err(Error::Limit(format!(
                "a window of {bytes} bytes is not between 4096 and the device's {}",
                self.largest
            )));
        }
        self.largest = bytes - bytes % 4;
        self.scratch = Arc::default();
        Ok(self)
    }

    /// Workgroups of `invocations`: a power of two from 64 to 256. By default the most on a GPU, which has
    /// memory to wait for, and the fewest on a processor, which would work for the idle ones too.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is none of those.
    pub fn with_workgroups_of(mut self, invocations: u32) -> Result<Wgpu> {
        if !(FEWEST..=MOST).contains(&invocations) || !invocations.is_power_of_two() {
            return Err(Error::Argument {
                argument: "invocations",
                problem: format!("{invocations} is none of 64, 128, 256"),
            });
        }
        self.threads = invocations;
        Ok(self)
    }

    /// The adapter that it runs on: name, driver, kind.
    pub fn adapter(&self) -> wgpu::AdapterInfo {
        self.device.adapter_info()
    }

    /// The device that it was made with, or opened.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The queue to submit to.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// Turns keys where they lie: row `src` of every span, in every layer. Values are not looked at.
    ///
    /// # Errors
    /// See [`Wgpu`].
    pub fn rotate<'t>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rotations: &Rotations,
        layout: impl Into<CacheLayout<'t>>,
        layers: &[WgpuLayer<'_>],
    ) -> Result<()> {
        let layout = &layout.into();
        self.check_in_place(rotations, layout, layers, false)?;
        let spans = rotations.spans().iter().filter(|span| span.turns());
        let order = Order::new(spans.map(|&span| TurnedSpan {
            dst: span.src,
            ..span
        }))?;
        let mut transfers = keys(rotations, (layout, layers), (layout, layers));
        transfers.retain(|transfer| transfer.table.is_some());
        transfers.iter_mut().for_each(|t| t.moves = false);
        self.carry(encoder, rotations, &order, |schedule| {
            schedule.free(&transfers)
        })
    }

    /// Moves rows inside their buffers and turns keys on the way. Safe for overlapping moves in both directions
    /// at once.
    ///
    /// # Errors
    /// See [`Wgpu`].
    pub fn splice<'t>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rotations: &Rotations,
        layout: impl Into<CacheLayout<'t>>,
        layers: &[WgpuLayer<'_>],
    ) -> Result<()> {
        let layout = &layout.into();
        self.check_in_place(rotations, layout, layers, true)?;
        let order = Order::new(check::splice_order(rotations.spans()).copied())?;
        let transfers = transfers(rotations, (layout, layers), (layout, layers));
        self.carry(encoder, rotations, &order, |schedule| {
            schedule.ordered(&transfers)
        })
    }

    /// Copies every row that the plan keeps to another buffer, or another part of the same one, and turns keys
    /// on the way.
    ///
    /// # Errors
    /// See [`Wgpu`].
    pub fn copy<'s, 'd>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rotations: &Rotations,
        src_layout: impl Into<CacheLayout<'s>>,
        src: &[WgpuLayer<'_>],
        dst_layout: impl Into<CacheLayout<'d>>,
        dst: &[WgpuLayer<'_>],
    ) -> Result<()> {
        self.check_alive()?;
        let (from, to) = (&src_layout.into(), &dst_layout.into());
        let within = src.len() == dst.len()
            && src
                .iter()
                .zip(dst)
                .all(|(a, b)| a.keys == b.keys && a.values == b.values);
        check::copy(
            rotations,
            (from, &buffers(from, src, true)?),
            (to, &buffers(to, dst, true)?),
            within,
        )?;
        apart(dst, true)?;
        if !within {
            let read = src.iter().flat_map(slices);
            for (index, slice) in read.enumerate() {
                if dst
                    .iter()
                    .flat_map(slices)
                    .any(|other| slice.overlaps(&other))
                {
                    return Err(Error::Argument {
                        argument: "dst",
                        problem: format!("it overlaps slice {index} of `src` in one buffer"),
                    });
                }
            }
        }
        let order = Order::new(rotations.spans().iter().copied())?;
        let transfers = transfers(rotations, (from, src), (to, dst));
        self.carry(encoder, rotations, &order, |schedule| {
            schedule.free(&transfers)
        })
    }

    /// Copies every row that the plan keeps to other pages, or another part, of the same buffers, and turns keys
    /// on the way. To leave out a prefix whose pages both sequences share, pass [`Rotations::starting_at`].
    ///
    /// # Errors
    /// See [`Wgpu`]; also if a row would be copied into a block that is copied from.
    pub fn copy_within<'s, 'd>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rotations: &Rotations,
        src_layout: impl Into<CacheLayout<'s>>,
        dst_layout: impl Into<CacheLayout<'d>>,
        layers: &[WgpuLayer<'_>],
    ) -> Result<()> {
        self.copy(encoder, rotations, src_layout, layers, dst_layout, layers)
    }

    /// Submits an encoder and waits until the GPU is done: for those who have no loop of their own.
    ///
    /// # Errors
    /// Whatever wgpu has against the commands, or what happened to the device: [`Error::Device`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<()> {
        scoped(&self.device, || {
            let submission = self.queue.submit([encoder.finish()]);
            self.device.poll(wgpu::PollType::Wait {
                submission_index: Some(submission),
                timeout: None,
            })
        })?
        .map_err(|error| Error::Device(error.to_string()))?;
        self.check_alive()
    }

    fn check_alive(&self) -> Result<()> {
        let mut fault = self.faults.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*fault {
            // Said once, as it may have been another's. A lost device stays lost.
            Some(Error::DeviceLost(_)) | None => fault.clone(),
            Some(_) => fault.take(),
        }
        .map_or(Ok(()), Err)
    }

    fn check_in_place(
        &self,
        rotations: &Rotations,
        layout: &CacheLayout<'_>,
        layers: &[WgpuLayer<'_>],
        moves: bool,
    ) -> Result<()> {
        self.check_alive()?;
        let buffers = buffers(layout, layers, moves)?;
        check::in_place(rotations, layout, buffers.into_iter(), moves)?;
        apart(layers, moves)
    }

    /// Makes a schedule and records it. `plan` returns the transfers that have to go through a scratch buffer.
    fn carry<'a>(
        &'a self,
        encoder: &mut wgpu::CommandEncoder,
        rotations: &'a Rotations,
        order: &'a Order,
        plan: impl FnOnce(&mut Schedule<'a>) -> Result<Vec<Transfer<'a>>>,
    ) -> Result<()> {
        if order.rows == 0 {
            return Ok(());
        }
        let mut schedule = Schedule::new(rotations, order, self.largest, self.threads);
        let rest = plan(&mut schedule)?;
        let scratch = match rest.as_slice() {
            [] => None,
            _ => Some(self.scratch()?),
        };
        for transfer in &rest {
            schedule.bounce(transfer, scratch.expect("made for these"))?;
        }
        self.record(encoder, rotations, order, &schedule)
    }

    fn scratch(&self) -> Result<&wgpu::Buffer> {
        if let Some(scratch) = self.scratch.get() {
            return Ok(scratch);
        }
        let make = || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("pie-rope scratch"),
                size: self.largest.min(SCRATCH),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let scratch = self.scoped(make, std::iter::empty())?;
        // Calls follow each other on the queue, so whichever of two threads is first serves both.
        Ok(self.scratch.get_or_init(|| scratch))
    }
}

/// Keys and values of one layer, once each.
fn slices<'a>(layer: &WgpuLayer<'a>) -> impl Iterator<Item = WgpuSlice<'a>> {
    let values = layer.values.filter(|_| !layer.is_packed());
    [layer.keys].into_iter().chain(values)
}

/// Refuses slices that lie over each other: two dispatches would write the same words.
fn apart(layers: &[WgpuLayer<'_>], values: bool) -> Result<()> {
    let mut all: Vec<_> = layers
        .iter()
        .enumerate()
        .flat_map(|(index, layer)| {
            let named = slices(layer).zip(["keys", "values"]);
            named.map(move |(slice, name)| (slice, index, name))
        })
        .filter(|&(_, _, name)| values || name == "keys")
        .collect();
    all.sort_unstable_by(|(a, ..), (b, ..)| a.buffer.cmp(b.buffer).then(a.offset.cmp(&b.offset)));
    let clash = all
        .windows(2)
        .find(|neighbours| neighbours[0].0.overlaps(&neighbours[1].0));
    match clash {
        None => Ok(()),
        Some(neighbours) => {
            let [(_, a, a_name), (_, b, b_name)] = [neighbours[0], neighbours[1]];
            Err(Error::Argument {
                argument: "layers",
                problem: format!(
                    "layer {a}'s {a_name} and layer {b}'s {b_name} overlap in one buffer"
                ),
            })
        }
    }
}

/// What the shared checks need to know of the buffers.
fn buffers(
    layout: &CacheLayout<'_>,
    layers: &[WgpuLayer<'_>],
    values: bool,
) -> Result<Vec<Buffers>> {
    let of_layer = |(index, layer): (usize, &WgpuLayer<'_>)| {
        let part = layout.values.unwrap_or(layout.keys);
        let values = layer.values.filter(|_| values);
        let values = values.map(|values| values.elements(&part, &format!("layer {index}, values")));
        Ok(Buffers {
            keys: layer
                .keys
                .elements(&layout.keys, &format!("layer {index}, keys"))?,
            values: values.transpose()?,
            packed: layer.is_packed(),
        })
    };
    layers.iter().enumerate().map(of_layer).collect()
}

/// The keys of every layer on their way.
fn keys<'a>(
    rotations: &Rotations,
    (from, src): (&CacheLayout<'a>, &[WgpuLayer<'a>]),
    (to, dst): (&CacheLayout<'a>, &[WgpuLayer<'a>]),
) -> Vec<Transfer<'a>> {
    let index = |layer| {
        let table = rotations.table(layer)?;
        let mut tables = rotations.tables().iter();
        tables.position(|known| std::ptr::eq(known, table))
    };
    let layers = src.iter().zip(dst).enumerate();
    // A batch of none has rows, but no elements.
    let layers = layers.filter(|_| to.keys.batch() > 0);
    let transfer = |(layer, (src, dst)): (usize, (&WgpuLayer<'a>, &WgpuLayer<'a>))| Transfer {
        source: Place::new(src.keys, from.keys),
        destination: Place::new(dst.keys, to.keys),
        table: index(layer),
        moves: true,
    };
    layers.map(transfer).collect()
}

/// The keys of every layer, then the values of those that have some.
fn transfers<'a>(
    rotations: &Rotations,
    src: (&CacheLayout<'a>, &[WgpuLayer<'a>]),
    dst: (&CacheLayout<'a>, &[WgpuLayer<'a>]),
) -> Vec<Transfer<'a>> {
    let mut all = keys(rotations, src, dst);
    if let Some((from, to)) = src.0.values.zip(dst.0.values) {
        let values = src.1.iter().zip(dst.1).filter(|_| to.batch() > 0);
        let values = values.filter_map(|(src, dst)| src.values.zip(dst.values));
        all.extend(values.map(|(src, dst)| Transfer {
            source: Place::new(src, from),
            destination: Place::new(dst, to),
            table: None,
            moves: true,
        }));
    }
    all
}

/// Refuses devices below what WebGPU guarantees, as far as the kernels need it.
fn check_limits(limits: &wgpu::Limits) -> Result<()> {
    let needed = [
        (
            "max_storage_buffers_per_shader_stage",
            u64::from(limits.max_storage_buffers_per_shader_stage),
            6,
        ),
        (
            "max_compute_invocations_per_workgroup",
            u64::from(limits.max_compute_invocations_per_workgroup),
            u64::from(MOST),
        ),
        (
            "max_compute_workgroup_size_x",
            u64::from(limits.max_compute_workgroup_size_x),
            u64::from(MOST),
        ),
        (
            "max_compute_workgroups_per_dimension",
            u64::from(limits.max_compute_workgroups_per_dimension),
            1,
        ),
        (
            "max_storage_buffer_binding_size",
            limits.max_storage_buffer_binding_size,
            64 << 10,
        ),
    ];
    for (name, has, needs) in needed {
        if has < needs {
            return Err(Error::Limit(format!(
                "the device's `{name}` is {has}, the kernels need {needs}"
            )));
        }
    }
    for (name, alignment) in [
        (
            "min_storage_buffer_offset_alignment",
            limits.min_storage_buffer_offset_alignment,
        ),
        (
            "min_uniform_buffer_offset_alignment",
            limits.min_uniform_buffer_offset_alignment,
        ),
    ] {
        if u64::from(alignment) > windows::ALIGNMENT {
            return Err(Error::Limit(format!(
                "the device's `{name}` is {alignment}, WebGPU guarantees {}",
                windows::ALIGNMENT
            )));
        }
    }
    Ok(())
}

/// Runs `make` and returns the first thing that wgpu has against it, instead of its result.
fn scoped<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T> {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    let scopes = [OutOfMemory, Internal, Validation].map(|filter| device.push_error_scope(filter));
    let made = make();
    // Innermost first. In a browser what they found is known later: see `Wgpu`.
    let found = scopes
        .into_iter()
        .rev()
        .filter_map(|scope| now(scope.pop()).flatten());
    match found.last() {
        Some(error) => Err(error_of(error)),
        None => Ok(made),
    }
}

fn error_of(error: wgpu::Error) -> Error {
    let text = error.to_string();
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory(text),
        // A lost device makes invalid things without a word, and complains when they are used. Of this backend's
        // own things none is invalid for another reason.
        _ if text.contains("'pie-rope") && text.contains("is invalid") => Error::DeviceLost(text),
        _ => Error::Device(text),
    }
}

/// What a future has to say at once.
fn now<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// What a future has to say in the end. On native, wgpu's are ready when they are first asked.
#[cfg(not(target_arch = "wasm32"))]
fn ready<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::yield_now();
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::{Edit, ElementType, KeyLayout, Plan, Rope};

    /// What a backend holds: how many pipelines, and which parameter buffers wait for a call.
    fn holds(gpu: &Wgpu) -> (usize, Vec<wgpu::Buffer>) {
        let pool = gpu.pool.lock().expect("no panic while held");
        let waiting = pool
            .iter()
            .filter(|(_, token)| Arc::strong_count(token) == 1);
        let waiting = waiting.map(|(buffer, _)| buffer.clone()).collect();
        (gpu.pipelines.count(), waiting)
    }

    #[test]
    fn a_steady_state_makes_no_pipeline_and_no_parameter_buffer() {
        let gpu = Wgpu::open().expect("an adapter");
        let [keys, values] = [(); 2].map(|()| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 2 * 64 * 32 * 2,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        });
        let layout = KeyLayout::bhsd(ElementType::F16, [1, 2, 64, 32]);
        let rope = Rope::from_theta(10_000.0, 32).expect("an even dimension");
        let call = |at, len| {
            let plan = Plan::from_edits(40, &[Edit::insert(at, len)]).expect("a sound edit");
            let rotations = Rotations::new(&plan, &rope).expect("a small table");
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let layers = [WgpuLayer::new(&keys, &values)];
            gpu.rotate(&mut encoder, &rotations, layout, &layers)
                .expect("a sound call");
            gpu.splice(&mut encoder, &rotations, layout, &layers)
                .expect("a sound call");
            gpu.submit(encoder).expect("a sound submission");
            holds(&gpu)
        };
        let (pipelines, mut buffers) = call(3, 5);
        buffers.sort();
        // Rotating keys; splicing keys, and values, which do not turn.
        assert_eq!((pipelines, buffers.len()), (3, 2));
        for (at, len) in [(0, 1), (20, 9), (39, 20)] {
            let (now, mut same) = call(at, len);
            same.sort();
            assert_eq!((now, same), (pipelines, buffers.clone()));
        }
    }

    #[test]
    fn what_wgpu_says_becomes_an_error_of_its_own() {
        let source = || "because".into();
        let memory = error_of(wgpu::Error::OutOfMemory { source: source() });
        assert!(matches!(memory, Error::OutOfMemory(_)), "{memory:?}");
        let validation = |description: &str| {
            error_of(wgpu::Error::Validation {
                source: source(),
                description: description.into(),
            })
        };
        let other = validation("Buffer with 'engine' label has been destroyed");
        assert!(matches!(other, Error::Device(_)), "{other:?}");
        let lost = validation("Buffer with 'pie-rope parameters' label is invalid");
        assert!(matches!(lost, Error::DeviceLost(_)), "{lost:?}");
    }
}
