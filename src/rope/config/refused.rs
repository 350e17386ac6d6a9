//! Model types whose cached keys no rope by their `config.json` turns, and why.
//!
//! A wrong rope spoils a cache without a sound, so what is not known is refused; who knows better
//! builds the [`ModelRope`](crate::ModelRope) without this reader.

use super::section::short;

/// What stands in the way.
#[derive(Clone, Copy, PartialEq)]
enum Why {
    /// Positions are added to what the first layer sees.
    Added,
    /// Attention knows distances alone: ALiBi, or a bias for each.
    Distances,
    /// All layers keep a state.
    State,
    /// Some layers do, and the others' ropes are not known.
    SomeState,
    /// Keys of other things than tokens' attention are cached beside them.
    Beside,
    /// A norm with weights behind the rotation.
    NormBehind,
    /// Angles are negative.
    Backwards,
    /// A row is attended to as key and value.
    KeyIsValue,
    /// A row is not one token's.
    NotTokens,
    /// No token attends to those before it alone.
    NotCausal,
}

/// What to do instead.
const GIVE: &str = "If you know its rope, give a `ModelRope` in place of the config: \
                    `ModelRope::uniform(Rope::from_inv_freq(..)?, layers)`";
const GIVE_NONE: &str = "`ModelRope::from_layers` takes `None` for each layer";
const GIVE_BOTH: &str = "If you know how both turn, give each a `ModelRope` and a call of its own, with the layout of \
                         its keys; else encode the moved rows again";
const ENCODE_MOVED: &str = "Encode the moved rows again";
const ENCODE_REST: &str = "Encode again from the first edit on";

impl Why {
    /// What a refusal says after the name, and the way out.
    fn says(self) -> (&'static str, &'static str) {
        match self {
            Why::Added => (
                "adds positions to the hidden states, so no rotation makes of a moved row what the model would",
                ENCODE_MOVED,
            ),
            Why::Distances => (
                "caches keys that carry no position, so rows move as they are",
                GIVE_NONE,
            ),
            Why::State => (
                "keeps a recurrent state instead of keys, and no rotation edits one",
                ENCODE_REST,
            ),
            Why::SomeState => (
                "has layers that keep a recurrent state, which no rotation edits; what its other layers do is not known",
                ENCODE_REST,
            ),
            Why::Beside => (
                "caches the keys of an indexer beside its own, and a rope does not describe both",
                GIVE_BOTH,
            ),
            Why::NormBehind => (
                "norms its keys after it has turned them, with a weight for each component, so no turn undoes one",
                ENCODE_MOVED,
            ),
            Why::Backwards => (
                "turns its keys backwards, by −p · inv_freq, and a rope turns forwards",
                ENCODE_MOVED,
            ),
            Why::KeyIsValue => (
                "caches rows that are key and value at once, and a value must not turn",
                ENCODE_MOVED,
            ),
            Why::NotTokens => (
                "caches rows that stand for more than one token",
                ENCODE_REST,
            ),
            Why::NotCausal => (
                "lets tokens see those behind them, so an edit changes every row",
                "Encode the text again",
            ),
        }
    }
}

/// Why a file of the type `name` cannot be read, and the way out.
pub(super) fn refusal(name: &str) -> String {
    let found = REFUSED.binary_search_by(|(known, _)| known.cmp(&name));
    let (reason, way_out) = match found {
        Ok(index) => REFUSED[index].1.says(),
        Err(_) => ("is not a model type that this version knows", GIVE),
    };
    format!("`{}` {reason}. {way_out}", short(name))
}

#[rustfmt::skip]
const REFUSED: &[(&str, Why)] = &[
    ("axk2", Why::Beside),
    ("bart", Why::Added),
    ("bert", Why::Added),
    ("bert-generation", Why::Added),
    ("big_bird", Why::Added),
    ("bigbird_pegasus", Why::Added),
    ("biogpt", Why::Added),
    ("blenderbot", Why::Added),
    ("blenderbot-small", Why::Added),
    ("bloom", Why::Distances),
    ("blt", Why::NotTokens),
    ("camembert", Why::Added),
    ("cpmant", Why::Distances),
    ("ctrl", Why::Added),
    ("data2vec-text", Why::Added),
    ("deepseek_v32", Why::Beside),
    ("deepseek_v4", Why::KeyIsValue),
    ("dots3_note_text", Why::Beside),
    ("electra", Why::Added),
    ("ernie", Why::Added),
    ("falcon_mamba", Why::State),
    ("git", Why::Added),
    ("glm5_next_text", Why::SomeState),
    ("glm_moe_dsa", Why::Beside),
    ("gpt-sw3", Why::Added),
    ("gpt2", Why::Added),
    ("gpt_bigcode", Why::Added),
    ("gpt_neo", Why::Added),
    ("hunyuan_v1_dense", Why::NormBehind),
    ("hunyuan_v1_moe", Why::NormBehind),
    ("hy_v4", Why::Beside),
    ("hy_v4_vl_text", Why::Beside),
    ("inkling2_loop_text", Why::SomeState),
    ("inkling2_text", Why::SomeState),
    ("inkling_text", Why::SomeState),
    ("jamba", Why::SomeState),
    ("mamba", Why::State),
    ("mamba2", Why::State),
    ("marian", Why::Added),
    ("mbart", Why::Added),
    ("megatron-bert", Why::Added),
    ("mistral_large4_text", Why::Beside),
    ("mpt", Why::Distances),
    ("mt5", Why::Distances),
    ("musicgen", Why::Added),
    ("musicgen_decoder", Why::Added),
    ("musicgen_melody", Why::Added),
    ("musicgen_melody_decoder", Why::Added),
    ("mvp", Why::Added),
    ("nanochat", Why::Backwards),
    ("nemotron_h", Why::SomeState),
    ("openai-gpt", Why::Added),
    ("opt", Why::Added),
    ("pegasus", Why::Added),
    ("plbart", Why::Added),
    ("prophetnet", Why::Added),
    ("qwen4_exp_text", Why::SomeState),
    ("recurrent_gemma", Why::SomeState),
    ("reformer", Why::Added),
    ("rembert", Why::Added),
    ("roberta", Why::Added),
    ("roberta-prelayernorm", Why::Added),
    ("roc_bert", Why::Added),
    ("rwkv", Why::State),
    ("step3p5", Why::Beside),
    ("t5", Why::Distances),
    ("trocr", Why::Added),
    ("umt5", Why::Distances),
    ("whisper", Why::Added),
    ("xglm", Why::Added),
    ("xlm", Why::Added),
    ("xlm-roberta", Why::Added),
    ("xlm-roberta-xl", Why::Added),
    ("xlnet", Why::NotCausal),
    ("xlstm", Why::State),
    ("xmod", Why::Added),
    ("zamba", Why::SomeState),
    ("zamba2", Why::SomeState),
    ("zaya", Why::SomeState),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::config::model_types;

    #[test]
    fn rows_are_sorted_distinct_and_not_known_to_rotate() {
        assert!(REFUSED.is_sorted_by(|a, b| a.0 < b.0));
        for (name, _) in REFUSED {
            assert!(
                model_types::find(name).is_none(),
                "{name} is refused and known"
            );
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        for (name, why) in REFUSED {
            let text = refusal(name);
            let (reason, way_out) = why.says();
            assert_eq!(text, format!("`{name}` {reason}. {way_out}"));
            assert!(text.len() < 400, "{text}");
        }
        let unknown = refusal("warp");
        assert!(
            unknown.starts_with("`warp` is not a model type that this version knows. If")
                && unknown.contains("`ModelRope`"),
            "{unknown}"
        );
        assert!(refusal(&"x".repeat(1 << 20)).len() < 400);
    }
}
