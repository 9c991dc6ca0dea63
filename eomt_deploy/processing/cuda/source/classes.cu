// Finite values, and class decisions.

// Adds to `found` (initially zero) the number of threads that met an infinite or NaN logit. Each
// thread loads every `threads`-th value, so that neighbouring threads load neighbouring values.
KERNEL find_not_finite(const void* logits, int half, long long count, long long threads,
                       Count* found) {
  bool wrong = false;
  for (long long index = thread_x(); index < count; index += threads) {
    wrong |= !(fabsf(load(logits, half, index)) <= 3.402823466e38f);  // the largest float
  }
  count_up(found, wrong);
}
EXPORT_THREADS(find_not_finite)

// Softmax of each row of logits [rows, columns]: 32 threads per row, in the order of classes.c.
KERNEL softmax(const void* logits, int half, long long rows, int columns, float* probabilities) {
  SHARED float values[BLOCK];
  float highest[OWN];
  long long first = (long long)block_x() * WORDS;
  THREADS(t) {
    long long row = first + t / 32;
    values[t] = -3.402823466e38f;
    if (row < rows) {
      for (int i = t % 32; i < columns; i += 32) {
        float logit = load(logits, half, row * columns + i);
        values[t] = logit > values[t] ? logit : values[t];
      }
    }
  }
  for (int step = 16; step; step /= 2) {
    THREADS(t) {
      if (t % 32 < step) values[t] = values[t + step] > values[t] ? values[t + step] : values[t];
    }
  }
  THREADS(t) { highest[MINE(t)] = values[t - t % 32]; }
  THREADS(t) {
    long long row = first + t / 32;
    values[t] = 0;
    if (row < rows) {
      for (int i = t % 32; i < columns; i += 32) {
        float power = exponential(load(logits, half, row * columns + i) - highest[MINE(t)]);
        probabilities[row * columns + i] = power;
        values[t] += power;
      }
    }
  }
  for (int step = 16; step; step /= 2) {
    THREADS(t) {
      if (t % 32 < step) values[t] += values[t + step];
    }
  }
  THREADS(t) {
    long long row = first + t / 32;
    if (row < rows) {
      for (int i = t % 32; i < columns; i += 32) {
        probabilities[row * columns + i] /= values[t - t % 32];
      }
    }
  }
}
EXPORT_BLOCKS(softmax)

// The highest of the first `columns` probabilities of each row [rows, stride], and its column.
KERNEL find_best(const float* probabilities, long long rows, int columns, int stride, int* ids,
                 float* scores) {
  long long row = thread_x();
  if (row >= rows) return;
  const float* values = probabilities + row * stride;
  int best = 0;
  for (int id = 1; id < columns; id++) {
    if (values[id] > values[best]) best = id;  // strict: the first class wins ties
  }
  ids[row] = best;
  scores[row] = values[best];
}
EXPORT_THREADS(find_best)
