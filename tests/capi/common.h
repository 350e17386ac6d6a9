/* What the C, C++ and CUDA programs share: a small cache, and a check that says where it failed. */
#ifndef PIE_ROPE_TESTS_COMMON_H
#define PIE_ROPE_TESTS_COMMON_H

#include "pie_rope.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                                                          \
    do {                                                                                                     \
        if (!(what)) {                                                                                       \
            fprintf(stderr, "%s:%d: %s\nlast error: %s\n", __FILE__, __LINE__, #what, pie_rope_last_error()); \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define OK(call) CHECK((call) == PIE_ROPE_OK)

/* A call is refused, with this status, and the text names what is wrong. */
#define REFUSED(call, status, text)                                                                          \
    do {                                                                                                     \
        CHECK((call) == (status));                                                                           \
        CHECK(strstr(pie_rope_last_error(), (text)) != NULL);                                                \
    } while (0)

enum { LAYERS = 2, HEADS = 3, ROWS = 40, DIM = 16, LEN = HEADS * ROWS * DIM };

static const double THETA = 10000.0;

/* Numbers of about one, that differ. */
static inline void put_numbers(float *to, unsigned seed) {
    unsigned state = seed * 2654435761u + 12345u;
    for (int i = 0; i < LEN; i++) {
        state = state * 1664525u + 1013904223u;
        to[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
}

static inline int same(const float *a, const float *b) { return memcmp(a, b, LEN * sizeof *a) == 0; }

/* Holds numbers to what is expected, bit for bit, and says which is the first that differs. */
static inline void check_bits(const char *what, const float *got, const float *expected, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (memcmp(&got[i], &expected[i], sizeof *got) != 0) {
            fprintf(stderr, "%s: number %zu is %.9g, not %.9g\n", what, i, (double)got[i], (double)expected[i]);
            exit(1);
        }
}

/* How far a number is from what is expected: infinitely, and never NaN, which `fmax` would lose, unless both are finite
 * or they are the same. */
static inline double apart(double got, double expected) {
    if (got == expected) return 0.0;
    double off = fabs(got - expected);
    return off < HUGE_VAL ? off : HUGE_VAL;
}

/* Dimension `dim` of a key turned by `delta` positions, in double precision; *scale: what its last place is of. */
static inline double turned(const float *key, int dim, int delta, double *scale) {
    int half = DIM / 2, pair = dim % half;
    double angle = delta * pow(THETA, -2.0 * pair / DIM);
    double a = key[pair], b = key[pair + half];
    *scale = fabs(a) + fabs(b);
    return dim < half ? a * cos(angle) - b * sin(angle) : a * sin(angle) + b * cos(angle);
}

/* The number whose bits in a cache these are. */
static inline double number(int element, uint32_t bits) {
    if (element == PIE_ROPE_F16) {
        int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
        double size = exponent == 31  ? (fraction ? NAN : HUGE_VAL)
                      : exponent == 0 ? ldexp(fraction, -24)
                                      : ldexp(1024 + fraction, exponent - 25);
        return bits >> 15 & 1 ? -size : size;
    }
    float number;
    uint32_t word = element == PIE_ROPE_BF16 ? bits << 16 : bits;
    memcpy(&number, &word, sizeof number);
    return number;
}

/* One unit in the last place of an element type at a magnitude. */
static inline double ulp(int element, double magnitude) {
    int digits = element == PIE_ROPE_F32 ? 23 : element == PIE_ROPE_F16 ? 10 : 7;
    int least = element == PIE_ROPE_F16 ? -14 : -126, exponent = least;
    if (magnitude > 0.0) frexp(magnitude, &exponent), exponent--;
    return ldexp(1.0, (exponent > least ? exponent : least) - digits);
}

#endif
