// Pre- and post-processing on the GPU, with the same results as eomt_deploy/processing.
//
// NVRTC compiles this file without any header. It is also plain C++: if EOMT_HOST is defined, the
// including file defines DEVICE, KERNEL, EXPORT and the functions of the first block, and every
// kernel becomes a loop over its grid. This way the tests compare this code with the CPU path
// without a GPU. It is also the reason why no kernel uses shared memory or barriers; the loads of
// neighbouring threads overlap, so the caches serve most of them.
//
// Results are the same in every run: sums are integers, which do not depend on the order, or are
// computed by one thread in a fixed order. The file is compiled with --fmad=false, because a
// contracted a * b + c rounds once but the CPU path rounds twice. An intended fused multiply-add is
// written as fmaf.

#ifndef EOMT_HOST
#define DEVICE static __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define EXPORT(name)

DEVICE long long thread_x() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE int block_y() { return blockIdx.y; }

// Sum over the warp first, because all threads use the same counter. All 32 threads must call
// these functions.
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

// Linear interpolation along one axis: values[low] * rest + values[high] * weight.
struct alignas(16) Tap {
  int low, high;
  float rest, weight;
};

struct alignas(16) Four {
  float values[4];
};

// Consecutive maps [h, w] in float16 or float32.
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
    number.word |= 0x7f800000u;  // infinity or NaN
  } else {
    number.value *= 5.192296858534828e33f;  // 2^112 corrects the exponent exactly
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

// One value of a resized map; the map begins at index `start`.
DEVICE float sample(const Maps& maps, long long start, const Tap& y, const Tap& x) {
  long long top = start + (long long)y.low * maps.width;
  long long bottom = start + (long long)y.high * maps.width;
  return blend(blend(load(maps, top + x.low), load(maps, top + x.high), x),
               blend(load(maps, bottom + x.low), load(maps, bottom + x.high), x), y);
}

// Taps of one image pixel, and of the four pixels of the network input around it.
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

// Mask logit at an image pixel, interpolated twice like in the reference implementation.
DEVICE float sample_twice(const Maps& maps, long long start, const Spot& at) {
  float top = blend(sample(maps, start, at.input_y[0], at.input_x[0]),
                    sample(maps, start, at.input_y[0], at.input_x[1]), at.x);
  float bottom = blend(sample(maps, start, at.input_y[1], at.input_x[0]),
                       sample(maps, start, at.input_y[1], at.input_x[1]), at.x);
  return blend(top, bottom, at.y);
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ---- image to network input ------------------------------------------------------------------

// One resampled byte in Pillow's fixed-point arithmetic: 22 fractional bits, rounded, clipped.
DEVICE int resample(const Byte* values, long long step, int length, const int* weights) {
  int sum = 1 << 21;
  for (int tap = 0; tap < length; tap++) sum += values[tap * step] * weights[tap];
  sum >>= 22;
  return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

// Pillow's horizontal pass, image [height, source_width, 3] to [height, width, 3], and vertical
// pass, image [source_height, width, 3] to [height, width, 3]. `bounds` has the first source pixel
// and the number of source pixels for each target pixel; `weights` is [target, taps].
KERNEL resample_across(const Byte* image, int source_width, int height, int width,
                       const int* bounds, const int* weights, int taps, Byte* result) {
  long long pixel = thread_x();
  if (pixel >= (long long)height * width) return;
  int x = (int)(pixel % width);
  const Byte* source = image + (pixel / width * source_width + bounds[2 * x]) * 3;
  for (int channel = 0; channel < 3; channel++) {
    result[pixel * 3 + channel] = (Byte)resample(source + channel, 3, bounds[2 * x + 1],
                                                 weights + (long long)x * taps);
  }
}
EXPORT(resample_across)

KERNEL resample_down(const Byte* image, int height, int width, const int* bounds,
                     const int* weights, int taps, Byte* result) {
  long long value = thread_x();  // one thread per channel value: here each channel is a column
  long long columns = (long long)width * 3;
  if (value >= height * columns) return;
  int y = (int)(value / columns);
  const Byte* source = image + bounds[2 * y] * columns + value % columns;
  result[value] = (Byte)resample(source, columns, bounds[2 * y + 1],
                                 weights + (long long)y * taps);
}
EXPORT(resample_down)

// Copies windows of the scaled image to inputs [number, height, width, 3]. The window of input n
// begins at `starts[n]` along `axis`; pixels outside the image are 0.
KERNEL place_inputs(const Byte* image, int image_height, int image_width, const int* starts,
                    int axis, int number, int height, int width, int swap_channels,
                    Byte* inputs) {
  long long pixel = thread_x();
  if (pixel >= (long long)number * height * width) return;
  int x = (int)(pixel % width);
  int y = (int)(pixel / width % height);
  int start = starts[pixel / width / height];
  if (axis == 0) y += start;
  if (axis == 1) x += start;
  bool inside = y < image_height && x < image_width;
  const Byte* source = image + ((long long)y * image_width + x) * 3;
  for (int channel = 0; channel < 3; channel++) {
    int from = swap_channels ? 2 - channel : channel;
    inputs[pixel * 3 + channel] = inside ? source[from] : (Byte)0;
  }
}
EXPORT(place_inputs)

// ---- network output to result ----------------------------------------------------------------

// Adds to `found` (initially zero) the number of threads that met an infinite or NaN logit. Each
// thread loads every `threads`-th value, so that neighbouring threads load neighbouring values.
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

// Panoptic: the query with the highest score x mask probability owns a pixel (-1: none, or the
// pixel is outside the query's mask). `areas` [3, chosen], initially zero: number of pixels of each
// mask, of pixels that each query owns, and of pixels that it owns inside its mask.
KERNEL paint_queries(const void* logits, int half, long long map_size, int map_width,
                     const Tap* input_y, const Tap* input_x, const Tap* image_y,
                     const Tap* image_x, int width, long long pixels, const int* queries,
                     const float* scores, int chosen, float threshold, short* owners,
                     Count* areas) {
  Maps maps = {logits, half, map_size, map_width};
  long long pixel = thread_x();
  bool real = pixel < pixels;  // the other threads only take part in the warp sums
  long long place = real ? pixel : 0;
  Spot spot = spot_at((int)(place / width), (int)(place % width), input_y, input_x, image_y,
                      image_x);
  int owner = -1;
  bool inside = false;
  float best = -1.0f;  // below all possible values
  for (int index = 0; index < chosen; index++) {
    float mask = sigmoid(sample_twice(maps, queries[index] * map_size, spot));
    float weighted = scores[index] * mask;
    bool on = mask >= threshold;
    count_up(areas + index, real && on);
    if (weighted > best) {  // strict: the first query wins ties
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

// Instance: the mask of each chosen query (one per block row) as bits, eight pixels per thread,
// its number of pixels, and the sum of their probabilities in units of 2^-24. The sum is exact,
// because every float32 above 0.5 is a multiple of this unit. `areas` and `sums` are initially
// zero.
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

// Semantic, step 1: class scores [classes, rows, width] of a band of the scaled image, averaged
// over the windows that contain the pixel. A thread computes CHUNK classes (one chunk per block
// row), so that it computes each mask probability only once for them. `probabilities` is
// [windows, queries, padded], and `padded` is a multiple of CHUNK.
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

// Semantic, step 2: the class of each pixel of a band of the image, from the scores
// [classes, rows, score_width] of the band of the scaled image that begins at row `score_row`.
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
    if (score > best) {  // strict: the first class wins ties
      best = score;
      label = id;
    }
  }
  labels[(long long)first_row * width + pixel] = (short)label;
}
EXPORT(choose_classes)
