//! A cache of 2 GiB in one buffer, or the largest that the adapter allows: several bindings wide, with rows that
//! move from one of them to another. Needs an adapter and that much memory on it.

mod support;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use half::bf16;
use pie_rope::{
    CacheLayout, Cpu, Edit, ElementType, KeyLayout, Layer, Plan, Rope, Rotations, Wgpu, WgpuLayer,
    wgpu,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use support::{assert_same_bits, assert_within_ulps};
use wgpu::BufferUsages as Usage;

const HEADS: usize = 8;
const DIM: usize = 128;
const BLOCK: usize = 16;
/// Elements of keys and values of one block.
const PAGE: usize = 2 * BLOCK * HEADS * DIM;
const PAGE_BYTES: u64 = 2 * PAGE as u64;
const ROWS: usize = 1000;
/// No less than this is a test of large caches.
const LEAST: u64 = 512 << 20;

#[test]
fn rows_move_between_the_bindings_of_one_buffer() {
    let gpu = Wgpu::open().unwrap();
    let limits = gpu.device().limits();
    let seed = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    println!("{gpu}, seed {seed}");
    let pool = pool(&gpu, limits.max_buffer_size.min(2 << 30));
    let size = pool.size();
    println!("{} MiB", size >> 20);
    let blocks = (size / PAGE_BYTES) as usize;
    // Where one binding could hold all of it, windows of a sixteenth.
    let binding = limits.max_storage_buffer_binding_size;
    let gpu = gpu.with_window(binding.min(size / 16)).unwrap();

    // A sequence whose pages lie anywhere in the pool, the first and the last one among them.
    let mut table: Vec<u32> = (1..blocks as u32 - 1).collect();
    table.shuffle(&mut random);
    table.truncate((ROWS + 40).div_ceil(BLOCK));
    table[3] = 0;
    table[7] = blocks as u32 - 1;
    let pages = table.len();
    let mut local: Vec<bf16> = (0..pages * PAGE)
        .map(|_| bf16::from_f32(random.random_range(-2.0..2.0)))
        .collect();
    for (page, &block) in local.chunks_exact(PAGE).zip(&table) {
        let at = u64::from(block) * 2 * PAGE as u64;
        gpu.queue()
            .write_buffer(&pool, at, bytemuck::cast_slice(page));
    }

    let edits = [
        Edit::insert(100, 7),
        Edit::delete(300..340),
        Edit::insert(700, 51),
    ];
    let plan = Plan::from_edits(ROWS, &edits).unwrap();
    let rope = Rope::from_theta(10_000.0, DIM).unwrap();
    let rotations = Rotations::new(&plan, &rope).unwrap();
    let layout = |blocks| -> CacheLayout<'static> {
        KeyLayout::packed_nhd(ElementType::BF16, [blocks, BLOCK, HEADS, DIM])
    };
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let paged = layout(blocks).with_table(&table);
    gpu.splice(&mut encoder, &rotations, paged, &[WgpuLayer::packed(&pool)])
        .unwrap();
    gpu.submit(encoder).unwrap();

    // The same on the CPU, where pages follow each other.
    let mut layers = [Layer::packed(&mut local)];
    Cpu::new()
        .splice(&rotations, layout(pages), &mut layers)
        .unwrap();

    // Every byte of the pool, a piece at a time: these pages, and zeros everywhere else.
    let mut page_of = vec![None; blocks];
    for (page, &block) in table.iter().enumerate() {
        page_of[block as usize] = Some(page);
    }
    let piece = 512;
    let back = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: (piece * PAGE * 2) as u64,
        usage: Usage::COPY_DST | Usage::MAP_READ,
        mapped_at_creation: false,
    });
    let zeros = vec![bf16::ZERO; PAGE];
    let (mut seen, mut free) = (0, 0);
    for first in (0..blocks).step_by(piece) {
        let here = piece.min(blocks - first);
        let bytes = (here * PAGE * 2) as u64;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&pool, (first * PAGE * 2) as u64, &back, 0, bytes);
        gpu.submit(encoder).unwrap();
        back.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
        gpu.device()
            .poll(wgpu::PollType::wait_indefinitely())
            .unwrap();
        let view = back.get_mapped_range(0..bytes).unwrap();
        assert_eq!(view.len(), bytes as usize);
        for (block, got) in bytemuck::cast_slice::<u8, bf16>(&view)
            .chunks_exact(PAGE)
            .enumerate()
        {
            let block = first + block;
            match page_of[block] {
                None => {
                    assert_same_bits(got, &zeros, |index| {
                        format!("block {block}, which is nobody's, element {index}")
                    });
                    free += 1;
                }
                Some(page) => {
                    same_page(got, &local[page * PAGE..][..PAGE], page, block);
                    seen += 1;
                }
            }
        }
        drop(view);
        back.unmap();
    }
    assert_eq!((seen, free), (pages, blocks - pages));
}

/// A buffer of `most` bytes. Adapters may grant larger buffers than they give memory for: half as much then, but
/// never less than [`LEAST`].
fn pool(gpu: &Wgpu, most: u64) -> wgpu::Buffer {
    let size = most / PAGE_BYTES * PAGE_BYTES;
    assert!(size >= LEAST, "the adapter gives no {LEAST} bytes");
    let scope = gpu
        .device()
        .push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size,
        usage: Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC,
        mapped_at_creation: false,
    });
    // On native, wgpu's futures are ready at once.
    let mut context = Context::from_waker(Waker::noop());
    match pin!(scope.pop()).poll(&mut context) {
        Poll::Ready(None) => buffer,
        Poll::Ready(Some(_)) => pool(gpu, most / 2),
        Poll::Pending => panic!("not ready"),
    }
}

/// Values bit for bit; keys within one unit in the last place at the magnitude of the pair.
fn same_page(got: &[bf16], expected: &[bf16], page: usize, block: usize) {
    let place = |row: usize| {
        let (row, head) = (page * BLOCK + row / HEADS, row % HEADS);
        format!("page {page} (block {block}), row {row}, head {head}")
    };
    let (got_keys, got_values) = got.split_at(PAGE / 2);
    let (keys, values) = expected.split_at(PAGE / 2);
    assert_same_bits(got_values, values, |index| {
        format!("values, {}, dimension {}", place(index / DIM), index % DIM)
    });
    let pairs = |keys: &[bf16]| -> Vec<(f64, f64)> {
        let vectors = keys.chunks_exact(DIM);
        let pairs = vectors.flat_map(|vector| vector[..DIM / 2].iter().zip(&vector[DIM / 2..]));
        pairs.map(|(a, b)| (a.to_f64(), b.to_f64())).collect()
    };
    let (got, expected) = (pairs(got_keys), pairs(keys));
    assert_within_ulps(ElementType::BF16, 1.0, &got, &expected, |index| {
        let (vector, pair) = (index / (DIM / 2), index % (DIM / 2));
        format!("keys, {}, pair {pair}", place(vector))
    });
}
