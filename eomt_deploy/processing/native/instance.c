/* Instance masks at image size, as runs of pixels, and the sum of the probabilities inside them. */
#include "kernels.h"

/* A row of a tile is a word of 64 bits. PART: number of its pixels that are skipped together. */
enum { TILE_ROWS = 32, TILE_COLUMNS = 64, PART = 32 };
#define ALL (~(uint64_t)0)

/* A growing list of runs: start and end (exclusive) of each, as indices into the flattened image. */
typedef struct {
    uint32_t *ends;
    int64_t count, capacity;
} Runs;

/* The rows and columns that contain a logit above 0, ends inclusive; top > bottom if there are none. */
typedef struct {
    int top, bottom, left, right;
} Extent;

static Extent extent_of(const float *map, int height, int width) {
    Extent found = {height, -1, width, -1};
    for (int y = 0; y < height; y++) {
        const float *row = map + (int64_t)y * width;
        int any = 0;
        for (int x = 0; x < width; x++) any |= row[x] > 0;
        if (!any) continue;
        int first = 0, last = width - 1;
        while (!(row[first] > 0)) first++;
        while (!(row[last] > 0)) last--;
        found.top = smaller(found.top, y), found.bottom = y;
        found.left = smaller(found.left, first), found.right = larger(found.right, last);
    }
    return found;
}

/* Image rows or columns [start, end) that are interpolated from source values first to last. */
static void reach(const Span *table, int length, int first, int last, int *start, int *end) {
    int low = 0;
    while (low < length && table[low].first < first - 2) low++;
    *start = low;
    while (low < length && table[low].first <= last) low++;
    *end = low;
}

/* Bit i of the result is byte i of eight bytes that are 0 or 1. */
static uint64_t packed(const uint8_t *bytes) {
    uint64_t eight;
    memcpy(&eight, bytes, 8);
    return (eight * 0x0102040810204080u) >> 56;
}

/* The mask of a row of a tile, the first column in the lowest bit. Add the probabilities inside. */
static uint64_t mask_row(const float *restrict logits, int64_t *inside) {
    uint8_t mask[TILE_COLUMNS];
    uint64_t bits = 0;
    int32_t sum = 0; /* at most TILE_COLUMNS * UNIT = 2^30 */
    for (int start = 0; start < TILE_COLUMNS; start += PART) {
        int32_t any = 0;
        for (int i = start; i < start + PART; i++) {
            const int32_t on = logits[i] > 0;
            any |= on;
            mask[i] = (uint8_t)on;
        }
        if (!any) continue; /* the probabilities take most of the time */
        for (int i = start; i < start + PART; i += 8) bits |= packed(mask + i) << i;
        for (int i = start; i < start + PART; i++)
            sum += -(int32_t)(logits[i] > 0) & (int32_t)(sigmoid(logits[i]) * UNIT);
    }
    *inside += sum;
    return bits;
}

/* The first column in [start, end) whose bit differs from those of `same`; `end` if there is none. */
static int run_end(const uint64_t *row, int start, int end, uint64_t same) {
    if (start >= end) return end;
    int word = start / TILE_COLUMNS;
    uint64_t other = (row[word] ^ same) & (ALL << start % TILE_COLUMNS);
    while (!other) {
        if (++word * TILE_COLUMNS >= end) return end;
        other = row[word] ^ same;
    }
    return smaller(end, word * TILE_COLUMNS + __builtin_ctzll(other));
}

/* Append a run of the current mask, or extend its last run, which can end with the row before.
   Return 0 if the memory is full. */
static int add_run(Runs *runs, Measure *measure, int64_t start, int64_t end) {
    if (measure->runs && runs->ends[2 * runs->count - 1] == start) {
        runs->ends[2 * runs->count - 1] = (uint32_t)end;
        return 1;
    }
    if (runs->count == runs->capacity) {
        const int64_t capacity = 2 * runs->capacity + 1024;
        const size_t size = 2 * sizeof(uint32_t);
        if (capacity > (int64_t)(PTRDIFF_MAX / size)) return 0;
        uint32_t *ends = realloc(runs->ends, (size_t)capacity * size);
        if (!ends) return 0;
        runs->ends = ends, runs->capacity = capacity;
    }
    uint32_t *run = runs->ends + 2 * runs->count;
    run[0] = (uint32_t)start, run[1] = (uint32_t)end;
    runs->count++, measure->runs++;
    return 1;
}

/* Compute the mask of image rows y0 to y0 + rows and columns left to right as bits [rows, words],
   one word for each tile, and add their probabilities to `measure`. Bits beyond `right` can be
   set. */
static void fill_band(const float *map, int mask_width, const Span *down, const Span *across,
                      int y0, int rows, int left, int right, float *stretched, uint64_t *band,
                      int words, Measure *measure) {
    const int top = down[y0].first, bottom = down[y0 + rows - 1].first + 2;
    for (int x0 = left; x0 < right; x0 += TILE_COLUMNS, band++) {
        const int columns = smaller(TILE_COLUMNS, right - x0);
        float low, high;
        find_range(map, mask_width, top, bottom, across[x0].first,
                   across[x0 + columns - 1].first + 2, &low, &high);
        if (high <= 0 || low >= CERTAIN) {
            for (int row = 0; row < rows; row++) band[row * words] = high > 0 ? ALL : 0;
            if (high > 0) measure->inside += (int64_t)UNIT * rows * columns;
            continue;
        }
        stretch_rows(map, mask_width, top, bottom, across, x0, columns, stretched, TILE_COLUMNS);
        for (int row = 0; row <= bottom - top; row++)
            for (int x = columns; x < TILE_COLUMNS; x++) stretched[row * TILE_COLUMNS + x] = -1;
        for (int row = 0; row < rows; row++) {
            const Span *span = &down[y0 + row];
            float logits[TILE_COLUMNS];
            mix_rows(stretched + (span->first - top) * TILE_COLUMNS, TILE_COLUMNS, span->weights,
                     TILE_COLUMNS, logits);
            band[row * words] = mask_row(logits, &measure->inside);
        }
    }
}

/* Append the runs of a band, and add its pixels to `measure`. Return 0 if the memory is full. */
static int read_band(const uint64_t *band, int y0, int rows, int left, int right, int words,
                     int width, Runs *runs, Measure *measure) {
    const int count = right - left;
    int32_t *box = measure->box;
    for (int y = y0; y < y0 + rows; y++, band += words) {
        const int64_t origin = (int64_t)y * width + left;
        for (int start = run_end(band, 0, count, 0), end; start < count;
             start = run_end(band, end, count, 0)) {
            end = run_end(band, start, count, ALL);
            if (!add_run(runs, measure, origin + start, origin + end)) return 0;
            measure->area += end - start;
            box[0] = smaller(box[0], left + start), box[1] = smaller(box[1], y);
            box[2] = larger(box[2], left + end), box[3] = larger(box[3], y + 1);
        }
    }
    return 1;
}

/* Compute the masks of some queries.

   In: maps [., mask_height, mask_width], mask logits; queries [count], indices of maps; down
   [height] and across [width], the tables that resize a map to the image.
   Out: measures [count]; runs: one run after another, query after query, to be freed with
   free_runs. */
API int measure_instances(const float *maps, const int32_t *queries, int count, int mask_height,
                          int mask_width, const Span *down, const Span *across, int height,
                          int width, Measure *measures, uint32_t **all_runs) {
    if (!maps || !queries || !measures || !all_runs || !within(count, 0, MAX_NUMBER) ||
        !within(mask_height, 3, MAX_SIDE) || !within(mask_width, 3, MAX_SIDE) ||
        !within((int64_t)height * width, 1, UINT32_MAX) ||
        !spans_fit(down, 0, height, height, mask_height) ||
        !spans_fit(across, 0, width, width, mask_width))
        return WRONG_ARGUMENTS;
    for (int i = 0; i < count; i++)
        if (queries[i] < 0) return WRONG_ARGUMENTS;
    Runs runs = {NULL, 0, 0};
    float *stretched = allocate((int64_t)TILE_COLUMNS * mask_height, sizeof(float));
    uint64_t *band = allocate((int64_t)width / TILE_COLUMNS + 1, TILE_ROWS * sizeof(uint64_t));
    int ready = stretched && band;
    for (int i = 0; ready && i < count; i++) {
        const float *map = maps + (int64_t)queries[i] * mask_height * mask_width;
        Measure *measure = &measures[i];
        *measure = (Measure){0, 0, {width, height, 0, 0}, 0};
        const Extent extent = extent_of(map, mask_height, mask_width);
        if (extent.top > extent.bottom) continue;
        int top, bottom, left, right;
        reach(down, height, extent.top, extent.bottom, &top, &bottom);
        reach(across, width, extent.left, extent.right, &left, &right);
        const int words = (int)(((int64_t)right - left + TILE_COLUMNS - 1) / TILE_COLUMNS);
        for (int y = top; ready && y < bottom; y += TILE_ROWS) {
            const int rows = smaller(TILE_ROWS, bottom - y);
            fill_band(map, mask_width, down, across, y, rows, left, right, stretched, band,
                      words, measure);
            ready = read_band(band, y, rows, left, right, words, width, &runs, measure);
        }
    }
    free(stretched), free(band);
    if (!ready) free(runs.ends), runs.ends = NULL;
    *all_runs = runs.ends;
    return ready ? DONE : NO_MEMORY;
}

API void free_runs(uint32_t *runs) { free(runs); }
