//! On a device, or the emulator (`scripts/emulator`); fails without one.

use std::ffi::c_void;

use pie_rope::cudarc::driver::{CudaContext, DevicePtrMut};

use super::*;

#[repr(C)]
struct CudaLayer {
    struct_size: usize,
    keys: u64,
    keys_len: usize,
    values: u64,
    values_len: usize,
}

#[repr(C)]
struct CudaCache {
    struct_size: usize,
    keys: *const CacheLayout,
    values: *const CacheLayout,
    layers: *const CudaLayer,
    layers_len: usize,
}

type InPlace =
    unsafe extern "C" fn(Handle, *mut c_void, Handle, *const CudaCache, u64, usize) -> i32;

unsafe extern "C" {
    fn pie_rope_layout_slots(
        element: i32,
        slots: usize,
        heads: usize,
        dim: usize,
        layout: *mut CacheLayout,
    ) -> i32;
    fn pie_rope_cuda_open(ordinal: usize, out: *mut Handle) -> i32;
    fn pie_rope_cuda_new_current(out: *mut Handle) -> i32;
    fn pie_rope_cuda_prepare(cuda: Handle, element: i32) -> i32;
    fn pie_rope_cuda_workspace_len(
        cuda: Handle,
        rotations: Handle,
        src: *const CudaCache,
        dst: *const CudaCache,
        len: *mut usize,
    ) -> i32;
    fn pie_rope_cuda_rotate(
        cuda: Handle,
        stream: *mut c_void,
        rotations: Handle,
        cache: *const CudaCache,
        workspace: u64,
        len: usize,
    ) -> i32;
    fn pie_rope_cuda_splice(
        cuda: Handle,
        stream: *mut c_void,
        rotations: Handle,
        cache: *const CudaCache,
        workspace: u64,
        len: usize,
    ) -> i32;
    fn pie_rope_cuda_copy(
        cuda: Handle,
        stream: *mut c_void,
        rotations: Handle,
        src: *const CudaCache,
        dst: *const CudaCache,
        workspace: u64,
        len: usize,
    ) -> i32;
    fn pie_rope_cuda_copy_within(
        cuda: Handle,
        stream: *mut c_void,
        rotations: Handle,
        cache: *const CudaCache,
        keys: *const CacheLayout,
        values: *const CacheLayout,
        workspace: u64,
        len: usize,
    ) -> i32;
    fn pie_rope_cuda_free(cuda: Handle);
}

const EMPTY: CacheLayout = CacheLayout {
    struct_size: size_of::<CacheLayout>(),
    rest: [0; 15],
};

/// One slot for each row, by a table.
fn slots(slots: usize, table: &[u32]) -> CacheLayout {
    let mut layout = EMPTY;
    // SAFETY: a local, of the size that it says.
    let status = unsafe { pie_rope_layout_slots(0, slots, 2, 8, &mut layout) };
    assert_eq!(status, OK);
    // Its last two members.
    layout.rest[13] = table.as_ptr() as usize;
    layout.rest[14] = table.len();
    layout
}

#[test]
fn kernels() {
    let context = CudaContext::new(0).expect("a device, or the emulator");
    context.bind_to_thread().unwrap();
    // SAFETY: of all, `out` is a place to write to, and each handle is freed once.
    unsafe {
        made("open", pie_rope_cuda_free, &|out| {
            pie_rope_cuda_open(0, out)
        });
        made("on a context", pie_rope_cuda_free, &|out| {
            pie_rope_cuda_new_current(out)
        });
        for element in 0..3 {
            made("kernels of an element type", pie_rope_cuda_free, &|out| {
                let status = pie_rope_cuda_open(0, out);
                if status != OK {
                    return status;
                }
                let status = pie_rope_cuda_prepare(*out, element);
                if status != OK {
                    pie_rope_cuda_free(*out);
                    *out = null_mut();
                }
                status
            });
        }
    }
}

#[test]
fn verbs() {
    let context = CudaContext::new(0).expect("a device, or the emulator");
    context.bind_to_thread().unwrap();
    let stream = context.default_stream();
    let edits = edits(2000);
    // Many spans in few layers, with a block table as well; and few spans of many layers.
    for (layers, spans) in [(2, 2000), (2000, 1)] {
        let few = Edit {
            struct_size: size_of::<Edit>(),
            start: 1,
            end: 1,
            inserted: 1,
        };
        let (old, new, edits) = match spans {
            1 => (3, 4, std::slice::from_ref(&few)),
            _ => (8000, 9999, &edits[..]),
        };
        let table: Vec<u32> = (0..new as u32).rev().collect();
        let other: Vec<u32> = (new as u32..2 * new as u32).collect();
        let len = 2 * new * 2 * 8;
        let mut memory = stream.alloc_zeros::<f32>(4 * layers * len).unwrap();
        let (address, _) = memory.device_ptr_mut(&stream);
        let cache = |first: usize| -> Vec<CudaLayer> {
            let at = |buffer: usize| address + (4 * len * (first + buffer)) as u64;
            let layer = |layer: usize| CudaLayer {
                struct_size: size_of::<CudaLayer>(),
                keys: at(2 * layer),
                keys_len: len,
                values: at(2 * layer + 1),
                values_len: len,
            };
            (0..layers).map(layer).collect()
        };
        let (one, two) = (cache(0), cache(2 * layers));
        // SAFETY: of all, this test made arrays, handles and buffers, of the lengths that it gives, and frees each once.
        unsafe {
            let cuda = make(|out| pie_rope_cuda_open(0, out));
            let rope = make(|out| pie_rope_rope_from_theta(1e4, 8, 0, 0, layers, out));
            let plan =
                make(|out| pie_rope_plan_from_edits(0, old, edits.as_ptr(), edits.len(), out));
            let rotations = make(|out| pie_rope_rotations_new(plan, rope, out));
            let mut rows = EMPTY;
            assert_eq!(pie_rope_layout_bhsd(0, 1, 2, new, 8, &mut rows), OK);
            let [here, there] = [&table, &other].map(|table| slots(2 * new, table));
            for (name, layout) in [("rows", &rows), ("slots", &here)] {
                let cache = |layers: &[CudaLayer]| CudaCache {
                    struct_size: size_of::<CudaCache>(),
                    keys: layout,
                    values: layout,
                    layers: layers.as_ptr(),
                    layers_len: layers.len(),
                };
                let (one, two) = (cache(&one), cache(&two));
                // A backend keeps the memory in which it puts a call together: a new one each time.
                let verb = |verb: &str, call: &dyn Fn(Handle) -> i32| {
                    let name = format!("{verb}, {name}, {spans} spans, {layers} layers");
                    run(&name, &|| {
                        let mut cuda = null_mut();
                        let opened = pie_rope_cuda_open(0, &mut cuda);
                        let status = if opened == OK { call(cuda) } else { opened };
                        pie_rope_cuda_free(cuda);
                        status
                    });
                };
                verb("workspace", &|cuda| {
                    pie_rope_cuda_workspace_len(cuda, rotations, &one, &two, &mut 0)
                });
                let mut words = 0;
                let status = pie_rope_cuda_workspace_len(cuda, rotations, &one, &two, &mut words);
                assert_eq!(status, OK);
                let mut workspace = stream.alloc_zeros::<u8>(words.max(16)).unwrap();
                let (space, _) = workspace.device_ptr_mut(&stream);
                let in_place: [(&str, InPlace); 2] = [
                    ("rotate", pie_rope_cuda_rotate),
                    ("splice", pie_rope_cuda_splice),
                ];
                for (name, call) in in_place {
                    verb(name, &|cuda| {
                        call(cuda, null_mut(), rotations, &one, space, words)
                    });
                }
                verb("copy", &|cuda| {
                    pie_rope_cuda_copy(cuda, null_mut(), rotations, &one, &two, space, words)
                });
                if name == "slots" {
                    verb("copy within", &|cuda| {
                        let null = null_mut();
                        pie_rope_cuda_copy_within(
                            cuda, null, rotations, &one, &there, &there, space, words,
                        )
                    });
                }
            }
            pie_rope_rotations_free(rotations);
            pie_rope_plan_free(plan);
            pie_rope_rope_free(rope);
            pie_rope_cuda_free(cuda);
        }
        stream.synchronize().unwrap();
    }
}
