"""The work of scripts/ptx: kernels through NVRTC, and its output without what nobody reads."""

import ctypes
import difflib
import pathlib
import re
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
PTX = KERNELS / "ptx"
PEERS = ROOT / "benches/peers"
FOLDERS = [PTX, PEERS / "ptx"]

# file: (source, stored type, compute capability). bf16 has an instruction of its own from 8.0 on.
IMAGES = {
    f"{verb}_{element}": (verb, element, 75)
    for verb in ("rotate", "splice")
    for element in ("f32", "f16", "bf16")
}
IMAGES |= {f"{verb}_bf16_sm80": (verb, "bf16", 80) for verb in ("rotate", "splice")}
IMAGES |= {"upload": ("upload", None, 75)}
# What the benchmark runs beside them: file and compute capability.
PEER_IMAGES = {"fill": 75, "two_turns": 80}


def nvrtc():
    packages = pathlib.Path(sysconfig.get_path("purelib"))
    library = ctypes.CDLL(str(packages / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def compile(library, kernels, source, capability, element):
    """What NVRTC makes of a file of a folder of kernels."""

    def text(size_of, get):
        size = ctypes.c_size_t()
        size_of(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        get(program, buffer)
        return buffer.value.decode()

    program = ctypes.c_void_p()
    # Neither the name nor the headers' folder reach the output.
    library.nvrtcCreateProgram(
        ctypes.byref(program), (kernels / source).read_bytes(), source.encode(), 0, None, None
    )
    options = [f"--include-path={kernels}", "--std=c++17", f"--gpu-architecture=compute_{capability}"]
    options += [f"--define-macro=ELEMENT={element.upper()}"] if element else []
    status = library.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
    )
    log = text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog).strip()
    # A warning is an error: nobody would see it.
    if status != 0 or log:
        sys.exit(f"{source}: {library.nvrtcGetErrorString(status).decode()}\n{log}")
    return text(library.nvrtcGetPTXSize, library.nvrtcGetPTX)


def tidied(ptx):
    """Without comments and blank lines, and without the constants of the sources, which the code has by value."""
    lines = [re.sub(r"//.*", "", line).rstrip() for line in ptx.splitlines()]
    lines = [line for line in lines if line]
    words = {}
    for line in lines:
        for word in set(re.findall(r"[\w$]+", line)):
            words[word] = words.get(word, 0) + 1
    constant = re.compile(r"\.global .*?(\w+)(\[\d+\])?( = .*)?;$")
    kept = [line for line in lines if not ((name := constant.match(line)) and words[name[1]] == 1)]
    return "\n".join(kept) + "\n"


def generated():
    library = nvrtc()
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    files = {}

    def add(folder, name, source, capability, element):
        ptx = tidied(compile(library, KERNELS, source, capability, element))
        what = str((KERNELS / source).resolve().relative_to(ROOT)) + (f" for {element}" if element else "")
        head = f"// Generated from {what} by scripts/ptx (NVRTC {major.value}.{minor.value}). Not to be edited.\n"
        files[folder / f"{name}.ptx"] = head + ptx

    for name, (verb, element, capability) in IMAGES.items():
        add(PTX, name, f"{verb}.cu", capability, element)
    for name, capability in PEER_IMAGES.items():
        add(PEERS / "ptx", name, f"../benches/peers/{name}.cu", capability, None)
    return files


def committed():
    return {path: path.read_text() for folder in FOLDERS if folder.exists() for path in folder.iterdir()}


def check(files):
    old = committed()
    stale = sorted(path for path in files | old if files.get(path) != old.get(path))
    for path in stale:
        difference = difflib.unified_diff(
            old.get(path, "").splitlines(),
            files.get(path, "").splitlines(),
            f"{path.relative_to(ROOT)}, as it is",
            f"{path.relative_to(ROOT)}, as the kernels compile",
            n=1,
            lineterm="",
        )
        print(*list(difference)[:12], "...", sep="\n")
    if stale:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"out of date: {names}: run scripts/ptx and commit what it writes")
    print(f"PTX: {len(files)} files, up to date")


def write(files):
    for path in committed().keys() - files.keys():
        path.unlink()
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    print(f"PTX: {len(files)} files, {sum(map(len, files.values())) // 1024} KiB")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit("usage: scripts/ptx [--check]")
    (check if sys.argv[1:] else write)(generated())
