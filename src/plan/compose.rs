//! Plans from plans: one after the other, and without the moves.

use super::{NewSpan, Plan, Span};
use crate::{Error, Result};

impl Plan {
    /// This plan, then `next`, as one plan that turns every key once.
    ///
    /// Keys that are turned in place edit by edit are rounded each time; plans composed and then
    /// applied round them once. Rows that are new in this plan and survive `next` are new in the
    /// composed plan, at their final rows and positions. The time taken is linear in the number of
    /// spans, not of rows.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if `next` does not start from as many rows as this plan leaves, or takes a
    /// row from another position than this plan leaves it at. (Of a row that it drops, a plan
    /// knows no position.)
    pub fn then(&self, next: &Plan) -> Result<Plan> {
        if self.new_rows != next.old_rows {
            return Err(Error::Plan(format!(
                "the first plan leaves {} rows, but the next starts from {}",
                self.new_rows, next.old_rows
            )));
        }
        let mut plan = Plan::default();
        plan.start(self.old_rows);
        let mut firsts = self.segments();
        let mut first = Segment {
            row: 0,
            len: 0,
            position: 0,
            origin: None,
        };
        for second in next.segments() {
            let Some((src, _)) = second.origin else {
                plan.push(second);
                continue;
            };
            // What `second` takes is cut where the segments of the first plan meet. Its source
            // rows only increase, so one walk over those segments serves them all.
            let mut done = 0;
            while done < second.len {
                let row = src + done;
                while first.row + first.len <= row {
                    first = firsts
                        .next()
                        .expect("segments cover every row of their plan");
                }
                let from = first.skip(row - first.row);
                let to = second.skip(done);
                if let Some((_, position)) = to.origin
                    && position != from.position
                {
                    return Err(Error::Plan(format!(
                        "the first plan leaves row {row} at position {}, but the next takes it \
                         from position {position}",
                        from.position
                    )));
                }
                let len = from.len.min(to.len);
                plan.push(Segment {
                    len,
                    origin: from.origin,
                    ..to
                });
                done += len;
            }
        }
        plan.finish();
        Ok(plan)
    }

    /// The same turns without the moves: for an engine that has already brought the rows to their
    /// new places, its keys still at their old positions. Every span's `src` becomes its `dst`,
    /// and the plan starts from as many rows as it leaves.
    pub fn in_place(&self) -> Plan {
        let mut plan = Plan::default();
        plan.start(self.new_rows);
        for segment in self.segments() {
            let origin = segment.origin.map(|(_, position)| (segment.row, position));
            plan.push(Segment { origin, ..segment });
        }
        plan.finish();
        plan
    }

    /// Kept and new spans together, in order of destination; they cover every new row.
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let mut kept = self.kept.iter().peekable();
        let mut new = self.new.iter();
        let mut row = 0;
        std::iter::from_fn(move || {
            let segment = match kept.next_if(|span| span.dst == row) {
                Some(span) => Segment {
                    row,
                    len: span.len,
                    position: span.new_position,
                    origin: Some((span.src, span.old_position)),
                },
                None => {
                    let span = new.next()?;
                    Segment {
                        row,
                        len: span.len,
                        position: span.position,
                        origin: None,
                    }
                }
            };
            row += segment.len;
            Some(segment)
        })
    }

    /// Appends a segment of one or more rows.
    fn push(&mut self, segment: Segment) {
        let Segment {
            row,
            len,
            position,
            origin,
        } = segment;
        match origin {
            Some((src, old_position)) => {
                self.keep(Span {
                    src,
                    dst: row,
                    len,
                    old_position,
                    new_position: position,
                });
            }
            None => self.open(NewSpan { row, len, position }),
        }
    }
}

/// A run of rows of the new sequence and, if they survived, where they come from: their first row
/// before and its position there.
#[derive(Clone, Copy)]
struct Segment {
    row: usize,
    len: usize,
    position: i32,
    origin: Option<(usize, i32)>,
}

impl Segment {
    /// The segment without its first `rows` rows; at least one is left, so positions still fit.
    fn skip(self, rows: usize) -> Segment {
        let step = rows as i32;
        Segment {
            row: self.row + rows,
            len: self.len - rows,
            position: self.position + step,
            origin: self
                .origin
                .map(|(src, position)| (src + rows, position + step)),
        }
    }
}
