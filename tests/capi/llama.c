#include <pie_rope.h>

/* Two layers' `cache_k` of llama.cpp in F16, each [cells, 4 heads, 64 dimensions]. Cell i holds position positions[i] of
 * the sequence to shift; -1 says that it is free, or another sequence's, and leaves it alone.
 * As llama_memory_seq_add(mem, seq, p0, p1, delta), but the keys turn now, once, by angles taken in double precision. */
int shift(void *cache_k[2], const int32_t *positions, size_t cells, int32_t p0, int32_t p1, int32_t delta) {
    pie_rope_layout layout = {.struct_size = sizeof layout};
    pie_rope_layer layers[2];
    for (int i = 0; i < 2; i++)
        layers[i] = (pie_rope_layer){sizeof *layers, cache_k[i], cells * 4 * 64, NULL, 0};
    pie_rope_cache cache = {sizeof cache, &layout, NULL, layers, 2};
    pie_rope_delta range = {sizeof range, p0, p1, delta};

    pie_rope_cpu *cpu = NULL;
    pie_rope_rope *rope = NULL;
    pie_rope_plan *plan = NULL;
    pie_rope_rotations *rotations = NULL;
    int status = pie_rope_layout_bshd(PIE_ROPE_F16, 1, cells, 4, 64, &layout);
    if (!status) status = pie_rope_cpu_new(0, &cpu);
    /* LLAMA_ROPE_TYPE_NORM, as for the Llama architecture; PIE_ROPE_HALF_SPLIT is LLAMA_ROPE_TYPE_NEOX. */
    if (!status) status = pie_rope_rope_from_theta(10000.0, 64, PIE_ROPE_INTERLEAVED, 0, 2, &rope);
    if (!status) status = pie_rope_plan_from_deltas(positions, cells, &range, 1, &plan);
    if (!status) status = pie_rope_rotations_new(plan, rope, &rotations);
    if (!status) status = pie_rope_cpu_rotate(cpu, rotations, &cache);
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(plan);
    pie_rope_rope_free(rope);
    pie_rope_cpu_free(cpu);
    return status;
}
