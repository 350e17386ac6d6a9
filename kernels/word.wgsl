// How a kernel touches memory, second of three: 4 bytes at a time.
//
// For caches of f32, and those of 16-bit types whose offsets, strides and windows are even. Each word is owned
// by one invocation.

alias Words = u32;
alias Floats = f32;
const LANES = 1u;

@group(0) @binding(0) var<storage, read_write> dst: array<u32>;
@group(0) @binding(1) var<storage, read_write> src: array<u32>;

fn load(element: u32) -> Words {
    if WITHIN {
        return dst[element / CHUNK];
    }
    return src[element / CHUNK];
}

fn store(element: u32, words: Words) {
    dst[element / CHUNK] = words;
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

// A word holds no pair of f32: interleaved pairs of them are two words, see `Job.partner`.
fn unpack_f32_pairs(words: Words) -> Numbers {
    return Numbers(bitcast<f32>(words), 0.0);
}

fn pack_f32_pairs(numbers: Numbers) -> Words {
    return bitcast<u32>(numbers.even);
}
