//! Plans from lists with one entry a row: positions that changed, rows that are kept.

use super::{Plan, Span, check_rows};
use crate::{Error, Result};

impl Plan {
    /// Rows stay where they are and change their positions: row `i` goes from position `old[i]` to
    /// `new[i]`. The positions need be in no order.
    ///
    /// A row whose positions are both negative, such as -1, is left alone: it is free, or another
    /// sequence's. It is in no span of the plan, and keeps every bit.
    ///
    /// ```
    /// use pie_rope::Plan;
    ///
    /// // Cells of a pool: the second is free, the third another sequence's.
    /// let plan = Plan::from_positions(&[7, -1, -1, 8], &[9, -1, -1, 10])?;
    /// let kept: Vec<_> = plan.kept().iter().map(|span| span.src).collect();
    /// assert_eq!(kept, [0, 3]);
    /// # Ok::<(), pie_rope::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if the two lists differ in length, or one position of a row is negative and
    /// the other is not.
    pub fn from_positions(old: &[i32], new: &[i32]) -> Result<Plan> {
        if old.len() != new.len() {
            return Err(Error::Plan(format!(
                "{} old positions but {} new ones",
                old.len(),
                new.len()
            )));
        }
        let mut plan = Plan::default();
        plan.start(old.len());
        for (row, (&old_position, &new_position)) in old.iter().zip(new).enumerate() {
            match (old_position < 0, new_position < 0) {
                (true, true) => plan.leave(1),
                (false, false) => plan.keep(Span {
                    src: row,
                    dst: row,
                    len: 1,
                    old_position,
                    new_position,
                }),
                _ => {
                    return Err(Error::Plan(format!(
                        "row {row} goes from position {old_position} to {new_position}; positions \
                         start at 0, and a row that is to be left alone is at a negative one before \
                         and after"
                    )));
                }
            }
        }
        plan.finish();
        Ok(plan)
    }

    /// Eviction with renumbering: of `rows` rows, row `i` at position `i`, those in `kept` stay,
    /// moved together, and are numbered anew from position 0 on. (kvpress calls turning the keys
    /// accordingly key re-rotation.)
    ///
    /// ```
    /// use pie_rope::Plan;
    ///
    /// let plan = Plan::from_kept(8, &[0, 1, 5, 6, 7])?;
    /// assert_eq!(plan.deltas(), [-3]);
    /// # Ok::<(), pie_rope::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if `kept` does not increase strictly or names a row that is not there, or
    /// if there are more rows than positions.
    pub fn from_kept(rows: usize, kept: &[usize]) -> Result<Plan> {
        check_rows(0, rows)?;
        check_kept(rows, kept)?;
        Ok(gather(
            rows,
            kept.iter().copied(),
            |row| row as i32,
            |row| row as i32,
        ))
    }

    /// Eviction with the positions given: row `i` is at position `old[i]`; the rows in `kept`
    /// stay, moved together, and row `kept[i]` goes to position `new[i]`.
    ///
    /// This covers rows that keep their positions (`new[i] = old[kept[i]]`: they move and do not
    /// turn), and caches that already have gaps in their positions. The position of a row that is
    /// not kept is not looked at: it may be -1.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if `kept` does not increase strictly or names a row that is not there, if
    /// `kept` and `new` differ in length, or if a kept row's position is negative.
    pub fn from_kept_at(old: &[i32], kept: &[usize], new: &[i32]) -> Result<Plan> {
        if kept.len() != new.len() {
            return Err(Error::Plan(format!(
                "{} kept rows but {} new positions",
                kept.len(),
                new.len()
            )));
        }
        check_kept(old.len(), kept)?;
        for (&row, &new) in kept.iter().zip(new) {
            for (which, position) in [("old", old[row]), ("new", new)] {
                if position < 0 {
                    return Err(Error::Plan(format!(
                        "the {which} position of kept row {row} is {position}; positions start at 0"
                    )));
                }
            }
        }
        Ok(gather(
            old.len(),
            kept.iter().copied(),
            |row| old[row],
            |row| new[row],
        ))
    }
}

/// The rows `kept`, one after the other. `old` and `new` give a row's position by its number
/// before and after.
fn gather(
    rows: usize,
    kept: impl Iterator<Item = usize>,
    old: impl Fn(usize) -> i32,
    new: impl Fn(usize) -> i32,
) -> Plan {
    let mut plan = Plan::default();
    plan.start(rows);
    for (dst, src) in kept.enumerate() {
        plan.keep(Span {
            src,
            dst,
            len: 1,
            old_position: old(src),
            new_position: new(dst),
        });
    }
    plan.finish();
    plan
}

fn check_kept(rows: usize, kept: &[usize]) -> Result<()> {
    for (index, &row) in kept.iter().enumerate() {
        if row >= rows {
            return Err(Error::Plan(format!(
                "kept[{index}] is row {row}, of {rows} rows"
            )));
        }
        if index > 0 && row <= kept[index - 1] {
            return Err(Error::Plan(format!(
                "kept[{index}] is row {row}, after row {}; kept rows must increase",
                kept[index - 1]
            )));
        }
    }
    Ok(())
}
