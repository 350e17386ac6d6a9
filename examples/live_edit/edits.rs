//! Edits to replay: unified diffs, or two versions of a file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
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
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
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
        Edited::new(diff, file, &text, edited)
    });
    Ok(Document {
        name: name(file.file_name()),
        edits: edits.collect::<Result<_>>()?,
        text,
    })
}

/// The one edit that makes `new` of `old`.
pub(crate) fn difference(old: &Path, new: &Path) -> Result<Document> {
    let (text, edited) = (read(old)?, read(new)?);
    let ends = (line_end(&text), line_end(&edited));
    if let (Some(before), Some(after)) = ends {
        ensure!(
            before == after,
            "lines end in {before} in {} and in {after} in {}: every line differs. Convert one of them",
            old.display(),
            new.display()
        );
    }
    Ok(Document {
        name: name(old.file_name()),
        edits: vec![Edited::new(new, old, &text, edited)?],
        text,
    })
}

impl Edited {
    /// `old`, the text of `file`, became `text` by what is in `source`.
    fn new(source: &Path, file: &Path, old: &str, text: String) -> Result<Edited> {
        let (source_name, file) = (source.display(), file.display());
        ensure!(
            !old.trim_end().is_empty(),
            "{file}: no text, so there is nothing to edit"
        );
        ensure!(
            !text.trim_end().is_empty(),
            "{source_name}: leaves no text, so there is nothing to predict from"
        );
        let kind = Kind::between(old.trim_end(), text.trim_end()).with_context(|| {
            let what = match old == text {
                true => "nothing",
                false => "only white space at the end, which is behind the cursor,",
            };
            format!("{source_name}: changes {what} in {file}")
        })?;
        Ok(Edited {
            name: name(source.file_stem()),
            kind,
            text,
        })
    }
}

/// How all lines end; `None`: some in one way and some in another, or there is but one.
fn line_end(text: &str) -> Option<&'static str> {
    let lines = text.matches('\n').count();
    match text.matches("\r\n").count() {
        _ if lines == 0 => None,
        0 => Some("LF"),
        all if all == lines => Some("CR LF"),
        _ => None,
    }
}

/// Lines without the LF that ends each; a CR before it belongs to the line.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
        .map(|line| line.strip_suffix('\n').unwrap_or(line))
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{}", path.display()))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow!("{}: not text in UTF-8, at byte {at}", path.display())
    })
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
    ensure!(!diff.trim().is_empty(), "the diff is empty");
    let old: Vec<&str> = lines(text).collect();
    let mut new: Vec<&str> = Vec::new();
    let mut done = 0;
    let mut hunks = 0;
    let mut files = 0;
    let mut lines = lines(diff).zip(1..);
    while let Some((header, number)) = lines.next() {
        // Between hunks stand names, and whatever else.
        files += usize::from(header.starts_with("+++ "));
        ensure!(
            files <= 1,
            "line {number} of the diff: it is of several files, and must be of one: {header}"
        );
        let Some(ranges) = header.strip_prefix("@@ -") else {
            continue;
        };
        hunks += 1;
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
            let (mark, body) = match line {
                "" | "\r" => (" ", line),
                line => line.split_at_checked(1).unwrap_or((line, "")),
            };
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
                expect(old.get(done).copied(), done + 1, body, number)?;
                done += 1;
            }
            if in_new == 1 {
                new.push(body);
            }
            old_lines -= in_old;
            new_lines -= in_new;
        }
    }
    ensure!(
        hunks > 0,
        "not a unified diff, as `diff -u` and `git diff` write it: no line begins with `@@ -`"
    );
    new.extend(&old[done..]);
    Ok(new.join("\n") + "\n")
}

/// Line `row` of the file, counted from 1, has to be what line `number` of the diff says.
fn expect(found: Option<&str>, row: usize, body: &str, number: i32) -> Result<()> {
    let Some(found) = found else {
        bail!("line {number} of the diff: the file has no line {row}, which would be {body:?}");
    };
    let end = |line: &str| if line.ends_with('\r') { "CR LF" } else { "LF" };
    let bare = |line: &str| line.strip_suffix('\r').unwrap_or(line).to_owned();
    ensure!(
        found == body || bare(found) != bare(body),
        "line {number} of the diff ends in {}, and line {row} of the file in {}: convert one of them",
        end(body),
        end(found)
    );
    ensure!(
        found == body,
        "line {number} of the diff: line {row} of the file is {found:?}, not {body:?}"
    );
    Ok(())
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
            lines(text)
                .map(str::to_owned)
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
