//! Inverse frequencies of every scaling that Hugging Face transformers knows, in f64.
//!
//! The field names are the keys of a published `config.json`.

use std::f64::consts::TAU;

use super::{Rope, shown};
use crate::{Error, Result};

/// How a model's inverse frequencies differ from `theta^(-2i / rotary_dim)`, mostly so that it can
/// read texts longer than those it was trained on.
///
/// Below, `f[i]` is `theta^(-2i / rotary_dim)` for pair `i`. The magnitude factors that come with
/// yarn and LongRoPE are not here: see [`Rope`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scaling {
    /// `f[i]` itself.
    Default,
    /// Position interpolation (Chen et al., [arXiv 2306.15595](https://arxiv.org/abs/2306.15595)):
    /// `f[i] / factor`.
    Linear {
        /// How much slower every pair turns.
        factor: f64,
    },
    /// NTK-aware scaling that grows with the text: once the sequence is longer than
    /// `max_position_embeddings`, `theta` is multiplied by
    /// `(factor · tokens / max_position_embeddings − factor + 1)^(rotary_dim / (rotary_dim − 2))`.
    Dynamic {
        /// Slope of the growth.
        factor: f64,
        /// Tokens up to which nothing changes.
        max_position_embeddings: usize,
    },
    /// NTK-aware scaling by a constant: `theta · alpha^(rotary_dim / (rotary_dim − 2))`. Some engines
    /// offer it as `alpha`; of published models, Hunyuan's use it.
    NtkAlpha {
        /// How much slower the slowest pair turns.
        alpha: f64,
    },
    /// YaRN, "NTK by parts" (Peng et al., [arXiv 2309.00071](https://arxiv.org/abs/2309.00071),
    /// section 3.2): pairs that make more than `beta_fast` turns over the original context keep
    /// `f[i]`, those that make fewer than `beta_slow` get `f[i] / factor`, and a linear ramp over
    /// the pair index joins them.
    Yarn {
        /// How much slower the slow pairs turn.
        factor: f64,
        /// Tokens that the model was trained on before it was extended.
        original_max_position_embeddings: usize,
        /// Turns above which a pair is left alone; published models that do not say use 32.
        beta_fast: f64,
        /// Turns below which a pair is fully slowed; published models that do not say use 1.
        beta_slow: f64,
        /// Whether the ramp's ends are moved outwards to whole pair indices, as by default.
        truncate: bool,
    },
    /// LongRoPE (Ding et al., [arXiv 2402.13753](https://arxiv.org/abs/2402.13753)): `f[i]` divided
    /// by a factor of its own, taken from `short_factor` while the sequence is at most
    /// `original_max_position_embeddings` long and from `long_factor` beyond. A cache that grows
    /// past that length was encoded with other frequencies than those that its next query has.
    LongRope {
        /// One divisor per pair for short sequences.
        short_factor: Vec<f64>,
        /// One divisor per pair for long ones.
        long_factor: Vec<f64>,
        /// The longest short sequence, in tokens.
        original_max_position_embeddings: usize,
    },
    /// Llama 3.1: pairs whose wavelength is above `original / low_freq_factor` tokens are slowed by
    /// `factor`, those below `original / high_freq_factor` are left alone, and a ramp over
    /// `original / wavelength` joins them.
    Llama3 {
        /// How much slower the slow pairs turn.
        factor: f64,
        /// Turns over the original context below which a pair is fully slowed.
        low_freq_factor: f64,
        /// Turns over the original context above which a pair is left alone.
        high_freq_factor: f64,
        /// Tokens that the model was trained on before it was extended.
        original_max_position_embeddings: usize,
    },
    /// Gemma 4's partial rotation: the window is the whole head and its frequencies are
    /// `f[i] / factor`, but only the first `turning` pairs turn; the others' frequency is zero.
    /// (A partial rotary factor elsewhere makes the window, and `rotary_dim` with it, smaller.)
    Proportional {
        /// How much slower the pairs turn; usually 1.
        factor: f64,
        /// How many pairs turn.
        turning: usize,
    },
}

/// An argument that makes no sense, by the name that it has in a `config.json`.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) field: &'static str,
    pub(super) problem: String,
}

impl From<Wrong> for Error {
    fn from(wrong: Wrong) -> Error {
        Error::Rope(format!("{} {}", wrong.field, wrong.problem))
    }
}

impl Scaling {
    /// One inverse frequency per pair, none above [`Rope::MAX_INV_FREQ`]. An odd `rotary_dim`, which
    /// some partial rotary factors give, rounds up to whole pairs but keeps its own value in the
    /// exponents, as in transformers.
    pub(super) fn inv_freq(
        &self,
        theta: f64,
        rotary_dim: usize,
        tokens: usize,
    ) -> Result<Vec<f64>, Wrong> {
        positive("rope_theta", theta)?;
        if rotary_dim == 0 || rotary_dim > Rope::MAX_ROTARY_DIM {
            return Err(Wrong {
                field: "rotary_dim",
                problem: format!("is {rotary_dim}; it must be 1 to {}", Rope::MAX_ROTARY_DIM),
            });
        }
        let pairs = rotary_dim.div_ceil(2);
        let dim = rotary_dim as f64;
        let plain = |theta: f64, i: usize| theta.powf(-((2 * i) as f64) / dim);
        // Under a theta below one the last pair is the fastest.
        not_too_fast("rope_theta", pairs - 1, plain(theta, pairs - 1))?;

        // Each with the entry that made the frequencies what they are.
        let (field, inv_freq): (_, Vec<f64>) = match self {
            Scaling::Default => ("rope_theta", (0..pairs).map(|i| plain(theta, i)).collect()),
            Scaling::Linear { factor } => {
                positive("factor", *factor)?;
                let slowed = |i| plain(theta, i) / factor;
                ("factor", (0..pairs).map(slowed).collect())
            }
            Scaling::Dynamic {
                factor,
                max_position_embeddings,
            } => {
                positive("factor", *factor)?;
                not_zero("max_position_embeddings", *max_position_embeddings)?;
                let tokens = tokens.max(*max_position_embeddings) as f64;
                let growth = factor * tokens / *max_position_embeddings as f64 - (factor - 1.0);
                let theta = stretched("factor", theta, growth, rotary_dim)?;
                ("factor", (0..pairs).map(|i| plain(theta, i)).collect())
            }
            Scaling::NtkAlpha { alpha } => {
                positive("alpha", *alpha)?;
                let theta = stretched("alpha", theta, *alpha, rotary_dim)?;
                ("alpha", (0..pairs).map(|i| plain(theta, i)).collect())
            }
            Scaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                truncate,
            } => {
                positive("factor", *factor)?;
                not_zero(
                    "original_max_position_embeddings",
                    *original_max_position_embeddings,
                )?;
                positive("beta_slow", *beta_slow)?;
                positive("beta_fast", *beta_fast)?;
                if beta_fast < beta_slow {
                    return Err(Wrong {
                        field: "beta_fast",
                        problem: format!(
                            "is {}, below beta_slow {}",
                            shown(*beta_fast),
                            shown(*beta_slow)
                        ),
                    });
                }
                if theta <= 1.0 {
                    return Err(Wrong {
                        field: "rope_theta",
                        problem: format!("is {}; yarn takes its logarithm", shown(theta)),
                    });
                }
                // The pair index, fractional, that makes `turns` turns over the original context.
                let index = |turns: f64| {
                    let original = *original_max_position_embeddings as f64;
                    dim * (original / (turns * TAU)).ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (index(*beta_fast), index(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if !low.is_finite() {
                    return Err(Wrong {
                        field: "beta_fast",
                        problem: format!(
                            "is {}, which no pair is slow enough for",
                            shown(*beta_fast)
                        ),
                    });
                }
                if low == high {
                    // transformers' own guard against a ramp of no width.
                    high += 0.001;
                }
                let ramp = |i| {
                    let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain(theta, i) * (slowed / factor + (1.0 - slowed))
                };
                ("factor", (0..pairs).map(ramp).collect())
            }
            Scaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
            } => {
                not_zero(
                    "original_max_position_embeddings",
                    *original_max_position_embeddings,
                )?;
                // Both lists are checked, whichever is used: a wrong one would only show later.
                for (field, factors) in
                    [("short_factor", short_factor), ("long_factor", long_factor)]
                {
                    if factors.len() != pairs {
                        return Err(Wrong {
                            field,
                            problem: format!(
                                "has {} entries for {pairs} pairs of a window of {rotary_dim}",
                                factors.len()
                            ),
                        });
                    }
                    for (i, factor) in factors.iter().enumerate() {
                        positive(field, *factor)?;
                        not_too_fast(field, i, plain(theta, i) / factor)?;
                    }
                }
                let (field, factors) = if tokens > *original_max_position_embeddings {
                    ("long_factor", long_factor)
                } else {
                    ("short_factor", short_factor)
                };
                let slowed = |i: usize| plain(theta, i) / factors[i];
                (field, (0..pairs).map(slowed).collect())
            }
            Scaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                not_zero(
                    "original_max_position_embeddings",
                    *original_max_position_embeddings,
                )?;
                // Equal ones are a step without a ramp, as in Llama 4 Scout.
                if high_freq_factor < low_freq_factor {
                    return Err(Wrong {
                        field: "high_freq_factor",
                        problem: format!(
                            "is {}, below low_freq_factor {}",
                            shown(*high_freq_factor),
                            shown(*low_freq_factor)
                        ),
                    });
                }
                let ramp = |i| {
                    let f = plain(theta, i);
                    let turns = *original_max_position_embeddings as f64 * f / TAU;
                    if turns < *low_freq_factor {
                        f / factor
                    } else if turns >= *high_freq_factor {
                        f
                    } else {
                        let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - kept) * f / factor + kept * f
                    }
                };
                ("factor", (0..pairs).map(ramp).collect())
            }
            Scaling::Proportional { factor, turning } => {
                positive("factor", *factor)?;
                if *turning > pairs {
                    return Err(Wrong {
                        field: "partial_rotary_factor",
                        problem: format!("makes {turning} of {pairs} pairs turn"),
                    });
                }
                let some = |i| match i < *turning {
                    true => plain(theta, i) / factor,
                    false => 0.0,
                };
                ("factor", (0..pairs).map(some).collect())
            }
        };
        for (i, inv_freq) in inv_freq.iter().enumerate() {
            not_too_fast(field, i, *inv_freq)?;
        }
        Ok(inv_freq)
    }
}

/// The theta with which the slowest pair is slowed by just `stretch`, and the fastest not at all.
fn stretched(
    field: &'static str,
    theta: f64,
    stretch: f64,
    rotary_dim: usize,
) -> Result<f64, Wrong> {
    if rotary_dim <= 2 {
        return Err(Wrong {
            field: "rotary_dim",
            problem: format!("is {rotary_dim}; NTK-aware scaling needs more than one pair"),
        });
    }
    let dim = rotary_dim as f64;
    let theta = theta * stretch.powf(dim / (dim - 2.0));
    if theta.is_finite() && theta > 0.0 {
        return Ok(theta);
    }
    Err(Wrong {
        field,
        problem: format!("makes a theta of {}", shown(theta)),
    })
}

fn positive(field: &'static str, value: f64) -> Result<(), Wrong> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Wrong {
        field,
        problem: format!("is {}; it must be positive and finite", shown(value)),
    })
}

/// Whether `field` leaves pair `i` slow enough for its angles to be computed.
fn not_too_fast(field: &'static str, i: usize, inv_freq: f64) -> Result<(), Wrong> {
    if inv_freq <= Rope::MAX_INV_FREQ {
        return Ok(());
    }
    Err(Wrong {
        field,
        problem: format!(
            "makes pair {i} turn by {} radians per position; at most {} can be computed",
            shown(inv_freq),
            Rope::MAX_INV_FREQ
        ),
    })
}

fn not_zero(field: &'static str, value: usize) -> Result<(), Wrong> {
    if value > 0 {
        return Ok(());
    }
    Err(Wrong {
        field,
        problem: "is zero".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Close to the last place of an f64: the two sides take their powers differently.
    fn close(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 1e-14
    }

    fn scaled(scaling: &Scaling, tokens: usize) -> Vec<f64> {
        scaling.inv_freq(1e4, 64, tokens).unwrap()
    }

    #[test]
    fn ntk_keeps_the_first_pair_and_stretches_the_last_in_full() {
        let plain = scaled(&Scaling::Default, 0);
        let alpha = scaled(&Scaling::NtkAlpha { alpha: 8.0 }, 0);
        assert_eq!(alpha[0], 1.0);
        assert!(close(alpha[31], plain[31] / 8.0));
        // 4 · 3000 / 1000 − 3 = 9 times beyond the context, nothing within it.
        let dynamic = Scaling::Dynamic {
            factor: 4.0,
            max_position_embeddings: 1000,
        };
        assert_eq!(scaled(&dynamic, 1000), plain);
        assert!(close(scaled(&dynamic, 3000)[31], plain[31] / 9.0));
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_slows_slow_ones() {
        let plain = scaled(&Scaling::Default, 0);
        for truncate in [true, false] {
            let yarn = Scaling::Yarn {
                factor: 40.0,
                original_max_position_embeddings: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate,
            };
            let yarn = scaled(&yarn, 0);
            let turns = |i: usize| 4096.0 * plain[i] / TAU;
            for i in 0..32 {
                let ratio = yarn[i] / plain[i];
                assert!((1.0 / 40.0 - 1e-12..=1.0).contains(&ratio));
                if !truncate && turns(i) > 32.0 {
                    assert_eq!(ratio, 1.0, "pair {i}");
                }
                // A truncated ramp may reach one pair further down.
                if turns(i) < if truncate { 0.5 } else { 1.0 } {
                    assert!(close(ratio, 1.0 / 40.0), "pair {i}");
                }
            }
        }
    }

    #[test]
    fn yarn_s_ramp_ends_at_the_width_at_the_latest() {
        let yarn = Scaling::Yarn {
            factor: 40.0,
            original_max_position_embeddings: 1_000_000_000,
            beta_fast: 1e6,
            beta_slow: 1.0,
            truncate: true,
        };
        let (plain, yarn) = (scaled(&Scaling::Default, 0), scaled(&yarn, 0));
        // One turn is made by pair 66, of 32: the ramp from 17 on is cut to end at 64 − 1.
        let slowed = (31.0 - 17.0) / (63.0 - 17.0);
        assert!(close(yarn[31] / plain[31], slowed / 40.0 + 1.0 - slowed));
    }

    #[test]
    fn longrope_switches_beyond_the_original_length() {
        let long = Scaling::LongRope {
            short_factor: vec![1.0; 32],
            long_factor: (0..32).map(|i| 1.0 + f64::from(i)).collect(),
            original_max_position_embeddings: 4096,
        };
        let plain = scaled(&Scaling::Default, 0);
        assert_eq!(scaled(&long, 4096), plain);
        let longer = scaled(&long, 4097);
        assert!((0..32).all(|i| close(longer[i] * (1.0 + i as f64), plain[i])));
    }

    #[test]
    fn proportional_leaves_the_last_pairs_still() {
        let some = scaled(
            &Scaling::Proportional {
                factor: 2.0,
                turning: 8,
            },
            0,
        );
        let plain = scaled(&Scaling::Default, 0);
        assert!((0..8).all(|i| some[i] == plain[i] / 2.0));
        assert!((8..32).all(|i| some[i] == 0.0));
    }

    #[test]
    fn an_odd_width_rounds_up_to_pairs_and_keeps_its_exponents() {
        let odd = Scaling::Default.inv_freq(1e4, 5, 0).unwrap();
        assert_eq!(odd.len(), 3);
        assert!(close(odd[2], 1e4f64.powf(-0.8)));
    }

    #[test]
    fn wrong_numbers_are_named() {
        let long = |short: usize, long: usize| Scaling::LongRope {
            short_factor: vec![1.0; short],
            long_factor: vec![1.0; long],
            original_max_position_embeddings: 1,
        };
        let yarn = |factor, beta_fast, beta_slow| Scaling::Yarn {
            factor,
            original_max_position_embeddings: 4096,
            beta_fast,
            beta_slow,
            truncate: true,
        };
        let llama3 = |low_freq_factor, high_freq_factor| Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: 8192,
        };
        for (scaling, field) in [
            (Scaling::Linear { factor: 0.0 }, "factor"),
            (Scaling::NtkAlpha { alpha: f64::NAN }, "alpha"),
            (Scaling::NtkAlpha { alpha: 1e300 }, "alpha"),
            (yarn(-1.0, 32.0, 1.0), "factor"),
            (yarn(4.0, 1.0, 32.0), "beta_fast"),
            (yarn(4.0, 32.0, 0.0), "beta_slow"),
            (long(31, 32), "short_factor"),
            (long(32, 33), "long_factor"),
            (llama3(4.0, 1.0), "high_freq_factor"),
            (
                Scaling::Dynamic {
                    factor: 2.0,
                    max_position_embeddings: 0,
                },
                "max_position_embeddings",
            ),
            (
                Scaling::Proportional {
                    factor: 1.0,
                    turning: 33,
                },
                "partial_rotary_factor",
            ),
        ] {
            let wrong = scaling.inv_freq(1e4, 64, 0).unwrap_err();
            assert_eq!(wrong.field, field, "{scaling:?}");
        }
        // What makes a pair too fast to compute.
        let all = |factor: f64| vec![factor; 32];
        for (scaling, field) in [
            (Scaling::Linear { factor: 1e-7 }, "factor"),
            (Scaling::Linear { factor: 1e-320 }, "factor"),
            (Scaling::NtkAlpha { alpha: 1e-12 }, "alpha"),
            (yarn(1e-12, 32.0, 1.0), "factor"),
            (yarn(4.0, 1e-320, 1e-320), "beta_fast"),
            (
                Scaling::LongRope {
                    short_factor: all(1.0),
                    long_factor: all(1e-7),
                    original_max_position_embeddings: 4096,
                },
                "long_factor",
            ),
            (
                Scaling::Llama3 {
                    factor: 1e-12,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 8192,
                },
                "factor",
            ),
            (
                Scaling::Proportional {
                    factor: 1e-7,
                    turning: 8,
                },
                "factor",
            ),
        ] {
            let wrong = scaling.inv_freq(1e4, 64, 0).unwrap_err();
            assert_eq!(wrong.field, field, "{scaling:?}: {}", wrong.problem);
            // Whatever the scaling, where theta alone is to blame it is blamed.
            let wrong = scaling.inv_freq(1e-300, 64, 0).unwrap_err();
            assert_eq!(wrong.field, "rope_theta", "{scaling:?}");
        }
        let wrong = Scaling::NtkAlpha { alpha: 2.0 }.inv_freq(1e4, 2, 0);
        assert_eq!(wrong.unwrap_err().field, "rotary_dim");
        let wrong = yarn(4.0, 32.0, 1.0).inv_freq(1.0, 64, 0);
        assert_eq!(wrong.unwrap_err().field, "rope_theta");
    }
}
