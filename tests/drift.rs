//! What the README says of keys that are turned in place again and again: each turn rounds them, and where that leads
//! depends on the turns. This is the price of forgetting the original; one composed turn rounds once.

use half::{bf16, f16};
use pie_rope::{Cpu, Element, KeyLayout, Layer, Plan, Rope, Rotations, oracle};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ROWS: usize = 256;
const DIM: usize = 128;

/// A stored number, and back.
trait Number: Element {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Number for f16 {
    fn from_f64(value: f64) -> f16 {
        f16::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        f16::to_f64(self)
    }
}

impl Number for bf16 {
    fn from_f64(value: f64) -> bf16 {
        bf16::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        bf16::to_f64(self)
    }
}

fn random() -> SmallRng {
    let seed = rand::random();
    println!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// The root of the mean squared error of the keys, relative to the keys, after each of some counts of turns by what
/// `delta` says.
fn drift<T: Number>(
    random: &mut SmallRng,
    counts: &[usize],
    mut delta: impl FnMut(&mut SmallRng) -> i32,
) -> Vec<f64> {
    let rope = Rope::from_theta(500_000.0, DIM).unwrap();
    let layout = KeyLayout::bhsd(T::TYPE, [1, 1, ROWS, DIM]);
    let cpu = Cpu::with_threads(1).unwrap();
    // Nearly normal, as keys are.
    let mut key = || (0..12).map(|_| random.random_range(-0.5..0.5)).sum();
    let start: Vec<T> = (0..ROWS * DIM).map(|_| T::from_f64(key())).collect();
    let mut keys = start.clone();
    // Far enough from either end of what can be a position.
    let from: Vec<i32> = (1000..).take(ROWS).collect();
    let (mut turned, mut by) = (0, 0);
    let mut errors = Vec::new();
    for &count in counts {
        for _ in turned..count {
            let delta = delta(random);
            let to: Vec<i32> = from.iter().map(|position| position + delta).collect();
            let plan = Plan::from_positions(&from, &to).unwrap();
            let rotations = Rotations::new(&plan, &rope).unwrap();
            cpu.rotate(&rotations, layout, &mut [Layer::keys_only(&mut keys)])
                .unwrap();
            by += delta;
        }
        turned = count;
        let (mut error, mut norm) = (0.0, 0.0);
        for (start, now) in start.chunks(DIM).zip(keys.chunks(DIM)) {
            let mut exact: Vec<f64> = start.iter().map(|key| key.to_f64()).collect();
            oracle::rotate(&mut exact, &rope, f64::from(by));
            for (exact, now) in exact.iter().zip(now) {
                error += (exact - now.to_f64()).powi(2);
                norm += exact * exact;
            }
        }
        errors.push(f64::sqrt(error / norm));
    }
    errors
}

/// Each of `found` is what the README says, give or take a quarter.
fn expect(what: &str, found: &[f64], says: &[f64]) {
    let list: Vec<String> = found.iter().map(|found| format!("{found:.2e}")).collect();
    println!("{what}: {}", list.join(", "));
    assert_eq!(found.len(), says.len());
    for (found, says) in found.iter().zip(says) {
        let near = (0.75 * says..1.25 * says).contains(found);
        assert!(near, "{what}: {found:.2e}, the README says {says:.2e}");
    }
}

/// Turns of either sign: a random walk, eight times as far off after 64 steps as after one.
#[test]
fn turns_of_either_sign_drift_as_a_random_walk() {
    let random = &mut random();
    let mut either =
        |random: &mut SmallRng| random.random_range(2..40) * if random.random() { 1 } else { -1 };
    let found = drift::<bf16>(random, &[1, 64], &mut either);
    expect("bf16, either sign", &found, &[1.4e-3, 1.1e-2]);
}

/// Turns of one sign, as by one token typed at a time before the keys: a turn that is smaller than half a unit in the
/// last place is rounded away, each time again, so what is lost adds up.
#[test]
fn turns_of_one_sign_add_up() {
    let random = &mut random();
    let counts = [64, 256, 1000];
    let typed = |_: &mut SmallRng| 1;
    let found = drift::<bf16>(random, &counts, typed);
    expect("bf16, one token at a time", &found, &[3.2e-2, 0.11, 0.44]);
    let found = drift::<f16>(random, &counts, typed);
    expect(
        "f16, one token at a time",
        &found,
        &[5.4e-3, 1.8e-2, 5.6e-2],
    );
}
