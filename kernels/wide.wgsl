// How a kernel touches memory, first of three: 16 bytes at a time.
//
// For caches whose offsets, strides and windows are multiples of 16 bytes. `LANES` words of 32 bits are read,
// computed on and written together; each is owned by one invocation.

alias Words = vec4<u32>;
alias Floats = vec4<f32>;
const LANES = 4u;

@group(0) @binding(0) var<storage, read_write> dst: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> src: array<vec4<u32>>;

fn load(element: u32) -> Words {
    if WITHIN {
        return dst[element / CHUNK];
    }
    return src[element / CHUNK];
}

fn store(element: u32, words: Words) {
    dst[element / CHUNK] = words;
}

// `LANES` floats of the table, `step` apart.
fn table_floats(at: u32, step: u32) -> Floats {
    return vec4(cos_sin[at], cos_sin[at + step], cos_sin[at + 2u * step], cos_sin[at + 3u * step]);
}

fn native_unpack_f16(words: Words) -> Numbers {
    let x = unpack2x16float(words.x);
    let y = unpack2x16float(words.y);
    let z = unpack2x16float(words.z);
    let w = unpack2x16float(words.w);
    return Numbers(vec4(x.x, y.x, z.x, w.x), vec4(x.y, y.y, z.y, w.y));
}

fn native_pack_f16(numbers: Numbers) -> Words {
    return vec4(
        pack2x16float(vec2(numbers.even.x, numbers.odd.x)),
        pack2x16float(vec2(numbers.even.y, numbers.odd.y)),
        pack2x16float(vec2(numbers.even.z, numbers.odd.z)),
        pack2x16float(vec2(numbers.even.w, numbers.odd.w)),
    );
}

// Interleaved pairs of f32: two in four words.
fn unpack_f32_pairs(words: Words) -> Numbers {
    let numbers = bitcast<vec4<f32>>(words);
    return Numbers(vec4(numbers.xz, 0.0, 0.0), vec4(numbers.yw, 0.0, 0.0));
}

fn pack_f32_pairs(numbers: Numbers) -> Words {
    return bitcast<vec4<u32>>(vec4(numbers.even.x, numbers.odd.x, numbers.even.y, numbers.odd.y));
}
