//! Temporary.
#![allow(missing_docs)]
use crate::{Error, Result};
use std::sync::Arc;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    HalfSplit,
    Interleaved,
}
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pairing: Pairing,
    offset: usize,
    inv_freq: Arc<[f64]>,
}
impl Rope {
    pub fn from_theta(theta: f64, d: usize) -> Result<Rope> {
        if d % 2 != 0 {
            return Err(Error::Rope("odd".into()));
        }
        Ok(Rope {
            pairing: Pairing::HalfSplit,
            offset: 0,
            inv_freq: (0..d / 2)
                .map(|i| theta.powf(-2.0 * i as f64 / d as f64))
                .collect(),
        })
    }
    pub fn from_inv_freq(inv_freq: impl Into<Arc<[f64]>>) -> Result<Rope> {
        Ok(Rope {
            pairing: Pairing::HalfSplit,
            offset: 0,
            inv_freq: inv_freq.into(),
        })
    }
    pub fn with_pairing(mut self, p: Pairing) -> Rope {
        self.pairing = p;
        self
    }
    pub fn with_offset(mut self, o: usize) -> Rope {
        self.offset = o;
        self
    }
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }
    pub fn offset(&self) -> usize {
        self.offset
    }
    pub fn pairs(&self) -> usize {
        self.inv_freq.len()
    }
    pub fn rotary_dim(&self) -> usize {
        2 * self.pairs()
    }
    pub fn window(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.rotary_dim()
    }
    pub fn inv_freq(&self) -> &[f64] {
        &self.inv_freq
    }
}
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRope {
    ropes: Vec<Rope>,
    layers: Vec<Option<usize>>,
}
impl ModelRope {
    pub fn from_layers(layers: impl IntoIterator<Item = Option<Rope>>) -> ModelRope {
        let mut ropes: Vec<Rope> = vec![];
        let layers = layers
            .into_iter()
            .map(|r| {
                r.map(|r| {
                    ropes.iter().position(|x| *x == r).unwrap_or_else(|| {
                        ropes.push(r);
                        ropes.len() - 1
                    })
                })
            })
            .collect();
        ModelRope { ropes, layers }
    }
    pub fn uniform(rope: Rope, layers: usize) -> ModelRope {
        ModelRope {
            ropes: vec![rope],
            layers: vec![Some(0); layers],
        }
    }
    pub fn layers(&self) -> usize {
        self.layers.len()
    }
    pub fn ropes(&self) -> &[Rope] {
        &self.ropes
    }
    pub fn rope_index(&self, l: usize) -> Option<usize> {
        self.layers[l]
    }
    pub fn layer(&self, l: usize) -> Option<&Rope> {
        self.layers[l].map(|i| &self.ropes[i])
    }
}
