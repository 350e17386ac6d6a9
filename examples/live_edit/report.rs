//! What is printed: a table for each edit, and a summary over all of them.

use std::collections::BTreeMap;

use pie_rope::Plan;

use crate::compare::{Comparison, Outcome, Way};
use crate::edits::Kind;

/// Characters of a predicted line that are shown.
const LINE_WIDTH: usize = 40;

/// The heading of an edit and its table.
pub(crate) fn edit(name: &str, kind: Kind, comparison: &Comparison) -> String {
    let mut out = format!("{name} ({kind}): {}\n", describe(&comparison.plan));
    out += "            encoded encode ms  turn ms speed-up  KL next  KL line agrees  next line\n";
    for outcome in &comparison.outcomes {
        let Outcome { way, encoded, .. } = *outcome;
        let way_name = way.name();
        let encode_ms = outcome.encode_ms;
        let line = quote(&outcome.line);
        out += &match way {
            Way::Full => format!(
                "  {way_name:<9} {encoded:>7} {encode_ms:>9.1} {:>8} {:>8} {:>8} {:>8} {:>6}  {line}\n",
                "-", "-", "-", "-", "-",
            ),
            Way::Conflict | Way::Pie => format!(
                "  {way_name:<9} {encoded:>7} {encode_ms:>9.1} {:>8.2} {:>6.1} x {:>8.1e} {:>8.1e} {:>4.0} %  {line}\n",
                outcome.turn_ms,
                comparison.speed_up(way),
                outcome.divergence,
                outcome.line_divergence,
                100.0 * outcome.agreement,
            ),
        };
    }
    out
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

/// A line as it is shown: without white space around it, and not too long.
fn quote(line: &str) -> String {
    let line = line.trim();
    match line.char_indices().nth(LINE_WIDTH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Means and medians per kind of edit.
pub(crate) fn summary(results: &[(Kind, Comparison)]) -> String {
    let mut kinds: BTreeMap<Kind, Vec<&Comparison>> = BTreeMap::new();
    for (kind, comparison) in results {
        kinds.entry(*kind).or_default().push(comparison);
    }
    let mut out = String::from(
        "                                   KL next           KL line      first          same  speed-\n\
         kind            edits         mean   median     mean   median   choice agrees  line      up\n",
    );
    for (kind, comparisons) in kinds {
        for way in [Way::Conflict, Way::Pie] {
            let values = |value: fn(&Outcome) -> f64| -> Vec<f64> {
                comparisons.iter().map(|c| value(c.outcome(way))).collect()
            };
            let next = values(|o| o.divergence);
            let line = values(|o| o.line_divergence);
            let percent = |value: fn(&Outcome) -> f64| 100.0 * mean(&values(value));
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
KL line   the same, over the tokens of the line that full recomputation predicts: their mean
agrees    how many tokens of that line are this way's first choice too, given the line so far
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
