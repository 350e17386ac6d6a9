/* Keys that transformers' own models cache before and after an edit: turning the first gives the second.
 *
 * Run with the files of tests/vectors as arguments. The head of scripts/reference_vectors.py says what they hold and
 * how far a key may be off. */
#include "common.h"

enum { MOST_DIMS = 1024, MOST_KEYS = 16, LONGEST_LINE = 1 << 15 };

/* What is read of one file: the ropes, and the keys of one layer at a time. */
static char line[LONGEST_LINE], file[256];
static int element;
static pie_rope_rope *ropes[2];
static int layer, dim, start, keys_len, half_split, turns;
static int32_t positions[2][MOST_KEYS];
static uint32_t keys[2][MOST_KEYS][MOST_DIMS];

static double worst, worst_allowed;
static int compared, stayed;

/* How far a pair may be off, in units in the last place. */
static double allowed(double f_old, double f_new, double from, double to) {
    double unit = ulp(PIE_ROPE_F32, 1.0) / ulp(element, 1.0);
    double before = f_old * from, after = f_new * to;
    double common = f_old == f_new ? fabs(after - before) : before + after;
    double angle = unit * (before + after + 6e-7 * ldexp(1.0, 24) * common);
    double encoding = (sqrt(2.0) + 1.0) * unit + 1.5 + (element == PIE_ROPE_F32 ? 0.0 : 0.5);
    double own = element == PIE_ROPE_F32 ? 1.708 : element == PIE_ROPE_F16 ? 0.5003 : 0.5001;
    return angle + (1.0 + sqrt(2.0)) * encoding + own;
}

/* The furthest that any pair of a key is off, for what it may be; 0 if it is right to the bit. */
static double off(const double *f_old, const double *f_new, int pairs, int row, const uint32_t *got) {
    double most = 0.0;
    for (int pair = 0; pair < pairs; pair++) {
        int a = start + (half_split ? pair : 2 * pair), b = half_split ? a + pairs : a + 1;
        double magnitude[2], error = 0.0;
        for (int end = 0; end < 2; end++)
            magnitude[end] = hypot(number(element, keys[end][row][a]), number(element, keys[end][row][b]));
        double unit = ulp(element, fmax(magnitude[0], magnitude[1]));
        error = fmax(apart(number(element, got[a]), number(element, keys[1][row][a])),
                     apart(number(element, got[b]), number(element, keys[1][row][b]))) / unit;
        double most_allowed = allowed(f_old[pair], f_new[pair], positions[0][row], positions[1][row]);
        if (!(error / most_allowed <= most)) most = error / most_allowed;
        if (!(error / most_allowed <= worst / worst_allowed)) {
            worst = error;
            worst_allowed = most_allowed;
        }
    }
    return most;
}

/* Turns the keys of a layer and compares them. */
static void check_layer(const pie_rope_cpu *cpu) {
    static uint32_t wide[MOST_KEYS * MOST_DIMS];
    static uint16_t narrow[MOST_KEYS * MOST_DIMS];
    static double f[2][MOST_DIMS / 2];
    size_t pairs[2];
    for (int end = 0; end < 2; end++)
        OK(pie_rope_rope_inv_freq(ropes[end], (size_t)layer, f[end], MOST_DIMS / 2, &pairs[end]));
    CHECK(pairs[0] == pairs[1] && (pairs[0] != 0) == turns);
    CHECK((size_t)start + 2 * pairs[0] <= (size_t)dim);

    for (int row = 0; row < keys_len; row++)
        for (int at = 0; at < dim; at++) {
            wide[row * dim + at] = keys[0][row][at];
            narrow[row * dim + at] = (uint16_t)keys[0][row][at];
        }
    pie_rope_layout layout = {0};
    layout.struct_size = sizeof layout;
    OK(pie_rope_layout_bhsd(element, 1, 1, (size_t)keys_len, (size_t)dim, &layout));
    size_t len = (size_t)keys_len * (size_t)dim;
    void *buffer = element == PIE_ROPE_F32 ? (void *)wide : (void *)narrow;
    pie_rope_layer layers = {sizeof layers, buffer, len, NULL, 0};
    pie_rope_cache cache = {sizeof cache, &layout, NULL, &layers, 1};
    pie_rope_plan *plan;
    pie_rope_rotations *all, *one;
    size_t index = (size_t)layer;
    OK(pie_rope_plan_from_positions(positions[0], positions[1], (size_t)keys_len, &plan));
    OK(pie_rope_rotations_between(plan, ropes[0], ropes[1], &all));
    OK(pie_rope_rotations_select(all, &index, 1, &one));
    OK(pie_rope_cpu_rotate(cpu, one, &cache));

    int window_end = start + 2 * (int)pairs[0];
    int changed = memcmp(f[0], f[1], pairs[0] * sizeof(double)) != 0;
    for (int row = 0; row < keys_len; row++) {
        static uint32_t got[MOST_DIMS];
        int still = !turns || (!changed && positions[0][row] == positions[1][row]);
        for (int at = 0; at < dim; at++) {
            got[at] = element == PIE_ROPE_F32 ? wide[row * dim + at] : narrow[row * dim + at];
            CHECK((!still && at >= start && at < window_end) || got[at] == keys[1][row][at]);
        }
        if (still) {
            stayed++;
            continue;
        }
        double here = off(f[0], f[1], (int)pairs[0], row, got);
        if (!(here <= 1.0)) {
            fprintf(stderr, "%s, layer %d, position %d to %d: off by %g times what is allowed\n", file, layer,
                    (int)positions[0][row], (int)positions[1][row], here);
            exit(1);
        }
        compared++;
        /* The key as it was is far off: the comparison tells a turn from none. */
        double w = worst, wa = worst_allowed;
        CHECK(off(f[0], f[1], (int)pairs[0], row, keys[0][row]) > 3.0);
        /* And so is a NaN, wherever it is. */
        for (int at = start; at < window_end; at++) {
            uint32_t right = got[at];
            got[at] = element == PIE_ROPE_F32 ? 0x7fc00000 : element == PIE_ROPE_F16 ? 0x7e00 : 0x7fc0;
            CHECK(off(f[0], f[1], (int)pairs[0], row, got) == HUGE_VAL);
            got[at] = right;
        }
        worst = w;
        worst_allowed = wa;
    }
    pie_rope_rotations_free(one);
    pie_rope_rotations_free(all);
    pie_rope_plan_free(plan);
}

/* `dim` components' bits, in hexadecimal. */
static const char *read_key(const char *from, uint32_t *to) {
    int digits = element == PIE_ROPE_F32 ? 8 : 4;
    for (int at = 0; at < dim; at++, from += digits) {
        char one[9] = {0}, *end;
        CHECK(strlen(from) >= (size_t)digits);
        memcpy(one, from, (size_t)digits);
        to[at] = (uint32_t)strtoul(one, &end, 16);
        CHECK(*end == '\0');
    }
    CHECK(*from == ' ' || *from == '\0');
    return from + (*from == ' ');
}

/* The rest of the line if it starts with a word, else null. */
static const char *after(const char *word) {
    size_t len = strlen(word);
    return strncmp(line, word, len) == 0 && line[len] == ' ' ? line + len + 1 : NULL;
}

static void check_file(const pie_rope_cpu *cpu, const char *path) {
    static char config[LONGEST_LINE];
    const char *name = strrchr(path, '/');
    snprintf(file, sizeof file, "%s", name ? name + 1 : path);
    FILE *from = fopen(path, "r");
    CHECK(from != NULL);
    worst = 0.0;
    worst_allowed = 1.0;
    compared = stayed = keys_len = 0;
    config[0] = '\0';
    ropes[0] = ropes[1] = NULL;
    for (;;) {
        const char *rest = NULL;
        int more = fgets(line, sizeof line, from) != NULL;
        if (more) {
            size_t end = strcspn(line, "\n");
            CHECK(line[end] == '\n'); /* the line fitted */
            line[end] = '\0';
        }
        if (!more || after("layer")) {
            /* That was the last key of a layer. */
            if (keys_len) check_layer(cpu);
            keys_len = 0;
        }
        if (!more) break;
        if ((rest = after("config"))) {
            strcpy(config, rest);
        } else if ((rest = after("tokens"))) {
            char *end;
            unsigned long tokens[2];
            tokens[0] = strtoul(rest, &end, 10);
            tokens[1] = strtoul(end, &end, 10);
            CHECK(*end == '\0' && config[0] && !ropes[0]);
            for (int i = 0; i < 2; i++)
                OK(pie_rope_rope_from_config_json_at(config, tokens[i], &ropes[i]));
        } else if ((rest = after("element"))) {
            CHECK(!strcmp(rest, "f32") || !strcmp(rest, "f16") || !strcmp(rest, "bf16"));
            element = rest[0] == 'b' ? PIE_ROPE_BF16 : rest[1] == '1' ? PIE_ROPE_F16 : PIE_ROPE_F32;
        } else if ((rest = after("layer"))) {
            char pairing[16];
            CHECK(sscanf(rest, "%d %d %15s %d", &layer, &dim, pairing, &start) == 4);
            CHECK(dim > 0 && dim <= MOST_DIMS && ropes[0]);
            half_split = !strcmp(pairing, "half-split");
            turns = strcmp(pairing, "none") != 0;
            CHECK(half_split || !turns || !strcmp(pairing, "interleaved"));
        } else if ((rest = after("key"))) {
            char *end;
            CHECK(keys_len < MOST_KEYS);
            positions[0][keys_len] = (int32_t)strtol(rest, &end, 10);
            positions[1][keys_len] = (int32_t)strtol(end, &end, 10);
            CHECK(*end == ' ');
            rest = read_key(end + 1, keys[0][keys_len]);
            rest = read_key(rest, keys[1][keys_len]);
            CHECK(*rest == '\0');
            keys_len++;
        } else {
            CHECK(after("pie-rope") || after("from") || after("name"));
        }
    }
    fclose(from);
    CHECK(compared > 0);
    printf("%-40s %2d turned, %d stayed; off by %8.2f of %9.2f\n", file, compared, stayed, worst, worst_allowed);
    pie_rope_rope_free(ropes[0]);
    pie_rope_rope_free(ropes[1]);
}

int main(int argc, char **argv) {
    pie_rope_cpu *cpu;
    OK(pie_rope_cpu_new(1, &cpu));
    CHECK(argc > 1);
    for (int i = 1; i < argc; i++) check_file(cpu, argv[i]);
    pie_rope_cpu_free(cpu);
    printf("C, %d files of transformers' keys: ok\n", argc - 1);
    return 0;
}
