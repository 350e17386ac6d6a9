//! A JSON object that knows where it stands, so that every complaint names its entry.

use std::fmt::{self, Write};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// One object of a `config.json` and its dotted path. An entry that is `null` counts as absent, as
/// published files write `"rope_scaling": null` for "none".
#[derive(Clone, Debug)]
pub(super) struct Section<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Section<'a> {
    pub(super) fn root(object: &'a Map<String, Value>) -> Section<'a> {
        Section {
            object,
            path: String::new(),
        }
    }

    /// An error about the entry `key` of this section.
    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Config {
            key: self.at(key),
            problem: problem.into(),
        }
    }

    /// The dotted path of an entry.
    fn at(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.path, short(key))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether the entry is there and says `null`.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// What `read` makes of the entry, where there is one.
    fn entry<T>(
        &self,
        key: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|value| {
                read(value)
                    .ok_or_else(|| self.wrong(key, format!("is {}, not {what}", short(value))))
            })
            .transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.entry(key, "a number", Value::as_f64)
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.entry(key, "a whole number", as_count)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.entry(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.entry(key, "a text", Value::as_str)
    }

    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.list(key, "a list of numbers", Value::as_f64)
    }

    pub(super) fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.list(key, "a list of whole numbers", as_count)
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.list(key, "a list of texts", Value::as_str)
    }

    fn list<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.entry(key, what, |value| {
            value.as_array()?.iter().map(read).collect()
        })
    }

    /// How many entries a list has.
    pub(super) fn length(&self, key: &str) -> Option<usize> {
        self.get(key)?.as_array().map(Vec::len)
    }

    pub(super) fn section(&self, key: &str) -> Result<Option<Section<'a>>> {
        let object = self.entry(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Section {
            object,
            path: self.at(key),
        }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.object.keys().map(String::as_str)
    }

    /// Whether an entry of this section is itself an object.
    pub(super) fn nests(&self) -> bool {
        self.object.values().any(Value::is_object)
    }

    /// The first of several names for the same number that is there, with that name.
    pub(super) fn first_number<'k>(&self, keys: &[&'k str]) -> Result<Option<(&'k str, f64)>> {
        for key in keys {
            if let Some(number) = self.number(key)? {
                return Ok(Some((key, number)));
            }
        }
        Ok(None)
    }

    /// As [`first_number`](Section::first_number), for a whole number.
    pub(super) fn first_count<'k>(&self, keys: &[&'k str]) -> Result<Option<(&'k str, usize)>> {
        for key in keys {
            if let Some(count) = self.count(key)? {
                return Ok(Some((key, count)));
            }
        }
        Ok(None)
    }
}

/// The beginning of what a file says, for a message: a damaged file may say it at any length.
pub(super) fn short(said: impl fmt::Display) -> String {
    const LENGTH: usize = 40;
    struct Short {
        text: String,
        left: usize,
    }
    impl Write for Short {
        fn write_str(&mut self, more: &str) -> fmt::Result {
            for character in more.chars() {
                if self.left == 0 {
                    self.text.push('…');
                    return Err(fmt::Error); // which ends the writing
                }
                self.text.push(character);
                self.left -= 1;
            }
            Ok(())
        }
    }
    let mut short = Short {
        text: String::new(),
        left: LENGTH,
    };
    let _ = write!(short, "{said}");
    short.text
}

/// Whole numbers are sometimes written as `8192.0`.
fn as_count(value: &Value) -> Option<usize> {
    if let Some(count) = value.as_u64() {
        return usize::try_from(count).ok();
    }
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_at_length_is_shown_in_short() {
        assert_eq!(short("warp"), "warp");
        let forty = "x".repeat(40);
        assert_eq!(short(&forty), forty);
        assert_eq!(short(forty.clone() + "y"), forty.clone() + "…");
        let long = Value::from(vec!["é".repeat(1000); 1000]);
        assert_eq!(short(&long), format!("[\"{}…", "é".repeat(38)));
        let object = Map::from_iter([("z".repeat(1 << 20), Value::from(1))]);
        let root = Section::root(&object);
        let key = "z".repeat(1 << 20);
        let Err(Error::Config { key, problem }) = root.flag(&key) else {
            panic!("a number is no flag");
        };
        assert!(key.len() < 50 && problem == "is 1, not true or false");
    }
}
