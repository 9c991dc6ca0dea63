/* Shared by the kernels of all tasks, which pixels.py calls. Sizes are in pixels; images are
   row-major [height, width]. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

/* One side of a bilinear resize, from two source values: TAP in tables.py. */
typedef struct {
    int32_t low, high;
    float rest, weight;
} Tap;

/* One side of two successive resizes, combined: SPAN in tables.py. */
typedef struct {
    int32_t first;
    float weights[3];
} Span;

/* Return values of a kernel. Arguments are checked before they are used. */
enum { DONE = 0, NO_MEMORY = -1, WRONG_ARGUMENTS = -2 };
/* Maximum side of a mask or network input, and maximum number of queries or classes. Products of
   two sides, or of a side and a number, fit into 31 bits. */
enum { MAX_SIDE = 1 << 15, MAX_NUMBER = (1 << 15) - 1 };

static inline int within(int64_t value, int64_t minimum, int64_t maximum) {
    return value >= minimum && value <= maximum;
}

/* Whether the spans [start, end) of a table of `length` are in ascending order and refer only to
   `source` values. */
static inline int spans_fit(const Span *table, int start, int end, int length, int source) {
    if (!table || !within(start, 0, end) || end > length) return 0;
    int last = 0, fits = 1;
    for (int i = start; i < end; i++) {
        fits &= table[i].first >= last && table[i].first <= source - 3;
        last = table[i].first;
    }
    return fits;
}

/* Whether the taps [start, end) of a table of `length` are in ascending order, at most `step`
   apart, and refer only to `source` values. */
static inline int taps_fit(const Tap *table, int start, int end, int length, int source,
                           int step) {
    if (!table || !within(start, 0, end) || end > length) return 0;
    int fits = 1;
    for (int i = start; i < end; i++) {
        const int low = table[i].low, high = table[i].high;
        fits &= low >= 0 && high >= low && high <= (int64_t)low + 1 && high < source;
        if (i > start) fits &= within((int64_t)low - table[i - 1].low, 0, step);
    }
    return fits;
}

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }

/* Sigmoid within 2 ulp of the exact value, without branches, so that compilers vectorize loops
   over it. exp(-x) = 2^n * exp(r), |r| <= ln(2)/2, with the Taylor series of degree 7 for exp(r).
   NaN gives almost 0: comparisons with it are false, so that it is clamped. */
static inline float sigmoid(float x) {
    float y = -x;
    y = y < 88.0f ? y : 88.0f;
    y = y > -87.0f ? y : -87.0f;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const float shifted = y * 1.44269504088896341f + magic;
    const float n = shifted - magic;
    const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union {
        uint32_t bits;
        float value;
    } power = {((uint32_t)(int32_t)n + 127u) << 23};
    return 1.0f / (1.0f + p * power.value);
}

/* The range of the logits in rows [top, bottom] and columns [left, right], slightly enlarged,
   because rounding can move an interpolated value out of the range of its source values. */
static inline void find_range(const float *map, int width, int top, int bottom, int left,
                              int right, float *lowest, float *highest) {
    float low = INFINITY, high = -INFINITY;
    for (int row = top; row <= bottom; row++)
        for (int column = left; column <= right; column++) {
            const float value = map[(int64_t)row * width + column];
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
    const float slack = 1e-6f * (fabsf(low) > fabsf(high) ? fabsf(low) : fabsf(high));
    *lowest = low - slack;
    *highest = high + slack;
}

/* Resize mask rows [top, bottom] horizontally to image columns [left, left + count).
   Out: [rows, stride]. */
static inline void stretch_rows(const float *map, int width, int top, int bottom,
                                const Span *across, int left, int count, float *out,
                                int stride) {
    for (int row = top; row <= bottom; row++) {
        const float *source = map + (int64_t)row * width;
        float *target = out + (row - top) * stride;
        for (int x = 0; x < count; x++) {
            const Span span = across[left + x];
            const float *at = source + span.first;
            target[x] = span.weights[0] * at[0] + span.weights[1] * at[1] +
                        span.weights[2] * at[2];
        }
    }
}

/* Interpolate one image row from three horizontally resized mask rows. */
static inline void mix_rows(const float *rows, int stride, const float *weights, int count,
                            float *restrict out) {
    for (int x = 0; x < count; x++)
        out[x] = weights[0] * rows[x] + weights[1] * rows[x + stride] +
                 weights[2] * rows[x + 2 * stride];
}
