//! How a call is spread over cores.

use crate::{Error, Result};

/// Bytes below which waking other threads costs more than it saves.
#[cfg(feature = "rayon")]
const WORTH_SPREADING: usize = 512 << 10;

/// More than any machine's cores; a pool of more would take minutes to start.
pub(super) const MAX_THREADS: usize = 4096;

#[derive(Debug, Default)]
pub(super) enum Threads {
    /// The calling thread.
    #[cfg_attr(not(feature = "rayon"), default)]
    One,
    /// rayon's global pool, or the one that the caller is in.
    #[cfg(feature = "rayon")]
    #[default]
    Shared,
    /// A pool of our own.
    #[cfg(feature = "rayon")]
    Own(rayon::ThreadPool),
}

impl Threads {
    pub(super) fn new(threads: usize) -> Result<Threads> {
        let refused = |problem: String| Error::Argument {
            argument: "threads",
            problem,
        };
        match threads {
            0 => Err(refused("at least one is needed".into())),
            _ if threads > MAX_THREADS => {
                Err(refused(format!("{threads} are more than {MAX_THREADS}")))
            }
            1 => Ok(Threads::One),
            #[cfg(feature = "rayon")]
            _ => rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|index| format!("pie-rope-{index}"))
                .build()
                .map(Threads::Own)
                .map_err(|error| Error::Limit(format!("{threads} threads: {error}"))),
            #[cfg(not(feature = "rayon"))]
            _ => Err(refused("more than one needs the feature `rayon`".into())),
        }
    }

    /// Starts rayon's global pool if it is to be used and nobody has yet. Else the first large call does.
    #[cfg(feature = "capi")]
    pub(super) fn start(&self) -> Result<()> {
        #[cfg(feature = "rayon")]
        if matches!(self, Threads::Shared) {
            use std::error::Error as _;
            match rayon::ThreadPoolBuilder::new().build_global() {
                // The system's reason. Without one, the pool is there already.
                Err(error) if error.source().is_some() => {
                    return Err(Error::Limit(format!("a thread for each core: {error}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Threads::One => 1,
            #[cfg(feature = "rayon")]
            Threads::Shared => rayon::current_num_threads(),
            #[cfg(feature = "rayon")]
            Threads::Own(pool) => pool.current_num_threads(),
        }
    }

    /// Runs `task(0)` to `task(tasks - 1)`, which together pass over `bytes` of memory, in any order.
    pub(super) fn run(&self, tasks: usize, bytes: usize, task: impl Fn(usize) + Send + Sync) {
        #[cfg(feature = "rayon")]
        if tasks > 1 && bytes >= WORTH_SPREADING && self.count() > 1 {
            use rayon::prelude::*;
            let spread = || (0..tasks).into_par_iter().for_each(task);
            return match self {
                Threads::Own(pool) => pool.install(spread),
                _ => spread(),
            };
        }
        let _ = bytes;
        (0..tasks).for_each(task);
    }
}
