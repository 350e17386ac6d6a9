//! What is printed: a table for each edit, and a summary over all of them.

use std::collections::BTreeMap;

use pie_rope::Plan;

use crate::compare::{Comparison, Outcome, Way};
use crate::edits::Kind;

/// Characters of a predicted line that are shown.
const LINE_WIDTH: usize = 44;

/// The heading of an edit and its table.
pub(crate) fn edit(name: &str, kind: Kind, comparison: &Comparison) -> String {
    let mut out = format!("{name} ({kind}): {}\n", describe(&comparison.plan));
    out += &format!(
        "  {:<18} {:>7} {:>9} {:>7} {:>8} {:>8} {:>6}  next line\n",
        "", "encoded", "encode ms", "turn ms", "speed-up", "KL, nats", "agrees"
    );
    for outcome in &comparison.outcomes {
        let Outcome { way, encoded, .. } = outcome;
        let compared = |text: String| match way {
            Way::Full => "-".to_owned(),
            _ => text,
        };
        out += &format!(
            "  {:<18} {encoded:>7} {:>9.1} {:>7} {:>8} {:>8} {:>6}  {}\n",
            way.name(),
            outcome.encode_ms,
            compared(format!("{:.2}", outcome.turn_ms)),
            compared(format!("{:.1} x", comparison.speed_up(*way))),
            compared(format!("{:.1e}", outcome.divergence)),
            compared(format!("{:.0} %", 100.0 * outcome.agreement)),
            quote(&outcome.line),
        );
    }
    out
}

/// What an edit does to the cache.
fn describe(plan: &Plan) -> String {
    let new: usize = plan.new_spans().iter().map(|span| span.len).sum();
    let affected: usize = plan.affected().map(|span| span.len).sum();
    let deltas: Vec<String> = plan.deltas().iter().map(|d| format!("{d:+}")).collect();
    format!(
        "{} -> {} tokens, {new} new, {affected} moved by {}",
        plan.old_rows(),
        plan.new_rows(),
        match deltas.is_empty() {
            true => "0".to_owned(),
            false => deltas.join(", "),
        }
    )
}

/// A line as it is shown: without the line break before it, and not too long.
fn quote(line: &str) -> String {
    let line = line.trim_matches(['\r', '\n']).trim_end();
    let line = line.trim_start_matches(['\r', '\n']);
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
    let mut out = format!(
        "{:<15} {:<18} {:>5} {:>8} {:>9} {:>12} {:>6} {:>9} {:>8}\n",
        "kind",
        "way",
        "edits",
        "KL, mean",
        "KL,median",
        "first choice",
        "agrees",
        "same line",
        "speed-up"
    );
    for (kind, comparisons) in kinds {
        for way in [Way::Conflict, Way::Pie] {
            let values = |value: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
                comparisons.iter().map(|c| value(c.outcome(way))).collect()
            };
            let divergence = values(&|o| o.divergence);
            let speed_up = comparisons.iter().map(|c| c.speed_up(way)).collect();
            out += &format!(
                "{kind:<15} {:<18} {:>5} {:>8.1e} {:>9.1e} {:>10.0} % {:>4.0} % {:>7.0} % {:>6.1} x\n",
                way.name(),
                comparisons.len(),
                mean(&divergence),
                median(divergence),
                100.0 * mean(&values(&|o| f64::from(u8::from(o.same_choice)))),
                100.0 * mean(&values(&|o| o.agreement)),
                100.0 * mean(&values(&|o| f64::from(u8::from(o.same_line)))),
                median(speed_up),
            );
        }
    }
    out
}

/// How to read it.
pub(crate) const LEGEND: &str = "\
encoded: tokens that went through the model, the last one of the file always among them, since its
logits are the prediction. turn ms: finding the edited tokens, and moving (conflict encoding) or
moving and turning (PIE) the rest of the cache. KL: divergence of the next-token distribution from
full recomputation's. agrees: of the tokens of the line that full recomputation predicts, how many
are also this way's first choice, given the line so far. next line: what it writes by itself.
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
