//! The check checked: what a backend may do wrong is found, whichever call and element it does wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Failed, Trial};
use pie_rope::{Cpu, Result};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::backend::{Backend, Call, Layers};
use crate::buffer::{Buffer, GUARD, Keys};
use crate::case::{Case, Verb};
use crate::check::{self, Worst};
use crate::pattern::{LAYERS, Pattern};

/// One thing that a call does besides what it should, or instead.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// A key is NaN, whether it was to be turned, moved or left alone.
    NanKey,
    NanKeys,
    InfiniteKey,
    /// One bit of a value.
    Value,
    /// One bit in front of a buffer, or behind it.
    Guard,
    /// Two keys have changed places.
    Swap,
    /// One bit of what a copy reads.
    Source,
    /// A buffer of fewer elements comes back.
    Short,
    NoValues,
    /// Nothing is done.
    Lazy,
    /// Nothing is done to the last layer.
    LazyLayer,
}

const FAULTS: [Fault; 11] = [
    Fault::NanKey,
    Fault::NanKeys,
    Fault::InfiniteKey,
    Fault::Value,
    Fault::Guard,
    Fault::Swap,
    Fault::Source,
    Fault::Short,
    Fault::NoValues,
    Fault::Lazy,
    Fault::LazyLayer,
];

/// Cases that each fault is tried on.
const TRIES: usize = 12;

/// The CPU backend, and a fault in one of its calls.
struct Faulty {
    cpu: Cpu,
    fault: Fault,
    /// Calls until then.
    calls: AtomicUsize,
    seed: u64,
}

impl Faulty {
    /// Whether there is something that the fault could do in such a case.
    fn could(fault: Fault, case: &Case) -> bool {
        match fault {
            Fault::Value | Fault::NoValues => case.shape.has_values() && !case.shape.is_packed(),
            Fault::Source => case.verb == Verb::Copy,
            _ => true,
        }
    }
}

impl Backend for Faulty {
    fn run(&self, call: &Call<'_>, src: &mut [Layers], dst: &mut [Layers]) -> Result<()> {
        // All calls are lazy, since some have nothing to do.
        let lazy = matches!(self.fault, Fault::Lazy | Fault::LazyLayer);
        let now = self.calls.fetch_sub(1, Ordering::Relaxed) == 0;
        if self.fault == Fault::Lazy {
            return Ok(());
        }
        let apart = call.verb == Verb::Copy;
        let before = if apart { dst.to_vec() } else { src.to_vec() };
        self.cpu.run(call, src, dst)?;
        if !now && !lazy {
            return Ok(());
        }
        let mut random = SmallRng::seed_from_u64(self.seed);
        let layer = random.random_range(0..LAYERS);
        let written = if apart { &mut *dst } else { &mut *src };
        let Layers { keys, values } = &mut written[layer];
        let element = random.random_range(0..keys.len());
        match self.fault {
            Fault::NanKey => keys.set(element, f64::NAN),
            Fault::NanKeys => (0..keys.len()).for_each(|element| keys.set(element, f64::NAN)),
            Fault::InfiniteKey => keys.set(element, f64::INFINITY),
            Fault::Value => {
                let inside = values.as_mut().expect("values").inner_mut();
                let byte = random.random_range(0..inside.len());
                inside[byte] ^= 1 << random.random_range(0..8);
            }
            Fault::Guard => {
                let bytes = keys.bytes_mut();
                let byte = random.random_range(0..GUARD);
                let byte = if random.random() {
                    byte
                } else {
                    bytes.len() - 1 - byte
                };
                bytes[byte] ^= 1 << random.random_range(0..8);
            }
            Fault::Swap => {
                // With the one that differs most, which is further off than any rounding in its pair.
                let here = keys.get(element);
                let off = |other: usize| (keys.get(other) - here).abs();
                let other = (0..keys.len()).max_by(|&a, &b| off(a).total_cmp(&off(b)));
                let other = other.expect("there are keys");
                let there = keys.get(other);
                keys.set(element, there);
                keys.set(other, here);
            }
            Fault::Source => {
                let inside = src[layer].keys.inner_mut();
                let byte = random.random_range(0..inside.len());
                inside[byte] ^= 1 << random.random_range(0..8);
            }
            Fault::Short => *keys = Buffer::noise(keys.element, keys.len() - 1, &mut random),
            Fault::NoValues => *values = None,
            Fault::Lazy => unreachable!("it has done nothing"),
            Fault::LazyLayer => written[LAYERS - 1] = before[LAYERS - 1].clone(),
        }
        Ok(())
    }
}

/// One for each fault.
pub fn trials(seed: u64, keys: &Arc<Keys>) -> Vec<Trial> {
    let trial = |fault: Fault| {
        let keys = keys.clone();
        Trial::test(format!("check finds {fault:?}"), move || {
            let mut random = SmallRng::seed_from_u64(seed ^ fault as u64);
            let mut cases = Case::all();
            cases.retain(|case| Faulty::could(fault, case));
            for _ in 0..TRIES {
                let case = *cases.choose(&mut random).expect("some case");
                find(fault, &case, &keys, &mut random)
                    .map_err(|problem| Failed::from(format!("{case}, seed {seed}: {problem}")))?;
            }
            Ok(())
        })
    };
    FAULTS.map(trial).into()
}

fn find(
    fault: Fault,
    case: &Case,
    keys: &Keys,
    random: &mut SmallRng,
) -> std::result::Result<(), String> {
    let calls = Pattern::ALL.len() * 3;
    let backend = Faulty {
        cpu: Cpu::with_threads(1).expect("one thread"),
        fault,
        calls: AtomicUsize::new(random.random_range(0..calls)),
        seed: random.random(),
    };
    let worst = Worst::new(1.0);
    let Err(problem) = check::case(case, &backend, random.random(), keys, &worst) else {
        return Err("NOT FOUND".into());
    };
    let says = match fault {
        Fault::Guard => "guard byte",
        Fault::Source => "source",
        Fault::Short => "elements of",
        Fault::NoValues => "there are no values",
        Fault::NanKey | Fault::NanKeys => "NaN",
        Fault::InfiniteKey => "inf",
        _ => "got ",
    };
    if problem.contains("layer ") && problem.contains(says) {
        Ok(())
    } else {
        Err(format!("found, but it says: {problem}"))
    }
}
