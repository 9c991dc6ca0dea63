// Images to network inputs.

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
EXPORT_THREADS(resample_across)

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
EXPORT_THREADS(resample_down)

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
EXPORT_THREADS(place_inputs)
