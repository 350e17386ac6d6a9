//! What a call asks of the driver, counted, and what it makes of a driver that refuses: on the emulator
//! (`scripts/emulator`). Under a real driver, which does not count, these show as ignored.

use std::process::{Command, ExitCode};
use std::sync::Arc;

use libloading::Library;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use pie_rope::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use pie_rope::{
    CacheLayout, Cuda, CudaLayer, CudaRawLayer, CudaWorkspace, Edit, ElementType, Error, KeyLayout,
    ModelRope, Plan, Rope, Rotations,
};

const HEADS: usize = 2;
const ROWS: usize = 300;
const DIM: usize = 128;
const LAYERS: usize = 32;

/// Counts what this thread has had the driver do.
struct Counters(Library);

impl Counters {
    const NAMES: [&str; 8] = [
        "launches",
        "allocations",
        "frees",
        "copies",
        "sets",
        "synchronisations",
        "modules",
        "events",
    ];

    /// `None`: it is a real driver, or there is none.
    fn find() -> Option<Counters> {
        // SAFETY: a driver's library runs nothing of its own when it is loaded but its own set-up.
        let library = unsafe { Library::new("libcuda.so.1") }.ok()?;
        // SAFETY: looked for, not called.
        unsafe { library.get::<unsafe extern "C" fn()>(c"emulator_counter") }.ok()?;
        Some(Counters(library))
    }

    fn all(&self) -> [u64; 8] {
        type Counter = unsafe extern "C" fn(*const std::ffi::c_char) -> u64;
        // SAFETY: its type in tests/emulator/driver/driver.cpp.
        let counter = unsafe { self.0.get::<Counter>(c"emulator_counter") }.expect("found before");
        Counters::NAMES.map(|name| {
            let name = std::ffi::CString::new(name).expect("no NUL inside");
            // SAFETY: a string that ends.
            unsafe { counter(name.as_ptr()) }
        })
    }

    /// What `call` has the driver do, by name, zeros left out.
    fn of(&self, call: impl FnOnce()) -> Vec<(&'static str, u64)> {
        let before = self.all();
        call();
        let changes = self
            .all()
            .into_iter()
            .zip(before)
            .map(|(after, before)| after - before);
        Counters::NAMES
            .into_iter()
            .zip(changes)
            .filter(|&(_, count)| count > 0)
            .collect()
    }
}

/// A cache of 32 layers as one buffer, and a backend that has its kernels.
struct Scene {
    cuda: Cuda,
    stream: Arc<CudaStream>,
    buffer: CudaSlice<f32>,
}

impl Scene {
    fn new() -> Scene {
        let cuda = Cuda::open(0).expect("the emulator");
        cuda.prepare(ElementType::F32).unwrap();
        let stream = cuda.context().unwrap().new_stream().unwrap();
        let buffer = stream
            .clone_htod(&vec![1f32; 2 * LAYERS * HEADS * ROWS * DIM])
            .unwrap();
        Scene {
            cuda,
            stream,
            buffer,
        }
    }

    fn layers(&mut self) -> Vec<CudaRawLayer> {
        let len = HEADS * ROWS * DIM;
        let start = self.buffer.device_ptr_mut(&self.stream).0;
        let at = |index: usize| start + (4 * index * len) as u64;
        let layer = |index| CudaRawLayer {
            keys: at(2 * index),
            keys_len: len,
            values: at(2 * index + 1),
            values_len: len,
        };
        (0..LAYERS).map(layer).collect()
    }

    fn workspace(&self, len: usize) -> CudaSlice<u8> {
        self.stream.alloc_zeros(len).unwrap()
    }
}

fn layout() -> CacheLayout<'static> {
    KeyLayout::bhsd(ElementType::F32, [1, HEADS, ROWS, DIM]).into()
}

fn rope() -> Rope {
    Rope::from_theta(10_000.0, DIM).unwrap()
}

fn rotations(edits: &[Edit]) -> Rotations {
    Rotations::new(&Plan::from_edits(250, edits).unwrap(), &rope()).unwrap()
}

fn six_edits() -> Rotations {
    let edits: Vec<Edit> = (0..6)
        .map(|index| Edit::insert(20 + 40 * index, 3 + index))
        .collect();
    rotations(&edits)
}

/// An angle for every row: more than parameters hold.
fn scattered() -> Rotations {
    let old: Vec<i32> = (0..ROWS as i32).map(|row| row * 7919 % 100_000).collect();
    Rotations::new(
        &Plan::from_positions(&old, &vec![5; ROWS]).unwrap(),
        &rope(),
    )
    .unwrap()
}

/// One edit, and six: one launch and nothing else, for all 32 layers.
fn a_typical_call_is_one_launch(counters: &Counters) {
    let mut scene = Scene::new();
    let layers = scene.layers();
    let (cuda, queue) = (&scene.cuda, scene.stream.cu_stream());
    for rotations in [rotations(&[Edit::insert(4, 2)]), six_edits()] {
        let none = CudaWorkspace::NONE;
        // SAFETY: the layers are parts of one slice that nobody else uses.
        let rotate =
            || unsafe { cuda.rotate_raw(queue, &rotations, &layout(), &layers, none) }.unwrap();
        // SAFETY: as above.
        let splice =
            || unsafe { cuda.splice_raw(queue, &rotations, &layout(), &layers, none) }.unwrap();
        assert_eq!(counters.of(rotate), [("launches", 1)]);
        assert_eq!(counters.of(splice), [("launches", 1)]);
    }
}

/// Each model layer may have a rope of its own: still one launch.
fn ropes_of_several_kinds_are_one_launch(counters: &Counters) {
    let mut scene = Scene::new();
    let layers = scene.layers();
    let local = Rope::from_theta(10_000.0, DIM).unwrap();
    let global = Rope::from_theta(1_000_000.0, DIM).unwrap();
    let ropes = (0..LAYERS).map(|layer| match layer % 6 {
        5 => Some(global.clone()),
        4 => None,
        _ => Some(local.clone()),
    });
    let plan = Plan::from_edits(250, &[Edit::delete(4..6)]).unwrap();
    let rotations = Rotations::for_model(&plan, &ModelRope::from_layers(ropes)).unwrap();
    let (cuda, queue) = (&scene.cuda, scene.stream.cu_stream());
    let call = || {
        // SAFETY: as above.
        unsafe { cuda.splice_raw(queue, &rotations, &layout(), &layers, CudaWorkspace::NONE) }
            .unwrap()
    };
    assert_eq!(counters.of(call), [("launches", 1)]);
}

/// With a workspace: launches that fill it, and still no copy and no waiting.
fn a_workspace_is_filled_by_launches(counters: &Counters) {
    let mut scene = Scene::new();
    let rotations = scattered();
    let layers = scene.layers();
    let len = scene.cuda.workspace_len(&rotations, &[&layout()], LAYERS);
    let mut memory = scene.workspace(len);
    let workspace = CudaWorkspace {
        len,
        address: memory.device_ptr_mut(&scene.stream).0,
    };
    let (cuda, queue) = (&scene.cuda, scene.stream.cu_stream());
    // SAFETY: as above.
    let call =
        || unsafe { cuda.rotate_raw(queue, &rotations, &layout(), &layers, workspace) }.unwrap();
    // 300 rows of 128 floats, in parts of 32 736 bytes, and the call.
    assert_eq!(counters.of(call), [("launches", 6)]);
}

/// `cudarc`'s slices bring their events, and nothing else.
fn a_typed_call_is_one_launch(counters: &Counters) {
    let scene = Scene::new();
    let slice = || {
        scene
            .stream
            .clone_htod(&vec![1f32; HEADS * ROWS * DIM])
            .unwrap()
    };
    let (mut keys, mut values) = (slice(), slice());
    let rotations = six_edits();
    let call = || {
        let mut layers = [CudaLayer::new(&mut keys, &mut values)];
        scene
            .cuda
            .splice(&scene.stream, &rotations, layout(), &mut layers, None)
            .unwrap();
    };
    let counted = counters.of(call);
    let others: Vec<_> = counted
        .iter()
        .filter(|(name, _)| *name != "events")
        .collect();
    assert_eq!(others, [&("launches", 1)]);
}

fn a_refused_call_asks_nothing(counters: &Counters) {
    let mut scene = Scene::new();
    let layers = scene.layers();
    let rotations = scattered();
    let (cuda, queue) = (&scene.cuda, scene.stream.cu_stream());
    let call = || {
        // SAFETY: as above.
        unsafe { cuda.rotate_raw(queue, &rotations, &layout(), &layers, CudaWorkspace::NONE) }
            .unwrap_err();
    };
    assert_eq!(counters.of(call), []);
}

/// Kernels are loaded once; what was lent is not freed, and the context not destroyed.
fn a_dropped_backend_frees_nothing_of_the_engines(counters: &Counters) {
    let mut scene = Scene::new();
    let layers = scene.layers();
    let context = scene.cuda.context().unwrap().clone();
    let counted = counters.of(|| {
        let cuda = Cuda::new(&context).unwrap();
        let rotations = six_edits();
        for _ in 0..2 {
            let none = CudaWorkspace::NONE;
            // SAFETY: as above.
            unsafe {
                cuda.splice_raw(
                    scene.stream.cu_stream(),
                    &rotations,
                    &layout(),
                    &layers,
                    none,
                )
            }
            .unwrap();
        }
    });
    assert_eq!(counted, [("launches", 2), ("modules", 1)]);
    assert_eq!(
        scene.stream.clone_dtoh(&scene.buffer).unwrap().len(),
        scene.buffer.len()
    );
}

/// Runs this test's own `opening` in a process with settings of the emulator.
fn opening(settings: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "opening", "--ignored", "--nocapture"])
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn drivers_that_refuse(_: &Counters) {
    let refusals = [
        ("EMULATOR_DEVICES", "0", "NoAdapter(\"CUDA_ERROR_NO_DEVICE"),
        (
            "EMULATOR_CAPABILITY",
            "7.0",
            "Limit(\"compute capability 7.0, the kernels need 7.5",
        ),
        (
            "EMULATOR_DRIVER",
            "12000",
            "a driver of CUDA 12.1 (R530) or later",
        ),
    ];
    for (name, value, expected) in refusals {
        let said = opening(&[(name, value)]);
        assert!(said.contains(expected), "{name}={value}: {said}");
    }
    assert!(opening(&[]).contains("opened"));
}

/// What opening comes to, for [`drivers_that_refuse`].
fn open() {
    let opened = Cuda::open(0).and_then(|cuda| cuda.prepare(ElementType::F16));
    match opened {
        Ok(()) => eprintln!("opened"),
        Err(error @ (Error::NoAdapter(_) | Error::Limit(_) | Error::Device(_))) => {
            eprintln!("{error:?}")
        }
        Err(other) => panic!("{other}"),
    }
}

fn main() -> ExitCode {
    macro_rules! trials {
        ($($test:ident),* $(,)?) => {
            vec![$(Trial::ignorable_test(stringify!($test), || match Counters::find() {
                Some(counters) => Ok::<_, Failed>({ $test(&counters); Completion::Completed }),
                None => Ok(Completion::ignored_with("this driver does not count: it is no emulator")),
            })),*]
        };
    }
    let mut trials = trials![
        a_typical_call_is_one_launch,
        ropes_of_several_kinds_are_one_launch,
        a_workspace_is_filled_by_launches,
        a_typed_call_is_one_launch,
        a_refused_call_asks_nothing,
        a_dropped_backend_frees_nothing_of_the_engines,
        drivers_that_refuse,
    ];
    let helper = Trial::test("opening", || {
        open();
        Ok(())
    });
    trials.push(helper.with_ignored_flag(true));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
