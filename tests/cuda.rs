//! The CUDA backend's own rules: what it refuses, its three doors, captured graphs, workspaces. What it computes is
//! the conformance suite's. These tests need a device, or the emulator (`scripts/emulator`), and fail without one.

mod support;

use std::process::Command;
use std::sync::Arc;

use half::{bf16, f16};
use pie_rope::cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use pie_rope::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstream};
use pie_rope::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, result,
};
use pie_rope::{
    Axis, CacheLayout, Cpu, Cuda, CudaLayer, CudaLayerRef, CudaRawLayer, CudaWorkspace, Edit,
    Element, ElementType, Error, KeyLayout, Layer, LayerRef, Plan, Result, Rope, Rotations,
    Strides,
};
use rand::Rng;
use support::assert_same_bits;

const HEADS: usize = 2;
const ROWS: usize = 600;
const DIM: usize = 32;
const LEN: usize = HEADS * ROWS * DIM;

fn layout<T: Element>() -> KeyLayout<'static> {
    KeyLayout::bhsd(T::TYPE, [1, HEADS, ROWS, DIM])
}

fn rope() -> Rope {
    Rope::from_theta(10_000.0, DIM).unwrap()
}

/// Rows move both ways, and some turn where they are.
fn rotations() -> Rotations {
    let edits = [
        Edit::insert(40, 7),
        Edit::delete(300..320),
        Edit::insert(400, 13),
    ];
    Rotations::new(&Plan::from_edits(ROWS - 20, &edits).unwrap(), &rope()).unwrap()
}

/// Every `step`th row goes: that many short spans, one after the other.
fn evictions(step: usize, rows: usize) -> Rotations {
    let kept: Vec<usize> = (0..rows).filter(|row| row % step != 1).collect();
    Rotations::new(&Plan::from_kept(rows, &kept).unwrap(), &rope()).unwrap()
}

fn random<T: Element>(len: usize) -> Vec<T> {
    let mut random = rand::rng();
    let mut number = || -> f32 { random.random_range(-1.0..1.0) };
    (0..len)
        .map(|_| match T::TYPE {
            ElementType::F32 => bytemuck::cast_slice(&[number()])[0],
            ElementType::F16 => bytemuck::cast_slice(&[f16::from_f32(number())])[0],
            ElementType::BF16 => bytemuck::cast_slice(&[bf16::from_f32(number())])[0],
        })
        .collect()
}

struct Gpu {
    cuda: Cuda,
    stream: Arc<CudaStream>,
}

impl Gpu {
    fn open() -> Gpu {
        let cuda = Cuda::open(0).expect("a device, or the emulator: see scripts/emulator");
        let stream = cuda.context().unwrap().new_stream().unwrap();
        Gpu { cuda, stream }
    }

    fn workspace(
        &self,
        rotations: &Rotations,
        layout: CacheLayout<'_>,
        layers: usize,
    ) -> Option<CudaSlice<u8>> {
        let len = self.cuda.workspace_len(rotations, &[&layout], layers);
        (len > 0).then(|| self.stream.alloc_zeros(len).unwrap())
    }
}

/// Keys and values on the device, and what they were on the host.
struct Cache<T> {
    keys: CudaSlice<T>,
    values: CudaSlice<T>,
    before: (Vec<T>, Vec<T>),
}

impl<T: Element + DeviceRepr + std::fmt::Debug> Cache<T> {
    fn new(stream: &Arc<CudaStream>) -> Cache<T> {
        let before = (random::<T>(LEN), random::<T>(LEN));
        Cache {
            keys: stream.clone_htod(&before.0).unwrap(),
            values: stream.clone_htod(&before.1).unwrap(),
            before,
        }
    }

    fn layer(&mut self) -> CudaLayer<'_, T> {
        CudaLayer::new(&mut self.keys, &mut self.values)
    }

    fn raw(&mut self, stream: &Arc<CudaStream>) -> CudaRawLayer {
        CudaRawLayer {
            keys: self.keys.device_ptr_mut(stream).0,
            keys_len: LEN,
            values: self.values.device_ptr_mut(stream).0,
            values_len: LEN,
        }
    }

    /// Compares with what the CPU backend makes of the same.
    #[track_caller]
    fn check(&self, stream: &Arc<CudaStream>, on_cpu: impl FnOnce(&Cpu, &mut [Layer<'_, T>])) {
        let mut expected = self.before.clone();
        on_cpu(
            &Cpu::new(),
            &mut [Layer::new(&mut expected.0, &mut expected.1)],
        );
        let bytes = bytemuck::cast_slice::<T, u8>;
        assert!(bytes(&expected.0) != bytes(&self.before.0), "nothing to do");
        self.same(stream, &expected);
    }

    #[track_caller]
    fn same(&self, stream: &Arc<CudaStream>, expected: &(Vec<T>, Vec<T>)) {
        let keys = stream.clone_dtoh(&self.keys).unwrap();
        let values = stream.clone_dtoh(&self.values).unwrap();
        stream.synchronize().unwrap();
        for (half, got, expected) in [("keys", keys, &expected.0), ("values", values, &expected.1)]
        {
            assert_same_bits(&got, expected, |index| {
                // Tests have layouts of their own.
                format!(
                    "{half}, row {} of all, dimension {}",
                    index / DIM,
                    index % DIM
                )
            });
        }
    }
}

/// Far more rows than a block holds in its registers, moved both ways: only then does it matter in which order a
/// splice takes them. (Those of the conformance suite all fit.)
#[test]
fn rows_that_do_not_fit_a_block() {
    let Gpu { cuda, stream } = Gpu::open();
    let rows = HEADS * ROWS;
    let layout = KeyLayout::bhsd(ElementType::F32, [1, 1, rows, DIM]);
    let edits = [Edit::insert(20, 90), Edit::delete(640..770)];
    let plan = Plan::from_edits(rows - 90, &edits).unwrap();
    let rotations = Rotations::new(&plan, &rope()).unwrap();
    let mut cache = Cache::<f32>::new(&stream);
    let mut layers = [cache.layer()];
    cuda.splice(&stream, &rotations, layout, &mut layers, None)
        .unwrap();
    cache.check(&stream, |cpu, layers| {
        cpu.splice(&rotations, layout, layers).unwrap()
    });
}

fn typed_verbs<T: Element + DeviceRepr + std::fmt::Debug>() {
    let Gpu { cuda, stream } = Gpu::open();
    let (rotations, layout) = (rotations(), layout::<T>());

    let mut cache = Cache::<T>::new(&stream);
    let mut layers = [cache.layer()];
    cuda.rotate(&stream, &rotations, layout, &mut layers, None)
        .unwrap();
    cache.check(&stream, |cpu, layers| {
        cpu.rotate(&rotations, layout, layers).unwrap()
    });

    let mut cache = Cache::<T>::new(&stream);
    let mut layers = [cache.layer()];
    cuda.splice(&stream, &rotations, layout, &mut layers, None)
        .unwrap();
    cache.check(&stream, |cpu, layers| {
        cpu.splice(&rotations, layout, layers).unwrap()
    });

    let (src, mut dst) = (Cache::<T>::new(&stream), Cache::<T>::new(&stream));
    let from = [CudaLayerRef {
        keys: &src.keys,
        values: Some(&src.values),
    }];
    let mut to = [dst.layer()];
    cuda.copy(&stream, &rotations, layout, &from, layout, &mut to, None)
        .unwrap();
    src.same(&stream, &src.before);
    dst.check(&stream, |cpu, layers| {
        let from = [LayerRef {
            keys: &src.before.0,
            values: Some(&src.before.1),
        }];
        cpu.copy(&rotations, layout, &from, layout, layers).unwrap();
    });

    // From the front of the buffer to its back.
    let half = KeyLayout::bhsd(T::TYPE, [1, HEADS, ROWS / 2, DIM]);
    let back = half.with_offset(LEN / 2);
    let plan = Plan::from_edits(200, &[Edit::insert(50, 31)]).unwrap();
    let rotations = Rotations::new(&plan, &rope()).unwrap();
    let mut cache = Cache::<T>::new(&stream);
    let mut layers = [cache.layer()];
    cuda.copy_within(&stream, &rotations, half, back, &mut layers, None)
        .unwrap();
    cache.check(&stream, |cpu, layers| {
        cpu.copy_within(&rotations, half, back, layers).unwrap()
    });
}

#[test]
fn typed_verbs_f32() {
    typed_verbs::<f32>();
}

#[test]
fn typed_verbs_f16() {
    typed_verbs::<f16>();
}

#[test]
fn typed_verbs_bf16() {
    typed_verbs::<bf16>();
}

#[test]
fn views_and_keys_alone() {
    let Gpu { cuda, stream } = Gpu::open();
    let rotations = rotations();
    let mut cache = Cache::<f32>::new(&stream);
    // The second head alone, as a view of its own.
    let one = KeyLayout::bhsd(ElementType::F32, [1, 1, ROWS, DIM]);
    let mut view = cache.keys.slice_mut(LEN / 2..);
    let mut layers = [CudaLayer::keys_only(&mut view)];
    cuda.rotate(&stream, &rotations, one, &mut layers, None)
        .unwrap();
    cache.check(&stream, |cpu, layers| {
        let layout = layout::<f32>().narrow_heads(1..2).unwrap();
        cpu.rotate(&rotations, layout, layers).unwrap();
    });
}

#[test]
fn a_context_by_its_handle() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let (rotations, layout) = (rotations(), CacheLayout::from(layout::<f32>()));
    let mut cache = Cache::<f32>::new(&stream);
    let layer = cache.raw(&stream);
    // As an engine's thread may be: without a current context.
    // SAFETY: it is bound again before anything else needs it.
    unsafe { result::ctx::set_current(std::ptr::null_mut()) }.unwrap();
    // SAFETY: `context` outlives it.
    let cuda = unsafe { Cuda::on_context(context.cu_ctx()) }.unwrap();
    assert!(cuda.context().is_none());
    let null: CUstream = std::ptr::null_mut();
    // SAFETY: the layer is of slices that nobody else uses.
    unsafe { cuda.splice_raw(null, &rotations, &layout, &[layer], CudaWorkspace::NONE) }.unwrap();
    drop(cuda);
    assert_eq!(
        result::ctx::get_current().unwrap(),
        None,
        "what was current stays current"
    );
    context.bind_to_thread().unwrap();
    cache.check(&stream, |cpu, layers| {
        cpu.splice(&rotations, layout, layers).unwrap()
    });
}

#[test]
fn lengths_may_be_left_out() {
    let Gpu { cuda, stream } = Gpu::open();
    let (rotations, layout) = (rotations(), CacheLayout::from(layout::<f16>()));
    let mut cache = Cache::<f16>::new(&stream);
    let checked = cache.raw(&stream);
    let layer = CudaRawLayer::unchecked(checked.keys, Some(checked.values));
    let queue = stream.cu_stream();
    // SAFETY: the layer is of slices that nobody else uses.
    unsafe { cuda.splice_raw(queue, &rotations, &layout, &[layer], CudaWorkspace::NONE) }.unwrap();
    cache.check(&stream, |cpu, layers| {
        cpu.splice(&rotations, layout, layers).unwrap()
    });
}

/// From parameters that hold everything, over each limit, to a workspace: always the same bits.
#[test]
fn words_in_parameters_and_in_a_workspace() {
    let gpu = Gpu::open();
    let layout = layout::<f32>();
    let mut lengths = Vec::new();
    let plans = (4..=ROWS).step_by(41).map(|rows| evictions(3, rows));
    // An angle for every row.
    let scattered: Vec<i32> = (0..ROWS as i32).map(|row| row * 7919 % 100_000).collect();
    let scattered = Plan::from_positions(&scattered, &vec![5; ROWS]).unwrap();
    for rotations in plans.chain([Rotations::new(&scattered, &rope()).unwrap()]) {
        let mut workspace = gpu.workspace(&rotations, layout.into(), 1);
        lengths.push(workspace.as_ref().map_or(0, CudaSlice::len));
        let mut cache = Cache::<f32>::new(&gpu.stream);
        let mut layers = [cache.layer()];
        gpu.cuda
            .splice(
                &gpu.stream,
                &rotations,
                layout,
                &mut layers,
                workspace.as_mut(),
            )
            .unwrap();
        cache.check(&gpu.stream, |cpu, layers| {
            cpu.splice(&rotations, layout, layers).unwrap()
        });
    }
    assert!(
        lengths.contains(&0) && lengths.iter().any(|&len| len > 0),
        "both were to be tested: {lengths:?}"
    );
}

#[test]
fn many_layers_in_one_call() {
    let Gpu { cuda, stream } = Gpu::open();
    let (rotations, layout) = (rotations(), layout::<bf16>());
    let mut caches: Vec<_> = (0..90).map(|_| Cache::<bf16>::new(&stream)).collect();
    let mut layers: Vec<_> = caches.iter_mut().map(Cache::layer).collect();
    cuda.splice(&stream, &rotations, layout, &mut layers, None)
        .unwrap();
    for cache in &caches {
        cache.check(&stream, |cpu, layers| {
            cpu.splice(&rotations, layout, layers).unwrap()
        });
    }
}

#[test]
fn nothing_to_do() {
    let Gpu { cuda, stream } = Gpu::open();
    let mut cache = Cache::<f32>::new(&stream);
    let nothing = Rotations::new(&Plan::from_edits(100, &[]).unwrap(), &rope()).unwrap();
    let layout = layout::<f32>();
    cuda.splice(&stream, &nothing, layout, &mut [cache.layer()], None)
        .unwrap();
    cuda.rotate(&stream, &nothing, layout, &mut [cache.layer()], None)
        .unwrap();
    cuda.splice::<f32>(&stream, &rotations(), layout, &mut [], None)
        .unwrap();
    // A batch of none.
    let none = KeyLayout::bhsd(ElementType::F32, [0, HEADS, ROWS, DIM]);
    cuda.splice(&stream, &rotations(), none, &mut [cache.layer()], None)
        .unwrap();
    cache.same(&stream, &cache.before);
}

fn no_flags() -> CUgraphInstantiate_flags {
    // SAFETY: flags, of which there are none.
    unsafe { std::mem::zeroed() }
}

/// A graph takes its parameters with it, and its workspace's words too.
#[test]
fn a_captured_graph_replays() {
    let gpu = Gpu::open();
    let layout = layout::<f32>();
    gpu.cuda.prepare(ElementType::F32).unwrap();
    for rotations in [rotations(), evictions(2, ROWS)] {
        let mut cache = Cache::<f32>::new(&gpu.stream);
        let layer = cache.raw(&gpu.stream);
        let mut workspace = gpu.workspace(&rotations, layout.into(), 1);
        let workspace = workspace
            .as_mut()
            .map_or(CudaWorkspace::NONE, |workspace| CudaWorkspace {
                len: workspace.len(),
                address: workspace.device_ptr_mut(&gpu.stream).0,
            });
        gpu.stream.synchronize().unwrap();
        gpu.stream
            .begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .unwrap();
        let queue = gpu.stream.cu_stream();
        // SAFETY: the layer is of slices that nobody else uses.
        unsafe {
            gpu.cuda
                .splice_raw(queue, &rotations, &layout.into(), &[layer], workspace)
        }
        .unwrap();
        let graph = gpu
            .stream
            .end_capture(no_flags())
            .unwrap()
            .expect("a graph");
        cache.same(&gpu.stream, &cache.before);
        for _ in 0..3 {
            graph.launch().unwrap();
        }
        cache.check(&gpu.stream, |cpu, layers| {
            (0..3).for_each(|_| cpu.splice(&rotations, layout, layers).unwrap());
        });
    }
}

#[test]
fn several_threads_share_a_backend() {
    let cuda = Gpu::open().cuda;
    std::thread::scope(|scope| {
        for rows in [60, 200, 590] {
            let cuda = &cuda;
            scope.spawn(move || {
                let stream = cuda.context().unwrap().new_stream().unwrap();
                for step in 2..8 {
                    let (rotations, layout) = (evictions(step, rows), layout::<f16>());
                    let len = cuda.workspace_len(&rotations, &[&layout.into()], 1);
                    let mut workspace = stream.alloc_zeros(len.max(1)).unwrap();
                    let mut cache = Cache::<f16>::new(&stream);
                    let mut layers = [cache.layer()];
                    cuda.splice(
                        &stream,
                        &rotations,
                        layout,
                        &mut layers,
                        Some(&mut workspace),
                    )
                    .unwrap();
                    cache.check(&stream, |cpu, layers| {
                        cpu.splice(&rotations, layout, layers).unwrap()
                    });
                }
            });
        }
    });
}

/// Expects a call to be refused with `expected` in the text, and to have written nothing.
#[track_caller]
fn refused(expected: &str, call: impl FnOnce(&Gpu, &mut Cache<f32>) -> Result<()>) {
    let gpu = Gpu::open();
    let mut cache = Cache::<f32>::new(&gpu.stream);
    let error = call(&gpu, &mut cache)
        .expect_err("it should have been refused")
        .to_string();
    assert!(
        error.contains(expected),
        "`{error}` does not say `{expected}`"
    );
    cache.same(&gpu.stream, &cache.before);
}

#[test]
fn refusals() {
    refused(
        "the plan needs 400 rows, the layout has 399",
        |gpu, cache| {
            let layout = KeyLayout::bhsd(ElementType::F32, [1, HEADS, 399, DIM]);
            gpu.cuda.splice(
                &gpu.stream,
                &rotations(),
                layout,
                &mut [cache.layer()],
                None,
            )
        },
    );
    refused("layer 0, keys", |gpu, cache| {
        let layout = KeyLayout::bhsd(ElementType::F32, [1, HEADS, ROWS + 1, DIM]);
        gpu.cuda.rotate(
            &gpu.stream,
            &rotations(),
            layout,
            &mut [cache.layer()],
            None,
        )
    });
    refused(
        "layout: it is of f16, the layers are of f32",
        |gpu, cache| {
            gpu.cuda.splice(
                &gpu.stream,
                &rotations(),
                layout::<f16>(),
                &mut [cache.layer()],
                None,
            )
        },
    );
    refused("the rope turns dimensions", |gpu, cache| {
        let wide = Rope::from_theta(10_000.0, 2 * DIM).unwrap();
        let plan = Plan::from_edits(100, &[Edit::insert(4, 2)]).unwrap();
        let rotations = Rotations::new(&plan, &wide).unwrap();
        gpu.cuda.splice(
            &gpu.stream,
            &rotations,
            layout::<f32>(),
            &mut [cache.layer()],
            None,
        )
    });
    refused("block 3 is there twice", |gpu, cache| {
        let table = [3; 40];
        let paged = KeyLayout::hnd(ElementType::F32, [37, HEADS, 16, DIM]).with_table(&table);
        gpu.cuda
            .splice(&gpu.stream, &rotations(), paged, &mut [cache.layer()], None)
    });
}

#[test]
fn workspaces_that_do_not_do() {
    let needed = "bytes of it, there are 0 (`Cuda::workspace_len`)";
    refused(needed, |gpu, cache| {
        let rotations = evictions(2, ROWS);
        let scattered: Vec<i32> = (0..ROWS as i32).map(|row| row * 7919 % 100_000).collect();
        let plan = Plan::from_positions(&scattered, &vec![5; ROWS]).unwrap();
        assert!(rotations.spans().len() < 1000);
        let rotations = Rotations::new(&plan, &rope()).unwrap();
        gpu.cuda.rotate(
            &gpu.stream,
            &rotations,
            layout::<f32>(),
            &mut [cache.layer()],
            None,
        )
    });
    let scattered = || {
        let scattered: Vec<i32> = (0..ROWS as i32).map(|row| row * 7919 % 100_000).collect();
        Rotations::new(
            &Plan::from_positions(&scattered, &vec![5; ROWS]).unwrap(),
            &rope(),
        )
        .unwrap()
    };
    refused("there are 16 (", |gpu, cache| {
        let mut short = gpu.stream.alloc_zeros(16).unwrap();
        gpu.cuda.rotate(
            &gpu.stream,
            &scattered(),
            layout::<f32>(),
            &mut [cache.layer()],
            Some(&mut short),
        )
    });
    refused("is no multiple of 16", |gpu, cache| {
        let (rotations, layout) = (scattered(), CacheLayout::from(layout::<f32>()));
        let mut workspace = gpu.workspace(&rotations, layout, 1).unwrap();
        let workspace = CudaWorkspace {
            len: workspace.len(),
            address: workspace.device_ptr_mut(&gpu.stream).0 + 4,
        };
        let layer = cache.raw(&gpu.stream);
        // SAFETY: the layer is of slices that nobody else uses.
        unsafe {
            gpu.cuda.rotate_raw(
                gpu.stream.cu_stream(),
                &rotations,
                &layout,
                &[layer],
                workspace,
            )
        }
    });
}

/// Prints what opening a device comes to: for a process that the next test starts.
#[test]
#[ignore = "run by `without_a_driver_there_is_an_error`"]
fn open() {
    match Cuda::open(0) {
        Ok(_) => println!("opened"),
        Err(Error::NoAdapter(problem)) => println!("no device: {problem}"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn without_a_driver_there_is_an_error() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "open", "--ignored", "--nocapture"])
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("LD_PRELOAD")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    // A machine may have a driver besides the emulator.
    assert!(
        text.contains("is an NVIDIA driver installed?") || text.contains("opened"),
        "{text}"
    );
}

/// Keys alone, rows of 8 in blocks of one: source and destination tables are parts of one array, at any distance.
#[test]
fn tables_that_share_their_memory() {
    let Gpu { cuda, stream } = Gpu::open();
    let rope = Rope::from_theta(10_000.0, 8).unwrap();
    for before in 1..80 {
        let ours = (0..4).map(|row| 3 + 2 * row);
        let table: Vec<u32> = (0..before).map(|_| 100).chain(ours).collect();
        let plan = Plan::from_edits(4, &[Edit::insert(0, before)]).unwrap();
        let rotations = Rotations::new(&plan, &rope).unwrap();
        let blocks = KeyLayout::nhd(ElementType::F32, [128, 1, 1, 8]);
        let from = CacheLayout::keys_only(blocks.with_table(&table[before..]));
        let to = CacheLayout::keys_only(blocks.with_table(&table));

        let keys = random::<f32>(128 * 8);
        let onto = random::<f32>(keys.len());
        let mut expected = onto.clone();
        let src = [LayerRef {
            keys: &keys[..],
            values: None,
        }];
        let mut dst = [Layer::keys_only(&mut expected)];
        Cpu::new()
            .copy(&rotations, from, &src, to, &mut dst)
            .unwrap();

        let keys = stream.clone_htod(&keys).unwrap();
        let mut got = stream.clone_htod(&onto).unwrap();
        let src = [CudaLayerRef {
            keys: &keys,
            values: None,
        }];
        let mut dst = [CudaLayer::keys_only(&mut got)];
        cuda.copy(&stream, &rotations, from, &src, to, &mut dst, None)
            .unwrap();
        assert!(expected != onto);
        let got = stream.clone_dtoh(&got).unwrap();
        assert_same_bits(&got, &expected, |index| {
            format!(
                "{before} entries before, slot {}, dimension {}",
                index / 8,
                index % 8
            )
        });
    }
}

#[test]
fn nobody_takes_a_step_along_an_axis_of_one() {
    let Gpu { cuda, stream } = Gpu::open();
    let layout = KeyLayout::strided(
        ElementType::F32,
        Strides {
            offset: 0,
            batch: Axis::new(1, usize::MAX),
            blocks: Axis::new(1, usize::MAX),
            rows: Axis::new(HEADS * ROWS, DIM),
            heads: Axis::new(1, usize::MAX),
            packs: Axis::new(1, 0),
            pack: DIM,
        },
    );
    let mut cache = Cache::<f32>::new(&stream);
    let mut layers = [CudaLayer::keys_only(&mut cache.keys)];
    cuda.splice(
        &stream,
        &rotations(),
        CacheLayout::keys_only(layout),
        &mut layers,
        None,
    )
    .unwrap();
    let mut expected = cache.before.clone();
    let layers = &mut [Layer::keys_only(&mut expected.0)];
    Cpu::new()
        .splice(&rotations(), CacheLayout::keys_only(layout), layers)
        .unwrap();
    cache.same(&stream, &expected);
}

#[test]
fn addresses_that_no_kernel_could_use() {
    let call = |gpu: &Gpu, layer: CudaRawLayer, layout: KeyLayout<'_>| {
        let layout = CacheLayout::keys_only(layout);
        let queue = gpu.stream.cu_stream();
        // SAFETY: it is refused, so that no address is used.
        unsafe {
            gpu.cuda
                .splice_raw(queue, &rotations(), &layout, &[layer], CudaWorkspace::NONE)
        }
    };
    refused("no multiple of the 4 bytes of f32", |gpu, cache| {
        let address = cache.raw(&gpu.stream).keys + 2;
        call(gpu, CudaRawLayer::unchecked(address, None), layout::<f32>())
    });
    refused("goes past the last one", |gpu, cache| {
        let layer = CudaRawLayer::unchecked(cache.raw(&gpu.stream).keys, None);
        call(gpu, layer, layout::<f32>().with_offset(usize::MAX / 2))
    });
}

/// Slices that no event orders: the graph has the verb, and launches it when its backend is no more.
#[test]
fn a_graph_of_a_typed_verb_outlives_its_backend() {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: this test has one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let cuda = Cuda::new(&context).unwrap();
    cuda.prepare(ElementType::F32).unwrap();
    let (rotations, layout) = (rotations(), layout::<f32>());
    let mut cache = Cache::<f32>::new(&stream);
    stream.synchronize().unwrap();
    stream
        .begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    cuda.splice(&stream, &rotations, layout, &mut [cache.layer()], None)
        .unwrap();
    drop(cuda);
    let graph = stream.end_capture(no_flags()).unwrap().expect("a graph");
    cache.same(&stream, &cache.before);
    graph.launch().unwrap();
    cache.check(&stream, |cpu, layers| {
        cpu.splice(&rotations, layout, layers).unwrap()
    });
}

#[test]
fn a_capture_cannot_wait_for_slices() {
    let gpu = Gpu::open();
    gpu.cuda.prepare(ElementType::F32).unwrap();
    let mut cache = Cache::<f32>::new(&gpu.stream);
    gpu.stream.synchronize().unwrap();
    gpu.stream
        .begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    let layers = &mut [cache.layer()];
    let refused = gpu
        .cuda
        .splice(&gpu.stream, &rotations(), layout::<f32>(), layers, None);
    let error = refused.expect_err("slices have events").to_string();
    assert!(error.contains("disable_event_tracking"), "{error}");
    gpu.stream
        .end_capture(no_flags())
        .expect("the capture is as good as before");
}
