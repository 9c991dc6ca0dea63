/* The query that owns each pixel: the one with the highest class score x mask probability. */
#include "kernels.h"

enum { TILE_ROWS = 32, TILE_COLUMNS = 64, TILE_PIXELS = TILE_ROWS * TILE_COLUMNS };

/* A query that must be computed in a tile. */
typedef struct {
    int query;
    int rival; /* -1 if it can own a pixel of the tile, else 0 */
} Entry;

typedef struct {
    int y0, rows, x0, columns;
    int top, bottom, left, right; /* range of the mask logits it is interpolated from, inclusive */
    int listed, rivals, partly;   /* numbers of: entries; rivals; masks that are partly on */
    int32_t best[TILE_PIXELS];    /* bits of the best score so far, which is never negative */
    int32_t owner[TILE_PIXELS];
    int32_t inside[TILE_PIXELS]; /* -1 where the mask of the owner is on, else 0 */
} Tile;

/* List the queries that must be computed in a tile.

   An interpolated value lies between its source values. So a query whose highest possible score
   is below the lowest possible score of another query cannot own a pixel of the tile. */
static void list_queries(Tile *tile, const float *masks, int count, int64_t plane, int width,
                         const float *scores, float threshold, float *bounds, Entry *entries,
                         int64_t *mask_areas) {
    float sure = -INFINITY;
    for (int k = 0; k < count; k++) {
        float low, high;
        find_range(masks + k * plane, width, tile->top, tile->bottom, tile->left, tile->right,
                   &low, &high);
        bounds[2 * k] = sigmoid(low), bounds[2 * k + 1] = sigmoid(high);
        const float value = scores[k] * bounds[2 * k];
        sure = value > sure ? value : sure;
    }
    tile->listed = tile->rivals = tile->partly = 0;
    for (int k = 0; k < count; k++) {
        const int rival = scores[k] * bounds[2 * k + 1] * 1.000001f >= sure;
        const int all_on = bounds[2 * k] >= threshold + 1e-6f;
        const int partly = !all_on && bounds[2 * k + 1] >= threshold - 1e-6f;
        tile->rivals += rival, tile->partly += partly;
        if (rival || partly)
            entries[tile->listed++] = (Entry){k, -rival};
        else if (all_on)
            mask_areas[k] += tile->rows * tile->columns;
    }
}

/* Assign to a query the pixels of the tile where its score is higher than those of the queries
   before it. Return the area of its mask in the tile. */
static int32_t paint_query(Tile *tile, const float *stretched, const Span *down, Entry entry,
                           float score, float threshold) {
    int32_t area = 0;
    for (int row = 0; row < tile->rows; row++) {
        const Span *span = &down[tile->y0 + row];
        int32_t *restrict best = tile->best + row * TILE_COLUMNS;
        int32_t *restrict owner = tile->owner + row * TILE_COLUMNS;
        int32_t *restrict inside = tile->inside + row * TILE_COLUMNS;
        float logits[TILE_COLUMNS];
        mix_rows(stretched + (span->first - tile->top) * TILE_COLUMNS, TILE_COLUMNS,
                 span->weights, tile->columns, logits);
        for (int x = 0; x < tile->columns; x++) {
            const float probability = sigmoid(logits[x]);
            const int32_t on = -(probability >= threshold);
            area -= on;
            const union {
                float value;
                int32_t bits;
            } weighted = {score * probability};
            /* Use >, not >=, so that the first query wins ties, as in argmax. Use integers and no
               conditions, because compilers turn those into masked stores, which take three times
               as long. */
            const int32_t wins = -(weighted.bits > best[x]) & entry.rival;
            best[x] ^= (best[x] ^ weighted.bits) & wins;
            owner[x] ^= (owner[x] ^ entry.query) & wins;
            inside[x] ^= (inside[x] ^ on) & wins;
        }
    }
    return area;
}

static void count_pixels(const Tile *tile, int query, int64_t *won, int64_t *seen) {
    int32_t mine = 0, mine_inside = 0;
    for (int row = 0; row < tile->rows; row++)
        for (int x = 0; x < tile->columns; x++) {
            const int32_t own = -(tile->owner[row * TILE_COLUMNS + x] == query);
            mine -= own;
            mine_inside -= own & tile->inside[row * TILE_COLUMNS + x];
        }
    *won += mine;
    *seen += mine_inside;
}

/* Compute the owners in rows [row_start, row_end) of the image.

   In: mask logits [K, mask_height, mask_width] and scores [K] of the chosen queries; down [height]
   and across [width], the tables that resize a mask to the image.
   Out: owners int16 [height, width], -1 where the mask of the owner is off.
   Added to: areas [3, K], in pixels: area of each mask, pixels that each query won, and pixels
   that it won inside its mask. */
API int paint_panoptic(const float *masks, int count, int mask_height, int mask_width,
                       const Span *down, const Span *across, int height, int width,
                       const float *scores, float threshold, int row_start, int row_end,
                       int16_t *owners, int64_t *areas) {
    if (!masks || !scores || !owners || !areas || !within(count, 1, MAX_NUMBER) ||
        !within(mask_height, 3, MAX_SIDE) || !within(mask_width, 3, MAX_SIDE) ||
        !spans_fit(down, row_start, row_end, height, mask_height) ||
        !spans_fit(across, 0, width, width, mask_width))
        return WRONG_ARGUMENTS;
    const int64_t plane = (int64_t)mask_height * mask_width;
    int64_t *mask_areas = areas, *won = areas + count, *seen = areas + 2 * count;
    Tile *tile = allocate(1, sizeof(Tile));
    Entry *entries = allocate(count, sizeof(Entry));
    float *bounds = allocate(count, 2 * sizeof(float));
    float *stretched = allocate((int64_t)TILE_COLUMNS * mask_height, sizeof(float));
    const int ready = tile && entries && bounds && stretched;
    for (int y0 = row_start; ready && y0 < row_end; y0 += TILE_ROWS)
        for (int x0 = 0; x0 < width; x0 += TILE_COLUMNS) {
            tile->y0 = y0, tile->rows = smaller(TILE_ROWS, row_end - y0);
            tile->x0 = x0, tile->columns = smaller(TILE_COLUMNS, width - x0);
            tile->top = down[y0].first, tile->bottom = down[y0 + tile->rows - 1].first + 2;
            tile->left = across[x0].first, tile->right = across[x0 + tile->columns - 1].first + 2;
            list_queries(tile, masks, count, plane, mask_width, scores, threshold, bounds,
                         entries, mask_areas);
            int16_t *out = owners + (int64_t)y0 * width + x0;
            if (tile->rivals == 1 && tile->partly == 0) {
                const int k = entries[0].query, on = bounds[2 * k] >= threshold;
                const int pixels = tile->rows * tile->columns;
                won[k] += pixels;
                if (on) mask_areas[k] += pixels, seen[k] += pixels;
                for (int row = 0; row < tile->rows; row++)
                    for (int x = 0; x < tile->columns; x++)
                        out[(int64_t)row * width + x] = on ? k : -1;
                continue;
            }
            for (int i = 0; i < TILE_PIXELS; i++)
                tile->best[i] = tile->owner[i] = -1, tile->inside[i] = 0;
            for (int i = 0; i < tile->listed; i++) {
                const int k = entries[i].query;
                stretch_rows(masks + k * plane, mask_width, tile->top, tile->bottom, across, x0,
                             tile->columns, stretched, TILE_COLUMNS);
                mask_areas[k] +=
                    paint_query(tile, stretched, down, entries[i], scores[k], threshold);
            }
            for (int i = 0; i < tile->listed; i++)
                if (entries[i].rival)
                    count_pixels(tile, entries[i].query, &won[entries[i].query],
                                 &seen[entries[i].query]);
            for (int row = 0; row < tile->rows; row++)
                for (int x = 0; x < tile->columns; x++) {
                    const int i = row * TILE_COLUMNS + x;
                    out[(int64_t)row * width + x] = tile->owner[i] | ~tile->inside[i];
                }
        }
    free(tile), free(entries), free(bounds), free(stretched);
    return ready ? DONE : NO_MEMORY;
}

/* Find the segment of each pixel in rows [row_start, row_end), and the box of each segment.

   In: segment_of [K + 1], whose last entry is for pixels without an owner.
   Out: labels [height, width], segment + 1, or 0; two bytes per label if `wide`, else one.
   Enlarged: boxes int32 [S, 4], (x0, y0, x1, y1), x1 and y1 exclusive. */
API int label_segments(const int16_t *owners, int height, int width, const int32_t *segment_of,
                       int count, int segment_count, int row_start, int row_end, int wide,
                       void *labels, int32_t *boxes) {
    if (!owners || !segment_of || !labels || !within(count, 0, MAX_NUMBER) || width < 1 ||
        !within(row_start, 0, row_end) || row_end > height || (segment_count > 0 && !boxes) ||
        !within(wide, segment_count > 255, 1))
        return WRONG_ARGUMENTS;
    for (int i = 0; i <= count; i++)
        if (!within(segment_of[i], -1, segment_count - 1)) return WRONG_ARGUMENTS;
    for (int y = row_start; y < row_end; y++) {
        const int16_t *owner = owners + (int64_t)y * width;
        for (int start = 0, end; start < width; start = end) {
            /* Runs are long, so they are compared in blocks. */
            const int16_t value = owner[start];
            for (end = start + 1; end + 32 <= width; end += 32) {
                int32_t differs = 0;
                for (int i = 0; i < 32; i++) differs |= owner[end + i] ^ value;
                if (differs) break;
            }
            while (end < width && owner[end] == value) end++;
            if (value >= count) return WRONG_ARGUMENTS;
            const int32_t id = segment_of[value < 0 ? count : value];
            const int64_t row = (int64_t)y * width;
            if (wide)
                for (int x = start; x < end; x++) ((uint16_t *)labels)[row + x] = id + 1;
            else
                memset((uint8_t *)labels + row + start, id + 1, end - start);
            if (id < 0) continue;
            int32_t *box = boxes + 4 * id;
            box[0] = smaller(box[0], start), box[1] = smaller(box[1], y);
            box[2] = larger(box[2], end), box[3] = larger(box[3], y + 1);
        }
    }
    return DONE;
}
