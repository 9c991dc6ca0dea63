// Panoptic: the same steps as panoptic.py. K is the number of queries; the first `*chosen` entries of
// arrays [K] are used.

#define TILE 32                       // side of a tile, in pixels; a warp has one row of a tile
#define STRIPS (TILE * TILE / BLOCK)  // pixels of a tile per thread

// The queries whose best class is not "no object" and scores above the threshold. One block.
KERNEL list_queries(const int* ids, const float* best, int count, int no_object, float threshold,
                    int* chosen, int* queries, int* class_ids, float* scores) {
  SHARED unsigned kept[WORDS];
  int before = 0;
  for (int base = 0; base < count; base += BLOCK) {
    THREADS(t) {
      if (t < WORDS) kept[t] = 0;
    }
    THREADS(t) {
      int query = base + t;
      if (query < count && ids[query] != no_object && best[query] > threshold) set_bit(kept, t);
    }
    THREADS(t) {
      if (has_bit(kept, t)) {
        int place = before + rank_of(kept, t);
        queries[place] = base + t;
        class_ids[place] = ids[base + t];
        scores[place] = best[base + t];
      }
    }
    before += rank_of(kept, BLOCK);
    BARRIER  // all have read `kept`
  }
  THREADS(t) {
    if (t == 0) *chosen = before;
  }
}
EXPORT_BLOCKS(list_queries)

// The query with the highest score x mask probability owns a pixel (-1: none, or the pixel is
// outside the query's mask). One block per tile. Initially zero: `areas` [3, K], the number of pixels
// of each mask, of pixels that each query won, and of pixels that it won inside its mask; `boxes`
// [K, 4] around the latter.
//
// As in panoptic.c, the range of the logits in a tile shows which queries can win there.
KERNEL paint_queries(const void* logits, int half, int map_height, int map_width, const Span* down,
                     const Span* across, int height, int width, const int* chosen,
                     const int* queries, const float* scores, int capacity, float threshold,
                     short* owners, Count* areas, int* boxes) {
  Maps maps = {logits, half, map_height, map_width};
  int tiles = (width + TILE - 1) / TILE, count = *chosen;
  int y0 = block_x() / tiles * TILE, y1 = smaller(y0 + TILE, height);
  int x0 = block_x() % tiles * TILE, x1 = smaller(x0 + TILE, width);
  int top = down[y0].first, bottom = down[y1 - 1].first + 2;
  int left = across[x0].first, right = across[x1 - 1].first + 2;
  SHARED unsigned sure;  // the lowest score that the best query has in the complete tile
  SHARED unsigned listed[WORDS], rivals[WORDS];
  float best[OWN][STRIPS];
  int owner[OWN][STRIPS];
  bool inside[OWN][STRIPS];
  THREADS(t) {
    if (t == 0) sure = 0;
    for (int strip = 0; strip < STRIPS; strip++) {
      best[MINE(t)][strip] = -1.0f;  // below all possible values
      owner[MINE(t)][strip] = -1;
      inside[MINE(t)][strip] = false;
    }
  }
  THREADS(t) {
    for (int k = t; k < count; k += BLOCK) {
      float low = range_of(maps, queries[k], top, bottom, left, right).low;
      raise_to(&sure, to_bits(scores[k] * sigmoid(low)));
    }
  }
  for (int base = 0; base < count; base += BLOCK) {
    THREADS(t) {
      if (t < WORDS) listed[t] = rivals[t] = 0;
    }
    THREADS(t) {
      int k = base + t;
      if (k < count) {
        Range range = range_of(maps, queries[k], top, bottom, left, right);
        float lowest = sigmoid(range.low), highest = sigmoid(range.high);
        bool all_on = lowest >= threshold + 1e-6f;
        bool partly = !all_on && highest >= threshold - 1e-6f;
        bool rival = scores[k] * highest * 1.000001f >= from_bits(sure);
        if (rival) set_bit(rivals, t);
        if (rival || partly) {
          set_bit(listed, t);
        } else if (all_on) {
          add_to(areas + k, (Count)((y1 - y0) * (x1 - x0)));
        }
      }
    }
    THREADS(t) {
      int x = x0 + t % TILE;
      Span column = across[smaller(x, x1 - 1)];
      for (int word = 0; word < WORDS; word++) {
        for (unsigned bits = listed[word]; bits; bits &= bits - 1) {
          int place = word * 32 + lowest_bit(bits), k = base + place;
          bool rival = has_bit(rivals, place);
          Count area = 0;
          for (int strip = 0; strip < STRIPS; strip++) {
            int y = y0 + t / TILE + strip * (BLOCK / TILE);
            float mask = sigmoid(sample_twice(maps, queries[k], down[smaller(y, y1 - 1)], column));
            float value = scores[k] * mask;
            area += mask >= threshold && y < y1 && x < x1;
            if (rival && value > best[MINE(t)][strip]) {  // strict: the first query wins ties
              best[MINE(t)][strip] = value;
              owner[MINE(t)][strip] = k;
              inside[MINE(t)][strip] = mask >= threshold;
            }
          }
          add_up(areas + k, area);
        }
      }
    }
  }
  THREADS(t) {
    int x = x0 + t % TILE;
    for (int strip = 0; strip < STRIPS; strip++) {
      int y = y0 + t / TILE + strip * (BLOCK / TILE);
      bool real = y < y1 && x < x1;
      int won = real ? owner[MINE(t)][strip] : -1;
      int seen = inside[MINE(t)][strip] ? won : -1;
      claim(areas + capacity, nullptr, won, height, width, x, y);
      claim(areas + 2 * capacity, boxes, seen, height, width, x, y);
      if (real) owners[(long long)y * width + x] = (short)seen;
    }
  }
}
EXPORT_BLOCKS(paint_queries)

// Number of the segment of each query, from 1; 0 for none: see join_queries in panoptic.py. One
// block. `things` [C] is 1 for things; `firsts` [C], initially zero, becomes K - (first query of the
// stuff class).
KERNEL join_queries(const int* chosen, int capacity, const int* class_ids, const Count* areas,
                    const Byte* things, double overlap, int* firsts, unsigned short* segments) {
  SHARED unsigned opened[WORDS];
  int count = *chosen, before = 0;
  THREADS(t) {
    for (int k = t; k < count; k += BLOCK) {
      Count area = areas[k], won = areas[capacity + k], seen = areas[2 * capacity + k];
      bool kept = area > 0 && seen > 0 && !((double)won / (double)area < overlap);
      segments[k] = kept;
      if (kept && !things[class_ids[k]]) raise_to(firsts + class_ids[k], capacity - k);
    }
  }
  for (int base = 0; base < count; base += BLOCK) {
    THREADS(t) {
      if (t < WORDS) opened[t] = 0;
    }
    THREADS(t) {
      int k = base + t;
      if (k < count && segments[k] &&
          (things[class_ids[k]] || firsts[class_ids[k]] == capacity - k)) {
        set_bit(opened, t);
      }
    }
    THREADS(t) {
      if (has_bit(opened, t)) segments[base + t] = (unsigned short)(before + rank_of(opened, t) + 1);
    }
    before += rank_of(opened, BLOCK);
    BARRIER  // all have read `opened`
  }
  THREADS(t) {
    for (int k = t; k < count; k += BLOCK) {
      if (segments[k] && !things[class_ids[k]]) {
        segments[k] = segments[capacity - firsts[class_ids[k]]];
      }
    }
  }
}
EXPORT_BLOCKS(join_queries)

// The segment of each pixel: two bytes per label if `wide`, else one.
KERNEL label_segments(const short* owners, const unsigned short* segments, long long pixels,
                      int wide, void* labels) {
  long long pixel = thread_x();
  if (pixel >= pixels) return;
  int segment = owners[pixel] < 0 ? 0 : segments[owners[pixel]];
  if (wide) {
    ((unsigned short*)labels)[pixel] = (unsigned short)segment;
  } else {
    ((Byte*)labels)[pixel] = (Byte)segment;
  }
}
EXPORT_THREADS(label_segments)
