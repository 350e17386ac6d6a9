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

/* Dimension `dim` of a key turned by `delta` positions, in double precision; *scale: what its last place is of. */
static inline double turned(const float *key, int dim, int delta, double *scale) {
    int half = DIM / 2, pair = dim % half;
    double angle = delta * pow(THETA, -2.0 * pair / DIM);
    double a = key[pair], b = key[pair + half];
    *scale = fabs(a) + fabs(b);
    return dim < half ? a * cos(angle) - b * sin(angle) : a * sin(angle) + b * cos(angle);
}

#endif
