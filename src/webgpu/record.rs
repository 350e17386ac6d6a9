//! From a schedule to commands in the engine's encoder.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use super::Wgpu;
use super::abi::Call;
use super::pipelines::Key;
use super::schedule::{Schedule, Step};
use super::windows::ALIGNMENT;
use crate::order::Order;
use crate::{Error, Result, Rotations};

/// Parameter buffers. One whose token nobody else holds is free.
pub(super) type Pool = Arc<Mutex<Vec<(wgpu::Buffer, Token)>>>;

/// Held for a buffer from its call on until the GPU has read it. Not the buffer itself, which no callback could
/// carry in a browser: it is not `Send` there.
pub(super) type Token = Arc<()>;

/// What a call tells its kernels, as one buffer.
#[derive(Default)]
struct Parameters {
    bytes: Vec<u8>,
}

impl Parameters {
    /// Appends a section; returns where it is.
    fn push<T: Pod>(&mut self, items: &[T]) -> Range<u64> {
        let start = self.bytes.len().next_multiple_of(ALIGNMENT as usize);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(bytemuck::cast_slice(items));
        start as u64..self.bytes.len() as u64
    }
}

/// One dispatch, ready to be recorded.
struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    grid: [u32; 3],
}

impl Wgpu {
    /// Records a schedule. Everything that can be refused is made before the first command.
    pub(super) fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rotations: &Rotations,
        order: &Order,
        schedule: &Schedule<'_>,
    ) -> Result<()> {
        if schedule.steps.is_empty() {
            return Ok(());
        }
        let mut parameters = Parameters::default();
        let spans = parameters.push(&order.spans);
        let tables = match schedule.tables.as_slice() {
            [] => parameters.push(&[0u32]),
            tables => parameters.push(tables),
        };
        let mut cos_sin = Vec::new();
        for table in rotations.tables() {
            cos_sin.extend_from_slice(table.as_slice());
        }
        // A wide access reads four floats where it may need two.
        cos_sin.extend_from_slice(&[0.0; 4]);
        let cos_sin = parameters.push(&cos_sin);
        let jobs: Vec<_> = schedule.steps.iter().flat_map(Step::jobs).collect();
        let jobs = parameters.push(&jobs);
        let sections = [
            ("its spans", spans),
            ("its block tables", tables),
            ("its cosines and sines", cos_sin),
            ("its jobs", jobs),
        ];
        for (what, section) in &sections {
            let bytes = section.end - section.start;
            if bytes > self.largest_table {
                return Err(Error::Limit(format!(
                    "{what} take {bytes} bytes, the device binds at most {} \
                     (`max_storage_buffer_binding_size`); split the plan",
                    self.largest_table
                )));
            }
        }
        let mut calls = Vec::new();
        let mut first_job = 0;
        for step in &schedule.steps {
            let most = self.most_workgroups as usize;
            let [tiles, lanes, jobs] = step.grid();
            for job in (0..jobs).step_by(most) {
                for lane in (0..lanes).step_by(most) {
                    for tile in (0..tiles).step_by(most) {
                        let call = parameters.push(&[Call::new(first_job + job, lane, tile)]);
                        let grid = [tiles - tile, lanes - lane, jobs - job];
                        let grid = grid.map(|rest| rest.min(self.most_workgroups));
                        calls.push((step, call, grid));
                    }
                }
            }
            first_job += jobs;
        }

        let (parameters, dispatches) = self.scoped(
            || {
                let parameters = self.parameter_buffer(&parameters.bytes);
                let dispatches: Vec<_> = calls
                    .iter()
                    .map(|(step, call, grid)| {
                        let sections = sections.iter().map(|(_, section)| section).chain([call]);
                        self.dispatch(step, &parameters.0, sections, *grid)
                    })
                    .collect();
                (parameters, dispatches)
            },
            schedule.steps.iter().map(|step| step.key),
        )?;

        // Not before it has come into being: the next call may take what the pool holds.
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if !pool.iter().any(|(known, _)| *known == parameters.0) {
            pool.push(parameters.clone());
        }
        drop(pool);
        let (_, token) = parameters;

        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("pie-rope"),
            timestamp_writes: None,
        });
        for dispatch in &dispatches {
            let [x, y, z] = dispatch.grid;
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.bindings, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
        drop(pass);
        // Once the GPU has read the parameters, the next call may have their buffer; also if the encoder is dropped.
        encoder.on_submitted_work_done(move || drop(token));
        Ok(())
    }

    /// A buffer with these bytes in it, when the next submission of this queue begins.
    fn parameter_buffer(&self, bytes: &[u8]) -> (wgpu::Buffer, Token) {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let size = bytes.len() as u64;
        let free = pool
            .iter()
            .find(|(buffer, token)| buffer.size() >= size && Arc::strong_count(token) == 1);
        let make = |label, size| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::UNIFORM
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let buffer = match free {
            Some((buffer, token)) => {
                // What a lost device made before stays valid, and writing to it goes unnoticed. What it makes
                // now does not: `error_of` knows the complaint.
                let sign = make("pie-rope sign of life", 4);
                self.queue.write_buffer(&sign, 0, &[0; 4]);
                (buffer.clone(), token.clone())
            }
            None => {
                let size = size.next_power_of_two().max(16 << 10);
                (make("pie-rope parameters", size), Token::default())
            }
        };
        self.queue.write_buffer(&buffer.0, 0, bytes);
        buffer
    }

    fn dispatch<'s>(
        &self,
        step: &Step,
        parameters: &wgpu::Buffer,
        sections: impl Iterator<Item = &'s Range<u64>>,
        grid: [u32; 3],
    ) -> Dispatch {
        let binding = |buffer, bytes: &Range<u64>| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: bytes.start,
                size: wgpu::BufferSize::new(bytes.end - bytes.start),
            })
        };
        let source = step.source.as_ref();
        let resources = [
            binding(&step.destination.buffer, &step.destination.bytes),
            source.map_or(self.nothing.as_entire_binding(), |window| {
                binding(&window.buffer, &window.bytes)
            }),
        ];
        let sections = sections.map(|section| binding(parameters, section));
        let entries: Vec<_> = resources
            .into_iter()
            .chain(sections)
            .zip(0..)
            .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        Dispatch {
            pipeline: self.pipelines.get(&self.device, step.key),
            bindings: self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("pie-rope"),
                layout: &self.pipelines.bindings,
                entries: &entries,
            }),
            grid,
        }
    }

    /// Runs `make` and returns what wgpu has to say against it as an error. In a browser that is not known
    /// before the next turn of its event loop, and goes to the device's own handler.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn scoped<T>(
        &self,
        make: impl FnOnce() -> T,
        keys: impl Iterator<Item = Key>,
    ) -> Result<T> {
        let made = super::scoped(&self.device, make);
        if made.is_err() {
            self.pipelines.forget(keys);
        }
        made
    }

    /// See above.
    #[cfg(target_arch = "wasm32")]
    pub(super) fn scoped<T>(
        &self,
        make: impl FnOnce() -> T,
        _: impl Iterator<Item = Key>,
    ) -> Result<T> {
        Ok(make())
    }
}
