//! `rope_parameters`, or `rope_theta` and `rope_scaling` before it, read as a rope.

use super::layers::{Layer, Which};
use super::model_types::{Family, Head, Layers, ModelType, Own, Width};
use super::odd;
use super::section::{Section, short};
use crate::rope::scaling::{Scaling, Wrong};
use crate::rope::shown;
use crate::{Pairing, Result, Rope};

/// The names of a partial rotary factor, in the order in which they are believed.
const PARTIAL: [&str; 4] = [
    "partial_rotary_factor",
    "rotary_pct",
    "rope_pct",
    "rope_percent",
];

/// The widest window that a file may ask for. Published models turn 512 components at most; a rope
/// of [`Rope::MAX_ROTARY_DIM`] in each of as many layers as there may be would be gigabytes.
const MAX_ROTARY_DIM: usize = 1 << 12;

/// The most latent components that a file may put before the window; published models have 512 at most.
const MAX_RANK: usize = 1 << 16;

/// What a file says about its model's ropes, found once, however many layers there are.
pub(super) struct Parameters<'a, 'r> {
    config: &'r Section<'a>,
    model: &'r ModelType,
    older: Option<Given<'a>>,
    newer: Option<Given<'a>>,
    tokens: usize,
}

/// `rope_scaling` or `rope_parameters`.
struct Given<'a> {
    key: &'static str,
    section: Section<'a>,
    /// Whether it is keyed by layer type.
    nests: bool,
}

impl<'a, 'r> Parameters<'a, 'r> {
    /// For a sequence of `tokens`.
    pub(super) fn read(
        config: &'r Section<'a>,
        model: &'r ModelType,
        tokens: usize,
    ) -> Result<Parameters<'a, 'r>> {
        let given = |key| -> Result<Option<Given<'a>>> {
            // An object that says something.
            let section = config.section(key)?.filter(|section| !section.is_empty());
            Ok(section.map(|section| Given {
                key,
                nests: section.nests(),
                section,
            }))
        };
        Ok(Parameters {
            config,
            model,
            older: given("rope_scaling")?,
            newer: given("rope_parameters")?,
            tokens,
        })
    }

    /// One layer's rope.
    pub(super) fn rope(&self, layer: Layer) -> Result<Option<Rope>> {
        #[cfg(test)]
        tests::READ.set(tests::READ.get() + 1);
        let own = match layer.rope {
            Which::None => return Ok(None),
            Which::Own(own) => Some(own),
            Which::Only | Which::WithTheta(_) => None,
        };
        let read = |given: Option<Section<'_>>| {
            if given.is_none() && own.is_some_and(|own| own.theta.is_none()) {
                return Ok(None);
            }
            let reader = Reader {
                config: self.config,
                model: self.model,
                family: &self.model.3,
                given,
                own,
                layer,
                tokens: self.tokens,
            };
            reader.rope().map(Some)
        };
        match (&self.older, &self.newer) {
            (None, None) if self.model.3.explicit => {
                let name = self.model.0;
                let problem = format!("is missing, and {name} does not default to a plain rope");
                Err(self.config.wrong("rope_parameters", problem))
            }
            (None, None) => read(None),
            (Some(older), None) => read(self.of_layer(own, older, true)?),
            (None, Some(newer)) => read(self.of_layer(own, newer, false)?),
            // Files that serve readers of both forms have both. transformers believes the older one.
            (Some(older), Some(newer)) => {
                let rope = read(self.of_layer(own, older, true)?)?;
                if rope != read(self.of_layer(own, newer, false)?)? {
                    return Err(self.config.wrong(older.key, "contradicts rope_parameters"));
                }
                Ok(rope)
            }
        }
    }

    /// What the older or newer form says about a layer with the rope `own`.
    fn of_layer(
        &self,
        own: Option<&Own>,
        given: &Given<'a>,
        older: bool,
    ) -> Result<Option<Section<'a>>> {
        let refused = |problem: &str| {
            let problem = format!("{problem} {}", self.model.0);
            Err(self.config.wrong(given.key, problem))
        };
        match own {
            None if given.nests => refused("is keyed by layer type, but there is one rope in"),
            None => Ok(Some(given.section.clone())),
            Some(own) if given.nests => given.section.section(own.layer_type),
            // Which of the ropes the older form is about.
            Some(own) if older => Ok(own.scaled.then(|| given.section.clone())),
            Some(_) => refused("is not keyed by layer type, but there are several ropes in"),
        }
    }
}

/// Everything that one rope is read from.
struct Reader<'a, 'r> {
    config: &'r Section<'a>,
    model: &'r ModelType,
    family: &'r Family,
    given: Option<Section<'a>>,
    own: Option<&'static Own>,
    layer: Layer,
    tokens: usize,
}

impl Reader<'_, '_> {
    fn rope(&self) -> Result<Rope> {
        let theta = match self.layer.rope {
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
                if offset > MAX_RANK {
                    let problem = format!("is {offset}, not at most {MAX_RANK}");
                    return Err(self.config.wrong("kv_lora_rank", problem));
                }
                let dim = self.config.count("qk_rope_head_dim")?.unwrap_or(rotated);
                self.check_latent_fraction(dim)?;
                (offset, dim, self.scaling(kind, dim)?)
            }
            _ if kind == "proportional" => {
                let dim = self.layer.head_dim;
                (0, dim, self.scaling(kind, dim)?)
            }
            _ => {
                let dim = self.rotary_dim(kind)?;
                (0, dim, self.scaling(kind, dim)?)
            }
        };
        if dim == 0 || dim > MAX_ROTARY_DIM {
            return Err(self.blame(Wrong {
                field: "rotary_dim",
                problem: format!("makes {dim} components turn; it must be 1 to {MAX_ROTARY_DIM}"),
            }));
        }
        let inv_freq = scaling
            .inv_freq(theta, dim, self.tokens)
            .map_err(|wrong| self.blame(wrong))?;
        self.check_sections(inv_freq.len())?;
        let rope = Rope::from_inv_freq(inv_freq)?;
        Ok(rope.with_pairing(self.pairing()?).with_offset(offset))
    }

    /// An error about a number, wherever it came from.
    fn blame(&self, wrong: Wrong) -> crate::Error {
        let field = match (wrong.field, self.model.2, self.layer.rope) {
            ("rotary_dim", Head::Latent { .. }, _) => "qk_rope_head_dim",
            ("rotary_dim", ..) => "head_dim",
            ("rope_theta", _, Which::WithTheta(_)) => "layer_rope_theta",
            (field, ..) => field,
        };
        match &self.given {
            Some(given) if given.has(field) => given.wrong(field, wrong.problem),
            _ if field == "rope_theta" => {
                let mut keys = self.theta_keys().iter().copied();
                let key = keys.find(|key| self.config.has(key)).unwrap_or(field);
                self.config.wrong(key, wrong.problem)
            }
            _ => self.config.wrong(field, wrong.problem),
        }
    }

    /// Where files older than `rope_parameters` keep theta.
    fn theta_keys(&self) -> &'static [&'static str] {
        match self.own {
            None => &["rope_theta", "rotary_emb_base", "rope_embedding_base"],
            Some(own) => own.theta_key.as_slice(),
        }
    }

    fn theta(&self) -> Result<f64> {
        let inside = match &self.given {
            Some(given) => given.number("rope_theta")?,
            None => None,
        };
        if let Some(theta) = inside {
            return odd::theta(self.config, self.model, theta);
        }
        let default = match (self.own, &self.given) {
            (None, _) => self.family.theta,
            // Models that never had an older form must say it beside the rest.
            (Some(own), Some(given)) if own.theta_key.is_none() => {
                return Err(given.wrong("rope_theta", "is missing"));
            }
            (Some(own), _) => own.theta.unwrap_or(self.family.theta),
        };
        let theta = self.config.first_number(self.theta_keys())?;
        let theta = theta.map_or(default, |(_, theta)| theta);
        odd::theta(self.config, self.model, theta)
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
                // The second name is that of engines, and of Sarvam's files.
                "yarn" | "deepseek_yarn" => "yarn",
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
                            "is `{}`; known are default, linear, dynamic, yarn, longrope, llama3, proportional",
                            short(name)
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

    /// How many components of a head turn, under the scaling `kind`.
    fn rotary_dim(&self, kind: &str) -> Result<usize> {
        let head_dim = self.layer.head_dim;
        let rotary_dim = self.config.count("rotary_dim")?;
        let too_wide = |key: &str, dim: usize| {
            let problem = format!("makes {dim} of {head_dim} components turn");
            self.config.wrong(key, problem)
        };
        let fraction = self.fraction()?;
        let dim = match self.family.width {
            Width::Dim(default) => rotary_dim.unwrap_or(default),
            Width::Whole => match fraction {
                // The plain rope of such a model does not look at it: its heads turn as a whole.
                Some((key, factor)) if factor != 1.0 && kind != "default" => {
                    let problem = format!(
                        "is {}, but {} turns whole heads, and under {kind} it does not run so",
                        shown(factor),
                        self.model.0
                    );
                    return Err(self.blame(Wrong {
                        field: key,
                        problem,
                    }));
                }
                _ => head_dim,
            },
            Width::Stated if fraction.is_none() => {
                let problem = format!("is missing; {} is known with it only", self.model.0);
                return Err(self.config.wrong(PARTIAL[0], problem));
            }
            Width::Partial(_) | Width::Stated => match (fraction, rotary_dim) {
                (None, Some(dim)) => dim,
                (fraction, _) => {
                    let default = match self.family.width {
                        Width::Partial(default) => default,
                        _ => 1.0,
                    };
                    let own = match (&self.given, self.own) {
                        (None, Some(own)) => own.partial,
                        _ => None,
                    };
                    let default = (PARTIAL[0], own.unwrap_or(default));
                    let (key, factor) = fraction.unwrap_or(default);
                    if !(factor > 0.0 && factor <= 1.0) {
                        return Err(self.blame(Wrong {
                            field: key,
                            problem: format!(
                                "is {}; it must be above 0 and at most 1",
                                shown(factor)
                            ),
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
            problem: format!("is {}, but qk_rope_head_dim {dim}", shown(factor)),
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
            // Read for each rope, so that it must not be long. Positions have four components at most.
            if given.length(key).is_some_and(|length| length > 8) {
                return Err(given.wrong(key, "has more entries than a position has components"));
            }
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
            if let Some(scaling) = odd::scaling(self.config, self.model, self.tokens)? {
                return Ok(scaling);
            }
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
                        None => match self.longest()? {
                            Some(longest) => longest as f64 / original as f64,
                            None => {
                                let problem = "is missing, and so is max_position_embeddings, which would say it";
                                return Err(given.wrong("factor", problem));
                            }
                        },
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
                        problem: format!("is {}; it must be 0 to 1", shown(fraction)),
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
        let problem = "is missing, and the scaling depends on it";
        self.longest()?
            .ok_or_else(|| self.config.wrong("max_position_embeddings", problem))
    }

    /// The same, where it is given.
    fn longest(&self) -> Result<Option<usize>> {
        // DBRX's name is the second.
        let names = ["max_position_embeddings", "max_seq_len"];
        match self.config.first_count(&names)? {
            Some((key, 0)) => Err(self.config.wrong(key, "is zero")),
            found => Ok(found.map(|(_, tokens)| tokens)),
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

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        /// How often a rope has been read from a file on this thread.
        pub(in crate::rope::config) static READ: Cell<usize> = const { Cell::new(0) };
    }
}
