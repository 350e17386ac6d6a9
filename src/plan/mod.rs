//! From edits to spans: which cached rows survive, where they go and by how much they turn.
//!
//! This file holds the plan itself and its accessors; each way to make one has its own file.

#[cfg(feature = "capi")]
pub(crate) mod cells;
mod compose;
#[cfg(feature = "diff")]
mod diff;
mod edit;
mod rows;
mod span;

use std::fmt;

use crate::{Error, Result};

pub use edit::Edit;
pub use span::{NewSpan, Span};

/// What has to happen to a cached sequence so that it becomes the new one: the rows that survive
/// ([`kept`](Plan::kept)), as runs that move and turn together, and the rows that the engine has
/// to encode ([`new_spans`](Plan::new_spans)).
///
/// ```
/// use pie_rope::{Edit, NewSpan, Plan, Span};
///
/// // Of ten cached tokens, replace tokens 2, 3 and 4 by one.
/// let plan = Plan::from_edits(10, &[Edit::replace(2..5, 1)])?;
///
/// assert_eq!(plan.new_spans(), [NewSpan { row: 2, len: 1, position: 2 }]);
/// assert_eq!(plan.kept()[0], Span { src: 0, dst: 0, len: 2, old_position: 0, new_position: 0 });
/// assert_eq!(plan.kept()[1], Span { src: 5, dst: 3, len: 5, old_position: 5, new_position: 3 });
/// assert_eq!(plan.deltas(), [-2]);
/// assert_eq!(plan.affected().count(), 1);
/// assert_eq!((plan.old_rows(), plan.new_rows()), (10, 8));
/// # Ok::<(), pie_rope::Error>(())
/// ```
///
/// # What holds for every plan
///
/// - Positions are `0..=i32::MAX`.
/// - Kept and new spans together cover the rows `0..new_rows()`, each row once, but for rows that
///   the plan leaves alone ([`Plan::from_positions`] says which): free cells, or those of another
///   sequence. They stay in their rows, in no span, and no verb reads or writes them, whatever
///   becomes of the rope.
/// - Kept spans are in order of `dst`, and `src` increases with it: a plan never reorders rows,
///   and never uses one twice. An overlap-safe move inside one buffer relies on it: the spans that
///   move right, last one first, then those that move left, first one first, never overwrite a
///   row that is still to be read.
/// - Spans are as long as can be: two that carry on where the other ends are one. So two plans
///   that say the same compare equal, however they were made.
///
/// [`Plan::from_positions`] and [`Plan::in_place`] leave every row where it is (`src == dst`).
///
/// The default plan is that of an empty sequence. A plan that changes nothing is
/// `Plan::from_edits(rows, &[])`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Plan {
    kept: Vec<Span>,
    new: Vec<NewSpan>,
    deltas: Vec<i32>,
    old_rows: usize,
    new_rows: usize,
    order: edit::Order,
}

impl fmt::Debug for Plan {
    /// What the plan says, without the memory that it keeps for the next one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("old_rows", &self.old_rows)
            .field("new_rows", &self.new_rows)
            .field("kept", &self.kept)
            .field("new_spans", &self.new)
            .field("deltas", &self.deltas)
            .finish()
    }
}

impl Plan {
    /// Every row that survives, in order of `dst`, those that neither move nor turn included:
    /// where the frequencies of the rope changed, a key may have to turn although its position
    /// did not change.
    pub fn kept(&self) -> &[Span] {
        &self.kept
    }

    /// The spans of [`kept`](Plan::kept) that turn or move, in the same order.
    pub fn affected(&self) -> impl Iterator<Item = &Span> {
        self.kept.iter().filter(|span| span.is_affected())
    }

    /// The rows to encode, in order.
    pub fn new_spans(&self) -> &[NewSpan] {
        &self.new
    }

    /// The distinct deltas of the kept spans, ascending, without zero.
    pub fn deltas(&self) -> &[i32] {
        &self.deltas
    }

    /// Rows of the sequence before.
    pub fn old_rows(&self) -> usize {
        self.old_rows
    }

    /// Rows of the sequence after.
    pub fn new_rows(&self) -> usize {
        self.new_rows
    }

    /// Forgets all spans but not their memory, ready for [`keep`](Plan::keep), [`open`](Plan::open)
    /// and [`leave`](Plan::leave) in order of destination, then [`finish`](Plan::finish).
    fn start(&mut self, old_rows: usize) {
        self.kept.clear();
        self.new.clear();
        self.deltas.clear();
        self.old_rows = old_rows;
        self.new_rows = 0;
    }

    /// Appends rows that survive.
    fn keep(&mut self, span: Span) {
        debug_assert_eq!(span.dst, self.new_rows);
        self.new_rows += span.len;
        match self.kept.last_mut() {
            _ if span.len == 0 => {}
            Some(last) if last.continues_in(&span) => last.len += span.len,
            _ => self.kept.push(span),
        }
    }

    /// Appends rows to encode.
    fn open(&mut self, span: NewSpan) {
        debug_assert_eq!(span.row, self.new_rows);
        self.new_rows += span.len;
        match self.new.last_mut() {
            _ if span.len == 0 => {}
            Some(last) if last.continues_in(&span) => last.len += span.len,
            _ => self.new.push(span),
        }
    }

    /// Passes over rows that stay as they are, whatever they hold.
    fn leave(&mut self, rows: usize) {
        self.new_rows += rows;
    }

    fn finish(&mut self) {
        let turning = self.kept.iter().filter(|span| span.turns());
        self.deltas.extend(turning.map(Span::delta));
        self.deltas.sort_unstable();
        self.deltas.dedup();
    }
}

/// Refuses more rows than there are positions from `first` up to and including `i32::MAX`;
/// returns how many there are.
fn check_rows(first: i32, rows: usize) -> Result<usize> {
    if first < 0 {
        return Err(Error::Plan(format!(
            "the first position is {first}; positions start at 0"
        )));
    }
    let room = (i32::MAX - first) as usize + 1;
    if rows > room {
        return Err(Error::Plan(format!(
            "{rows} rows from position {first} on pass the largest position, {}",
            i32::MAX
        )));
    }
    Ok(room)
}
