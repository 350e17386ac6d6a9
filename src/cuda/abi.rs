//! What kernels and host agree on: the structs of `kernels/rows.cuh`, in Rust.

use bytemuck::{Pod, Zeroable};

/// Words of a call's parameters: what a typical edit takes, as all of them are copied at every launch, and the most
/// that a driver takes.
pub(super) const SMALL: usize = 1024;
pub(super) const LARGE: usize = 8188;

/// Where rows lie. Strides in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub(super) struct Side {
    pub(super) batch_stride: u64,
    pub(super) block_stride: u64,
    pub(super) row_stride: u64,
    pub(super) head_stride: u64,
    pub(super) pack_stride: u64,
    pub(super) pack: u32,
    pub(super) block_rows: u32,
    pub(super) magic: u32,
    pub(super) shift: u32,
    pub(super) table_at: u32,
    pub(super) has_table: u32,
}

/// Everything that the keys (of one rope) or the values of all layers have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub(super) struct Shape {
    pub(super) source: Side,
    pub(super) destination: Side,
    pub(super) batches: u32,
    pub(super) heads: u32,
    pub(super) items: u32,
    pub(super) turning_items: u32,
    pub(super) window: u32,
    pub(super) window_width: u32,
    pub(super) item_step: u32,
    pub(super) partner: u32,
    pub(super) around: u32,
    pub(super) pairs: u32,
    pub(super) cos_sin_at: u32,
    pub(super) group: u32,
    pub(super) head_group: u32,
    pub(super) wide: u32,
    pub(super) inside: u32,
    pub(super) row_by_row: u32,
}

/// A call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct Header {
    pub(super) workspace: u64,
    pub(super) rows: u32,
    pub(super) steps: u32,
    pub(super) spans_at: u32,
    pub(super) spans: u32,
    pub(super) sources_at: u32,
    pub(super) destinations_at: u32,
    pub(super) shape_of_at: u32,
    pub(super) shapes_at: u32,
    pub(super) in_place: u32,
    pub(super) unused: u32,
}

/// What an `upload` is told; its words follow, up to [`LARGE`] with these.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Upload {
    pub(super) to: u64,
    pub(super) count: u32,
    pub(super) unused: u32,
}

/// Words that one `upload` takes.
pub(super) const UPLOAD: usize = LARGE - size_of::<Upload>() / 4;

/// The divisor `rows` of a row number below 2³¹, as a multiplier and a shift: see `row_of` in the kernels.
pub(super) fn magic(rows: u64) -> (u32, u32) {
    let divisor = rows.clamp(1, 1 << 31);
    let shift = divisor.next_power_of_two().trailing_zeros();
    let magic = (1u64 << 32) * ((1 << shift) - divisor) / divisor + 1;
    (magic as u32, shift)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::order::{NONE, Span};

    const SOURCE: &str = include_str!("../../kernels/rows.cuh");

    /// The fields of a struct of the kernels, their offsets, and its size, by the rules of C.
    fn theirs(name: &str, source: &str) -> (Vec<(String, usize)>, usize) {
        let start = source.find(&format!("struct {name} {{")).expect("a struct");
        let body = &source[start..start + source[start..].find("};").expect("its end")];
        let (mut fields, mut end, mut align) = (Vec::new(), 0usize, 1);
        for line in body.lines().map(str::trim) {
            let Some((ty, field)) = line.strip_suffix(';').and_then(|l| l.split_once(' ')) else {
                continue;
            };
            let (size, aligned) = match ty {
                "u32" => (4, 4),
                "u64" => (8, 8),
                "Side" => (size_of::<Side>(), 8),
                other => panic!("{name}: a field of type {other}"),
            };
            end = end.next_multiple_of(aligned);
            align = align.max(aligned);
            fields.push((field.to_owned(), end));
            end += size;
        }
        (fields, end.next_multiple_of(align))
    }

    macro_rules! same {
        ($type:ident: $($field:ident),*) => {
            let ours = vec![$((stringify!($field).to_owned(), offset_of!($type, $field))),*];
            assert_eq!(theirs(stringify!($type), SOURCE), (ours, size_of::<$type>()));
        };
    }

    #[test]
    fn every_struct_lies_as_the_kernels_say() {
        same!(Side: batch_stride, block_stride, row_stride, head_stride, pack_stride, pack, block_rows, magic,
            shift, table_at, has_table);
        same!(Shape: source, destination, batches, heads, items, turning_items, window, window_width, item_step,
            partner, around, pairs, cos_sin_at, group, head_group, wide, inside, row_by_row);
        same!(Span: src, dst, len, before, delta, own);
        same!(Header: workspace, rows, steps, spans_at, spans, sources_at, destinations_at, shape_of_at,
            shapes_at, in_place, unused);
        let upload = include_str!("../../kernels/upload.cu").replace("alignas(16) ", "");
        let upload = upload.replace("    u32 words[LARGE - 4];\n", "");
        let ours = vec![("to".into(), 0), ("count".into(), 8), ("unused".into(), 12)];
        assert_eq!(theirs("Upload", &upload), (ours, size_of::<Upload>()));
        assert_eq!(UPLOAD, LARGE - 4);
    }

    #[test]
    fn constants_are_the_same() {
        for (name, value) in [("SMALL", SMALL as u64), ("LARGE", LARGE as u64)] {
            assert!(
                SOURCE.contains(&format!("constexpr u32 {name} = {value};")),
                "{name}"
            );
        }
        assert_eq!(NONE, u32::MAX);
        assert!(SOURCE.contains("constexpr u32 NONE = 0xffffffffu;"));
        // What a driver takes since CUDA 12.1.
        const { assert!(LARGE * 4 <= 32_764) };
    }

    #[test]
    fn division_by_multiplication() {
        let divide = |row: u32, (magic, shift): (u32, u32)| {
            let high = ((u64::from(row) * u64::from(magic)) >> 32) as u32;
            (high + row) >> shift
        };
        let rows = (0..200).chain([(1 << 20) - 1, 1 << 20, (1 << 31) - 2, (1 << 31) - 1]);
        for row in rows {
            let divisors =
                (1..300).chain([4095, 4096, 4097, 131_072, (1 << 31) - 1, 1 << 31, u64::MAX]);
            for divisor in divisors {
                let expected = (u64::from(row) / divisor) as u32;
                assert_eq!(divide(row, magic(divisor)), expected, "{row} / {divisor}");
            }
        }
    }
}
