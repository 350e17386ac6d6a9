//! Whether calls do what they should: some of their rows against the CPU backend.

use std::ffi::c_void;

use half::bf16;
use pie_rope::{Cpu, ElementType, KeyLayout, Plan, RawLayer, Rotations};
use rand::Rng;

use crate::case::{Cache, Caches, Model, Part, Verb};
use crate::gpu::Gpu;
use crate::peers::Staged;

/// A row before and after.
type Row = (usize, usize);

/// Rows of a span that are looked at, besides the first and the last.
const BETWEEN: usize = 2;

/// What two rotations in bf16 may be off by, in relation to the keys: they are, by half a percent.
const TWO_TURNS_ERROR: f64 = 0.02;

/// Does a call, and compares to the bit.
pub fn call(gpu: &Gpu, caches: &Caches<'_>, rotations: &Rotations) -> Result<(), String> {
    let Cache { model, element, .. } = caches.first;
    let mut rows = sample(rotations);
    if caches.verb != Verb::Copy {
        // One that nothing happens to.
        rows.push((0, 0));
    }
    if rows.is_empty() {
        return Err("nothing to compare".into());
    }
    let read = |cache: &Cache<'_>, (layer, part): (usize, Part), at: &dyn Fn(&Row) -> usize| {
        let mut words = Vec::new();
        for row in rows.iter().map(at) {
            for head in 0..model.heads {
                let address = cache.address(layer, part, row, head);
                words.extend(download(gpu, address, model.dim * element.size()));
            }
        }
        words
    };
    let after = |row: &Row| match caches.verb {
        Verb::Rotate => row.0,
        Verb::Splice | Verb::Copy => row.1,
    };

    let mut places = Vec::new();
    for layer in [0, model.layers - 1] {
        places.extend(caches.first.parts().iter().map(|&part| (layer, part)));
    }
    let before = places
        .iter()
        .map(|&place| read(&caches.first, place, &|row| row.0));
    let before: Vec<_> = before.collect();
    caches.call(gpu, rotations);
    for (place, mut expected) in places.into_iter().zip(before) {
        if place.1 == Part::Keys {
            turn(model, element, &rows, &mut expected);
        }
        let found = read(caches.after(), place, &after);
        if let Some(at) = difference(&found, &expected) {
            let (layer, part) = place;
            let word = |words: &[u32]| {
                words
                    .get(at)
                    .map_or("nothing".into(), |w| format!("{w:#x}"))
            };
            let (vector, byte) = (
                4 * at / (model.dim * element.size()),
                4 * at % (model.dim * element.size()),
            );
            let (row, head) = (rows.get(vector / model.heads), vector % model.heads);
            return Err(format!(
                "{part} of layer {layer} differ from the CPU's: row {row:?} (before, after), head {head}, dimension \
                 {}: got the word {}, expected {}",
                byte / element.size(),
                word(&found),
                word(&expected)
            ));
        }
    }
    Ok(())
}

/// The first of some words that is not as expected; that there are too few, or too many, is the first that is amiss.
fn difference(found: &[u32], expected: &[u32]) -> Option<usize> {
    let mut pairs = found.iter().zip(expected);
    let differs = pairs.position(|(found, expected)| found != expected);
    differs.or((found.len() != expected.len()).then_some(found.len().min(expected.len())))
}

/// Does a call of the peer of two rotations, and compares roughly.
pub fn two_turns(gpu: &Gpu, staged: &Staged<'_>) -> Result<(), String> {
    let tokens = [0, 1, staged.tokens() / 2, staged.tokens() - 1];
    let rows = tokens.map(|token| staged.row(token));
    let read = || -> Vec<u32> {
        let tokens = tokens.iter();
        tokens
            .flat_map(|&token| download(gpu, staged.address(token), staged.token_bytes()))
            .collect()
    };
    let mut expected = read();
    staged.call(gpu, false);
    let found = read();
    staged.call(gpu, true);
    turn(staged.model, ElementType::BF16, &rows, &mut expected);
    let numbers = |words: &[u32]| -> Vec<f64> {
        let halves: &[bf16] = bytemuck::cast_slice(words);
        halves.iter().map(|half| half.to_f64()).collect()
    };
    let (found, expected) = (numbers(&found), numbers(&expected));
    assert_eq!(found.len(), expected.len());
    let square: f64 = expected.iter().map(|number| number * number).sum();
    let pairs = found.iter().zip(&expected);
    let off: f64 = pairs
        .map(|(found, expected)| (found - expected).powi(2))
        .sum();
    let error = (off / square).sqrt();
    // NaN is none of these.
    if error < TWO_TURNS_ERROR {
        Ok(())
    } else {
        Err(format!("two rotations are off by {error:.3}"))
    }
}

/// The first and the last row of each span, and some between.
fn sample(rotations: &Rotations) -> Vec<Row> {
    let mut random = rand::rng();
    let spans = rotations.spans().iter();
    spans
        .flat_map(|span| {
            let between = [(); BETWEEN].map(|()| random.random_range(0..span.len));
            let rows = [0, span.len - 1].into_iter().chain(between);
            rows.map(|row| (span.src + row, span.dst + row))
        })
        .collect()
}

fn download(gpu: &Gpu, address: u64, bytes: usize) -> Vec<u32> {
    let mut words = vec![0u32; bytes / 4];
    gpu.download(address, bytemuck::cast_slice_mut(&mut words));
    words
}

/// Turns keys `[rows, heads, dim]` on the CPU, each row from its first position to its second.
fn turn(model: &Model, element: ElementType, rows: &[Row], keys: &mut [u32]) {
    let positions =
        |at: fn(&Row) -> usize| rows.iter().map(|row| at(row) as i32).collect::<Vec<_>>();
    let plan = Plan::from_positions(&positions(|row| row.0), &positions(|row| row.1))
        .expect("sound positions");
    let rotations = Rotations::new(&plan, &model.rope).expect("a small table");
    let layout = KeyLayout::bshd(element, [1, rows.len(), model.heads, model.dim]);
    let layer = RawLayer {
        keys: keys.as_mut_ptr().cast::<c_void>(),
        keys_len: size_of_val(keys) / element.size(),
        values: std::ptr::null_mut(),
        values_len: 0,
    };
    // SAFETY: the keys are a slice of this function's alone, and words are aligned for every type.
    unsafe { Cpu::new().rotate_raw(&rotations, &layout.into(), &[layer]) }.expect("a sound call");
}
