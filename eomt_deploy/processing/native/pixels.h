/* Shared by the kernels of all tasks, which pixels.py calls. Sizes are in pixels; images are
   row-major [height, width]. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef EOMT_LIBRARY /* The library for C exports the functions of eomt.h only. */
#define API __attribute__((visibility("hidden")))
#include "prefix.h"
#elif defined(_WIN32)
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

#define INLINE static inline
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FUSED(a, b, c) __builtin_fmaf(a, b, c)
#elif defined(__wasm__)
/* In double precision, the product is exact. Rounding the sum twice differs from rounding it once
   for about one of 2^29 sums, and then by the last bit. */
#define FUSED(a, b, c) ((float)((double)(a) * (b) + (c)))
#else /* Without the instruction, a fused multiply-add would be a slow function. */
#define FUSED(a, b, c) ((a) * (b) + (c))
#endif
#include "../cuda/source/arithmetic.h"

/* One side of a bilinear resize, from two source values: TAP in tables.py. */
typedef struct {
    int32_t low, high;
    float rest, weight;
} Tap;

/* Return values of a kernel. Arguments are checked before they are used. */
enum { DONE = 0, NO_MEMORY = -1, WRONG_ARGUMENTS = -2 };
/* Maximum side of a mask or network input, and maximum number of queries or classes. Products of
   two sides, or of a side and a number, fit into 31 bits. */
enum { MAX_SIDE = 1 << 15, MAX_NUMBER = (1 << 15) - 1 };

/* Memory for some values; NULL if there is not enough, even where addresses have 32 bits. */
static inline void *allocate(int64_t count, size_t size) {
    if (count < 0 || (uint64_t)count > (uint64_t)PTRDIFF_MAX / size) return NULL;
    return malloc((size_t)count * size + !count);
}

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

/* Arrays of one byte or two bytes per value. */
static inline void put_label(void *labels, int wide, int64_t index, int value) {
    if (wide)
        ((uint16_t *)labels)[index] = (uint16_t)value;
    else
        ((uint8_t *)labels)[index] = (uint8_t)value;
}

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }

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
    *lowest = low - slack(low, high);
    *highest = high + slack(low, high);
}

/* Resize mask rows [top, bottom] horizontally to image columns [left, left + count).
   Out: [rows, stride]. */
static inline void stretch_rows(const float *map, int width, int top, int bottom,
                                const Span *across, int left, int count, float *out,
                                int stride) {
    for (int row = top; row <= bottom; row++) {
        const float *source = map + (int64_t)row * width;
        float *target = out + (row - top) * stride;
        for (int x = 0; x < count;) {
            /* If the image is larger than the map, many pixels are mixed from the same values. */
            const int first = across[left + x].first;
            const float a = source[first], b = source[first + 1], c = source[first + 2];
            for (; x < count && across[left + x].first == first; x++)
                target[x] = weighted(across[left + x].weights, a, b, c);
        }
    }
}

/* Interpolate one image row from three horizontally resized mask rows. */
static inline void mix_rows(const float *rows, int stride, const float *weights, int count,
                            float *restrict out) {
    for (int x = 0; x < count; x++)
        out[x] = weighted(weights, rows[x], rows[x + stride], rows[x + 2 * stride]);
}
