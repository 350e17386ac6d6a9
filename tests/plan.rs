//! What every plan has to be: applied to a sequence of (token, position) pairs it gives the edited
//! sequence, and two plans composed do what one after the other does.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use pie_rope::{Edit, Error, NewSpan, Plan, Span};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

/// A row: who it is, and where. Old tokens are numbered by their row.
type Row = (Token, i32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Old(usize),
    New,
}

/// The rows `first..first + rows` at as many positions from `position` on.
fn sequence(rows: usize, position: i32) -> Vec<Row> {
    (0..rows)
        .map(|row| (Token::Old(row), position + row as i32))
        .collect()
}

/// Does to a sequence what the plan says, row by row; checks on the way that every row is where the
/// plan believes it to be and that every new row is written once.
fn apply(plan: &Plan, old: &[Row]) -> Vec<Row> {
    assert_eq!(old.len(), plan.old_rows());
    let mut new = vec![None; plan.new_rows()];
    for span in plan.kept() {
        for i in 0..span.len {
            let (token, position) = old[span.src + i];
            assert_eq!(position, span.old_position + i as i32, "{span:?}, row {i}");
            let row = (token, span.new_position + i as i32);
            assert_eq!(new[span.dst + i].replace(row), None, "{span:?}, row {i}");
        }
    }
    for span in plan.new_spans() {
        for i in 0..span.len {
            let row = (Token::New, span.position + i as i32);
            assert_eq!(new[span.row + i].replace(row), None, "{span:?}, row {i}");
        }
    }
    new.into_iter()
        .map(|row| row.expect("every new row is kept or new"))
        .collect()
}

/// What `Plan`'s documentation promises of every plan.
fn check_promises(plan: &Plan) {
    let run_ends = |first: i32, len: usize| i64::from(first) + len as i64;
    for span in plan.kept() {
        assert!(span.len > 0 && span.old_position >= 0 && span.new_position >= 0);
        assert!(span.src + span.len <= plan.old_rows());
        assert!(run_ends(span.old_position, span.len) <= 1 << 31);
        assert!(run_ends(span.new_position, span.len) <= 1 << 31);
        assert_eq!(span.is_affected(), span.moves() || span.turns());
    }
    for pair in plan.kept().windows(2) {
        let (a, b) = (pair[0], pair[1]);
        assert!(
            a.src + a.len <= b.src && a.dst + a.len <= b.dst,
            "{a:?} {b:?}"
        );
        let merges = a.src + a.len == b.src
            && a.dst + a.len == b.dst
            && run_ends(a.old_position, a.len) == i64::from(b.old_position)
            && run_ends(a.new_position, a.len) == i64::from(b.new_position);
        assert!(!merges, "{a:?} and {b:?} are one span");
    }
    for span in plan.new_spans() {
        assert!(span.len > 0 && span.position >= 0);
        assert!(run_ends(span.position, span.len) <= 1 << 31);
    }
    for pair in plan.new_spans().windows(2) {
        let (a, b) = (pair[0], pair[1]);
        assert!(a.row + a.len <= b.row, "{a:?} {b:?}");
        let merges = a.row + a.len == b.row && run_ends(a.position, a.len) == i64::from(b.position);
        assert!(!merges, "{a:?} and {b:?} are one span");
    }
    let rows = plan.kept().iter().map(|span| span.len).sum::<usize>()
        + plan.new_spans().iter().map(|span| span.len).sum::<usize>();
    assert_eq!(rows, plan.new_rows());

    let deltas: BTreeSet<i32> = plan
        .kept()
        .iter()
        .map(Span::delta)
        .filter(|&d| d != 0)
        .collect();
    assert!(plan.deltas().iter().eq(&deltas));
    assert!(
        plan.affected()
            .eq(plan.kept().iter().filter(|span| span.is_affected()))
    );
}

/// The edited sequence, by the documentation of `Edit`: everything inserted at a point, in the
/// order of the list, then what replaces the token there, then the token if nothing removes it.
fn edited(rows: usize, edits: &[Edit], first: i32) -> Vec<Row> {
    let mut tokens = Vec::new();
    for point in 0..=rows {
        let here = |edit: &&Edit| edit.range.start == point;
        let (insertions, replacements): (Vec<_>, Vec<_>) = edits
            .iter()
            .filter(here)
            .partition(|edit| edit.range.is_empty());
        for edit in insertions.into_iter().chain(replacements) {
            tokens.extend(vec![Token::New; edit.insert]);
        }
        if point < rows && !edits.iter().any(|edit| edit.range.contains(&point)) {
            tokens.push(Token::Old(point));
        }
    }
    tokens.into_iter().zip(first..).collect()
}

/// Edits that fit `rows` rows, in any order: a walk along the sequence, then a shuffle.
fn fitting_edits(rows: usize) -> impl Strategy<Value = Vec<Edit>> {
    let step = (0..=rows.min(6), 0..=rows.min(5), 0..4usize);
    vec(step, 0..8)
        .prop_map(move |steps| {
            let mut at = 0;
            let mut edits = Vec::new();
            for (skip, remove, insert) in steps {
                if at + skip + remove > rows {
                    break;
                }
                edits.push(Edit::replace(at + skip..at + skip + remove, insert));
                at += skip + remove;
            }
            edits
        })
        .prop_shuffle()
}

fn rows_and_edits() -> impl Strategy<Value = (usize, Vec<Edit>)> {
    (0..40usize).prop_flat_map(|rows| (Just(rows), fitting_edits(rows)))
}

/// A plan for a sequence that is at these positions, of any kind there is.
fn plan_from(positions: Vec<i32>) -> BoxedStrategy<Plan> {
    let rows = positions.len();
    let first = positions.first().copied().unwrap_or(0);
    let kept = || subsequence((0..rows).collect::<Vec<_>>(), 0..=rows);
    let moved = positions.clone();
    let turned = vec(0..9i32, rows).prop_map(move |new| {
        // Small numbers make runs likely; so do sorted ones.
        let mut new: Vec<i32> = new.iter().zip(0..).map(|(jump, i)| i + jump / 4).collect();
        new.sort_unstable();
        Plan::from_positions(&moved, &new).unwrap()
    });
    let mut kinds = vec![turned.boxed()];
    let unnumbered = positions.clone();
    kinds.push(
        kept()
            .prop_map(move |kept| {
                let new: Vec<i32> = kept.iter().map(|&row| unnumbered[row]).collect();
                Plan::from_kept_at(&unnumbered, &kept, &new).unwrap()
            })
            .boxed(),
    );
    if positions.iter().copied().eq(first..first + rows as i32) {
        kinds.push(
            fitting_edits(rows)
                .prop_map(move |edits| Plan::from_edits_at(first, rows, &edits).unwrap())
                .boxed(),
        );
        if first == 0 {
            kinds.push(
                kept()
                    .prop_map(move |kept| Plan::from_kept(rows, &kept).unwrap())
                    .boxed(),
            );
        }
    }
    proptest::strategy::Union::new(kinds).boxed()
}

fn positions(rows: &[Row]) -> Vec<i32> {
    rows.iter().map(|&(_, position)| position).collect()
}

/// Three plans, each for the sequence that the one before leaves, and the first sequence.
fn chains() -> impl Strategy<Value = (Vec<Row>, [Plan; 3])> {
    let start = (0..30usize, prop_oneof![Just(0), 0..1000]);
    start.prop_flat_map(|(rows, first)| {
        let zero = sequence(rows, first);
        plan_from(positions(&zero)).prop_flat_map(move |a| {
            let (zero, one) = (zero.clone(), apply(&a, &zero));
            plan_from(positions(&one)).prop_flat_map(move |b| {
                let (zero, a, two) = (zero.clone(), a.clone(), apply(&b, &one));
                plan_from(positions(&two))
                    .prop_map(move |c| (zero.clone(), [a.clone(), b.clone(), c]))
            })
        })
    })
}

fn kept_rows(plan: &Plan) -> usize {
    plan.kept().iter().map(|span| span.len).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn edits_make_the_edited_sequence((rows, edits) in rows_and_edits(), first in 0..100_000i32) {
        let plan = Plan::from_edits_at(first, rows, &edits).unwrap();
        check_promises(&plan);
        prop_assert_eq!(apply(&plan, &sequence(rows, first)), edited(rows, &edits, first));
    }

    #[test]
    fn edits_are_refused_if_and_only_if_two_overlap(
        rows in 1..12usize,
        raw in vec((any::<Index>(), 0..5usize, 0..2usize), 1..4),
    ) {
        let edits: Vec<Edit> = raw
            .iter()
            .map(|(at, len, insert)| {
                let start = at.index(rows + 1);
                Edit::replace(start..(start + len).min(rows), *insert)
            })
            .collect();
        // Two edits overlap where both remove a token, or where one inserts between two tokens
        // that the other removes.
        let removes = |edit: &Edit, row: usize| edit.range.contains(&row);
        let inside = |edit: &Edit, point: usize| {
            point > 0 && removes(edit, point) && removes(edit, point - 1)
        };
        let splits = |a: &Edit, b: &Edit| {
            a.range.is_empty() && a.insert > 0 && inside(b, a.range.start)
        };
        let overlap = |a: &Edit, b: &Edit| {
            (0..rows).any(|row| removes(a, row) && removes(b, row)) || splits(a, b) || splits(b, a)
        };
        let overlapping: HashSet<(usize, usize)> = (0..edits.len())
            .flat_map(|later| (0..later).map(move |earlier| (earlier, later)))
            .filter(|&(earlier, later)| overlap(&edits[earlier], &edits[later]))
            .collect();
        match Plan::from_edits(rows, &edits) {
            Ok(plan) => {
                prop_assert!(overlapping.is_empty());
                prop_assert_eq!(apply(&plan, &sequence(rows, 0)), edited(rows, &edits, 0));
            }
            Err(Error::Edit { index, problem }) => {
                let named = problem.rsplit(' ').next().unwrap().parse().unwrap();
                prop_assert!(overlapping.contains(&(named, index)), "edit {}: {}", index, problem);
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn setting_edits_equals_making_a_plan(lists in vec((0..50i32, rows_and_edits()), 1..4)) {
        let mut plan = Plan::default();
        for (first, (rows, edits)) in lists {
            plan.set_edits_at(first, rows, &edits).unwrap();
            prop_assert_eq!(&plan, &Plan::from_edits_at(first, rows, &edits).unwrap());
            plan.set_edits(rows, &edits).unwrap();
            prop_assert_eq!(&plan, &Plan::from_edits(rows, &edits).unwrap());

            let before = plan.clone();
            let outside = [edits, vec![Edit::insert(rows + 1, 1)]].concat();
            plan.set_edits(rows, &outside).unwrap_err();
            plan.set_edits_at(-1, rows, &[]).unwrap_err();
            prop_assert_eq!(&plan, &before);
        }
    }

    #[test]
    fn positions_change_in_place(pairs in vec((0..12i32, 0..12i32), 0..40), runs in any::<bool>()) {
        let (mut old, mut new): (Vec<i32>, Vec<i32>) = pairs.into_iter().unzip();
        if runs {
            // Sorted, the two lists share runs, which have to be found whole.
            old.sort_unstable();
            new.sort_unstable();
        }
        let plan = Plan::from_positions(&old, &new).unwrap();
        check_promises(&plan);
        prop_assert!(plan.kept().iter().all(|span| !span.moves()));
        prop_assert!(plan.new_spans().is_empty());
        let rows: Vec<Row> = old.iter().enumerate().map(|(i, &p)| (Token::Old(i), p)).collect();
        let expected: Vec<Row> = new.iter().enumerate().map(|(i, &p)| (Token::Old(i), p)).collect();
        prop_assert_eq!(apply(&plan, &rows), expected);
    }

    #[test]
    fn kept_rows_move_together(
        (rows, kept) in (0..40usize).prop_flat_map(|rows| {
            (Just(rows), subsequence((0..rows).collect::<Vec<_>>(), 0..=rows))
        }),
        old in vec(0..50i32, 40),
        new in vec(0..50i32, 40),
    ) {
        let plan = Plan::from_kept(rows, &kept).unwrap();
        check_promises(&plan);
        let expected: Vec<Row> = kept.iter().map(|&row| Token::Old(row)).zip(0..).collect();
        prop_assert_eq!(apply(&plan, &sequence(rows, 0)), expected);
        let gaps = kept.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
        prop_assert_eq!(plan.kept().len(), if kept.is_empty() { 0 } else { gaps + 1 });

        let numbers: Vec<i32> = (0..rows as i32).collect();
        prop_assert_eq!(&plan, &Plan::from_kept_at(&numbers, &kept, &numbers[..kept.len()]).unwrap());

        let (old, new) = (&old[..rows], &new[..kept.len()]);
        let plan = Plan::from_kept_at(old, &kept, new).unwrap();
        check_promises(&plan);
        let rows: Vec<Row> = old.iter().enumerate().map(|(i, &p)| (Token::Old(i), p)).collect();
        let expected: Vec<Row> =
            kept.iter().map(|&row| Token::Old(row)).zip(new.iter().copied()).collect();
        prop_assert_eq!(apply(&plan, &rows), expected);
    }

    #[test]
    fn a_composed_plan_does_what_its_parts_do((rows, [a, b, c]) in chains()) {
        let ab = a.then(&b).unwrap();
        let bc = b.then(&c).unwrap();
        let abc = ab.then(&c).unwrap();
        for plan in [&ab, &bc, &abc] {
            check_promises(plan);
        }
        prop_assert_eq!(apply(&ab, &rows), apply(&b, &apply(&a, &rows)));
        prop_assert_eq!(apply(&abc, &rows), apply(&c, &apply(&b, &apply(&a, &rows))));
        prop_assert_eq!(&a.then(&bc).unwrap(), &abc);

        let stay = |positions: &[i32]| Plan::from_positions(positions, positions).unwrap();
        prop_assert_eq!(&stay(&positions(&rows)).then(&a).unwrap(), &a);
        prop_assert_eq!(&a.then(&stay(&positions(&apply(&a, &rows)))).unwrap(), &a);
    }

    #[test]
    fn composition_refuses_positions_that_disagree(
        (rows, [a, b, _]) in chains(),
        at in any::<Index>(),
    ) {
        let mut between = positions(&apply(&a, &rows));
        prop_assume!(!between.is_empty());
        let row = at.index(between.len());
        let was = between[row];
        between[row] += 7;
        let elsewhere = Plan::from_positions(&between, &between).unwrap();
        prop_assert_eq!(
            a.then(&elsewhere),
            Err(Error::Plan(format!(
                "the first plan leaves row {row} at position {was}, but the next takes it from \
                 position {}",
                was + 7
            )))
        );
        // A row that the next plan drops may be anywhere.
        let rest: Vec<usize> = (0..between.len()).filter(|&kept| kept != row).collect();
        let dropping = Plan::from_kept_at(&between, &rest, &vec![0; rest.len()]).unwrap();
        prop_assert_eq!(kept_rows(&a.then(&dropping).unwrap())
            + a.then(&dropping).unwrap().new_spans().iter().map(|span| span.len).sum::<usize>(),
            rest.len());
        let longer = Plan::from_edits(b.old_rows() + 1, &[]).unwrap();
        prop_assert_eq!(
            a.then(&longer),
            Err(Error::Plan(format!(
                "the first plan leaves {} rows, but the next starts from {}",
                a.new_rows(),
                longer.old_rows()
            )))
        );
    }

    #[test]
    fn rows_move_inside_one_buffer_in_the_documented_order((rows, [plan, ..]) in chains()) {
        let tokens = |rows: &[Row]| -> Vec<Token> { rows.iter().map(|row| row.0).collect() };
        let mut buffer = tokens(&rows);
        buffer.resize(plan.old_rows().max(plan.new_rows()), Token::New);
        let right = plan.kept().iter().rev().filter(|span| span.dst > span.src);
        let left = plan.kept().iter().filter(|span| span.dst < span.src);
        for span in right.chain(left) {
            buffer.copy_within(span.src..span.src + span.len, span.dst);
        }
        for span in plan.new_spans() {
            buffer[span.row..span.row + span.len].fill(Token::New);
        }
        prop_assert_eq!(&buffer[..plan.new_rows()], tokens(&apply(&plan, &rows)));
    }

    #[test]
    fn in_place_turns_rows_that_the_engine_has_moved((rows, [plan, ..]) in chains()) {
        let turning = plan.in_place();
        check_promises(&turning);
        prop_assert!(turning.kept().iter().all(|span| !span.moves()));
        prop_assert_eq!(turning.old_rows(), plan.new_rows());
        prop_assert_eq!(turning.new_spans(), plan.new_spans());
        prop_assert_eq!(turning.deltas(), plan.deltas());
        // The engine moves the rows, and leaves whatever it wants in the new ones.
        let mut moved = vec![(Token::New, 0); plan.new_rows()];
        for span in plan.kept() {
            moved[span.dst..span.dst + span.len]
                .copy_from_slice(&rows[span.src..span.src + span.len]);
        }
        prop_assert_eq!(apply(&turning, &moved), apply(&plan, &rows));
    }
}

/// A range that the reversed-range lint need not see.
fn range(start: usize, end: usize) -> Range<usize> {
    Range { start, end }
}

fn problem(rows: usize, edits: &[Edit]) -> String {
    Plan::from_edits(rows, edits).unwrap_err().to_string()
}

#[test]
fn equal_length_replacement_affects_nothing() {
    let plan = Plan::from_edits(10, &[Edit::replace(3..5, 2)]).unwrap();
    assert_eq!(plan.kept().len(), 2);
    assert_eq!(plan.affected().count(), 0);
    assert_eq!(plan.deltas(), [0; 0]);
    assert_eq!(
        plan.new_spans(),
        [NewSpan {
            row: 3,
            len: 2,
            position: 3
        }]
    );
}

#[test]
fn touching_edits_are_fine() {
    let at_both_ends = [
        Edit::insert(5, 1),
        Edit::replace(3..5, 1),
        Edit::insert(3, 2),
        Edit::insert(5, 1),
        Edit::delete(5..6),
    ];
    let plan = Plan::from_edits(8, &at_both_ends).unwrap();
    assert_eq!(
        plan,
        Plan::from_edits(8, &[Edit::replace(3..6, 5)]).unwrap()
    );
}

#[test]
fn an_empty_edit_does_nothing_even_inside_another() {
    let edits = [Edit::delete(2..6), Edit::insert(4, 0), Edit::delete(8..8)];
    let plan = Plan::from_edits(8, &edits).unwrap();
    assert_eq!(plan, Plan::from_edits(8, &edits[..1]).unwrap());
}

#[test]
fn no_rows() {
    let nothing = Plan::from_edits(0, &[]).unwrap();
    assert_eq!(nothing, Plan::default());
    assert_eq!(nothing, Plan::from_positions(&[], &[]).unwrap());
    assert_eq!(nothing, Plan::from_kept(0, &[]).unwrap());
    assert_eq!(nothing, nothing.then(&nothing).unwrap());

    let all_new = Plan::from_edits_at(5, 0, &[Edit::insert(0, 3)]).unwrap();
    assert_eq!(
        all_new.new_spans(),
        [NewSpan {
            row: 0,
            len: 3,
            position: 5
        }]
    );
    let none_left = Plan::from_edits(3, &[Edit::delete(0..3)]).unwrap();
    assert_eq!((none_left.old_rows(), none_left.new_rows()), (3, 0));
    assert_eq!(none_left, Plan::from_kept(3, &[]).unwrap());
}

#[test]
fn undone_edits_compose_to_nothing() {
    let there = Plan::from_edits(10, &[Edit::insert(4, 3)]).unwrap();
    let back = Plan::from_edits(13, &[Edit::delete(4..7)]).unwrap();
    assert_eq!(
        there.then(&back).unwrap(),
        Plan::from_edits(10, &[]).unwrap()
    );
}

#[test]
fn edits_outside_the_sequence_are_named() {
    assert_eq!(
        problem(10, &[Edit::insert(10, 1), Edit::insert(11, 1)]),
        "edit 1: the insertion at 11 is outside the 10 old tokens"
    );
    assert_eq!(
        problem(10, &[Edit::delete(8..11)]),
        "edit 0: range 8..11 is outside the 10 old tokens"
    );
    assert_eq!(
        problem(10, &[Edit::delete(range(5, 3))]),
        "edit 0: range 5..3 ends before it starts"
    );
    assert_eq!(
        problem(0, &[Edit::insert(usize::MAX, 0)]),
        format!(
            "edit 0: the insertion at {} is outside the 0 old tokens",
            usize::MAX
        )
    );
}

#[test]
fn overlaps_name_both_edits() {
    assert_eq!(
        problem(10, &[Edit::delete(4..6), Edit::delete(2..5)]),
        "edit 1: range 2..5 overlaps range 4..6 of edit 0"
    );
    assert_eq!(
        problem(
            10,
            &[Edit::insert(0, 1), Edit::delete(2..5), Edit::insert(3, 1)]
        ),
        "edit 2: the insertion at 3 overlaps range 2..5 of edit 1"
    );
    assert_eq!(
        problem(10, &[Edit::insert(3, 1), Edit::delete(2..5)]),
        "edit 1: range 2..5 overlaps the insertion at 3 of edit 0"
    );
}

#[test]
fn positions_end_at_the_largest_i32() {
    let most = 1usize << 31;
    let whole = Plan::from_edits(most, &[]).unwrap();
    assert_eq!(
        whole.kept(),
        [Span {
            src: 0,
            dst: 0,
            len: most,
            old_position: 0,
            new_position: 0
        }]
    );
    assert_eq!(whole, whole.then(&whole).unwrap());
    assert_eq!(
        Plan::from_edits(most + 1, &[]).unwrap_err().to_string(),
        "plan: 2147483649 rows from position 0 on pass the largest position, 2147483647"
    );

    // One row more than there is room for: the edit that inserts it is named, wherever it is.
    assert_eq!(
        problem(
            most,
            &[
                Edit::delete(9..10),
                Edit::insert(3, 2),
                Edit::insert(most, 0)
            ]
        ),
        "edit 1: inserting 2 tokens pushes the sequence past the largest position, 2147483647"
    );
    assert_eq!(
        problem(most, &[Edit::delete(9..10), Edit::insert(most, 2)]),
        "edit 1: inserting 2 tokens pushes the sequence past the largest position, 2147483647"
    );
    let full = Plan::from_edits(most, &[Edit::insert(most, 1), Edit::delete(9..10)]).unwrap();
    assert_eq!(full.new_rows(), most);
    assert_eq!(
        full.new_spans(),
        [NewSpan {
            row: most - 1,
            len: 1,
            position: i32::MAX
        }]
    );
    assert!(
        problem(
            1,
            &[Edit::insert(0, usize::MAX), Edit::insert(1, usize::MAX)]
        )
        .contains("edit 0")
    );

    let last = Plan::from_edits_at(i32::MAX, 1, &[]).unwrap();
    assert_eq!(last.kept()[0].new_position, i32::MAX);
    let error = Plan::from_edits_at(i32::MAX, 1, &[Edit::insert(0, 1)]).unwrap_err();
    assert!(matches!(error, Error::Edit { index: 0, .. }), "{error}");
    let turned = Plan::from_positions(&[i32::MAX, 0], &[0, i32::MAX]).unwrap();
    assert_eq!(turned.deltas(), [-i32::MAX, i32::MAX]);
}

#[test]
fn an_insertion_may_pass_the_end_only_for_good() {
    // In old order the insertion comes first and the deletion makes room for it later: what
    // counts is where rows end up.
    let most = 1usize << 31;
    let plan = Plan::from_edits(most, &[Edit::insert(0, 5), Edit::delete(most - 5..most)]).unwrap();
    assert_eq!(plan.new_rows(), most);
    assert_eq!(plan.deltas(), [5]);
}

#[test]
fn bad_lists_are_named() {
    let error = |plan: pie_rope::Result<Plan>| plan.unwrap_err().to_string();
    assert_eq!(
        error(Plan::from_edits_at(-3, 1, &[])),
        "plan: the first position is -3; positions start at 0"
    );
    assert_eq!(
        error(Plan::from_positions(&[1, 2], &[1])),
        "plan: 2 old positions but 1 new ones"
    );
    assert_eq!(
        error(Plan::from_positions(&[1, -2], &[1, 2])),
        "plan: row 1 goes from position -2 to 2; positions start at 0, and a row that is to be left alone is at a negative one before and after"
    );
    assert_eq!(
        error(Plan::from_positions(&[1], &[-1])),
        "plan: row 0 goes from position 1 to -1; positions start at 0, and a row that is to be left alone is at a negative one before and after"
    );
    assert_eq!(
        error(Plan::from_kept(5, &[1, 5])),
        "plan: kept[1] is row 5, of 5 rows"
    );
    assert_eq!(
        error(Plan::from_kept(5, &[1, 3, 3])),
        "plan: kept[2] is row 3, after row 3; kept rows must increase"
    );
    assert!(error(Plan::from_kept((1 << 31) + 1, &[])).contains("2147483649 rows"));
    assert_eq!(
        error(Plan::from_kept_at(&[0, 1], &[0, 1], &[0])),
        "plan: 2 kept rows but 1 new positions"
    );
    assert_eq!(
        error(Plan::from_kept_at(&[0, 1], &[1], &[-1])),
        "plan: the new position of kept row 1 is -1; positions start at 0"
    );
    assert_eq!(
        error(Plan::from_kept_at(&[0, -1], &[1], &[0])),
        "plan: the old position of kept row 1 is -1; positions start at 0"
    );
    // Of a row that is not kept, no position is asked for.
    assert!(Plan::from_kept_at(&[0, -1], &[0], &[0]).is_ok());
}

/// What `Rotations::starting_at` leaves out is what lies before the row, and no table row is mistaken for another.
#[test]
fn rotations_from_a_row_on() {
    use pie_rope::{ModelRope, Rope, Rotations, Turn};
    let plan = Plan::from_edits(10, &[Edit::insert(4, 3)]).unwrap();
    let rope = Rope::from_theta(1e4, 8).unwrap();
    let rotations = Rotations::new(&plan, &rope).unwrap();
    assert_eq!(rotations.starting_at(0), rotations);
    let spans = |rotations: &Rotations| -> Vec<_> {
        let table = rotations.table(0).unwrap();
        let spans = rotations.spans().iter();
        spans
            .map(|span| (span.src, span.dst, span.len, span.turn(table)))
            .collect()
    };
    let turn = Some(Turn { first: 0, step: 0 });
    assert_eq!(
        spans(&rotations.starting_at(3)),
        [(3, 3, 1, None), (4, 7, 6, turn)]
    );
    assert_eq!(spans(&rotations.starting_at(5)), [(4, 7, 6, turn)]);
    assert_eq!(spans(&rotations.starting_at(9)), [(6, 9, 4, turn)]);
    assert_eq!(spans(&rotations.starting_at(13)), []);

    // Where every row has an angle of its own, those of the rows that are left out are skipped.
    let other = ModelRope::uniform(Rope::from_theta(1e5, 8).unwrap(), 1);
    let each = Rotations::between(&plan, &ModelRope::uniform(rope, 1), &other).unwrap();
    let all = spans(&each)[1].3.unwrap();
    let cut = spans(&each.starting_at(9))[0].3.unwrap();
    assert_eq!((cut.first, cut.step), (all.first + 2, 1));
}

#[test]
fn debug_shows_what_a_plan_says() {
    let plan = Plan::from_edits(9, &[Edit::insert(4, 2)]).unwrap();
    let shown = format!("{plan:?}");
    for part in [
        "old_rows: 9",
        "new_rows: 11",
        "old_position: 4",
        "deltas: [2]",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
}

#[test]
fn spans_say_what_happens_to_their_rows() {
    let says = |span: &Span| (span.moves(), span.turns(), span.is_affected(), span.delta());
    let edited = Plan::from_edits(9, &[Edit::insert(4, 2)]).unwrap();
    let said: Vec<_> = edited.kept().iter().map(says).collect();
    assert_eq!(said, [(false, false, false, 0), (true, true, true, 2)]);
    // Rows that turn where they are, and rows that move at their positions.
    let shifted = Plan::from_positions(&[3, 4], &[2, 3]).unwrap();
    assert_eq!(says(&shifted.kept()[0]), (false, true, true, -1));
    let packed = Plan::from_kept_at(&[5, 6, 7], &[1, 2], &[6, 7]).unwrap();
    assert_eq!(says(&packed.kept()[0]), (true, false, true, 0));
}
