/* Data of semantic.c: the job, the windows that overlap a tile, and probability bounds. */
#pragma once

#include "kernels.h"

enum { MAX_WINDOWS = 1 << 12 };
/* Maximum side, in pixels of the merged windows, of a part that is computed instead of being cut
   further: SMALL_SIDE, or MANY_SIDE for more than MANY_CLASSES classes. */
enum { SMALL_SIDE = 6, MANY_CLASSES = 24, MANY_SIDE = 20 };
/* Two adjacent image pixels can be any number of merged pixels apart. */
enum { MAX_STEP = INT32_MAX };
/* A query is left out at first if it changes class scores by at most this fraction of the best. */
static const float MINOR = 2e-5f;

/* Mask logits of one window for one row of tiles: [rows, mask_width, lanes]. */
typedef struct {
    float *logits;
    int mask_top;
} Strip;

/* The part of a window that overlaps a tile. Rows and columns are those of the merged windows. */
typedef struct {
    int top, bottom, left, right; /* inclusive */
    int row_offset, column_offset;
    int window, sharing; /* sharing: number of windows on the same stretch, including this one */
    float *middle, *half; /* [lanes], middle and half width of the range of mask probabilities */
} View;

/* Logits and probabilities of all queries, or of those that matter in a part. */
typedef struct {
    const float *logits;        /* [mask rows, mask_columns, lanes] */
    const float *probabilities; /* [., lanes] */
    int lanes, mask_top, mask_left, mask_columns;
} Queries;

typedef struct {
    const Job *job;
    Strip *strips;     /* [N] */
    View *views;       /* views of one tile */
    const View **seen; /* views that overlap one part */
    int view_count;
    float *logits, *bounds, *scores, *pixels, *block, *lean_logits, *lean_probabilities, *base;
    int *lean_queries;
    float best_score; /* highest class score of the current part, at the middle of all ranges */
} Work;

/* A rectangle of the image, ends exclusive. */
typedef struct {
    int y0, y1, x0, x1;
} Part;

/* The merged pixels that a part is interpolated from, ends inclusive. */
typedef struct {
    int top, bottom, left, right;
} Region;

/* Compiler vector types. The compiler splits them if the CPU's vectors are shorter. */
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES), aligned(4)));

/* Number of pixels whose scores a matrix product computes at once. */
enum { GROUP = 4 };

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

/* The maximum of the sum of (a - b) * probability, for probabilities in middle +- half. */
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

/* The part of a region that a window covers; see is_empty if there is none. */
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

static inline int window_length(const Job *job) {
    return job->axis == 0 ? job->input_height : job->input_width;
}

/* Whether all indices of a job are inside its arrays, for image rows [row_start, row_end). */
static int job_fits(const Job *job, int row_start, int row_end) {
    if (!job || !job->masks || !job->probabilities || !job->starts || !job->stretches ||
        !job->labels || !within(job->axis, 0, 1) || !within(job->windows, 1, MAX_WINDOWS) ||
        !within(job->queries, 1, MAX_NUMBER) || !within(job->classes, 1, MAX_NUMBER) ||
        !within(job->lanes, job->queries, MAX_NUMBER + 1) || job->lanes % LANES ||
        !within(job->mask_height, 1, MAX_SIDE) || !within(job->mask_width, 1, MAX_SIDE) ||
        !within(job->input_height, 1, MAX_SIDE) || !within(job->input_width, 1, MAX_SIDE) ||
        job->merged_height < 1 || job->merged_width < 1 || job->height < 1 || job->width < 1 ||
        job->tile_rows < 1 || job->tile_columns < 1 || !within(job->wide, job->classes > 256, 1) ||
        !within(job->stretch_count, 1, 2 * job->windows))
        return 0;
    /* Windows slide along the axis; along the other side, they cover the complete image. */
    const int along = job->axis == 0 ? job->merged_height : job->merged_width;
    if ((job->axis == 0 ? job->merged_width > job->input_width
                        : job->merged_height > job->input_height))
        return 0;
    for (int i = 0; i < job->windows; i++)
        if (!within(job->starts[i], 0, (int64_t)along - window_length(job))) return 0;
    for (int i = 0; i < job->stretch_count; i++) {
        const Stretch stretch = job->stretches[i];
        if (!within(stretch.start, 0, stretch.end) || stretch.end > along ||
            !within(stretch.count, 1, job->windows) ||
            !within(stretch.first, 0, job->windows - stretch.count))
            return 0;
        for (int j = stretch.first; j < stretch.first + stretch.count; j++)
            if (!within(stretch.start, job->starts[j], stretch.end) ||
                stretch.end > job->starts[j] + window_length(job))
                return 0;
    }
    /* lean_logits is large enough if adjacent input pixels are at most one mask pixel apart. */
    return taps_fit(job->image_down, row_start, row_end, job->height, job->merged_height,
                    MAX_STEP) &&
           taps_fit(job->image_across, 0, job->width, job->width, job->merged_width, MAX_STEP) &&
           taps_fit(job->input_down, 0, job->input_height, job->input_height, job->mask_height,
                    1) &&
           taps_fit(job->input_across, 0, job->input_width, job->input_width, job->mask_width, 1);
}

/* The mask rows of a window that image rows [y0, y1) need. Return their number; out: the first. */
static int strip_rows(const Job *job, int window, int y0, int y1, int *first) {
    int top = job->image_down[y0].low, bottom = job->image_down[y1 - 1].high;
    if (job->axis == 0) {
        const int start = job->starts[window];
        top = larger(top - start, 0);
        bottom = smaller(bottom - start, job->input_height - 1);
        if (top > bottom) return 0;
    }
    *first = job->input_down[top].low;
    return job->input_down[bottom].high - *first + 1;
}

/* Copy the logits that a row of tiles needs, with queries last, so that loops over the queries
   vectorize. */
static void fill_strips(Work *work, int y0, int y1) {
    const Job *job = work->job;
    const int64_t plane = (int64_t)job->mask_height * job->mask_width;
    float *memory = work->logits;
    for (int window = 0; window < job->windows; window++) {
        Strip *strip = &work->strips[window];
        const int rows = strip_rows(job, window, y0, y1, &strip->mask_top);
        strip->logits = memory;
        for (int row = 0; row < rows; row++) {
            const float *source = job->masks + (int64_t)window * job->queries * plane +
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

/* Find the windows that overlap a tile. */
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
                .middle = work->bounds + 2 * (int64_t)work->view_count * job->lanes,
                .half = work->bounds + (2 * (int64_t)work->view_count + 1) * job->lanes,
            };
            if (!is_empty(seen_by(&view, region))) work->views[work->view_count++] = view;
        }
    }
}

/* Middle and half width of the range of each query's mask probabilities, in a window's region. */
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
