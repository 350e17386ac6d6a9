//! The device: one piece of its memory, its clock, and the kernels that are the benchmark's own.

use std::ffi::{CString, c_void};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use pie_rope::cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use pie_rope::cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use pie_rope::cudarc::driver::{CudaEvent, CudaStream, result, sys};
use pie_rope::{Cuda, CudaWorkspace, ElementType};

use crate::median;

/// Threads of a block of the benchmark's own kernels.
const THREADS: u32 = 256;

/// Rounds before the first that counts.
const WARM_UP: usize = 2;

/// Bytes that are left to others, and to the driver.
const RESERVE: u64 = 1 << 30;

/// How many times the L2 is copied to have it forget what it holds.
const L2_TIMES: u64 = 4;

/// Bytes of the workspace, for calls of any case.
const WORKSPACE: usize = 1 << 20;

pub struct Gpu {
    pub cuda: Cuda,
    pub stream: Arc<CudaStream>,
    pub facts: Facts,
    /// Device memory of the benchmark: to copy from, to copy to, a workspace, and the rest for caches.
    memory: Range,
    fill: sys::CUfunction,
    two_turns: Option<sys::CUfunction>,
}

/// What device it is.
pub struct Facts {
    pub name: String,
    /// Of CUDA, as 12080 for 12.8.
    pub cuda: i32,
    /// Of the kernel's module, where it says so.
    pub driver: String,
    pub capability: (i32, i32),
    pub multiprocessors: i32,
    pub l2: u64,
    pub memory: u64,
    pub free: u64,
    pub date: String,
}

/// Device memory by address.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub start: u64,
    pub len: u64,
}

/// Hands out a range piece by piece.
pub struct Arena(Range);

impl Arena {
    /// # Panics
    /// If there is not enough left: see [`Gpu::room`].
    pub fn take(&mut self, bytes: usize) -> u64 {
        let len = (bytes as u64).next_multiple_of(256);
        assert!(len <= self.0.len, "{len} bytes of {}", self.0.len);
        let start = self.0.start;
        self.0.start += len;
        self.0.len -= len;
        start
    }
}

/// What `benches/peers/fill.cu` is told.
#[repr(C)]
struct Fill {
    to: u64,
    chunks: u64,
    seed: u32,
    keep: u32,
    set: u32,
    unused: u32,
}

/// What `benches/peers/two_turns.cu` is told.
#[repr(C)]
pub struct TwoTurns {
    pub keys: u64,
    pub old_positions: u64,
    pub new_positions: u64,
    pub table: u64,
    pub heads: u32,
    pub dims: u32,
    pub window: u32,
    pub pairs: u32,
    pub step: u32,
    pub partner: u32,
}

impl Gpu {
    /// Takes as much memory as `wanted` bytes of caches need, or what there is.
    pub fn open(device: usize, wanted: u64) -> Result<Gpu> {
        let cuda = Cuda::open(device)?;
        let context = cuda.context().expect("opened here").clone();
        context.bind_to_thread()?;
        let stream = context.new_stream()?;
        let (free, total) = result::mem_get_info()?;
        let mut version = 0;
        // SAFETY: writes to a local.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
        let facts = Facts {
            name: context.name()?,
            cuda: version,
            driver: std::fs::read_to_string("/sys/module/nvidia/version")
                .map_or("unknown".into(), |text| text.trim().to_owned()),
            capability: context.compute_capability()?,
            multiprocessors: context
                .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as u64,
            memory: total as u64,
            free: free as u64,
            date: today(),
        };

        let own = 2 * L2_TIMES * facts.l2 + WORKSPACE as u64;
        let mut len = (own + wanted).min(facts.free.saturating_sub(RESERVE));
        // Free memory need not be in one piece.
        let start = loop {
            // SAFETY: it is freed once, when this is dropped.
            match unsafe { result::malloc_sync(len as usize) } {
                Err(error) if len < 2 * own => return Err(error.into()),
                Err(_) => len -= len / 16,
                Ok(start) => break start,
            }
        };
        let fill = function(include_str!("../peers/ptx/fill.ptx"), "fill")?;
        let two_turns = include_str!("../peers/ptx/two_turns.ptx");
        Ok(Gpu {
            two_turns: (facts.capability.0 >= 8)
                .then(|| function(two_turns, "two_turns"))
                .transpose()?,
            cuda,
            stream,
            facts,
            memory: Range { start, len },
            fill,
        })
    }

    /// Bytes that caches can have.
    pub fn room(&self) -> u64 {
        self.caches().len
    }

    pub fn arena(&self) -> Arena {
        Arena(self.caches())
    }

    pub fn workspace(&self) -> CudaWorkspace {
        CudaWorkspace {
            address: self.caches().start - WORKSPACE as u64,
            len: WORKSPACE,
        }
    }

    /// All memory but the two regions that [`cool`](Gpu::cool) copies between, and the workspace.
    fn caches(&self) -> Range {
        let own = 2 * self.cooling() + WORKSPACE as u64;
        Range {
            start: self.memory.start + own,
            len: self.memory.len - own,
        }
    }

    fn cooling(&self) -> u64 {
        L2_TIMES * self.facts.l2
    }

    /// Has the L2 forget what it holds, and gives the host time to get ahead of the device.
    fn cool(&self) {
        let bytes = self.cooling();
        self.copy_once(self.memory.start, self.memory.start + bytes, bytes);
    }

    /// The ceiling: copies `bytes` bytes inside the memory of caches, from one half to the other, and back again if
    /// a half is less. They stay numbers of the same type. Small copies of each `round` are of other bytes.
    pub fn copy(&self, bytes: u64, round: usize) {
        let Range { start, len } = self.caches();
        let half = len / 512 * 256;
        let places = (half / bytes.next_multiple_of(256)).max(1);
        let start = start + round as u64 % places * bytes.next_multiple_of(256);
        let (mut from, mut to, mut left) = (start, start + half, bytes);
        while left > 0 {
            let part = left.min(half);
            self.copy_once(from, to, part);
            (from, to, left) = (to, from, left - part);
        }
    }

    fn copy_once(&self, from: u64, to: u64, bytes: u64) {
        // SAFETY: both are inside the memory, and do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream.cu_stream()) }
            .expect("a sound copy");
    }

    /// Fills all memory with fresh random numbers between one half and one, of both signs.
    pub fn fill(&self, element: ElementType) {
        let (keep, set) = match element {
            ElementType::F32 => (0x807f_ffff, 0x3f00_0000),
            ElementType::F16 => (0x83ff_83ff, 0x3800_3800),
            ElementType::BF16 => (0x807f_807f, 0x3f00_3f00),
        };
        let chunks = self.memory.len / 16;
        let call = Fill {
            to: self.memory.start,
            chunks,
            seed: rand::random(),
            keep,
            set,
            unused: 0,
        };
        // SAFETY: it writes that memory, and nothing else.
        unsafe {
            self.launch(
                self.fill,
                chunks.div_ceil(THREADS.into()) as u32,
                THREADS,
                call,
            )
        };
    }

    /// Launches the smallest kernel there is, and has it do nothing: what any launch takes the host.
    pub fn bare_launch(&self) {
        let call = Fill {
            to: self.memory.start,
            chunks: 0,
            seed: 0,
            keep: 0,
            set: 0,
            unused: 0,
        };
        // SAFETY: it writes nothing.
        unsafe { self.launch(self.fill, 1, THREADS, call) };
    }

    /// Whether there is the peer of two rotations: it needs the instructions for bf16.
    pub fn has_two_turns(&self) -> bool {
        self.two_turns.is_some()
    }

    /// Launches that peer, on `tokens` tokens.
    ///
    /// # Safety
    /// What the call names is valid for that many.
    pub unsafe fn two_turns(&self, tokens: usize, call: TwoTurns) {
        let threads = THREADS.min(call.heads * call.pairs);
        let kernel = self.two_turns.expect("has_two_turns");
        // SAFETY: the caller answers for the memory.
        unsafe { self.launch(kernel, tokens as u32, threads, call) };
    }

    /// # Safety
    /// The kernel takes a `T`, and what it names is valid.
    unsafe fn launch<T>(&self, kernel: sys::CUfunction, blocks: u32, threads: u32, mut call: T) {
        let mut parameters = [(&raw mut call).cast::<c_void>()];
        let (grid, block) = ((blocks, 1, 1), (threads, 1, 1));
        let stream = self.stream.cu_stream();
        // SAFETY: passed on.
        unsafe { result::launch_kernel(kernel, grid, block, 0, stream, &mut parameters) }
            .expect("a sound launch");
    }

    /// Copies to the device, after all that has been asked of it before.
    pub fn upload<T: bytemuck::Pod>(&self, to: u64, items: &[T]) {
        // SAFETY: the caller took that many bytes from an arena; the copy is waited for.
        unsafe { result::memcpy_htod_async(to, items, self.stream.cu_stream()) }
            .expect("a sound copy");
        self.wait();
    }

    /// Copies from the device, after all that has been asked of it before.
    pub fn download(&self, from: u64, bytes: &mut [u8]) {
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }
            .expect("a sound copy");
        self.wait();
    }

    /// Waits for all that has been asked of the device.
    pub fn wait(&self) {
        self.stream.synchronize().expect("a device that lives");
    }

    /// Seconds that the device takes for each job, the median over rounds in which they take turns. Each finds the
    /// L2 filled with other things. Nothing is waited for before the end, so that the device never waits for the
    /// host. Jobs are told the number of the round.
    pub fn in_turns(&self, rounds: usize, jobs: &[&dyn Fn(usize)]) -> Vec<f64> {
        let mut marks: Vec<Vec<(CudaEvent, CudaEvent)>> = jobs.iter().map(|_| Vec::new()).collect();
        for round in 0..WARM_UP + rounds {
            for (job, marks) in jobs.iter().zip(&mut marks) {
                self.cool();
                let start = self.mark();
                job(round);
                marks.push((start, self.mark()));
            }
        }
        self.wait();
        let seconds = |(start, end): &(CudaEvent, CudaEvent)| {
            f64::from(start.elapsed_ms(end).expect("recorded")) * 1e-3
        };
        let counted = marks
            .iter()
            .map(|marks| marks[WARM_UP..].iter().map(seconds));
        counted.map(|times| median(times.collect())).collect()
    }

    fn mark(&self) -> CudaEvent {
        let context = self.stream.context();
        let event = context.new_event(Some(CU_EVENT_DEFAULT)).expect("an event");
        event.record(&self.stream).expect("a stream that lives");
        event
    }

    /// Keeps the device busy until its clocks are up.
    pub fn warm_up(&self) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            self.cool();
            self.wait();
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: allocated in `open`, and freed here alone. What a device that has failed says cannot be helped.
        let _ = unsafe { result::free_sync(self.memory.start) };
    }
}

/// A kernel of the benchmark's own. Its module stays loaded until the program ends.
fn function(ptx: &str, name: &str) -> Result<sys::CUfunction> {
    let (ptx, name) = (CString::new(ptx)?, CString::new(name)?);
    // SAFETY: PTX that ends in a NUL.
    let module = unsafe { result::module::load_data(ptx.as_ptr().cast()) }?;
    // SAFETY: it has just been loaded.
    Ok(unsafe { result::module::get_function(module, name) }?)
}

fn today() -> String {
    let output = Command::new("date").arg("+%Y-%m-%d %H:%M %z").output();
    output.map_or("unknown".into(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
