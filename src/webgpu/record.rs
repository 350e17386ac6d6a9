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

/// What a call tells its kernels: parts of one buffer, which go straight into the queue's memory, as a table with a
/// row for each row of the cache is long.
#[derive(Default)]
struct Parameters<'p> {
    parts: Vec<(usize, &'p [u8])>,
    len: usize,
}

impl<'p> Parameters<'p> {
    /// Appends a section, whose parts follow each other; returns where it is.
    fn push<T: Pod>(&mut self, parts: impl IntoIterator<Item = &'p [T]>) -> Range<u64> {
        let start = self.len.next_multiple_of(ALIGNMENT as usize);
        self.len = start;
        for part in parts {
            let bytes = bytemuck::cast_slice(part);
            self.parts.push((self.len, bytes));
            self.len += bytes.len();
        }
        start as u64..self.len as u64
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
        let jobs: Vec<_> = schedule.steps.iter().flat_map(Step::jobs).collect();
        let calls = self.calls(schedule);
        let tables = match schedule.tables.as_slice() {
            [] => &[0],
            tables => tables,
        };
        // A wide access reads four floats where it may need two.
        let more = [[0.0; 4].as_slice()];
        let cos_sin = rotations.tables().iter().map(|table| table.as_slice());

        let mut parameters = Parameters::default();
        let spans = parameters.push([order.spans.as_slice()]);
        let tables = parameters.push([tables]);
        let cos_sin = parameters.push(cos_sin.chain(more));
        let jobs = parameters.push([jobs.as_slice()]);
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
        let called: Vec<_> = calls
            .iter()
            .map(|(.., call)| parameters.push([std::slice::from_ref(call)]))
            .collect();

        let (parameters, dispatches) = self.scoped(
            || {
                let parameters = self.parameter_buffer(&parameters);
                let dispatches: Vec<_> = calls
                    .iter()
                    .zip(&called)
                    .map(|((step, grid, _), call)| {
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

    /// The dispatches of a schedule: as many as it takes to cover each step's grid, each with its share of it.
    fn calls<'s>(&self, schedule: &'s Schedule<'_>) -> Vec<(&'s Step, [u32; 3], Call)> {
        let most = self.most_workgroups;
        let mut calls = Vec::new();
        let mut first_job = 0;
        for step in &schedule.steps {
            let [tiles, lanes, jobs] = step.grid();
            for job in (0..jobs).step_by(most as usize) {
                for lane in (0..lanes).step_by(most as usize) {
                    for tile in (0..tiles).step_by(most as usize) {
                        let grid = [tiles - tile, lanes - lane, jobs - job];
                        let call = Call::new(first_job + job, lane, tile);
                        calls.push((step, grid.map(|rest| rest.min(most)), call));
                    }
                }
            }
            first_job += jobs;
        }
        calls
    }

    /// A buffer with these parameters in it, when the next submission of this queue begins.
    fn parameter_buffer(&self, parameters: &Parameters<'_>) -> (wgpu::Buffer, Token) {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let size = parameters.len as u64;
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
        let bytes = wgpu::BufferSize::new(size).expect("a call has spans");
        // `None`: refused, which the caller's error scope knows.
        if let Some(mut view) = self.queue.write_buffer_with(&buffer.0, 0, bytes) {
            for &(start, part) in &parameters.parts {
                view.slice(start..start + part.len()).copy_from_slice(part);
            }
        }
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
        // WebGPU forbids it. Browsers check it, and wgpu outside of them does not.
        debug_assert!(
            source.is_none_or(|source| !source.overlaps(&step.destination)),
            "bytes of a buffer are bound twice"
        );
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
