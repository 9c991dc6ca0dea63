/* One instance mask at image size, and the sum of the probabilities inside it. */
#include <string.h>

#include "pixels.h"

enum { TILE_ROWS = 32, TILE_COLUMNS = 64, LANES = 8 };

/* Measurements of a mask, updated row by row. */
typedef struct {
    int64_t area;   /* pixels inside the mask */
    double inside;  /* sum of their probabilities */
    int32_t box[4]; /* (x0, y0, x1, y1) in the image, x1 and y1 exclusive */
} Measure;

/* Write the mask of one row of logits [count], which starts at (x, y) of the image, and add it to
   `measure`. */
static void measure_row(const float *logits, int count, int x, int y, uint8_t *restrict mask,
                        Measure *measure) {
    float probabilities[TILE_COLUMNS];
    int32_t area = 0;
    for (int i = 0; i < count; i++) {
        const int32_t on = logits[i] > 0;
        probabilities[i] = on ? sigmoid(logits[i]) : 0;
        mask[i] = on;
        area += on;
    }
    if (area == 0) return;
    /* A fixed number of partial sums: the result does not depend on the CPU's vector length. */
    double sums[LANES] = {0};
    int i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += probabilities[i + lane];
    for (; i < count; i++) sums[i % LANES] += probabilities[i];
    for (int lane = 0; lane < LANES; lane++) measure->inside += sums[lane];
    measure->area += area;
    int first = 0, last = count;
    while (!mask[first]) first++;
    while (!mask[last - 1]) last--;
    int32_t *box = measure->box;
    box[0] = smaller(box[0], x + first), box[1] = smaller(box[1], y);
    box[2] = larger(box[2], x + last), box[3] = larger(box[3], y + 1);
}

/* Compute the mask in rows [y0, y1) and columns [x0, x1) of the image. Elsewhere it must be off.

   In: map [mask_height, mask_width], the mask logits; down [height] and across [width], the tables
   that resize it to the image.
   Out: mask uint8 [y1 - y0, x1 - x0], 1 where the logit is above 0; measure. */
API int measure_instance(const float *map, int mask_height, int mask_width, const Span *down,
                         const Span *across, int height, int width, int y0, int y1, int x0,
                         int x1, uint8_t *mask, Measure *measure) {
    if (!map || !mask || !measure || !within(mask_height, 3, MAX_SIDE) ||
        !within(mask_width, 3, MAX_SIDE) || !spans_fit(down, y0, y1, height, mask_height) ||
        !spans_fit(across, x0, x1, width, mask_width))
        return WRONG_ARGUMENTS;
    const int64_t stride = x1 - x0;
    float *stretched = malloc(sizeof(float) * TILE_COLUMNS * mask_height);
    if (!stretched) return NO_MEMORY;
    *measure = (Measure){0, 0, {x1, y1, x0, y0}};
    for (int tile_y = y0; tile_y < y1; tile_y += TILE_ROWS) {
        const int rows = smaller(TILE_ROWS, y1 - tile_y);
        const int top = down[tile_y].first, bottom = down[tile_y + rows - 1].first + 2;
        for (int tile_x = x0; tile_x < x1; tile_x += TILE_COLUMNS) {
            const int columns = smaller(TILE_COLUMNS, x1 - tile_x);
            const int right = across[tile_x + columns - 1].first + 2;
            uint8_t *out = mask + (tile_y - y0) * stride + (tile_x - x0);
            float low, high;
            find_range(map, mask_width, top, bottom, across[tile_x].first, right, &low, &high);
            if (high <= 0) {
                for (int row = 0; row < rows; row++) memset(out + row * stride, 0, columns);
                continue;
            }
            stretch_rows(map, mask_width, top, bottom, across, tile_x, columns, stretched,
                         TILE_COLUMNS);
            for (int row = 0; row < rows; row++) {
                const Span *span = &down[tile_y + row];
                float logits[TILE_COLUMNS];
                mix_rows(stretched + (span->first - top) * TILE_COLUMNS, TILE_COLUMNS,
                         span->weights, columns, logits);
                measure_row(logits, columns, tile_x, tile_y + row, out + row * stride, measure);
            }
        }
    }
    free(stretched);
    return DONE;
}
