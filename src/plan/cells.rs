//! Plans of cells, as llama.cpp keeps them: rows that stay where they are, at positions that need be in no order, of
//! which ranges are shifted or divided.

use std::ops::Range;

use super::{Plan, Span};
use crate::{Error, Result};

/// Positions, and by how much those in them shift. The range may begin below 0 and has an end.
pub(crate) struct Shift {
    pub(crate) range: Range<i64>,
    pub(crate) delta: i32,
}

/// At which position each cell is.
pub(crate) enum Cells<'a> {
    /// A position for each; negative: the cell is free, or another sequence's, and is left alone.
    At(&'a [i32]),
    /// Cell `i` at position `i`, so many of them.
    InOrder(usize),
}

/// The position behind which no other comes.
const END: i64 = i32::MAX as i64 + 1;

impl Plan {
    /// Every cell shifts by the sum of the deltas whose range its position is in.
    ///
    /// The time taken is in proportion to the cells that are listed and to the ranges, not to their product, and
    /// where cells are in order to the ranges alone.
    ///
    /// # Errors
    /// [`Error::Plan`] if a cell's position becomes none that there is.
    pub(crate) fn from_shifts(cells: Cells<'_>, shifts: &[Shift]) -> Result<Plan> {
        let pieces = pieces(shifts);
        let mut plan = Plan::default();
        match cells {
            Cells::At(positions) => {
                plan.start(positions.len());
                for (row, &position) in positions.iter().enumerate() {
                    if position < 0 {
                        plan.leave(1);
                        continue;
                    }
                    let piece = pieces.partition_point(|piece| piece.start <= i64::from(position));
                    let sum = pieces[..piece].last().map_or(0, |piece| piece.sum);
                    plan.keep(shifted(row, position, 1, sum)?);
                }
            }
            Cells::InOrder(cells) => {
                super::check_rows(0, cells)?;
                plan.start(cells);
                let mut row = 0;
                let mut sum = 0;
                let ends = pieces.iter().map(|piece| (piece.start, piece.sum));
                for (end, next_sum) in ends.chain([(END, 0)]) {
                    let end = (end.max(0) as usize).min(cells);
                    if end > row {
                        plan.keep(shifted(row, row as i32, end - row, sum)?);
                        row = end;
                    }
                    sum = next_sum;
                }
            }
        }
        plan.finish();
        Ok(plan)
    }
}

/// From a position on, up to the next piece: what all shifts there come to.
struct Piece {
    start: i64,
    sum: i64,
}

/// What shifts come to, in order of positions.
fn pieces(shifts: &[Shift]) -> Vec<Piece> {
    let mut steps: Vec<(i64, i64)> = shifts
        .iter()
        .filter(|shift| !shift.range.is_empty())
        .flat_map(|shift| {
            let delta = i64::from(shift.delta);
            [(shift.range.start, delta), (shift.range.end, -delta)]
        })
        .collect();
    steps.sort_unstable();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut sum = 0;
    for (start, step) in steps {
        sum += step;
        match pieces.last_mut() {
            Some(last) if last.start == start => last.sum = sum,
            _ => pieces.push(Piece { start, sum }),
        }
    }
    pieces
}

/// `len` cells from `row` and `position` on, shifted.
fn shifted(row: usize, position: i32, len: usize, shift: i64) -> Result<Span> {
    let new = i64::from(position) + shift;
    let last = new + len as i64 - 1;
    if new < 0 || last >= END {
        // The first cell that goes wrong: the first of all, or the one that passes the end.
        let step = if new < 0 { 0 } else { (END - new).max(0) };
        return Err(Error::Plan(format!(
            "cell {}: position {} shifted by {shift} is none that there is",
            row as i64 + step,
            i64::from(position) + step
        )));
    }
    Ok(Span {
        src: row,
        dst: row,
        len,
        old_position: position,
        new_position: new as i32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cells: Cells<'_>, shifts: &[(Range<i64>, i32)]) -> Result<Plan> {
        let shift = |(range, delta): &(Range<i64>, i32)| Shift {
            range: range.clone(),
            delta: *delta,
        };
        Plan::from_shifts(cells, &shifts.iter().map(shift).collect::<Vec<_>>())
    }

    #[test]
    fn every_cell_shifts_by_the_sum_of_its_ranges() {
        // Ranges that nest, touch, overlap, are empty, begin below 0 and have no end.
        let shifts = [
            (-5..4, 3),
            (2..9, 10),
            (4..6, -1),
            (6..6, 100),
            (8..END, 7),
            (Range { start: 9, end: 3 }, 50),
        ];
        let naive = |position: i32| -> i32 {
            let holds = |range: &Range<i64>| range.contains(&position.into());
            let all = shifts.iter().filter(|(range, _)| holds(range));
            position + all.map(|(_, delta)| delta).sum::<i32>()
        };
        let positions: Vec<i32> = (0..40).map(|cell| cell * 7 % 20 - 2).collect();
        let left = |position: i32, new: i32| if position < 0 { -1 } else { new };
        let old: Vec<i32> = positions.iter().map(|&p| left(p, p)).collect();
        let new: Vec<i32> = positions.iter().map(|&p| left(p, naive(p))).collect();
        assert_eq!(
            plan(Cells::At(&positions), &shifts).unwrap(),
            Plan::from_positions(&old, &new).unwrap()
        );
        for cells in 0..30 {
            let old: Vec<i32> = (0..cells).collect();
            let new: Vec<i32> = old.iter().map(|&position| naive(position)).collect();
            assert_eq!(
                plan(Cells::InOrder(cells as usize), &shifts).unwrap(),
                Plan::from_positions(&old, &new).unwrap()
            );
        }
    }

    #[test]
    fn what_is_no_position_is_refused_by_its_cell() {
        let says = |result: Result<Plan>, text: &str| {
            assert_eq!(result, Err(Error::Plan(text.into())));
        };
        says(
            plan(Cells::At(&[-1, 5, 2]), &[(0..9, -3)]),
            "cell 2: position 2 shifted by -3 is none that there is",
        );
        says(
            plan(Cells::InOrder(9), &[(4..END, i32::MAX - 6)]),
            "cell 7: position 7 shifted by 2147483641 is none that there is",
        );
        says(
            plan(Cells::InOrder(3), &[(0..END, i32::MAX)]),
            "cell 1: position 1 shifted by 2147483647 is none that there is",
        );
        // The first cell of a range may be past the end already.
        says(
            plan(Cells::InOrder(64), &[(10..20, i32::MAX)]),
            "cell 10: position 10 shifted by 2147483647 is none that there is",
        );
        says(
            plan(Cells::At(&[7, 2_000_000_000]), &[(8..END, 2_000_000_000)]),
            "cell 1: position 2000000000 shifted by 2000000000 is none that there is",
        );
        // The first and the last one are.
        let ends = plan(Cells::InOrder(9), &[(0..4, 0), (4..END, i32::MAX - 8)]).unwrap();
        assert_eq!(ends.kept().last().unwrap().new_position, i32::MAX - 4);
        assert!(plan(Cells::At(&[3, 4]), &[(0..END, -3)]).is_ok());
        // All positions that there are, in no time.
        let all = plan(Cells::InOrder(1 << 31), &[(10..END, -10)]).unwrap();
        assert_eq!((all.new_rows(), all.kept().len()), (1 << 31, 2));
        assert!(matches!(
            plan(Cells::InOrder((1 << 31) + 1), &[]),
            Err(Error::Plan(_))
        ));
    }
}
