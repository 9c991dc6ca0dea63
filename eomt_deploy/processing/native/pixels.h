/* What the kernels of all tasks share; pixels.py calls them. Sizes are in pixels, images are
   [height, width] row by row. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

/* A resized value from two source values along one side: tables.TAP. */
typedef struct {
    int32_t low, high;
    float rest, weight;
} Tap;

/* Two resizings in a row along one side, as one: tables.SPAN. */
typedef struct {
    int32_t first;
    float weights[3];
} Span;

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }

/* Branchless, so that loops over it become vector code; within 2 ulp of the exact value.
   exp(-x) = 2^n * exp(r), |r| <= ln(2)/2, with the Taylor series of degree 7 for exp(r). */
static inline float sigmoid(float x) {
    float y = -x;
    y = y < -87.0f ? -87.0f : y;
    y = y > 88.0f ? 88.0f : y;
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

/* The range of logits in rows [top, bottom] and columns [left, right], a little widened:
   an interpolated value can leave the range of its sources by its rounding. */
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

/* Mask rows [top, bottom] resized across to image columns [left, left + count): [., stride]. */
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

/* One image row from three stretched ones. */
static inline void mix_rows(const float *rows, int stride, const float *weights, int count,
                            float *restrict out) {
    for (int x = 0; x < count; x++)
        out[x] = weights[0] * rows[x] + weights[1] * rows[x + stride] +
                 weights[2] * rows[x + 2 * stride];
}
