/* Every verb, element type and layout of the C ABI, by numbers: keys against the definition in double precision,
 * everything else to the bit. (Every case that the library has is in tests/conformance; this is about the way in.) */
#include "common.h"

#include <time.h>

enum { OLD_ROWS = 30, NEW_ROWS = 31, BLOCK = 4, BLOCKS = 24, MOST = 2 * 96 * 576 };

/* How a cache is laid out. */
enum shape { CONTIGUOUS, BY_ROW, PAGES_NHD, PAGES_HND, PAGES_X, SLOTS, TRANSPOSED, LATENT, SHAPES };
enum verb { ROTATE, SPLICE, COPY, COPY_WITHIN, VERBS };

static const char *const shape_names[] = {"bhsd", "bshd", "nhd", "hnd", "x_packed",
                                          "slots", "transposed", "latent rows"};
static const char *const verb_names[] = {"rotate", "splice", "copy", "copy_within"};
static const char *const element_names[] = {"f32", "f16", "bf16"};

/* Blocks of the source and of the destination; no block is in both. Slots go up for one, and
 * down for the other. */
static const uint32_t from_table[] = {3, 1, 4, 15, 9, 2, 6, 5}, to_table[] = {0, 7, 8, 23, 11, 12, 20, 14};
static uint32_t from_slots[NEW_ROWS], to_slots[NEW_ROWS];

static unsigned random_state;
static uint32_t random_bits(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8 & 0xffff;
}

/* The bits of a number between 2^-5 and 2 in magnitude. */
static uint32_t random_number(int element) {
    uint32_t sign = random_bits() & 1, power = random_bits() % 6, high = random_bits(), low = random_bits();
    switch (element) {
    case PIE_ROPE_F16: return sign << 15 | (10 + power) << 10 | (high & 0x3ff);
    case PIE_ROPE_BF16: return sign << 15 | (122 + power) << 7 | (high & 0x7f);
    default: return sign << 31 | (122 + power) << 23 | (high << 16 & 0x7f0000) | low;
    }
}

/* A buffer of a cache, as an engine has it. */
typedef struct {
    int element;
    size_t len;
    union {
        uint32_t wide[MOST];
        uint16_t narrow[MOST];
    } bits;
} buffer;

static uint32_t get(const buffer *from, size_t at) {
    CHECK(at < from->len);
    return from->element == PIE_ROPE_F32 ? from->bits.wide[at] : from->bits.narrow[at];
}

static void put(buffer *to, size_t at, uint32_t bits) {
    CHECK(at < to->len);
    if (to->element == PIE_ROPE_F32) to->bits.wide[at] = bits;
    else to->bits.narrow[at] = (uint16_t)bits;
}

static void fill(buffer *to, int element, size_t len) {
    CHECK(len <= MOST);
    to->element = element;
    to->len = len;
    for (size_t at = 0; at < len; at++) put(to, at, random_number(element));
}

/* Where an element lies: the formula of pie_rope.h. */
static size_t where(const pie_rope_layout *in, size_t row, size_t head, size_t dim) {
    size_t block = row / in->rows.len;
    if (in->table) {
        CHECK(block < in->table_len);
        block = in->table[block];
    }
    return in->offset + block * in->blocks.stride + row % in->rows.len * in->rows.stride + head * in->heads.stride
           + dim / in->pack * in->packs.stride + dim % in->pack;
}

/* What a cache looks like, source and destination. */
typedef struct {
    size_t heads, dim, window, offset, len;
    int pairing;
    pie_rope_layout layouts[2];
} scene;

static void set(scene *scene, int shape, int element, int pairing, int verb) {
    memset(scene, 0, sizeof *scene);
    int latent = shape == LATENT;
    scene->heads = latent ? 1 : HEADS;
    scene->dim = latent ? 576 : 64;
    scene->window = 64;
    scene->offset = latent ? 512 : 0;
    scene->pairing = pairing;
    int pages = shape == PAGES_NHD || shape == PAGES_HND || shape == PAGES_X;
    size_t rows = pages || shape == SLOTS ? BLOCKS * BLOCK : ROWS;
    for (uint32_t row = 0; row < NEW_ROWS; row++) {
        from_slots[row] = 3 * row;
        to_slots[row] = 3 * (NEW_ROWS - row) + 1;
    }
    scene->len = scene->heads * rows * scene->dim;
    for (int end = 0; end < 2; end++) {
        pie_rope_layout *layout = &scene->layouts[end];
        layout->struct_size = sizeof *layout;
        switch (shape) {
        case CONTIGUOUS: OK(pie_rope_layout_bhsd(element, 1, scene->heads, rows, scene->dim, layout)); break;
        case BY_ROW:
        case LATENT: OK(pie_rope_layout_bshd(element, 1, rows, scene->heads, scene->dim, layout)); break;
        case PAGES_NHD: OK(pie_rope_layout_nhd(element, BLOCKS, BLOCK, scene->heads, scene->dim, layout)); break;
        case PAGES_HND: OK(pie_rope_layout_hnd(element, BLOCKS, scene->heads, BLOCK, scene->dim, layout)); break;
        case PAGES_X:
            OK(pie_rope_layout_x_packed(element, BLOCKS, scene->heads, scene->dim / 8, BLOCK, 8, layout));
            break;
        case SLOTS: OK(pie_rope_layout_slots(element, rows, scene->heads, scene->dim, layout)); break;
        default: OK(pie_rope_layout_transposed(element, scene->heads, scene->dim, rows, layout));
        }
        int other = end && verb == COPY_WITHIN;
        if (pages) {
            layout->table = other ? to_table : from_table;
            layout->table_len = 8;
        }
        if (shape == SLOTS) {
            layout->table = other ? to_slots : from_slots;
            layout->table_len = NEW_ROWS;
        }
    }
    if (verb == COPY_WITHIN && !scene->layouts[0].table) {
        /* To another part of the same buffers. */
        scene->layouts[1].offset = scene->len;
        scene->len *= 2;
    }
    if (verb == ROTATE || verb == SPLICE) scene->layouts[1] = scene->layouts[0];
}

static double most_off[3];

/* One row's key, `to` from what it was at `from` on, is turned by `delta`. */
static void check_key(const scene *s, const buffer *before, size_t from, const buffer *after, size_t to, int delta,
                      size_t head, const char *place) {
    size_t pairs = s->window / 2;
    for (size_t pair = 0; pair < pairs; pair++) {
        size_t a = s->offset + (s->pairing == PIE_ROPE_HALF_SPLIT ? pair : 2 * pair);
        size_t b = s->pairing == PIE_ROPE_HALF_SPLIT ? a + pairs : a + 1;
        double angle = delta * pow(THETA, -2.0 * (double)pair / (double)s->window);
        double x = number(before->element, get(before, where(&s->layouts[0], from, head, a)));
        double y = number(before->element, get(before, where(&s->layouts[0], from, head, b)));
        double got[2] = {number(after->element, get(after, where(&s->layouts[1], to, head, a))),
                         number(after->element, get(after, where(&s->layouts[1], to, head, b)))};
        double expected[2] = {x * cos(angle) - y * sin(angle), y * cos(angle) + x * sin(angle)};
        for (int i = 0; i < 2; i++) {
            double error = fabs(got[i] - expected[i]) / ulp(before->element, hypot(x, y));
            /* tests/conformance/check.rs says why so much. */
            double allowed = before->element == PIE_ROPE_F32 ? 1.708
                             : before->element == PIE_ROPE_F16 ? 0.5003
                                                               : 0.5001;
            if (!(error <= allowed)) {
                fprintf(stderr, "%s: row %zu to %zu, head %zu, pair %zu is off by %g units of %g\n", place, from, to,
                        head, pair, error, allowed);
                exit(1);
            }
            if (error > most_off[before->element]) most_off[before->element] = error;
        }
    }
}

static void run(const pie_rope_cpu *cpu, int shape, int element, int pairing, int verb) {
    static buffer before[LAYERS][2], after[LAYERS][2], onto[LAYERS][2], expected;
    char place[80];
    snprintf(place, sizeof place, "%s, %s, %s, %s", verb_names[verb], shape_names[shape], element_names[element],
             pairing == PIE_ROPE_HALF_SPLIT ? "half-split" : "interleaved");
    scene s;
    set(&s, shape, element, pairing, verb);
    /* A latent row is key and value at once, and there is no other value. */
    int halves = shape == LATENT ? 1 : 2;

    /* Of 30 tokens, 4 to 6 go and one comes; three come before 20. */
    pie_rope_edit edits[2] = {{sizeof(pie_rope_edit), 4, 7, 1}, {sizeof(pie_rope_edit), 20, 20, 3}};
    pie_rope_plan *plan;
    pie_rope_rope *plain, *paired, *rope;
    pie_rope_rotations *rotations;
    OK(pie_rope_plan_from_edits(0, OLD_ROWS, edits, 2, &plan));
    /* As a checkpoint's rope becomes that of a cache which keeps heads in another order. */
    OK(pie_rope_rope_from_theta(THETA, s.window, PIE_ROPE_HALF_SPLIT, 0, LAYERS, &plain));
    OK(pie_rope_rope_with_pairing(plain, pairing, &paired));
    OK(pie_rope_rope_with_offset(paired, s.offset, &rope));
    pie_rope_rope_free(paired);
    pie_rope_rope_free(plain);
    OK(pie_rope_rotations_new(plan, rope, &rotations));

    pie_rope_layer layers[LAYERS], to_layers[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int half = 0; half < 2; half++) {
            fill(&before[layer][half], element, s.len);
            fill(&onto[layer][half], element, s.len);
            /* What a call in place starts from is what it reads. */
            if (verb != COPY) onto[layer][half] = before[layer][half];
            after[layer][half] = onto[layer][half];
        }
        buffer *from = verb == COPY ? before[layer] : after[layer], *to = after[layer];
        pie_rope_layer here = {sizeof here, &from[0].bits, s.len, halves == 2 ? &from[1].bits : NULL,
                               halves == 2 ? s.len : 0};
        pie_rope_layer there = {sizeof there, &to[0].bits, s.len, halves == 2 ? &to[1].bits : NULL,
                                halves == 2 ? s.len : 0};
        layers[layer] = here;
        to_layers[layer] = there;
    }
    const pie_rope_layout *values = halves == 2 ? &s.layouts[0] : NULL, *to_values = halves == 2 ? &s.layouts[1] : NULL;
    pie_rope_cache cache = {sizeof cache, &s.layouts[0], values, layers, LAYERS};
    pie_rope_cache to = {sizeof to, &s.layouts[1], to_values, to_layers, LAYERS};
    switch (verb) {
    case ROTATE: OK(pie_rope_cpu_rotate(cpu, rotations, &cache)); break;
    case SPLICE: OK(pie_rope_cpu_splice(cpu, rotations, &cache)); break;
    case COPY: OK(pie_rope_cpu_copy(cpu, rotations, &cache, &to)); break;
    default: OK(pie_rope_cpu_copy_within(cpu, rotations, &cache, &s.layouts[1], to_values));
    }

    static const struct {
        int from, len, delta;
    } kept[] = {{0, 4, 0}, {7, 13, -2}, {20, 10, 1}};
    for (int layer = 0; layer < LAYERS; layer++)
        for (int half = 0; half < halves; half++) {
            expected = onto[layer][half];
            for (int span = 0; span < 3; span++)
                for (int row = kept[span].from; row < kept[span].from + kept[span].len; row++) {
                    int delta = kept[span].delta, dst = verb == ROTATE ? row : row + delta;
                    if (verb == ROTATE && half) continue;
                    for (size_t head = 0; head < s.heads; head++) {
                        if (half == 0 && delta)
                            check_key(&s, &before[layer][0], (size_t)row, &after[layer][0], (size_t)dst, delta, head,
                                      place);
                        for (size_t dim = 0; dim < s.dim; dim++) {
                            /* What has been found right by its number is expected as it is. */
                            int turned = half == 0 && delta && dim >= s.offset && dim < s.offset + s.window;
                            size_t at = where(&s.layouts[1], (size_t)dst, head, dim);
                            const buffer *source = turned ? &after[layer][0] : &before[layer][half];
                            size_t source_at = turned ? at : where(&s.layouts[0], (size_t)row, head, dim);
                            put(&expected, at, get(source, source_at));
                        }
                    }
                }
            /* Rows that are to be encoded, that nobody uses, other blocks: nothing else was written. */
            for (size_t at = 0; at < s.len; at++)
                if (get(&expected, at) != get(&after[layer][half], at)) {
                    fprintf(stderr, "%s: layer %d, %s: element %zu is %#x, not %#x\n", place, layer,
                            half ? "values" : "keys", at, (unsigned)get(&after[layer][half], at),
                            (unsigned)get(&expected, at));
                    exit(1);
                }
        }
    pie_rope_rotations_free(rotations);
    pie_rope_rope_free(rope);
    pie_rope_plan_free(plan);
}

/* The argument, if there is one, is the seed of a run to be repeated. */
int main(int argc, char **argv) {
    random_state = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : (unsigned)time(NULL);
    printf("seed %u\n", random_state);
    fflush(stdout);
    pie_rope_cpu *cpu;
    OK(pie_rope_cpu_new(2, &cpu));
    int cases = 0;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int element = PIE_ROPE_F32; element <= PIE_ROPE_BF16; element++)
            for (int pairing = PIE_ROPE_HALF_SPLIT; pairing <= PIE_ROPE_INTERLEAVED; pairing++)
                for (int verb = 0; verb < VERBS; verb++, cases++) run(cpu, shape, element, pairing, verb);
    pie_rope_cpu_free(cpu);
    printf("C, %d layouts, types and verbs: ok; off by %.4f units in f32, %.4f in f16, %.4f in bf16\n", cases,
           most_off[PIE_ROPE_F32], most_off[PIE_ROPE_F16], most_off[PIE_ROPE_BF16]);
    return 0;
}
