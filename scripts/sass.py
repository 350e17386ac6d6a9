"""The work of scripts/sass: ptxas, nvdisasm, and rules for what they print."""

import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import ptx

NVIDIA = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia"
PTXAS = NVIDIA / "cu13/bin/ptxas"
NVDISASM = NVIDIA / "cu13/bin/nvdisasm"
OLD_PTXAS = NVIDIA / "cuda_nvcc/bin/ptxas"

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
OLD_ARCHITECTURES = (75, 80, 86, 89, 90)
# Two blocks of 256 threads on a multiprocessor of 65 536 registers.
REGISTERS = 128


@dataclasses.dataclass
class Instruction:
    address: int
    # `@P0 LDG.E.128 R4, desc[UR4][R8.64]`, and its parts.
    text: str
    name: str
    # The counter that a load raises and lowers when it is done, or None; those that this instruction waits for.
    counter: int | None
    waits: set


@dataclasses.dataclass
class Kernel:
    name: str
    registers: int
    stack: int
    spills: int
    instructions: list = dataclasses.field(default_factory=list)
    # Where labels are.
    labels: dict = dataclasses.field(default_factory=dict)


def assembled(ptxas, image, architecture, cubin):
    """ptxas's report: kernel → (registers, bytes of stack, bytes of spills)."""
    done = subprocess.run(
        [ptxas, "--verbose", f"--gpu-name=sm_{architecture}", image, "--output-file", cubin],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{image.name}, sm_{architecture}: {ptxas} says\n{done.stdout}{done.stderr}")
    report = re.findall(
        r"Function properties for (\w+)\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*?Used (\d+) registers",
        done.stdout + done.stderr,
    )
    return {name: (int(used), int(stack), int(out) + int(back)) for name, stack, out, back, used in report}


def disassembled(cubin, report):
    """The kernels of a cubin. Instructions are 128 bits since Volta; bits 105 to 125 say what each waits for."""
    listing = subprocess.run([NVDISASM, "-c", "-hex", cubin], capture_output=True, text=True, check=True).stdout
    kernels = []
    for line in listing.splitlines():
        if section := re.match(r"\.text\.(\w+):", line):
            kernels.append(Kernel(section[1], *report[section[1]]))
            unplaced = []
        elif label := re.match(r"(\.L\w+):", line):
            unplaced.append(label[1])
        elif code := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/", line):
            address, text = int(code[1], 16), code[2]
            name = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]
            kernels[-1].instructions.append(Instruction(address, text, name, None, set()))
            kernels[-1].labels |= dict.fromkeys(unplaced, address)
            unplaced = []
        elif control := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line):
            bits = int(control[1], 16) >> 41
            last = kernels[-1].instructions[-1]
            last.counter = None if bits >> 5 & 7 == 7 else bits >> 5 & 7
            last.waits = {i for i in range(6) if bits >> 11 + i & 1}
    return kernels


def loops(kernel):
    """The instructions of every loop: from where a branch goes back to, to the branch."""
    for instruction in kernel.instructions:
        if instruction.name == "BRA" and (label := re.search(r"`\((\.L\w+)\)", instruction.text)):
            start = kernel.labels[label[1]]
            if start <= instruction.address:
                yield [i for i in kernel.instructions if start <= i.address <= instruction.address]


def named(instructions, pattern):
    return [i for i in instructions if re.match(pattern, i.name)]


def faults(kernel, verb, element, architecture):
    """What is wrong with a kernel."""
    everything = kernel.instructions
    if kernel.spills or kernel.stack or named(everything, r"LDL|STL"):
        yield f"local memory: {kernel.stack} bytes of stack, {kernel.spills} of spills"
    if kernel.registers > REGISTERS:
        yield f"{kernel.registers} registers"
    # What calls, comes back. (A CALL alone is how some architectures leave a loop.)
    if slow := named(everything, r"MUFU\.(SIN|COS)|RET|DADD|DMUL|DFMA"):
        yield f"never: {slow[0].text}"
    # One between a tile's loads and its stores, for wide chunks and for narrow ones; none where nobody waits.
    barriers, expected = len(named(everything, "BAR")), 2 if verb == "splice" else 0
    if barriers != expected:
        yield f"{barriers} barriers, {expected} expected"
    if verb == "upload":
        return

    # The row loop is the smallest that has all 128-bit accesses. Two for each row in flight.
    depth = int(re.search(r"constexpr int DEPTH = (\d+);", (ptx.KERNELS / f"{verb}.cu").read_text())[1])
    wide = r"(LDG|STG)\.E\.128"
    bodies = [body for body in loops(kernel) if len(named(body, wide)) == 4 * depth]
    loads, stores = named(everything, r"LDG\.E\.128"), named(everything, r"STG\.E\.128")
    if (len(loads), len(stores)) != (2 * depth, 2 * depth) or not bodies:
        yield f"{len(loads)} wide loads and {len(stores)} wide stores, not {2 * depth} each in one loop"
        return
    body = min(bodies, key=len)
    together = [i for i in body if loads[0].address <= i.address <= loads[-1].address]
    counters = {load.counter for load in loads}
    if None in counters:
        yield "a load without a counter: instructions are not read right"
    for instruction in together:
        if instruction.waits & counters or instruction.name.startswith("STG"):
            yield f"between the first wide load and the last: {instruction.text}"
            break
    # The table's 128-bit loads are generic ones, and come after.
    if slow := named(body, r"MUFU|I2F|F2I"):
        yield f"in the row loop: {slow[0].text}"
    # Packed conversions round two numbers at once: one for each 32 bits that are stored.
    if element == "f16" and architecture >= 80 or "sm80" in element:
        packed = named(body, r"F2FP")
        if len(packed) != 8 * depth or named(body, r"F2F\."):
            yield f"{len(packed)} packed conversions, not {8 * depth}"


def check(image, verb, element, architecture, folder):
    """Compiles one file for one architecture: its kernels, and what is wrong with them."""
    cubin = folder / "cubin"
    kernels = disassembled(cubin, assembled(PTXAS, image, architecture, cubin))
    return [(kernel, list(faults(kernel, verb, element, architecture))) for kernel in kernels]


# What must be said of a kernel when a file is broken so: (file, what is there, what is planted).
LOAD = "ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
SPLIT = "ld.global.u32 %0, [%4]; ld.global.u32 %1, [%4+4]; ld.global.u32 %2, [%4+8]; ld.global.u32 %3, [%4+12];"
PLANTED = {
    "local memory": ("rotate.cu", "#pragma unroll\n", "#pragma unroll 1\n"),
    "0 wide loads": ("device.cuh", LOAD, SPLIT),
    "between the first wide load and the last": ("device.cuh", LOAD, LOAD + " st.global.u32 [%4], %0;"),
    "in the row loop": ("rows.cuh", "(multiply_high(row, side.magic) + row) >> side.shift", "row / side.block_rows"),
    "packed conversions": ("numbers.cuh", "to_f16_pair(numbers[2 * i], numbers[2 * i + 1])", "to_f16(numbers[2 * i])"),
}


def self_test(folder):
    """Each rule can fail."""
    library = ptx.nvrtc()
    for expected, (file, old, new) in PLANTED.items():
        kernels = folder / "planted"
        shutil.copytree(ptx.KERNELS, kernels, ignore=shutil.ignore_patterns("ptx"))
        text = (kernels / file).read_text()
        if old not in text:
            sys.exit(f"nowhere to plant a fault in {file}: {old}")
        (kernels / file).write_text(text.replace(old, new))
        image = folder / "planted.ptx"
        image.write_text(ptx.compile(library, kernels, "rotate.cu", 75, "f16"))
        shutil.rmtree(kernels)
        for kernel, found in check(image, "rotate", "f16", 90, folder):
            if not any(expected in fault for fault in found):
                sys.exit(f"{kernel.name} with a planted fault passes ({expected}); found: {found}")
        print(f"planted and found: {found[0]}")


def main():
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        print("kernel                sm registers spills wide loads wide stores instructions")
        for name, (verb, element, capability) in ptx.IMAGES.items():
            image = ptx.PTX / f"{name}.ptx"
            which = "sm80" if name.endswith("sm80") else element
            for architecture in (a for a in ARCHITECTURES if a >= capability):
                for kernel, found in check(image, verb, which, architecture, folder):
                    loads, stores = (named(kernel.instructions, rf"{op}\.E\.128") for op in ("LDG", "STG"))
                    print(
                        f"{kernel.name:<20} {architecture:>3} {kernel.registers:>9} {kernel.spills:>6} "
                        f"{len(loads):>10} {len(stores):>11} {len(kernel.instructions):>12}"
                    )
                    for fault in found:
                        failed = True
                        print(f"    FAULT {fault}")
            for architecture in (a for a in OLD_ARCHITECTURES if a >= capability):
                report = assembled(OLD_PTXAS, image, architecture, folder / "cubin")
                for kernel, (registers, stack, spills) in report.items():
                    if stack or spills or registers > REGISTERS:
                        failed = True
                        print(f"    FAULT by the oldest ptxas, sm_{architecture}: {kernel}: {registers} registers, {spills} spills")
        print("the oldest ptxas takes the same PTX for", *(f"sm_{a}" for a in OLD_ARCHITECTURES))
        self_test(folder)
    if failed:
        sys.exit("machine code is not what it must be: see FAULT above")


if __name__ == "__main__":
    main()
