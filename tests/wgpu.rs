//! The wgpu backend's own rules: what it refuses, and that nothing of it reaches the user as a panic. What it
//! computes is the conformance suite's. These tests need an adapter and fail without one.

mod support;

use half::f16;
use pie_rope::{
    CacheLayout, Cpu, Edit, Element, ElementType, Error, KeyLayout, Layer, Plan, Result, Rope,
    Rotations, oracle,
};
use pie_rope::{Wgpu, WgpuLayer, wgpu};
use support::{assert_same_bits, assert_within_ulps, bhsd};
use wgpu::BufferUsages as Usage;

/// 20 rows of 2 heads of 8, of which 16 are in use.
const ROWS: usize = 20;
const BYTES: u64 = (2 * ROWS * 8 * 4) as u64;

fn layout() -> KeyLayout<'static> {
    KeyLayout::bhsd(ElementType::F32, [1, 2, ROWS, 8])
}

fn rotations() -> Rotations {
    let plan = Plan::from_edits(16, &[Edit::insert(4, 2)]).unwrap();
    Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap()
}

/// A buffer, and the fresh numbers that it was filled with: those of no other buffer.
struct Filled<T = f32> {
    buffer: wgpu::Buffer,
    before: Vec<T>,
}

fn buffer(gpu: &Wgpu, bytes: u64, usage: Usage) -> Filled {
    let numbers = (0..bytes / 4).map(|_| rand::random_range(-2.0..2.0));
    filled(gpu, numbers.collect(), usage)
}

fn filled<T: Element>(gpu: &Wgpu, before: Vec<T>, usage: Usage) -> Filled<T> {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: size_of_val(&before[..]) as u64,
        usage: usage | Usage::COPY_DST | Usage::COPY_SRC,
        mapped_at_creation: false,
    });
    gpu.queue()
        .write_buffer(&buffer, 0, bytemuck::cast_slice(&before));
    Filled { buffer, before }
}

impl<T: Element + std::fmt::Debug> Filled<T> {
    /// It is as it was.
    #[track_caller]
    fn is_unchanged(&self, gpu: &Wgpu, what: &str) {
        assert_same_bits(&read(gpu, &self.buffer), &self.before, |index| {
            format!("{what}, element {index}")
        });
    }
}

/// Holds keys `[batch, heads, rows, dims]` to the CPU's: to the bit where the CPU leaves a head vector as it was
/// `before`, else within `units` in the last place.
#[track_caller]
fn assert_keys<T: Element + std::fmt::Debug + Into<f64>>(
    (got, expected, before): (&[T], &[T], &[T]),
    shape: [usize; 4],
    rope: &Rope,
    units: f64,
    what: &str,
) {
    let dims = shape[3];
    let mut exact = expected.to_vec();
    let mut changed = 0;
    assert_eq!(
        (got.len(), before.len()),
        (expected.len(), expected.len()),
        "{what}"
    );
    for start in (0..expected.len()).step_by(dims) {
        let vector = start..start + dims;
        let bits = |keys: &[T]| bytemuck::cast_slice::<T, u8>(&keys[vector.clone()]).to_vec();
        if bits(expected) != bits(before) {
            // Held to its numbers below.
            exact[vector.clone()].copy_from_slice(&got[vector]);
            changed += 1;
        }
    }
    assert!(changed > 0, "{what}: the CPU does nothing");
    let place = bhsd(shape);
    assert_same_bits(got, &exact, |index| format!("{what}: {}", place(index)));
    let pairs = |keys: &[T]| -> Vec<(f64, f64)> {
        let vectors = keys.chunks_exact(dims);
        let of_vector = |key: &[T]| -> Vec<(f64, f64)> {
            let pairs = (0..rope.pairs()).map(|pair| oracle::pair(rope, pair));
            pairs.map(|(a, b)| (key[a].into(), key[b].into())).collect()
        };
        vectors.flat_map(of_vector).collect()
    };
    assert_within_ulps(T::TYPE, units, &pairs(got), &pairs(expected), |index| {
        let (vector, pair) = (index / rope.pairs(), index % rope.pairs());
        let (dim, _) = oracle::pair(rope, pair);
        format!("{what}: {}", place(vector * dims + dim))
    });
}

/// What the CPU and WGSL may be apart by, in units in the last place of f32: a unit that the CPU loses by the table's
/// values, and one and a half that WGSL does.
const APART: f64 = 2.5;

fn read<T: Element>(gpu: &Wgpu, buffer: &wgpu::Buffer) -> Vec<T> {
    let back = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage: Usage::COPY_DST | Usage::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &back, 0, buffer.size());
    gpu.submit(encoder).unwrap();
    back.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    gpu.device()
        .poll(wgpu::PollType::wait_indefinitely())
        .unwrap();
    bytemuck::pod_collect_to_vec(&back.get_mapped_range(..).unwrap())
}

/// Records `call` on the buffers and expects it to be refused with `expected` in the text, and the encoder
/// to be as good as before, with nothing in it.
#[track_caller]
fn refused(
    gpu: &Wgpu,
    expected: &str,
    buffers: &[&Filled],
    call: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
) {
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let error = call(&mut encoder).expect_err("it should have been refused");
    let error = error.to_string();
    assert!(
        error.contains(expected),
        "`{error}` does not say `{expected}`"
    );
    gpu.submit(encoder).unwrap();
    for (index, buffer) in buffers.iter().enumerate() {
        buffer.is_unchanged(
            gpu,
            &format!("refused, but something was written: buffer {index}"),
        );
    }
}

#[test]
fn the_sound_call_is_not_refused_and_layers_without_work_record_nothing() {
    let gpu = Wgpu::open().unwrap();
    let keys = buffer(&gpu, BYTES, Usage::STORAGE);
    let values = buffer(&gpu, BYTES, Usage::STORAGE);
    let layers = [WgpuLayer::new(&keys.buffer, &values.buffer)];
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    gpu.splice(&mut encoder, &rotations(), layout(), &layers)
        .unwrap();
    let nothing = Plan::from_edits(16, &[]).unwrap();
    let nothing = Rotations::new(&nothing, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    gpu.splice(&mut encoder, &nothing, layout(), &layers)
        .unwrap();
    gpu.submit(encoder).unwrap();

    let mut expected = (keys.before.clone(), values.before.clone());
    let layers = &mut [Layer::new(&mut expected.0, &mut expected.1)];
    Cpu::new().splice(&rotations(), layout(), layers).unwrap();
    let shape = [1, 2, ROWS, 8];
    let rope = Rope::from_theta(10_000.0, 8).unwrap();
    let got = read(&gpu, &keys.buffer);
    assert_keys(
        (&got, &expected.0, &keys.before),
        shape,
        &rope,
        APART,
        "keys",
    );
    assert!(expected.1 != values.before);
    assert_same_bits(&read(&gpu, &values.buffer), &expected.1, bhsd(shape));
}

#[test]
fn bad_buffers() {
    let gpu = Wgpu::open().unwrap();
    let good = buffer(&gpu, BYTES, Usage::STORAGE);
    let bare = buffer(&gpu, BYTES, Usage::empty());
    let long = buffer(&gpu, 2 * BYTES, Usage::STORAGE);
    let all = [&good, &bare, &long];
    let splice = |expected: &str, layers: &[WgpuLayer<'_>]| {
        refused(&gpu, expected, &all, |encoder| {
            gpu.splice(encoder, &rotations(), layout(), layers)
        });
    };
    splice(
        "layer 0, values: the buffer was made without `BufferUsages::STORAGE`",
        &[WgpuLayer::new(&good.buffer, &bare.buffer)],
    );
    let splice_keys = |expected: &str, layers: &[WgpuLayer<'_>]| {
        refused(&gpu, expected, &all, |encoder| {
            gpu.splice(
                encoder,
                &rotations(),
                CacheLayout::keys_only(layout()),
                layers,
            )
        });
    };
    splice_keys(
        "layer 1, keys: offset 2 is no multiple of the 4 bytes of f32",
        &[
            WgpuLayer::keys_only(&good.buffer),
            WgpuLayer::keys_only(long.buffer.slice(2..)),
        ],
    );
    splice_keys(
        "layer 0, keys: it needs a buffer of 320 elements, this one has 319",
        &[WgpuLayer::keys_only(good.buffer.slice(4..))],
    );
    splice_keys(
        "layer 0, keys: bytes 64..1344 are not inside the buffer's 1280",
        &[WgpuLayer::keys_only(wgpu::BufferBinding {
            buffer: &good.buffer,
            offset: 64,
            size: wgpu::BufferSize::new(BYTES),
        })],
    );
    splice_keys(
        "layer 0's keys and layer 1's keys overlap in one buffer",
        &[
            WgpuLayer::keys_only(&good.buffer),
            WgpuLayer::keys_only(&good.buffer),
        ],
    );
    splice(
        "layer 0's keys and layer 0's values overlap in one buffer",
        &[WgpuLayer::new(
            long.buffer.slice(0..BYTES),
            long.buffer.slice(BYTES - 4..2 * BYTES - 4),
        )],
    );
    splice(
        "keys and values share a buffer, and their layouts may overlap",
        &[WgpuLayer::packed(&good.buffer)],
    );
    refused(&gpu, "dst: it overlaps slice 0 of `src`", &all, |encoder| {
        let src = [WgpuLayer::keys_only(long.buffer.slice(4..BYTES + 4))];
        let dst = [WgpuLayer::keys_only(long.buffer.slice(BYTES..))];
        let layout = CacheLayout::keys_only(layout());
        gpu.copy(encoder, &rotations(), layout, &src, layout, &dst)
    });
}

#[test]
fn the_shared_checks_come_first() {
    let gpu = Wgpu::open().unwrap();
    let keys = buffer(&gpu, BYTES, Usage::STORAGE);
    refused(&gpu, "the layout has 17", &[&keys], |encoder| {
        let layout = CacheLayout::keys_only(KeyLayout::bhsd(ElementType::F32, [1, 2, 17, 8]));
        let layers = [WgpuLayer::keys_only(&keys.buffer)];
        gpu.splice(encoder, &rotations(), layout, &layers)
    });
}

#[test]
fn a_window_that_no_device_has() {
    for bytes in [0, 4095, 1 << 40] {
        let error = Wgpu::open().unwrap().with_window(bytes).unwrap_err();
        assert!(matches!(error, Error::Limit(_)), "{error}");
    }
}

#[test]
fn an_adapter_that_is_not_there() {
    let error = Wgpu::open_named("no such card").unwrap_err();
    assert!(matches!(error, Error::NoAdapter(_)), "{error}");
    assert!(error.to_string().contains("no such card"), "{error}");
    // What is there instead is named.
    let name = Wgpu::open().unwrap().adapter().name;
    assert!(error.to_string().contains(&name), "{error}");
}

/// The adapter that [`Wgpu::open`] opens.
fn adapter() -> wgpu::Adapter {
    let name = Wgpu::open().unwrap().adapter().name;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters.into_iter().find(|a| a.get_info().name == name);
    adapter.expect("the adapter that was opened")
}

/// The engine's own device and queue, with limits to its taste.
fn engine(
    adapter: &wgpu::Adapter,
    change: impl FnOnce(&mut wgpu::Limits),
) -> (wgpu::Device, wgpu::Queue) {
    let mut limits = wgpu::Limits::default();
    change(&mut limits);
    let descriptor = wgpu::DeviceDescriptor {
        required_limits: limits,
        ..Default::default()
    };
    block_on(adapter.request_device(&descriptor)).unwrap()
}

/// On native, wgpu's futures are ready at once.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("not ready"),
    }
}

#[test]
fn a_device_with_too_little() {
    let (device, queue) = engine(&adapter(), |limits| {
        limits.max_storage_buffers_per_shader_stage = 4
    });
    let error = Wgpu::new(&device, &queue).unwrap_err();
    let text = "the device's `max_storage_buffers_per_shader_stage` is 4, the kernels need 6";
    assert_eq!(error, Error::Limit(text.into()));
    let (device, queue) = engine(&adapter(), |limits| {
        limits.max_compute_invocations_per_workgroup = 64
    });
    assert!(matches!(Wgpu::new(&device, &queue), Err(Error::Limit(_))));
}

#[test]
fn a_table_larger_than_a_binding() {
    // Every row turns by its own delta: 4096 rows of 64 cosines and sines are 2 MiB.
    let (device, queue) = engine(&adapter(), |limits| {
        limits.max_storage_buffer_binding_size = 1 << 20
    });
    let gpu = Wgpu::new(&device, &queue).unwrap();
    let old: Vec<i32> = (0..4096).collect();
    let new: Vec<i32> = (0..4096).map(|row| row * 3).collect();
    let plan = Plan::from_positions(&old, &new).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 128).unwrap()).unwrap();
    let keys = buffer(&gpu, 4096 * 128 * 4, Usage::STORAGE);
    let layout = KeyLayout::bhsd(ElementType::F32, [1, 1, 4096, 128]);
    refused(&gpu, "its cosines and sines take", &[&keys], |encoder| {
        gpu.rotate(
            encoder,
            &rotations,
            layout,
            &[WgpuLayer::keys_only(&keys.buffer)],
        )
    });
}

#[test]
fn a_lost_device_is_an_error_and_no_panic() {
    let call = |gpu: &Wgpu, keys: &Filled| {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let layers = [WgpuLayer::keys_only(&keys.buffer)];
        gpu.rotate(&mut encoder, &rotations(), layout(), &layers)
    };
    let (device, queue) = engine(&adapter(), |_| ());
    // Making an encoder on a lost device is the engine's own mistake.
    device.on_uncaptured_error(std::sync::Arc::new(|_| ()));
    let of_engine = Wgpu::new(&device, &queue).unwrap();
    for gpu in [Wgpu::open().unwrap(), of_engine] {
        let keys = buffer(&gpu, BYTES, Usage::STORAGE);
        for parameters_in_pool in [false, true] {
            println!("{gpu}, {parameters_in_pool}");
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            let layers = [WgpuLayer::keys_only(&keys.buffer)];
            gpu.rotate(&mut encoder, &rotations(), layout(), &layers)
                .unwrap();
            if parameters_in_pool {
                gpu.submit(encoder).unwrap();
            }
        }
        gpu.device().destroy();
        let error = call(&gpu, &keys).unwrap_err();
        assert!(matches!(error, Error::DeviceLost(_)), "{error:?}");
    }
}

#[test]
fn a_buffer_of_another_device_is_an_error_and_no_panic() {
    let adapter = adapter();
    let [gpu, other] = [(); 2].map(|()| {
        let (device, queue) = engine(&adapter, |_| ());
        Wgpu::new(&device, &queue).unwrap()
    });
    let keys = buffer(&other, BYTES, Usage::STORAGE);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let layers = [WgpuLayer::keys_only(&keys.buffer)];
    let error = gpu
        .rotate(&mut encoder, &rotations(), layout(), &layers)
        .unwrap_err();
    assert!(matches!(error, Error::Device(_)), "{error:?}");
    gpu.submit(encoder).unwrap();
}

/// Of about one, in f16.
fn halves(len: usize) -> Vec<f16> {
    let number = |_| f16::from_f32(rand::random_range(-2.0..2.0));
    (0..len).map(number).collect()
}

#[test]
fn workgroups_of_any_size_give_the_same_bits() {
    let shape = [1, 3, 300, 96];
    let layout = CacheLayout::keys_only(KeyLayout::bhsd(ElementType::F16, shape));
    let before = halves(3 * 300 * 96);
    let rope = Rope::from_theta(10_000.0, 96).unwrap();
    let edits = [Edit::insert(10, 5), Edit::delete(200..220)];
    let plan = Plan::from_edits(290, &edits).unwrap();
    let rotations = Rotations::new(&plan, &rope).unwrap();
    let keys_of = |invocations: u32| {
        let gpu = Wgpu::open().unwrap();
        let gpu = gpu.with_workgroups_of(invocations).unwrap();
        let keys = filled(&gpu, before.clone(), Usage::STORAGE);
        let layers = [WgpuLayer::keys_only(&keys.buffer)];
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.rotate(&mut encoder, &rotations, layout, &layers)
            .unwrap();
        gpu.splice(&mut encoder, &rotations, layout, &layers)
            .unwrap();
        gpu.submit(encoder).unwrap();
        read::<f16>(&gpu, &keys.buffer)
    };
    let one = keys_of(64);
    let mut expected = before.clone();
    let mut layers = [Layer::keys_only(&mut expected)];
    Cpu::new().rotate(&rotations, layout, &mut layers).unwrap();
    Cpu::new().splice(&rotations, layout, &mut layers).unwrap();
    // A unit apart after the first turn, which the second turns on; twice that in the next binade.
    let apart = 2.0 * (f64::sqrt(2.0) + 1.0) * 1.01;
    assert_keys((&one, &expected, &before), shape, &rope, apart, "64");
    for invocations in [128, 256] {
        let place = bhsd(shape);
        assert_same_bits(&keys_of(invocations), &one, |index| {
            format!("{invocations} invocations, {}", place(index))
        });
    }
    let error = Wgpu::open().unwrap().with_workgroups_of(96).unwrap_err();
    assert!(error.to_string().contains("invocations: 96"), "{error}");
}

/// Whichever block of the table is the first that a call needs.
#[test]
fn pages_are_found_wherever_an_edit_begins() {
    const BLOCKS: usize = 8;
    let gpu = Wgpu::open().unwrap();
    let table = [5, 2, 7, 0, 3, 6];
    let pages = KeyLayout::nhd(ElementType::F16, [BLOCKS, 16, 2, 32]);
    let layout = CacheLayout::keys_only(pages.with_table(&table));
    let before = halves(BLOCKS * 16 * 2 * 32);
    let rope = Rope::from_theta(10_000.0, 32).unwrap();
    for start in 0..64 {
        let plan = Plan::from_edits(90, &[Edit::insert(start, 3)]).unwrap();
        let rotations = Rotations::new(&plan, &rope).unwrap();
        let mut expected = before.clone();
        Cpu::new()
            .splice(&rotations, layout, &mut [Layer::keys_only(&mut expected)])
            .unwrap();

        let keys = filled(&gpu, before.clone(), Usage::STORAGE);
        let layers = [WgpuLayer::keys_only(&keys.buffer)];
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.splice(&mut encoder, &rotations, layout, &layers)
            .unwrap();
        gpu.submit(encoder).unwrap();
        let after = read::<f16>(&gpu, &keys.buffer);
        // As `[blocks, rows of a block, heads, dims]`.
        let (shape, what) = ([BLOCKS, 16, 2, 32], format!("an insertion at row {start}"));
        assert_keys((&after, &expected, &before), shape, &rope, 1.01, &what);
    }
}

#[test]
fn a_batch_of_none_is_done_at_once() {
    let gpu = Wgpu::open().unwrap();
    let keys = buffer(&gpu, 64, Usage::STORAGE);
    let layout = KeyLayout::bhsd(ElementType::F32, [0, 2, ROWS, 8]);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let layers = [WgpuLayer::new(&keys.buffer, &keys.buffer)];
    gpu.rotate(&mut encoder, &rotations(), layout, &layers)
        .unwrap();
    gpu.splice(
        &mut encoder,
        &rotations(),
        CacheLayout::keys_only(layout),
        &[WgpuLayer::keys_only(&keys.buffer)],
    )
    .unwrap();
    gpu.submit(encoder).unwrap();
    keys.is_unchanged(&gpu, "a batch of none");
}

/// What the engine does wrong by itself is said once, and does not follow it for ever.
#[test]
fn a_fault_outside_of_a_call_is_said_once() {
    let gpu = Wgpu::open().unwrap();
    let keys = buffer(&gpu, BYTES, Usage::STORAGE);
    let _ = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage: Usage::MAP_READ | Usage::MAP_WRITE | Usage::STORAGE,
        mapped_at_creation: false,
    });
    let call = || {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.rotate(
            &mut encoder,
            &rotations(),
            layout(),
            &[WgpuLayer::keys_only(&keys.buffer)],
        )
    };
    assert!(matches!(call(), Err(Error::Device(_))));
    call().unwrap();
}

#[test]
fn it_says_where_it_runs() {
    let gpu = Wgpu::open().unwrap();
    let text = gpu.to_string();
    assert!(text.contains(&gpu.adapter().name), "{text}");
}
