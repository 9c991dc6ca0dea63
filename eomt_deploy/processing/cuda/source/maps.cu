// Reading and resizing of logits, and small functions that several kernels use.

// Linear interpolation along one axis: values[low] * rest + values[high] * weight.
struct alignas(16) Tap {
  int low, high;
  float rest, weight;
};

// Consecutive maps [height, width] in float16 or float32.
struct Maps {
  const void* values;
  int half, height, width;
};

struct Range {
  float low, high;
};

DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

DEVICE unsigned to_bits(float value) {
  union {
    float value;
    unsigned bits;
  } number = {value};
  return number.bits;
}

DEVICE float from_bits(unsigned bits) {
  union {
    unsigned bits;
    float value;
  } number = {bits};
  return number.value;
}

DEVICE float from_half(unsigned short bits) {
  unsigned word = (bits & 0x7fffu) << 13;
  if (word >= 0x0f800000u) {
    word |= 0x7f800000u;  // infinity or NaN
  } else {
    word = to_bits(from_bits(word) * 5.192296858534828e33f);  // 2^112 corrects the exponent exactly
  }
  return from_bits(word | (bits & 0x8000u) << 16);
}

DEVICE float load(const void* values, int half, long long index) {
  return half ? from_half(((const unsigned short*)values)[index]) : ((const float*)values)[index];
}

DEVICE float load(const Maps& maps, int map, int row, int column) {
  return load(maps.values, maps.half, ((long long)map * maps.height + row) * maps.width + column);
}

DEVICE float blend(float low, float high, const Tap& tap) {
  return low * tap.rest + high * tap.weight;
}

// One value of a resized map.
DEVICE float sample(const Maps& maps, int map, const Tap& y, const Tap& x) {
  float top = blend(load(maps, map, y.low, x.low), load(maps, map, y.low, x.high), x);
  float bottom = blend(load(maps, map, y.high, x.low), load(maps, map, y.high, x.high), x);
  return blend(top, bottom, y);
}

// One value of a map that is resized twice. Maps of fewer than 3 rows or columns continue with
// their last one.
DEVICE float sample_twice(const Maps& maps, int map, const Span& down, const Span& across) {
  float rows[3];
  for (int i = 0; i < 3; i++) {
    int row = smaller(down.first + i, maps.height - 1), last = maps.width - 1;
    rows[i] = weighted(across.weights, load(maps, map, row, smaller(across.first, last)),
                       load(maps, map, row, smaller(across.first + 1, last)),
                       load(maps, map, row, smaller(across.first + 2, last)));
  }
  return weighted(down.weights, rows[0], rows[1], rows[2]);
}

// Range of the logits in rows top to bottom and columns left to right (inclusive), slightly
// enlarged, because of rounding.
DEVICE Range range_of(const Maps& maps, int map, int top, int bottom, int left, int right) {
  bottom = smaller(bottom, maps.height - 1);
  right = smaller(right, maps.width - 1);
  Range range = {3.402823466e38f, -3.402823466e38f};
  for (int row = smaller(top, bottom); row <= bottom; row++) {
    for (int column = smaller(left, right); column <= right; column++) {
      float value = load(maps, map, row, column);
      range.low = value < range.low ? value : range.low;
      range.high = value > range.high ? value : range.high;
    }
  }
  float more = slack(range.low, range.high);
  return {range.low - more, range.high + more};
}

// A box is stored as (width - x0, height - y0, x1, y1), so that all fields start at 0 and grow.
DEVICE void enlarge_box(int* box, int height, int width, int x0, int y, int x1) {
  raise_to(box, width - x0);
  raise_to(box + 1, height - y);
  raise_to(box + 2, x1);
  raise_to(box + 3, y + 1);
}

DEVICE bool has_bit(const unsigned* words, int index) {
  return words[index / 32] >> index % 32 & 1;
}

// Number of set bits before `index`; for BLOCK: of all.
DEVICE int rank_of(const unsigned* words, int index) {
  int rank = 0;
  for (int word = 0; word < index / 32; word++) rank += count_bits(words[word]);
  return index % 32 ? rank + count_bits(words[index / 32] << (32 - index % 32)) : rank;
}
