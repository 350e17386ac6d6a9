//! Plans against what becomes of each row.

use pie_rope::{Edit, Error, NewSpan, Plan, Span};
use pie_rope_fuzz::{Source, watch};

use crate::LIMITS;

/// What becomes of a row of the new sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Kept {
        src: usize,
        old: i32,
        new: i32,
    },
    New(i32),
    /// It stays as it is, and the plan does not know it.
    Left,
}

#[derive(Clone, Debug)]
pub struct Rows {
    pub old_rows: usize,
    pub fates: Vec<Fate>,
}

impl Rows {
    /// The plan says this, and nothing else.
    fn check(&self, plan: &Plan) {
        let (mut kept, mut new): (Vec<Span>, Vec<NewSpan>) = (Vec::new(), Vec::new());
        let follows =
            |first: i32, len: usize, next: i32| i64::from(first) + len as i64 == i64::from(next);
        for (row, fate) in self.fates.iter().enumerate() {
            match *fate {
                Fate::Kept { src, old, new } => match kept.last_mut() {
                    Some(last)
                        if last.src + last.len == src
                            && last.dst + last.len == row
                            && follows(last.old_position, last.len, old)
                            && follows(last.new_position, last.len, new) =>
                    {
                        last.len += 1;
                    }
                    _ => kept.push(Span {
                        src,
                        dst: row,
                        len: 1,
                        old_position: old,
                        new_position: new,
                    }),
                },
                Fate::New(position) => match new.last_mut() {
                    Some(last)
                        if last.row + last.len == row
                            && follows(last.position, last.len, position) =>
                    {
                        last.len += 1;
                    }
                    _ => new.push(NewSpan {
                        row,
                        len: 1,
                        position,
                    }),
                },
                Fate::Left => {}
            }
        }
        assert_eq!(plan.kept(), kept);
        assert_eq!(plan.new_spans(), new);
        let mut deltas: Vec<_> = kept
            .iter()
            .map(|span| span.new_position - span.old_position)
            .collect();
        deltas.retain(|delta| *delta != 0);
        deltas.sort_unstable();
        deltas.dedup();
        assert_eq!(plan.deltas(), deltas);
        let affected = kept
            .iter()
            .filter(|span| span.src != span.dst || span.old_position != span.new_position);
        assert!(plan.affected().eq(affected));
        assert_eq!(
            (plan.old_rows(), plan.new_rows()),
            (self.old_rows, self.fates.len())
        );
    }

    /// These rows, then those.
    fn then(&self, next: &Rows) -> Option<Rows> {
        if self.fates.len() != next.old_rows {
            return None;
        }
        let one = |(row, fate): (usize, &Fate)| match (*fate, fate) {
            (Fate::New(position), _) => Some(Fate::New(position)),
            (Fate::Left, _) => Some(self.fates[row]),
            (
                Fate::Kept {
                    src,
                    old: before,
                    new,
                },
                second,
            ) => match self.fates[src] {
                Fate::Left => Some(*second),
                Fate::New(position) => (position == before).then_some(Fate::New(new)),
                Fate::Kept {
                    src,
                    old,
                    new: left,
                } => (left == before).then_some(Fate::Kept { src, old, new }),
            },
        };
        let fates = next
            .fates
            .iter()
            .enumerate()
            .map(one)
            .collect::<Option<_>>()?;
        Some(Rows {
            old_rows: self.old_rows,
            fates,
        })
    }

    fn in_place(&self) -> Rows {
        let one = |(row, fate): (usize, &Fate)| match *fate {
            Fate::Kept { old, new, .. } => Fate::Kept { src: row, old, new },
            other => other,
        };
        Rows {
            old_rows: self.fates.len(),
            fates: self.fates.iter().enumerate().map(one).collect(),
        }
    }
}

/// A plan, if the numbers make one, and what it says.
pub fn any(source: &mut Source) -> Option<(Plan, Rows)> {
    let (mut plan, mut rows) = first(source, None)?;
    while source.chance(60) {
        if source.chance(60) {
            (plan, rows) = (plan.in_place(), rows.in_place());
        } else {
            let (next, next_rows) = first(source, Some(&rows))?;
            match (
                watch("then", LIMITS, || plan.then(&next)),
                rows.then(&next_rows),
            ) {
                (Ok(then), Some(then_rows)) => (plan, rows) = (then, then_rows),
                (Err(Error::Plan(_)), None) => return None,
                (made, model) => panic!("{made:?} of {model:?}"),
            }
        }
        rows.check(&plan);
    }
    Some((plan, rows))
}

/// A plan from lists; mostly one that can follow on others, if there are such.
fn first(source: &mut Source, before: Option<&Rows>) -> Option<(Plan, Rows)> {
    let rows = match before {
        Some(before) if !source.chance(20) => before.fates.len(),
        _ => source.number(0..=40),
    };
    // Where rows are before: as they were left, or anywhere.
    let left =
        |source: &mut Source, row: usize| match before.and_then(|before| before.fates.get(row)) {
            _ if source.chance(2) => source.position(),
            Some(&Fate::Kept { new, .. }) => new,
            Some(&Fate::New(position)) => position,
            _ => row as i32,
        };
    let (made, model) = match source.number(0..=3) {
        0 => edits(source, rows),
        1 => {
            let start = source.position();
            let kind = source.byte();
            let old: Vec<i32> = (0..rows)
                .map(|row| match kind {
                    ..150 => left(source, row),
                    _ => source.position(),
                })
                .collect();
            let new: Vec<i32> = (0..rows)
                .map(|row| match kind {
                    _ if old[row] < 0 && !source.chance(2) => -1,
                    ..100 => start.saturating_add(row as i32),
                    _ => source.position(),
                })
                .collect();
            let fate = |row: usize| match (old[row], new[row]) {
                (..0, ..0) => Some(Fate::Left),
                (..0, _) | (_, ..0) => None,
                (old, new) => Some(Fate::Kept { src: row, old, new }),
            };
            let fates = (0..rows).map(fate).collect::<Option<_>>();
            let model = fates.map(|fates| Rows {
                old_rows: rows,
                fates,
            });
            (
                watch("from_positions", LIMITS, || {
                    Plan::from_positions(&old, &new)
                }),
                model,
            )
        }
        kind => {
            let mut kept: Vec<usize> = (0..rows).filter(|_| source.chance(170)).collect();
            if source.chance(10) && !kept.is_empty() {
                let at = source.number(0..=kept.len() - 1);
                kept[at] = source.number(0..=rows);
            }
            let ascends =
                kept.windows(2).all(|two| two[0] < two[1]) && kept.iter().all(|row| *row < rows);
            if kind == 2 {
                let fates = kept.iter().enumerate();
                let fates = fates.map(|(new, &src)| Fate::Kept {
                    src,
                    old: src as i32,
                    new: new as i32,
                });
                let model = ascends.then(|| Rows {
                    old_rows: rows,
                    fates: fates.collect(),
                });
                (
                    watch("from_kept", LIMITS, || Plan::from_kept(rows, &kept)),
                    model,
                )
            } else {
                let old: Vec<i32> = (0..rows).map(|row| left(source, row)).collect();
                let new: Vec<i32> = kept
                    .iter()
                    .map(|&row| match source.byte() {
                        ..200 => old.get(row).copied().unwrap_or(0),
                        _ => source.position(),
                    })
                    .collect();
                let fates = kept.iter().zip(&new).map(|(&src, &new)| {
                    let old = old[src];
                    (old >= 0 && new >= 0).then_some(Fate::Kept { src, old, new })
                });
                let fates = if ascends {
                    fates.collect::<Option<_>>()
                } else {
                    None
                };
                let model = fates.map(|fates| Rows {
                    old_rows: rows,
                    fates,
                });
                (
                    watch("from_kept_at", LIMITS, || {
                        Plan::from_kept_at(&old, &kept, &new)
                    }),
                    model,
                )
            }
        }
    };
    match (made, model) {
        (Ok(plan), Some(model)) => {
            model.check(&plan);
            Some((plan, model))
        }
        (Err(error), None) => {
            assert!(
                matches!(error, Error::Plan(_) | Error::Edit { .. }),
                "{error:?}"
            );
            None
        }
        (made, model) => panic!("{made:?} of {model:?}"),
    }
}

fn edits(source: &mut Source, rows: usize) -> (pie_rope::Result<Plan>, Option<Rows>) {
    let mut at = 0;
    let edits: Vec<Edit> = (0..source.number(0..=6))
        .map(|_| {
            let start = if source.chance(30) {
                source.number(0..=rows + 1)
            } else {
                at + source.number(0..=6)
            };
            let len = source.number(0..=6);
            let end = if source.chance(4) {
                source.number(0..=rows + 1)
            } else {
                (start + len).min(rows).max(start)
            };
            at = end;
            Edit::replace(start..end, source.number(0..=9))
        })
        .collect();
    let first = match source.byte() {
        ..200 => 0,
        _ => source.position(),
    };
    let made = watch("from_edits_at", LIMITS, || {
        Plan::from_edits_at(first, rows, &edits)
    });
    // Every old token by itself.
    let mut removed = vec![0; rows];
    let outside = |edit: &Edit| edit.range.start > edit.range.end || edit.range.end > rows;
    if first < 0 || edits.iter().any(outside) {
        return (made, None);
    }
    for edit in &edits {
        removed[edit.range.clone()]
            .iter_mut()
            .for_each(|times| *times += 1);
    }
    let inside = |at: usize| {
        let mut ranges = edits.iter().map(|edit| &edit.range);
        ranges.any(|range| range.start < at && at < range.end)
    };
    let mut inserts = edits
        .iter()
        .filter(|edit| edit.range.is_empty() && edit.insert > 0);
    if removed.iter().any(|times| *times > 1) || inserts.any(|edit| inside(edit.range.start)) {
        return (made, None);
    }
    let mut sources = Vec::new();
    for at in 0..=rows {
        let here = || edits.iter().filter(move |edit| edit.range.start == at);
        for edit in here().filter(|edit| edit.range.is_empty()) {
            sources.extend(vec![None; edit.insert]);
        }
        for edit in here().filter(|edit| !edit.range.is_empty()) {
            sources.extend(vec![None; edit.insert]);
        }
        if removed.get(at) == Some(&0) {
            sources.push(Some(at));
        }
    }
    let position = |row: usize| i32::try_from(i64::from(first) + row as i64).ok();
    let fate = |(row, src): (usize, &Option<usize>)| {
        let new = position(row)?;
        Some(match *src {
            Some(src) => Fate::Kept {
                src,
                old: position(src)?,
                new,
            },
            None => Fate::New(new),
        })
    };
    let fates = sources.iter().enumerate().map(fate).collect::<Option<_>>();
    // The old rows that go must have had positions as well.
    let fits = rows == 0 || position(rows - 1).is_some();
    (
        made,
        fates.filter(|_| fits).map(|fates| Rows {
            old_rows: rows,
            fates,
        }),
    )
}

/// Numbers far beyond what any list here holds: the plan is refused, or is what every plan is.
pub fn large(source: &mut Source) {
    let rows = source.wild();
    let mut at = 0usize;
    let edits: Vec<Edit> = (0..source.number(0..=5))
        .map(|_| {
            let start = if source.chance(80) {
                source.wild()
            } else {
                at.saturating_add(source.number(0..=70_000))
            };
            let end = if source.chance(40) {
                source.wild()
            } else {
                start.saturating_add(source.number(0..=70_000))
            };
            at = end;
            let insert = if source.chance(80) {
                source.wild()
            } else {
                source.number(0..=70_000)
            };
            Edit::replace(start..end, insert)
        })
        .collect();
    let first = if source.chance(100) {
        source.position()
    } else {
        0
    };
    let Ok(mut plan) = watch("from_edits_at", LIMITS, || {
        Plan::from_edits_at(first, rows, &edits)
    }) else {
        return;
    };
    assert_eq!(plan.old_rows(), rows);
    check(&plan);
    if source.chance(128) {
        plan = watch("in_place", LIMITS, || plan.in_place());
        check(&plan);
    }
    let same = watch("from_edits", LIMITS, || {
        Plan::from_edits(plan.new_rows(), &[])
    })
    .expect("as many as there are");
    if first == 0 {
        let then = watch("then", LIMITS, || plan.then(&same)).expect("nothing changes");
        assert_eq!(then, plan);
    }
}

/// What holds for every plan of edits, span by span.
fn check(plan: &Plan) {
    let (mut row, mut src) = (0, 0);
    let (mut kept, mut new) = (
        plan.kept().iter().peekable(),
        plan.new_spans().iter().peekable(),
    );
    let fits = |position: i32, len: usize| {
        position >= 0 && i64::from(position) + len as i64 - 1 <= i64::from(i32::MAX)
    };
    while row < plan.new_rows() {
        let len = if let Some(span) = kept.next_if(|span| span.dst == row) {
            assert!(span.src >= src, "{span:?} goes back");
            src = span.src + span.len;
            assert!(
                src <= plan.old_rows()
                    && fits(span.old_position, span.len)
                    && fits(span.new_position, span.len)
            );
            assert_eq!(span.delta(), span.new_position - span.old_position);
            span.len
        } else {
            let span = new
                .next_if(|span| span.row == row)
                .expect("a span for each row");
            assert!(fits(span.position, span.len), "{span:?}");
            span.len
        };
        assert!(len > 0);
        row += len;
    }
    assert_eq!(
        (row, kept.next(), new.next()),
        (plan.new_rows(), None, None)
    );
    assert!(plan.deltas().windows(2).all(|two| two[0] < two[1]) && !plan.deltas().contains(&0));
}

/// Tokens, old and new: text that repeats, or hardly, and edits all over it.
pub fn tokens(source: &mut Source) {
    let pattern: Vec<u32> = (0..=source.number(0..=7))
        .map(|_| u32::from(source.byte() % 8))
        .collect();
    let long = if source.chance(60) { 2000 } else { 60 };
    let mut noise = source.noise();
    let fresh = source.number(0..=20);
    let mut token = |at: usize| match noise.below(20) < fresh {
        true => noise.below(1 << 16) as u32,
        false => pattern[at % pattern.len()],
    };
    let old: Vec<u32> = (0..source.number(0..=long)).map(&mut token).collect();
    let mut new = old.clone();
    for _ in 0..source.number(0..=6) {
        let start = source.number(0..=new.len());
        let end = (start + source.number(0..=5)).min(new.len());
        let len = source.number(0..=5);
        let inserted: Vec<u32> = (0..len).map(|_| u32::from(source.byte() % 8)).collect();
        // As long as what it replaces, or not.
        let inserted = match source.chance(128) {
            true => inserted
                .into_iter()
                .cycle()
                .take(if len == 0 { 0 } else { end - start })
                .collect(),
            false => inserted,
        };
        new.splice(start..end, inserted);
    }
    let plan = watch("from_tokens", LIMITS, || Plan::from_tokens(&old, &new)).expect("few tokens");
    check(&plan);
    assert_eq!((plan.old_rows(), plan.new_rows()), (old.len(), new.len()));
    for span in plan.kept() {
        assert_eq!(
            old[span.src..span.src + span.len],
            new[span.dst..span.dst + span.len]
        );
        assert_eq!(
            (span.old_position, span.new_position),
            (span.src as i32, span.dst as i32)
        );
    }
    // No worse than what is seen at once.
    let encoded: usize = plan.new_spans().iter().map(|span| span.len).sum();
    let common = |pair: &(&u32, &u32)| pair.0 == pair.1;
    let prefix = old.iter().zip(&new).take_while(common).count();
    let short = old.len().min(new.len()) - prefix;
    let suffix = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take(short)
        .take_while(common)
        .count();
    assert!(
        encoded <= new.len() - prefix - suffix,
        "{encoded} tokens to encode, more than between common ends"
    );
    if old.len() == new.len() {
        let changed = old.iter().zip(&new).filter(|pair| !common(pair)).count();
        assert!(
            encoded <= changed,
            "{encoded} tokens to encode, of which {changed} have changed"
        );
    }
}
