//! Over candle's tensors the verbs do what they do over slices, bit for bit, on whole tensors and on every kind of
//! view, and leave what surrounds a view alone. What is refused has changed nothing.

mod support;

use half::{bf16, f16};
use pie_rope::candle_core::{DType, Device, Result, Tensor, WithDType};
use pie_rope::{
    CacheLayout, Candle, CandleLayer, Cpu, Edit, Element, ElementType, KeyLayout, Layer, LayerRef,
    ModelRope, Pairing, Plan, Rope, Rotations,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{assert_same_bits, each};

const LAYERS: usize = 3;
const BATCH: usize = 2;
const HEADS: usize = 3;
const ROWS: usize = 40;
const DIM: usize = 16;

/// What a tensor and a cache have in common.
trait Number: Element + WithDType + std::fmt::Debug {}

impl<T: Element + WithDType + std::fmt::Debug> Number for T {}

fn random() -> SmallRng {
    let seed = rand::random();
    println!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// Any bits at all, NaN and infinities among them.
fn noise<T: Element>(len: usize, random: &mut SmallRng) -> Vec<T> {
    let mut data = vec![T::zeroed(); len];
    random.fill(bytemuck::cast_slice_mut::<T, u8>(&mut data));
    data
}

/// All elements of a tensor, in its own order.
fn elements<T: WithDType>(tensor: &Tensor) -> Vec<T> {
    let here = tensor.to_device(&Device::Cpu).unwrap();
    here.flatten_all().unwrap().to_vec1().unwrap()
}

/// How a cache lies in tensors.
struct Form {
    name: &'static str,
    /// How many tensors of `shape` there are.
    tensors: usize,
    shape: &'static [usize],
    /// A layer's keys (0) or values (1) in them.
    view: fn(&[Tensor], usize, usize) -> Result<Tensor>,
    /// Sequences.
    batch: usize,
}

/// One tensor for each layer's keys and values.
const EACH: usize = 2 * LAYERS;

const FORMS: &[Form] = &[
    Form {
        name: "whole",
        tensors: EACH,
        shape: &[BATCH, HEADS, ROWS, DIM],
        view: |t, layer, part| Ok(t[2 * layer + part].clone()),
        batch: BATCH,
    },
    Form {
        name: "without a batch",
        tensors: EACH,
        shape: &[HEADS, ROWS, DIM],
        view: |t, layer, part| Ok(t[2 * layer + part].clone()),
        batch: 1,
    },
    Form {
        name: "one sequence of three",
        tensors: EACH,
        shape: &[3, HEADS, ROWS, DIM],
        view: |t, layer, part| t[2 * layer + part].narrow(0, 1, 1),
        batch: 1,
    },
    Form {
        name: "some rows",
        tensors: EACH,
        shape: &[BATCH, HEADS, ROWS + 9, DIM],
        view: |t, layer, part| t[2 * layer + part].narrow(2, 5, ROWS),
        batch: BATCH,
    },
    Form {
        name: "some heads",
        tensors: EACH,
        shape: &[BATCH, HEADS + 2, ROWS, DIM],
        view: |t, layer, part| t[2 * layer + part].narrow(1, 1, HEADS),
        batch: BATCH,
    },
    Form {
        name: "some dimensions",
        tensors: EACH,
        shape: &[BATCH, HEADS, ROWS, DIM + 7],
        view: |t, layer, part| t[2 * layer + part].narrow(3, 3, DIM),
        batch: BATCH,
    },
    Form {
        name: "some of everything, heads behind rows",
        tensors: EACH,
        shape: &[BATCH + 1, ROWS + 3, HEADS + 2, DIM + 1],
        view: |t, layer, part| {
            let t = t[2 * layer + part]
                .narrow(0, 1, BATCH)?
                .narrow(1, 2, ROWS)?;
            t.narrow(2, 1, HEADS)?.narrow(3, 1, DIM)?.transpose(1, 2)
        },
        batch: BATCH,
    },
    Form {
        name: "heads behind rows",
        tensors: EACH,
        shape: &[BATCH, ROWS, HEADS, DIM],
        view: |t, layer, part| t[2 * layer + part].transpose(1, 2),
        batch: BATCH,
    },
    Form {
        name: "dimensions apart",
        tensors: EACH,
        shape: &[BATCH, HEADS, DIM, ROWS],
        view: |t, layer, part| t[2 * layer + part].transpose(2, 3),
        batch: BATCH,
    },
    Form {
        name: "all in one",
        tensors: 1,
        shape: &[LAYERS, 2, BATCH, HEADS, ROWS, DIM],
        view: |t, layer, part| t[0].get(layer)?.get(part),
        batch: BATCH,
    },
    Form {
        name: "values behind keys in a head",
        tensors: LAYERS,
        shape: &[BATCH, HEADS, ROWS, 2 * DIM],
        view: |t, layer, part| t[layer].narrow(3, part * DIM, DIM),
        batch: BATCH,
    },
    Form {
        name: "all heads of all layers together",
        tensors: 1,
        shape: &[BATCH, 2 * LAYERS * HEADS, ROWS, DIM],
        view: |t, layer, part| t[0].narrow(1, (2 * layer + part) * HEADS, HEADS),
        batch: BATCH,
    },
    Form {
        name: "all layers of a row together",
        tensors: 1,
        shape: &[BATCH, ROWS, LAYERS, 2, HEADS, DIM],
        view: |t, layer, part| {
            let of_layer = t[0].narrow(2, layer, 1)?.squeeze(2)?;
            of_layer.narrow(2, part, 1)?.squeeze(2)?.transpose(1, 2)
        },
        batch: BATCH,
    },
];

/// A cache of random bits, and where its views' elements are in them.
struct Cache<T> {
    form: &'static Form,
    tensors: Vec<Tensor>,
    before: Vec<Vec<T>>,
    views: Vec<[Tensor; 2]>,
    /// Of each view, in its order: which tensor, and the elements in it.
    places: Vec<[(usize, Vec<u32>); 2]>,
}

impl<T: Number> Cache<T> {
    fn new(form: &'static Form, device: &Device, random: &mut SmallRng) -> Cache<T> {
        let len: usize = form.shape.iter().product();
        let before: Vec<Vec<T>> = (0..form.tensors).map(|_| noise(len, random)).collect();
        let tensor = |data| Tensor::from_vec(data, form.shape, device).unwrap();
        let tensors: Vec<Tensor> = before.iter().cloned().map(tensor).collect();
        // Elements that count through all tensors.
        let counts = (0..form.tensors).map(|tensor| {
            let first = (tensor * len) as u32;
            let counts = (first..first + len as u32).collect::<Vec<_>>();
            Tensor::from_vec(counts, form.shape, &Device::Cpu).unwrap()
        });
        let counts: Vec<Tensor> = counts.collect();
        let view = |tensors: &[Tensor], layer| {
            [0, 1].map(|part| (form.view)(tensors, layer, part).unwrap())
        };
        let place = |view: Tensor| {
            let counts = elements::<u32>(&view);
            let tensor = counts[0] as usize / len;
            (
                tensor,
                counts.iter().map(|count| count % len as u32).collect(),
            )
        };
        Cache {
            form,
            views: (0..LAYERS).map(|layer| view(&tensors, layer)).collect(),
            places: (0..LAYERS)
                .map(|layer| view(&counts, layer).map(place))
                .collect(),
            tensors,
            before,
        }
    }

    fn layers(&self) -> Vec<CandleLayer<'_>> {
        let views = self.views.iter();
        views
            .map(|[keys, values]| CandleLayer::new(keys, values))
            .collect()
    }

    fn layout(&self) -> KeyLayout<'static> {
        KeyLayout::bhsd(T::TYPE, [self.form.batch, HEADS, ROWS, DIM])
    }

    /// What a layer's keys and values were, one after the other.
    fn part(&self, layer: usize) -> [Vec<T>; 2] {
        let read = |(tensor, places): &(usize, Vec<u32>)| {
            let elements = places.iter().map(|&at| self.before[*tensor][at as usize]);
            elements.collect()
        };
        [0, 1].map(|part| read(&self.places[layer][part]))
    }

    /// Holds all memory to what it was, but for what `expected` says of the views.
    #[track_caller]
    fn holds(&self, expected: &[[Vec<T>; 2]]) {
        let mut all = self.before.clone();
        for (places, expected) in each(&self.places, expected) {
            for ((tensor, places), expected) in each(places, expected) {
                for (&at, &value) in each(places, expected) {
                    all[*tensor][at as usize] = value;
                }
            }
        }
        self.is(&all);
    }

    /// The memory is as it was.
    #[track_caller]
    fn is_unchanged(&self) {
        self.is(&self.before);
    }

    #[track_caller]
    fn is(&self, expected: &[Vec<T>]) {
        for (index, (tensor, expected)) in each(&self.tensors, expected).enumerate() {
            assert_same_bits(&elements::<T>(tensor), expected, |element| {
                format!(
                    "{}: tensor {index}, {}",
                    self.form.name,
                    self.place(index, element)
                )
            });
        }
    }

    /// What an element of a tensor is.
    fn place(&self, tensor: usize, element: usize) -> String {
        for (layer, parts) in self.places.iter().enumerate() {
            for (part, (of, places)) in ["keys", "values"].iter().zip(parts) {
                let found = places.iter().position(|&at| at as usize == element);
                if let Some(index) = found.filter(|_| *of == tensor) {
                    let place = support::bhsd([self.form.batch, HEADS, ROWS, DIM]);
                    return format!("layer {layer}, {part}, {}", place(index));
                }
            }
        }
        format!("element {element}, which is of no view")
    }
}

/// Rotations of a random plan, for any number of layers, or for layers of different ropes and one of none.
fn rotations(random: &mut SmallRng) -> Rotations {
    let rows = random.random_range(20..=30);
    let first = random.random_range(0..rows);
    let last = random.random_range(first..rows);
    let edits = [
        Edit::replace(
            first..random.random_range(first..=last),
            random.random_range(0..5),
        ),
        Edit::replace(
            last..random.random_range(last..=rows),
            random.random_range(0..5),
        ),
    ];
    let plan = Plan::from_edits(rows, &edits).unwrap();
    let rope = Rope::from_theta(10_000.0, DIM).unwrap();
    let other = Rope::from_theta(500.0, DIM / 2).unwrap().with_offset(4);
    let other = other.with_pairing(Pairing::Interleaved);
    if random.random() {
        Rotations::new(&plan, &rope).unwrap()
    } else {
        let model = ModelRope::from_layers([Some(rope), None, Some(other)]);
        Rotations::for_model(&plan, &model).unwrap()
    }
}

fn every_form<T: Number>(device: &Device) {
    let mut random = random();
    let candle = Candle::new();
    let cpu = Cpu::new();
    for form in FORMS {
        for _ in 0..4 {
            let rotations = rotations(&mut random);
            let cache = Cache::<T>::new(form, device, &mut random);
            let mut expected: Vec<_> = (0..LAYERS).map(|layer| cache.part(layer)).collect();
            let slices = |expected: &mut [[Vec<T>; 2]], verb: &dyn Fn(&mut [Layer<'_, T>])| {
                let layers = expected
                    .iter_mut()
                    .map(|[keys, values]| Layer::new(keys, values));
                verb(&mut layers.collect::<Vec<_>>());
            };
            let layout = cache.layout();

            candle.splice(&rotations, &cache.layers()).unwrap();
            slices(&mut expected, &|layers| {
                cpu.splice(&rotations, layout, layers).unwrap()
            });
            cache.holds(&expected);

            candle.rotate(&rotations, &cache.layers()).unwrap();
            slices(&mut expected, &|layers| {
                cpu.rotate(&rotations, layout, layers).unwrap()
            });
            cache.holds(&expected);
        }
    }
}

#[test]
fn every_form_in_f32() {
    every_form::<f32>(&Device::Cpu);
}

#[test]
fn every_form_in_f16() {
    every_form::<f16>(&Device::Cpu);
}

#[test]
fn every_form_in_bf16() {
    every_form::<bf16>(&Device::Cpu);
}

fn every_copy<T: Number>(device: &Device) {
    let mut random = random();
    let candle = Candle::new();
    for from in FORMS {
        for to in FORMS.iter().filter(|to| to.batch == from.batch) {
            let rotations = rotations(&mut random);
            let (src, dst) = (
                Cache::<T>::new(from, device, &mut random),
                Cache::<T>::new(to, device, &mut random),
            );
            let mut expected: Vec<_> = (0..LAYERS).map(|layer| dst.part(layer)).collect();
            let given: Vec<_> = (0..LAYERS).map(|layer| src.part(layer)).collect();

            candle
                .copy(&rotations, &src.layers(), &dst.layers())
                .unwrap();
            let given = given.iter().map(|[keys, values]| LayerRef {
                keys: keys.as_slice(),
                values: Some(values.as_slice()),
            });
            let mut layers: Vec<_> = expected
                .iter_mut()
                .map(|[keys, values]| Layer::new(keys, values))
                .collect();
            let given: Vec<_> = given.collect();
            Cpu::new()
                .copy(&rotations, src.layout(), &given, dst.layout(), &mut layers)
                .unwrap();
            dst.holds(&expected);
            src.is_unchanged();
        }
    }
}

#[test]
fn every_copy_in_every_type() {
    every_copy::<f32>(&Device::Cpu);
    every_copy::<f16>(&Device::Cpu);
    every_copy::<bf16>(&Device::Cpu);
}

/// Sequence 0 of a batch goes to sequence 2, in the same tensors.
#[test]
fn copies_inside_one_tensor() {
    let mut random = random();
    let rotations = rotations(&mut random);
    let shape = (3, HEADS, ROWS, DIM);
    let tensor = |random: &mut SmallRng| {
        let data = noise::<f32>(3 * HEADS * ROWS * DIM, random);
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    };
    let cache: Vec<_> = (0..LAYERS)
        .map(|_| [tensor(&mut random), tensor(&mut random)])
        .collect();
    let apart: Vec<_> = cache
        .iter()
        .map(|tensors| tensors.each_ref().map(|tensor| tensor.copy().unwrap()))
        .collect();
    let sequence = |cache: &[[Tensor; 2]], index| -> Vec<[Tensor; 2]> {
        let narrow = |tensor: &Tensor| tensor.narrow(0, index, 1).unwrap();
        cache
            .iter()
            .map(|tensors| tensors.each_ref().map(narrow))
            .collect()
    };
    fn layers(views: &[[Tensor; 2]]) -> Vec<CandleLayer<'_>> {
        views.iter().map(|[k, v]| CandleLayer::new(k, v)).collect()
    }
    let candle = Candle::new();
    let (src, dst) = (sequence(&cache, 0), sequence(&cache, 2));
    candle
        .copy(&rotations, &layers(&src), &layers(&dst))
        .unwrap();
    let (src, dst) = (sequence(&apart, 0), sequence(&apart, 2));
    let taken: Vec<_> = src
        .iter()
        .map(|tensors| tensors.each_ref().map(|t| t.copy().unwrap()))
        .collect();
    candle
        .copy(&rotations, &layers(&taken), &layers(&dst))
        .unwrap();
    for (layer, (one, other)) in each(&cache, &apart).enumerate() {
        for (half, (one, other)) in ["keys", "values"].iter().zip(each(one, other)) {
            assert_same_bits(&elements::<f32>(one), &elements(other), |index| {
                let place = support::bhsd([3, HEADS, ROWS, DIM]);
                format!("layer {layer}, {half}, {}", place(index))
            });
        }
    }
}

/// Keys alone, as MLA has them: `[batch, 1, seq, dim]`, of which the last dimensions turn.
#[test]
fn keys_alone() {
    let mut random = random();
    let plan = Plan::from_edits(20, &[Edit::delete(3..9)]).unwrap();
    let rope = Rope::from_theta(10_000.0, 8).unwrap().with_offset(24);
    let rotations = Rotations::new(&plan, &rope).unwrap();
    let mut expected = noise::<f32>(20 * 32, &mut random);
    let tensor = Tensor::from_slice(&expected, (1, 1, 20, 32), &Device::Cpu).unwrap();
    Candle::new()
        .splice(&rotations, &[CandleLayer::keys_only(&tensor)])
        .unwrap();
    let layout = KeyLayout::bhsd(pie_rope::ElementType::F32, [1, 1, 20, 32]);
    let layout = CacheLayout::keys_only(layout);
    let mut layers = [Layer::keys_only(&mut expected)];
    Cpu::new().splice(&rotations, layout, &mut layers).unwrap();
    assert_same_bits(
        &elements::<f32>(&tensor),
        &expected,
        support::bhsd([1, 1, 20, 32]),
    );
}

/// No layers, and no rows, are nothing to do.
#[test]
fn nothing_is_nothing() {
    let plan = Plan::from_edits(0, &[]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, DIM).unwrap()).unwrap();
    let candle = Candle::new();
    candle.splice(&rotations, &[]).unwrap();
    candle.copy(&rotations, &[], &[]).unwrap();
    let empty = || Tensor::zeros((1, HEADS, 0, DIM), DType::F32, &Device::Cpu).unwrap();
    let (keys, values, others) = (empty(), empty(), empty());
    let layer = [CandleLayer::new(&keys, &values)];
    candle.splice(&rotations, &layer).unwrap();
    candle.rotate(&rotations, &layer).unwrap();
    candle
        .copy(&rotations, &layer, &[CandleLayer::new(&others, &empty())])
        .unwrap();
}

/// A deep model's cache, all of whose locks are held at once, on a thread's usual stack.
#[test]
fn a_thousand_tensors_at_once() {
    let mut random = random();
    let mut before: Vec<[Vec<f32>; 4]> = (0..250)
        .map(|_| std::array::from_fn(|_| noise(4 * 8, &mut random)))
        .collect();
    let tensor = |data: &Vec<f32>| Tensor::from_slice(data, (1, 1, 4, 8), &Device::Cpu).unwrap();
    let cache: Vec<_> = before
        .iter()
        .map(|layer| layer.each_ref().map(tensor))
        .collect();
    let plan = Plan::from_edits(3, &[Edit::insert(1, 1)]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    let src: Vec<_> = cache
        .iter()
        .map(|[k, v, ..]| CandleLayer::new(k, v))
        .collect();
    let dst: Vec<_> = cache
        .iter()
        .map(|[.., k, v]| CandleLayer::new(k, v))
        .collect();
    Candle::new().copy(&rotations, &src, &dst).unwrap();
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for [keys, values, to_keys, to_values] in &mut before {
        from.push(LayerRef {
            keys: keys.as_slice(),
            values: Some(values.as_slice()),
        });
        to.push(Layer::new(to_keys, to_values));
    }
    let layout = KeyLayout::bhsd(ElementType::F32, [1, 1, 4, 8]);
    Cpu::new()
        .copy(&rotations, layout, &from, layout, &mut to)
        .unwrap();
    for (layer, (tensors, expected)) in each(&cache, &before).enumerate() {
        for (index, (tensor, expected)) in each(tensors, expected).enumerate() {
            assert_same_bits(&elements::<f32>(tensor), expected, |element| {
                format!("layer {layer}, tensor {index}, element {element}")
            });
        }
    }
}

/// Threads that are given the same tensors in different orders all come to an end.
#[test]
fn nobody_waits_in_a_circle() {
    let tensor = || Tensor::ones((1, 2, 8, 8), DType::F32, &Device::Cpu).unwrap();
    let tensors: [Tensor; 4] = std::array::from_fn(|_| tensor());
    let [a, b, c, d] = &tensors;
    let plan = Plan::from_edits(6, &[Edit::insert(2, 2)]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    let candle = Candle::new();
    std::thread::scope(|scope| {
        for [a, b, c, d] in [[a, b, c, d], [c, d, a, b], [d, c, b, a], [b, d, a, c]] {
            let (candle, rotations) = (&candle, &rotations);
            scope.spawn(move || {
                for _ in 0..500 {
                    let (src, dst) = (CandleLayer::new(a, b), CandleLayer::new(c, d));
                    candle.copy(rotations, &[src], &[dst]).unwrap();
                    candle.splice(rotations, &[src, dst]).unwrap();
                    a.sum_all().unwrap();
                }
            });
        }
    });
}

/// Expects a call on two layers to be refused with `expected` in the text, and all four tensors to be as they were.
#[track_caller]
fn refused(expected: &str, call: impl FnOnce(&[[Tensor; 2]]) -> Result<()>) {
    let mut random = random();
    let before: Vec<[Vec<f32>; 2]> = (0..2)
        .map(|_| std::array::from_fn(|_| noise(HEADS * ROWS * DIM, &mut random)))
        .collect();
    let tensor =
        |data: &Vec<f32>| Tensor::from_slice(data, (1, HEADS, ROWS, DIM), &Device::Cpu).unwrap();
    let tensors: Vec<_> = before
        .iter()
        .map(|layer| layer.each_ref().map(tensor))
        .collect();
    let error = call(&tensors)
        .expect_err("it should have been refused")
        .to_string();
    assert!(
        error.contains(expected),
        "`{error}` does not say `{expected}`"
    );
    for (layer, (tensors, before)) in each(&tensors, &before).enumerate() {
        for (half, (tensor, before)) in ["keys", "values"].iter().zip(each(tensors, before)) {
            assert_same_bits(&elements::<f32>(tensor), before, |index| {
                let place = support::bhsd([1, HEADS, ROWS, DIM]);
                let place = place(index);
                format!("refused, but something was written: layer {layer}, {half}, {place}")
            });
        }
    }
}

fn inserted(rows: usize) -> Plan {
    Plan::from_edits(rows, &[Edit::insert(4, 2)]).unwrap()
}

fn sound() -> Rotations {
    Rotations::new(&inserted(20), &Rope::from_theta(10_000.0, DIM).unwrap()).unwrap()
}

/// Splices the first layer and another one that is wrong: the first must stay as it is, too.
fn second(first: &[Tensor; 2], keys: &Tensor, values: &Tensor) -> Result<()> {
    let layers = [
        CandleLayer::new(&first[0], &first[1]),
        CandleLayer::new(keys, values),
    ];
    Candle::new().splice(&sound(), &layers)
}

fn both(t: &[[Tensor; 2]]) -> [CandleLayer<'_>; 2] {
    [0, 1].map(|layer| CandleLayer::new(&t[layer][0], &t[layer][1]))
}

#[test]
fn other_types_and_shapes_are_refused() {
    refused(
        "layers: layer 1: values are f64, not f32, f16 or bf16",
        |t| second(&t[0], &t[1][0], &t[1][1].to_dtype(DType::F64)?),
    );
    refused("layer 1, keys: f16 [1, 3, 40, 16]", |t| {
        second(&t[0], &t[1][0].to_dtype(DType::F16)?, &t[1][1])
    });
    refused("keys are f32, values f16", |t| {
        let values = t[0][1].to_dtype(DType::F16)?;
        Candle::new().splice(&sound(), &[CandleLayer::new(&t[0][0], &values)])
    });
    refused(
        "layers: layer 1: keys are [120, 16], not [batch, heads, seq, dim]",
        |t| second(&t[0], &t[1][0].reshape((HEADS * ROWS, DIM))?, &t[1][1]),
    );
    refused(
        "layer 1, keys: f32 [1, 3, 39, 16] by strides [1920, 640, 16, 1], but",
        |t| second(&t[0], &t[1][0].narrow(2, 0, ROWS - 1)?, &t[1][1]),
    );
    refused(
        "layout: layer 1, values: it has 0 heads of 16 dimensions",
        |t| second(&t[0], &t[1][0], &t[1][1].narrow(1, 0, 0)?),
    );
    refused("layer 1: keys have all 40 rows in one place", |t| {
        second(
            &t[0],
            &t[1][0]
                .narrow(2, 0, 1)?
                .broadcast_as((1, HEADS, ROWS, DIM))?,
            &t[1][1],
        )
    });
    refused("layer 1: values have all 3 heads in one place", |t| {
        second(
            &t[0],
            &t[1][0],
            &t[1][1]
                .narrow(1, 0, 1)?
                .broadcast_as((1, HEADS, ROWS, DIM))?,
        )
    });
    refused("layer 1: keys have all 16 dimensions in one place", |t| {
        second(
            &t[0],
            &t[1][0]
                .narrow(3, 0, 1)?
                .broadcast_as((1, HEADS, ROWS, DIM))?,
            &t[1][1],
        )
    });
}

#[test]
fn layers_that_do_not_fit_the_rotations_are_refused() {
    let rope = || Rope::from_theta(10_000.0, DIM).unwrap();
    refused(
        "layers: 2 given, but the rotations are for a model of 3",
        |t| {
            let model = ModelRope::uniform(rope(), 3);
            let rotations = Rotations::for_model(&inserted(20), &model)?;
            Candle::new().splice(&rotations, &both(t))
        },
    );
    refused(
        "layers: 0 given, but the rotations are for a model of 3",
        |_| {
            let model = ModelRope::uniform(rope(), 3);
            let rotations = Rotations::for_model(&inserted(20), &model)?;
            Candle::new().rotate(&rotations, &[])
        },
    );
    refused(
        "layout: keys: the plan needs 41 rows, the layout has 40",
        |t| {
            let rotations = Rotations::new(&inserted(39), &rope())?;
            Candle::new().splice(&rotations, &both(t))
        },
    );
    refused(
        "layout: keys: the rope turns dimensions 0..32, the head dimension is 16",
        |t| {
            let rotations = Rotations::new(&inserted(20), &Rope::from_theta(10_000.0, 2 * DIM)?)?;
            Candle::new().rotate(&rotations, &both(t))
        },
    );
    refused(
        "layers: layer 1 has no values, those before it have values",
        |t| {
            let layers = [
                CandleLayer::new(&t[0][0], &t[0][1]),
                CandleLayer::keys_only(&t[1][0]),
            ];
            Candle::new().splice(&sound(), &layers)
        },
    );
    refused(
        "layers: layer 1 has values, those before it have no values",
        |t| {
            let layers = [
                CandleLayer::keys_only(&t[1][0]),
                CandleLayer::new(&t[0][0], &t[0][1]),
            ];
            Candle::new().splice(&sound(), &layers)
        },
    );
}

#[test]
fn shared_elements_are_refused() {
    refused(
        "layers: layer 1's keys and layer 0's keys are views of one memory",
        |t| second(&t[0], &t[0][0], &t[1][1]),
    );
    refused(
        "layers: layer 0's values and layer 0's keys are views of one memory",
        |t| second(&[t[0][0].clone(), t[0][0].clone()], &t[1][0], &t[1][1]),
    );
    refused("views of one memory", |t| {
        let (a, b) = (t[0][0].narrow(2, 0, 30)?, t[0][0].narrow(2, 10, 30)?);
        Candle::new().splice(&sound(), &[CandleLayer::new(&a, &b)])
    });
    refused("views of one memory", |t| {
        let (a, b) = (t[0][0].narrow(1, 0, 2)?, t[0][0].narrow(1, 1, 2)?);
        Candle::new().splice(&sound(), &[CandleLayer::new(&a, &b)])
    });
    refused(
        " of `src` are views of one memory, and may have elements in common",
        |t| {
            let [one, other] = both(t);
            Candle::new().copy(&sound(), &[one, other], &[one, other])
        },
    );
    refused("are views of one memory", |t| {
        let src = CandleLayer::keys_only(&t[0][0]);
        let dst = [
            CandleLayer::keys_only(&t[1][0]),
            CandleLayer::keys_only(&t[1][0]),
        ];
        Candle::new().copy(&sound(), &[src, src], &dst)
    });
}

#[test]
fn copies_between_what_differs_are_refused() {
    refused("dst: 1 layers to copy to, but 2 to copy from", |t| {
        Candle::new().copy(&sound(), &both(t), &both(t)[..1])
    });
    refused(
        "dst: source and destination must both have values, or neither; the source has values, the destination none",
        |t| {
            let [one, other] = both(t);
            let _ = other;
            Candle::new().copy(&sound(), &[one], &[CandleLayer::keys_only(&t[1][0])])
        },
    );
    refused("layout: keys: source and destination differ", |t| {
        let keys = t[1][0].narrow(1, 0, 2)?;
        let src = CandleLayer::keys_only(&t[0][0]);
        Candle::new().copy(&sound(), &[src], &[CandleLayer::keys_only(&keys)])
    });
    refused("layout: keys: source and destination differ", |t| {
        let keys = t[1][0].to_dtype(DType::BF16)?;
        let src = CandleLayer::keys_only(&t[0][0]);
        Candle::new().copy(&sound(), &[src], &[CandleLayer::keys_only(&keys)])
    });
}

/// The same source twice is no harm: it is only read.
#[test]
fn one_source_serves_several_destinations() {
    let mut random = random();
    let [before, mut one, mut other] = [(); 3].map(|()| noise::<f32>(2 * 8 * 8, &mut random));
    let tensor = |data: &Vec<f32>| Tensor::from_slice(data, (1, 2, 8, 8), &Device::Cpu).unwrap();
    let [src, to_one, to_other] = [&before, &one, &other].map(tensor);
    let plan = Plan::from_edits(6, &[Edit::insert(2, 2)]).unwrap();
    let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, 8).unwrap()).unwrap();
    let from = CandleLayer::keys_only(&src);
    let dst = [
        CandleLayer::keys_only(&to_one),
        CandleLayer::keys_only(&to_other),
    ];
    Candle::new().copy(&rotations, &[from, from], &dst).unwrap();
    let layout = CacheLayout::keys_only(KeyLayout::bhsd(ElementType::F32, [1, 2, 8, 8]));
    let source = LayerRef {
        keys: before.as_slice(),
        values: None,
    };
    let mut layers = [Layer::keys_only(&mut one), Layer::keys_only(&mut other)];
    Cpu::new()
        .copy(&rotations, layout, &[source, source], layout, &mut layers)
        .unwrap();
    for (tensor, expected) in [(&src, &before), (&to_one, &one), (&to_other, &other)] {
        let place = support::bhsd([1, 2, 8, 8]);
        assert_same_bits(&elements::<f32>(tensor), expected, place);
    }
}

/// How pages, packs and slots lie in tensors that have been told nothing of it. Forty rows and more by each table.
struct Pool {
    name: &'static str,
    /// Elements of a tensor.
    len: usize,
    layout: CacheLayout<'static>,
    /// Keys and values in one tensor; else in two, or, if the layout has no values, in none.
    together: bool,
    tables: [&'static [u32]; 2],
}

const BLOCK: usize = 4;
const BLOCKS: usize = 24;
const BLOCK_TABLES: [&[u32]; 2] = [
    &[7, 2, 23, 0, 11, 5, 6, 9, 10, 3],
    &[1, 22, 4, 8, 21, 20, 12, 19, 13, 14],
];

fn pools(element: ElementType) -> Vec<Pool> {
    let pages = BLOCKS * BLOCK * HEADS * DIM;
    let twice = |layout| CacheLayout::new(layout, layout);
    let pool = |name, layout| Pool {
        name,
        len: pages,
        layout,
        together: false,
        tables: BLOCK_TABLES,
    };
    vec![
        pool(
            "keys and values in packs, as mistral.rs",
            CacheLayout::new(
                KeyLayout::x_packed(element, [BLOCKS, HEADS, DIM / 8, BLOCK, 8]),
                KeyLayout::x_packed(element, [BLOCKS, HEADS, DIM, BLOCK, 1]),
            ),
        ),
        pool(
            "nhd",
            twice(KeyLayout::nhd(element, [BLOCKS, BLOCK, HEADS, DIM])),
        ),
        pool(
            "hnd",
            twice(KeyLayout::hnd(element, [BLOCKS, HEADS, BLOCK, DIM])),
        ),
        Pool {
            len: 2 * pages,
            together: true,
            ..pool(
                "both in one tensor",
                KeyLayout::packed_nhd(element, [BLOCKS, BLOCK, HEADS, DIM]),
            )
        },
        Pool {
            len: BLOCKS * BLOCK * DIM,
            ..pool(
                "latent rows",
                CacheLayout::keys_only(KeyLayout::nhd(element, [BLOCKS, BLOCK, 1, DIM])),
            )
        },
        Pool {
            tables: [
                const { &slots(0) },
                // From the end, and never the others' own.
                const { &slots(1) },
            ],
            ..pool(
                "slots",
                twice(KeyLayout::slots(element, [BLOCKS * BLOCK, HEADS, DIM])),
            )
        },
    ]
}

const fn slots(end: u32) -> [u32; 40] {
    let mut slots = [0; 40];
    let mut row = 0;
    while row < 40 {
        slots[row] = if end == 0 {
            2 * row as u32
        } else {
            95 - 2 * row as u32
        };
        row += 1;
    }
    slots
}

/// Two layers' tensors, each a part of a longer one, and what is in those.
struct Pages<T> {
    whole: Vec<Tensor>,
    parts: Vec<Tensor>,
    bits: Vec<Vec<T>>,
}

/// Elements before a part, and behind it.
const GUARD: usize = 37;

impl<T: Number> Pages<T> {
    fn new(pool: &Pool, device: &Device, random: &mut SmallRng) -> Pages<T> {
        let tensors = if pool.together || pool.layout.values.is_none() {
            2
        } else {
            4
        };
        let bits: Vec<Vec<T>> = (0..tensors)
            .map(|_| noise(pool.len + 2 * GUARD, random))
            .collect();
        let whole: Vec<Tensor> = bits
            .iter()
            .map(|bits| Tensor::from_slice(bits, bits.len(), device).unwrap())
            .collect();
        let part = |whole: &Tensor| whole.narrow(0, GUARD, pool.len).unwrap();
        Pages {
            parts: whole.iter().map(part).collect(),
            whole,
            bits,
        }
    }

    fn layers<'a>(&'a self, pool: &Pool, layout: &'a CacheLayout<'a>) -> Vec<CandleLayer<'a>> {
        let layer = |tensors: &'a [Tensor]| {
            let values = match pool.layout.values {
                None => None,
                Some(_) => tensors.last(),
            };
            CandleLayer::with_layout(&tensors[0], values, layout)
        };
        self.parts.chunks(self.parts.len() / 2).map(layer).collect()
    }

    /// The same bits as slices.
    fn slices(&mut self, pool: &Pool) -> Vec<Layer<'_, T>> {
        let per_layer = self.bits.len() / 2;
        let layers = self.bits.chunks_mut(per_layer).map(|bits| {
            let mut parts = bits
                .iter_mut()
                .map(|bits| &mut bits[GUARD..GUARD + pool.len]);
            let keys = parts.next().unwrap();
            match parts.next() {
                Some(values) => Layer::new(keys, values),
                None if pool.together => Layer::packed(keys),
                None => Layer::keys_only(keys),
            }
        });
        layers.collect()
    }

    /// Likewise, to copy from.
    fn sources(&self, pool: &Pool) -> Vec<LayerRef<'_, T>> {
        let per_layer = self.bits.len() / 2;
        let layers = self.bits.chunks(per_layer).map(|bits| {
            let values = match pool.layout.values {
                None => None,
                Some(_) => bits.last().map(|bits| &bits[GUARD..GUARD + pool.len]),
            };
            LayerRef {
                keys: &bits[0][GUARD..GUARD + pool.len],
                values,
            }
        });
        layers.collect()
    }

    #[track_caller]
    fn agree(&self, pool: &Pool, verb: &str) {
        for (index, (tensor, bits)) in each(&self.whole, &self.bits).enumerate() {
            assert_same_bits(&elements::<T>(tensor), bits, |element| {
                format!("{}: {verb}: tensor {index}, element {element}", pool.name)
            });
        }
    }
}

fn every_pool<T: Number>(device: &Device) {
    let mut random = random();
    let (candle, cpu) = (Candle::new(), Cpu::new());
    for pool in pools(T::TYPE) {
        let rope = Rope::from_theta(10_000.0, DIM / 2).unwrap().with_offset(4);
        let edits = [Edit::replace(3..5, 6), Edit::delete(20..24)];
        let plan = Plan::from_edits(34, &edits).unwrap();
        let rotations = Rotations::new(&plan, &rope).unwrap();
        let [here, there] = pool.tables.map(|table| pool.layout.with_table(table));
        let mut pages = Pages::<T>::new(&pool, device, &mut random);

        candle
            .copy(
                &rotations,
                &pages.layers(&pool, &here),
                &pages.layers(&pool, &there),
            )
            .unwrap();
        let mut slices = pages.slices(&pool);
        cpu.copy_within(&rotations, here, there, &mut slices)
            .unwrap();
        pages.agree(&pool, "copy from blocks to others");

        candle
            .splice(&rotations, &pages.layers(&pool, &here))
            .unwrap();
        let mut slices = pages.slices(&pool);
        cpu.splice(&rotations, here, &mut slices).unwrap();
        pages.agree(&pool, "splice");

        candle
            .rotate(&rotations, &pages.layers(&pool, &there))
            .unwrap();
        let mut slices = pages.slices(&pool);
        cpu.rotate(&rotations, there, &mut slices).unwrap();
        pages.agree(&pool, "rotate");

        let mut other = Pages::<T>::new(&pool, device, &mut random);
        candle
            .copy(
                &rotations,
                &pages.layers(&pool, &here),
                &other.layers(&pool, &there),
            )
            .unwrap();
        let mut slices = other.slices(&pool);
        cpu.copy(&rotations, here, &pages.sources(&pool), there, &mut slices)
            .unwrap();
        other.agree(&pool, "copy to another pool");
        pages.agree(&pool, "copy from this pool");
    }
}

#[test]
fn every_pool_in_every_type() {
    every_pool::<f32>(&Device::Cpu);
    every_pool::<f16>(&Device::Cpu);
    every_pool::<bf16>(&Device::Cpu);
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let pages = KeyLayout::nhd(ElementType::F32, [ROWS / BLOCK, BLOCK, HEADS, DIM]);
    let splice = |t: &[[Tensor; 2]], layout: CacheLayout<'_>| {
        let layers: Vec<_> = t
            .iter()
            .map(|[keys, values]| CandleLayer::with_layout(keys, Some(values), &layout))
            .collect();
        Candle::new().splice(&sound(), &layers)
    };
    let both = CacheLayout::new(pages, pages);
    refused(
        "keys: block table entry 2 is 10, there are 10 blocks",
        |t| splice(t, both.with_table(&[0, 1, 10, 3, 4, 5])),
    );
    refused("block 1 is there twice", |t| {
        splice(t, both.with_table(&[0, 1, 2, 1, 4, 5]))
    });
    refused("keys: the plan needs 22 rows, the layout has 20", |t| {
        splice(t, both.with_table(&[0, 1, 2, 3, 4]))
    });
    refused("layer 0 has values, but its layout does not say", |t| {
        splice(t, CacheLayout::keys_only(pages))
    });
    refused("layer 0: keys are f32, their layout is of f16", |t| {
        let other = KeyLayout::nhd(ElementType::F16, [ROWS / BLOCK, BLOCK, HEADS, DIM]);
        splice(t, CacheLayout::new(other, other))
    });
    refused(
        "layer 0, keys: it needs a buffer of 2112 elements, this one has 1920",
        |t| {
            let longer = KeyLayout::nhd(ElementType::F32, [ROWS / BLOCK + 1, BLOCK, HEADS, DIM]);
            splice(t, CacheLayout::new(longer, longer))
        },
    );
    refused("layer 0: keys are [1, 40, 3, 16] by strides", |t| {
        let turned = |tensor: &Tensor| tensor.transpose(1, 2);
        let turned = [turned(&t[0][0])?, turned(&t[0][1])?];
        splice(&[turned], both)
    });
    refused(
        "a block is among those to copy from and those to copy to",
        |t| {
            let (from, to) = (
                both.with_table(&[0, 1, 2, 3, 4]),
                both.with_table(&[9, 8, 7, 6, 5, 4]),
            );
            let layer = |layout| [CandleLayer::with_layout(&t[0][0], Some(&t[0][1]), layout)];
            Candle::new().copy(&sound(), &layer(&from), &layer(&to))
        },
    );
    // Keys that would go and leave their values behind, in the same tensor.
    refused(
        "layer 0 has no values, but its layout says where they lie",
        |t| {
            let packed =
                KeyLayout::packed_nhd(ElementType::F32, [ROWS / BLOCK / 2, BLOCK, HEADS, DIM]);
            let packed = packed.with_table(&[4, 0, 3, 1, 2]);
            let plan = Plan::from_edits(16, &[Edit::insert(4, 2)])?;
            let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, DIM)?)?;
            let layer = CandleLayer::with_layout(&t[0][0], None, &packed);
            Candle::new().splice(&rotations, &[layer])
        },
    );
    refused(
        "layer 1, keys: its layout, or block table, is not that of layer 0",
        |t| {
            let (one, other) = (
                both.with_table(&[0, 1, 2, 3, 4, 5]),
                both.with_table(&[0, 1, 2, 3, 4, 6]),
            );
            let layers = [
                CandleLayer::with_layout(&t[0][0], Some(&t[0][1]), &one),
                CandleLayer::with_layout(&t[1][0], Some(&t[1][1]), &other),
            ];
            Candle::new().splice(&sound(), &layers)
        },
    );
    // One tensor for two layers, and keys where other values are.
    refused("views of one memory", |t| {
        splice(&[t[0].clone(), t[0].clone()], both)
    });
    refused("views of one memory", |t| {
        let swapped = [t[0][1].clone(), t[0][0].clone()];
        let (from, to) = (
            both.with_table(&[0, 1, 2, 3, 4]),
            both.with_table(&[9, 8, 7, 6, 5, 4]),
        );
        Candle::new().copy(
            &sound(),
            &[CandleLayer::with_layout(&t[0][0], Some(&t[0][1]), &from)],
            &[CandleLayer::with_layout(
                &swapped[0],
                Some(&swapped[1]),
                &to,
            )],
        )
    });
}

/// The same on an NVIDIA GPU, or on the emulator of one: `scripts/candle` runs it there.
#[cfg(feature = "candle-cuda")]
mod cuda {
    use super::*;

    fn device() -> Device {
        Device::new_cuda(0).expect("a driver")
    }

    #[test]
    fn every_form_in_every_type() {
        every_form::<f32>(&device());
        every_form::<f16>(&device());
        every_form::<bf16>(&device());
    }

    #[test]
    fn every_copy_in_every_type() {
        every_copy::<f32>(&device());
        every_copy::<f16>(&device());
        every_copy::<bf16>(&device());
    }

    #[test]
    fn every_pool_in_every_type() {
        every_pool::<f32>(&device());
        every_pool::<f16>(&device());
        every_pool::<bf16>(&device());
    }

    /// Every row has an angle of its own: more than the parameters of a launch hold.
    #[test]
    fn a_workspace_is_had_from_candle() {
        let mut random = random();
        let rows = 4000;
        let positions: [Vec<i32>; 2] =
            [(0..rows).collect(), (0..rows).map(|row| 2 * row).collect()];
        let plan = Plan::from_positions(&positions[0], &positions[1]).unwrap();
        let rotations = Rotations::new(&plan, &Rope::from_theta(10_000.0, DIM).unwrap()).unwrap();
        let mut expected = noise::<f32>(rows as usize * DIM, &mut random);
        let keys = Tensor::from_slice(&expected, (1, 1, rows as usize, DIM), &device()).unwrap();
        Candle::new()
            .rotate(&rotations, &[CandleLayer::keys_only(&keys)])
            .unwrap();
        let layout = KeyLayout::bhsd(pie_rope::ElementType::F32, [1, 1, rows as usize, DIM]);
        let mut layers = [Layer::keys_only(&mut expected)];
        Cpu::new().rotate(&rotations, layout, &mut layers).unwrap();
        let place = support::bhsd([1, 1, rows as usize, DIM]);
        assert_same_bits(&elements::<f32>(&keys), &expected, place);
    }

    #[test]
    fn what_is_refused_there() {
        let tensor =
            |device: &Device| Tensor::zeros((1, HEADS, ROWS, DIM), DType::F32, device).unwrap();
        let (here, there) = (tensor(&Device::Cpu), tensor(&device()));
        let error = Candle::new()
            .splice(&sound(), &[CandleLayer::new(&there, &here)])
            .unwrap_err();
        let said = error.to_string();
        assert!(said.contains("layer 0: values are on Cpu"), "{said}");
        let error = Candle::new()
            .splice(&sound(), &[CandleLayer::new(&there, &there)])
            .unwrap_err();
        assert!(error.to_string().contains("views of one memory"), "{error}");
    }
}
