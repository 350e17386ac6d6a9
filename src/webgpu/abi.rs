//! What kernels and host agree on: the structs of `kernels/rows.wgsl`, in Rust.

use bytemuck::{Pod, Zeroable};

/// Where rows lie, relative to a binding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct Side {
    pub(super) first: u32,
    pub(super) batch_stride: u32,
    pub(super) block_stride: u32,
    pub(super) row_stride: u32,
    pub(super) head_stride: u32,
    pub(super) pack_stride: u32,
    pub(super) pack: u32,
    pub(super) block_rows: u32,
    pub(super) table: u32,
    pub(super) first_block: u32,
    pub(super) blocks: u32,
    pub(super) first_row: u32,
    pub(super) rows: u32,
    pub(super) dense: u32,
}

/// The keys or the values of one layer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct Job {
    pub(super) source: Side,
    pub(super) destination: Side,
    pub(super) first_batch: u32,
    pub(super) batches: u32,
    pub(super) first_head: u32,
    pub(super) heads: u32,
    pub(super) first_row: u32,
    pub(super) rows: u32,
    pub(super) items: u32,
    pub(super) group: u32,
    pub(super) rows_first: u32,
    pub(super) turning_items: u32,
    pub(super) window: u32,
    pub(super) window_width: u32,
    pub(super) item_step: u32,
    pub(super) partner: u32,
    pub(super) table: u32,
    pub(super) row_by_row: u32,
    pub(super) pairs: u32,
}

/// One dispatch's share of the grid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Call {
    pub(super) probe: [f32; 4],
    pub(super) extremes: [f32; 4],
    pub(super) halves: [u32; 2],
    pub(super) first_job: u32,
    pub(super) first_lane: u32,
    pub(super) first_tile: u32,
    /// The size of a struct in a uniform is a multiple of its alignment.
    padding: [u32; 3],
}

impl Call {
    pub(super) fn new(first_job: u32, first_lane: u32, first_tile: u32) -> Call {
        let unit = f32::exp2(-11.0);
        let (subnormal, too_large) = (3.0 * f32::exp2(-24.0), 65520f32);
        let (more_than_half, large) = (f32::exp2(-25.0).next_up(), too_large.next_down());
        Call {
            probe: [1.0 + unit, 1.0 + 3.0 * unit, subnormal, too_large],
            extremes: [f32::NEG_INFINITY, f32::NAN, more_than_half, large],
            halves: [0xfc00_0003, 0x7e00],
            first_job,
            first_lane,
            first_tile,
            padding: [0; 3],
        }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use std::mem::offset_of;

    use wgpu::naga;

    use super::*;
    use crate::order::{NONE, Span};
    use crate::webgpu::pipelines::{Access, Kernel, source};
    use crate::webgpu::schedule::TILE;

    /// Name, offset of each field, and size of a struct of this file.
    macro_rules! layout {
        ($type:ident: $($field:ident),*) => {
            (
                stringify!($type),
                vec![$((stringify!($field), offset_of!($type, $field) as u32)),*],
                size_of::<$type>() as u32,
            )
        };
    }

    #[test]
    fn every_struct_lies_as_wgsl_says() {
        let ours = [
            layout!(Side: first, batch_stride, block_stride, row_stride, head_stride, pack_stride, pack,
                block_rows, table, first_block, blocks, first_row, rows, dense),
            layout!(Job: source, destination, first_batch, batches, first_head, heads, first_row, rows,
                items, group, rows_first, turning_items, window, window_width, item_step, partner, table, row_by_row,
                pairs),
            layout!(Span: src, dst, len, before, delta, own),
            layout!(Call: probe, extremes, halves, first_job, first_lane, first_tile),
        ];
        for kernel in Kernel::ALL {
            for access in Access::ALL {
                let module = naga::front::wgsl::parse_str(&source(kernel, access))
                    .unwrap_or_else(|error| panic!("{kernel:?} {access:?}: {error}"));
                for (name, fields, size) in &ours {
                    let theirs = module
                        .types
                        .iter()
                        .find(|(_, ty)| ty.name.as_deref() == Some(name))
                        .unwrap_or_else(|| panic!("WGSL has no struct {name}"))
                        .1;
                    let naga::TypeInner::Struct { members, span } = &theirs.inner else {
                        panic!("{name} is no struct");
                    };
                    let members: Vec<_> = members
                        .iter()
                        .map(|m| (m.name.as_deref().expect("a name"), m.offset))
                        .collect();
                    assert_eq!(&members, fields, "{name}");
                    assert_eq!(span, size, "{name}");
                }
            }
        }
    }

    #[test]
    fn constants_are_the_same() {
        let module =
            naga::front::wgsl::parse_str(&source(Kernel::Rotate, Access::Wide)).expect("WGSL");
        for (name, ours) in [("TILE", TILE), ("NONE", NONE)] {
            let (_, theirs) = module
                .constants
                .iter()
                .find(|(_, constant)| constant.name.as_deref() == Some(name))
                .unwrap_or_else(|| panic!("WGSL has no constant {name}"));
            let theirs = &module.global_expressions[theirs.init];
            let ours = naga::Expression::Literal(naga::Literal::U32(ours));
            assert_eq!(format!("{theirs:?}"), format!("{ours:?}"), "{name}");
        }
    }

    #[test]
    fn kernels_need_no_optional_feature() {
        for kernel in Kernel::ALL {
            for access in Access::ALL {
                let module = naga::front::wgsl::parse_str(&source(kernel, access)).expect("WGSL");
                let mut validator = naga::valid::Validator::new(
                    naga::valid::ValidationFlags::all(),
                    // `unpack2x16float`: WebGPU guarantees it, old GL does not.
                    naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32,
                );
                validator
                    .validate(&module)
                    .unwrap_or_else(|error| panic!("{kernel:?} {access:?}: {error:?}"));
            }
        }
    }
}
