//! The rows of a call, one after the other: the order in which the GPU kernels take them.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::rotations::TurnedSpan;
use crate::{Error, Result};

/// No table, no turn: what the kernels know by this name.
pub(crate) const NONE: u32 = u32::MAX;

/// Rows that follow each other on both sides: the kernels' `Span`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Span {
    pub(crate) src: u32,
    pub(crate) dst: u32,
    pub(crate) len: u32,
    pub(crate) before: u32,
    pub(crate) delta: u32,
    pub(crate) own: u32,
}

/// Source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Spans in the order of a call, each with the number of rows before it.
pub(crate) struct Order {
    pub(crate) spans: Vec<Span>,
    pub(crate) rows: u32,
}

impl Order {
    pub(crate) fn new(turned: impl Iterator<Item = TurnedSpan>) -> Result<Order> {
        let too_long = || Error::Limit("a kernel counts rows in 32 bits".into());
        let mut rows = 0u32;
        let mut spans = Vec::new();
        for span in turned {
            // Ends fit, so every row does.
            let fits = |row: usize| u32::try_from(row + span.len).map(|_| row as u32).ok();
            let (src, dst) = fits(span.src).zip(fits(span.dst)).ok_or_else(too_long)?;
            spans.push(Span {
                src,
                dst,
                len: span.len as u32,
                before: rows,
                delta: span.delta.unwrap_or(NONE),
                own: span.own.unwrap_or(NONE),
            });
            rows = rows.checked_add(span.len as u32).ok_or_else(too_long)?;
        }
        Ok(Order { spans, rows })
    }

    /// From the first to the last row at one end.
    pub(crate) fn touched(&self, end: End) -> Range<usize> {
        let ranges = self.spans.iter().map(|span| span.range(end));
        ranges.reduce(hull).unwrap_or(0..0)
    }
}

/// From the first to the last of both.
pub(crate) fn hull<T: Ord>(a: Range<T>, b: Range<T>) -> Range<T> {
    a.start.min(b.start)..a.end.max(b.end)
}

impl Span {
    /// Its rows at one end.
    pub(crate) fn range(&self, end: End) -> Range<usize> {
        let start = match end {
            End::Source => self.src,
            End::Destination => self.dst,
        } as usize;
        start..start + self.len as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        let span = |src, dst, len| TurnedSpan {
            src,
            dst,
            len,
            delta: None,
            own: None,
        };
        // Moves right, moves left.
        Order::new([span(10, 14, 6), span(30, 25, 5)].into_iter()).expect("small")
    }

    #[test]
    fn touched_rows() {
        assert_eq!(order().touched(End::Source), 10..35);
        assert_eq!(order().touched(End::Destination), 14..30);
    }

    #[test]
    fn more_rows_than_32_bits_hold() {
        let span = TurnedSpan {
            src: 0,
            dst: u32::MAX as usize - 3,
            len: 5,
            delta: None,
            own: None,
        };
        assert!(matches!(
            Order::new([span].into_iter()),
            Err(Error::Limit(_))
        ));
    }
}
