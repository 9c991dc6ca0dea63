// Semantic: the class with the highest mean score of the windows: see semantic.py.
//
// Class scores are a matrix product, [classes x queries] by [queries x pixels]. A block computes it
// for a tile of the merged windows, and interpolates the scores to the pixels of the image whose four
// neighbours are in the tile. A query whose probabilities in the tile change no score by more than
// MINOR is left out at first. If the left out queries could change a label, the tile is computed
// again with all of them. So the labels are those of the complete product.

#define TILE_HEIGHT 8   // of a tile, in merged pixels; the last row and column only interpolate
#define TILE_WIDTH 16
#define TILE_PIXELS (TILE_HEIGHT * TILE_WIDTH)
#define SIDE 16         // a block computes SIDE x SIDE parts of the product
#define PIXELS (TILE_PIXELS / SIDE)  // pixels of a part
#define GROUPS 10                    // classes of a part: one of each group
#define CLASSES (SIDE * GROUPS)      // classes that are computed together
#define DEPTH 8                      // queries that are loaded together
#define SPOTS 2                      // image pixels per thread and batch
#define MINOR 2e-5f                  // fraction of the strongest query's probability
#define DOUBT_UNIT 1099511627776.0f  // 2^40: sums of left out probabilities are integers

struct Merged {
  const Tap *down, *across;  // from a mask to a network input
  const int* starts;         // of each window along the axis
  int windows, window, axis, height, width;
};

// Place of a merged pixel in a window, along the axis; negative if the window does not contain it.
DEVICE int place_in(const Merged& merged, int window, int y, int x) {
  int place = (merged.axis == 0 ? y : x) - merged.starts[window];
  return place < merged.window ? place : -1;
}

// Mask probability of a query in a window at a merged pixel; 0 outside of the window.
DEVICE float probability_at(const Maps& maps, const Merged& merged, int queries, int pair, int y,
                            int x) {
  int place = place_in(merged, pair / queries, y, x);
  if (place < 0 || y >= merged.height || x >= merged.width) return 0;
  return sigmoid(sample(maps, pair, merged.down[merged.axis == 0 ? place : y],
                        merged.across[merged.axis == 1 ? place : x]));
}

// Range of the logits of a query in the part of a tile that its window contains.
DEVICE Range range_in(const Maps& maps, const Merged& merged, int queries, int pair, int y, int x) {
  int start = merged.starts[pair / queries];
  int y1 = smaller(y + TILE_HEIGHT, merged.height) - 1;
  int x1 = smaller(x + TILE_WIDTH, merged.width) - 1;
  if (merged.axis == 0) {
    y = larger(y - start, 0);
    y1 = smaller(y1 - start, merged.window - 1);
  } else {
    x = larger(x - start, 0);
    x1 = smaller(x1 - start, merged.window - 1);
  }
  return range_of(maps, pair, merged.down[y].low, merged.down[y1].high, merged.across[x].low,
                  merged.across[x1].high);
}

// One block per tile. `probabilities` [pairs, columns] and `best` [pairs], their maximum over the
// classes: a pair is a window and one of its `queries`. `rows` and `columns_of` give the image rows
// and columns whose upper left neighbour is in each row or column of tiles. `leads` [height, width]
// has the best and second best score so far; it is only used for more than CLASSES classes.
KERNEL classify_tiles(const void* logits, int half, int map_height, int map_width, int queries,
                      const Tap* input_down, const Tap* input_across, const int* starts,
                      int windows, int window, int axis, int merged_height, int merged_width,
                      const float* probabilities, const float* best, int classes, int tiles,
                      const int* rows, const int* columns, const Tap* image_down,
                      const Tap* image_across, int width, int wide, float* leads, void* labels) {
  Maps maps = {logits, half, map_height, map_width};
  Merged merged = {input_down, input_across, starts, windows, window, axis, merged_height,
                   merged_width};
  int tile_y = block_x() / tiles, tile_x = block_x() % tiles;
  int y0 = tile_y * (TILE_HEIGHT - 1), x0 = tile_x * (TILE_WIDTH - 1);
  int top = rows[tile_y], left = columns[tile_x], across = columns[tile_x + 1] - left;
  int spots = (rows[tile_y + 1] - top) * across;
  if (spots == 0) return;
  int near = axis == 0 ? y0 : x0, far = near + (axis == 0 ? TILE_HEIGHT : TILE_WIDTH);
  int first_window = 0;
  while (starts[first_window] + window <= near) first_window++;
  int last_window = first_window + 1;
  while (last_window < windows && starts[last_window] < far) last_window++;
  int first_pair = first_window * queries, pairs = last_window * queries;

  SHARED unsigned strongest, kept[WORDS];
  SHARED Count doubt;
  SHARED int unsure, list[BLOCK];
  SHARED float masks[DEPTH][TILE_PIXELS], weights[DEPTH][CLASSES];
  SHARED float scores[TILE_PIXELS][SIDE + 1];  // one more, so that banks do not conflict
  float sums[OWN][PIXELS][GROUPS], shares[OWN][PIXELS];
  float highest[OWN][SPOTS], second[OWN][SPOTS];
  int label[OWN][SPOTS];

  THREADS(t) {
    if (t == 0) strongest = doubt = unsure = 0;
    for (int i = 0; i < PIXELS; i++) {
      int pixel = t / SIDE * PIXELS + i, seen = 0;
      for (int w = first_window; w < last_window; w++) {
        seen += place_in(merged, w, y0 + pixel / TILE_WIDTH, x0 + pixel % TILE_WIDTH) >= 0;
      }
      shares[MINE(t)][i] = 1.0f / (float)larger(seen, 1);
    }
  }
  THREADS(t) {
    for (int pair = first_pair + t; pair < pairs; pair += BLOCK) {
      float low = range_in(maps, merged, queries, pair, y0, x0).low;
      raise_to(&strongest, to_bits(best[pair] * sigmoid(low)));
    }
  }
  for (int complete = 0; complete < 2; complete++) {
    float minor = MINOR * from_bits(strongest);
    for (int first = 0; first < classes; first += CLASSES) {
      THREADS(t) {
        for (int i = 0; i < PIXELS; i++) {
          for (int group = 0; group < GROUPS; group++) sums[MINE(t)][i][group] = 0;
        }
      }
      for (int base = first_pair; base < pairs; base += BLOCK) {
        THREADS(t) {
          if (t < WORDS) kept[t] = 0;
        }
        THREADS(t) {
          int pair = base + t;
          if (pair < pairs) {
            float high = range_in(maps, merged, queries, pair, y0, x0).high;
            float effect = best[pair] * sigmoid(high);
            if (complete || effect > minor) {
              set_bit(kept, t);
            } else if (first == 0) {
              add_to(&doubt, (Count)(effect * DOUBT_UNIT) + 1);
            }
          }
        }
        THREADS(t) {
          if (has_bit(kept, t)) list[rank_of(kept, t)] = base + t;
        }
        int count = rank_of(kept, BLOCK);
        for (int next = 0; next < count; next += DEPTH) {
          THREADS(t) {
            for (int value = t; value < DEPTH * TILE_PIXELS; value += BLOCK) {
              int depth = value / TILE_PIXELS, pixel = value % TILE_PIXELS;
              masks[depth][pixel] =
                  next + depth < count
                      ? probability_at(maps, merged, queries, list[next + depth],
                                       y0 + pixel / TILE_WIDTH, x0 + pixel % TILE_WIDTH)
                      : 0;
            }
            for (int value = t; value < DEPTH * CLASSES; value += BLOCK) {
              int depth = value / CLASSES, id = first + value % CLASSES;
              weights[depth][id - first] =
                  next + depth < count && id < classes
                      ? probabilities[(long long)list[next + depth] * (classes + 1) + id]
                      : 0;
            }
          }
          THREADS(t) {
#pragma unroll
            for (int depth = 0; depth < DEPTH; depth++) {
#pragma unroll
              for (int i = 0; i < PIXELS; i++) {
                float mask = masks[depth][t / SIDE * PIXELS + i];
#pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                  float* sum = &sums[MINE(t)][i][group];
                  *sum = FUSED(weights[depth][group * SIDE + t % SIDE], mask, *sum);
                }
              }
            }
          }
        }
        BARRIER  // all have read `kept`
      }
      for (int batch = 0; batch < spots; batch += SPOTS * BLOCK) {
        THREADS(t) {
          for (int i = 0; i < SPOTS; i++) {
            highest[MINE(t)][i] = second[MINE(t)][i] = -1;
            label[MINE(t)][i] = 0;
            int spot = batch + i * BLOCK + t;
            if (first > 0 && spot < spots) {
              long long pixel = (long long)(top + spot / across) * width + left + spot % across;
              highest[MINE(t)][i] = leads[2 * pixel];
              second[MINE(t)][i] = leads[2 * pixel + 1];
              label[MINE(t)][i] =
                  wide ? ((unsigned short*)labels)[pixel] : ((Byte*)labels)[pixel];
            }
          }
        }
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
          if (first + group * SIDE >= classes) continue;
          THREADS(t) {
            for (int i = 0; i < PIXELS; i++) {
              scores[t / SIDE * PIXELS + i][t % SIDE] =
                  sums[MINE(t)][i][group] * shares[MINE(t)][i];
            }
          }
          THREADS(t) {
            for (int i = 0; i < SPOTS; i++) {
              int spot = batch + i * BLOCK + t;
              if (spot >= spots) break;
              Tap y = image_down[top + spot / across], x = image_across[left + spot % across];
              int upper = (y.low - y0) * TILE_WIDTH - x0, lower = (y.high - y0) * TILE_WIDTH - x0;
#pragma unroll 4
              for (int j = 0; j < SIDE && first + group * SIDE + j < classes; j++) {
                float score = blend(blend(scores[upper + x.low][j], scores[upper + x.high][j], x),
                                    blend(scores[lower + x.low][j], scores[lower + x.high][j], x),
                                    y);
                if (score > highest[MINE(t)][i]) {  // strict: the first class wins ties
                  second[MINE(t)][i] = highest[MINE(t)][i];
                  highest[MINE(t)][i] = score;
                  label[MINE(t)][i] = first + group * SIDE + j;
                } else if (score > second[MINE(t)][i]) {
                  second[MINE(t)][i] = score;
                }
              }
            }
          }
        }
        THREADS(t) {
          for (int i = 0; i < SPOTS; i++) {
            int spot = batch + i * BLOCK + t;
            if (spot >= spots) break;
            long long pixel = (long long)(top + spot / across) * width + left + spot % across;
            if (wide) {
              ((unsigned short*)labels)[pixel] = (unsigned short)label[MINE(t)][i];
            } else {
              ((Byte*)labels)[pixel] = (Byte)label[MINE(t)][i];
            }
            if (first + CLASSES < classes) {
              leads[2 * pixel] = highest[MINE(t)][i];
              leads[2 * pixel + 1] = second[MINE(t)][i];
            } else if (doubt && highest[MINE(t)][i] - second[MINE(t)][i] <
                                    (float)doubt / DOUBT_UNIT + 1e-5f * highest[MINE(t)][i]) {
              raise_to(&unsure, 1);
            }
          }
        }
      }
    }
    int again = unsure;
    BARRIER  // all have read `unsure`
    if (!again) return;
  }
}
EXPORT_BLOCKS(classify_tiles)
