/* The kernels, which pixels.py and the library of eomt.h call, and their arguments. */
#pragma once

#include "pixels.h"

/* Number of queries that semantic.c processes at once. */
enum { LANES = 16 };

static inline int64_t rounded_up(int count) {
    return ((int64_t)count + LANES - 1) / LANES * LANES;
}

/* Measurements of one mask. */
typedef struct {
    int64_t area;   /* pixels inside the mask */
    int64_t inside; /* sum of their probabilities, in units of 2^-24 */
    int32_t box[4]; /* (x0, y0, x1, y1) in the image, x1 and y1 exclusive */
    int64_t runs;   /* number of runs */
} Measure;

/* Part [start, end) of the axis that is covered by the windows [first, first + count). */
typedef struct {
    int32_t start, end, first, count;
} Stretch;

/* Arguments of classify_pixels, filled in by pixels.py. */
typedef struct {
    const float *masks;         /* [N, Q, mask_height, mask_width] */
    const float *probabilities; /* [N, C, lanes]: queries are last, padded with 0 */
    const int32_t *starts;      /* [N], start of each window along the axis */
    const Stretch *stretches;
    const Tap *input_down, *input_across; /* from a mask to a network input */
    const Tap *image_down, *image_across; /* from the merged windows to the image */
    void *labels; /* out: [height, width], two bytes per label if `wide`, else one */
    int32_t windows, queries, lanes, classes, mask_height, mask_width;
    int32_t input_height, input_width;   /* size of a network input, i.e. of a window */
    int32_t merged_height, merged_width; /* size of all windows together */
    int32_t axis, stretch_count;
    int32_t height, width, tile_rows, tile_columns; /* size of the image and of a tile of it */
    int32_t wide;
} Job;

API int any_not_finite(const float *values, int64_t count);
API int softmax(const float *logits, int64_t rows, int columns, float *probabilities);
API int classify_pixels(const Job *job, int row_start, int row_end);
API int paint_panoptic(const float *masks, int count, int mask_height, int mask_width,
                       const Span *down, const Span *across, int height, int width,
                       const float *scores, float threshold, int row_start, int row_end,
                       int16_t *owners, int64_t *areas);
API int label_segments(const int16_t *owners, int height, int width, const int32_t *segment_of,
                       int count, int segment_count, int row_start, int row_end, int wide,
                       void *labels, int32_t *boxes);
API int measure_instances(const float *maps, const int32_t *queries, int count, int mask_height,
                          int mask_width, const Span *down, const Span *across, int height,
                          int width, Measure *measures, uint32_t **all_runs);
API void free_runs(uint32_t *runs);
API int kernel_version(void);
