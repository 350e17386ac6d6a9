//! A pool of fixed-size pages that sequences borrow for their cache.

use std::collections::HashMap;
use std::fmt;

/// Number of rows that one page holds.
pub const PAGE_ROWS: usize = 16;

/// Why the pool refused a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolError {
    /// Every page is in use.
    Full { wanted: usize, free: usize },
    /// The sequence is not known to the pool.
    Unknown(u64),
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolError::Full { wanted, free } => {
                write!(f, "wanted {} pages, {} are free", wanted, free)
            }
            PoolError::Unknown(id) => write!(f, "no sequence with id {}", id),
        }
    }
}

impl std::error::Error for PoolError {}

/// One sequence: the pages it holds, in order, and its length in rows.
#[derive(Debug, Default, Clone)]
struct Sequence {
    pages: Vec<u32>,
    rows: usize,
}

impl Sequence {
    /// The number of rows that fit before another page is needed.
    fn spare(&self) -> usize {
        self.pages.len() * PAGE_ROWS - self.rows
    }
}

/// Hands out pages and takes them back. A page can be shared by several sequences.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<u32>,
    users: Vec<u32>,
    sequences: HashMap<u64, Sequence>,
}

impl PagePool {
    /// Creates a pool of `pages` pages, all of them free.
    pub fn new(pages: u32) -> Self {
        PagePool {
            free: (0..pages).rev().collect(),
            users: vec![0; pages as usize],
            sequences: HashMap::new(),
        }
    }

    /// The number of pages that nobody uses.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// The length of a sequence in rows.
    pub fn len(&self, id: u64) -> Result<usize, PoolError> {
        match self.sequences.get(&id) {
            Some(sequence) => Ok(sequence.rows),
            None => Err(PoolError::Unknown(id)),
        }
    }

    /// Makes room for `rows` more rows at the end of a sequence.
    pub fn grow(&mut self, id: u64, rows: usize) -> Result<(), PoolError> {
        let sequence = self.sequences.entry(id).or_default();
        let missing = rows.saturating_sub(sequence.spare());
        let wanted = missing.div_ceil(PAGE_ROWS);
        if wanted > self.free.len() {
            return Err(PoolError::Full {
                wanted,
                free: self.free.len(),
            });
        }
        for _ in 0..wanted {
            let page = self.free.pop().unwrap();
            self.users[page as usize] = 1;
            sequence.pages.push(page);
        }
        sequence.rows += rows;
        Ok(())
    }

    /// Starts a sequence that shares the whole pages of another one.
    pub fn fork(&mut self, id: u64, from: u64) -> Result<(), PoolError> {
        let source = match self.sequences.get(&from) {
            Some(sequence) => sequence.clone(),
            None => return Err(PoolError::Unknown(from)),
        };
        let whole = source.rows / PAGE_ROWS;
        let pages = source.pages[..whole].to_vec();
        for page in &pages {
            self.users[*page as usize] += 1;
        }
        self.sequences.insert(
            id,
            Sequence {
                pages,
                rows: whole * PAGE_ROWS,
            },
        );
        Ok(())
    }

    /// Shortens a sequence to `rows` rows and gives back the pages it no longer needs.
    pub fn truncate(&mut self, id: u64, rows: usize) -> Result<(), PoolError> {
        let sequence = match self.sequences.get_mut(&id) {
            Some(sequence) => sequence,
            None => return Err(PoolError::Unknown(id)),
        };
        if rows >= sequence.rows {
            return Ok(());
        }
        let keep = rows.div_ceil(PAGE_ROWS);
        for page in sequence.pages.drain(keep..) {
            self.users[page as usize] -= 1;
            if self.users[page as usize] == 0 {
                self.free.push(page);
            }
        }
        sequence.rows = rows;
        Ok(())
    }

    /// Forgets a sequence and gives back its pages.
    pub fn release(&mut self, id: u64) -> Result<(), PoolError> {
        let sequence = match self.sequences.remove(&id) {
