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
        let layers = layers
            .into_iter()
            .map(|rope| {
                rope.map(|rope| {
                    ropes.iter().position(|r| *r == rope).unwrap_or_else(|| {
                        ropes.push(rope);
                        ropes.len() - 1
                    })
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
