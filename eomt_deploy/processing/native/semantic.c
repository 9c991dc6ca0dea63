/* The class of each pixel: the highest mean over the windows of class x mask probability.

   The result is exact though little is computed. In a part of the image each mask probability
   lies between those of its lowest and highest logit, so that the lead of one class over another
   has a highest possible value: a class that can never lead is left out, and where one class is
   left its pixels are done. Other parts are cut into four, and at the end computed pixel by
   pixel: first with the queries that matter there, and with all where the rest could decide. */
#include <string.h>

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

/* Leave out of the classes [count], ascending, those that cannot win; how many stay. */
static int cull_classes(Work *work, Region region, int *classes, int count) {
    const Job *job = work->job;
    const View *seen[MOST_VIEWS];
    int seen_count = 0;
    for (int i = 0; i < work->view_count; i++) {
        const View *view = &work->views[i];
        const Region part = seen_by(view, region);
        if (is_empty(part)) continue;
        find_probabilities(work, view, part);
        seen[seen_count++] = view;
    }
    int best = classes[0];
    work->best_score = -1;
    for (int i = 0; i < count; i++) {
        float score = 0;
        for (int j = 0; j < seen_count; j++)
            score += dot(class_row(job, seen[j]->window, classes[i]), seen[j]->middle, job->lanes);
        if (score > work->best_score) work->best_score = score, best = classes[i];
    }
    int left_over = 0;
    for (int i = 0; i < count; i++) {
        /* Windows of one stretch are added up; of several stretches the highest lead counts. */
        float lead = -INFINITY;
        for (int j = 0; j < seen_count;) {
            float sum = 0;
            for (int left = seen[j]->sharing; left; left--, j++)
                sum += highest_lead(class_row(job, seen[j]->window, classes[i]),
                                    class_row(job, seen[j]->window, best), seen[j]->middle,
                                    seen[j]->half, job->lanes);
            lead = sum > lead ? sum : lead;
        }
        if (classes[i] == best || lead >= -1e-5f * work->best_score)
            classes[left_over++] = classes[i];
    }
    return left_over;
}

/* Set aside the queries that hardly tell the classes apart in a region; how much they could.

   What they give on average goes into base [count]. */
static float keep_queries(Work *work, const View *view, Region seen, const int *classes,
                          int count, Queries *kept) {
    const Job *job = work->job;
    const float share = 1.0f / (float)view->sharing;
    float least[LANES], most[LANES], doubt = 0;
    int live = 0;
    for (int block = 0; block < job->lanes; block += LANES) {
        for (int lane = 0; lane < LANES; lane++) least[lane] = INFINITY, most[lane] = 0;
        for (int i = 0; i < count; i++) {
            const float *row = class_row(job, view->window, classes[i]) + block;
            for (int lane = 0; lane < LANES; lane++) {
                least[lane] = row[lane] < least[lane] ? row[lane] : least[lane];
                most[lane] = row[lane] > most[lane] ? row[lane] : most[lane];
            }
        }
        for (int lane = 0; lane < LANES; lane++) {
            const float possible = (most[lane] - least[lane]) * view->half[block + lane] * share;
            if (possible > MINOR * work->best_score)
                work->lean_queries[live++] = block + lane;
            else
                doubt += possible;
        }
    }
    const int lanes = (live + LANES - 1) / LANES * LANES;
    const Region mask = mask_region(job, view, seen);
    const Strip strip = work->strips[view->window];
    float *target = work->lean_logits;
    for (int row = mask.top; row <= mask.bottom; row++)
        for (int column = mask.left; column <= mask.right; column++, target += lanes) {
            const float *source = strip.logits + (int64_t)job->lanes *
                ((row - strip.mask_top) * job->mask_width + column);
            for (int i = 0; i < live; i++) target[i] = source[work->lean_queries[i]];
            for (int i = live; i < lanes; i++) target[i] = -100;
        }
    for (int i = 0; i < count; i++) {
        const float *row = class_row(job, view->window, classes[i]);
        float *lean = work->lean_probabilities + i * lanes;
        float known = 0;
        for (int j = 0; j < live; j++) {
            lean[j] = row[work->lean_queries[j]];
            known += lean[j] * view->middle[work->lean_queries[j]];
        }
        for (int j = live; j < lanes; j++) lean[j] = 0;
        work->base[i] = dot(row, view->middle, job->lanes) - known;
        work->lean_rows[i] = i;
    }
    *kept = (Queries){work->lean_logits, work->lean_probabilities, work->lean_rows, lanes,
                      mask.top, mask.left, mask.right - mask.left + 1};
    return doubt;
}

/* Add one window's scores of the classes [count] to those of the pixels of a region. */
static void add_scores(Work *work, const View *view, Region region, const Queries *queries,
                       const float *base, int count) {
    const Job *job = work->job;
    const Region seen = seen_by(view, region);
    const int columns = region.right - region.left + 1, lanes = queries->lanes;
    const int64_t line = (int64_t)queries->mask_columns * lanes;
    const float share = 1.0f / (float)view->sharing;
    float *restrict pixel = work->pixel;
    for (int row = seen.top; row <= seen.bottom; row++) {
        const Tap down = job->input_down[row - view->row_offset];
        const float *upper = queries->logits + (down.low - queries->mask_top) * line;
        const float *lower = queries->logits + (down.high - queries->mask_top) * line;
        for (int column = seen.left; column <= seen.right; column++) {
            const Tap across = job->input_across[column - view->column_offset];
            const int low = (across.low - queries->mask_left) * lanes;
            const int high = (across.high - queries->mask_left) * lanes;
            for (int q = 0; q < lanes; q++) {
                const float above = upper[low + q] * across.rest + upper[high + q] * across.weight;
                const float below = lower[low + q] * across.rest + lower[high + q] * across.weight;
                pixel[q] = sigmoid(above * down.rest + below * down.weight);
            }
            float *scores = work->scores +
                (int64_t)((row - region.top) * columns + column - region.left) * count;
            for (int i = 0; i < count; i++) {
                const float *row_of = queries->probabilities + (int64_t)queries->rows[i] * lanes;
                scores[i] += share * (dot(row_of, pixel, lanes) + (base ? base[i] : 0));
            }
        }
    }
}

/* Label a part from the scores of the classes [count]; whether each best one leads by a margin. */
static int choose_best(const Work *work, Part part, Region region, const int *classes, int count,
                       float margin) {
    const Job *job = work->job;
    const int columns = region.right - region.left + 1;
    int sure = 1;
    for (int y = part.y0; y < part.y1; y++) {
        const Tap down = job->image_down[y];
        const float *upper = work->scores + (int64_t)(down.low - region.top) * columns * count;
        const float *lower = work->scores + (int64_t)(down.high - region.top) * columns * count;
        for (int x = part.x0; x < part.x1; x++) {
            const Tap across = job->image_across[x];
            const int low = (across.low - region.left) * count;
            const int high = (across.high - region.left) * count;
            int best = 0;
            float best_score = -INFINITY, second = -INFINITY;
            for (int i = 0; i < count; i++) {
                const float above = upper[low + i] * across.rest + upper[high + i] * across.weight;
                const float below = lower[low + i] * across.rest + lower[high + i] * across.weight;
                const float score = above * down.rest + below * down.weight;
                /* Strictly: the first class wins ties, as argmax does. */
                if (score > best_score)
                    second = best_score, best_score = score, best = i;
                else if (score > second)
                    second = score;
            }
            sure &= best_score - second >= margin;
            job->labels[(int64_t)y * job->width + x] = classes[best];
        }
    }
    return sure;
}

/* Compute the scores of the classes [count] in each pixel of a part, and label it. */
static void compare_classes(Work *work, Part part, Region region, const int *classes, int count) {
    const Job *job = work->job;
    const size_t bytes = sizeof(float) * count * (region.right - region.left + 1) *
                         (region.bottom - region.top + 1);
    if (count <= MANY_CLASSES) {
        float doubt = 0;
        memset(work->scores, 0, bytes);
        for (int i = 0; i < work->view_count; i++) {
            const View *view = &work->views[i];
            const Region seen = seen_by(view, region);
            if (is_empty(seen)) continue;
            Queries kept;
            doubt += keep_queries(work, view, seen, classes, count, &kept);
            add_scores(work, view, region, &kept, work->base, count);
        }
        if (choose_best(work, part, region, classes, count, doubt + 1e-5f * work->best_score))
            return;
    }
    memset(work->scores, 0, bytes);
    for (int i = 0; i < work->view_count; i++) {
        const View *view = &work->views[i];
        const Strip strip = work->strips[view->window];
        const Queries all = {strip.logits, class_row(job, view->window, 0), classes, job->lanes,
                             strip.mask_top, 0, job->mask_width};
        add_scores(work, view, region, &all, NULL, count);
    }
    choose_best(work, part, region, classes, count, 0);
}

/* Label a part in which only the classes [count] can win. */
static void label_part(Work *work, Part part, const int *given, int count) {
    const Job *job = work->job;
    const Region region = region_of(job, part);
    int classes[count];
    memcpy(classes, given, sizeof(int) * count);
    count = cull_classes(work, region, classes, count);
    if (count == 1) {
        for (int y = part.y0; y < part.y1; y++)
            for (int x = part.x0; x < part.x1; x++)
                job->labels[(int64_t)y * job->width + x] = classes[0];
        return;
    }
    const int side = larger(region.bottom - region.top, region.right - region.left) + 1;
    const int height = part.y1 - part.y0, width = part.x1 - part.x0;
    if ((height == 1 && width == 1) || side <= (count > MANY_CLASSES ? MANY_SIDE : SMALL_SIDE)) {
        compare_classes(work, part, region, classes, count);
        return;
    }
    const int y = part.y0 + (height + 1) / 2, x = part.x0 + (width + 1) / 2;
    label_part(work, (Part){part.y0, y, part.x0, x}, classes, count);
    if (x < part.x1) label_part(work, (Part){part.y0, y, x, part.x1}, classes, count);
    if (y < part.y1) label_part(work, (Part){y, part.y1, part.x0, x}, classes, count);
    if (x < part.x1 && y < part.y1)
        label_part(work, (Part){y, part.y1, x, part.x1}, classes, count);
}

/* Rows [row_start, row_end) of the image. Returns 0, or -1 when there is no memory. */
API int classify_pixels(const Job *job, int row_start, int row_end) {
    const int64_t lanes = job->lanes, strips = job->axis == 1 ? job->windows : MOST_VIEWS;
    const int64_t lean_positions = (SMALL_SIDE + 2) * (SMALL_SIDE + 2);
    Work work = {
        .job = job,
        .strips = malloc(sizeof(Strip) * job->windows),
        .logits = malloc(sizeof(float) * strips * job->strip_rows * job->mask_width * lanes),
        .bounds = malloc(sizeof(float) * 2 * MOST_VIEWS * lanes),
        .scores = malloc(sizeof(float) * MANY_SIDE * MANY_SIDE * job->classes),
        .pixel = malloc(sizeof(float) * lanes),
        .lean_logits = malloc(sizeof(float) * lean_positions * lanes),
        .lean_probabilities = malloc(sizeof(float) * MANY_CLASSES * lanes),
        .base = malloc(sizeof(float) * MANY_CLASSES),
        .lean_queries = malloc(sizeof(int) * lanes),
        .lean_rows = malloc(sizeof(int) * MANY_CLASSES),
    };
    int *all = malloc(sizeof(int) * job->classes);
    const int ready = work.strips && work.logits && work.bounds && work.scores && work.pixel &&
                      work.lean_logits && work.lean_probabilities && work.base &&
                      work.lean_queries && work.lean_rows && all;
    for (int i = 0; ready && i < job->classes; i++) all[i] = i;
    for (int y0 = row_start; ready && y0 < row_end; y0 += job->tile_rows) {
        const int y1 = smaller(y0 + job->tile_rows, row_end);
        fill_strips(&work, y0, y1);
        for (int x = 0; x < job->width; x += job->tile_columns) {
            const Part tile = {y0, y1, x, smaller(x + job->tile_columns, job->width)};
            open_views(&work, region_of(job, tile));
            label_part(&work, tile, all, job->classes);
        }
    }
    free(work.strips), free(work.logits), free(work.bounds), free(work.scores), free(work.pixel);
    free(work.lean_logits), free(work.lean_probabilities), free(work.base);
    free(work.lean_queries), free(work.lean_rows), free(all);
    return ready ? 0 : -1;
}
