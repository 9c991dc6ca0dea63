/* The class of each pixel: the one with the highest class x mask probability, summed over the
   queries and averaged over the windows.

   The result is exact, although most values are never computed. In a part of the image, each mask
   probability is bounded by its lowest and highest logit there. This bounds the lead of one class
   over another, and a class that can never lead is dropped. If one class remains, the part is
   done. Otherwise it is cut into four parts. Small parts are computed pixel by pixel: first with
   the important queries only, then with all queries if the others could change the result. */
/* Class scores are sums of many products. Their rounding is that of the fastest instructions. */
#pragma clang fp contract(fast)

#include "semantic.h"

/* Remove the classes that cannot win in a region from classes [count], which keeps its ascending
   order. Return the number of classes that remain. */
static int cull_classes(Work *work, Region region, int *classes, int count) {
    const Job *job = work->job;
    const View **seen = work->seen;
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
        /* Add the windows of a stretch, and take the highest lead of all stretches. */
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

/* Keep only the queries that matter for the choice between the classes in a region.

   The contribution of the others, at the middle of their ranges, goes into base [count]. Return by
   how much they could change the lead of a class at most. */
static float keep_queries(Work *work, const View *view, Region seen, const int *classes,
                          int count, Queries *kept) {
    const Job *job = work->job;
    const float share = 1.0f / (float)view->sharing;
    float lowest[LANES], highest[LANES], doubt = 0;
    int live = 0;
    for (int block = 0; block < job->lanes; block += LANES) {
        for (int lane = 0; lane < LANES; lane++) lowest[lane] = INFINITY, highest[lane] = 0;
        for (int i = 0; i < count; i++) {
            const float *row = class_row(job, view->window, classes[i]) + block;
            for (int lane = 0; lane < LANES; lane++) {
                lowest[lane] = row[lane] < lowest[lane] ? row[lane] : lowest[lane];
                highest[lane] = row[lane] > highest[lane] ? row[lane] : highest[lane];
            }
        }
        for (int lane = 0; lane < LANES; lane++) {
            const float possible = (highest[lane] - lowest[lane]) * view->half[block + lane] * share;
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
    }
    *kept = (Queries){work->lean_logits, work->lean_probabilities, lanes,
                      mask.top, mask.left, mask.right - mask.left + 1};
    return doubt;
}

/* Interpolate the mask logits of one pixel of a network input. Out: its probabilities [lanes]. */
static inline void sample_masks(const Queries *queries, Tap down, Tap across,
                                float *restrict pixel) {
    const int lanes = queries->lanes;
    const int64_t line = (int64_t)queries->mask_columns * lanes;
    const float *upper = queries->logits + (down.low - queries->mask_top) * line;
    const float *lower = queries->logits + (down.high - queries->mask_top) * line;
    const int low = (across.low - queries->mask_left) * lanes;
    const int high = (across.high - queries->mask_left) * lanes;
    for (int q = 0; q < lanes; q++) {
        const float above = upper[low + q] * across.rest + upper[high + q] * across.weight;
        const float below = lower[low + q] * across.rest + lower[high + q] * across.weight;
        pixel[q] = sigmoid(above * down.rest + below * down.weight);
    }
}

/* Add the class scores [count] of one window to the scores of the pixels of a region. */
static void add_scores(Work *work, const View *view, Region region, const Queries *queries,
                       const float *base, int count) {
    const Job *job = work->job;
    const Region seen = seen_by(view, region);
    const int columns = region.right - region.left + 1, lanes = queries->lanes;
    const float share = 1.0f / (float)view->sharing;
    float *pixel = work->pixels;
    for (int row = seen.top; row <= seen.bottom; row++) {
        const Tap down = job->input_down[row - view->row_offset];
        for (int column = seen.left; column <= seen.right; column++) {
            sample_masks(queries, down, job->input_across[column - view->column_offset], pixel);
            float *scores = work->scores +
                (int64_t)((row - region.top) * columns + column - region.left) * count;
            for (int i = 0; i < count; i++) {
                const float *row_of = queries->probabilities + (int64_t)i * lanes;
                scores[i] += share * (dot(row_of, pixel, lanes) + base[i]);
            }
        }
    }
}

/* Add the products of class probabilities [queries, LANES] and mask probabilities [group, lanes] to
   scores [group, stride]. The sums stay in registers if `group` is a small constant. */
static inline __attribute__((always_inline)) void add_product(
    const float *classes, const float *pixels, int queries, int lanes, float share, float *scores,
    int64_t stride, int group) {
    Lanes sums[GROUP];
    for (int i = 0; i < group; i++) sums[i] = (Lanes){0};
    for (int q = 0; q < queries; q++)
        for (int i = 0; i < group; i++)
            sums[i] += load(classes + q * LANES) * pixels[(int64_t)i * lanes + q];
    for (int i = 0; i < group; i++) *(Lanes *)(scores + i * stride) += share * sums[i];
}

/* As add_scores, for all queries and many classes: a matrix product of LANES classes at a time. Out:
   scores [pixels, stride], with the count of classes rounded up to LANES as stride. */
static void multiply_scores(Work *work, const View *view, Region region, const int *classes,
                            int count) {
    const Job *job = work->job;
    const Region seen = seen_by(view, region);
    const Strip strip = work->strips[view->window];
    const Queries all = {strip.logits, NULL, job->lanes, strip.mask_top, 0, job->mask_width};
    const int columns = seen.right - seen.left + 1, lanes = job->lanes;
    const int64_t line = region.right - region.left + 1, stride = rounded_up(count);
    const float share = 1.0f / (float)view->sharing;
    float *pixel = work->pixels;
    for (int row = seen.top; row <= seen.bottom; row++)
        for (int column = seen.left; column <= seen.right; column++, pixel += lanes)
            sample_masks(&all, job->input_down[row - view->row_offset],
                         job->input_across[column - view->column_offset], pixel);
    for (int first = 0; first < count; first += LANES) {
        for (int i = 0; i < LANES; i++) {
            const int known = first + i < count;
            const float *row = class_row(job, view->window, classes[known ? first + i : 0]);
            for (int q = 0; q < job->queries; q++)
                work->block[q * LANES + i] = known ? row[q] : 0;
        }
        for (int row = seen.top; row <= seen.bottom; row++) {
            const float *pixels = work->pixels + (int64_t)(row - seen.top) * columns * lanes;
            float *scores = work->scores + first +
                ((row - region.top) * line + seen.left - region.left) * stride;
            int x = 0;
            for (; x + GROUP <= columns; x += GROUP)
                add_product(work->block, pixels + (int64_t)x * lanes, job->queries, lanes, share,
                            scores + x * stride, stride, GROUP);
            for (; x < columns; x++)
                add_product(work->block, pixels + (int64_t)x * lanes, job->queries, lanes, share,
                            scores + x * stride, stride, 1);
        }
    }
}

/* Label a part from its class scores [pixels, count]. Return whether the best class of every pixel leads by
   at least `margin`. */
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
                /* Use >, not >=, so that the first class wins ties, as in argmax. */
                if (score > best_score)
                    second = best_score, best_score = score, best = i;
                else if (score > second)
                    second = score;
            }
            sure &= best_score - second >= margin;
            put_label(job->labels, job->wide, (int64_t)y * job->width + x, classes[best]);
        }
    }
    return sure;
}

/* Label a part from the scores of multiply_scores for classes [count]. Each lane keeps the best of
   its classes, and the best lane wins. */
static void choose_best_of_many(const Work *work, Part part, Region region, const int *classes,
                                int count) {
    const Job *job = work->job;
    const int64_t stride = rounded_up(count), line = (region.right - region.left + 1) * stride;
    Bits lanes;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    for (int y = part.y0; y < part.y1; y++) {
        const Tap down = job->image_down[y];
        const float *upper = work->scores + (down.low - region.top) * line;
        const float *lower = work->scores + (down.high - region.top) * line;
        for (int x = part.x0; x < part.x1; x++) {
            const Tap across = job->image_across[x];
            const int64_t low = (across.low - region.left) * stride;
            const int64_t high = (across.high - region.left) * stride;
            Lanes highest = (Lanes){0} - INFINITY;
            Bits first = {0};
            for (int i = 0; i < stride; i += LANES) {
                const Lanes above =
                    load(upper + low + i) * across.rest + load(upper + high + i) * across.weight;
                const Lanes below =
                    load(lower + low + i) * across.rest + load(lower + high + i) * across.weight;
                const Lanes score = above * down.rest + below * down.weight;
                const Bits better = (score > highest) & (lanes < count - i);
                highest = choose(better, score, highest);
                first = (better & i) | (~better & first);
            }
            int best = first[0];
            float best_score = highest[0];
            for (int lane = 1; lane < LANES; lane++) {
                const int i = first[lane] + lane;
                /* The first class wins ties, as in argmax. */
                if (highest[lane] > best_score || (highest[lane] == best_score && i < best))
                    best_score = highest[lane], best = i;
            }
            put_label(job->labels, job->wide, (int64_t)y * job->width + x, classes[best]);
        }
    }
}

/* Compute the scores of the classes [count] for each pixel of a part, and label the part. */
static void compare_classes(Work *work, Part part, Region region, const int *classes, int count) {
    const size_t pixels = (size_t)(region.right - region.left + 1) *
                          (region.bottom - region.top + 1);
    const int64_t stride = rounded_up(count);
    if (count <= MANY_CLASSES) {
        float doubt = 0;
        memset(work->scores, 0, sizeof(float) * pixels * count);
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
    memset(work->scores, 0, sizeof(float) * pixels * stride);
    for (int i = 0; i < work->view_count; i++) {
        const View *view = &work->views[i];
        if (!is_empty(seen_by(view, region))) multiply_scores(work, view, region, classes, count);
    }
    choose_best_of_many(work, part, region, classes, count);
}

/* Label a part in which only the classes given [count] can win. The memory behind them has room for
   the lists of this part and of the parts that it is cut into. */
static void label_part(Work *work, Part part, int *given, int count) {
    const Job *job = work->job;
    const Region region = region_of(job, part);
    int *classes = given + count;
    memcpy(classes, given, sizeof(int) * count);
    count = cull_classes(work, region, classes, count);
    if (count == 1) {
        for (int y = part.y0; y < part.y1; y++)
            for (int x = part.x0; x < part.x1; x++)
                put_label(job->labels, job->wide, (int64_t)y * job->width + x, classes[0]);
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

/* Maximum number of class lists in use at once, if a tile is cut down to single pixels. */
static int max_lists(const Job *job) {
    int lists = 2;
    for (int64_t side = larger(job->tile_rows, job->tile_columns); side > 1; side = (side + 1) / 2)
        lists++;
    return lists;
}

/* Maximum number of views: a tile can overlap every window. */
static int64_t max_views(const Job *job) {
    int64_t views = 0;
    for (int i = 0; i < job->stretch_count; i++) views += job->stretches[i].count;
    return views;
}

/* Maximum number of logits in the strips of a row of tiles, for rows [row_start, row_end). */
static int64_t max_logits(const Job *job, int row_start, int row_end) {
    int64_t maximum = 0;
    for (int64_t y0 = row_start; y0 < row_end; y0 += job->tile_rows) {
        const int y1 = y0 + job->tile_rows < row_end ? (int)y0 + job->tile_rows : row_end;
        int64_t rows = 0;
        int first;
        for (int window = 0; window < job->windows; window++)
            rows += strip_rows(job, window, (int)y0, y1, &first);
        maximum = rows > maximum ? rows : maximum;
    }
    return maximum * job->mask_width * job->lanes;
}

/* Label rows [row_start, row_end) of the image. */
API int classify_pixels(const Job *job, int row_start, int row_end) {
    if (!job_fits(job, row_start, row_end)) return WRONG_ARGUMENTS;
    const int64_t lanes = job->lanes, views = max_views(job);
    const int64_t lean_positions = (SMALL_SIDE + 2) * (SMALL_SIDE + 2);
    Work work = {
        .job = job,
        .strips = allocate(job->windows, sizeof(Strip)),
        .views = allocate(views, sizeof(View)),
        .seen = allocate(views, sizeof(View *)),
        .logits = allocate(max_logits(job, row_start, row_end), sizeof(float)),
        .bounds = allocate(2 * views * lanes, sizeof(float)),
        .scores = allocate(MANY_SIDE * MANY_SIDE * rounded_up(job->classes), sizeof(float)),
        .pixels = allocate(MANY_SIDE * MANY_SIDE * lanes, sizeof(float)),
        .block = allocate(LANES * lanes, sizeof(float)),
        .lean_logits = allocate(lean_positions * lanes, sizeof(float)),
        .lean_probabilities = allocate(MANY_CLASSES * lanes, sizeof(float)),
        .base = allocate(MANY_CLASSES, sizeof(float)),
        .lean_queries = allocate(lanes, sizeof(int)),
    };
    int *all = allocate((int64_t)max_lists(job) * job->classes, sizeof(int));
    const int ready = work.strips && work.views && work.seen && work.logits && work.bounds &&
                      work.scores && work.pixels && work.block && work.lean_logits && work.lean_probabilities &&
                      work.base && work.lean_queries && all;
    for (int i = 0; ready && i < job->classes; i++) all[i] = i;
    for (int64_t y0 = row_start; ready && y0 < row_end; y0 += job->tile_rows) {
        const int y1 = y0 + job->tile_rows < row_end ? (int)y0 + job->tile_rows : row_end;
        fill_strips(&work, (int)y0, y1);
        for (int64_t x0 = 0; x0 < job->width; x0 += job->tile_columns) {
            const int64_t x1 = x0 + job->tile_columns;
            const Part tile = {(int)y0, y1, (int)x0, x1 < job->width ? (int)x1 : job->width};
            open_views(&work, region_of(job, tile));
            label_part(&work, tile, all, job->classes);
        }
    }
    free(work.strips), free(work.views), free(work.seen), free(work.logits), free(work.bounds);
    free(work.scores), free(work.pixels), free(work.block), free(work.lean_logits);
    free(work.lean_probabilities), free(work.base), free(work.lean_queries), free(all);
    return ready ? DONE : NO_MEMORY;
}
