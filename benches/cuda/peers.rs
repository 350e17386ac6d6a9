//! What others do for the same edit: two rotations in bf16, a launch a layer, the whole cache.

use bytemuck::cast_slice;
use half::bf16;
use pie_rope::{ElementType, Pairing, Plan, Result, Rotations};

use crate::case::{Caches, Change, Lie, Model, Verb, whole_cache};
use crate::check;
use crate::gpu::{Arena, Gpu, TwoTurns};

/// Seconds that the same turn takes in one call, and as others do it.
pub struct Times {
    pub one_call: f64,
    pub call_a_layer: f64,
    /// `None`: the device has no instructions for bf16.
    pub two_turns: Option<f64>,
    pub whole_cache: f64,
}

/// Keys as LMCache stages them: all layers' rows that are affected, one after the other, with their positions.
pub struct Staged<'m> {
    pub model: &'m Model,
    keys: u64,
    positions: [u64; 2],
    table: u64,
    /// Of one layer: positions before and after.
    rows: Vec<(usize, usize)>,
}

impl<'m> Staged<'m> {
    /// Bytes besides the keys.
    fn room(model: &Model, rows: usize) -> usize {
        2 * 8 * model.layers * rows + 2 * model.rope.rotary_dim() * (rows + 1) + (1 << 10)
    }

    fn new(
        gpu: &Gpu,
        arena: &mut Arena,
        model: &'m Model,
        keys: u64,
        rotations: &Rotations,
    ) -> Result<Staged<'m>> {
        let spans = rotations.spans().iter();
        let rows: Vec<_> = spans
            .flat_map(|span| (0..span.len).map(|row| (span.src + row, span.dst + row)))
            .collect();
        let mut upload = |position: fn(&(usize, usize)) -> usize| {
            let one: Vec<u64> = rows.iter().map(|row| position(row) as u64).collect();
            let all = one.repeat(model.layers);
            let address = arena.take(size_of_val(&all[..]));
            gpu.upload(address, &all);
            address
        };
        let positions = [upload(|row| row.0), upload(|row| row.1)];

        // A turn from position 0 to each other one is what a table of all positions holds; to 0 itself it is none.
        let last = rotations.old_rows().max(rotations.new_rows()) as i32;
        let all: Vec<i32> = (1..last).collect();
        let plan = Plan::from_positions(&vec![0; all.len()], &all)?;
        let pairs = model.rope.pairs();
        let mut table = vec![bf16::ONE; pairs];
        table.resize(2 * pairs, bf16::ZERO);
        let turns = Rotations::new(&plan, &model.rope)?;
        let numbers = turns.tables()[0].as_slice().iter();
        table.extend(numbers.map(|&number| bf16::from_f32(number)));
        let address = arena.take(size_of_val(&table[..]));
        gpu.upload(address, cast_slice::<bf16, u16>(&table));
        Ok(Staged {
            model,
            keys,
            positions,
            table: address,
            rows,
        })
    }

    pub fn tokens(&self) -> usize {
        self.model.layers * self.rows.len()
    }

    pub fn token_bytes(&self) -> usize {
        self.model.key_bytes(ElementType::BF16, 1) / self.model.layers
    }

    pub fn row(&self, token: usize) -> (usize, usize) {
        self.rows[token % self.rows.len()]
    }

    pub fn address(&self, token: usize) -> u64 {
        self.keys + (token * self.token_bytes()) as u64
    }

    /// Turns all, or turns them back.
    pub fn call(&self, gpu: &Gpu, back: bool) {
        let Model {
            heads, dim, rope, ..
        } = self.model;
        let (step, partner) = match rope.pairing() {
            Pairing::HalfSplit => (1, rope.pairs()),
            Pairing::Interleaved => (2, 1),
        };
        let [from, to] = self.positions;
        let call = TwoTurns {
            keys: self.keys,
            old_positions: if back { to } else { from },
            new_positions: if back { from } else { to },
            table: self.table,
            heads: *heads as u32,
            dims: *dim as u32,
            window: rope.offset() as u32,
            pairs: rope.pairs() as u32,
            step,
            partner: partner as u32,
        };
        // SAFETY: keys, positions and table have been made for so many tokens.
        unsafe { gpu.two_turns(self.tokens(), call) };
    }
}

/// Bytes that the comparison takes.
pub fn room(model: &Model, rows: usize) -> usize {
    model.key_bytes(ElementType::BF16, rows) + Staged::room(model, rows)
}

/// Times them, on keys in bf16 whose rows lie as `[1, seq, heads, dim]`.
pub fn measure(
    gpu: &Gpu,
    model: &Model,
    rows: usize,
    change: Change,
    rounds: usize,
) -> std::result::Result<Times, String> {
    let refused = |error: pie_rope::Error| error.to_string();
    let turns = change.there_and_back(&model.rope, rows).map_err(refused)?;
    let all = whole_cache(&model.rope, rows).map_err(refused)?;
    let mut arena = gpu.arena();
    let element = ElementType::BF16;
    let caches = Caches::new(&mut arena, Verb::Rotate, model, element, Lie::Rows, rows);
    let one_call = |round: usize| caches.call(gpu, &turns[round % 2]);
    let call_a_layer = |round: usize| {
        (0..model.layers).for_each(|layer| {
            caches.call_on(gpu, &turns[round % 2], layer..layer + 1);
        });
    };
    let whole_cache = |round: usize| caches.call(gpu, &all[round % 2]);
    let mut jobs: Vec<&dyn Fn(usize)> = vec![&one_call, &call_a_layer, &whole_cache];
    // In the memory of the cache, whose layers follow each other.
    let keys = caches.first.layers[0].keys;
    let staged = Staged::new(gpu, &mut arena, model, keys, &turns[0]).map_err(refused)?;
    let two_turns = |round: usize| staged.call(gpu, round % 2 == 1);
    if gpu.has_two_turns() {
        check::two_turns(gpu, &staged)?;
        jobs.push(&two_turns);
    }
    let times = gpu.in_turns(rounds, &jobs);
    Ok(Times {
        one_call: times[0],
        call_a_layer: times[1],
        whole_cache: times[2],
        two_turns: times.get(3).copied(),
    })
}
