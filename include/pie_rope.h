/*
 * pie-rope: turns the cached rotary keys of an edited context to their new positions, in place.
 *
 * Made from src/capi by cbindgen: UPDATE=1 cargo test --features capi --test capi_header.
 *
 * - Functions that can fail return a status: PIE_ROPE_OK, which is 0, or what went wrong.
 *   pie_rope_last_error() says it in words. A call that fails has written nothing, and made nothing, but for
 *   PIE_ROPE_ERROR_PANIC.
 * - What a function makes it writes to `out`; the caller frees it with the function of its type that ends in _free.
 * - Structs that start with struct_size must say their own size: { .struct_size = sizeof(pie_rope_layout), ... }.
 *   Where they are elements of an array, each of them does.
 * - Pointers must be valid during the call for what the function reads or writes there, and need not be longer.
 *   Those to handles come from this library. Null, a wrong size and an unknown constant are refused by name.
 * - No two buffers of a call overlap, except that a layer's keys and values may be one buffer, and that source and
 *   destination of a copy may be the same layers; both are then checked.
 * - A handle may be used by several threads at once, but for pie_rope_rotations_update and the functions that
 *   free. Nobody else touches a cache's buffers during a call; on CUDA, order what does by streams.
 */

#ifndef PIE_ROPE_H
#define PIE_ROPE_H

#include <stddef.h>
#include <stdint.h>

// It worked.
#define PIE_ROPE_OK 0

// An argument is null, of the wrong size, of an unknown value, or does not fit the others.
#define PIE_ROPE_ERROR_ARGUMENT 1

// A rope cannot be built from these numbers.
#define PIE_ROPE_ERROR_ROPE 2

// A `config.json` cannot be read as a rope.
#define PIE_ROPE_ERROR_CONFIG 3

// An edit does not fit the sequence or another edit.
#define PIE_ROPE_ERROR_EDIT 4

// No plan can be made from these positions or rows.
#define PIE_ROPE_ERROR_PLAN 5

// A layout does not describe rows that lie apart and inside the buffer.
#define PIE_ROPE_ERROR_LAYOUT 6

// There is no driver, or no such device.
#define PIE_ROPE_ERROR_NO_ADAPTER 7

// A limit of the device, the system or the kernels that the call would go past.
#define PIE_ROPE_ERROR_LIMIT 8

// The device, or the host, has not the memory that the call takes. Each call asks before its work, so only where
// another thread takes the memory in between does the process end.
#define PIE_ROPE_ERROR_OUT_OF_MEMORY 9

// The device is gone.
#define PIE_ROPE_ERROR_DEVICE_LOST 10

// The device, or its driver, refused something.
#define PIE_ROPE_ERROR_DEVICE 11

// A fault of this library: a Rust panic, stopped at the boundary. What the call was to write may be half written.
#define PIE_ROPE_ERROR_PANIC 12

// Dimensions `i` and `i + n` turn together ("NeoX", "rotate half"; `LLAMA_ROPE_TYPE_NEOX`).
#define PIE_ROPE_HALF_SPLIT 0

// Dimensions `2i` and `2i + 1` turn together ("GPT-J"; `LLAMA_ROPE_TYPE_NORM`).
#define PIE_ROPE_INTERLEAVED 1

// IEEE binary32.
#define PIE_ROPE_F32 0

// IEEE binary16.
#define PIE_ROPE_F16 1

// bfloat16: the upper half of a binary32.
#define PIE_ROPE_BF16 2

// The CPU backend. All verbs check all of their arguments before they write: a refused call has written nothing.
typedef struct pie_rope_cpu pie_rope_cpu;

#if defined(PIE_ROPE_CUDA)
// The CUDA backend of one context. All verbs check all of their arguments before they launch anything: a refused
// call has written nothing.
typedef struct pie_rope_cuda pie_rope_cuda;
#endif

// What has to happen to a cached sequence so that it becomes the new one: which rows survive, where they go, by how
// much they turn, and which are to be encoded. A row is what one token left in one layer.
typedef struct pie_rope_plan pie_rope_plan;

// The rotary encoding of every layer of a model.
typedef struct pie_rope_rope pie_rope_rope;

// A plan made ready for the kernels, for one model. Made once, used for all of its layers.
typedef struct pie_rope_rotations pie_rope_rotations;

// Replace the old tokens `start` to `end`, half open, by `inserted` new ones. `start == end` inserts before that
// token, `inserted` 0 deletes. All edits of a list are in old coordinates: the indices before any of them.
typedef struct pie_rope_edit {
  // `sizeof(pie_rope_edit)`.
  size_t struct_size;
  // First old token to remove.
  size_t start;
  // The old token behind the last one to remove.
  size_t end;
  // How many new tokens take their place.
  size_t inserted;
} pie_rope_edit;

// Shift the positions `p0` to `p1`, half open, by `delta`, as `llama_memory_seq_add(p0, p1, delta)` does: a negative
// `p0` is 0, a negative `p1` has no end.
typedef struct pie_rope_delta {
  // `sizeof(pie_rope_delta)`.
  size_t struct_size;
  // First position.
  int32_t p0;
  // The position behind the last one.
  int32_t p1;
  // By how much.
  int32_t delta;
} pie_rope_delta;

// A run of rows that the engine has to encode.
typedef struct pie_rope_new_span {
  // First row, counted after the edit: also the index of its token among the new ones.
  size_t row;
  // How many rows.
  size_t len;
  // Position of the first row.
  int32_t position;
} pie_rope_new_span;

// A run of rows that survive: `len` rows from `src` go to `dst`, and from position `old_position` on to
// `new_position` on.
typedef struct pie_rope_span {
  // First row before.
  size_t src;
  // First row after.
  size_t dst;
  // How many rows.
  size_t len;
  // Position of the first row before.
  int32_t old_position;
  // Position of the first row after.
  int32_t new_position;
} pie_rope_span;

// One axis of a layout.
typedef struct pie_rope_axis {
  // How many indices.
  size_t len;
  // Distance between two neighbours, in elements. Of no account if there is one index.
  size_t stride;
} pie_rope_axis;

// How the keys, or the values, of a layer lie in their buffer. All counts and strides are in elements, never in
// bytes:
//
//     element(batch, head, row, dim) = offset + batch * batch.stride + block(row) * blocks.stride
//         + (row % rows.len) * rows.stride + head * heads.stride + (dim / pack) * packs.stride + dim % pack
//     block(row) = table[row / rows.len], or row / rows.len without a table
//
// A contiguous cache is one block that holds every row, a head vector without gaps one pack. Rows that overlap are
// refused.
typedef struct pie_rope_layout {
  // `sizeof(pie_rope_layout)`.
  size_t struct_size;
  // `PIE_ROPE_F32`, `PIE_ROPE_F16` or `PIE_ROPE_BF16`.
  int32_t element;
  // Elements before the first one.
  size_t offset;
  // Sequences that lie side by side and are edited alike.
  struct pie_rope_axis batch;
  // Blocks (pages).
  struct pie_rope_axis blocks;
  // Rows inside a block.
  struct pie_rope_axis rows;
  // Heads.
  struct pie_rope_axis heads;
  // Packs of neighbouring dimensions.
  struct pie_rope_axis packs;
  // Dimensions in a pack, contiguous in memory.
  size_t pack;
  // The block table, in host memory, also for CUDA; null if blocks are in order. Read during the call alone.
  const uint32_t *table;
  // How many entries it has.
  size_t table_len;
} pie_rope_layout;

// The buffers of one layer.
typedef struct pie_rope_layer {
  // `sizeof(pie_rope_layer)`.
  size_t struct_size;
  // The key buffer.
  void *keys;
  // Its length in elements.
  size_t keys_len;
  // The value buffer: null if there are none, equal to `keys` if one buffer holds both.
  void *values;
  // Its length in elements.
  size_t values_len;
} pie_rope_layer;

// A cache in the memory of the CPU: every layer, and how it lies.
typedef struct pie_rope_cache {
  // `sizeof(pie_rope_cache)`.
  size_t struct_size;
  // How the keys of every layer lie.
  const struct pie_rope_layout *keys;
  // How the values lie, in elements of the keys' type: null if there are none, or the keys' own layout again.
  const struct pie_rope_layout *values;
  // The layers, in the order of the model, no buffer twice. To copy from a layer, it is only read.
  const struct pie_rope_layer *layers;
  // How many.
  size_t layers_len;
} pie_rope_cache;

#if defined(PIE_ROPE_CUDA)
// The buffers of one layer in device memory.
typedef struct pie_rope_cuda_layer {
  // `sizeof(pie_rope_cuda_layer)`.
  size_t struct_size;
  // The key buffer: a `CUdeviceptr`.
  uint64_t keys;
  // Its length in elements; `SIZE_MAX`: not checked.
  size_t keys_len;
  // The value buffer: 0 if there are none, equal to `keys` if one buffer holds both.
  uint64_t values;
  // Its length in elements; `SIZE_MAX`: not checked.
  size_t values_len;
} pie_rope_cuda_layer;
#endif

#if defined(PIE_ROPE_CUDA)
// A cache in device memory: every layer, and how it lies.
typedef struct pie_rope_cuda_cache {
  // `sizeof(pie_rope_cuda_cache)`.
  size_t struct_size;
  // How the keys of every layer lie.
  const struct pie_rope_layout *keys;
  // How the values lie, in elements of the keys' type: null if there are none, or the keys' own layout again.
  const struct pie_rope_layout *values;
  // The layers, in host memory, in the order of the model, no buffer twice.
  const struct pie_rope_cuda_layer *layers;
  // How many.
  size_t layers_len;
} pie_rope_cuda_cache;
#endif

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library, `major.minor.patch`. The string is static.
const char *pie_rope_version(void);

// What a status means, in a few words. The string is static, also for a status that does not exist.
const char *pie_rope_status_string(int32_t status);

// What went wrong in this thread's last call that failed, in words: which argument, and why. Empty if none has.
// The string stays as it is until the next call of this thread that fails.
const char *pie_rope_last_error(void);

// A model's ropes from its published `config.json`, a string that ends with a zero. Pairs and offset are those of the
// checkpoint, which a cache may have changed: see `pie_rope_rope_with_pairing`. Layers that share the keys of another
// are counted as well; their one buffer is given once, with `pie_rope_rotations_select`.
int32_t pie_rope_rope_from_config_json(const char *json,
                                       struct pie_rope_rope **out);

// As `pie_rope_rope_from_config_json`, with the frequencies that the model uses when the sequence is `tokens` long:
// they depend on it under LongRoPE and dynamic NTK. See `pie_rope_rotations_between`. llama.cpp goes by the size of
// its context, once and for all, however long the text is: give it `n_ctx_seq`.
int32_t pie_rope_rope_from_config_json_at(const char *json,
                                          size_t tokens,
                                          struct pie_rope_rope **out);

// The same plain rope in each of `layers` layers: dimensions `offset` to `offset + rotary_dim` of every head turn,
// pair `i` of them with the inverse frequency `theta^(-2i / rotary_dim)`.
int32_t pie_rope_rope_from_theta(double theta,
                                 size_t rotary_dim,
                                 int32_t pairing,
                                 size_t offset,
                                 size_t layers,
                                 struct pie_rope_rope **out);

// As `pie_rope_rope_from_theta`, from the inverse frequency of each of `pairs` pairs: for scalings of one's own,
// such as llama.cpp's `freq_scale` (each frequency times it) and `freq_factors` (each divided by its own).
int32_t pie_rope_rope_from_inv_freq(const double *inv_freq,
                                    size_t pairs,
                                    int32_t pairing,
                                    size_t offset,
                                    size_t layers,
                                    struct pie_rope_rope **out);

// As `pie_rope_rope_from_theta`, slowed by YaRN: pairs that make more than `beta_fast` turns over `original_context`
// tokens keep their frequency, those that make fewer than `beta_slow` have it divided by `factor`, and a ramp joins
// them. llama.cpp calls these `rope_freq_base`, `yarn_beta_fast`, `n_ctx_orig_yarn`, `yarn_beta_slow`, and
// `1 / rope_freq_scale`; its `yarn_ext_factor` must be 1.
int32_t pie_rope_rope_from_yarn(double theta,
                                size_t rotary_dim,
                                double factor,
                                size_t original_context,
                                double beta_fast,
                                double beta_slow,
                                int32_t pairing,
                                size_t offset,
                                size_t layers,
                                struct pie_rope_rope **out);

// A model whose layer `i` turns as layer `i` of `layers[i]`; null: as one that has no rope.
int32_t pie_rope_rope_from_layers(const struct pie_rope_rope *const *layers,
                                  size_t layers_len,
                                  struct pie_rope_rope **out);

// A copy of a rope with other pairs, for a cache that keeps the dimensions of a head in another order than the
// checkpoint does. llama.cpp's is that of `llama_model_rope_type`: `LLAMA_ROPE_TYPE_NORM`, which the Llama
// architecture has though its `config.json` says half-split, is `PIE_ROPE_INTERLEAVED`, all others, for text,
// `PIE_ROPE_HALF_SPLIT`.
int32_t pie_rope_rope_with_pairing(const struct pie_rope_rope *rope,
                                   int32_t pairing,
                                   struct pie_rope_rope **out);

// A copy of a rope that turns the dimensions from `offset` on, for a cache that keeps something else before them than
// the checkpoint does. Under multi-head latent attention a `config.json`'s is for rows with the latent dimensions
// first: it is 0 if the turned ones lie by themselves, or first, and `qk_nope_head_dim` in whole keys.
int32_t pie_rope_rope_with_offset(const struct pie_rope_rope *rope,
                                  size_t offset,
                                  struct pie_rope_rope **out);

// How many layers the model has.
int32_t pie_rope_rope_layers(const struct pie_rope_rope *rope, size_t *layers);

// Which dimensions of a head a layer turns, `rotary_dim` of them from `offset` on, and in which pairs; all are 0 for a
// layer that has no rope.
int32_t pie_rope_rope_window(const struct pie_rope_rope *rope,
                             size_t layer,
                             int32_t *pairing,
                             size_t *offset,
                             size_t *rotary_dim);

// The inverse frequencies of a layer, one for each pair: writes at most `capacity` of them, and to `len` how many
// there are, 0 for a layer that has no rope. `inv_freq` may be null if `capacity` is 0.
int32_t pie_rope_rope_inv_freq(const struct pie_rope_rope *rope,
                               size_t layer,
                               double *inv_freq,
                               size_t capacity,
                               size_t *len);

// Frees a rope. Null is fine.
void pie_rope_rope_free(struct pie_rope_rope *rope);

// The plan of `edits_len` edits to `rows` tokens, of which token `i` lies in row `i`, at position
// `first_position + i`.
int32_t pie_rope_plan_from_edits(int32_t first_position,
                                 size_t rows,
                                 const struct pie_rope_edit *edits,
                                 size_t edits_len,
                                 struct pie_rope_plan **out);

// The plan from old tokens, token `i` in row `i` at position `i`, to new ones: their difference becomes edits. A token
// may be any number, such as a `llama_token`.
int32_t pie_rope_plan_from_tokens(const int32_t *old_tokens,
                                  size_t old_len,
                                  const int32_t *new_tokens,
                                  size_t new_len,
                                  struct pie_rope_plan **out);

// Rows stay where they are and turn: row `i` goes from position `old_positions[i]` to `new_positions[i]`. A row whose
// two positions are both negative, such as -1, is left alone: it is free, or another sequence's.
int32_t pie_rope_plan_from_positions(const int32_t *old_positions,
                                     const int32_t *new_positions,
                                     size_t rows,
                                     struct pie_rope_plan **out);

// Cells stay where they are and turn, as after llama.cpp's `seq_add`: cell `i` is at position `positions[i]`
// (`positions` null: at position `i`) and turns by the sum of the deltas whose range it is in. All ranges are of
// positions before the call, not of those that an earlier delta of the list leads to.
//
// A cell at a negative position is left alone, whatever becomes of the rope: give -1 for those that are free, as
// llama.cpp does, and for those of other sequences. (`pie_rope_plan_kept` does not have them.) A cell whose position
// would become negative is refused, not removed. To delete tokens: `seq_rm(p0, p1)`, then this with
// `{p1, -1, p0 - p1}`. One `seq_add` after another is one plan after another: see `pie_rope_plan_then`.
int32_t pie_rope_plan_from_deltas(const int32_t *positions,
                                  size_t rows,
                                  const struct pie_rope_delta *deltas,
                                  size_t deltas_len,
                                  struct pie_rope_plan **out);

// Cells stay where they are and turn, as after llama.cpp's `seq_div`, which self-extended attention uses: cell `i` is at
// position `positions[i]`, and where that is in `p0` to `p1`, half open, it goes to its quotient by `divisor`, rounded
// down. A negative `p0` is 0, a negative `p1` has no end. Cells at negative positions are left alone, as by
// `pie_rope_plan_from_deltas`.
int32_t pie_rope_plan_from_division(const int32_t *positions,
                                    size_t rows,
                                    int32_t p0,
                                    int32_t p1,
                                    int32_t divisor,
                                    struct pie_rope_plan **out);

// Eviction: of `rows` rows, row `i` at position `i`, those in `kept`, ascending, stay, moved together, and are
// numbered anew from position 0 on.
int32_t pie_rope_plan_from_kept(size_t rows,
                                const size_t *kept,
                                size_t kept_len,
                                struct pie_rope_plan **out);

// Eviction with the positions given: of `rows` rows, row `i` at position `old_positions[i]`, those in `kept`,
// ascending, stay, moved together, and row `kept[i]` goes to position `new_positions[i]`. Where that is where it was,
// it moves and does not turn.
int32_t pie_rope_plan_from_kept_at(const int32_t *old_positions,
                                   size_t rows,
                                   const size_t *kept,
                                   const int32_t *new_positions,
                                   size_t kept_len,
                                   struct pie_rope_plan **out);

// One plan, then the next, as one that turns every key once.
int32_t pie_rope_plan_then(const struct pie_rope_plan *plan,
                           const struct pie_rope_plan *next,
                           struct pie_rope_plan **out);

// The same turns without the moves: for an engine that has brought the rows to their new places already.
int32_t pie_rope_plan_in_place(const struct pie_rope_plan *plan, struct pie_rope_plan **out);

// How many rows the sequence has before and after, those to encode included.
int32_t pie_rope_plan_rows(const struct pie_rope_plan *plan, size_t *old_rows, size_t *new_rows);

// What is left to encode, in order, which may be behind the last row that there was: that a cache has room for
// `new_rows` is the engine's to see to. Writes at most `capacity` spans, and to `len` how many there are. `spans` may be
// null if `capacity` is 0.
int32_t pie_rope_plan_new_spans(const struct pie_rope_plan *plan,
                                struct pie_rope_new_span *spans,
                                size_t capacity,
                                size_t *len);

// The rows that survive, in order: writes at most `capacity` spans, and to `len` how many there are. `spans` may be
// null if `capacity` is 0.
int32_t pie_rope_plan_kept(const struct pie_rope_plan *plan,
                           struct pie_rope_span *spans,
                           size_t capacity,
                           size_t *len);

// Frees a plan. Null is fine. Rotations made from it live on.
void pie_rope_plan_free(struct pie_rope_plan *plan);

// The rotations of a plan. A verb then takes exactly the model's layers, in order; see `pie_rope_rotations_select`.
int32_t pie_rope_rotations_new(const struct pie_rope_plan *plan,
                               const struct pie_rope_rope *rope,
                               struct pie_rope_rotations **out);

// For a model whose frequencies changed between the time the keys were encoded and now (LongRoPE's switch, dynamic
// NTK): rows whose position stays turn as well.
int32_t pie_rope_rotations_between(const struct pie_rope_plan *plan,
                                   const struct pie_rope_rope *old_rope,
                                   const struct pie_rope_rope *new_rope,
                                   struct pie_rope_rotations **out);

// The same ropes with another plan, in the same memory. No other thread may use the rotations meanwhile.
int32_t pie_rope_rotations_update(struct pie_rope_rotations *rotations, const struct pie_rope_plan *plan);

// The same rotations for some of the model's layers, in the order given: for a pipeline stage, or a group of layers
// with a common layout.
int32_t pie_rope_rotations_select(const struct pie_rope_rotations *rotations,
                                  const size_t *layers,
                                  size_t layers_len,
                                  struct pie_rope_rotations **out);

// The same rotations without the rows before `row`, counted after the edit: for a copy between sequences that share
// the pages of their first rows, which must neither turn nor move.
int32_t pie_rope_rotations_starting_at(const struct pie_rope_rotations *rotations,
                                       size_t row,
                                       struct pie_rope_rotations **out);

// The same rotations without the rows that neither turn nor move: what a splice touches. A copy of these alone is for
// a destination that holds all others already.
int32_t pie_rope_rotations_affected_only(const struct pie_rope_rotations *rotations,
                                         struct pie_rope_rotations **out);

// Frees rotations. Null is fine. A CUDA call that was launched with them does not need them.
void pie_rope_rotations_free(struct pie_rope_rotations *rotations);

// Fills `layout`, whose `struct_size` the caller has set, with `[batch, heads, rows, dim]`, as Hugging Face
// transformers keeps it.
int32_t pie_rope_layout_bhsd(int32_t element,
                             size_t batch,
                             size_t heads,
                             size_t rows,
                             size_t dim,
                             struct pie_rope_layout *layout);

// Fills `layout`, whose `struct_size` the caller has set, with `[batch, rows, heads, dim]`, as FlashAttention and
// llama.cpp keep it.
int32_t pie_rope_layout_bshd(int32_t element,
                             size_t batch,
                             size_t rows,
                             size_t heads,
                             size_t dim,
                             struct pie_rope_layout *layout);

// Fills `layout`, whose `struct_size` the caller has set, with pages `[blocks, block, heads, dim]`, as vLLM and
// FlashInfer (NHD) keep them. Set `table` and `table_len` afterwards.
int32_t pie_rope_layout_nhd(int32_t element,
                            size_t blocks,
                            size_t block,
                            size_t heads,
                            size_t dim,
                            struct pie_rope_layout *layout);

// Fills `layout`, whose `struct_size` the caller has set, with pages `[blocks, heads, block, dim]`, as TensorRT-LLM
// and FlashInfer (HND) keep them. Set `table` and `table_len` afterwards.
int32_t pie_rope_layout_hnd(int32_t element,
                            size_t blocks,
                            size_t heads,
                            size_t block,
                            size_t dim,
                            struct pie_rope_layout *layout);

// Fills `layout`, whose `struct_size` the caller has set, with `[slots, heads, dim]`, a row in each, as SGLang keeps
// it. Set `table` (a slot for each row) and `table_len` afterwards.
int32_t pie_rope_layout_slots(int32_t element,
                              size_t slots,
                              size_t heads,
                              size_t dim,
                              struct pie_rope_layout *layout);

// Fills `layout`, whose `struct_size` the caller has set, with keys `[blocks, heads, packs, block, x]`, `packs * x`
// dimensions to a head, as vLLM's older kernels keep them. Set `table` and `table_len` afterwards.
int32_t pie_rope_layout_x_packed(int32_t element,
                                 size_t blocks,
                                 size_t heads,
                                 size_t packs,
                                 size_t block,
                                 size_t x,
                                 struct pie_rope_layout *layout);

// Fills `layout`, whose `struct_size` the caller has set, with values `[heads, dim, rows]`: rows innermost, as
// llama.cpp keeps values without flash attention.
int32_t pie_rope_layout_transposed(int32_t element,
                                   size_t heads,
                                   size_t dim,
                                   size_t rows,
                                   struct pie_rope_layout *layout);

// The CPU backend, on `threads` threads; 0: on all cores. One that is kept is cheaper than one for each call.
//
// Threads do not survive a `fork`: the child makes a backend of its own, of a number of threads that is not 0.
int32_t pie_rope_cpu_new(size_t threads,
                         struct pie_rope_cpu **out);

// Turns keys where they lie: row `src` of every span of the plan. Values are not looked at.
int32_t pie_rope_cpu_rotate(const struct pie_rope_cpu *cpu,
                            const struct pie_rope_rotations *rotations,
                            const struct pie_rope_cache *cache);

// Moves rows inside their buffers and turns keys on the way; safe for moves that overlap.
int32_t pie_rope_cpu_splice(const struct pie_rope_cpu *cpu,
                            const struct pie_rope_rotations *rotations,
                            const struct pie_rope_cache *cache);

// Copies every row that the plan keeps to other buffers and turns keys on the way.
int32_t pie_rope_cpu_copy(const struct pie_rope_cpu *cpu,
                          const struct pie_rope_rotations *rotations,
                          const struct pie_rope_cache *src,
                          const struct pie_rope_cache *dst);

// Copies every row that the plan keeps to other pages, or another part, of the same buffers: to where the layouts
// `dst_keys` and `dst_values` (null where the cache has no values) say.
int32_t pie_rope_cpu_copy_within(const struct pie_rope_cpu *cpu,
                                 const struct pie_rope_rotations *rotations,
                                 const struct pie_rope_cache *cache,
                                 const struct pie_rope_layout *dst_keys,
                                 const struct pie_rope_layout *dst_values);

// Frees a CPU backend. Null is fine.
void pie_rope_cpu_free(struct pie_rope_cpu *cpu);

#if defined(PIE_ROPE_CUDA)
// The CUDA backend on the context that is current on the calling thread (the runtime API's, after any call of it
// that touches the device). The context must live as long as the backend; it is not retained.
int32_t pie_rope_cuda_new_current(struct pie_rope_cuda **out);
#endif

#if defined(PIE_ROPE_CUDA)
// The CUDA backend on the primary context of device `ordinal`, which it retains.
int32_t pie_rope_cuda_open(size_t ordinal, struct pie_rope_cuda **out);
#endif

#if defined(PIE_ROPE_CUDA)
// Loads the kernels for an element type, which the first call would do else. Needed before the first call that a
// stream captures.
int32_t pie_rope_cuda_prepare(const struct pie_rope_cuda *cuda,
                              int32_t element);
#endif

#if defined(PIE_ROPE_CUDA)
// Bytes of workspace that any verb on `src` takes at most with these rotations, 0 for most edits. `dst`: where a
// copy goes to; null for other verbs.
int32_t pie_rope_cuda_workspace_len(const struct pie_rope_cuda *cuda,
                                    const struct pie_rope_rotations *rotations,
                                    const struct pie_rope_cuda_cache *src,
                                    const struct pie_rope_cuda_cache *dst,
                                    size_t *len);
#endif

#if defined(PIE_ROPE_CUDA)
// As `pie_rope_cpu_rotate`, launched into `stream` (a `CUstream` or `cudaStream_t` of the backend's context; null:
// the default one). `workspace` is a device address, a multiple of 16, of `workspace_len` bytes; 0 and 0 if
// `pie_rope_cuda_workspace_len` asks for none. The call waits for nothing; what it takes by pointer in host memory
// may be freed when it returns.
int32_t pie_rope_cuda_rotate(const struct pie_rope_cuda *cuda,
                             void *stream,
                             const struct pie_rope_rotations *rotations,
                             const struct pie_rope_cuda_cache *cache,
                             uint64_t workspace,
                             size_t workspace_len);
#endif

#if defined(PIE_ROPE_CUDA)
// As `pie_rope_cpu_splice`, launched into `stream`. See `pie_rope_cuda_rotate` for the arguments.
int32_t pie_rope_cuda_splice(const struct pie_rope_cuda *cuda,
                             void *stream,
                             const struct pie_rope_rotations *rotations,
                             const struct pie_rope_cuda_cache *cache,
                             uint64_t workspace,
                             size_t workspace_len);
#endif

#if defined(PIE_ROPE_CUDA)
// As `pie_rope_cpu_copy`, launched into `stream`. See `pie_rope_cuda_rotate` for the arguments.
int32_t pie_rope_cuda_copy(const struct pie_rope_cuda *cuda,
                           void *stream,
                           const struct pie_rope_rotations *rotations,
                           const struct pie_rope_cuda_cache *src,
                           const struct pie_rope_cuda_cache *dst,
                           uint64_t workspace,
                           size_t workspace_len);
#endif

#if defined(PIE_ROPE_CUDA)
// As `pie_rope_cpu_copy_within`, launched into `stream`. See `pie_rope_cuda_rotate` for the arguments.
int32_t pie_rope_cuda_copy_within(const struct pie_rope_cuda *cuda,
                                  void *stream,
                                  const struct pie_rope_rotations *rotations,
                                  const struct pie_rope_cuda_cache *cache,
                                  const struct pie_rope_layout *dst_keys,
                                  const struct pie_rope_layout *dst_values,
                                  uint64_t workspace,
                                  size_t workspace_len);
#endif

#if defined(PIE_ROPE_CUDA)
// Frees a CUDA backend. Null is fine. Its kernels stay loaded as long as the context.
void pie_rope_cuda_free(struct pie_rope_cuda *cuda);
#endif

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PIE_ROPE_H */
