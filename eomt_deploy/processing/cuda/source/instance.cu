// Instance: the same steps as instance.py. K is the maximum number of chosen queries.

// MEASURE in pixels.py; the box is stored as for enlarge_box.
struct Measure {
  long long area, inside;
  int box[4];
  long long runs;
};

// The `limit` highest scores of all queries and classes that are at least `threshold`. One block.
// Out: `*ranked` numbers of places [limit], query * classes + class in no order, and their scores;
// `*chosen` different queries [K] in ascending order. `marks` [count] is initially zero.
KERNEL rank_queries(const float* probabilities, int count, int classes, int limit, float threshold,
                    int* ranked, int* places, float* scores, int* chosen, int* queries, int* marks) {
  SHARED int buckets[BLOCK], above[BLOCK], equal[BLOCK];
  SHARED unsigned digit, marked[WORDS];
  SHARED int wanted;
  int total = count * classes, per_thread = (total + BLOCK - 1) / BLOCK;
  // Find the bits of the lowest score that can be in the result, eight at a time. Bits of scores
  // have the same order as the scores.
  unsigned lowest = 0, known = 0;
  THREADS(t) {
    if (t == 0) wanted = limit;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    int missing = wanted;
    THREADS(t) {
      buckets[t] = 0;
      if (t == 0) digit = 0;
    }
    THREADS(t) {
      int bucket = 0, same = 0;  // neighbouring scores are often in the same bucket
      for (int place = t; place < total; place += BLOCK) {
        float score = probabilities[place / classes * (classes + 1) + place % classes];
        if (!(score >= threshold) || (to_bits(score) & known) != lowest) continue;
        int next = to_bits(score) >> shift & 255;
        if (next != bucket) {
          if (same) add_to(buckets + bucket, same);
          bucket = next;
          same = 0;
        }
        same++;
      }
      if (same) add_to(buckets + bucket, same);
    }
    THREADS(t) {
      above[t] = 0;
      for (int other = t + 1; other < 256; other++) above[t] += buckets[other];
    }
    THREADS(t) {
      if (above[t] < missing && missing <= above[t] + buckets[t]) {
        digit = t;
        wanted = missing - above[t];
      }
    }
    lowest |= digit << shift;
    known |= 255u << shift;
    BARRIER  // all have read `digit` and `wanted`
  }
  // Of equal scores, the first ones are in the result. So each thread counts its part first.
  THREADS(t) {
    above[t] = equal[t] = 0;
    for (int i = 0; i < per_thread && t * per_thread + i < total; i++) {
      int place = t * per_thread + i;
      float score = probabilities[place / classes * (classes + 1) + place % classes];
      above[t] += score >= threshold && to_bits(score) > lowest;
      equal[t] += score >= threshold && to_bits(score) == lowest;
    }
  }
  THREADS(t) {
    int high = 0, next_high = 0, next_equal = 0;
    for (int other = 0; other < BLOCK; other++) {
      high += above[other];
      if (other < t) {
        next_high += above[other];
        next_equal += equal[other];
      }
    }
    next_equal += high;
    for (int i = 0; i < per_thread && t * per_thread + i < total; i++) {
      int place = t * per_thread + i;
      float score = probabilities[place / classes * (classes + 1) + place % classes];
      if (!(score >= threshold) || to_bits(score) < lowest) continue;
      int index = to_bits(score) > lowest ? next_high++ : next_equal++;
      if (index >= limit) continue;
      places[index] = place;
      scores[index] = score;
      marks[place / classes] = 1;
      raise_to(ranked, index + 1);
    }
  }
  int before = 0;
  for (int base = 0; base < count; base += BLOCK) {
    THREADS(t) {
      if (t < WORDS) marked[t] = 0;
    }
    THREADS(t) {
      if (base + t < count && marks[base + t]) set_bit(marked, t);
    }
    THREADS(t) {
      if (has_bit(marked, t)) queries[before + rank_of(marked, t)] = base + t;
    }
    before += rank_of(marked, BLOCK);
    BARRIER  // all have read `marked`
  }
  THREADS(t) {
    if (t == 0) *chosen = before;
  }
}
EXPORT_BLOCKS(rank_queries)

// The mask of each chosen query (one per block row) as bits [K, height, words], 32 pixels per thread,
// its number of pixels and the sum of their probabilities. `measures` [K] is initially zero.
KERNEL measure_masks(const void* logits, int half, int map_height, int map_width, const Span* down,
                     const Span* across, int height, int width, int words, const int* chosen,
                     const int* queries, unsigned* masks, Measure* measures) {
  Maps maps = {logits, half, map_height, map_width};
  int k = block_y();
  if (k >= *chosen) return;
  long long place = thread_x();
  unsigned bits = 0;
  Count inside = 0;
  if (place < (long long)height * words) {
    int y = (int)(place / words), x0 = (int)(place % words) * 32, x1 = smaller(x0 + 32, width);
    Span row = down[y];
    Range range = range_of(maps, queries[k], row.first, row.first + 2, across[x0].first,
                           across[x1 - 1].first + 2);
    if (range.low >= CERTAIN) {
      bits = 0xffffffffu >> (32 - (x1 - x0));
      inside = (Count)((x1 - x0) * (long long)UNIT);
    } else if (range.high > 0) {
      for (int x = x0; x < x1; x++) {
        float logit = sample_twice(maps, queries[k], row, across[x]);
        if (logit > 0) {
          bits |= 1u << (x - x0);
          inside += (unsigned)(sigmoid(logit) * UNIT);
        }
      }
    }
    masks[(long long)k * height * words + place] = bits;
  }
  add_up((Count*)&measures[k].area, count_bits(bits));
  add_up((Count*)&measures[k].inside, inside);
}
EXPORT_THREADS(measure_masks)

// Bits of the pixels at which a run starts, or which it ends with. `before` and `after` are the
// neighbouring pixels of a word of `pixels` pixels.
DEVICE unsigned starts_of(unsigned word, unsigned before) { return word & ~(word << 1 | before); }
DEVICE unsigned ends_of(unsigned word, unsigned after, int pixels) {
  return word & ~(word >> 1 | after << (pixels - 1));
}

// The last pixel of the row before, and the first pixel of the row after. Runs continue across rows.
DEVICE unsigned pixel_before(const unsigned* row, int y, int width) {
  return y > 0 ? row[-1] >> (width - 1) % 32 & 1 : 0;
}
DEVICE unsigned pixel_after(const unsigned* row, int y, int height, int words) {
  return y + 1 < height ? row[words] & 1 : 0;
}

// Number of runs that start in each row [K, height], and the box of each mask. One thread per row.
KERNEL count_runs(const unsigned* masks, int height, int width, int words, const int* chosen,
                  int* counts, Measure* measures) {
  int k = block_y(), y = (int)thread_x();
  if (k >= *chosen || y >= height) return;
  const unsigned* row = masks + ((long long)k * height + y) * words;
  unsigned before = pixel_before(row, y, width);
  int count = 0, first = -1, last = -1;
  for (int word = 0; word < words; word++) {
    count += count_bits(starts_of(row[word], before));
    before = row[word] >> 31;
    if (row[word] && first < 0) first = word * 32 + lowest_bit(row[word]);
    if (row[word]) last = word * 32 + highest_bit(row[word]);
  }
  counts[(long long)k * height + y] = count;
  if (first >= 0) enlarge_box(measures[k].box, height, width, first, y, last + 1);
}
EXPORT_THREADS(count_runs)

// Replace the counts of each mask by the number of runs before each row. One block per mask.
KERNEL place_rows(const int* chosen, int height, int* counts, Measure* measures) {
  SHARED int sums[BLOCK];
  int k = block_x(), per_thread = (height + BLOCK - 1) / BLOCK;
  if (k >= *chosen) return;
  int* own = counts + (long long)k * height;
  THREADS(t) {
    sums[t] = 0;
    for (int i = 0; i < per_thread && t * per_thread + i < height; i++) {
      sums[t] += own[t * per_thread + i];
    }
  }
  THREADS(t) {
    int before = 0;
    for (int other = 0; other < t; other++) before += sums[other];
    for (int i = 0; i < per_thread && t * per_thread + i < height; i++) {
      int count = own[t * per_thread + i];
      own[t * per_thread + i] = before;
      before += count;
    }
    if (t == BLOCK - 1) measures[k].runs = before;
  }
}
EXPORT_BLOCKS(place_rows)

// Write the runs of all masks, mask after mask. One thread per row. Nothing is written beyond
// `capacity` runs.
KERNEL write_runs(const unsigned* masks, int height, int width, int words, const int* chosen,
                  const int* counts, const Measure* measures, long long capacity, unsigned* runs) {
  int k = block_y(), y = (int)thread_x();
  if (k >= *chosen || y >= height) return;
  const unsigned* row = masks + ((long long)k * height + y) * words;
  unsigned before = pixel_before(row, y, width);
  long long start = counts[(long long)k * height + y];
  for (int other = 0; other < k; other++) start += measures[other].runs;
  long long end = start - (before & row[0] & 1);  // the last run of the row before is still open
  for (int word = 0; word < words; word++) {
    unsigned origin = (unsigned)y * (unsigned)width + word * 32;
    int pixels = smaller(32, width - word * 32);
    unsigned after = word + 1 < words ? row[word + 1] & 1 : pixel_after(row, y, height, words);
    for (unsigned bits = starts_of(row[word], before); bits; bits &= bits - 1, start++) {
      if (start < capacity) runs[2 * start] = origin + lowest_bit(bits);
    }
    for (unsigned bits = ends_of(row[word], after, pixels); bits; bits &= bits - 1, end++) {
      if (end < capacity) runs[2 * end + 1] = origin + lowest_bit(bits) + 1;
    }
    before = row[word] >> 31;
  }
}
EXPORT_THREADS(write_runs)
