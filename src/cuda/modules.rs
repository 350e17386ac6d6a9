//! Kernels from their PTX, each file loaded once, when its first kernel is needed.

use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use crate::{ElementType, Error, Result};

// Machine code for the architectures that `PIE_ROPE_CUDA_ARCHS` named at build time: `CUBINS`.
include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// What a kernel does with rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// `kernels/rotate.cu`: in any order.
    Rotate,
    /// `kernels/splice.cu`: in the order of an overlap-safe move.
    Splice,
}

impl Verb {
    const ALL: [Verb; 2] = [Verb::Rotate, Verb::Splice];
}

/// A file's PTX: for compute capability 7.5 and later, and for 8.0 and later where that is another.
struct Source {
    name: &'static str,
    ptx: &'static str,
    ptx_80: Option<&'static str>,
}

macro_rules! ptx {
    ($file:literal) => {
        concat!(
            include_str!(concat!("../../kernels/ptx/", $file, ".ptx")),
            "\0"
        )
    };
}

/// By verb, then by element.
static SOURCES: [Source; 7] = [
    Source {
        name: "rotate_f32",
        ptx: ptx!("rotate_f32"),
        ptx_80: None,
    },
    Source {
        name: "rotate_f16",
        ptx: ptx!("rotate_f16"),
        ptx_80: None,
    },
    Source {
        name: "rotate_bf16",
        ptx: ptx!("rotate_bf16"),
        ptx_80: Some(ptx!("rotate_bf16_sm80")),
    },
    Source {
        name: "splice_f32",
        ptx: ptx!("splice_f32"),
        ptx_80: None,
    },
    Source {
        name: "splice_f16",
        ptx: ptx!("splice_f16"),
        ptx_80: None,
    },
    Source {
        name: "splice_bf16",
        ptx: ptx!("splice_bf16"),
        ptx_80: Some(ptx!("splice_bf16_sm80")),
    },
    Source {
        name: "upload",
        ptx: ptx!("upload"),
        ptx_80: None,
    },
];

const UPLOAD: usize = SOURCES.len() - 1;

/// Where a verb's file for an element is among them.
fn index(verb: Verb, element: ElementType) -> usize {
    let element = match element {
        ElementType::F32 => 0,
        ElementType::F16 => 1,
        ElementType::BF16 => 2,
    };
    3 * verb as usize + element
}

/// A kernel, ready to be launched in the context that it was loaded in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: a handle, which the driver lets every thread use.
unsafe impl Send for Function {}

/// A loaded file: its kernels for small and for large parameters, or the upload's, twice.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    module: sys::CUmodule,
    small: Function,
    large: Function,
}

// SAFETY: as for `Function`.
unsafe impl Send for Loaded {}

/// The files that have been loaded into one context.
#[derive(Debug)]
pub(super) struct Modules {
    /// Compute capability, as 90 for 9.0.
    capability: u32,
    loaded: Mutex<Box<[Option<Loaded>; SOURCES.len()]>>,
}

impl Modules {
    pub(super) fn new(capability: u32) -> Modules {
        Modules {
            capability,
            loaded: Mutex::default(),
        }
    }

    /// The kernel of a verb, for a call whose words fit small parameters, or large ones. The context is current.
    pub(super) fn kernel(&self, verb: Verb, element: ElementType, small: bool) -> Result<Function> {
        let loaded = self.load(index(verb, element))?;
        Ok(if small { loaded.small } else { loaded.large })
    }

    /// The kernel that fills a workspace. The context is current.
    pub(super) fn upload(&self) -> Result<Function> {
        Ok(self.load(UPLOAD)?.large)
    }

    /// Loads everything that calls on this type may need. The context is current.
    pub(super) fn prepare(&self, element: ElementType) -> Result<()> {
        self.load(UPLOAD)?;
        Verb::ALL
            .into_iter()
            .try_for_each(|verb| self.load(index(verb, element)).map(drop))
    }

    fn load(&self, index: usize) -> Result<Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = loaded[index] {
            return Ok(loaded);
        }
        let source = &SOURCES[index];
        let image = image(source, self.capability);
        // SAFETY: PTX that ends in a NUL, or a whole cubin; the driver copies what it needs of either.
        let module = unsafe { result::module::load_data(image.cast()) }?;
        let find = |size: &str| -> Result<Function> {
            let name = match index {
                UPLOAD => source.name.to_owned(),
                _ => format!("{}_{size}", source.name),
            };
            let name = CString::new(name).expect("no NUL inside");
            // SAFETY: the module has just been loaded.
            Ok(Function(unsafe {
                result::module::get_function(module, name)
            }?))
        };
        let found = find("small").and_then(|small| Ok((small, find("large")?)));
        let (small, large) = found.inspect_err(|_| {
            // SAFETY: as above; nobody else has it.
            let _ = unsafe { result::module::unload(module) };
        })?;
        Ok(*loaded[index].insert(Loaded {
            module,
            small,
            large,
        }))
    }

    /// Unloads everything.
    ///
    /// # Safety
    /// The context is current, and no kernel of it is going to be launched again.
    pub(super) unsafe fn unload(&mut self) {
        let loaded = self
            .loaded
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for loaded in loaded.iter_mut().filter_map(Option::take) {
            // SAFETY: loaded once, and taken out here. A context that has failed says so; there is nothing to do
            // about it then.
            let _ = unsafe { result::module::unload(loaded.module) };
        }
    }
}

/// Machine code of the same major version and no later minor one, else the PTX, which the driver compiles.
fn image(source: &Source, capability: u32) -> *const c_void {
    let fits = |arch: u32| arch / 10 == capability / 10 && arch <= capability;
    let cubins = CUBINS
        .iter()
        .filter(|(name, arch, _)| *name == source.name && fits(*arch));
    if let Some((_, _, cubin)) = cubins.max_by_key(|(_, arch, _)| arch) {
        return cubin.as_ptr().cast();
    }
    let newer = source.ptx_80.filter(|_| capability >= 80);
    let ptx = newer.unwrap_or(source.ptx).as_bytes();
    CStr::from_bytes_with_nul(ptx)
        .expect("PTX without a NUL")
        .as_ptr()
        .cast()
}

/// Refuses devices that the kernels were not made for.
pub(super) fn check_capability(capability: u32) -> Result<()> {
    if capability < 75 {
        return Err(Error::Limit(format!(
            "compute capability {}.{}, the kernels need 7.5",
            capability / 10,
            capability % 10
        )));
    }
    Ok(())
}
