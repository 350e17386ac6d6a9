//! A JSON object that knows where it stands, so that every complaint names its entry.

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
        let dot = if self.path.is_empty() { "" } else { "." };
        Error::Config {
            key: format!("{}{dot}{key}", self.path),
            problem: problem.into(),
        }
    }

    /// An error about this section as a whole.
    pub(super) fn wrong_itself(&self, problem: impl Into<String>) -> Error {
        Error::Config {
            key: self.path.clone(),
            problem: problem.into(),
        }
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
                read(value).ok_or_else(|| {
                    let mut shown = value.to_string();
                    if shown.chars().count() > 40 {
                        shown = shown.chars().take(40).chain(['…']).collect();
                    }
                    self.wrong(key, format!("is {shown}, not {what}"))
                })
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

    pub(super) fn section(&self, key: &str) -> Result<Option<Section<'a>>> {
        let object = self.entry(key, "an object", Value::as_object)?;
        let dot = if self.path.is_empty() { "" } else { "." };
        Ok(object.map(|object| Section {
            object,
            path: format!("{}{dot}{key}", self.path),
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

/// Whole numbers are sometimes written as `8192.0`.
fn as_count(value: &Value) -> Option<usize> {
    if let Some(count) = value.as_u64() {
        return usize::try_from(count).ok();
    }
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as usize)
}
