//! Three ways to the next prediction after an edit, measured side by side.
//!
//! The model has encoded a file into its cache. After an edit,
//!
//! - **full recomputation** encodes the edited file from its first token;
//! - **conflict fast encoding** (the paper's baseline) moves the rows that survive, keeps their
//!   keys as they are, and encodes the edited tokens at their positions;
//! - **PIE** does the same, and turns the keys of the rows that survive to their new positions.
//!
//! Neither of the last two recomputes what a later token knew of an earlier one: the hidden states
//! behind its key and value are those from before the edit. That is the approximation; with one
//! layer there are no such states, and PIE is exact.
//!
//! A prediction needs the logits of the last token, and a cache holds none. So in each way the last
//! token is encoded, in its row and at its position, along with the edited ones.

use std::iter::zip;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pie_rope::{ModelRope, Plan, Rope, Rotations};

use crate::backend::Backend;
use crate::cache::Cache;
use crate::model::Decoder;
use crate::progress::Progress;
use crate::text::{Line, Text};

/// Tokens encoded in one pass: bounds the memory that attention scores take.
const CHUNK: usize = 512;

/// A way to the next prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Full,
    Conflict,
    Pie,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Full => "full",
            Way::Conflict => "conflict",
            Way::Pie => "PIE",
        }
    }
}

/// A model, its tokenizer and a backend of the crate.
pub(crate) struct Engine {
    decoder: Decoder,
    text: Text,
    backend: Backend,
    /// A rotary encoding that turns nothing. Keys that are moved with it stay turned to where they
    /// were.
    still: ModelRope,
    /// Runs of each way; the median of their times is kept.
    repeat: usize,
    /// Longest predicted line, in tokens.
    line: usize,
}

/// An edit, three ways.
pub(crate) struct Comparison {
    pub(crate) plan: Plan,
    /// In the order of [`Way`].
    pub(crate) outcomes: [Outcome; 3],
}

/// What one way took, and what it predicts.
pub(crate) struct Outcome {
    pub(crate) way: Way,
    /// Tokens encoded.
    pub(crate) encoded: usize,
    /// Milliseconds until the rows that survive were in place: finding them, moving, turning.
    pub(crate) turn_ms: f64,
    /// Milliseconds of encoding, up to the logits.
    pub(crate) encode_ms: f64,
    /// KL divergence of the next-token distribution from full recomputation's, in nats.
    pub(crate) divergence: f64,
    /// The same, as a mean over the tokens of the line that full recomputation predicts, the one that
    /// ends it included, each after the same line so far.
    pub(crate) line_divergence: f64,
    /// Whether the most probable next token is full recomputation's.
    pub(crate) same_choice: bool,
    /// Of the tokens of that line, its end included, the fraction that is this way's first choice too.
    pub(crate) agreement: f64,
    /// Whether the line that this way predicts by itself is full recomputation's, its end included. But for
    /// rounding it is exactly where all tokens agree.
    pub(crate) same_line: bool,
    /// The line that this way predicts, greedily, by itself: as it is shown.
    pub(crate) line: String,
}

impl Outcome {
    pub(crate) fn total_ms(&self) -> f64 {
        self.turn_ms + self.encode_ms
    }
}

impl Comparison {
    pub(crate) fn outcome(&self, way: Way) -> &Outcome {
        &self.outcomes[way as usize]
    }

    /// How many times faster than full recomputation a way is.
    pub(crate) fn speed_up(&self, way: Way) -> f64 {
        self.outcome(Way::Full).total_ms() / self.outcome(way).total_ms()
    }
}

/// One run of one way: the logits of the last token, and what it took to get them.
pub(crate) struct Run {
    pub(crate) logits: Vec<f32>,
    encoded: usize,
    turn_ms: f64,
    encode_ms: f64,
}

impl Engine {
    pub(crate) fn new(
        decoder: Decoder,
        text: Text,
        backend: Backend,
        repeat: usize,
        line: usize,
    ) -> Result<Engine> {
        let layers = decoder.rope().layers();
        let pairs = decoder.config().head_dim / 2;
        let still = ModelRope::uniform(Rope::from_inv_freq(vec![0.0; pairs])?, layers);
        Ok(Engine {
            decoder,
            text,
            backend,
            still,
            repeat,
            line,
        })
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Encodes a document into an empty cache.
    pub(crate) fn encode(
        &self,
        cache: &mut Cache,
        tokens: &[u32],
        progress: &Progress,
    ) -> Result<()> {
        cache.truncate(0);
        let rows: Vec<usize> = (0..tokens.len()).collect();
        self.encode_rows(cache, tokens, &rows, progress)?;
        Ok(())
    }

    /// Replays the edit that makes `new` of `old`, whose cache is `base`, in all ways, one after
    /// the other in the memory of `work`.
    pub(crate) fn compare(
        &self,
        base: &Cache,
        work: &mut Cache,
        old: &[u32],
        new: &[u32],
        progress: &Progress,
    ) -> Result<Comparison> {
        let full = self.median(Way::Full, base, work, old, new, progress)?;
        let line = self.predict_line(work, &full.logits)?;
        let reference = Reference {
            logits: self.logits_along(work, &full.logits, &line.tokens)?,
            line,
        };
        let full = self.judge(Way::Full, full, work, &reference)?;
        let conflict = self.median(Way::Conflict, base, work, old, new, progress)?;
        let conflict = self.judge(Way::Conflict, conflict, work, &reference)?;
        let pie = self.median(Way::Pie, base, work, old, new, progress)?;
        let pie = self.judge(Way::Pie, pie, work, &reference)?;
        Ok(Comparison {
            plan: Plan::from_tokens(old, new)?,
            outcomes: [full, conflict, pie],
        })
    }

    /// The run of median time of several, which differ in nothing else.
    fn median(
        &self,
        way: Way,
        base: &Cache,
        work: &mut Cache,
        old: &[u32],
        new: &[u32],
        progress: &Progress,
    ) -> Result<Run> {
        let mut runs = (0..self.repeat)
            .map(|_| self.run(way, base, work, old, new, progress))
            .collect::<Result<Vec<_>>>()?;
        runs.sort_by(|a, b| a.total_ms().total_cmp(&b.total_ms()));
        Ok(runs.swap_remove(runs.len() / 2))
    }

    /// Makes `work` a copy of `base`, the cache of `old`, brings it to `new` in one way, and times
    /// that.
    pub(crate) fn run(
        &self,
        way: Way,
        base: &Cache,
        work: &mut Cache,
        old: &[u32],
        new: &[u32],
        progress: &Progress,
    ) -> Result<Run> {
        work.copy_from(base)?;
        let start = Instant::now();
        let rows = match way {
            Way::Full => {
                work.truncate(0);
                (0..new.len()).collect()
            }
            Way::Conflict | Way::Pie => {
                let plan = Plan::from_tokens(old, new)?;
                let rope = match way {
                    Way::Pie => self.decoder.rope(),
                    _ => &self.still,
                };
                let rotations = Rotations::for_model(&plan, rope)?;
                work.splice(&self.backend, &plan, &rotations)?;
                rows_to_encode(&plan)
            }
        };
        let turned = Instant::now();
        let tokens: Vec<u32> = rows.iter().map(|&row| new[row]).collect();
        let logits = self.encode_rows(work, &tokens, &rows, progress)?;
        let encoded = Instant::now();
        Ok(Run {
            logits,
            encoded: rows.len(),
            turn_ms: (turned - start).as_secs_f64() * 1e3,
            encode_ms: (encoded - turned).as_secs_f64() * 1e3,
        })
    }

    /// Encodes tokens of a document, and returns the logits of the last one.
    fn encode_rows(
        &self,
        cache: &mut Cache,
        tokens: &[u32],
        rows: &[usize],
        progress: &Progress,
    ) -> Result<Vec<f32>> {
        let mut last = None;
        for (tokens, rows) in tokens.chunks(CHUNK).zip(rows.chunks(CHUNK)) {
            let hidden = self.decoder.encode(cache, tokens, rows, &positions(rows))?;
            last = Some(hidden.narrow(0, tokens.len() - 1, 1)?);
            progress.add(tokens.len());
        }
        let last = last.context("no tokens to encode")?;
        let logits = self.decoder.logits(&last)?.squeeze(0)?.to_vec1()?;
        numbers(&logits)?;
        Ok(logits)
    }

    /// The rest of `run`, whose cache is `work`: what it predicts, against full recomputation.
    fn judge(
        &self,
        way: Way,
        run: Run,
        work: &mut Cache,
        reference: &Reference,
    ) -> Result<Outcome> {
        let logits = self.logits_along(work, &run.logits, &reference.line.tokens)?;
        let divergences = divergences(&reference.logits, &logits)?;
        let line = self.predict_line(work, &run.logits)?;
        Ok(Outcome {
            way,
            encoded: run.encoded,
            turn_ms: run.turn_ms,
            encode_ms: run.encode_ms,
            divergence: divergences[0],
            line_divergence: divergences.iter().sum::<f64>() / divergences.len() as f64,
            same_choice: first_choice(&run.logits) == reference.line.tokens[0],
            agreement: agreement(&reference.line.tokens, &logits)?,
            same_line: line == reference.line,
            line: self.text.show(&line)?,
        })
    }

    /// The next line by greedy decoding, from a cache and the logits of its last token: up to the
    /// token that ends it, and with that. Leaves the cache as it was.
    fn predict_line(&self, cache: &mut Cache, logits: &[f32]) -> Result<Line> {
        let end = cache.positions().len();
        let mut tokens = vec![first_choice(logits)];
        let mut stop = self.text.stop(&tokens)?;
        while stop.is_none() && tokens.len() < self.line {
            let row = end + tokens.len() - 1;
            let last = &tokens[tokens.len() - 1..];
            let logits = self.encode_rows(cache, last, &[row], &Progress::Hidden)?;
            tokens.push(first_choice(&logits));
            stop = self.text.stop(&tokens)?;
        }
        cache.truncate(end);
        Ok(Line { tokens, stop })
    }

    /// The logits for each token of `line`, each after the line so far. `logits` are those of the
    /// last token in the cache, which is left as it was.
    fn logits_along(
        &self,
        cache: &mut Cache,
        logits: &[f32],
        line: &[u32],
    ) -> Result<Vec<Vec<f32>>> {
        let mut all = vec![logits.to_vec()];
        let given = &line[..line.len() - 1];
        if !given.is_empty() {
            let end = cache.positions().len();
            let rows: Vec<usize> = (end..end + given.len()).collect();
            let hidden = self
                .decoder
                .encode(cache, given, &rows, &positions(&rows))?;
            all.extend(self.decoder.logits(&hidden)?.to_vec2()?);
            cache.truncate(end);
        }
        all.iter().try_for_each(|logits| numbers(logits))?;
        Ok(all)
    }
}

/// The positions of rows in a document that begins at position 0.
fn positions(rows: &[usize]) -> Vec<i32> {
    rows.iter().map(|&row| row as i32).collect()
}

impl Run {
    fn total_ms(&self) -> f64 {
        self.turn_ms + self.encode_ms
    }
}

/// What full recomputation predicts.
struct Reference {
    line: Line,
    /// The logits from which each token of the line was chosen.
    logits: Vec<Vec<f32>>,
}

/// The rows that an edit opens, and the last one.
fn rows_to_encode(plan: &Plan) -> Vec<usize> {
    let opened = plan.new_spans().iter();
    let mut rows: Vec<usize> = opened
        .flat_map(|span| span.row..span.row + span.len)
        .collect();
    let last = plan.new_rows() - 1;
    if rows.last() != Some(&last) {
        rows.push(last);
    }
    rows
}

/// Refuses what could not be compared.
fn numbers(logits: &[f32]) -> Result<()> {
    ensure!(
        // -inf is a token that cannot follow; of +inf no probability comes.
        logits.iter().any(|logit| logit.is_finite())
            && logits.iter().all(|&logit| logit < f32::INFINITY),
        "the model predicts nothing: its logits are not numbers"
    );
    Ok(())
}

/// The index of the largest logit.
fn first_choice(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token as u32)
}

/// Of the tokens of `line`, the fraction that is the first choice by `logits`, of which there are as many.
pub(crate) fn agreement(line: &[u32], logits: &[Vec<f32>]) -> Result<f64> {
    same_length("tokens and their logits", line.len(), logits.len())?;
    logits.iter().try_for_each(|logits| numbers(logits))?;
    let chosen = logits.iter().map(|logits| first_choice(logits));
    let agreeing = zip(line, chosen).filter(|(token, choice)| *token == choice);
    Ok(agreeing.count() as f64 / line.len() as f64)
}

/// The [`divergence`] at each token of a line.
pub(crate) fn divergences(reference: &[Vec<f32>], logits: &[Vec<f32>]) -> Result<Vec<f64>> {
    same_length("logits along the line", reference.len(), logits.len())?;
    let pairs = zip(reference, logits);
    pairs.map(|(p, q)| divergence(p, q)).collect()
}

/// The Kullback-Leibler divergence, in nats, of the distribution of `logits` from that of
/// `reference`: the sum of p_ref · (ln p_ref − ln p).
pub(crate) fn divergence(reference: &[f32], logits: &[f32]) -> Result<f64> {
    same_length("logits", reference.len(), logits.len())?;
    numbers(reference)?;
    numbers(logits)?;
    let (p, q) = (log_softmax(reference), log_softmax(logits));
    let terms = zip(&p, &q).map(|(p, q)| match p.exp() {
        // What the reference never says adds nothing, however unlikely it is elsewhere.
        0.0 => 0.0,
        probability => probability * (p - q),
    });
    Ok(terms.sum())
}

/// What is compared pair by pair has to have pairs.
fn same_length(what: &str, reference: usize, found: usize) -> Result<()> {
    ensure!(
        reference == found && found > 0,
        "{what}: {reference} cannot be compared with {found}"
    );
    Ok(())
}

/// Natural logarithms of the probabilities, in f64. A NaN among the logits makes all of them NaN.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let logits = logits.iter().map(|&logit| f64::from(logit));
    let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.clone().map(|logit| (logit - largest).exp()).sum();
    let log_sum = largest + sum.ln();
    logits.map(|logit| logit - log_sum).collect()
}
