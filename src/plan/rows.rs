//! Plans from lists with one entry a row: positions that changed, rows that are kept.

use super::{Plan, Span, check_rows};
use crate::{Error, Result};

impl Plan {
    /// Rows stay where they are and change their positions: row `i` goes from position `old[i]` to
    /// `new[i]`. The positions need be in no order.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if the two lists differ in length, or a position is negative.
    pub fn from_positions(old: &[i32], new: &[i32]) -> Result<Plan> {
        if old.len() != new.len() {
            return Err(Error::Plan(format!(
                "{} old positions but {} new ones",
                old.len(),
                new.len()
            )));
        }
        check_positions("old", old)?;
        check_positions("new", new)?;
        Ok(gather(
            old.len(),
            0..old.len(),
            |row| old[row],
            |row| new[row],
        ))
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
    /// turn), and caches that already have gaps in their positions.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] if `kept` does not increase strictly or names a row that is not there, if
    /// `kept` and `new` differ in length, or if a position is negative.
    pub fn from_kept_at(old: &[i32], kept: &[usize], new: &[i32]) -> Result<Plan> {
        if kept.len() != new.len() {
            return Err(Error::Plan(format!(
                "{} kept rows but {} new positions",
                kept.len(),
                new.len()
            )));
        }
        check_kept(old.len(), kept)?;
        check_positions("old", old)?;
        check_positions("new", new)?;
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

fn check_positions(which: &str, positions: &[i32]) -> Result<()> {
    match positions.iter().position(|&position| position < 0) {
        Some(index) => Err(Error::Plan(format!(
            "{which} position {index} is {}; positions start at 0",
            positions[index]
        ))),
        None => Ok(()),
    }
}

fn check_kept(rows: usize, kept: &[usize]) -> Result<()> {
    for (index, &row) in kept.iter().enumerate() {
        if row >= rows {
            return Err(Error::Plan(format!(
                "kept row {index} is {row}, of {rows} rows"
            )));
        }
        if index > 0 && row <= kept[index - 1] {
            return Err(Error::Plan(format!(
                "kept row {index} is {row}, after {}; kept rows must increase",
                kept[index - 1]
            )));
        }
    }
    Ok(())
}
