//! Cases as data: what is tested, each with a name that says it.

use std::fmt;

use pie_rope::{CacheLayout, ElementType, KeyLayout, Pairing, Rope};

/// One combination of everything that a kernel may treat differently. Delta patterns and row counts are
/// run inside the case, see [`crate::pattern`].
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub verb: Verb,
    pub element: ElementType,
    pub pairing: Pairing,
    pub head_dim: usize,
    pub window: Window,
    pub shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Rotate,
    Splice,
    Copy,
    CopyWithin,
}

/// The rotated part of a head vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// All of it.
    Full,
    /// The first three quarters.
    Partial,
    /// The second half.
    Offset,
    /// Half of it from dimension 6 on, so that no power of two divides the offset but 2.
    Unaligned,
}

/// How keys and values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `[batch, heads, seq, dim]`.
    Bhsd,
    /// `[batch, seq, heads, dim]`.
    Bshd,
    /// `[slots, heads, dim]` through a table of slots.
    Slots,
    /// `[blocks, block, heads, dim]` through a block table.
    Nhd,
    /// `[blocks, heads, block, dim]` through a block table.
    Hnd,
    /// Keys `[blocks, heads, dim / x, block, x]`, values `[blocks, heads, dim, block]`, 16-byte packs.
    XPacked,
    /// `[blocks, 2, block, heads, dim]`: keys and values in one buffer.
    PackedPages,
    /// `[seq, heads, 2 * dim]`: keys and values in one buffer.
    PackedDims,
    /// `[slots, 512 + dim]`: MLA rows, one head, the window behind 512 dimensions that do not turn.
    Mla,
}

/// Dimensions of an MLA row before the rotated part.
pub const LATENT: usize = 512;

/// Rows of a page.
pub const BLOCK: usize = 16;

impl Case {
    /// Every combination.
    pub fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for verb in [Verb::Rotate, Verb::Splice, Verb::Copy, Verb::CopyWithin] {
            for element in [ElementType::F32, ElementType::F16, ElementType::BF16] {
                for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
                    for head_dim in [64, 80, 96, 128, 256] {
                        for window in [
                            Window::Full,
                            Window::Partial,
                            Window::Offset,
                            Window::Unaligned,
                        ] {
                            for shape in Shape::ALL {
                                cases.push(Case {
                                    verb,
                                    element,
                                    pairing,
                                    head_dim,
                                    window,
                                    shape,
                                });
                            }
                        }
                    }
                }
            }
        }
        cases
    }

    /// Where the window begins and how wide it is, inside a row's head vector.
    pub fn window(&self) -> (usize, usize) {
        let (offset, width) = match self.window {
            Window::Full => (0, self.head_dim),
            Window::Partial => (0, self.head_dim / 4 * 3),
            Window::Offset => (self.head_dim / 2, self.head_dim / 2),
            Window::Unaligned => (6, self.head_dim / 2),
        };
        (offset + self.shape.latent(), width)
    }

    /// Elements of a head vector as it is stored.
    pub fn stored_dim(&self) -> usize {
        self.shape.latent() + self.head_dim
    }

    /// A rope of this case's window.
    pub fn rope(&self, theta: f64) -> Rope {
        let (offset, width) = self.window();
        Rope::from_theta(theta, width)
            .expect("an even width")
            .with_pairing(self.pairing)
            .with_offset(offset)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case {
            verb,
            element,
            pairing,
            head_dim,
            window,
            shape,
        } = self;
        write!(
            f,
            "{verb:?} {element} {pairing:?} d{head_dim} {window:?} {shape:?}"
        )
    }
}

impl Shape {
    pub const ALL: [Shape; 9] = [
        Shape::Bhsd,
        Shape::Bshd,
        Shape::Slots,
        Shape::Nhd,
        Shape::Hnd,
        Shape::XPacked,
        Shape::PackedPages,
        Shape::PackedDims,
        Shape::Mla,
    ];

    pub fn heads(self) -> usize {
        if self == Shape::Mla { 1 } else { 2 }
    }

    pub fn batch(self) -> usize {
        if matches!(self, Shape::Bhsd | Shape::Bshd) {
            2
        } else {
            1
        }
    }

    pub fn has_values(self) -> bool {
        self != Shape::Mla
    }

    /// Keys and values share a buffer.
    pub fn is_packed(self) -> bool {
        matches!(self, Shape::PackedPages | Shape::PackedDims)
    }

    /// Rows of a block, for shapes that have a block table.
    pub fn block(self) -> Option<usize> {
        match self {
            Shape::Slots | Shape::Mla => Some(1),
            Shape::Nhd | Shape::Hnd | Shape::XPacked | Shape::PackedPages => Some(BLOCK),
            Shape::Bhsd | Shape::Bshd | Shape::PackedDims => None,
        }
    }

    fn latent(self) -> usize {
        if self == Shape::Mla { LATENT } else { 0 }
    }
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Keys,
    Values,
}

/// A shape with its numbers: a cache of one layer, as the test sees it. It finds elements by the plain
/// index formula of the shape, and independently describes itself to the crate as a [`CacheLayout`].
#[derive(Clone, Debug)]
pub struct Cache {
    pub shape: Shape,
    pub element: ElementType,
    pub heads: usize,
    pub dim: usize,
    /// Rows of a contiguous cache, or slots of all blocks.
    pub slots: usize,
    /// The sequence's rows begin this many elements into the buffer.
    pub offset: usize,
    pub table: Option<Vec<u32>>,
}

impl Cache {
    /// Elements that the cache takes, its offset included; `None` where values lie among the keys.
    pub fn len(&self, half: Half) -> Option<usize> {
        let one = self.shape.batch() * self.slots * self.heads * self.dim;
        match half {
            Half::Keys if self.shape.is_packed() => Some(self.offset + 2 * one),
            Half::Keys => Some(self.offset + one),
            Half::Values if self.shape.is_packed() || !self.shape.has_values() => None,
            Half::Values => Some(self.offset + one),
        }
    }

    /// The index of one element, by the shape's own formula.
    pub fn index(&self, half: Half, batch: usize, head: usize, row: usize, dim: usize) -> usize {
        let (heads, dims, slots) = (self.heads, self.dim, self.slots);
        let (block, inside) = match (&self.table, self.shape.block()) {
            (Some(table), Some(block)) => (table[row / block] as usize, row % block),
            _ => (0, row),
        };
        let value = usize::from(half == Half::Values);
        let x = 16 / self.element.size();
        self.offset
            + match self.shape {
                Shape::Bhsd => ((batch * heads + head) * slots + row) * dims + dim,
                Shape::Bshd => ((batch * slots + row) * heads + head) * dims + dim,
                Shape::Slots | Shape::Mla => (block * heads + head) * dims + dim,
                Shape::Nhd => ((block * BLOCK + inside) * heads + head) * dims + dim,
                Shape::Hnd => ((block * heads + head) * BLOCK + inside) * dims + dim,
                Shape::XPacked if half == Half::Values => {
                    ((block * heads + head) * dims + dim) * BLOCK + inside
                }
                Shape::XPacked => {
                    (((block * heads + head) * (dims / x) + dim / x) * BLOCK + inside) * x + dim % x
                }
                Shape::PackedPages => {
                    (((block * 2 + value) * BLOCK + inside) * heads + head) * dims + dim
                }
                Shape::PackedDims => (row * heads + head) * 2 * dims + value * dims + dim,
            }
    }

    /// Where each dimension of a head vector is, counted from its first: the same in all of them.
    pub fn dims(&self, half: Half) -> Vec<usize> {
        let first = self.index(half, 0, 0, 0, 0);
        let dims = (0..self.dim).map(|dim| self.index(half, 0, 0, 0, dim) - first);
        dims.collect()
    }

    /// What an element of the buffer of keys, or of values, is: the slow way round, for failures.
    pub fn place(&self, half: Half, element: usize) -> String {
        let rows = match (&self.table, self.shape.block()) {
            (Some(table), Some(block)) => table.len() * block,
            _ => self.slots,
        };
        let both = [Half::Keys, Half::Values];
        let halves = both.iter().filter(|&&other| {
            // In one buffer.
            other == half || self.shape.is_packed()
        });
        for &half in halves {
            for batch in 0..self.shape.batch() {
                for head in 0..self.heads {
                    for row in 0..rows {
                        let mut dims = 0..self.dim;
                        let found =
                            dims.find(|&dim| self.index(half, batch, head, row, dim) == element);
                        if let Some(dim) = found {
                            return format!(
                                "{half:?} of row {row}, batch {batch}, head {head}, dimension {dim}"
                            );
                        }
                    }
                }
            }
        }
        "of no row of the sequence".into()
    }

    /// What the crate is told.
    pub fn layout(&self) -> CacheLayout<'_> {
        let (element, heads, dim, slots) = (self.element, self.heads, self.dim, self.slots);
        let blocks = slots / self.shape.block().unwrap_or(1);
        let x = 16 / element.size();
        let layout: CacheLayout = match self.shape {
            Shape::Bhsd => KeyLayout::bhsd(element, [self.shape.batch(), heads, slots, dim]).into(),
            Shape::Bshd => KeyLayout::bshd(element, [self.shape.batch(), slots, heads, dim]).into(),
            Shape::Slots => KeyLayout::slots(element, [slots, heads, dim]).into(),
            Shape::Nhd => KeyLayout::nhd(element, [blocks, BLOCK, heads, dim]).into(),
            Shape::Hnd => KeyLayout::hnd(element, [blocks, heads, BLOCK, dim]).into(),
            Shape::XPacked => CacheLayout::new(
                KeyLayout::x_packed(element, [blocks, heads, dim / x, BLOCK, x]),
                KeyLayout::x_packed(element, [blocks, heads, dim, BLOCK, 1]),
            ),
            Shape::PackedPages => KeyLayout::packed_nhd(element, [blocks, BLOCK, heads, dim]),
            Shape::PackedDims => {
                let both = KeyLayout::bshd(element, [1, slots, heads, 2 * dim]);
                CacheLayout::new(
                    both.narrow_dims(0..dim).expect("the first half"),
                    both.narrow_dims(dim..2 * dim).expect("the second half"),
                )
            }
            Shape::Mla => CacheLayout::keys_only(KeyLayout::slots(element, [slots, 1, dim])),
        };
        let layout = layout.with_offset(self.offset);
        match &self.table {
            Some(table) => layout.with_table(table),
            None => layout,
        }
    }
}
