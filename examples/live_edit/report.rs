//! What is printed: a table for each edit, and a summary over all of them.

use std::collections::BTreeMap;

use pie_rope::Plan;

use crate::compare::{Comparison, Outcome, Way};
use crate::edits::Kind;

/// The heading of an edit, its table, and what each way predicts.
pub(crate) fn edit(name: &str, kind: Kind, comparison: &Comparison) -> String {
    let mut out = format!("{name} ({kind}): {}\n", describe(&comparison.plan));
    out +=
        "            encoded encode ms  turn ms speed-up  KL next  KL line choice agrees  line\n";
    for outcome in &comparison.outcomes {
        let Outcome { way, encoded, .. } = *outcome;
        let way_name = way.name();
        let encode_ms = outcome.encode_ms;
        out += &match way {
            Way::Full => format!(
                "  {way_name:<9} {encoded:>7} {encode_ms:>9.1} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>5}\n",
                "-", "-", "-", "-", "-", "-", "-",
            ),
            Way::Conflict | Way::Pie => format!(
                "  {way_name:<9} {encoded:>7} {encode_ms:>9.1} {:>8.2} {:>6.1} x {:>8.1e} {:>8.1e} {:>6} {:>4.0} % {:>5}\n",
                outcome.turn_ms,
                comparison.speed_up(way),
                outcome.divergence,
                outcome.line_divergence,
                same(outcome.same_choice),
                percent(outcome.agreement),
                same(outcome.same_line),
            ),
        };
    }
    out += "  next line\n";
    let full = comparison.outcome(Way::Full);
    for outcome in &comparison.outcomes {
        let line = match outcome.way != Way::Full && outcome.line == full.line {
            true => "the same",
            false => &outcome.line,
        };
        out += &format!("  {:<9} {line}\n", outcome.way.name());
    }
    out
}

fn same(same: bool) -> &'static str {
    if same { "same" } else { "other" }
}

/// What an edit does to the cache.
fn describe(plan: &Plan) -> String {
    let new: usize = plan.new_spans().iter().map(|span| span.len).sum();
    let affected: usize = plan.affected().map(|span| span.len).sum();
    let by = match plan.deltas() {
        [] => String::new(),
        deltas @ ([_] | [_, _] | [_, _, _] | [_, _, _, _]) => {
            let each: Vec<String> = deltas.iter().map(|delta| format!("{delta:+}")).collect();
            format!(" by {}", each.join(", "))
        }
        [first, .., last] => format!(
            " by {first:+} to {last:+}, {} distances",
            plan.deltas().len()
        ),
    };
    format!(
        "{} -> {} tokens, {new} new, {affected} move{by}",
        plan.old_rows(),
        plan.new_rows(),
    )
}

/// Of a hundred. What is not all is not rounded up to all.
pub(crate) fn percent(fraction: f64) -> f64 {
    let percent = (100.0 * fraction).round();
    if fraction < 1.0 {
        percent.min(99.0)
    } else {
        percent
    }
}

/// Means and medians per kind of edit.
pub(crate) fn summary(results: &[(Kind, Comparison)]) -> String {
    let mut kinds: BTreeMap<Kind, Vec<&Comparison>> = BTreeMap::new();
    for (kind, comparison) in results {
        kinds.entry(*kind).or_default().push(comparison);
    }
    let mut out = String::from(
        "                                   KL next           KL line      same            same  speed-\n\
         kind            edits         mean   median     mean   median  choice  agrees  line      up\n",
    );
    for (kind, comparisons) in kinds {
        for way in [Way::Conflict, Way::Pie] {
            let values = |value: fn(&Outcome) -> f64| -> Vec<f64> {
                comparisons.iter().map(|c| value(c.outcome(way))).collect()
            };
            let next = values(|o| o.divergence);
            let line = values(|o| o.line_divergence);
            let percent = |value: fn(&Outcome) -> f64| percent(mean(&values(value)));
            out += &format!(
                "{kind:<15} {:>5} {:<8} {:>8.1e} {:>8.1e} {:>8.1e} {:>8.1e} {:>6.0} % {:>4.0} % {:>3.0} % {:>5.1} x\n",
                comparisons.len(),
                way.name(),
                mean(&next),
                median(next.clone()),
                mean(&line),
                median(line.clone()),
                percent(|o| f64::from(u8::from(o.same_choice))),
                percent(|o| o.agreement),
                percent(|o| f64::from(u8::from(o.same_line))),
                median(comparisons.iter().map(|c| c.speed_up(way)).collect()),
            );
        }
    }
    out
}

/// How to read it.
pub(crate) const LEGEND: &str = "\
full      everything encoded again: what the other two are measured against
conflict  the edited tokens encoded, the other keys moved but not turned
PIE       the edited tokens encoded, the other keys turned to their new positions
encoded   tokens that went through the model; the last one of the file always does, since its
          logits are the prediction
turn ms   finding the edited tokens, then moving and turning the rest of the cache
KL next   divergence, in nats, of the next-token distribution from full recomputation's
KL line   the same, over the tokens of the line that full recomputation predicts, the token that
          ends it included: their mean
choice    whether the most probable next token is full recomputation's
agrees    how many tokens of that line, its end included, are this way's first choice too, given
          the line so far
line      whether the line that this way predicts by itself is full recomputation's, its end
          included; each is shown whole, with its white space
";

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
