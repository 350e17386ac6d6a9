//! The engine's KV cache, and what an edit does to it.
//!
//! The cache is one candle tensor, `[layer, 2, kv head, row, head_dim]` with keys at index 0 and
//! values at index 1. The model reads views of it, and an edit works on the same views, all layers in
//! one call. On the CPU, nothing is copied out or back.

use anyhow::{Result, ensure};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use candle_core::{CpuStorage, InplaceOp1};
use candle_core::{DType, Device, Tensor};
use pie_rope::{CandleLayer, Plan, Rotations};

use crate::backend::Backend;

/// Index of the keys and of the values in the cache's second dimension.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Keys = 0,
    Values = 1,
}

/// The size of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) capacity: usize,
    pub(crate) head_dim: usize,
}

/// Keys, rotated, and values of a sequence, one row per token, in order of their positions.
pub(crate) struct Cache {
    data: Tensor,
    shape: Shape,
    /// The position of each row in use.
    positions: Vec<i32>,
}

impl Cache {
    pub(crate) fn new(shape: Shape, dtype: DType) -> Result<Cache> {
        let dims = (
            shape.layers,
            2,
            shape.kv_heads,
            shape.capacity,
            shape.head_dim,
        );
        Ok(Cache {
            data: Tensor::zeros(dims, dtype, &Device::Cpu)?,
            shape,
            positions: Vec::new(),
        })
    }

    pub(crate) fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The position of each row in use.
    pub(crate) fn positions(&self) -> &[i32] {
        &self.positions
    }

    /// Forgets all rows from `rows` on.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.positions.truncate(rows);
    }

    /// Becomes a copy of `other`, in its own memory.
    pub(crate) fn copy_from(&mut self, other: &Cache) -> Result<()> {
        self.data.slice_set(&other.data, 0, 0)?;
        self.positions.clone_from(&other.positions);
        Ok(())
    }

    /// Rows `0..rows` of a layer's keys or values: a view, `[kv head, row, head_dim]`.
    pub(crate) fn rows(&self, layer: usize, part: Part, rows: usize) -> Result<Tensor> {
        Ok(self.lane(layer, part)?.narrow(1, 0, rows)?)
    }

    /// Says which positions `rows` have, before [`write`](Cache::write) fills them. Rows must stay
    /// without a gap, in order of their positions.
    pub(crate) fn claim(&mut self, rows: &[usize], positions: &[i32]) -> Result<()> {
        ensure!(
            rows.len() == positions.len(),
            "{} rows but {} positions",
            rows.len(),
            positions.len()
        );
        for (&row, &position) in rows.iter().zip(positions) {
            ensure!(
                row < self.shape.capacity,
                "row {row} is beyond the cache's {}",
                self.shape.capacity
            );
            ensure!(
                row <= self.positions.len(),
                "row {row} would leave a gap behind {}",
                self.positions.len()
            );
            if row == self.positions.len() {
                self.positions.push(position);
            } else {
                self.positions[row] = position;
            }
        }
        ensure!(
            self.positions.is_sorted_by(|a, b| a < b),
            "rows are not in order of their positions"
        );
        Ok(())
    }

    /// Writes `data`, `[kv head, rows.len(), head_dim]`, to `rows` of a layer.
    pub(crate) fn write(
        &self,
        layer: usize,
        part: Part,
        rows: &[usize],
        data: &Tensor,
    ) -> Result<()> {
        let lane = self.lane(layer, part)?;
        let data = data.to_dtype(self.dtype())?;
        let mut from = 0;
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let part = data.narrow(1, from, run.len())?.contiguous()?;
            lane.slice_set(&part, 1, run[0])?;
            from += run.len();
        }
        Ok(())
    }

    fn lane(&self, layer: usize, part: Part) -> Result<Tensor> {
        Ok(self.data.get(layer)?.get(part as usize)?)
    }

    /// The rows that survive an edit move to their new places, and their keys turn as `rotations`,
    /// made from `plan`, says. Rows that `plan` opens are left for the model to encode.
    pub(crate) fn splice(
        &mut self,
        backend: &Backend,
        plan: &Plan,
        rotations: &Rotations,
    ) -> Result<()> {
        ensure!(
            plan.old_rows() == self.positions.len(),
            "a plan for {} rows, but {} are in use",
            plan.old_rows(),
            self.positions.len()
        );
        match backend {
            Backend::Cpu(candle) => {
                let views = (0..self.shape.layers).map(|layer| {
                    let lane = |part| self.lane(layer, part);
                    Ok((lane(Part::Keys)?, lane(Part::Values)?))
                });
                let views: Vec<(Tensor, Tensor)> = views.collect::<Result<_>>()?;
                let layers = views.iter().map(|(k, v)| CandleLayer::new(k, v));
                candle.splice(rotations, &layers.collect::<Vec<_>>())?;
            }
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            elsewhere => self.data.inplace_op1(&Splice {
                backend: elsewhere,
                rotations,
                shape: self.shape,
            })?,
        }
        self.renumber(plan);
        Ok(())
    }

    fn renumber(&mut self, plan: &Plan) {
        self.positions.resize(plan.new_rows(), 0);
        let kept = plan.kept().iter().map(|s| (s.dst, s.len, s.new_position));
        let new = plan.new_spans().iter().map(|s| (s.row, s.len, s.position));
        for (row, len, position) in kept.chain(new) {
            for (slot, position) in self.positions[row..row + len].iter_mut().zip(position..) {
                *slot = position;
            }
        }
    }
}

/// The crate's splice on another device, which the memory of the cache tensor goes to and comes back from.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
struct Splice<'a> {
    backend: &'a Backend,
    rotations: &'a Rotations,
    shape: Shape,
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl InplaceOp1 for Splice<'_> {
    fn name(&self) -> &'static str {
        "pie-splice"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        _whole: &candle_core::Layout,
    ) -> candle_core::Result<()> {
        let Splice {
            backend,
            rotations,
            shape,
        } = *self;
        match storage {
            CpuStorage::F32(data) => backend.splice(rotations, shape, data),
            CpuStorage::F16(data) => backend.splice(rotations, shape, data),
            CpuStorage::BF16(data) => backend.splice(rotations, shape, data),
            _ => candle_core::bail!("a cache holds f32, f16 or bf16"),
        }
        .map_err(candle_core::Error::wrap)
    }
}
