//! What every backend checks before the first byte is written: that layouts, plans, tables and buffers
//! fit together. A call that is refused here has touched nothing.

use std::ops::Range;

use crate::rotations::TurnedSpan;
use crate::{CacheLayout, Error, KeyLayout, Result, Rotations};

/// The buffers of one layer, as far as the checks need them. Lengths in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    pub(crate) keys: usize,
    pub(crate) values: Option<usize>,
    /// Keys and values lie in one buffer.
    pub(crate) packed: bool,
}

/// Checks a call that works inside one buffer: `rotate` (rows stay) or `splice` (rows move).
pub(crate) fn in_place(
    rotations: &Rotations,
    layout: &CacheLayout<'_>,
    layers: impl ExactSizeIterator<Item = Buffers>,
    moves: bool,
) -> Result<()> {
    let spans = rotations.spans().iter();
    let touched = if moves {
        let affected = || spans.clone().filter(|span| span.is_affected());
        bounds(affected().flat_map(|s| [s.src..s.src + s.len, s.dst..s.dst + s.len]))
    } else {
        bounds(
            spans
                .filter(|s| s.turn.is_some())
                .map(|s| s.src..s.src + s.len),
        )
    };
    layer_count(rotations, layers.len())?;
    // Buffers first: a layout that fits one has a sane number of blocks.
    let mut before = None;
    for (index, layer) in layers.enumerate() {
        buffers(index, layout, layer, moves)?;
        if moves {
            values_alike(index, layer, &mut before)?;
        }
    }
    // Tables may be long: values that lie as the keys do are sound if those are.
    let values = layout
        .values
        .filter(|values| moves && *values != layout.keys);
    for (name, part) in [("keys", Some(layout.keys)), ("values", values)] {
        let Some(part) = part else { continue };
        rows(name, &part, touched.end)?;
        distinct_blocks(name, &part, touched.clone())?;
    }
    window(rotations, &layout.keys)
}

/// Checks a copy from one place to another. `within`: both lie in the same buffers.
pub(crate) fn copy(
    rotations: &Rotations,
    (src, src_layers): (&CacheLayout<'_>, &[Buffers]),
    (dst, dst_layers): (&CacheLayout<'_>, &[Buffers]),
    within: bool,
) -> Result<()> {
    layer_count(rotations, src_layers.len())?;
    same_layers(src_layers.len(), dst_layers.len())?;
    let mut before = None;
    for (index, (&from, &to)) in src_layers.iter().zip(dst_layers).enumerate() {
        buffers(index, src, from, true).map_err(|error| of_end("src", error))?;
        buffers(index, dst, to, true).map_err(|error| of_end("dst", error))?;
        values_alike(index, from, &mut before)?;
        if from.values.is_some() != to.values.is_some() {
            return Err(argument(
                "dst",
                format!("layer {index}: source and destination must both have values, or neither"),
            ));
        }
    }
    let spans = rotations.spans();
    let read = bounds(spans.iter().map(|s| s.src..s.src + s.len));
    let written = bounds(spans.iter().map(|s| s.dst..s.dst + s.len));
    let keys = (src.keys, dst.keys);
    // As in a call in place.
    let values = src.values.zip(dst.values).filter(|values| *values != keys);
    let parts = [("keys", Some(keys)), ("values", values)];
    for (name, part) in parts {
        let Some((src, dst)) = part else { continue };
        same_rows(name, &src, &dst)?;
        rows(name, &src, read.end).map_err(|error| of_end("src", error))?;
        rows(name, &dst, written.end).map_err(|error| of_end("dst", error))?;
        if within {
            apart(name, (&src, read.clone()), (&dst, written.clone()))?;
        } else {
            valid_blocks(name, &src, read.clone())?;
            distinct_blocks(name, &dst, written.clone())?;
        }
    }
    // Source keys and destination values, and the other way round, where all four share a buffer.
    let packed = dst_layers.iter().any(|layer| layer.packed);
    let crossed = [
        src.values.zip(Some(dst.keys)),
        dst.values.zip(Some(src.keys)),
    ];
    for (a, b) in crossed.into_iter().flatten().filter(|_| within && packed) {
        if !same_lattice(&src.keys, &dst.keys) && !a.is_disjoint(&b) {
            return Err(Error::Layout(
                "keys and values share a buffer, and source and destination may overlap".into(),
            ));
        }
    }
    window(rotations, &dst.keys)
}

/// An error in one of a copy's two ends, which it names.
fn of_end(end: &str, error: Error) -> Error {
    match error {
        Error::Layout(problem) => Error::Layout(format!("{end}: {problem}")),
        Error::Argument { argument, problem } => Error::Argument {
            argument,
            problem: format!("{end}: {problem}"),
        },
        other => other,
    }
}

fn argument(argument: &'static str, problem: String) -> Error {
    Error::Argument { argument, problem }
}

/// As many layers to copy to as to copy from.
pub(crate) fn same_layers(src: usize, dst: usize) -> Result<()> {
    if src != dst {
        let problem = format!("{dst} layers to copy to, but {src} to copy from");
        return Err(argument("dst", problem));
    }
    Ok(())
}

/// As many layers as the rotations are for.
pub(crate) fn layer_count(rotations: &Rotations, given: usize) -> Result<()> {
    match rotations.layers() {
        Some(layers) if layers != given => Err(argument(
            "layers",
            format!("{given} given, but the rotations are for a model of {layers}"),
        )),
        _ => Ok(()),
    }
}

/// From the first to the last row of some ranges.
fn bounds(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    ranges
        .reduce(|all, range| all.start.min(range.start)..all.end.max(range.end))
        .unwrap_or(0..0)
}

fn rows(name: &str, layout: &KeyLayout<'_>, needed: usize) -> Result<()> {
    if needed > layout.rows() {
        return Err(Error::Layout(format!(
            "{name}: the plan needs {needed} rows, the layout has {}",
            layout.rows()
        )));
    }
    Ok(())
}

fn same_rows(name: &str, src: &KeyLayout<'_>, dst: &KeyLayout<'_>) -> Result<()> {
    let shape = |l: &KeyLayout<'_>| (l.element(), l.batch(), l.heads(), l.head_dim());
    if shape(src) != shape(dst) {
        return Err(Error::Layout(format!(
            "{name}: source and destination differ in (element, batch, heads, head dimension): {:?} and {:?}",
            shape(src),
            shape(dst)
        )));
    }
    Ok(())
}

fn window(rotations: &Rotations, keys: &KeyLayout<'_>) -> Result<()> {
    for table in rotations.tables() {
        let window = table.rope().window();
        if window.end > keys.head_dim() {
            return Err(Error::Layout(format!(
                "keys: the rope turns dimensions {window:?}, the head dimension is {}",
                keys.head_dim()
            )));
        }
    }
    Ok(())
}

fn buffers(index: usize, layout: &CacheLayout<'_>, layer: Buffers, values: bool) -> Result<()> {
    let of_layer = |name: &str, error: Error| match error {
        Error::Layout(problem) => Error::Layout(format!("layer {index}, {name}: {problem}")),
        other => other,
    };
    layout
        .keys
        .check(layer.keys)
        .map_err(|e| of_layer("keys", e))?;
    let Some(len) = layer.values.filter(|_| values) else {
        // Keys alone, where the layouts say that the same buffer holds values too: they would stay behind.
        let forgotten = |values: &KeyLayout<'_>| {
            values.offset != layout.keys.offset
                && values.blocks == layout.keys.blocks
                && values.rows == layout.keys.rows
                && values.required_len().is_ok_and(|end| end <= layer.keys)
                && layout.keys.is_disjoint(values)
        };
        if values && layer.values.is_none() && layout.values.as_ref().is_some_and(forgotten) {
            return Err(argument(
                "layers",
                format!(
                    "layer {index}: the layout puts values into the key buffer, but the layer has none; a layer that is `packed` has"
                ),
            ));
        }
        return Ok(());
    };
    let Some(part) = layout.values else {
        return Err(argument(
            "layout",
            format!("layer {index} has values, but the layout does not say where they lie"),
        ));
    };
    part.check(len).map_err(|e| of_layer("values", e))?;
    if part.element() != layout.keys.element() {
        return Err(Error::Layout(format!(
            "keys are {}, values {}",
            layout.keys.element(),
            part.element()
        )));
    }
    if layer.packed && !layout.keys.is_disjoint(&part) {
        return Err(Error::Layout(format!(
            "layer {index}: keys and values share a buffer, and their layouts may overlap"
        )));
    }
    Ok(())
}

/// Rows move with their values in every layer, or in none: one that has been forgotten would stay behind.
/// `before`: whether the layers before this one have values.
fn values_alike(index: usize, layer: Buffers, before: &mut Option<bool>) -> Result<()> {
    let values = layer.values.is_some();
    if *before.get_or_insert(values) == values {
        return Ok(());
    }
    let has = |values| if values { "values" } else { "no values" };
    Err(argument(
        "layers",
        format!(
            "layer {index} has {}, those before it have {}",
            has(values),
            has(!values)
        ),
    ))
}

/// Source and destination rows in one buffer must have no block in common, or lie wholly apart.
fn apart(
    name: &str,
    (src, read): (&KeyLayout<'_>, Range<usize>),
    (dst, written): (&KeyLayout<'_>, Range<usize>),
) -> Result<()> {
    valid_blocks(name, src, read.clone())?;
    let mut blocks = Blocks::default();
    blocks.claim(name, dst, written)?;
    if same_lattice(src, dst) {
        return blocks.claim(name, src, read).map_err(|_| {
            Error::Layout(format!(
                "{name}: a block is among those to copy from and those to copy to, or twice among the \
                 former; `splice` is what moves rows inside their own blocks"
            ))
        });
    }
    if !read.is_empty() && !src.is_disjoint(dst) {
        return Err(Error::Layout(format!(
            "{name}: source and destination share a buffer, and their layouts may overlap"
        )));
    }
    Ok(())
}

/// Whether two layouts differ in their tables at most, so that different blocks share no element.
pub(crate) fn same_lattice(a: &KeyLayout<'_>, b: &KeyLayout<'_>) -> bool {
    KeyLayout { table: None, ..*a } == KeyLayout { table: None, ..*b }
}

/// Every block of these rows exists.
fn valid_blocks(name: &str, layout: &KeyLayout<'_>, rows: Range<usize>) -> Result<()> {
    each_block(name, layout, rows, |_, _| Ok(()))
}

/// Hands every block of these rows to `take`, by its place in the sequence and in the layout, where it exists.
fn each_block(
    name: &str,
    layout: &KeyLayout<'_>,
    rows: Range<usize>,
    mut take: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let mut one = |(index, block): (usize, usize)| {
        if block >= layout.blocks.len {
            return Err(Error::Layout(format!(
                "{name}: block table entry {index} is {block}, there are {} blocks",
                layout.blocks.len
            )));
        }
        take(index, block)
    };
    let block = layout.rows.len.max(1);
    let mut blocks = rows.start / block..rows.end.div_ceil(block);
    match layout.table {
        // A table may have thousands of entries.
        Some(table) => {
            let entries = table[blocks.clone()].iter().map(|&block| block as usize);
            blocks.zip(entries).try_for_each(one)
        }
        None => blocks.try_for_each(|index| one((index, index))),
    }
}

/// Every block of these rows exists and is there once.
fn distinct_blocks(name: &str, layout: &KeyLayout<'_>, rows: Range<usize>) -> Result<()> {
    match layout.table {
        Some(_) => Blocks::default().claim(name, layout, rows),
        None => valid_blocks(name, layout, rows),
    }
}

/// The physical blocks that a call has claimed, a bit each: two rows of a sequence in one place would be
/// turned twice, and raced for by two threads.
#[derive(Default)]
struct Blocks(Vec<u64>);

impl Blocks {
    /// Every block of these rows exists, and none is claimed twice.
    fn claim(&mut self, name: &str, layout: &KeyLayout<'_>, rows: Range<usize>) -> Result<()> {
        if self.0.is_empty() && !rows.is_empty() {
            // Zeroed pages come untouched from the system, so a large pool costs what is used of it.
            self.0 = vec![0; layout.blocks.len.div_ceil(64)];
        }
        each_block(name, layout, rows, |index, block| {
            let (word, bit) = (block / 64, 1 << (block % 64));
            if self.0[word] & bit != 0 {
                return Err(Error::Layout(format!(
                    "{name}: block table entry {index}: block {block} is there twice"
                )));
            }
            self.0[word] |= bit;
            Ok(())
        })
    }
}

/// Spans of a splice in an order in which none overwrites the source of a later one: those that move
/// right from the last to the first, then the others from the first to the last.
///
/// A plan's spans increase in source and destination alike, so a span that moves right ends before the
/// source of any later one that moves left, and the other way round: neither kind disturbs the other.
pub(crate) fn splice_order(spans: &[TurnedSpan]) -> impl Iterator<Item = &TurnedSpan> {
    let right = spans.iter().rev().filter(|span| span.dst > span.src);
    let rest = spans.iter().filter(|span| span.dst <= span.src);
    right.chain(rest.filter(|span| span.is_affected()))
}
