// Pre- and post-processing on the GPU, equal to eomt_deploy/processing.
//
// NVRTC compiles this text without any header. It is plain C++, too: with EOMT_HOST defined the
// includer brings DEVICE, KERNEL, EXPORT and the functions of the first block, and every kernel
// becomes a loop over its grid. So the tests hold these very lines against the CPU path without
// a GPU. For that reason no kernel uses shared memory or barriers; the loads of neighbouring
// threads overlap so much that the caches serve them.
//
// Sums are integers, so that their order cannot matter, or are made by one thread in a fixed
// order: results are the same in every run. Compiled with --fmad=false: a contracted a * b + c
// rounds once where the CPU path rounds twice. Where that is wanted, fmaf says so.

#ifndef EOMT_HOST
#define DEVICE static __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define EXPORT(name)

DEVICE long long thread_x() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE int block_y() { return blockIdx.y; }

// Add up over the warp first: all threads want the same counter. All 32 must call these.
DEVICE void count_up(unsigned long long* counter, bool yes) {
  unsigned votes = __ballot_sync(0xffffffffu, yes);
  if ((threadIdx.x & 31) == 0 && votes) atomicAdd(counter, (unsigned long long)__popc(votes));
}

DEVICE void add_up(unsigned long long* counter, unsigned long long value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if ((threadIdx.x & 31) == 0 && value) atomicAdd(counter, value);
}
#endif

typedef unsigned char Byte;
typedef unsigned long long Count;

// Where a resized line takes its value: values[low] * rest + values[high] * weight.
struct alignas(16) Tap {
  int low, high;
  float rest, weight;
};

struct alignas(16) Four {
  float values[4];
};

// Maps [h, w], one after another, in float16 or float32.
struct Maps {
  const void* values;
  int half;
  long long size;  // h * w
  int width;
};

DEVICE float from_half(unsigned short bits) {
  union {
    unsigned word;
    float value;
  } number;
  number.word = (bits & 0x7fffu) << 13;
  if (number.word >= 0x0f800000u) {
    number.word |= 0x7f800000u;  // infinity or not a number
  } else {
    number.value *= 5.192296858534828e33f;  // 2^112 mends the exponent, exactly
  }
  number.word |= (bits & 0x8000u) << 16;
  return number.value;
}

DEVICE float load(const Maps& maps, long long index) {
  return maps.half ? from_half(((const unsigned short*)maps.values)[index])
                   : ((const float*)maps.values)[index];
}

DEVICE float blend(float low, float high, const Tap& tap) {
  return low * tap.rest + high * tap.weight;
}

// One value of a resized map that begins at `start`.
DEVICE float sample(const Maps& maps, long long start, const Tap& y, const Tap& x) {
  long long top = start + (long long)y.low * maps.width;
  long long bottom = start + (long long)y.high * maps.width;
  return blend(blend(load(maps, top + x.low), load(maps, top + x.high), x),
               blend(load(maps, bottom + x.low), load(maps, bottom + x.high), x), y);
}

// Taps of one pixel of the image, and of the four pixels of the network's input around it.
struct Spot {
  Tap y, x, input_y[2], input_x[2];
};

DEVICE Spot spot_at(int y, int x, const Tap* input_y, const Tap* input_x, const Tap* image_y,
                    const Tap* image_x) {
  Spot spot;
  spot.y = image_y[y];
  spot.x = image_x[x];
  spot.input_y[0] = input_y[spot.y.low];
  spot.input_y[1] = input_y[spot.y.high];
  spot.input_x[0] = input_x[spot.x.low];
  spot.input_x[1] = input_x[spot.x.high];
  return spot;
}

// A mask logit at a pixel of the image, interpolated twice like the reference.
DEVICE float sample_twice(const Maps& maps, long long start, const Spot& at) {
  float top = blend(sample(maps, start, at.input_y[0], at.input_x[0]),
                    sample(maps, start, at.input_y[0], at.input_x[1]), at.x);
  float bottom = blend(sample(maps, start, at.input_y[1], at.input_x[0]),
                       sample(maps, start, at.input_y[1], at.input_x[1]), at.x);
  return blend(top, bottom, at.y);
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ---- photo to network input ------------------------------------------------------------------

// One resampled byte by Pillow's fixed-point arithmetic: 22 fractional bits, rounded, clipped.
DEVICE int resample(const Byte* values, long long step, int length, const int* weights) {
  int sum = 1 << 21;
  for (int tap = 0; tap < length; tap++) sum += values[tap * step] * weights[tap];
  sum >>= 22;
  return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

// Pillow's passes along one side: photo [height, source_width, 3] to [height, width, 3], and photo
// [?, width, 3] to [height, width, 3]. `bounds` has the first source pixel and the number of
// source pixels of each target pixel, `weights` is [target, taps].
KERNEL resample_across(const Byte* photo, int source_width, int height, int width,
                       const int* bounds, const int* weights, int taps, Byte* result) {
  long long pixel = thread_x();
  if (pixel >= (long long)height * width) return;
  int x = (int)(pixel % width);
  const Byte* source = photo + (pixel / width * source_width + bounds[2 * x]) * 3;
  for (int channel = 0; channel < 3; channel++) {
    result[pixel * 3 + channel] = (Byte)resample(source + channel, 3, bounds[2 * x + 1],
                                                 weights + (long long)x * taps);
  }
}
EXPORT(resample_across)

KERNEL resample_down(const Byte* photo, int height, int width, const int* bounds,
                     const int* weights, int taps, Byte* result) {
  long long value = thread_x();  // the three channels are columns like any others here
  long long columns = (long long)width * 3;
  if (value >= height * columns) return;
  int y = (int)(value / columns);
  const Byte* source = photo + bounds[2 * y] * columns + value % columns;
  result[value] = (Byte)resample(source, columns, bounds[2 * y + 1],
                                 weights + (long long)y * taps);
}
EXPORT(resample_down)

// The scaled photo, where the network wants it: inputs [number, height, width, 3]. Input n shows
// it from `starts[n]` on along `axis`; beyond the photo it is 0.
KERNEL place_inputs(const Byte* photo, int photo_height, int photo_width, const int* starts,
                    int axis, int number, int height, int width, int swap_channels,
                    Byte* inputs) {
  long long pixel = thread_x();
  if (pixel >= (long long)number * height * width) return;
  int x = (int)(pixel % width);
  int y = (int)(pixel / width % height);
  int start = starts[pixel / width / height];
  if (axis == 0) y += start;
  if (axis == 1) x += start;
  bool inside = y < photo_height && x < photo_width;
  const Byte* source = photo + ((long long)y * photo_width + x) * 3;
  for (int channel = 0; channel < 3; channel++) {
    int from = swap_channels ? 2 - channel : channel;
    inputs[pixel * 3 + channel] = inside ? source[from] : (Byte)0;
  }
}
EXPORT(place_inputs)

// ---- network output to result ----------------------------------------------------------------

// Adds to `found`, zero before, where a logit is infinite or not a number: as many as there are
// threads that met one. Neighbouring threads load neighbouring values, `threads` apart.
KERNEL find_not_finite(const void* logits, int half, long long count, long long threads,
                       Count* found) {
  Maps maps = {logits, half, 0, 0};
  bool wrong = false;
  for (long long index = thread_x(); index < count; index += threads) {
    wrong |= !(fabsf(load(maps, index)) <= 3.402823466e38f);  // the largest float
  }
  count_up(found, wrong);
}
EXPORT(find_not_finite)

// Panoptic: the query with the highest score x mask probability owns a pixel (-1: none, or its
// own mask is off there). `areas` [3, chosen], zero before: pixels of each mask, pixels that
// each query won, pixels that it won inside its mask.
KERNEL paint_queries(const void* logits, int half, long long map_size, int map_width,
                     const Tap* input_y, const Tap* input_x, const Tap* image_y,
                     const Tap* image_x, int width, long long pixels, const int* queries,
                     const float* scores, int chosen, float threshold, short* owners,
                     Count* areas) {
  Maps maps = {logits, half, map_size, map_width};
  long long pixel = thread_x();
  bool real = pixel < pixels;  // the others only take part in counting
  long long place = real ? pixel : 0;
  Spot spot = spot_at((int)(place / width), (int)(place % width), input_y, input_x, image_y,
                      image_x);
  int owner = -1;
  bool inside = false;
  float best = -1.0f;  // less than any
  for (int index = 0; index < chosen; index++) {
    float mask = sigmoid(sample_twice(maps, queries[index] * map_size, spot));
    float weighted = scores[index] * mask;
    bool on = mask >= threshold;
    count_up(areas + index, real && on);
    if (weighted > best) {  // strictly: the first query wins ties
      owner = index;
      best = weighted;
      inside = on;
    }
  }
  for (int index = 0; index < chosen; index++) {
    count_up(areas + chosen + index, real && owner == index);
    count_up(areas + 2 * chosen + index, real && owner == index && inside);
  }
  if (real) owners[pixel] = (short)(inside ? owner : -1);
}
EXPORT(paint_queries)

// Instance: the mask of each chosen query (one per block row) as bits, eight pixels a thread,
// with its pixels and the sum of its probabilities in units of 2^-24: above 0.5 every float32
// is a whole number of them, so that this sum is exact. `areas` and `sums` are zero before.
KERNEL measure_masks(const void* logits, int half, long long map_size, int map_width,
                     const Tap* input_y, const Tap* input_x, const Tap* image_y,
                     const Tap* image_x, int width, long long pixels, const int* queries,
                     Byte* masks, Count* areas, Count* sums) {
  Maps maps = {logits, half, map_size, map_width};
  long long octets = (pixels + 7) / 8;
  long long octet = thread_x();
  int index = block_y();
  unsigned bits = 0;
  Count area = 0, sum = 0;
  for (int bit = 0; bit < 8; bit++) {
    long long pixel = octet * 8 + bit;
    if (pixel >= pixels) break;
    Spot spot = spot_at((int)(pixel / width), (int)(pixel % width), input_y, input_x, image_y,
                        image_x);
    float logit = sample_twice(maps, queries[index] * map_size, spot);
    if (logit > 0.0f) {
      bits |= 0x80u >> bit;
      area += 1;
      sum += (unsigned)(sigmoid(logit) * 16777216.0f);
    }
  }
  if (octet < octets) masks[index * octets + octet] = (Byte)bits;
  add_up(areas + index, area);
  add_up(sums + index, sum);
}
EXPORT(measure_masks)

// Semantic, first half: class scores [classes, rows, width] of a band of the scaled photo, the
// mean over the windows that show a pixel. A thread does CHUNK classes (one chunk per block row),
// so that a mask probability is computed once for all of them. `probabilities` is
// [windows, queries, padded], `padded` being a multiple of CHUNK.
#define CHUNK 32
KERNEL score_classes(const void* logits, int half, long long map_size, int map_width, int queries,
                     const Tap* input_y, const Tap* input_x, const int* starts, int windows,
                     int window, int axis, int first_row, int rows, int width,
                     const float* probabilities, int padded, int classes, float* scores) {
  Maps maps = {logits, half, map_size, map_width};
  long long plane = (long long)rows * width;
  long long pixel = thread_x();
  if (pixel >= plane) return;
  int y = first_row + (int)(pixel / width);
  int x = (int)(pixel % width);
  int first = block_y() * CHUNK;
  int last = first + CHUNK < classes ? first + CHUNK : classes;
  float* target = scores + pixel;
  int seen = 0;
  for (int index = 0; index < windows; index++) {
    int place = (axis == 0 ? y : x) - starts[index];
    if (place < 0 || place >= window) continue;
    Tap tap_y = input_y[axis == 0 ? place : y];
    Tap tap_x = input_x[axis == 1 ? place : x];
    float sums[CHUNK] = {};
    for (int query = 0; query < queries; query++) {
      long long map = (long long)index * queries + query;
      float mask = sigmoid(sample(maps, map * map_size, tap_y, tap_x));
      const Four* weights = (const Four*)(probabilities + map * padded + first);
#pragma unroll
      for (int four = 0; four < CHUNK / 4; four++) {
        Four weight = weights[four];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sums[four * 4 + i] = fmaf(weight.values[i], mask, sums[four * 4 + i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      if (first + i < last) {
        float* score = target + (first + i) * plane;
        *score = seen ? *score + sums[i] : sums[i];
      }
    }
    seen++;
  }
  if (seen > 1) {
    for (int id = first; id < last; id++) target[id * plane] /= (float)seen;
  }
}
EXPORT(score_classes)

// Semantic, second half: the class of each pixel of a band of the image, from the scores
// [classes, rows, score_width] of the band of the scaled photo that begins at `score_row`.
KERNEL choose_classes(const float* scores, int classes, int score_row, int rows, int score_width,
                      const Tap* image_y, const Tap* image_x, int first_row, int width,
                      long long pixels, short* labels) {
  long long plane = (long long)rows * score_width;
  Maps maps = {scores, 0, plane, score_width};
  long long pixel = thread_x();
  if (pixel >= pixels) return;
  Tap y = image_y[first_row + pixel / width];
  Tap x = image_x[pixel % width];
  y.low -= score_row;
  y.high -= score_row;
  int label = 0;
  float best = sample(maps, 0, y, x);
  for (int id = 1; id < classes; id++) {
    float score = sample(maps, id * plane, y, x);
    if (score > best) {  // strictly: the first class wins ties
      best = score;
      label = id;
    }
  }
  labels[(long long)first_row * width + pixel] = (short)label;
}
EXPORT(choose_classes)
