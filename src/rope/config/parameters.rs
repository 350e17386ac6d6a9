//! `rope_parameters`, or `rope_theta` and `rope_scaling` before it, read as a rope.

use super::layers::{Layer, Which};
use super::model_types::{Family, Head, Layers, ModelType, Own, Width};
use super::section::Section;
use crate::rope::scaling::{Scaling, Wrong};
use crate::{Pairing, Result, Rope};

/// The names of a partial rotary factor, in the order in which they are believed.
const PARTIAL: [&str; 4] = [
    "partial_rotary_factor",
    "rotary_pct",
    "rope_pct",
    "rope_percent",
];

/// One layer's rope, for a sequence of `tokens`.
pub(super) fn rope(
    config: &Section<'_>,
    model: &ModelType,
    layer: Layer,
    tokens: usize,
) -> Result<Option<Rope>> {
    let own = match layer.rope {
        Which::None => return Ok(None),
        Which::Own(own) => Some(own),
        Which::Only | Which::WithTheta(_) => None,
    };
    let read = |given: Option<Section<'_>>| {
        if given.is_none() && own.is_some_and(|own| own.theta.is_none()) {
            return Ok(None);
        }
        let family = &model.3;
        let reader = Reader {
            config,
            model,
            family,
            given,
            own,
        };
        reader.rope(layer, tokens).map(Some)
    };
    let older = section(config, "rope_scaling")?;
    let newer = section(config, "rope_parameters")?;
    match (older, newer) {
        (None, None) => read(None),
        (Some(older), None) => read(of_layer(config, model, own, older, true)?),
        (None, Some(newer)) => read(of_layer(config, model, own, newer, false)?),
        // Files that serve readers of both forms have both. transformers believes the older one.
        (Some(older), Some(newer)) => {
            let rope = read(of_layer(config, model, own, older, true)?)?;
            if rope != read(of_layer(config, model, own, newer, false)?)? {
                return Err(config.wrong("rope_scaling", "contradicts rope_parameters"));
            }
            Ok(rope)
        }
    }
}

/// An object that says something.
fn section<'a>(config: &Section<'a>, key: &str) -> Result<Option<Section<'a>>> {
    Ok(config.section(key)?.filter(|section| !section.is_empty()))
}

/// What `rope_scaling` (`older`) or `rope_parameters` says about a layer with the rope `own`.
fn of_layer<'a>(
    config: &Section<'_>,
    model: &ModelType,
    own: Option<&Own>,
    found: Section<'a>,
    older: bool,
) -> Result<Option<Section<'a>>> {
    let refused = |problem: &str| {
        let key = if older {
            "rope_scaling"
        } else {
            "rope_parameters"
        };
        Err(config.wrong(key, format!("{problem} {}", model.0)))
    };
    match own {
        None if found.nests() => refused("is keyed by layer type, but there is one rope in"),
        None => Ok(Some(found)),
        Some(own) if found.nests() => found.section(own.layer_type),
        // Which of the ropes the older form is about.
        Some(own) if older => Ok(own.scaled.then_some(found)),
        Some(_) => refused("is not keyed by layer type, but there are several ropes in"),
    }
}

/// Everything that one rope is read from.
struct Reader<'a, 'r> {
    config: &'r Section<'a>,
    model: &'r ModelType,
    family: &'r Family,
    given: Option<Section<'a>>,
    own: Option<&'static Own>,
}

impl Reader<'_, '_> {
    fn rope(&self, layer: Layer, tokens: usize) -> Result<Rope> {
        if self.family.explicit && self.given.is_none() {
            return Err(self.config.wrong(
                "rope_parameters",
                format!(
                    "is missing, and {} does not default to a plain rope",
                    self.model.0
                ),
            ));
        }
        let theta = match layer.rope {
            Which::WithTheta(theta) => theta,
            _ => self.theta()?,
        };
        let kind = self.kind()?;
        let (offset, dim, scaling) = match self.model.2 {
            Head::Latent { rank, rotated } => {
                if self.config.flag("use_mla")? == Some(false) {
                    let problem = format!("is false, and {} is known with it only", self.model.0);
                    return Err(self.config.wrong("use_mla", problem));
                }
                let offset = self.config.count("kv_lora_rank")?.unwrap_or(rank);
                let dim = self.config.count("qk_rope_head_dim")?.unwrap_or(rotated);
                self.check_latent_fraction(dim)?;
                (offset, dim, self.scaling(kind, dim)?)
            }
            _ if kind == "proportional" => {
                let dim = layer.head_dim;
                (0, dim, self.scaling(kind, dim)?)
            }
            _ => {
                let dim = self.rotary_dim(layer.head_dim)?;
                (0, dim, self.scaling(kind, dim)?)
            }
        };
        let inv_freq = scaling
            .inv_freq(theta, dim, tokens)
            .map_err(|wrong| self.blame(wrong))?;
        self.check_sections(inv_freq.len())?;
        match Rope::from_inv_freq(inv_freq) {
            Ok(rope) => Ok(rope.with_pairing(self.pairing()?).with_offset(offset)),
            // Numbers that are each possible and together are not, a factor of 1e-320 for one.
            Err(error) => Err(match &self.given {
                Some(given) => given.wrong_itself(error.to_string()),
                None => self.config.wrong("rope_theta", error.to_string()),
            }),
        }
    }

    /// An error about a number, wherever it came from.
    fn blame(&self, wrong: Wrong) -> crate::Error {
        let field = match (wrong.field, self.model.2) {
            ("rotary_dim", Head::Latent { .. }) => "qk_rope_head_dim",
            ("rotary_dim", _) => "head_dim",
            (field, _) => field,
        };
        match &self.given {
            Some(given) if given.has(field) => given.wrong(field, wrong.problem),
            _ => self.config.wrong(field, wrong.problem),
        }
    }

    fn theta(&self) -> Result<f64> {
        let inside = match &self.given {
            Some(given) => given.number("rope_theta")?,
            None => None,
        };
        if let Some(theta) = inside {
            return Ok(theta);
        }
        let older = match self.own {
            None => ["rope_theta", "rotary_emb_base"].as_slice(),
            Some(own) => own.theta_key.as_slice(),
        };
        let default = match (self.own, &self.given) {
            (None, _) => self.family.theta,
            // Models that never had an older form must say it beside the rest.
            (Some(own), Some(given)) if own.theta_key.is_none() => {
                return Err(given.wrong("rope_theta", "is missing"));
            }
            (Some(own), _) => own.theta.unwrap_or(self.family.theta),
        };
        let theta = self.config.first_number(older)?;
        let theta = theta.map_or(default, |(_, theta)| theta);
        // ChatGLM3 and GLM-4 stretch theta by a number of their own.
        match self.model.0 {
            "chatglm" => Ok(theta * self.config.number("rope_ratio")?.unwrap_or(1.0)),
            _ => Ok(theta),
        }
    }

    /// The type of scaling, by its present name.
    fn kind(&self) -> Result<&'static str> {
        let Some(given) = &self.given else {
            let proportional = self.own.is_some_and(|own| own.proportional);
            return Ok(if proportional {
                "proportional"
            } else {
                "default"
            });
        };
        let mut kind = None;
        for key in ["rope_type", "type"] {
            let Some(name) = given.text(key)? else {
                continue;
            };
            let named = match name {
                // Text whose three position components agree has an ordinary rope.
                "default" | "mrope" => "default",
                "linear" => "linear",
                "dynamic" => "dynamic",
                // Phi-3's first files said yarn and meant LongRoPE.
                "yarn" if ["phi3", "phi4_multimodal"].contains(&self.model.0) => "longrope",
                "yarn" => "yarn",
                "longrope" | "su" => "longrope",
                "llama3" => "llama3",
                "proportional" => "proportional",
                "axial" => {
                    return Err(given.wrong(
                        key,
                        "is `axial`, the two-dimensional rope of vision towers, which gives no row one position",
                    ));
                }
                name => {
                    return Err(given.wrong(
                        key,
                        format!(
                            "is `{name}`; known are default, linear, dynamic, yarn, longrope, llama3, proportional"
                        ),
                    ));
                }
            };
            match kind {
                None => kind = Some(named),
                Some(kind) if kind == named => {}
                Some(kind) => {
                    return Err(given.wrong(key, format!("is `{name}`, but rope_type is {kind}")));
                }
            }
        }
        match kind {
            Some(kind) => Ok(kind),
            None if given.has("factor") => {
                Err(given.wrong("rope_type", "is missing, though there is a factor"))
            }
            None => Ok("default"),
        }
    }

    /// The partial rotary factor and where it stands, if one is given.
    fn fraction(&self) -> Result<Option<(&'static str, f64)>> {
        if let Some(given) = &self.given
            && let Some(factor) = given.number(PARTIAL[0])?
        {
            return Ok(Some((PARTIAL[0], factor)));
        }
        self.config.first_number(&PARTIAL)
    }

    /// How many components of a head turn.
    fn rotary_dim(&self, head_dim: usize) -> Result<usize> {
        let rotary_dim = self.config.count("rotary_dim")?;
        let too_wide = |key: &str, dim: usize| {
            let problem = format!("makes {dim} of {head_dim} components turn");
            self.config.wrong(key, problem)
        };
        let fraction = self.fraction()?;
        let dim = match self.family.width {
            Width::Dim(default) => rotary_dim.unwrap_or(default),
            Width::Whole => match fraction {
                Some((key, factor)) if factor != 1.0 => {
                    let problem = format!("is {factor}, but {} turns the whole head", self.model.0);
                    return Err(self.blame(Wrong {
                        field: key,
                        problem,
                    }));
                }
                _ => head_dim,
            },
            Width::Partial(default) => match (fraction, rotary_dim) {
                (None, Some(dim)) => dim,
                (fraction, _) => {
                    let own = match (&self.given, self.own) {
                        (None, Some(own)) => own.partial,
                        _ => None,
                    };
                    let default = (PARTIAL[0], own.unwrap_or(default));
                    let (key, factor) = fraction.unwrap_or(default);
                    if !(factor > 0.0 && factor <= 1.0) {
                        return Err(self.blame(Wrong {
                            field: key,
                            problem: format!("is {factor}; it must be above 0 and at most 1"),
                        }));
                    }
                    // Rounded down, as everyone does.
                    (head_dim as f64 * factor) as usize
                }
            },
        };
        if dim > head_dim {
            return Err(too_wide("rotary_dim", dim));
        }
        match rotary_dim {
            Some(said) if said != dim => Err(self.config.wrong(
                "rotary_dim",
                format!("is {said}, but everything else makes {dim} of {head_dim} components turn"),
            )),
            _ => Ok(dim),
        }
    }

    /// A latent row turns `qk_rope_head_dim` components; a partial rotary factor, where a file has
    /// one, must come to the same.
    fn check_latent_fraction(&self, dim: usize) -> Result<()> {
        let Some((key, factor)) = self.fraction()? else {
            return Ok(());
        };
        let latent = self.config.count("qk_nope_head_dim")?.unwrap_or(0);
        let wide = self.config.count("head_dim")?.unwrap_or(dim);
        let same = |of: usize| (of as f64 * factor) as usize == dim;
        if same(dim) || same(latent.saturating_add(dim)) || same(wide) {
            return Ok(());
        }
        Err(self.blame(Wrong {
            field: key,
            problem: format!("is {factor}, but qk_rope_head_dim {dim}"),
        }))
    }

    fn pairing(&self) -> Result<Pairing> {
        let key = match self.model.2 {
            Head::Latent { .. } => "rope_interleave",
            _ if self.model.0 == "chatglm" => "original_rope",
            _ => return Ok(self.family.pairing),
        };
        match self.family.pairing {
            Pairing::Interleaved if self.config.flag(key)? == Some(false) => Ok(Pairing::HalfSplit),
            pairing => Ok(pairing),
        }
    }

    /// The sections of M-RoPE say which pairs follow which component of a position; they must cover
    /// the pairs, or the file is not understood.
    fn check_sections(&self, pairs: usize) -> Result<()> {
        let Some(given) = &self.given else {
            return Ok(());
        };
        for key in ["mrope_section", "xdrope_section"] {
            let Some(sections) = given.counts(key)? else {
                continue;
            };
            let sum = sections
                .iter()
                .fold(0, |sum: usize, n| sum.saturating_add(*n));
            if sum != pairs {
                let problem = format!("covers {sum} pairs, but {pairs} turn");
                return Err(given.wrong(key, problem));
            }
        }
        Ok(())
    }

    /// The scaling, with the entries that only this type has.
    fn scaling(&self, kind: &str, dim: usize) -> Result<Scaling> {
        let Some(given) = &self.given else {
            return Ok(match kind {
                "proportional" => Scaling::Proportional {
                    factor: 1.0,
                    turning: turning(dim, self.own.and_then(|own| own.partial).unwrap_or(1.0)),
                },
                _ => Scaling::Default,
            });
        };
        let number = |key: &str| match given.number(key)? {
            Some(number) => Ok(number),
            None => Err(given.wrong(key, "is missing")),
        };
        let list = |key: &str| match given.numbers(key)? {
            Some(list) => Ok(list),
            None => Err(given.wrong(key, "is missing")),
        };
        // transformers takes a zero for "not given" here.
        let turns = |key: &str, default: f64| -> Result<f64> {
            Ok(given.number(key)?.filter(|n| *n != 0.0).unwrap_or(default))
        };
        Ok(match kind {
            "linear" => Scaling::Linear {
                factor: number("factor")?,
            },
            "dynamic" => {
                if given.number("alpha")?.is_some_and(|alpha| alpha != 0.0) {
                    let problem =
                        format!("is Hunyuan's, and {} is not known to read it", self.model.0);
                    return Err(given.wrong("alpha", problem));
                }
                Scaling::Dynamic {
                    factor: number("factor")?,
                    max_position_embeddings: self.max_position_embeddings()?,
                }
            }
            "yarn" => {
                let original = self.original_max_position_embeddings(given)?;
                Scaling::Yarn {
                    factor: match given.number("factor")? {
                        Some(factor) => factor,
                        None => self.max_position_embeddings()? as f64 / original as f64,
                    },
                    original_max_position_embeddings: original,
                    beta_fast: turns("beta_fast", 32.0)?,
                    beta_slow: turns("beta_slow", 1.0)?,
                    // Read where the rest of this rope stands. transformers 5.23 looks beside the
                    // layer types instead, where files keyed by them do not have it.
                    truncate: given.flag("truncate")?.unwrap_or(true),
                }
            }
            "longrope" => Scaling::LongRope {
                short_factor: list("short_factor")?,
                long_factor: list("long_factor")?,
                original_max_position_embeddings: self.original_max_position_embeddings(given)?,
            },
            "llama3" => Scaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position_embeddings: self.original_max_position_embeddings(given)?,
            },
            "proportional" => {
                let fraction = self.fraction()?.map_or(1.0, |(_, factor)| factor);
                if !(0.0..=1.0).contains(&fraction) {
                    return Err(self.blame(Wrong {
                        field: PARTIAL[0],
                        problem: format!("is {fraction}; it must be 0 to 1"),
                    }));
                }
                Scaling::Proportional {
                    factor: given.number("factor")?.unwrap_or(1.0),
                    turning: turning(dim, fraction),
                }
            }
            _ => Scaling::Default,
        })
    }

    fn max_position_embeddings(&self) -> Result<usize> {
        let key = "max_position_embeddings";
        match self.config.count(key)? {
            Some(0) => Err(self.config.wrong(key, "is zero")),
            Some(tokens) => Ok(tokens),
            None => Err(self
                .config
                .wrong(key, "is missing, and the scaling depends on it")),
        }
    }

    /// The length that a model was first trained for. In the older form, Phi-3's for one, it stands
    /// beside `rope_scaling` rather than in it, and is believed first.
    fn original_max_position_embeddings(&self, given: &Section<'_>) -> Result<usize> {
        let key = "original_max_position_embeddings";
        let keyed = matches!(self.family.layers, Layers::Own(..));
        let beside = if keyed { None } else { self.config.count(key)? };
        let found = match beside {
            Some(tokens) => Some(tokens),
            None => given.count(key)?,
        };
        match found {
            Some(0) => Err(self.blame(Wrong {
                field: key,
                problem: "is zero".into(),
            })),
            Some(tokens) => Ok(tokens),
            None => self.max_position_embeddings(),
        }
    }
}

/// How many pairs of a head turn under a proportional rope.
fn turning(head_dim: usize, fraction: f64) -> usize {
    (fraction * head_dim as f64 / 2.0) as usize
}
