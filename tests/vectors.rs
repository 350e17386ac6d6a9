//! Numbers that others published for the same computation.

use approx::assert_abs_diff_eq;
use pie_rope::{Cpu, ElementType, KeyLayout, Layer, Plan, Rope, Rotations};
use std::f64::consts::PI;

/// Turns one head vector by one position, with the given angle per pair.
fn turn_by(angles: &[f64], keys: [f32; 4]) -> [f32; 4] {
    let rope = Rope::from_inv_freq(angles.to_vec()).unwrap();
    let plan = Plan::from_positions(&[0], &[1]).unwrap();
    let rotations = Rotations::new(&plan, &rope).unwrap();
    let layout = KeyLayout::bhsd(ElementType::F32, [1, 1, 1, 4]);
    let mut turned = keys;
    let mut layers = [Layer::keys_only(&mut turned)];
    Cpu::new().rotate(&rotations, layout, &mut layers).unwrap();
    turned
}

/// OpenVINO's cache rotation test: cos [0.5, 0.70710678], sin [0.86602540, -0.70710678].
#[test]
fn openvino_first() {
    let turned = turn_by(&[PI / 3.0, 2.0 * PI - PI / 4.0], [1.0, 1.0, 1.0, 1.0]);
    let published = [-0.366_025_4, std::f32::consts::SQRT_2, 1.366_025_4, 0.0];
    assert_abs_diff_eq!(&turned[..], &published[..], epsilon = 2e-7);
}

/// OpenVINO's cache rotation test: cos [-0.70710678, 0], sin [0.70710678, 1].
#[test]
fn openvino_second() {
    let turned = turn_by(&[3.0 * PI / 4.0, PI / 2.0], [-1.0, 2.0, -3.0, 4.0]);
    let published = [
        2.0 * std::f32::consts::SQRT_2,
        -4.0,
        std::f32::consts::SQRT_2,
        2.0,
    ];
    assert_abs_diff_eq!(&turned[..], &published[..], epsilon = 5e-7);
}
