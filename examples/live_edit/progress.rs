//! How far a long run is: a bar on a terminal, a line now and then elsewhere.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines, where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Counts tokens that have been encoded, and shows them on standard error.
pub(crate) enum Progress {
    Hidden,
    Bar(ProgressBar),
    Lines(RefCell<Lines>),
}

/// One line for each `every`, at most.
pub(crate) struct Lines {
    out: Box<dyn Write>,
    every: Duration,
    last: Instant,
    done: u64,
    total: u64,
}

impl Progress {
    /// For about `total` tokens.
    pub(crate) fn new(total: u64) -> Result<Progress> {
        if !io::stderr().is_terminal() {
            return Ok(Progress::lines(total, EVERY, Box::new(io::stderr())));
        }
        let style =
            ProgressStyle::with_template("{bar:40} {pos} of about {len} tokens, {eta} left")
                .context("progress bar")?;
        let bar = ProgressBar::new(total).with_style(style);
        // From the start, and alive while a large model takes its time for some tokens.
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Progress::Bar(bar))
    }

    pub(crate) fn lines(total: u64, every: Duration, out: Box<dyn Write>) -> Progress {
        Progress::Lines(RefCell::new(Lines {
            out,
            every,
            last: Instant::now(),
            done: 0,
            total,
        }))
    }

    /// Says what is being done that takes a while and has no count, until it is dropped.
    pub(crate) fn busy(with: &str) -> Progress {
        if !io::stderr().is_terminal() {
            eprintln!("live_edit: {with}");
            return Progress::Hidden;
        }
        let spinner = ProgressBar::new_spinner().with_message(with.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Progress::Bar(spinner)
    }

    /// `tokens` more have been encoded.
    pub(crate) fn add(&self, tokens: usize) {
        match self {
            Progress::Hidden => {}
            Progress::Bar(bar) => bar.inc(tokens as u64),
            Progress::Lines(lines) => lines.borrow_mut().add(tokens as u64),
        }
    }

    /// Prints to standard output, where a bar must not be in the way.
    pub(crate) fn print(&self, text: &str) -> Result<()> {
        let print = || io::stdout().write_all(text.as_bytes());
        match self {
            Progress::Bar(bar) => bar.suspend(print)?,
            Progress::Hidden | Progress::Lines(_) => print()?,
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn add(&mut self, tokens: u64) {
        self.done += tokens;
        if self.last.elapsed() >= self.every {
            self.last = Instant::now();
            // What cannot be told is no reason to stop.
            let _ = writeln!(
                self.out,
                "live_edit: {} of about {} tokens",
                self.done, self.total
            );
        }
    }
}
