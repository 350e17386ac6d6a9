//! Text to tokens and back.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;
use tokenizers::Tokenizer;

/// A tokenizer, and how a document begins and ends.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    /// Put before every document, where the tokenizer does not do so itself.
    bos: Option<u32>,
    eos: Vec<u32>,
    /// The model's tokens are below this.
    vocabulary: u64,
}

/// A predicted line: its tokens, the one that ends it included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) tokens: Vec<u32>,
    /// How it ends; `None`: it is longer than was asked for.
    pub(crate) stop: Option<Stop>,
}

/// What ends a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A line break after something visible.
    Break,
    /// The end of the document.
    End,
}

impl Text {
    /// `config` is the model's `config.json`, `settings` its `tokenizer_config.json`, or null.
    pub(crate) fn open(path: &Path, config: &Value, settings: &Value) -> Result<Text> {
        let tokenizer =
            Tokenizer::from_file(path).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let bos = ids(&config["bos_token_id"]).first().copied();
        // Qwen2.5 names a first token in config.json that its tokenizer never writes: null here.
        let no_bos = settings["add_bos_token"].as_bool() == Some(false)
            || settings.get("bos_token").is_some_and(Value::is_null);
        Ok(Text {
            tokenizer,
            bos: bos.filter(|_| !no_bos),
            eos: ids(&config["eos_token_id"]),
            vocabulary: config["vocab_size"].as_u64().unwrap_or(u64::MAX),
        })
    }

    /// The tokens of a document. White space at its end is left out: the cursor is behind the last
    /// line, and the model itself is to predict the line break and the indentation that follow,
    /// which code tokenizers put into one token.
    pub(crate) fn encode(&self, document: &str) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(document.trim_end(), true)
            .map_err(|e| anyhow!("tokenizer: {e}"))?;
        let mut tokens = encoding.get_ids().to_vec();
        if let Some(bos) = self.bos
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        let beyond = tokens
            .iter()
            .find(|&&token| u64::from(token) >= self.vocabulary);
        ensure!(
            beyond.is_none(),
            "the tokenizer is not this model's: the text has token {}, the vocabulary is of {}",
            beyond.unwrap_or(&0),
            self.vocabulary
        );
        Ok(tokens)
    }

    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(tokens, true)
            .map_err(|e| anyhow!("tokenizer: {e}"))
    }

    /// What the last of some generated tokens ends, if it ends the line.
    pub(crate) fn stop(&self, tokens: &[u32]) -> Result<Option<Stop>> {
        if tokens.last().is_some_and(|token| self.eos.contains(token)) {
            return Ok(Some(Stop::End));
        }
        let broken = self.decode(tokens)?.trim_start().contains('\n');
        Ok(broken.then_some(Stop::Break))
    }

    /// A line as it is shown: whole, quoted, with its white space and its end. One that has nothing to show
    /// shows that.
    pub(crate) fn show(&self, line: &Line) -> Result<String> {
        let end = match line.stop {
            Some(Stop::Break) => "",
            Some(Stop::End) => " and the end of the text",
            None => " and more",
        };
        Ok(format!("{:?}{end}", self.decode(&line.tokens)?))
    }
}

/// A token id, a list of them, or null.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}
