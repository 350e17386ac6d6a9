//! What every backend checks before the first byte is written: that layouts, plans, tables and buffers
//! fit together. A call that is refused here has touched nothing.

use std::collections::HashSet;
use std::ops::Range;

use crate::rotations::TurnedSpan;
use crate::{CacheLayout, Error, KeyLayout, Result, Rotations, memory};

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
    let spans = rotations.spans();
    layer_count(rotations, layers.len())?;
    // Buffers first: a layout that fits one has a sane number of blocks.
    for (index, layer) in layers.enumerate() {
        buffers(index, layout, layer, moves)?;
    }
    // Tables may be long: values that lie as the keys do are sound if those are.
    let values = layout
        .values
        .filter(|values| moves && !values.is_same(&layout.keys));
    for (name, part) in [("keys", Some(layout.keys)), ("values", values)] {
        let Some(part) = part else { continue };
        if moves {
            let affected = || spans.iter().filter(|span| span.is_affected());
            let touched = || merged(affected().map(source), affected().map(destination));
            rows(name, &part, touched())?;
            distinct_blocks(name, &part, touched)?;
        } else {
            let turned = || spans.iter().filter(|span| span.turns()).map(source);
            rows(name, &part, turned())?;
            distinct_blocks(name, &part, turned)?;
        }
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
    for (index, (&from, &to)) in src_layers.iter().zip(dst_layers).enumerate() {
        buffers(index, src, from, true).map_err(|error| of_end("src", error))?;
        buffers(index, dst, to, true).map_err(|error| of_end("dst", error))?;
    }
    if src.values.is_some() != dst.values.is_some() {
        let has = |layout: &CacheLayout<'_>| match layout.values {
            Some(_) => "values",
            None => "none",
        };
        let problem = format!(
            "source and destination must both have values, or neither; the source has {}, the destination {}",
            has(src),
            has(dst)
        );
        return Err(argument("dst", problem));
    }
    let spans = rotations.spans();
    let read = || spans.iter().map(source);
    let written = || spans.iter().map(destination);
    let keys = (src.keys, dst.keys);
    // As in a call in place.
    let values = src.values.zip(dst.values);
    let values = values.filter(|(from, to)| !(from.is_same(&keys.0) && to.is_same(&keys.1)));
    let parts = [("keys", Some(keys)), ("values", values)];
    for (name, part) in parts {
        let Some((src, dst)) = part else { continue };
        same_rows(name, &src, &dst)?;
        rows(name, &src, read()).map_err(|error| of_end("src", error))?;
        rows(name, &dst, written()).map_err(|error| of_end("dst", error))?;
        if within {
            apart(name, (&src, read), (&dst, written))?;
        } else {
            valid_blocks(name, &src, read())?;
            distinct_blocks(name, &dst, written)?;
        }
    }
    // Source keys and destination values, and the other way round, where all four share a buffer.
    let crossing = within && !spans.is_empty() && dst_layers.iter().any(|layer| layer.packed);
    let crossed = [
        src.values.zip(Some(dst.keys)),
        dst.values.zip(Some(src.keys)),
    ];
    for (a, b) in crossed.into_iter().flatten().filter(|_| crossing) {
        if !src.keys.same_lattice(&dst.keys) && !a.is_disjoint(&b) {
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

/// The rows of a span before.
fn source(span: &TurnedSpan) -> Range<usize> {
    span.src..span.src + span.len
}

/// The rows of a span after.
fn destination(span: &TurnedSpan) -> Range<usize> {
    span.dst..span.dst + span.len
}

/// Two sequences of ranges, each in order of their starts, as one.
fn merged(
    a: impl Iterator<Item = Range<usize>>,
    b: impl Iterator<Item = Range<usize>>,
) -> impl Iterator<Item = Range<usize>> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || {
        let before = match (a.peek(), b.peek()) {
            (Some(a), Some(b)) => a.start <= b.start,
            (a, _) => a.is_some(),
        };
        if before { a.next() } else { b.next() }
    })
}

fn rows(
    name: &str,
    layout: &KeyLayout<'_>,
    touched: impl Iterator<Item = Range<usize>>,
) -> Result<()> {
    let needed = touched.map(|rows| rows.end).max().unwrap_or(0);
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
    if !values {
        return Ok(());
    }
    let Some(len) = layer.values else {
        if layout.values.is_none() {
            return Ok(());
        }
        return Err(argument(
            "layers",
            format!(
                "layer {index} has no values, but the layout says where they lie, and they would stay behind; a layer \
                 of one buffer that holds both is `packed`, and the layout of keys alone is `CacheLayout::keys_only`"
            ),
        ));
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

/// Source and destination rows in one buffer must have no block in common, or lie wholly apart.
fn apart<R: Iterator<Item = Range<usize>>, W: Iterator<Item = Range<usize>>>(
    name: &str,
    (src, read): (&KeyLayout<'_>, impl Fn() -> R),
    (dst, written): (&KeyLayout<'_>, impl Fn() -> W),
) -> Result<()> {
    valid_blocks(name, src, read())?;
    let number = number_of_blocks(src, read()) + number_of_blocks(dst, written());
    let mut claims = Claims::new(dst, number)?;
    claims.add(name, dst, written())?;
    if src.same_lattice(dst) {
        return claims.add(name, src, read()).map_err(|_| {
            Error::Layout(format!(
                "{name}: a block is among those to copy from and those to copy to, or twice among the \
                 former; `splice` is what moves rows inside their own blocks"
            ))
        });
    }
    if read().next().is_some() && !src.is_disjoint(dst) {
        return Err(Error::Layout(format!(
            "{name}: source and destination share a buffer, and their layouts may overlap"
        )));
    }
    Ok(())
}

/// The blocks of some rows, by their places in the sequence, each once. The ranges are in order of their
/// starts, and inside the layout.
fn blocks_of(
    layout: &KeyLayout<'_>,
    rows: impl Iterator<Item = Range<usize>>,
) -> impl Iterator<Item = Range<usize>> {
    let block = layout.rows.len.max(1);
    let mut done = 0;
    rows.filter_map(move |rows| {
        let blocks = done.max(rows.start / block)..rows.end.div_ceil(block);
        done = done.max(blocks.end);
        (!blocks.is_empty()).then_some(blocks)
    })
}

fn number_of_blocks(layout: &KeyLayout<'_>, rows: impl Iterator<Item = Range<usize>>) -> usize {
    blocks_of(layout, rows).map(|blocks| blocks.len()).sum()
}

/// Hands each block of these rows to `take`, by its place in the sequence and in the layout, where it exists. Without a
/// table, rows that do are in such. A table may have thousands of entries, and is looked at once.
fn each_block(
    name: &str,
    layout: &KeyLayout<'_>,
    rows: impl Iterator<Item = Range<usize>>,
    mut take: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let blocks = layout.blocks.len;
    for range in blocks_of(layout, rows) {
        let Some(table) = layout.table else {
            range.into_iter().try_for_each(|index| take(index, index))?;
            continue;
        };
        for (index, &block) in range.clone().zip(&table[range]) {
            if block as usize >= blocks {
                return Err(Error::Layout(format!(
                    "{name}: block table entry {index} is {}, there are {blocks} blocks",
                    shown(block)
                )));
            }
            take(index, block as usize)?;
        }
    }
    Ok(())
}

/// Every block of these rows exists.
fn valid_blocks(
    name: &str,
    layout: &KeyLayout<'_>,
    rows: impl Iterator<Item = Range<usize>>,
) -> Result<()> {
    each_block(name, layout, rows, |_, _| Ok(()))
}

/// A block as its table has it: those of engines are of signed numbers, in which -1 says that there is none.
fn shown(block: u32) -> i64 {
    match block {
        u32::MAX => -1,
        block => block.into(),
    }
}

/// Every block of these rows exists and is there once.
fn distinct_blocks<R: Iterator<Item = Range<usize>>>(
    name: &str,
    layout: &KeyLayout<'_>,
    rows: impl Fn() -> R,
) -> Result<()> {
    if layout.table.is_none() {
        return Ok(());
    }
    Claims::new(layout, number_of_blocks(layout, rows()))?.add(name, layout, rows())
}

/// The physical blocks that a call has claimed: two rows of a sequence in one place would be turned twice, and
/// raced for by two threads.
enum Claims {
    /// A bit for each block that there is, where a call touches a fair part of them.
    Bits(Vec<u64>),
    /// Those that are claimed, in a pool beside which they are few.
    Few(HashSet<usize>),
}

impl Claims {
    /// For `number` blocks of a layout, at most.
    fn new(layout: &KeyLayout<'_>, number: usize) -> Result<Claims> {
        let words = layout.blocks.len.div_ceil(64);
        // A word is cleared in a fraction of the time that a hash takes.
        if words / 16 <= number {
            return memory::zeroed(words).map(Claims::Bits);
        }
        memory::set(number).map(Claims::Few)
    }

    /// Claims the blocks of these rows, if each exists and none is claimed yet.
    fn add(
        &mut self,
        name: &str,
        layout: &KeyLayout<'_>,
        rows: impl Iterator<Item = Range<usize>>,
    ) -> Result<()> {
        let twice = |index, block| {
            Err(Error::Layout(format!(
                "{name}: block table entry {index}: block {block} is there twice"
            )))
        };
        match self {
            Claims::Bits(bits) => each_block(name, layout, rows, |index, block| {
                let (word, bit) = (block / 64, 1 << (block % 64));
                if bits[word] & bit != 0 {
                    return twice(index, block);
                }
                bits[word] |= bit;
                Ok(())
            }),
            Claims::Few(few) => each_block(name, layout, rows, |index, block| {
                if few.insert(block) {
                    Ok(())
                } else {
                    twice(index, block)
                }
            }),
        }
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
