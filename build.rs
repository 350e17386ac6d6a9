//! Machine code of the CUDA kernels, if it is asked for; and whether the CPU kernels are optimised.
//!
//! `unoptimised` is set at `opt-level = 0`, where nothing may be inlined by force: `src/cpu/arch/generic.rs` says why.
//!
//! By default there is no machine code: the PTX under `kernels/ptx` is embedded, and the driver compiles it when a
//! kernel is first needed. `PIE_ROPE_CUDA_ARCHS=90,100` saves those milliseconds on these architectures: `ptxas`, of
//! the toolkit at `CUDA_HOME` or `CUDA_PATH` or else on the `PATH`, compiles the PTX to cubins here. `cubins.rs` has
//! them as `CUBINS`: the kernels' file, the architecture, the image.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ARCHS: &str = "PIE_ROPE_CUDA_ARCHS";
const TOOLKITS: [&str; 2] = ["CUDA_HOME", "CUDA_PATH"];
const PTX: &str = "kernels/ptx";
/// The first architecture that `FILE_sm80.ptx` is for, instead of `FILE.ptx`.
const NEWER: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={ARCHS}");
    println!("cargo::rustc-check-cfg=cfg(unoptimised)");
    if variable("OPT_LEVEL").is_some_and(|level| level == "0") {
        println!("cargo::rustc-cfg=unoptimised");
    }
    if let Err(error) = generate() {
        println!("cargo::error={error}");
    }
}

fn generate() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR").ok_or("no OUT_DIR: this is for cargo to run")?);
    let archs = match variable(ARCHS) {
        Some(archs) if env::var_os("CARGO_FEATURE_CUDA").is_some() => parse(&archs)?,
        _ => Vec::new(),
    };
    let mut table = String::new();
    if !archs.is_empty() {
        println!("cargo::rerun-if-changed={PTX}");
        let ptxas = ptxas()?;
        for arch in archs {
            for (name, ptx) in sources(arch)? {
                let cubin = out.join(format!("{name}.sm_{arch}.cubin"));
                compile(&ptxas, &ptx, arch, &cubin)?;
                let entry = format!("({name:?}, {arch}, &Aligned(*include_bytes!({cubin:?})).0),");
                writeln!(table, "    {entry}").expect("strings take everything");
            }
        }
    }
    // The driver reads a cubin as the ELF file that it is, whose tables are aligned.
    let aligned = "#[repr(align(16))]\nstruct Aligned<T>(T);\n";
    let aligned = if table.is_empty() { "" } else { aligned };
    let text = format!("{aligned}static CUBINS: &[(&str, u32, &[u8])] = &[\n{table}];\n");
    write(&out.join("cubins.rs"), &text)
}

/// `90,100`, of what the kernels' PTX can become.
fn parse(archs: &str) -> Result<Vec<u32>, String> {
    let one = |text: &str| match text.trim().parse() {
        Ok(arch) if arch >= 75 => Ok(arch),
        _ => Err(format!(
            "{ARCHS}={archs}: {text:?} is no architecture from 75 on; it takes a list such as 90,100"
        )),
    };
    archs.split(',').map(one).collect()
}

/// Each file's name and the PTX of it that serves an architecture best.
fn sources(arch: u32) -> Result<Vec<(String, PathBuf)>, String> {
    let newer = |name: &str| Path::new(PTX).join(format!("{name}_sm{NEWER}.ptx"));
    let mut sources = Vec::new();
    for entry in fs::read_dir(PTX).map_err(|error| format!("{PTX}: {error}"))? {
        let path = entry.map_err(|error| format!("{PTX}: {error}"))?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
            continue;
        };
        let is_ptx = path.extension().is_some_and(|extension| extension == "ptx");
        if !is_ptx || name.ends_with(&format!("_sm{NEWER}")) {
            continue;
        }
        let ptx = Some(newer(name)).filter(|newer| arch >= NEWER && newer.exists());
        sources.push((name.to_owned(), ptx.unwrap_or_else(|| path.clone())));
    }
    sources.sort();
    Ok(sources)
}

/// The toolkit's assembler.
fn ptxas() -> Result<PathBuf, String> {
    let name = format!("ptxas{}", env::consts::EXE_SUFFIX);
    for toolkit in TOOLKITS {
        println!("cargo::rerun-if-env-changed={toolkit}");
        if let Some(folder) = variable(toolkit) {
            let ptxas = Path::new(&folder).join("bin").join(&name);
            return if ptxas.is_file() {
                Ok(ptxas)
            } else {
                Err(format!(
                    "{ARCHS} is set, so kernels are to be compiled, but {toolkit}={folder} has no bin/{name}"
                ))
            };
        }
    }
    println!("cargo::rerun-if-env-changed=PATH");
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(&name))
        .find(|ptxas| ptxas.is_file())
        .ok_or_else(|| {
            format!(
                "{ARCHS} is set, so kernels are to be compiled, but there is no {name} on the PATH: set CUDA_HOME to \
                 the folder of a CUDA toolkit, or unset {ARCHS}; the driver compiles the kernels then"
            )
        })
}

fn compile(ptxas: &Path, ptx: &Path, arch: u32, cubin: &Path) -> Result<(), String> {
    let output = Command::new(ptxas)
        .arg(format!("--gpu-name=sm_{arch}"))
        .arg(ptx)
        .arg("--output-file")
        .arg(cubin)
        .output()
        .map_err(|error| format!("{}: {error}", ptxas.display()))?;
    if output.status.success() {
        return Ok(());
    }
    // One line: cargo takes no more of it.
    let said = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
    Err(format!(
        "{} for sm_{arch}: {} says: {}",
        ptx.display(),
        ptxas.display(),
        said.trim_end_matches([';', ' '])
    ))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
