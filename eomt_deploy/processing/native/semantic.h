/* Where semantic.c works: the job, the windows that meet a tile, and what their logits allow. */
#pragma once

#include "pixels.h"

/* A window is about as long as a tile at least, so that a tile meets few stretches of two windows:
   7 views were counted at a window of 16 pixels. */
enum { LANES = 16, MOST_VIEWS = 16 };
/* Side, in pixels of the merged windows, from which a part is computed and not cut further. */
enum { SMALL_SIDE = 6, MANY_CLASSES = 24, MANY_SIDE = 20 };
/* Share of the best score up to which one query's differences are set aside at first. */
static const float MINOR = 2e-5f;

/* Part of the merged windows along their axis, and the windows [first, first + count) on it. */
typedef struct {
    int32_t start, end, first, count;
} Stretch;

/* All that classify_pixels needs; pixels.py fills it in. */
typedef struct {
    const float *masks;         /* [N, Q, mask_height, mask_width] */
    const float *probabilities; /* [N, C, lanes]: queries come last, filled up with 0 */
    const int32_t *starts;      /* [N] of each window along the axis */
    const Stretch *stretches;
    const Tap *input_down, *input_across; /* from a mask to a network input */
    const Tap *image_down, *image_across; /* from the merged windows to the image */
    int32_t *labels;                      /* written: [height, width] */
    int32_t windows, queries, lanes, classes, mask_height, mask_width;
    int32_t axis, window_length, stretch_count;
    int32_t width, tile_rows, tile_columns; /* a tile is at most MANY_SIDE merged pixels wide */
    int32_t strip_rows;                     /* mask rows that the rows of a tile can need */
} Job;

/* Mask logits of one window for one row of tiles, queries last: [rows, mask_width, lanes]. */
typedef struct {
    float *logits;
    int mask_top;
} Strip;

/* One window where it meets one tile. Rows and columns are those of the merged windows. */
typedef struct {
    int top, bottom, left, right; /* inclusive */
    int row_offset, column_offset;
    int window, sharing; /* windows on the same stretch, this one included */
    float *middle, *half; /* [lanes] of the mask probabilities in the part looked at */
} View;

/* Logits and probabilities of some of the queries: all, or those that matter in a part. */
typedef struct {
    const float *logits; /* [mask rows, mask_columns, lanes] */
    const float *probabilities;
    const int *rows; /* [count] of each class in the probabilities, [., lanes] */
    int lanes, mask_top, mask_left, mask_columns;
} Queries;

typedef struct {
    const Job *job;
    Strip *strips; /* [N] */
    View views[MOST_VIEWS];
    int view_count;
    float *logits, *bounds, *scores, *pixel, *lean_logits, *lean_probabilities, *base;
    int *lean_queries, *lean_rows;
    float best_score; /* in the middle of the part looked at */
} Work;

/* A rectangle of the image, ends exclusive. */
typedef struct {
    int y0, y1, x0, x1;
} Part;

/* The merged pixels that it is interpolated from, ends inclusive. */
typedef struct {
    int top, bottom, left, right;
} Region;

/* Vectors of the compiler, which it splits where the CPU has shorter ones. */
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES), aligned(4)));

static inline float add_up(Lanes sums) {
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) sums[lane] += sums[lane + width];
    return sums[0];
}

static inline Lanes choose(Bits where, Lanes yes, Lanes no) {
    return (Lanes)((where & (Bits)yes) | (~where & (Bits)no));
}

static inline Lanes load(const float *at) { return *(const Lanes *)at; }

static inline float dot(const float *a, const float *b, int length) {
    Lanes sums = {0};
    for (int q = 0; q < length; q += LANES) sums += load(a + q) * load(b + q);
    return add_up(sums);
}

/* The highest possible value of the sum of (a - b) * probability. */
static inline float highest_lead(const float *a, const float *b, const float *middle,
                                 const float *half, int length) {
    Lanes sums = {0};
    for (int q = 0; q < length; q += LANES) {
        const Lanes difference = load(a + q) - load(b + q);
        const Lanes size = (Lanes)((Bits)difference & 0x7fffffff);
        sums += difference * load(middle + q) + size * load(half + q);
    }
    return add_up(sums);
}

static Region region_of(const Job *job, Part part) {
    return (Region){job->image_down[part.y0].low, job->image_down[part.y1 - 1].high,
                    job->image_across[part.x0].low, job->image_across[part.x1 - 1].high};
}

/* The part of a region that a window covers; empty (top below bottom) where there is none. */
static Region seen_by(const View *view, Region region) {
    return (Region){larger(region.top, view->top), smaller(region.bottom, view->bottom),
                    larger(region.left, view->left), smaller(region.right, view->right)};
}

static int is_empty(Region region) {
    return region.top > region.bottom || region.left > region.right;
}

/* The mask logits that a region of one window is interpolated from. */
static Region mask_region(const Job *job, const View *view, Region seen) {
    return (Region){job->input_down[seen.top - view->row_offset].low,
                    job->input_down[seen.bottom - view->row_offset].high,
                    job->input_across[seen.left - view->column_offset].low,
                    job->input_across[seen.right - view->column_offset].high};
}

static inline const float *class_row(const Job *job, int window, int class_id) {
    return job->probabilities + ((int64_t)window * job->classes + class_id) * job->lanes;
}

/* Copy the logits that a row of tiles needs, queries last: all further work is vector code. */
static void fill_strips(Work *work, int y0, int y1) {
    const Job *job = work->job;
    const Tap *down = job->input_down;
    const int64_t plane = (int64_t)job->mask_height * job->mask_width;
    float *memory = work->logits;
    for (int window = 0; window < job->windows; window++) {
        int top = job->image_down[y0].low, bottom = job->image_down[y1 - 1].high;
        if (job->axis == 0) {
            const int start = job->starts[window];
            top = larger(top - start, 0);
            bottom = smaller(bottom - start, job->window_length - 1);
            if (top > bottom) continue;
        }
        Strip *strip = &work->strips[window];
        strip->mask_top = down[top].low;
        strip->logits = memory;
        const int rows = down[bottom].high - strip->mask_top + 1;
        for (int row = 0; row < rows; row++) {
            const float *source = job->masks + window * job->queries * plane +
                                  (int64_t)(strip->mask_top + row) * job->mask_width;
            float *target = memory + (int64_t)row * job->mask_width * job->lanes;
            /* A few queries at a time, so that the lines written to stay in the cache. */
            for (int block = 0; block < job->lanes; block += LANES)
                for (int q = block; q < block + LANES; q++)
                    for (int column = 0; column < job->mask_width; column++)
                        target[(int64_t)column * job->lanes + q] =
                            q < job->queries ? source[q * plane + column] : -100;
        }
        memory += (int64_t)rows * job->mask_width * job->lanes;
    }
}

/* Find the windows that meet a tile. */
static void open_views(Work *work, Region region) {
    const Job *job = work->job;
    work->view_count = 0;
    for (int i = 0; i < job->stretch_count; i++) {
        const Stretch stretch = job->stretches[i];
        for (int j = 0; j < stretch.count; j++) {
            const int window = stretch.first + j, along = job->axis;
            const View view = {
                .top = along == 0 ? larger(region.top, stretch.start) : region.top,
                .bottom = along == 0 ? smaller(region.bottom, stretch.end - 1) : region.bottom,
                .left = along == 1 ? larger(region.left, stretch.start) : region.left,
                .right = along == 1 ? smaller(region.right, stretch.end - 1) : region.right,
                .row_offset = along == 0 ? job->starts[window] : 0,
                .column_offset = along == 1 ? job->starts[window] : 0,
                .window = window,
                .sharing = stretch.count,
                .middle = work->bounds + 2 * work->view_count * job->lanes,
                .half = work->bounds + (2 * work->view_count + 1) * job->lanes,
            };
            if (!is_empty(seen_by(&view, region))) work->views[work->view_count++] = view;
        }
    }
}

/* Middle and half width of the mask probabilities of a window in a region. */
static void find_probabilities(const Work *work, const View *view, Region seen) {
    const Job *job = work->job;
    const Region mask = mask_region(job, view, seen);
    const Strip strip = work->strips[view->window];
    const int64_t line = (int64_t)job->mask_width * job->lanes;
    const float *first = strip.logits + (mask.top - strip.mask_top) * line;
    for (int block = 0; block < job->lanes; block += LANES) {
        Lanes low = load(first + (int64_t)mask.left * job->lanes + block), high = low;
        for (int row = 0; row <= mask.bottom - mask.top; row++)
            for (int column = mask.left; column <= mask.right; column++) {
                const Lanes at = load(first + row * line + (int64_t)column * job->lanes + block);
                low = choose(at < low, at, low);
                high = choose(at > high, at, high);
            }
        *(Lanes *)(view->middle + block) = low;
        *(Lanes *)(view->half + block) = high;
    }
    float *restrict middle = view->middle, *restrict half = view->half;
    for (int q = 0; q < job->lanes; q++) {
        const float lowest = sigmoid(middle[q]), highest = sigmoid(half[q]);
        middle[q] = 0.5f * (lowest + highest);
        half[q] = 0.5f * (highest - lowest);
    }
}
