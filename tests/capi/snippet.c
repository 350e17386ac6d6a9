#include <pie_rope.h>

/* Two layers, [1, 4 heads, 64 rows, 64 dimensions]: three tokens come before token 10 of 40. */
int edit(float *keys[2], float *values[2]) {
    pie_rope_layout layout = {.struct_size = sizeof layout};
    pie_rope_layer layers[2];
    for (int i = 0; i < 2; i++)
        layers[i] = (pie_rope_layer){sizeof *layers, keys[i], 4 * 64 * 64, values[i], 4 * 64 * 64};
    pie_rope_cache cache = {sizeof cache, &layout, &layout, layers, 2};
    pie_rope_edit insertion = {sizeof insertion, 10, 10, 3};

    pie_rope_cpu *cpu = NULL;
    pie_rope_rope *rope = NULL;
    pie_rope_plan *plan = NULL;
    pie_rope_rotations *rotations = NULL;
    int status = pie_rope_layout_bhsd(PIE_ROPE_F32, 1, 4, 64, 64, &layout);
    if (!status) status = pie_rope_cpu_new(0, &cpu);
    if (!status) status = pie_rope_rope_from_theta(10000.0, 64, PIE_ROPE_HALF_SPLIT, 0, 2, &rope);
    if (!status) status = pie_rope_plan_from_edits(0, 40, &insertion, 1, &plan);
    if (!status) status = pie_rope_rotations_new(plan, rope, &rotations);
    if (!status) status = pie_rope_cpu_splice(cpu, rotations, &cache);
    /* Not 0: pie_rope_last_error() says why. 0: rows 10 to 12 are the engine's to encode. */
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(plan);
    pie_rope_rope_free(rope);
    pie_rope_cpu_free(cpu);
    return status;
}
