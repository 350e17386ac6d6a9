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
            fate: Fate::Left,
        };
        for second in next.segments() {
            let src = match second.fate {
                Fate::New { .. } => {
                    plan.push(second);
                    continue;
                }
                Fate::Kept { src, .. } => src,
                Fate::Left => second.row,
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
                let len = from.len.min(to.len);
                plan.push(Segment {
                    len,
                    fate: from.fate.then(to.fate, row)?,
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
        for mut segment in self.segments() {
            if let Fate::Kept { src, .. } = &mut segment.fate {
                *src = segment.row;
            }
            plan.push(segment);
        }
        plan.finish();
        plan
    }

    /// Kept and new spans together, and the rows between them that are left alone, in order of
    /// destination; they cover every new row.
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let mut kept = self.kept.iter().peekable();
        let mut new = self.new.iter().peekable();
        let mut row = 0;
        std::iter::from_fn(move || {
            let (len, fate) = if let Some(span) = kept.next_if(|span| span.dst == row) {
                let fate = Fate::Kept {
                    src: span.src,
                    old_position: span.old_position,
                    new_position: span.new_position,
                };
                (span.len, fate)
            } else if let Some(span) = new.next_if(|span| span.row == row) {
                let position = span.position;
                (span.len, Fate::New { position })
            } else {
                let next = [
                    kept.peek().map(|span| span.dst),
                    new.peek().map(|span| span.row),
                ];
                let end = next.into_iter().flatten().min().unwrap_or(self.new_rows);
                (end - row, Fate::Left)
            };
            let segment = Segment { row, len, fate };
            row += len;
            (len > 0).then_some(segment)
        })
    }

    /// Appends a segment of one or more rows.
    fn push(&mut self, Segment { row, len, fate }: Segment) {
        match fate {
            Fate::Kept {
                src,
                old_position,
                new_position,
            } => self.keep(Span {
                src,
                dst: row,
                len,
                old_position,
                new_position,
            }),
            Fate::New { position } => self.open(NewSpan { row, len, position }),
            Fate::Left => self.leave(len),
        }
    }
}

/// A run of rows of the new sequence.
#[derive(Clone, Copy)]
struct Segment {
    row: usize,
    len: usize,
    fate: Fate,
}

/// What becomes of a run of rows.
#[derive(Clone, Copy)]
enum Fate {
    /// They come from row `src`, and go from one position to another.
    Kept {
        src: usize,
        old_position: i32,
        new_position: i32,
    },
    /// They are to be encoded.
    New { position: i32 },
    /// They stay in their rows as they are; at which positions, the plan does not know.
    Left,
}

impl Segment {
    /// The segment without its first `rows` rows; at least one is left, so positions still fit.
    fn skip(self, rows: usize) -> Segment {
        let step = rows as i32;
        Segment {
            row: self.row + rows,
            len: self.len - rows,
            fate: match self.fate {
                Fate::Kept {
                    src,
                    old_position,
                    new_position,
                } => Fate::Kept {
                    src: src + rows,
                    old_position: old_position + step,
                    new_position: new_position + step,
                },
                Fate::New { position } => Fate::New {
                    position: position + step,
                },
                Fate::Left => Fate::Left,
            },
        }
    }
}

impl Fate {
    /// What becomes of rows that have this fate in one plan and, as rows from `row` on, another in
    /// the next.
    fn then(self, next: Fate, row: usize) -> Result<Fate> {
        // Where the first plan leaves them, as far as it knows.
        let position = match self {
            Fate::Kept { new_position, .. } => Some(new_position),
            Fate::New { position } => Some(position),
            Fate::Left => None,
        };
        if let (Some(left), Fate::Kept { old_position, .. }) = (position, next)
            && left != old_position
        {
            return Err(Error::Plan(format!(
                "the first plan leaves row {row} at position {left}, but the next takes it from \
                 position {old_position}"
            )));
        }
        Ok(match (self, next) {
            (Fate::Left, next) => next,
            (first, Fate::Left) => first,
            (Fate::New { .. }, Fate::Kept { new_position, .. }) => Fate::New {
                position: new_position,
            },
            (
                Fate::Kept {
                    src, old_position, ..
                },
                Fate::Kept { new_position, .. },
            ) => Fate::Kept {
                src,
                old_position,
                new_position,
            },
            // A row that the next plan opens comes from none of this one's.
            (_, Fate::New { position }) => Fate::New { position },
        })
    }
}
