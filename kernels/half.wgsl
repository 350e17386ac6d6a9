// How a kernel touches memory, third of three: one 16-bit element at a time.
//
// For what the other two cannot do: odd offsets or strides, source and destination a half-word apart, and the
// values of x-packed pages, where the two halves of a word belong to two rows. Two invocations may then own a
// half of one word each, so each changes its own half by an exclusive or with the difference: one atomic
// operation, that leaves the other half to its owner whoever comes first.

alias Words = u32;
alias Floats = f32;
const LANES = 1u;

@group(0) @binding(0) var<storage, read_write> dst: array<atomic<u32>>;
@group(0) @binding(1) var<storage, read_write> src: array<atomic<u32>>;

// The element in the lower half, zero above.
fn load(element: u32) -> Words {
    let shift = 16u * (element % 2u);
    if WITHIN {
        return (atomicLoad(&dst[element / 2u]) >> shift) & 0xffffu;
    }
    return (atomicLoad(&src[element / 2u]) >> shift) & 0xffffu;
}

fn store(element: u32, words: Words) {
    let shift = 16u * (element % 2u);
    // Nobody else changes this half, so what is read here still holds when the difference is applied.
    let before = (atomicLoad(&dst[element / 2u]) >> shift) & 0xffffu;
    atomicXor(&dst[element / 2u], (before ^ (words & 0xffffu)) << shift);
}

fn table_floats(at: u32, step: u32) -> Floats {
    return cos_sin[at];
}

fn native_unpack_f16(words: Words) -> Numbers {
    let both = unpack2x16float(words);
    return Numbers(both.x, both.y);
}

fn native_pack_f16(numbers: Numbers) -> Words {
    return pack2x16float(vec2(numbers.even, numbers.odd));
}

// There is no f32 here.
fn unpack_f32_pairs(words: Words) -> Numbers {
    return Numbers(0.0, 0.0);
}

fn pack_f32_pairs(numbers: Numbers) -> Words {
    return 0u;
}
