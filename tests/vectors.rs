//! Numbers that others published for the same computation.

#[cfg(feature = "config")]
mod support;

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

/// Keys that transformers' own models cache before and after an edit: turning the first must give the second.
///
/// `scripts/reference_vectors.py` makes them; its head says what the files hold and how far a key may be off.
#[cfg(feature = "config")]
mod transformers {
    use half::{bf16, f16};
    use pie_rope::{
        Cpu, Element, ElementType, KeyLayout, Layer, ModelRope, Pairing, Plan, Rope, Rotations,
        oracle,
    };
    use std::collections::HashSet;

    use crate::support::{assert_same_bits, assert_within_ulps, each, worse};

    /// One file.
    struct Case {
        file: String,
        config: String,
        /// How long the sequence is before and after: which frequencies the old and the new keys have.
        tokens: [usize; 2],
        element: ElementType,
        layers: Vec<Keys>,
    }

    /// What one layer caches.
    struct Keys {
        layer: usize,
        dim: usize,
        /// Which components turn together, and the first that does; `None`: none.
        window: Option<(Pairing, usize)>,
        keys: Vec<Key>,
    }

    /// One token's key at its old position and at its new one, bit for bit.
    struct Key {
        positions: [i32; 2],
        bits: [Vec<u32>; 2],
    }

    fn cases() -> Vec<Case> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
        files.iter().map(|file| Case::read(file)).collect()
    }

    impl Case {
        fn read(path: &std::path::Path) -> Case {
            let text = std::fs::read_to_string(path).unwrap();
            let mut case = Case {
                file: path.file_stem().unwrap().to_string_lossy().into_owned(),
                config: String::new(),
                tokens: [0; 2],
                element: ElementType::F32,
                layers: Vec::new(),
            };
            for line in text.lines() {
                let (word, rest) = line.split_once(' ').unwrap();
                let words: Vec<&str> = rest.split(' ').collect();
                let number = |index: usize| words[index].parse().unwrap();
                match word {
                    "pie-rope" | "from" | "name" => {}
                    "config" => case.config = rest.to_owned(),
                    "tokens" => case.tokens = [number(0), number(1)],
                    "element" => {
                        let all = [ElementType::F32, ElementType::F16, ElementType::BF16];
                        let named = all.into_iter().find(|element| element.to_string() == rest);
                        case.element = named.unwrap();
                    }
                    "layer" => case.layers.push(Keys {
                        layer: number(0),
                        dim: number(1),
                        window: match words[2] {
                            "half-split" => Some((Pairing::HalfSplit, number(3))),
                            "interleaved" => Some((Pairing::Interleaved, number(3))),
                            "none" => None,
                            other => panic!("{}: a pairing of {other}", case.file),
                        },
                        keys: Vec::new(),
                    }),
                    "key" => {
                        let layer = case.layers.last_mut().unwrap();
                        let digits = 2 * case.element.size();
                        let bits = [words[2], words[3]].map(|hex| -> Vec<u32> {
                            assert_eq!(hex.len(), layer.dim * digits, "{}", case.file);
                            let numbers = (0..layer.dim).map(|at| &hex[at * digits..][..digits]);
                            numbers
                                .map(|hex| u32::from_str_radix(hex, 16).unwrap())
                                .collect()
                        });
                        layer.keys.push(Key {
                            positions: [number(0) as i32, number(1) as i32],
                            bits,
                        });
                    }
                    other => panic!("{}: a line of {other}", case.file),
                }
            }
            assert!(!case.layers.is_empty(), "{} has no keys", case.file);
            case
        }

        /// The model's ropes when the old keys were encoded, and the new ones.
        fn models(&self) -> [ModelRope; 2] {
            self.tokens
                .map(|tokens| ModelRope::from_config_json_at(&self.config, tokens).unwrap())
        }

        fn numbers(&self, bits: &[u32]) -> Vec<f64> {
            let number = |&bits: &u32| match self.element {
                ElementType::F32 => f64::from(f32::from_bits(bits)),
                ElementType::F16 => f16::from_bits(bits as u16).to_f64(),
                ElementType::BF16 => bf16::from_bits(bits as u16).to_f64(),
            };
            bits.iter().map(number).collect()
        }

        /// What the CPU backend makes of a layer's old keys.
        fn turn(&self, layer: &Keys, rotations: &Rotations) -> Vec<Vec<u32>> {
            fn rotate<T: Element>(keys: &mut [T], dim: usize, rotations: &Rotations) {
                let layout = KeyLayout::bhsd(T::TYPE, [1, 1, keys.len() / dim, dim]);
                let mut layers = [Layer::keys_only(keys)];
                Cpu::new().rotate(rotations, layout, &mut layers).unwrap();
            }
            let old = layer
                .keys
                .iter()
                .flat_map(|key| key.bits[0].iter().copied());
            let turned: Vec<u32> = match self.element {
                ElementType::F32 => {
                    let mut keys: Vec<f32> = old.map(f32::from_bits).collect();
                    rotate(&mut keys, layer.dim, rotations);
                    keys.into_iter().map(f32::to_bits).collect()
                }
                ElementType::F16 => {
                    let mut keys: Vec<f16> = old.map(|bits| f16::from_bits(bits as u16)).collect();
                    rotate(&mut keys, layer.dim, rotations);
                    keys.into_iter().map(|key| key.to_bits().into()).collect()
                }
                ElementType::BF16 => {
                    let mut keys: Vec<bf16> =
                        old.map(|bits| bf16::from_bits(bits as u16)).collect();
                    rotate(&mut keys, layer.dim, rotations);
                    keys.into_iter().map(|key| key.to_bits().into()).collect()
                }
            };
            turned.chunks(layer.dim).map(<[u32]>::to_vec).collect()
        }
    }

    /// Whether a key's bits change at all between two positions.
    fn turns([before, after]: [&Rope; 2], [old, new]: [i32; 2]) -> bool {
        old != new || before != after
    }

    /// What the turn itself may be off by, in units in the last place: `max_ulps` of `tests/conformance/check.rs`.
    fn own(element: ElementType) -> f64 {
        match element {
            ElementType::F32 => 1.708,
            ElementType::F16 => 0.5003,
            ElementType::BF16 => 0.5001,
        }
    }

    /// How far a pair may be off, in units in the last place: derived at the head of `scripts/reference_vectors.py`.
    fn allowed(element: ElementType, [f_old, f_new]: [f64; 2], [old, new]: [i32; 2]) -> f64 {
        let unit = oracle::ulp(ElementType::F32, 1.0) / oracle::ulp(element, 1.0);
        let (before, after) = (f_old * f64::from(old), f_new * f64::from(new));
        // An f32 frequency is off by 6e-7 of itself at most; in parts of 2^-24.
        let frequency = 6e-7 * f64::exp2(24.0);
        let common = if f_old == f_new {
            (after - before).abs()
        } else {
            before + after
        };
        let angle = unit * (before + after + frequency * common);
        let narrowed = if element == ElementType::F32 {
            0.0
        } else {
            0.5
        };
        let encoding = (f64::sqrt(2.0) + 1.0) * unit + 1.5 + narrowed;
        angle + (1.0 + f64::sqrt(2.0)) * encoding + own(element)
    }

    /// The pair that is furthest off, for what it may be off by.
    #[derive(Clone, Copy, Default)]
    struct Worst {
        pair: usize,
        /// In units in the last place at the magnitude of the pair.
        error: f64,
        allowed: f64,
    }

    impl Worst {
        fn ratio(self) -> f64 {
            self.error / self.allowed
        }

        fn or(self, other: Worst) -> Worst {
            // Errors are infinite rather than NaN; with nothing allowed the ratio may be, which is worse than anything.
            if self.allowed > 0.0 && other.ratio() <= self.ratio() {
                self
            } else {
                other
            }
        }
    }

    /// Compares a key with the one that transformers cached at its new position, pair by pair.
    fn compare(case: &Case, ropes: [&Rope; 2], key: &Key, got: &[f64]) -> Worst {
        let [old, new] = [0, 1].map(|end| case.numbers(&key.bits[end]));
        let pairs = (0..ropes[1].pairs()).map(|pair| {
            let (a, b) = oracle::pair(ropes[1], pair);
            let magnitude = old[a].hypot(old[b]).max(new[a].hypot(new[b]));
            let off = oracle::distance((got[a], got[b]), (new[a], new[b]));
            Worst {
                pair,
                error: off / oracle::ulp(case.element, magnitude),
                allowed: allowed(
                    case.element,
                    ropes.map(|rope| rope.inv_freq()[pair]),
                    key.positions,
                ),
            }
        });
        let worst = pairs.fold(Worst::default(), Worst::or);
        assert!(worst.allowed > 0.0, "{}: nothing compared", case.file);
        worst
    }

    /// Turns a key by the definition, in f64.
    fn by_definition(key: &[f64], ropes: [&Rope; 2], positions: [i32; 2]) -> Vec<f64> {
        let mut turned = key.to_vec();
        oracle::turn(
            &mut turned,
            (ropes[0], positions[0]),
            (ropes[1], positions[1]),
        );
        turned
    }

    /// A key that transformers does not turn is not turned.
    #[track_caller]
    fn stays(key: &Key, turned: &[u32], place: &str) {
        let component = |dim| format!("{place}: component {dim}");
        assert_same_bits(&key.bits[0], &key.bits[1], |dim| {
            format!("transformers turns {}", component(dim))
        });
        assert_same_bits(turned, &key.bits[1], component);
    }

    #[test]
    fn turned_keys_are_those_that_models_cache() {
        for case in cases() {
            let [before, after] = case.models();
            // Of the crate against transformers; of the definition, without the crate's rounding; of the crate
            // against the definition.
            let [mut whole, mut theirs] = [Worst::default(); 2];
            let mut ours: f64 = 0.0;
            for layer in &case.layers {
                for model in [&before, &after] {
                    let rope = model.layer(layer.layer);
                    let window = rope.map(|rope| (rope.pairing(), rope.offset()));
                    assert_eq!(window, layer.window, "{}, layer {}", case.file, layer.layer);
                }
                let positions = |end: usize| -> Vec<i32> {
                    layer.keys.iter().map(|key| key.positions[end]).collect()
                };
                let plan = Plan::from_positions(&positions(0), &positions(1)).unwrap();
                let rotations = Rotations::between(&plan, &before, &after).unwrap();
                let rotations = rotations.select([layer.layer]).unwrap();
                let turned = case.turn(layer, &rotations);
                for (key, turned) in each(&layer.keys, &turned) {
                    let place = format!(
                        "{}, layer {}, position {} to {}",
                        case.file, layer.layer, key.positions[0], key.positions[1]
                    );
                    let ropes = [&before, &after].map(|model| model.layer(layer.layer));
                    let [Some(old), Some(new)] = ropes else {
                        assert_eq!(ropes, [None, None], "{place}");
                        stays(key, turned, &format!("{place}: it has no rope"));
                        continue;
                    };
                    let ropes = [old, new];
                    if !turns(ropes, key.positions) {
                        stays(key, turned, &place);
                        continue;
                    }
                    for dim in (0..layer.dim).filter(|dim| !new.window().contains(dim)) {
                        assert_eq!(turned[dim], key.bits[1][dim], "{place}, component {dim}");
                    }
                    let got = case.numbers(turned);
                    let exact = by_definition(&case.numbers(&key.bits[0]), ropes, key.positions);
                    let here = compare(&case, ropes, key, &got);
                    assert!(
                        here.ratio() <= 1.0,
                        "{place}, pair {}: off by {} units in the last place of at most {}",
                        here.pair,
                        here.error,
                        here.allowed
                    );
                    whole = whole.or(here);
                    theirs = theirs.or(compare(&case, ropes, key, &exact));
                    let pairs = |numbers: &[f64]| -> Vec<(f64, f64)> {
                        let pairs = (0..new.pairs()).map(|pair| oracle::pair(new, pair));
                        pairs.map(|(a, b)| (numbers[a], numbers[b])).collect()
                    };
                    let (got, exact) = (pairs(&got), pairs(&exact));
                    let allowed = own(case.element);
                    let error = assert_within_ulps(case.element, allowed, &got, &exact, |pair| {
                        format!("{place}, pair {pair}, by the definition")
                    });
                    ours = worse(ours, error);
                }
            }
            println!(
                "{:<36} {:>4}: off by {:>8.2} of {:>9.2}; the definition by {:>8.2} of {:>9.2}; the crate from it by \
                 {ours:.3} of {}",
                case.file,
                case.element.to_string(),
                whole.error,
                whole.allowed,
                theirs.error,
                theirs.allowed,
                own(case.element)
            );
        }
    }

    /// Every vector tells a wrong turn from the right one, by many times what a right one may be off by.
    #[test]
    fn wrong_turns_are_far_off() {
        let mut nearest = f64::INFINITY;
        for case in cases() {
            let [before, after] = case.models();
            let margin = match case.element {
                ElementType::F32 => 25.0,
                _ => 10.0,
            };
            for layer in &case.layers {
                let (Some(old), Some(new)) = (before.layer(layer.layer), after.layer(layer.layer))
                else {
                    continue;
                };
                let ropes = [old, new];
                let other = |rope: &Rope| {
                    rope.clone().with_pairing(match rope.pairing() {
                        Pairing::HalfSplit => Pairing::Interleaved,
                        Pairing::Interleaved => Pairing::HalfSplit,
                    })
                };
                for key in &layer.keys {
                    let from = case.numbers(&key.bits[0]);
                    let [at, to] = key.positions;
                    let mut wrong = vec![
                        (
                            "a position too far",
                            by_definition(&from, ropes, [at, to + 1]),
                        ),
                        (
                            "a position short",
                            by_definition(&from, ropes, [at, to - 1]),
                        ),
                    ];
                    if turns(ropes, key.positions) {
                        let (old, new) = (other(old), other(new));
                        wrong.push(("not turned", from.clone()));
                        wrong.push((
                            "of the other pairing",
                            by_definition(&from, [&old, &new], [at, to]),
                        ));
                    }
                    if at != to {
                        wrong.push((
                            "turned backwards",
                            by_definition(&from, ropes, [at, 2 * at - to]),
                        ));
                    }
                    if old != new {
                        wrong.push((
                            "of the old length",
                            by_definition(&from, [old, old], [at, to]),
                        ));
                        wrong.push((
                            "of the new length",
                            by_definition(&from, [new, new], [at, to]),
                        ));
                    }
                    for (what, wrong) in wrong {
                        let worst = compare(&case, ropes, key, &wrong);
                        nearest = nearest.min(worst.ratio() / margin);
                        // A NaN is as far off as can be, and is no wrong turn.
                        assert!(
                            worst.ratio() >= margin && worst.ratio().is_finite(),
                            "{}, layer {}, position {at} to {to}: {what}, and pair {} is off by {} only, of {}",
                            case.file,
                            layer.layer,
                            worst.pair,
                            worst.error,
                            worst.allowed
                        );
                    }
                }
            }
        }
        println!("the nearest is {nearest:.1} times as far off as is demanded");
    }

    /// The files are all there: every type of rope, both pairings, every element, every way in which keys stay.
    #[test]
    fn every_rope_type_is_there() {
        let cases = cases();
        let mut seen = HashSet::new();
        for case in &cases {
            for name in [
                "linear",
                "dynamic",
                "yarn",
                "longrope",
                "llama3",
                "proportional",
            ] {
                // Gemma 4's class defaults are proportional; Phi-3's file says longrope by its factors.
                let said = match name {
                    "proportional" => "gemma4",
                    "longrope" => "long_factor",
                    name => name,
                };
                if case.config.contains(said) {
                    seen.insert(name);
                }
            }
            if !case.config.contains("rope_scaling") {
                seen.insert("default");
            }
            let [before, after] = case.models();
            if before != after {
                seen.insert("frequencies that change");
            }
            if before.ropes().len() > 1 {
                seen.insert("ropes of layers' own");
            }
            seen.insert(match case.element {
                ElementType::F32 => "f32",
                ElementType::F16 => "f16",
                ElementType::BF16 => "bf16",
            });
            for layer in &case.layers {
                let Some(rope) = before.layer(layer.layer) else {
                    seen.insert("a layer without a rope");
                    continue;
                };
                seen.insert(match rope.pairing() {
                    Pairing::HalfSplit => "half-split",
                    Pairing::Interleaved => "interleaved",
                });
                if rope.rotary_dim() < layer.dim {
                    seen.insert("partial");
                }
                if rope.offset() > 0 {
                    seen.insert("a window at an offset");
                }
                if layer
                    .keys
                    .iter()
                    .any(|key| key.positions[0] == key.positions[1])
                {
                    seen.insert("a key that stays");
                }
                if layer.keys.iter().any(|key| key.positions[0] > 100_000) {
                    seen.insert("a position beyond 100 000");
                }
            }
        }
        assert_eq!(seen.len(), 19, "{seen:?}");
        assert!(cases.len() >= 29, "{} files", cases.len());
    }
}
