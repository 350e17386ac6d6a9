use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use super::Rope;

/// What every layer of a model does: most models share one rope, some have two or three, some have
/// layers that rotate nothing.
///
/// ```
/// use pie_rope::{ModelRope, Rope};
///
/// // Gemma 3 1B: local layers, and a global one every sixth.
/// let local = Rope::from_theta(10_000.0, 256)?;
/// let global = Rope::from_theta(1_000_000.0, 256)?;
/// let model = ModelRope::from_layers((1..=26).map(|n| {
///     Some(if n % 6 == 0 { global.clone() } else { local.clone() })
/// }));
/// assert_eq!(model.ropes(), [local, global]);
/// assert_eq!(model.rope_index(5), Some(1));
/// # Ok::<(), pie_rope::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRope {
    ropes: Vec<Rope>,
    layers: Vec<Option<usize>>,
}

impl ModelRope {
    /// The same rope in each of `layers` layers.
    pub fn uniform(rope: Rope, layers: usize) -> ModelRope {
        ModelRope {
            ropes: if layers == 0 { vec![] } else { vec![rope] },
            layers: vec![Some(0); layers],
        }
    }

    /// One entry per layer, in order; `None` is a layer whose keys carry no rotation. Equal ropes
    /// become one.
    pub fn from_layers(layers: impl IntoIterator<Item = Option<Rope>>) -> ModelRope {
        let mut ropes: Vec<Rope> = vec![];
        // Most layers have clones of few ropes, which share their frequencies and are known by
        // where those are; no list is compared with every other.
        let mut clones = HashMap::new();
        let mut contents = HashMap::new();
        let layers = layers
            .into_iter()
            .map(|rope| {
                rope.map(|rope| {
                    let place = (rope.inv_freq.as_ptr(), rope.pairing, rope.offset);
                    if let Some(index) = clones.get(&place) {
                        return *index;
                    }
                    let next = ropes.len();
                    let index = *contents.entry(Content(rope.clone())).or_insert(next);
                    if index == next {
                        // Kept, so that nothing else comes to lie in its place.
                        clones.insert(place, index);
                        ropes.push(rope);
                    }
                    index
                })
            })
            .collect();
        ModelRope { ropes, layers }
    }

    /// Each layer's rope changed by `change`: for a cache that stores heads in another order, or
    /// puts something before them, than the model's own.
    ///
    /// ```
    /// # use pie_rope::{ModelRope, Rope};
    /// # let model = ModelRope::uniform(Rope::from_theta(10_000.0, 64)?.with_offset(512), 61);
    /// // A cache that keeps the 64 rotated components of a latent row apart from the latent ones.
    /// let apart = model.map(|rope| rope.with_offset(0));
    /// assert_eq!(apart.layer(60).unwrap().window(), 0..64);
    /// # Ok::<(), pie_rope::Error>(())
    /// ```
    #[must_use]
    pub fn map(self, mut change: impl FnMut(Rope) -> Rope) -> ModelRope {
        let changed: Vec<Rope> = self.ropes.into_iter().map(&mut change).collect();
        ModelRope::from_layers(
            self.layers
                .into_iter()
                .map(|index| index.map(|index| changed[index].clone())),
        )
    }

    /// How many layers the model has, those without a rope included.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The distinct ropes, in the order in which the layers first use them.
    pub fn ropes(&self) -> &[Rope] {
        &self.ropes
    }

    /// The rope of a layer as an index into [`ropes`](ModelRope::ropes); `None` for a layer that
    /// has none.
    ///
    /// # Panics
    /// Where `layer` is not below [`layers`](ModelRope::layers).
    pub fn rope_index(&self, layer: usize) -> Option<usize> {
        self.layers[layer]
    }

    /// The rope of a layer; `None` for a layer that has none.
    ///
    /// # Panics
    /// Where `layer` is not below [`layers`](ModelRope::layers).
    pub fn layer(&self, layer: usize) -> Option<&Rope> {
        self.rope_index(layer).map(|index| &self.ropes[index])
    }
}

/// A rope by what it does.
#[derive(PartialEq)]
struct Content(Rope);

// No frequency is NaN: `Rope::from_inv_freq`.
impl Eq for Content {}

impl Hash for Content {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let rope = &self.0;
        (rope.pairing, rope.offset).hash(state);
        for frequency in rope.inv_freq() {
            // Equal ones alike: a sum makes 0 of −0.
            (frequency + 0.0).to_bits().hash(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pairing;

    #[test]
    fn equal_ropes_become_one() {
        let a = || Rope::from_theta(1e4, 8).unwrap();
        let b = || Rope::from_theta(1e6, 8).unwrap();
        let model = ModelRope::from_layers([Some(b()), None, Some(a()), Some(b()), Some(a())]);
        assert_eq!(model.ropes(), [b(), a()]);
        let indices: Vec<_> = (0..model.layers()).map(|l| model.rope_index(l)).collect();
        assert_eq!(indices, [Some(0), None, Some(1), Some(0), Some(1)]);
        assert_eq!(model.layer(1), None);
        assert_eq!(model.layer(4), Some(&a()));
        assert_ne!(
            ModelRope::from_layers([Some(a()), Some(a().with_pairing(Pairing::Interleaved))])
                .ropes()
                .len(),
            1
        );
    }

    #[test]
    fn ropes_are_told_apart_by_what_they_do() {
        let zero = |sign: f64| Rope::from_inv_freq(vec![1.0, 0.0 * sign]).unwrap();
        let (plus, minus) = (zero(1.0), zero(-1.0));
        assert!(minus.inv_freq()[1].is_sign_negative());
        let moved = plus.clone().with_offset(2);
        let turned = plus.clone().with_pairing(Pairing::Interleaved);
        let model = ModelRope::from_layers(
            [&plus, &minus, &moved, &turned, &moved, &minus, &plus].map(|r| Some(r.clone())),
        );
        assert_eq!(model.ropes(), [plus, moved, turned]);
        let indices: Vec<_> = (0..7)
            .map(|layer| model.rope_index(layer).unwrap())
            .collect();
        assert_eq!(indices, [0, 0, 1, 2, 1, 0, 0]);
    }

    /// Many distinct ropes that differ in the last frequency alone: each list is read a few times,
    /// not once for every other rope. That takes 60 ms; quadratic, it would be 3 · 10^10 steps.
    #[test]
    fn distinct_ropes_cost_their_own_length() {
        let (ropes, pairs) = (1 << 13, 1 << 10);
        let start = std::time::Instant::now();
        let model = ModelRope::from_layers((0..ropes).map(|n| {
            let mut inv_freq = vec![0.5; pairs];
            inv_freq[pairs - 1] = n as f64;
            Some(Rope::from_inv_freq(inv_freq).unwrap())
        }));
        assert_eq!(model.ropes().len(), ropes);
        // Clones of them are not read at all.
        let again = (0..1 << 18).map(|n| model.layer(n % ropes).cloned());
        let again = ModelRope::from_layers(again);
        assert_eq!(again.ropes().len(), ropes);
        assert_eq!(again.rope_index(ropes + 3), Some(3));
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }

    #[test]
    fn uniform_is_what_from_layers_makes() {
        let rope = Rope::from_theta(1e4, 8).unwrap();
        for layers in [0, 1, 3] {
            assert_eq!(
                ModelRope::uniform(rope.clone(), layers),
                ModelRope::from_layers(vec![Some(rope.clone()); layers])
            );
        }
    }

    #[test]
    fn map_keeps_layers_and_merges_what_becomes_equal() {
        let rope = Rope::from_theta(1e4, 8).unwrap();
        let model =
            ModelRope::from_layers([Some(rope.clone()), None, Some(rope.clone().with_offset(16))]);
        let flat = model.map(|rope| rope.with_offset(0));
        assert_eq!(
            flat,
            ModelRope::from_layers([Some(rope.clone()), None, Some(rope)])
        );
        assert_eq!(flat.ropes().len(), 1);
    }
}
