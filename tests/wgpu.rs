//! The wgpu backend's own rules: what it refuses, and that nothing of it reaches the user as a panic. What it
//! computes is the conformance suite's. These tests need an adapter and fail without one.

use half::f16;
use pie_rope::{Cpu, Edit, ElementType, Error, KeyLayout, Layer, Plan, Result, Rope, Rotations};
use pie_rope::{Wgpu, WgpuLayer, wgpu};
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

/// A buffer of ones.
fn buffer(gpu: &Wgpu, bytes: u64, usage: Usage) -> wgpu::Buffer {
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage: usage | Usage::COPY_DST | Usage::COPY_SRC,
        mapped_at_creation: false,
    });
    let ones = vec![1f32; bytes as usize / 4];
    gpu.queue()
        .write_buffer(&buffer, 0, bytemuck::cast_slice(&ones));
    buffer
}

fn read(gpu: &Wgpu, buffer: &wgpu::Buffer) -> Vec<f32> {
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
    bytemuck::cast_slice(&back.get_mapped_range(..).unwrap()).to_vec()
}

/// Records `call` on the buffers and expects it to be refused with `expected` in the text, and the encoder
/// to be as good as before, with nothing in it.
#[track_caller]
fn refused(
    gpu: &Wgpu,
    expected: &str,
    buffers: &[&wgpu::Buffer],
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
    for buffer in buffers {
        assert!(
            read(gpu, buffer).iter().all(|&number| number == 1.0),
            "refused, but something was written"
        );
    }
}

#[test]
fn the_sound_call_is_not_refused_and_layers_without_work_record_nothing() {
    let gpu = Wgpu::open().unwrap();
    let keys = buffer(&gpu, BYTES, Usage::STORAGE);
    let values = buffer(&gpu, BYTES, Usage::STORAGE);
    let layers = [WgpuLayer::new(&keys, &values)];
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    gpu.splice(&mut encoder, &rotations(), layout(), &layers)
        .unwrap();
    let nothing = Plan::from_edits(16, &[]).unwrap();
    let nothing = Rotations::new(&nothing, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    gpu.splice(&mut encoder, &nothing, layout(), &layers)
        .unwrap();
    gpu.submit(encoder).unwrap();
    assert!(read(&gpu, &keys).iter().any(|&key| key != 1.0));
    assert!(read(&gpu, &values).iter().all(|&value| value == 1.0));
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
        &[WgpuLayer::new(&good, &bare)],
    );
    splice(
        "layer 1, keys: offset 2 is no multiple of the 4 bytes of f32",
        &[
            WgpuLayer::keys_only(&good),
            WgpuLayer::keys_only(long.slice(2..)),
        ],
    );
    splice(
        "layer 0, keys: it needs a buffer of 320 elements, this one has 319",
        &[WgpuLayer::keys_only(good.slice(4..))],
    );
    splice(
        "layer 0, keys: bytes 64..1344 are not inside the buffer's 1280",
        &[WgpuLayer::keys_only(wgpu::BufferBinding {
            buffer: &good,
            offset: 64,
            size: wgpu::BufferSize::new(BYTES),
        })],
    );
    splice(
        "layer 0's keys and layer 1's keys overlap in one buffer",
        &[WgpuLayer::keys_only(&good), WgpuLayer::keys_only(&good)],
    );
    splice(
        "layer 0's keys and layer 0's values overlap in one buffer",
        &[WgpuLayer::new(
            long.slice(0..BYTES),
            long.slice(BYTES - 4..2 * BYTES - 4),
        )],
    );
    splice(
        "keys and values share a buffer, and their layouts may overlap",
        &[WgpuLayer::packed(&good)],
    );
    refused(&gpu, "dst: it overlaps slice 0 of `src`", &all, |encoder| {
        let src = [WgpuLayer::keys_only(long.slice(4..BYTES + 4))];
        let dst = [WgpuLayer::keys_only(long.slice(BYTES..))];
        gpu.copy(encoder, &rotations(), layout(), &src, layout(), &dst)
    });
}

#[test]
fn the_shared_checks_come_first() {
    let gpu = Wgpu::open().unwrap();
    let keys = buffer(&gpu, BYTES, Usage::STORAGE);
    refused(&gpu, "the layout has 17", &[&keys], |encoder| {
        let layout = KeyLayout::bhsd(ElementType::F32, [1, 2, 17, 8]);
        let layers = [WgpuLayer::keys_only(&keys)];
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
        gpu.rotate(encoder, &rotations, layout, &[WgpuLayer::keys_only(&keys)])
    });
}

#[test]
fn a_lost_device_is_an_error_and_no_panic() {
    let call = |gpu: &Wgpu, keys: &wgpu::Buffer| {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let layers = [WgpuLayer::keys_only(keys)];
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
            let layers = [WgpuLayer::keys_only(&keys)];
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
    let layers = [WgpuLayer::keys_only(&keys)];
    let error = gpu
        .rotate(&mut encoder, &rotations(), layout(), &layers)
        .unwrap_err();
    assert!(matches!(error, Error::Device(_)), "{error:?}");
    gpu.submit(encoder).unwrap();
}

#[test]
fn workgroups_of_any_size_give_the_same_bits() {
    let keys_of = |invocations: u32| {
        let gpu = Wgpu::open().unwrap();
        let gpu = gpu.with_workgroups_of(invocations).unwrap();
        let layout = KeyLayout::bhsd(ElementType::F16, [1, 3, 300, 96]);
        let bytes = 3 * 300 * 96 * 2;
        let keys = buffer(&gpu, bytes, Usage::STORAGE);
        // Finite numbers, all different enough.
        let data: Vec<u16> = (0..bytes as u32 / 2)
            .map(|i| (i.wrapping_mul(40_503) % 0x7800) as u16)
            .collect();
        gpu.queue()
            .write_buffer(&keys, 0, bytemuck::cast_slice(&data));
        let rope = Rope::from_theta(10_000.0, 96).unwrap();
        let edits = [Edit::insert(10, 5), Edit::delete(200..220)];
        let plan = Plan::from_edits(290, &edits).unwrap();
        let rotations = Rotations::new(&plan, &rope).unwrap();
        let layers = [WgpuLayer::keys_only(&keys)];
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.rotate(&mut encoder, &rotations, layout, &layers)
            .unwrap();
        gpu.splice(&mut encoder, &rotations, layout, &layers)
            .unwrap();
        gpu.submit(encoder).unwrap();
        let after: Vec<u16> = bytemuck::cast_slice(&read(&gpu, &keys)).to_vec();
        assert!(after != data);
        after
    };
    let expected = keys_of(64);
    assert!(keys_of(128) == expected);
    assert!(keys_of(256) == expected);
    let error = Wgpu::open().unwrap().with_workgroups_of(96).unwrap_err();
    assert!(error.to_string().contains("invocations: 96"), "{error}");
}

/// Whichever block of the table is the first that a call needs.
#[test]
fn pages_are_found_wherever_an_edit_begins() {
    const BLOCKS: usize = 8;
    let gpu = Wgpu::open().unwrap();
    let table = [5, 2, 7, 0, 3, 6];
    let layout = KeyLayout::nhd(ElementType::F16, [BLOCKS, 16, 2, 32]).with_table(&table);
    let before: Vec<f16> = (0..BLOCKS * 16 * 2 * 32)
        .map(|i| f16::from_f32((i * 7919 % 1000) as f32 / 500.0 - 1.0))
        .collect();
    let bytes = 2 * before.len() as u64;
    let rope = Rope::from_theta(10_000.0, 32).unwrap();
    for start in 0..64 {
        let plan = Plan::from_edits(90, &[Edit::insert(start, 3)]).unwrap();
        let rotations = Rotations::new(&plan, &rope).unwrap();
        let mut expected = before.clone();
        Cpu::new()
            .splice(&rotations, layout, &mut [Layer::keys_only(&mut expected)])
            .unwrap();

        let keys = buffer(&gpu, bytes, Usage::STORAGE);
        gpu.queue()
            .write_buffer(&keys, 0, bytemuck::cast_slice(&before));
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.splice(
            &mut encoder,
            &rotations,
            layout,
            &[WgpuLayer::keys_only(&keys)],
        )
        .unwrap();
        gpu.submit(encoder).unwrap();
        let after = read(&gpu, &keys);
        for (after, expected) in bytemuck::cast_slice::<_, f16>(&after).iter().zip(&expected) {
            // One unit in the last place of numbers up to two.
            let error = (after.to_f32() - expected.to_f32()).abs();
            assert!(
                error <= 1.0 / 1024.0,
                "an insertion at row {start}: off by {error}"
            );
        }
    }
}

#[test]
fn a_batch_of_none_is_done_at_once() {
    let gpu = Wgpu::open().unwrap();
    let keys = buffer(&gpu, 64, Usage::STORAGE);
    let layout = KeyLayout::bhsd(ElementType::F32, [0, 2, ROWS, 8]);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let layers = [WgpuLayer::new(&keys, &keys)];
    gpu.rotate(&mut encoder, &rotations(), layout, &layers)
        .unwrap();
    gpu.splice(
        &mut encoder,
        &rotations(),
        layout,
        &[WgpuLayer::keys_only(&keys)],
    )
    .unwrap();
    gpu.submit(encoder).unwrap();
    assert_eq!(read(&gpu, &keys), [1.0; 16]);
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
            &[WgpuLayer::keys_only(&keys)],
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
