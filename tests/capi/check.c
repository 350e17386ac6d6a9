/* The C ABI from C99: numbers, errors, and that nothing is left behind (scripts/capi runs it under sanitizers). */
#include "common.h"

#include <float.h>
#include <limits.h>

static float keys[LAYERS][LEN], values[LAYERS][LEN];
static pie_rope_layout layout;
static pie_rope_layer layers[LAYERS];
static pie_rope_cache cache;

static void fill(void) {
    for (int layer = 0; layer < LAYERS; layer++) {
        put_numbers(keys[layer], 1 + (unsigned)layer);
        put_numbers(values[layer], 100 + (unsigned)layer);
        layers[layer].struct_size = sizeof layers[layer];
        layers[layer].keys = keys[layer];
        layers[layer].keys_len = LEN;
        layers[layer].values = values[layer];
        layers[layer].values_len = LEN;
    }
    layout.struct_size = sizeof layout;
    OK(pie_rope_layout_bhsd(PIE_ROPE_F32, 1, HEADS, ROWS, DIM, &layout));
    cache.struct_size = sizeof cache;
    cache.keys = &layout;
    cache.values = &layout;
    cache.layers = layers;
    cache.layers_len = LAYERS;
}

/* One row, now at `dst` and `delta` positions further, is what it was at `src`, turned. */
static void check_row(int layer, int head, int src, int dst, int delta) {
    static float old_keys[LEN], old_values[LEN];
    put_numbers(old_keys, 1 + (unsigned)layer);
    put_numbers(old_values, 100 + (unsigned)layer);
    const float *from = old_keys + (head * ROWS + src) * DIM, *to = keys[layer] + (head * ROWS + dst) * DIM;
    for (int dim = 0; dim < DIM; dim++) {
        double scale;
        double expected = turned(from, dim, delta, &scale);
        /* One unit in the last place, of the products that are added. */
        CHECK(fabs(to[dim] - expected) <= scale * FLT_EPSILON);
        CHECK(delta != 0 || to[dim] == from[dim]);
    }
    const float *old_value = old_values + (head * ROWS + src) * DIM;
    CHECK(memcmp(values[layer] + (head * ROWS + dst) * DIM, old_value, DIM * sizeof(float)) == 0);
}

static void numbers(pie_rope_cpu *cpu, pie_rope_rope *rope) {
    /* Of 30 tokens, 4 to 6 go and one comes; three come before 20: rows 7 to 19 move left by 2, those from 20 on
     * right by 1. */
    pie_rope_edit edits[2] = {{sizeof(pie_rope_edit), 4, 7, 1}, {sizeof(pie_rope_edit), 20, 20, 3}};
    pie_rope_plan *plan;
    OK(pie_rope_plan_from_edits(0, 30, edits, 2, &plan));
    size_t old_rows, new_rows, len;
    OK(pie_rope_plan_rows(plan, &old_rows, &new_rows));
    CHECK(old_rows == 30 && new_rows == 31);
    pie_rope_new_span spans[4];
    OK(pie_rope_plan_new_spans(plan, NULL, 0, &len));
    CHECK(len == 2);
    OK(pie_rope_plan_new_spans(plan, spans, 4, &len));
    CHECK(spans[0].row == 4 && spans[0].len == 1 && spans[0].position == 4);
    CHECK(spans[1].row == 18 && spans[1].len == 3 && spans[1].position == 18);
    pie_rope_span kept[3];
    OK(pie_rope_plan_kept(plan, kept, 3, &len));
    CHECK(len == 3 && kept[2].src == 20 && kept[2].dst == 21 && kept[2].len == 10);

    pie_rope_rotations *rotations;
    OK(pie_rope_rotations_new(plan, rope, &rotations));
    fill();
    OK(pie_rope_cpu_splice(cpu, rotations, &cache));
    for (int layer = 0; layer < LAYERS; layer++)
        for (int head = 0; head < HEADS; head++) {
            for (int row = 0; row < 4; row++) check_row(layer, head, row, row, 0);
            for (int row = 7; row < 20; row++) check_row(layer, head, row, row - 2, -2);
            for (int row = 20; row < 30; row++) check_row(layer, head, row, row + 1, 1);
            /* The engine's to encode: not written yet. */
            check_row(layer, head, 4, 4, 0);
            for (int row = 18; row < 21; row++) check_row(layer, head, row, row, 0);
            for (int row = 31; row < ROWS; row++) check_row(layer, head, row, row, 0);
        }

    /* A copy to another buffer, and one to other pages of the same, have the splice's bits. */
    static float to_keys[LAYERS][LEN], to_values[LAYERS][LEN], paged[LAYERS][2 * LEN];
    static float spliced[LAYERS][LEN], spliced_values[LAYERS][LEN], expected[2 * LEN];
    pie_rope_layer to_layers[LAYERS], paged_layers[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++) {
        put_numbers(to_keys[layer], 201 + (unsigned)layer);
        put_numbers(to_values[layer], 301 + (unsigned)layer);
        pie_rope_layer to = {sizeof to, to_keys[layer], LEN, to_values[layer], LEN};
        to_layers[layer] = to;
        pie_rope_layer pages = {sizeof pages, paged[layer], 2 * LEN, NULL, 0};
        paged_layers[layer] = pages;
    }
    pie_rope_cache to = {sizeof to, &layout, &layout, to_layers, LAYERS};
    memcpy(spliced, keys, sizeof spliced);
    memcpy(spliced_values, values, sizeof spliced_values);
    fill();
    pie_rope_rotations *affected;
    OK(pie_rope_rotations_affected_only(rotations, &affected));
    OK(pie_rope_cpu_copy(cpu, affected, &cache, &to));
    for (int layer = 0; layer < LAYERS; layer++)
        for (int half = 0; half < 2; half++) {
            put_numbers(expected, (half ? 301 : 201) + (unsigned)layer);
            for (int head = 0; head < HEADS; head++)
                for (int row = 5; row < 31; row++)
                    if (row < 18 || row >= 21) {
                        size_t at = (size_t)(head * ROWS + row) * DIM;
                        const float *from = half ? spliced_values[layer] : spliced[layer];
                        memcpy(expected + at, from + at, DIM * sizeof(float));
                    }
            check_bits(half ? "copied values" : "copied keys", half ? to_values[layer] : to_keys[layer], expected, LEN);
        }

    /* From row 10 on: what is before it stays as it is. */
    pie_rope_rotations *rest;
    OK(pie_rope_rotations_starting_at(rotations, 10, &rest));
    for (int layer = 0; layer < LAYERS; layer++) {
        put_numbers(to_keys[layer], 401 + (unsigned)layer);
        put_numbers(to_values[layer], 501 + (unsigned)layer);
    }
    OK(pie_rope_cpu_copy(cpu, rest, &cache, &to));
    for (int layer = 0; layer < LAYERS; layer++)
        for (int half = 0; half < 2; half++) {
            put_numbers(expected, (half ? 501 : 401) + (unsigned)layer);
            for (int head = 0; head < HEADS; head++)
                for (int row = 10; row < 31; row++)
                    if (row < 18 || row >= 21) {
                        size_t at = (size_t)(head * ROWS + row) * DIM;
                        const float *from = half ? spliced_values[layer] : spliced[layer];
                        memcpy(expected + at, from + at, DIM * sizeof(float));
                    }
            check_bits(half ? "values from row 10 on" : "keys from row 10 on",
                       half ? to_values[layer] : to_keys[layer], expected, LEN);
        }
    pie_rope_rotations_free(rest);

    pie_rope_layout pages = {0}, others;
    pages.struct_size = sizeof pages;
    OK(pie_rope_layout_nhd(PIE_ROPE_F32, 20, 4, HEADS, DIM, &pages));
    others = pages;
    uint32_t from_table[8] = {3, 1, 4, 15, 9, 2, 6, 5}, to_table[8] = {0, 7, 8, 10, 11, 12, 13, 14};
    pages.table = from_table;
    pages.table_len = 8;
    others.table = to_table;
    others.table_len = 8;
    for (int layer = 0; layer < LAYERS; layer++) {
        put_numbers(paged[layer], 601 + (unsigned)layer);
        put_numbers(paged[layer] + LEN, 701 + (unsigned)layer);
        for (int row = 0; row < 30; row++)
            for (int head = 0; head < HEADS; head++)
                memcpy(paged[layer] + ((from_table[row / 4] * 4 + row % 4) * HEADS + head) * DIM,
                       keys[layer] + (head * ROWS + row) * DIM, DIM * sizeof(float));
    }
    static float paged_before[LAYERS][2 * LEN];
    memcpy(paged_before, paged, sizeof paged);
    pie_rope_cache paged_cache = {sizeof paged_cache, &pages, NULL, paged_layers, LAYERS};
    OK(pie_rope_cpu_copy_within(cpu, rotations, &paged_cache, &others, NULL));
    for (int layer = 0; layer < LAYERS; layer++) {
        memcpy(expected, paged_before[layer], sizeof expected);
        for (int row = 0; row < 31; row++)
            for (int head = 0; head < HEADS; head++)
                if (row != 4 && !(row >= 18 && row < 21))
                    memcpy(expected + ((to_table[row / 4] * 4 + row % 4) * HEADS + head) * DIM,
                           spliced[layer] + (head * ROWS + row) * DIM, DIM * sizeof(float));
        check_bits("keys copied to other pages", paged[layer], expected, 2 * LEN);
    }

    /* The same edits from tokens. */
    int32_t old_tokens[30], new_tokens[31];
    for (int32_t i = 0; i < 30; i++) old_tokens[i] = i;
    for (int32_t i = 0; i < 31; i++) new_tokens[i] = i < 4 ? i : i < 5 ? 90 : i < 18 ? i + 2 : i < 21 ? -1 : i - 1;
    pie_rope_plan *same_plan;
    OK(pie_rope_plan_from_tokens(old_tokens, 30, new_tokens, 31, &same_plan));
    OK(pie_rope_rotations_update(rotations, same_plan));
    fill();
    OK(pie_rope_cpu_splice(cpu, rotations, &cache));
    check_bits("keys spliced by tokens", keys[0], spliced[0], LAYERS * LEN);
    check_bits("values spliced by tokens", values[0], spliced_values[0], LAYERS * LEN);

    pie_rope_rotations_free(affected);
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(same_plan);
    pie_rope_plan_free(plan);
}

/* As llama.cpp has it: cells stay, positions are shifted; where two ranges overlap, by both. */
static void deltas(pie_rope_cpu *cpu, pie_rope_rope *rope) {
    pie_rope_delta shifts[2] = {{sizeof(pie_rope_delta), 10, -1, -4}, {sizeof(pie_rope_delta), 20, 25, 7}};
    pie_rope_plan *plan, *other;
    OK(pie_rope_plan_from_deltas(NULL, 30, shifts, 2, &plan));
    int32_t old_positions[30], new_positions[30];
    for (int i = 0; i < 30; i++) {
        old_positions[i] = i;
        new_positions[i] = i - (i >= 10 ? 4 : 0) + (i >= 20 && i < 25 ? 7 : 0);
    }
    OK(pie_rope_plan_from_positions(old_positions, new_positions, 30, &other));
    pie_rope_plan *plans[2] = {plan, other};
    for (int which = 0; which < 2; which++) {
        pie_rope_rotations *rotations;
        OK(pie_rope_rotations_new(plans[which], rope, &rotations));
        fill();
        OK(pie_rope_cpu_rotate(cpu, rotations, &cache));
        for (int layer = 0; layer < LAYERS; layer++)
            for (int head = 0; head < HEADS; head++)
                for (int row = 0; row < ROWS; row++)
                    check_row(layer, head, row, row, row < 30 ? new_positions[row] - row : 0);
        pie_rope_rotations_free(rotations);
    }
    pie_rope_plan_free(plan);
    pie_rope_plan_free(other);

    /* The same with the cells in another order. */
    for (int i = 0; i < 30; i++) old_positions[i] = 29 - i;
    pie_rope_rotations *rotations;
    OK(pie_rope_plan_from_deltas(old_positions, 30, shifts, 2, &plan));
    OK(pie_rope_rotations_new(plan, rope, &rotations));
    fill();
    OK(pie_rope_cpu_rotate(cpu, rotations, &cache));
    for (int layer = 0; layer < LAYERS; layer++)
        for (int head = 0; head < HEADS; head++)
            for (int row = 0; row < ROWS; row++)
                check_row(layer, head, row, row, row < 30 ? new_positions[29 - row] - (29 - row) : 0);
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(plan);

    /* Free cells, and those of other sequences, are left alone, from whatever position on all others shift. */
    for (int i = 0; i < 30; i += 3) old_positions[i] = i % 2 ? -1 : INT_MIN;
    shifts[0].p0 = -5;
    shifts[0].delta = 2;
    OK(pie_rope_plan_from_deltas(old_positions, 30, shifts, 1, &plan));
    OK(pie_rope_rotations_new(plan, rope, &rotations));
    fill();
    OK(pie_rope_cpu_rotate(cpu, rotations, &cache));
    for (int layer = 0; layer < LAYERS; layer++)
        for (int head = 0; head < HEADS; head++)
            for (int row = 0; row < ROWS; row++) check_row(layer, head, row, row, row < 30 && row % 3 ? 2 : 0);
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(plan);

    plan = NULL;
    shifts[0].p0 = 10;
    shifts[0].delta = -11;
    REFUSED(pie_rope_plan_from_deltas(NULL, 30, shifts, 1, &plan), PIE_ROPE_ERROR_PLAN,
            "cell 10: position 10 shifted by -11");
    shifts[0].delta = shifts[1].delta = INT_MIN;
    REFUSED(pie_rope_plan_from_deltas(NULL, 30, shifts, 2, &plan), PIE_ROPE_ERROR_PLAN,
            "cell 10: position 10 shifted by -2147483648");
    shifts[1].struct_size = 8;
    REFUSED(pie_rope_plan_from_deltas(NULL, 30, shifts, 2, &plan), PIE_ROPE_ERROR_ARGUMENT,
            "deltas: struct_size is 8");
    CHECK(plan == NULL);
}

/* Free cells, and those of other sequences, keep every bit by whichever way a plan is made, also where the frequencies
 * changed: an angle of 0 would make these 0 and NaN. */
static void cells_left_alone(pie_rope_cpu *cpu) {
    float keys[2][4];
    const float foreign[4] = {-0.0f, HUGE_VALF, -1.0f, 2.0f};
    const int32_t positions[2] = {7, -1}, moved[2] = {9, -1};
    pie_rope_layout layout = {.struct_size = sizeof layout};
    OK(pie_rope_layout_bshd(PIE_ROPE_F32, 1, 2, 1, 4, &layout));
    pie_rope_layer layer = {sizeof layer, keys, 8, NULL, 0};
    pie_rope_cache two = {sizeof two, &layout, NULL, &layer, 1};
    pie_rope_rope *before, *after;
    OK(pie_rope_rope_from_theta(1e4, 4, PIE_ROPE_HALF_SPLIT, 0, 1, &before));
    OK(pie_rope_rope_from_theta(1e6, 4, PIE_ROPE_HALF_SPLIT, 0, 1, &after));
    pie_rope_delta shift = {sizeof shift, 0, -1, 2};
    pie_rope_plan *plans[3];
    OK(pie_rope_plan_from_deltas(positions, 2, &shift, 1, &plans[0]));
    OK(pie_rope_plan_from_positions(positions, moved, 2, &plans[1]));
    OK(pie_rope_plan_from_division(positions, 2, 0, -1, 2, &plans[2]));
    for (int which = 0; which < 3; which++) {
        pie_rope_span span;
        size_t spans = 0;
        OK(pie_rope_plan_kept(plans[which], &span, 1, &spans));
        CHECK(spans == 1 && span.src == 0 && span.len == 1 && span.old_position == 7);
        CHECK(span.new_position == (which == 2 ? 3 : 9));
        for (int changed = 0; changed < 2; changed++) {
            const float own[4] = {1, 2, 3, 4};
            memcpy(keys[0], own, sizeof own);
            memcpy(keys[1], foreign, sizeof foreign);
            pie_rope_rotations *rotations;
            OK(pie_rope_rotations_between(plans[which], before, changed ? after : before, &rotations));
            OK(pie_rope_cpu_rotate(cpu, rotations, &two));
            check_bits("a foreign cell", keys[1], foreign, 4);
            CHECK(memcmp(keys[0], own, sizeof own) != 0);
            OK(pie_rope_cpu_splice(cpu, rotations, &two));
            check_bits("a foreign cell, spliced", keys[1], foreign, 4);
            pie_rope_rotations_free(rotations);
        }
        pie_rope_plan_free(plans[which]);
    }
    pie_rope_rope_free(before);
    pie_rope_rope_free(after);

    pie_rope_plan *plan = NULL;
    const int32_t half[2] = {9, 3};
    REFUSED(pie_rope_plan_from_positions(positions, half, 2, &plan), PIE_ROPE_ERROR_PLAN,
            "row 1 goes from position -1 to 3");
    REFUSED(pie_rope_plan_from_division(positions, 2, 0, -1, 0, &plan), PIE_ROPE_ERROR_ARGUMENT, "divisor: it is 0");
    REFUSED(pie_rope_plan_from_division(NULL, 2, 0, -1, 2, &plan), PIE_ROPE_ERROR_ARGUMENT, "positions: it is null");
    CHECK(plan == NULL);
    /* What is outside of the range stays where it is. */
    const int32_t many[5] = {0, 4, 9, 10, 99};
    OK(pie_rope_plan_from_division(many, 5, 4, 10, 3, &plan));
    pie_rope_span kept[5];
    size_t len = 0;
    OK(pie_rope_plan_kept(plan, kept, 5, &len));
    const int32_t divided[5] = {0, 1, 3, 10, 99};
    CHECK(len == 5);
    for (int i = 0; i < 5; i++) CHECK(kept[i].old_position == many[i] && kept[i].new_position == divided[i]);
    pie_rope_plan_free(plan);
}

/* Numbers that no memory has: they are refused, or cost nothing, and never end the process. */
static void large_numbers(pie_rope_cpu *cpu, pie_rope_rope *rope) {
    uint32_t table[3] = {1, 0, 2};
    float keys[LAYERS][6 * DIM];
    pie_rope_layout layout = {.struct_size = sizeof layout};
    OK(pie_rope_layout_nhd(PIE_ROPE_F32, (size_t)1 << 50, 2, 1, DIM, &layout));
    layout.table = table;
    layout.table_len = 3;
    pie_rope_layer layers[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int i = 0; i < 6 * DIM; i++) keys[layer][i] = 1.0f + (float)i;
        layers[layer] = (pie_rope_layer){sizeof *layers, keys[layer], SIZE_MAX, NULL, 0};
    }
    pie_rope_cache paged = {sizeof paged, &layout, NULL, layers, LAYERS};
    pie_rope_edit edit = {sizeof edit, 0, 1, 0};
    pie_rope_plan *plan;
    pie_rope_rotations *rotations;
    OK(pie_rope_plan_from_edits(0, 6, &edit, 1, &plan));
    OK(pie_rope_rotations_new(plan, rope, &rotations));
    OK(pie_rope_cpu_splice(cpu, rotations, &paged));
    double scale;
    const float row[DIM] = {49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64};
    for (int dim = 0; dim < DIM; dim++) CHECK(apart(keys[1][2 * DIM + dim], turned(row, dim, -1, &scale)) < 1e-4);
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(plan);
    /* As many cells as there are positions, none of them listed. */
    pie_rope_delta shift = {sizeof shift, 3, -1, -3};
    OK(pie_rope_plan_from_deltas(NULL, (size_t)INT_MAX + 1, &shift, 1, &plan));
    size_t before = 0, after = 0;
    OK(pie_rope_plan_rows(plan, &before, &after));
    CHECK(before == (size_t)INT_MAX + 1 && after == before);
    pie_rope_plan_free(plan);
    plan = NULL;
    REFUSED(pie_rope_plan_from_deltas(NULL, SIZE_MAX, &shift, 1, &plan), PIE_ROPE_ERROR_PLAN, "largest position");
    CHECK(plan == NULL);
}

static void errors(pie_rope_cpu *cpu, pie_rope_rope *rope) {
    pie_rope_edit edit = {sizeof edit, 2, 2, 3};
    pie_rope_plan *plan, *untouched_plan = NULL;
    pie_rope_rotations *rotations, *no_rotations = NULL;
    OK(pie_rope_plan_from_edits(0, 30, &edit, 1, &plan));
    OK(pie_rope_rotations_new(plan, rope, &rotations));
    fill();

    /* Null, by name. */
    REFUSED(pie_rope_plan_from_edits(0, 30, NULL, 1, &untouched_plan), PIE_ROPE_ERROR_ARGUMENT, "edits: it is null");
    REFUSED(pie_rope_plan_from_edits(0, 30, &edit, 1, NULL), PIE_ROPE_ERROR_ARGUMENT, "out: it is null");
    REFUSED(pie_rope_rotations_new(NULL, rope, &no_rotations), PIE_ROPE_ERROR_ARGUMENT, "plan: it is null");
    REFUSED(pie_rope_rotations_new(plan, NULL, &no_rotations), PIE_ROPE_ERROR_ARGUMENT, "rope: it is null");
    REFUSED(pie_rope_cpu_splice(NULL, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "cpu: it is null");
    REFUSED(pie_rope_cpu_splice(cpu, NULL, &cache), PIE_ROPE_ERROR_ARGUMENT, "rotations: it is null");
    REFUSED(pie_rope_cpu_splice(cpu, rotations, NULL), PIE_ROPE_ERROR_ARGUMENT, "cache: it is null");
    REFUSED(pie_rope_rope_layers(rope, NULL), PIE_ROPE_ERROR_ARGUMENT, "layers: it is null");
    CHECK(untouched_plan == NULL && no_rotations == NULL);

    /* Sizes and constants. */
    edit.struct_size = sizeof edit - 1;
    REFUSED(pie_rope_plan_from_edits(0, 30, &edit, 1, &untouched_plan), PIE_ROPE_ERROR_ARGUMENT,
            "edits: struct_size is 31");
    edit.struct_size = sizeof edit;
    edit.start = 31;
    edit.end = 32;
    REFUSED(pie_rope_plan_from_edits(0, 30, &edit, 1, &untouched_plan), PIE_ROPE_ERROR_EDIT,
            "edit 0: range 31..32 is outside the 30 old tokens");
    pie_rope_rope *no_rope = NULL;
    REFUSED(pie_rope_rope_from_theta(THETA, DIM, 7, 0, 2, &no_rope), PIE_ROPE_ERROR_ARGUMENT,
            "pairing: there is no pairing 7");
    REFUSED(pie_rope_rope_with_pairing(rope, 2, &no_rope), PIE_ROPE_ERROR_ARGUMENT, "pairing: there is no pairing 2");
    REFUSED(pie_rope_rope_with_pairing(NULL, 1, &no_rope), PIE_ROPE_ERROR_ARGUMENT, "rope: it is null");
    REFUSED(pie_rope_rope_with_offset(NULL, 1, &no_rope), PIE_ROPE_ERROR_ARGUMENT, "rope: it is null");
    REFUSED(pie_rope_rope_from_theta(THETA, 3, 0, 0, 2, &no_rope), PIE_ROPE_ERROR_ROPE, "rope: ");
    REFUSED(pie_rope_rope_from_config_json("{", &no_rope), PIE_ROPE_ERROR_CONFIG, "config.json");
    REFUSED(pie_rope_rope_from_config_json("\xff", &no_rope), PIE_ROPE_ERROR_ARGUMENT, "json: it is not UTF-8");
    REFUSED(pie_rope_rope_from_config_json(NULL, &no_rope), PIE_ROPE_ERROR_ARGUMENT, "json: it is null");
    REFUSED(pie_rope_layout_bhsd(9, 1, HEADS, ROWS, DIM, &layout), PIE_ROPE_ERROR_ARGUMENT,
            "element: there is no element type 9");
    pie_rope_cpu *no_cpu = NULL;
    REFUSED(pie_rope_cpu_new(100000, &no_cpu), PIE_ROPE_ERROR_ARGUMENT, "threads");
    CHECK(no_rope == NULL && no_cpu == NULL);

    /* A cache that does not fit: refused, and its bytes are as they were. */
    layout.element = 5;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "element");
    layout.element = PIE_ROPE_F32;
    layout.struct_size = 0;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "keys: struct_size is 0");
    REFUSED(pie_rope_layout_bhsd(PIE_ROPE_F32, 1, 1, 1, 1, &layout), PIE_ROPE_ERROR_ARGUMENT,
            "layout: struct_size is 0");
    layout.struct_size = sizeof layout;
    cache.struct_size++;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "cache: struct_size");
    cache.struct_size--;
    layers[1].struct_size = 1;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "layers: struct_size is 1");
    layers[1].struct_size = sizeof layers[1];
    layers[1].keys = NULL;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "layer 1, keys: it is null");
    layers[1].keys = (char *)keys[1] + 1;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "not aligned for f32");
    layers[1].keys = keys[1];
    layers[1].keys_len = LEN - 1;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_LAYOUT, "layer 1, keys");
    layers[1].keys_len = LEN;
    cache.layers_len = 1;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT,
            "layers: 1 given, but the rotations are for a model of 2");
    cache.layers_len = SIZE_MAX;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "more than memory holds");
    cache.layers_len = LAYERS;
    layout.rows.stride = 1;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_LAYOUT, "rows overlap");
    layout.rows.stride = DIM;
    layout.table_len = 1;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT, "table: it is null");
    layout.table_len = 0;
    layers[1].values = NULL;
    layers[1].values_len = 0;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT,
            "cache: layers: layer 1: values are null");
    layers[1].values = values[1];
    layers[1].values_len = LEN;
    layers[1].keys = keys[0];
    REFUSED(pie_rope_cpu_rotate(cpu, rotations, &cache), PIE_ROPE_ERROR_ARGUMENT,
            "cache: layers: layers 0 and 1 have one key buffer");
    layers[1].keys = keys[1];
    /* What is wrong with a part is said by the argument that it is a part of. */
    pie_rope_layout part = layout;
    pie_rope_cache to = cache;
    part.element = 7;
    to.values = &part;
    REFUSED(pie_rope_cpu_copy(cpu, rotations, &cache, &to), PIE_ROPE_ERROR_ARGUMENT,
            "dst: values: element: there is no element type 7");
    to.values = NULL;
    REFUSED(pie_rope_cpu_copy(cpu, rotations, &cache, &to), PIE_ROPE_ERROR_ARGUMENT,
            "dst: layer 0 has values, but the layout does not say");
    to.keys = NULL;
    REFUSED(pie_rope_cpu_copy(cpu, rotations, &to, &cache), PIE_ROPE_ERROR_ARGUMENT, "src: keys: it is null");
    REFUSED(pie_rope_cpu_copy_within(cpu, rotations, &cache, NULL, &layout), PIE_ROPE_ERROR_ARGUMENT,
            "dst_keys: it is null");
    REFUSED(pie_rope_cpu_copy_within(cpu, rotations, &cache, &layout, NULL), PIE_ROPE_ERROR_ARGUMENT,
            "dst_values: it is null, and the cache has values");
    REFUSED(pie_rope_cpu_copy_within(cpu, rotations, &cache, &layout, &part), PIE_ROPE_ERROR_ARGUMENT,
            "dst_values: element: there is no element type 7");
    layout.rows.len = 32;
    REFUSED(pie_rope_cpu_splice(cpu, rotations, &cache), PIE_ROPE_ERROR_LAYOUT, "the plan needs 33 rows");
    layout.rows.len = ROWS;
    for (int layer = 0; layer < LAYERS; layer++) {
        float numbers[LEN];
        put_numbers(numbers, 1 + (unsigned)layer);
        CHECK(same(numbers, keys[layer]));
        put_numbers(numbers, 100 + (unsigned)layer);
        CHECK(same(numbers, values[layer]));
    }
    /* And that it was sound but for this. */
    OK(pie_rope_cpu_splice(cpu, rotations, &cache));

    CHECK(strcmp(pie_rope_status_string(PIE_ROPE_OK), "ok") == 0);
    CHECK(strcmp(pie_rope_status_string(PIE_ROPE_ERROR_LAYOUT), "wrong layout") == 0);
    CHECK(strcmp(pie_rope_status_string(-1), "unknown status") == 0);
    pie_rope_rotations_free(rotations);
    pie_rope_plan_free(plan);
}

/* What else makes plans and ropes. */
static void others(pie_rope_rope *rope) {
    pie_rope_plan *kept, *edits, *both, *in_place;
    size_t rows[3] = {0, 1, 5}, len, old_rows, new_rows;
    OK(pie_rope_plan_from_kept(8, rows, 3, &kept));
    pie_rope_edit edit = {sizeof edit, 0, 0, 2};
    OK(pie_rope_plan_from_edits(0, 3, &edit, 1, &edits));
    OK(pie_rope_plan_then(kept, edits, &both));
    pie_rope_span spans[2];
    OK(pie_rope_plan_kept(both, spans, 2, &len));
    CHECK(len == 2 && spans[1].src == 5 && spans[1].dst == 4 && spans[1].new_position == 4);
    int32_t old_positions[] = {3, 5, 7, 11}, new_positions[] = {5, 9};
    size_t with_gaps[] = {1, 3};
    pie_rope_plan *at_positions;
    OK(pie_rope_plan_from_kept_at(old_positions, 4, with_gaps, new_positions, 2, &at_positions));
    OK(pie_rope_plan_kept(at_positions, spans, 2, &len));
    CHECK(len == 2 && spans[0].src == 1 && spans[0].dst == 0 && spans[0].new_position == spans[0].old_position);
    CHECK(spans[1].src == 3 && spans[1].dst == 1 && spans[1].old_position == 11 && spans[1].new_position == 9);
    pie_rope_plan_free(at_positions);
    OK(pie_rope_plan_in_place(both, &in_place));
    OK(pie_rope_plan_rows(in_place, &old_rows, &new_rows));
    CHECK(old_rows == 5 && new_rows == 5);

    pie_rope_rotations *all, *one, *between;
    size_t second = 1, third = 2;
    OK(pie_rope_rotations_new(both, rope, &all));
    OK(pie_rope_rotations_select(all, &second, 1, &one));
    pie_rope_rotations *none = NULL;
    REFUSED(pie_rope_rotations_select(all, &third, 1, &none), PIE_ROPE_ERROR_ARGUMENT, "there is no layer 2");
    CHECK(none == NULL);

    pie_rope_rope *read, *at, *given;
    const char *json = "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"hidden_size\": 48,"
                       " \"num_attention_heads\": 3, \"rope_theta\": 10000.0}";
    OK(pie_rope_rope_from_config_json(json, &read));
    OK(pie_rope_rope_from_config_json_at(json, 100, &at));
    double read_freq[DIM / 2], freq[DIM / 2];
    OK(pie_rope_rope_inv_freq(read, 1, read_freq, DIM / 2, &len));
    CHECK(len == DIM / 2);
    OK(pie_rope_rope_inv_freq(rope, 1, freq, DIM / 2, &len));
    CHECK(memcmp(freq, read_freq, sizeof freq) == 0);
    REFUSED(pie_rope_rope_inv_freq(rope, 2, freq, 0, &len), PIE_ROPE_ERROR_ARGUMENT, "there is no 2");
    OK(pie_rope_rope_from_inv_freq(freq, DIM / 2, PIE_ROPE_HALF_SPLIT, 0, LAYERS, &given));
    OK(pie_rope_rotations_between(both, given, read, &between));
    /* A model of several ropes, and of layers without. */
    pie_rope_rope *slow, *mixed_rope, *yarn, *no_rope = NULL;
    OK(pie_rope_rope_from_theta(1e6, DIM, PIE_ROPE_INTERLEAVED, 3, LAYERS, &slow));
    const pie_rope_rope *by_layer[] = {NULL, slow, read};
    OK(pie_rope_rope_from_layers(by_layer, 2, &mixed_rope));
    OK(pie_rope_rope_layers(mixed_rope, &len));
    CHECK(len == 2);
    int32_t pairing = 7;
    size_t offset = 7, rotary_dim = 7;
    OK(pie_rope_rope_window(mixed_rope, 0, &pairing, &offset, &rotary_dim));
    CHECK(pairing == 0 && offset == 0 && rotary_dim == 0);
    OK(pie_rope_rope_window(mixed_rope, 1, &pairing, &offset, &rotary_dim));
    CHECK(pairing == PIE_ROPE_INTERLEAVED && offset == 3 && rotary_dim == DIM);
    OK(pie_rope_rope_inv_freq(mixed_rope, 1, freq, DIM / 2, &len));
    for (int i = 0; i < DIM / 2; i++) CHECK(fabs(freq[i] * pow(1e6, 2.0 * i / DIM) - 1) < 1e-12);
    REFUSED(pie_rope_rope_window(mixed_rope, 2, &pairing, &offset, &rotary_dim), PIE_ROPE_ERROR_ARGUMENT,
            "layer: there is no 2");
    REFUSED(pie_rope_rope_from_layers(by_layer, 3, &no_rope), PIE_ROPE_ERROR_ARGUMENT, "layers: there is no 2");
    CHECK(no_rope == NULL);
    pie_rope_rope_free(mixed_rope);
    pie_rope_rope_free(slow);

    /* YaRN: the fastest pair is as it was, the slowest slower by the factor, with a ramp from one to the other. */
    OK(pie_rope_rope_from_yarn(THETA, DIM, 4.0, 4096, 32, 1, PIE_ROPE_INTERLEAVED, 0, LAYERS, &yarn));
    double slowed[DIM / 2];
    OK(pie_rope_rope_inv_freq(yarn, 1, slowed, DIM / 2, &len));
    CHECK(len == DIM / 2 && slowed[0] == 1);
    CHECK(fabs(slowed[DIM / 2 - 1] * pow(THETA, 2.0 * (DIM / 2 - 1) / DIM) - 0.25) < 1e-12);
    for (int i = 1; i < DIM / 2; i++) CHECK(slowed[i] < slowed[i - 1]);
    REFUSED(pie_rope_rope_from_yarn(THETA, DIM, 0.0, 4096, 32, 1, 0, 0, LAYERS, &no_rope), PIE_ROPE_ERROR_ROPE,
            "factor");
    pie_rope_rope_free(yarn);

    /* Between two orders of a head, keys would have to be reordered as well. */
    pie_rope_rope *paired, *moved;
    pie_rope_rotations *mixed = NULL;
    OK(pie_rope_rope_with_pairing(read, PIE_ROPE_INTERLEAVED, &paired));
    REFUSED(pie_rope_rotations_between(both, given, paired, &mixed), PIE_ROPE_ERROR_ROPE, "layer 0: ");
    OK(pie_rope_rope_with_offset(read, 2, &moved));
    REFUSED(pie_rope_rotations_between(both, given, moved, &mixed), PIE_ROPE_ERROR_ROPE, "layer 0: ");
    CHECK(mixed == NULL);
    pie_rope_rope_free(moved);
    pie_rope_rope_free(paired);
    OK(pie_rope_rope_layers(read, &len));
    CHECK(len == LAYERS);

    pie_rope_rotations_free(between);
    pie_rope_rotations_free(one);
    pie_rope_rotations_free(all);
    pie_rope_rope_free(given);
    pie_rope_rope_free(at);
    pie_rope_rope_free(read);
    pie_rope_plan_free(in_place);
    pie_rope_plan_free(both);
    pie_rope_plan_free(edits);
    pie_rope_plan_free(kept);
}

int main(void) {
    CHECK(strcmp(pie_rope_last_error(), "") == 0);
    pie_rope_rope *rope;
    OK(pie_rope_rope_from_theta(THETA, DIM, PIE_ROPE_HALF_SPLIT, 0, LAYERS, &rope));
    for (size_t threads = 0; threads < 3; threads++) {
        pie_rope_cpu *cpu;
        OK(pie_rope_cpu_new(threads, &cpu));
        numbers(cpu, rope);
        deltas(cpu, rope);
        cells_left_alone(cpu);
        large_numbers(cpu, rope);
        errors(cpu, rope);
        pie_rope_cpu_free(cpu);
    }
    others(rope);
    pie_rope_rope_free(rope);

    pie_rope_rope_free(NULL);
    pie_rope_plan_free(NULL);
    pie_rope_rotations_free(NULL);
    pie_rope_cpu_free(NULL);
    printf("C, pie-rope %s: ok\n", pie_rope_version());
    return 0;
}
