//! What a model's rotary position embedding is: which components pair up, where they lie in a
//! head, and how fast each pair turns.

#[cfg(feature = "config")]
mod config;
mod model;
mod scaling;

use std::{fmt, ops::Range, sync::Arc};

use crate::{Error, Result, memory};

#[cfg(feature = "capi")]
pub(crate) use config::MAX_LAYERS;
pub use model::ModelRope;
pub use scaling::Scaling;

/// Which two components of the rotated window form pair `i` of `n`.
///
/// The pairing belongs to the order in which a cache stores a head. Software that permutes a
/// checkpoint's key projection (GGUF files of Llama, for one, or the latent caches of Hugging Face
/// transformers) changes it; [`Rope::with_pairing`] says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Components `i` and `i + n` ("NeoX", "rotate half").
    HalfSplit,
    /// Components `2i` and `2i + 1` ("GPT-J", "rotate every two").
    Interleaved,
}

impl fmt::Display for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Pairing::HalfSplit => "half-split",
            Pairing::Interleaved => "interleaved",
        })
    }
}

/// One rotary position embedding: at position `p`, pair `i` of every head is turned by the angle
/// `p · inv_freq[i]` radians (Su et al., [RoFormer](https://arxiv.org/abs/2104.09864), section 3.2.2).
///
/// The rotated window is `2 · pairs` components wide and starts at [`offset`](Rope::offset) inside
/// the head; components outside it carry no position. An inverse frequency of zero is a pair that
/// never turns.
///
/// There is no magnitude factor. Yarn and LongRoPE scale the cosines and sines of every key by the
/// same number (`mscale`, `attention_factor`), so a cached key has it already, and a rotation from
/// one position to another must not apply it again.
///
/// ```
/// use pie_rope::{Pairing, Rope};
///
/// // DeepSeek-V3's cached row: 512 latent components, then 64 rotated ones.
/// let rope = Rope::from_theta(10_000.0, 64)?
///     .with_pairing(Pairing::Interleaved)
///     .with_offset(512);
/// assert_eq!(rope.window(), 512..576);
/// assert_eq!(rope.inv_freq()[0], 1.0);
/// # Ok::<(), pie_rope::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pairing: Pairing,
    offset: usize,
    inv_freq: Arc<[f64]>,
}

impl Rope {
    /// The original frequencies, `inv_freq[i] = theta^(-2i / rotary_dim)`: half-split, offset 0.
    ///
    /// # Errors
    /// [`Error::Rope`] where `theta` is not a positive finite number, or `rotary_dim` is zero, odd
    /// or wider than [`Rope::MAX_ROTARY_DIM`].
    pub fn from_theta(theta: f64, rotary_dim: usize) -> Result<Rope> {
        Rope::from_scaling(theta, rotary_dim, &Scaling::Default, 0)
    }

    /// The frequencies of a scaled rope when the sequence is `tokens` long: half-split, offset 0.
    ///
    /// `tokens` matters to [`Scaling::Dynamic`] and [`Scaling::LongRope`] only. `rotary_dim` counts
    /// rotated components, not pairs.
    ///
    /// # Errors
    /// [`Error::Rope`] as for [`Rope::from_theta`], and where a number in `scaling` makes no sense.
    pub fn from_scaling(
        theta: f64,
        rotary_dim: usize,
        scaling: &Scaling,
        tokens: usize,
    ) -> Result<Rope> {
        if !rotary_dim.is_multiple_of(2) {
            return Err(Error::Rope(format!(
                "rotary_dim {rotary_dim} is odd, and components turn in pairs"
            )));
        }
        // Two lists of them, one after the other.
        memory::room(rotary_dim.min(Rope::MAX_ROTARY_DIM) * size_of::<f64>())?;
        Rope::from_inv_freq(scaling.inv_freq(theta, rotary_dim, tokens)?)
    }

    /// One inverse frequency per pair, in radians per position: half-split, offset 0.
    ///
    /// # Errors
    /// [`Error::Rope`] where there is none, there are more than [`Rope::MAX_ROTARY_DIM`] / 2, or
    /// one is negative, above [`Rope::MAX_INV_FREQ`] or not a number. Zero is allowed.
    pub fn from_inv_freq(inv_freq: impl Into<Arc<[f64]>>) -> Result<Rope> {
        let inv_freq = inv_freq.into();
        if inv_freq.is_empty() || inv_freq.len() > Rope::MAX_ROTARY_DIM / 2 {
            return Err(Error::Rope(format!(
                "{} inverse frequencies; a rope has 1 to {}",
                inv_freq.len(),
                Rope::MAX_ROTARY_DIM / 2
            )));
        }
        let computable = 0.0..=Rope::MAX_INV_FREQ;
        if let Some(i) = inv_freq.iter().position(|f| !computable.contains(f)) {
            return Err(Error::Rope(format!(
                "inverse frequency {i} is {}; it must be 0 to {}",
                shown(inv_freq[i]),
                Rope::MAX_INV_FREQ
            )));
        }
        Ok(Rope {
            pairing: Pairing::HalfSplit,
            offset: 0,
            inv_freq,
        })
    }

    /// The widest window that is accepted. Far above any model's head, it keeps a number read from
    /// a file from asking for an absurd table.
    pub const MAX_ROTARY_DIM: usize = 1 << 16;

    /// The fastest that a pair may turn, in radians per position: 2^20. The fastest pair of every
    /// published model makes one radian, or a few under a scaling that speeds it up. An angle is
    /// computed as exactly as any other up to here, at every position that an `i32` holds; beyond,
    /// it would be lost in rounding, and in the end not a number.
    pub const MAX_INV_FREQ: f64 = (1 << 20) as f64;

    /// The same rope with other partners in each pair.
    #[must_use]
    pub fn with_pairing(self, pairing: Pairing) -> Rope {
        Rope { pairing, ..self }
    }

    /// The same rope with its window starting at component `offset` of the head.
    #[must_use]
    pub fn with_offset(self, offset: usize) -> Rope {
        Rope { offset, ..self }
    }

    /// Which components form a pair.
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// The first rotated component of a head.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How many pairs turn: at least one.
    pub fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// How many components of a head are rotated: `2 · pairs`.
    pub fn rotary_dim(&self) -> usize {
        2 * self.pairs()
    }

    /// The rotated components of a head. An offset near `usize::MAX` gives a window that ends
    /// there, which no head can hold.
    pub fn window(&self) -> Range<usize> {
        self.offset..self.offset.saturating_add(self.rotary_dim())
    }

    /// Each pair's angle per position, in radians.
    pub fn inv_freq(&self) -> &[f64] {
        &self.inv_freq
    }
}

/// A number as an error names it: with an exponent where it is huge or tiny, and not with 300 digits.
fn shown(number: f64) -> String {
    let text = format!("{number:?}");
    text.strip_suffix(".0").unwrap_or(&text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theta_gives_the_definition() {
        let rope = Rope::from_theta(10_000.0, 8).unwrap();
        assert_eq!(rope.inv_freq().len(), 4);
        for (got, want) in rope.inv_freq().iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((got - want).abs() <= 4.0 * f64::EPSILON * want);
        }
        assert_eq!(rope.pairing(), Pairing::HalfSplit);
        assert_eq!(rope.window(), 0..8);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let says = |result: Result<Rope>, what: &str| match result {
            Err(Error::Rope(text)) => assert!(text.contains(what), "{text:?} lacks {what:?}"),
            other => panic!("{other:?}"),
        };
        for theta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            says(Rope::from_theta(theta, 8), "theta");
        }
        for dim in [0, 7, Rope::MAX_ROTARY_DIM + 2, usize::MAX - 1] {
            says(Rope::from_theta(1e4, dim), "rotary_dim");
        }
        says(Rope::from_inv_freq(vec![]), "0 inverse frequencies");
        says(
            Rope::from_inv_freq(vec![1.0, -0.5]),
            "inverse frequency 1 is -0.5",
        );
        says(Rope::from_inv_freq(vec![f64::NAN]), "inverse frequency 0");
        says(
            Rope::from_inv_freq(vec![1.0, f64::INFINITY]),
            "inverse frequency 1",
        );
        assert!(Rope::from_inv_freq(vec![1.0, 0.0]).is_ok());
    }

    /// A finite frequency may still make an angle that cannot be told, or is not a number.
    #[test]
    fn a_pair_too_fast_to_compute_is_refused_by_name() {
        let fastest = Rope::MAX_INV_FREQ;
        assert_eq!(fastest, 1_048_576.0);
        for slow in [0.0, f64::from_bits(1), f64::MIN_POSITIVE, fastest] {
            assert!(Rope::from_inv_freq(vec![1.0, slow]).is_ok(), "{slow}");
        }
        let short = ["1048576.0000000002", "1e306", "1.7976931348623157e308"];
        for (fast, number) in [fastest.next_up(), 1e306, f64::MAX].into_iter().zip(short) {
            let error = Rope::from_inv_freq(vec![1.0, fast]).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(&format!("inverse frequency 1 is {number};"))
                    && text.contains("0 to 1048576"),
                "{text}"
            );
        }
        // By what makes it so fast, where that is known.
        let says = |result: Result<Rope>, what: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(what), "{text:?} lacks {what:?}");
        };
        says(Rope::from_theta(1e-300, 8), "rope_theta makes pair 3");
        let factor = 1e-7;
        says(
            Rope::from_scaling(1e4, 8, &Scaling::Linear { factor }, 0),
            "factor makes pair 0",
        );
        // Below one, but not by so much.
        let rope = Rope::from_theta(1e-4, 8).unwrap();
        assert_eq!(rope.inv_freq()[0], 1.0);
        assert!((rope.inv_freq()[3] / 1e3 - 1.0).abs() < 1e-14);
    }

    #[test]
    fn window_and_pairing_are_part_of_equality() {
        let rope = Rope::from_theta(1e4, 4).unwrap();
        assert_ne!(rope, rope.clone().with_offset(1));
        assert_ne!(rope, rope.clone().with_pairing(Pairing::Interleaved));
        assert_eq!(rope.clone().with_offset(3).window(), 3..7);
        assert_eq!(rope.with_offset(usize::MAX).window().len(), 0);
    }
}
