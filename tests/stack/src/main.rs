//! Every kernel on a thread whose stack is small, in whatever way this was built: `scripts/stack` says how.
//!
//! A stack that overflows ends the process, so the last line printed names the kernels at fault.

use std::thread;

use half::{bf16, f16};
use pie_rope::{
    Cpu, Edit, Element, KeyLayout, Layer, LayerRef, Pairing, Plan, Result, Rope, Rotations,
};

/// Half of what the smallest default in use leaves a thread: musl's 128 KiB. Rust's own threads have 2 MiB.
const STACK: usize = 64 << 10;

/// Rows in use, of [`BLOCKS`] blocks of [`BLOCK`].
const ROWS: usize = 9;
const BLOCKS: usize = 2;
const BLOCK: usize = 5;

fn main() {
    let small = thread::Builder::new()
        .name(format!("of {} KiB", STACK >> 10))
        .stack_size(STACK);
    let kernels = small.spawn(|| {
        every_kernel::<f32>(|x| x)?;
        every_kernel::<f16>(f16::from_f32)?;
        every_kernel::<bf16>(bf16::from_f32)
    });
    let finished = kernels.expect("a thread can be had").join();
    finished.expect("no panic").expect("no call is refused");
}

/// All verbs, at every number of pairs that kernels tell apart: the registers of a step, times the steps whose
/// tables stay in registers (at most 16 of 8 pairs, or 8 of 32), and more. All sets of instructions agree.
fn every_kernel<T: Element>(from: fn(f32) -> T) -> Result<()> {
    let portable = Cpu::with_instruction_set("portable")?;
    for set in Cpu::INSTRUCTION_SETS {
        let Ok(cpu) = Cpu::with_instruction_set(set) else {
            println!("{set}: not on this CPU");
            continue;
        };
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            println!("{set}: {} {pairing:?}", T::TYPE);
            for pairs in (1..=130).chain([160, 192, 256, 257, 512]) {
                for cut in [false, true] {
                    let written = every_verb(&cpu, pairing, pairs, cut, from)?;
                    let expected = every_verb(&portable, pairing, pairs, cut, from)?;
                    let same = bytes(&written) == bytes(&expected);
                    assert!(same, "{pairs} pairs, cut {cut}: not what portable writes");
                }
            }
        }
    }
    Ok(())
}

/// The keys after each verb, one after the other.
fn every_verb<T: Element>(
    cpu: &Cpu,
    pairing: Pairing,
    pairs: usize,
    cut: bool,
    from: fn(f32) -> T,
) -> Result<Vec<T>> {
    let dim = 2 * pairs;
    let layout = if cut {
        let piece = if dim.is_multiple_of(8) { 8 } else { 2 };
        KeyLayout::x_packed(T::TYPE, [BLOCKS, 1, dim / piece, BLOCK, piece])
    } else {
        KeyLayout::bhsd(T::TYPE, [1, 1, BLOCKS * BLOCK, dim])
    };
    let table = [1, 0];
    let layout = if cut {
        layout.with_table(&table)
    } else {
        layout
    };
    let rope = Rope::from_theta(10_000.0, dim)?.with_pairing(pairing);
    let before: Vec<T> = (0..BLOCKS * BLOCK * dim).map(|i| from(value(i))).collect();

    // Rows 1 to 4 go up by one row, and rows 7 and 8 down by two.
    let edits = [Edit::insert(1, 1), Edit::delete(4..7)];
    let moved = Rotations::new(&Plan::from_edits(ROWS, &edits)?, &rope)?;
    let mut spliced = before.clone();
    let mut values = before.clone();
    cpu.splice(&moved, layout, &mut [Layer::new(&mut spliced, &mut values)])?;

    let mut copied = before.clone();
    let source_values = before.clone();
    let source = [LayerRef {
        keys: &before,
        values: Some(&source_values),
    }];
    cpu.copy(
        &moved,
        layout,
        &source,
        layout,
        &mut [Layer::new(&mut copied, &mut values)],
    )?;

    let near: Vec<i32> = (0..ROWS as i32).collect();
    let far: Vec<i32> = near.iter().map(|position| position + 100).collect();
    let turned = Rotations::new(&Plan::from_positions(&near, &far)?, &rope)?;
    let mut rotated = before.clone();
    cpu.rotate(
        &turned,
        layout,
        &mut [Layer::new(&mut rotated, &mut values)],
    )?;

    for written in [&spliced, &copied, &rotated] {
        assert!(bytes(written) != bytes(&before), "nothing was turned");
    }
    Ok([spliced, copied, rotated].concat())
}

/// Values of every kind: many rows have none but ordinary ones, which is what the fast paths are for.
fn value(index: usize) -> f32 {
    let mixed = (index as u32).wrapping_mul(2_654_435_761) >> 8;
    match mixed % 1024 {
        0 => f32::NAN,
        1 => -0.0,
        2 => f32::NEG_INFINITY,
        3 => f32::MAX,
        4 => f32::MIN_POSITIVE / 4.0,
        _ => 0.5 + mixed as f32 / (1 << 24) as f32,
    }
}

fn bytes<T: Element>(elements: &[T]) -> &[u8] {
    bytemuck::cast_slice(elements)
}
