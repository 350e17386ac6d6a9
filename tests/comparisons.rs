//! What compares results with expectations in the other tests fails where it should: on NaN in any place, on too
//! little, on nothing, and on a single bit; and says where.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use half::{bf16, f16};
use pie_rope::ElementType;
use support::{assert_same_bits, bhsd, each, same_bits, within_ulps, worse};

const SHAPE: [usize; 4] = [2, 3, 4, 5];
const LEN: usize = 2 * 3 * 4 * 5;

fn numbers() -> Vec<f32> {
    (0..LEN).map(|_| rand::random_range(-2.0..2.0)).collect()
}

fn pairs() -> Vec<(f64, f64)> {
    let one = || f64::from(rand::random_range(-2.0f32..2.0));
    (0..LEN).map(|_| (one(), one())).collect()
}

fn panics<R>(what: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(what)).is_err()
}

#[test]
fn every_single_bit_counts() {
    let expected = numbers();
    same_bits(&expected, &expected, bhsd(SHAPE)).unwrap();
    for index in 0..LEN {
        for bit in 0..32 {
            let mut got = expected.clone();
            got[index] = f32::from_bits(got[index].to_bits() ^ 1 << bit);
            let problem = same_bits(&got, &expected, bhsd(SHAPE)).unwrap_err();
            let (dim, row, head) = (index % 5, index / 5 % 4, index / 20 % 3);
            let place = format!(
                "batch {}, head {head}, row {row}, dimension {dim}: ",
                index / 60
            );
            assert!(problem.starts_with(&place), "{problem}");
            let values = format!("got {:?} (0x{:08x})", got[index], got[index].to_bits());
            assert!(problem.contains(&values), "{problem}");
            assert!(
                problem.contains(&format!("expected {:?}", expected[index])),
                "{problem}"
            );
        }
    }
}

#[test]
fn bits_are_not_numbers() {
    // The same NaN is the same; another one is not, nor is the other zero.
    let nan = f16::from_bits(0x7e01);
    same_bits(&[nan], &[nan], |_| String::new()).unwrap();
    for (got, expected) in [(0x7e01, 0x7e02), (0x7e01, 0xfe01), (0x8000, 0x0000)] {
        let one = |bits| [bf16::from_bits(bits)];
        same_bits(&one(got), &one(expected), |_| String::new()).unwrap_err();
    }
}

#[test]
fn the_first_difference_is_named() {
    let expected = numbers();
    let mut got = expected.clone();
    got[77] = f32::NAN;
    got[33] = f32::NAN;
    let problem = same_bits(&got, &expected, |index| format!("element {index}")).unwrap_err();
    assert!(problem.starts_with("element 33: got NaN (0x"), "{problem}");
    assert!(panics(|| assert_same_bits(&got, &expected, bhsd(SHAPE))));
    let mut got = pairs();
    let expected = got.clone();
    got[77].0 = f64::NAN;
    got[33].1 += 1.0;
    let place = |index| format!("pair {index}");
    let problem = within_ulps(ElementType::F32, 1.0, &got, &expected, place).unwrap_err();
    assert!(problem.starts_with("pair 33: got ("), "{problem}");
}

#[test]
fn too_short_or_empty_is_no_match() {
    let all = numbers();
    let problem = same_bits(&all[..LEN - 1], &all, bhsd(SHAPE)).unwrap_err();
    assert_eq!(problem, "got 119 of 120 elements");
    same_bits(&all, &all[1..], bhsd(SHAPE)).unwrap_err();
    same_bits(&[], &all, bhsd(SHAPE)).unwrap_err();
    let problem = same_bits::<f32>(&[], &[], bhsd(SHAPE)).unwrap_err();
    assert_eq!(problem, "there is nothing to compare");

    let all = pairs();
    for (got, expected) in [(&all[1..], &all[..]), (&all, &all[1..]), (&[], &[])] {
        within_ulps(ElementType::F32, 1e9, got, expected, bhsd(SHAPE)).unwrap_err();
    }

    assert_eq!(each(&[1, 2], &["a", "b"]).len(), 2);
    assert!(panics(|| each(&[1, 2], &[1]).count()));
    assert!(panics(|| each(&[1], &[1, 2]).count()));
    assert!(panics(|| each::<u8, u8>(&[], &[]).count()));
}

#[test]
fn a_nan_in_any_place_is_off() {
    let expected = pairs();
    for element in [ElementType::F32, ElementType::F16, ElementType::BF16] {
        let place = |index| format!("pair {index}");
        let worst = within_ulps(element, 0.0, &expected, &expected, place).unwrap();
        assert_eq!(worst, 0.0);
        for index in 0..LEN {
            for which in 1..16 {
                let (mut got, mut expected) = (expected.clone(), expected.clone());
                let (a, b) = (&mut got[index], &mut expected[index]);
                let four = [&mut a.0, &mut a.1, &mut b.0, &mut b.1];
                for (bit, number) in four.into_iter().enumerate() {
                    if which >> bit & 1 == 1 {
                        *number = f64::NAN;
                    }
                }
                let problem = within_ulps(element, f64::MAX, &got, &expected, place).unwrap_err();
                assert!(
                    problem.starts_with(&format!("pair {index}: got ")),
                    "{problem}"
                );
            }
        }
        // Nor is anything within a bound that is NaN.
        within_ulps(element, f64::NAN, &expected, &expected, place).unwrap_err();
    }
}

#[test]
fn the_worst_error_is_kept_whatever_comes_after() {
    assert_eq!(worse(1.0, 2.0), 2.0);
    assert_eq!(worse(2.0, 1.0), 2.0);
    for (one, other) in [
        (f64::NAN, 1.0),
        (1.0, f64::NAN),
        (f64::NAN, f64::NAN),
        (f64::INFINITY, f64::NAN),
    ] {
        assert_eq!(worse(one, other), f64::INFINITY);
    }
    assert_eq!(worse(worse(f64::NAN, 1.0), 2.0), f64::INFINITY);
}
