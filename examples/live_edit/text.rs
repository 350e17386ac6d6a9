//! Text to tokens and back.

use std::path::Path;

use anyhow::{Result, anyhow};
use serde_json::Value;
use tokenizers::Tokenizer;

/// A tokenizer, and how a document begins and ends.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    /// Put before every document, where the tokenizer does not do so itself.
    bos: Option<u32>,
    eos: Vec<u32>,
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
        Ok(tokens)
    }

    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(tokens, true)
            .map_err(|e| anyhow!("tokenizer: {e}"))
    }

    /// Whether `token`, generated behind `line`, ends the line: it ends the document, or brings a
    /// line break after something visible.
    pub(crate) fn ends_line(&self, line: &[u32], token: u32) -> Result<bool> {
        if self.eos.contains(&token) {
            return Ok(true);
        }
        let longer = self.decode(&[line, &[token]].concat())?;
        Ok(longer.trim_start().contains('\n'))
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
