//! Edits to replay: unified diffs, or two versions of a file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pie_rope::Edit;

/// A file and what is done to it, one edit at a time, always from the same start.
pub(crate) struct Document {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) edits: Vec<Edited>,
}

/// The file after one edit.
pub(crate) struct Edited {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// What an edit does: the three kinds of the paper, and what is none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Insertion,
    Deletion,
    SeveralPlaces,
    Replacement,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Insertion => "insertion",
            Kind::Deletion => "deletion",
            Kind::SeveralPlaces => "several places",
            Kind::Replacement => "replacement",
        })
    }
}

/// The files and edits that come with the example.
pub(crate) fn shipped() -> Result<Vec<Document>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/live_edit/data");
    let files = entries(&data)?.into_iter().filter(|path| path.is_file());
    files
        .map(|file| diffed(&file, &entries(&file.with_extension(""))?))
        .collect()
}

/// `file`, and each of `diffs` applied to it.
pub(crate) fn diffed(file: &Path, diffs: &[PathBuf]) -> Result<Document> {
    let text = read(file)?;
    let edits = diffs.iter().map(|diff| {
        let edited = apply(&text, &read(diff)?)
            .with_context(|| format!("{} on {}", diff.display(), file.display()))?;
        Edited::new(diff, &text, edited)
    });
    Ok(Document {
        name: name(file.file_name()),
        edits: edits.collect::<Result<_>>()?,
        text,
    })
}

/// The one edit that makes `new` of `old`.
pub(crate) fn difference(old: &Path, new: &Path) -> Result<Document> {
    let text = read(old)?;
    Ok(Document {
        name: name(old.file_name()),
        edits: vec![Edited::new(new, &text, read(new)?)?],
        text,
    })
}

impl Edited {
    fn new(source: &Path, old: &str, text: String) -> Result<Edited> {
        let kind = Kind::between(old.trim_end(), text.trim_end())
            .with_context(|| format!("{} changes nothing above the cursor", source.display()))?;
        Ok(Edited {
            name: name(source.file_stem()),
            kind,
            text,
        })
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}", path.display()))
}

fn name(part: Option<&OsStr>) -> String {
    part.unwrap_or_default().to_string_lossy().into_owned()
}

/// What is in a directory, by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?;
    let mut paths = list
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Applies a unified diff of one file. Context and removed lines must be exactly where the diff
/// says: what is replayed is what was recorded.
pub(crate) fn apply(text: &str, diff: &str) -> Result<String> {
    let old: Vec<&str> = text.lines().collect();
    let mut new: Vec<&str> = Vec::new();
    let mut done = 0;
    let mut lines = diff.lines().zip(1..);
    while let Some((header, number)) = lines.next() {
        let Some(ranges) = header.strip_prefix("@@ -") else {
            // File names and whatever else stands between hunks.
            continue;
        };
        let hunk = Hunk::parse(ranges)
            .with_context(|| format!("line {number} of the diff: not a hunk header: {header}"))?;
        ensure!(
            (done..=old.len()).contains(&hunk.start),
            "line {number} of the diff: not behind the hunk before it and inside the file: {header}"
        );
        new.extend(&old[done..hunk.start]);
        done = hunk.start;
        let (mut old_lines, mut new_lines) = (hunk.old_lines, hunk.new_lines);
        while old_lines > 0 || new_lines > 0 {
            let (line, number) = lines.next().context("the diff ends inside a hunk")?;
            // Some tools strip the blank of an empty context line.
            let (mark, body) = line.split_at_checked(1).unwrap_or((" ", ""));
            let (in_old, in_new) = match mark {
                " " => (1, 1),
                "-" => (1, 0),
                "+" => (0, 1),
                "\\" => continue,
                _ => bail!("line {number} of the diff: begins with none of ' ', '-', '+': {line}"),
            };
            ensure!(
                in_old <= old_lines && in_new <= new_lines,
                "line {number} of the diff: more lines than the hunk header says"
            );
            if in_old == 1 {
                let found = old.get(done).copied();
                ensure!(
                    found == Some(body),
                    "line {number} of the diff: line {} of the file is {found:?}, not {body:?}",
                    done + 1
                );
                done += 1;
            }
            if in_new == 1 {
                new.push(body);
            }
            old_lines -= in_old;
            new_lines -= in_new;
        }
    }
    new.extend(&old[done..]);
    Ok(new.join("\n") + "\n")
}

/// Where a hunk begins in the old file, counted from 0, and how many lines it spans on each side.
struct Hunk {
    start: usize,
    old_lines: usize,
    new_lines: usize,
}

impl Hunk {
    /// Reads a header behind its `@@ -`: `12,7 +12,9 @@`.
    fn parse(ranges: &str) -> Result<Hunk> {
        let (ranges, _) = ranges.split_once(" @@").context("it has no end")?;
        let (old, new) = ranges.split_once(" +").context("it has no new range")?;
        let range = |text: &str| -> Result<(usize, usize)> {
            let (start, lines) = text.split_once(',').unwrap_or((text, "1"));
            Ok((start.parse()?, lines.parse()?))
        };
        let ((start, old_lines), (_, new_lines)) = (range(old)?, range(new)?);
        // A hunk without old lines names the line that it comes after.
        let start = match old_lines {
            0 => start,
            _ => start.checked_sub(1).context("lines count from 1")?,
        };
        Ok(Hunk {
            start,
            old_lines,
            new_lines,
        })
    }
}

impl Kind {
    /// What was done to the lines of `old` to make `new` of them; `None`: nothing.
    fn between(old: &str, new: &str) -> Option<Kind> {
        let mut ids = HashMap::new();
        let mut number = |text: &'_ str| -> Vec<u32> {
            let lines = text.lines().map(str::to_owned);
            lines
                .map(|line| {
                    let next = ids.len() as u32;
                    *ids.entry(line).or_insert(next)
                })
                .collect()
        };
        let (old, new) = (number(old), number(new));
        match Edit::between(&old, &new).as_slice() {
            [] => None,
            [edit] if edit.range.is_empty() => Some(Kind::Insertion),
            [edit] if edit.insert == 0 => Some(Kind::Deletion),
            [_] => Some(Kind::Replacement),
            _ => Some(Kind::SeveralPlaces),
        }
    }
}
