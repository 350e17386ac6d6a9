//! The edits between two token sequences.
//!
//! What counts is how few tokens are to be encoded; what is removed costs nothing. A cached sequence
//! is long and most of it is unchanged, so the first thing tried is the one whose time grows with the
//! number of edits (`few`), which finds the best. Where there are too many, what the sequences have
//! in common is looked for in parts, in one of two ways:
//! - between runs of tokens that occur once on each side (`anchors`), long ones first, which are found
//!   again however far they were moved, and what lies between them by all the other ways (`regions`);
//! - if there are none, window by window, in the table of all pairs of tokens (`table`).
//!
//! How many tokens are kept so bounds what the best edits can skip, and so the band of the table that
//! they lie in. Unless `few` has shown that there is little to gain, the best are then found in it;
//! if it is too large for that, wide windows are tried. Of all these and what is the same token by
//! token in place (`aligned`), the best is taken.
//!
//! No work depends on luck or on a clock: all of it is counted, and there is so much of it for each
//! token, so the edits are always the same and no input takes quadratic time. At most it is 2048 words
//! of the table for the band, or for the wide windows (4096 if what is the same drifts out of them); 26
//! points of `few` and 128 words of the table for the whole; and between anchors, as much of the table
//! again, and 6 points for each of four lengths. Memory is some 300 bytes for each token at most, and
//! 5 MB.

mod aligned;
mod anchors;
mod few;
mod kept;
mod regions;
mod shared;
mod table;
mod work;

/// What the tests measure by.
#[cfg(test)]
#[path = "../../../benches/support/longest.rs"]
mod longest;

use self::kept::{Kept, common_prefix, common_suffix};
use self::shared::Shared;
use super::{Edit, Plan, check_rows};
use crate::Result;

/// Work for each token, in points, that finding few edits may take before anything else is tried.
const QUICK: usize = 2;

/// One in so many of the tokens to encode may be given for fewer edits.
const SLACK: usize = 5;

impl Edit {
    /// Edits that turn the tokens `old` into `new`, in old order, at least one kept token between
    /// any two.
    ///
    /// They leave few tokens to encode, in text of any kind: prose, tables, generated code, logs,
    /// patterns of two tokens.
    /// - Never are more to be encoded than if each token were compared with the one at the same
    ///   distance from the front, or from the back, or up to some token from the front and behind it
    ///   from the back. What is the same at both ends is kept.
    /// - No more than half as many again are to be encoded as need be, whatever the edits, if both
    ///   sequences together have up to 524 288 tokens; or if each has less than 2²⁶ and the edits that
    ///   are found part by part remove and insert no more than 126 976 tokens (258 048 if both are as
    ///   long). Where more has changed there is no bound, for the time has one. Measured were 2.2 times
    ///   as many as need be (1 048 576 tokens of noise of two, a third removed, 2 % edited).
    /// - Among edits that leave about as many to be encoded (a fifth more at most), those that are
    ///   fewer are taken: long runs are kept rather than single tokens that are the same by chance.
    ///
    /// The time is bounded by a number of steps for each token, whatever they are: for 131 072 tokens
    /// it is 0.5 ms if there are up to some hundred edits, 1.6 ms if 0.1 % has changed, and at worst some
    /// 0.25 s; for 262 144 tokens at worst some 0.9 s, from where on it grows as they do; for a million 5 s.
    pub fn between(old: &[u32], new: &[u32]) -> Vec<Edit> {
        let start = common_prefix(old, new);
        let end = common_suffix(&old[start..], &new[start..]);
        let (old_end, new_end) = (old.len() - end, new.len() - end);
        let middle = middle(&old[start..old_end], &new[start..new_end]);
        let mut kept = Kept::default();
        kept.push(0, 0, start);
        kept.extend(start, start, middle.runs());
        kept.push(old_end, new_end, end);
        kept.edits(old.len(), new.len())
    }
}

impl Plan {
    /// The plan from the tokens `old`, of which token `i` lies in row `i` and is at position `i`,
    /// to the tokens `new`: that of [`Edit::between`] the two.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`](crate::Error::Plan) if either sequence has more tokens than there are
    /// positions.
    pub fn from_tokens(old: &[u32], new: &[u32]) -> Result<Plan> {
        check_rows(0, old.len())?;
        check_rows(0, new.len())?;
        Plan::from_edits(old.len(), &Edit::between(old, new))
    }
}

/// What two sequences that differ at both ends have in common: the best of what the ways to look
/// for it have found.
fn middle(old: &[u32], new: &[u32]) -> Kept {
    if old.is_empty() || new.is_empty() {
        return Kept::default();
    }
    let few = few::compare(old, new, QUICK * (old.len() + new.len()));
    let found = few.map_or_else(
        |_| {
            let shared = Shared::of(old, new);
            let found = regions::compare(&shared).into_iter();
            found.map(|kept| shared.places(&kept)).collect()
        },
        |kept| vec![kept],
    );
    let joined = found.into_iter().map(|kept| kept.joined(old, new));
    best(aligned::compare(old, new), joined.collect(), new.len())
}

/// Of what was found in several ways, that with the fewest tokens to encode and edits together, one
/// edit being worth a token: rows of long runs were encoded in the context that they are in now, more
/// or less, and those of a run of one or two tokens are often the same by chance. But no more
/// than a fifth more tokens are to be encoded than by the best of them, and never more than in place.
fn best(in_place: Kept, found: Vec<Kept>, new: usize) -> Kept {
    let encode = |kept: &Kept| new - kept.tokens();
    let most = encode(&in_place);
    let least = found.iter().map(encode).fold(most, usize::min);
    let most = most.min(least + least / SLACK);
    let ways = [in_place].into_iter().chain(found);
    ways.filter(|kept| encode(kept) <= most)
        .min_by_key(|kept| (encode(kept) + kept.runs().len(), encode(kept)))
        .expect("the way with the fewest tokens to encode")
}
