// From words to numbers, a rotation, and back: the arithmetic of every kernel.
//
// 16-bit types lie two to a word: `even` holds the lower halves, `odd` the upper ones. In f32 there is only
// `even`. Every output is one f32 product and one fused multiply-add on the table's values, rounded once, to
// nearest even, to the stored type.

const F32 = 0u;
const F16 = 1u;
const BF16 = 2u;

// The stored type.
override ELEMENT: u32;
// Elements that one access takes: 4 or 8 (wide), 1 or 2 (word), 1 (half).
override CHUNK: u32;

// How the pairs lie that this dispatch turns. A kernel is made for one way, as the other would take its registers
// too.
const NO_PAIRS = 0u;
// Their halves are in two chunks.
const APART = 1u;
// Side by side in one chunk.
const INSIDE = 2u;
override PAIRS: u32;

struct Numbers {
    even: Floats,
    odd: Floats,
}

// Whether this device converts f16 as IEEE 754 says: to nearest even, subnormals kept, what is too large to
// infinity, infinity and NaN to themselves. WGSL promises none of that of `pack2x16float`. The numbers come from
// outside so that no compiler folds them away. They are the same for all invocations, so a GPU looks at them once
// for many; asking once for all would mean to wait for the answer, which no verb does and no browser can.
var<private> native_f16: bool;

fn probe_f16() {
    // Two ties, of which one goes down and one up; a subnormal and the least number that is too large.
    let ties = pack2x16float(call.probe.xy);
    let ends = pack2x16float(call.probe.zw);
    // Minus infinity and NaN; more than half of the least subnormal and the largest number that is not too large,
    // which differ from a tie in their last bit.
    let extremes = pack2x16float(call.extremes.xy);
    let near = pack2x16float(call.extremes.zw);
    // The same subnormal and minus infinity back, and NaN.
    let back = bitcast<vec2<u32>>(unpack2x16float(call.halves.x));
    let nan = bitcast<u32>(unpack2x16float(call.halves.y).x);
    native_f16 = ties == 0x3c023c00u && ends == 0x7c000003u && near == 0x7bff0001u
        && (extremes & 0xffffu) == 0xfc00u && (extremes & 0x7fff0000u) > 0x7c000000u
        && back.x == bitcast<u32>(call.probe.z) && back.y == 0xff800000u
        && (nan & 0x7fffffffu) > 0x7f800000u;
}

fn unpack(words: Words) -> Numbers {
    if ELEMENT == F32 {
        return Numbers(bitcast<Floats>(words), Floats(0.0));
    }
    if ELEMENT == BF16 {
        return Numbers(bitcast<Floats>(words << Words(16u)), bitcast<Floats>(words & Words(0xffff0000u)));
    }
    if native_f16 {
        return native_unpack_f16(words);
    }
    return Numbers(from_f16(words & Words(0xffffu)), from_f16(words >> Words(16u)));
}

fn pack(numbers: Numbers) -> Words {
    if ELEMENT == F32 {
        return bitcast<Words>(numbers.even);
    }
    if ELEMENT == BF16 {
        return to_bf16(numbers.even) | (to_bf16(numbers.odd) << Words(16u));
    }
    if native_f16 {
        return native_pack_f16(numbers);
    }
    return to_f16(numbers.even) | (to_f16(numbers.odd) << Words(16u));
}

// The upper half of an f32, rounded to nearest even; a NaN stays one.
fn to_bf16(number: Floats) -> Words {
    let bits = bitcast<Words>(number);
    let rounded = (bits + Words(0x7fffu) + ((bits >> Words(16u)) & Words(1u))) >> Words(16u);
    let nan = (bits & Words(0x7fffffffu)) > Words(0x7f800000u);
    return select(rounded, (bits >> Words(16u)) | Words(0x40u), nan);
}

fn from_f16(half: Words) -> Floats {
    let sign = (half & Words(0x8000u)) << Words(16u);
    let magnitude = half & Words(0x7fffu);
    // Exponents of f16 are 112 less than those of f32, but for infinity and NaN.
    let bias = select(Words(112u << 23u), Words(224u << 23u), magnitude >= Words(0x7c00u));
    let normal = bitcast<Floats>((magnitude << Words(13u)) + bias);
    let subnormal = Floats(magnitude) * Floats(0x1p-24f);
    let number = select(normal, subnormal, magnitude < Words(0x400u));
    return bitcast<Floats>(bitcast<Words>(number) | sign);
}

fn to_f16(number: Floats) -> Words {
    let bits = bitcast<Words>(number);
    let sign = (bits >> Words(16u)) & Words(0x8000u);
    let magnitude = bits & Words(0x7fffffffu);
    let rounded = (magnitude + Words(0xfffu) + ((magnitude >> Words(13u)) & Words(1u))) >> Words(13u);
    let normal = min(rounded - Words(112u << 10u), Words(0x7c00u));
    // Steps of 2⁻²⁴; `round` takes ties to even.
    let subnormal = Words(round(min(abs(number), Floats(1.0)) * Floats(0x1p24f)));
    let finite = select(normal, subnormal, magnitude < Words(113u << 23u));
    return sign | select(finite, Words(0x7e00u), magnitude > Words(0x7f800000u));
}

struct Pair {
    a: Floats,
    b: Floats,
}

// (a, b) → (a cos − b sin, b cos + a sin)
fn turn_pair(a: Floats, b: Floats, cos: Floats, sin: Floats) -> Pair {
    return Pair(fma(a, cos, -(b * sin)), fma(b, cos, a * sin));
}

// The cosines and sines of one invocation's pairs.
struct Turn {
    cos: Numbers,
    sin: Numbers,
}

// What one invocation carries of a row: a chunk, and in a rotation whose pairs lie apart, its partner.
struct Chunks {
    a: Words,
    b: Words,
}

// Pairs whose halves lie in two chunks.
fn turn_apart(chunks: Chunks, turn: Turn) -> Chunks {
    let a = unpack(chunks.a);
    let b = unpack(chunks.b);
    let even = turn_pair(a.even, b.even, turn.cos.even, turn.sin.even);
    let odd = turn_pair(a.odd, b.odd, turn.cos.odd, turn.sin.odd);
    return Chunks(pack(Numbers(even.a, odd.a)), pack(Numbers(even.b, odd.b)));
}

// Pairs that lie side by side in one chunk.
fn turn_inside(words: Words, turn: Turn) -> Words {
    if ELEMENT == F32 {
        let numbers = unpack_f32_pairs(words);
        let turned = turn_pair(numbers.even, numbers.odd, turn.cos.even, turn.sin.even);
        return pack_f32_pairs(Numbers(turned.a, turned.b));
    }
    let numbers = unpack(words);
    let turned = turn_pair(numbers.even, numbers.odd, turn.cos.even, turn.sin.even);
    return pack(Numbers(turned.a, turned.b));
}
