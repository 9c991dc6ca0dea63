/* Images to network inputs: Pillow's bilinear resize, then padding or windows. */
#include "library.h"
#include "tables.h"

enum { BLOCK = 1024, HALF = 1 << 21, BITS = 22 };

/* An image uint8 [height, width, 3]. `owned` is the memory to free, if it is not the caller's. */
typedef struct {
    const uint8_t *pixels;
    size_t stride;
    int height, width;
    uint8_t *owned;
} Image;

typedef struct {
    int32_t *bounds, *weights;
    int64_t taps;
} Table;

/* Pillow's weights are never negative and add up to about 2^22: a sum of bytes fits into 32 bits. */
static inline uint8_t rounded(int32_t sum) {
    const int32_t value = sum >> BITS;
    return value > 255 ? 255 : (uint8_t)value;
}

static void resize_row(const uint8_t *restrict source, const Table *table, int width,
                       uint8_t *restrict target) {
    for (int x = 0; x < width; x++) {
        const uint8_t *at = source + 3 * (int64_t)table->bounds[2 * x];
        const int32_t *weights = table->weights + x * table->taps;
        const int count = table->bounds[2 * x + 1];
        int32_t red = HALF, green = HALF, blue = HALF;
        for (int tap = 0; tap < count; tap++, at += 3) {
            red += at[0] * weights[tap];
            green += at[1] * weights[tap];
            blue += at[2] * weights[tap];
        }
        target[3 * x] = rounded(red);
        target[3 * x + 1] = rounded(green);
        target[3 * x + 2] = rounded(blue);
    }
}

/* One row of an image of another height, `length` bytes. */
static void mix_image_rows(const Image *source, const Table *table, int y, int64_t length,
                           uint8_t *restrict target) {
    const int32_t *weights = table->weights + y * table->taps;
    const uint8_t *first = source->pixels + (size_t)table->bounds[2 * y] * source->stride;
    for (int64_t start = 0; start < length; start += BLOCK) {
        int32_t sums[BLOCK];
        const int count = length - start < BLOCK ? (int)(length - start) : BLOCK;
        for (int i = 0; i < BLOCK; i++) sums[i] = HALF;
        for (int tap = 0; tap < table->bounds[2 * y + 1]; tap++) {
            const uint8_t *restrict row = first + tap * source->stride + start;
            const int32_t weight = weights[tap];
            for (int i = 0; i < count; i++) sums[i] += row[i] * weight;
        }
        for (int i = 0; i < count; i++) target[start + i] = rounded(sums[i]);
    }
}

/* Replace an image by one with another length along an axis: 0 is the height. */
static int resize_side(Image *image, int axis, int length) {
    const int old = axis == 0 ? image->height : image->width;
    if (old == length) return DONE;
    Image resized = *image;
    *(axis == 0 ? &resized.height : &resized.width) = length;
    resized.stride = 3 * (size_t)resized.width;
    resized.owned = allocate((int64_t)resized.height * resized.width, 3);
    resized.pixels = resized.owned;
    Table table = {.taps = image_taps(old, length)};
    table.bounds = allocate(length, 2 * sizeof(int32_t));
    table.weights = allocate(length * table.taps, sizeof(int32_t));
    const int ready = resized.owned && table.bounds && table.weights;
    if (ready) {
        fill_image_table(old, length, table.bounds, table.weights);
        for (int y = 0; y < resized.height; y++) {
            uint8_t *target = resized.owned + (size_t)y * resized.stride;
            if (axis == 0)
                mix_image_rows(image, &table, y, 3 * (int64_t)resized.width, target);
            else
                resize_row(image->pixels + (size_t)y * image->stride, &table, length, target);
        }
        free(image->owned);
        *image = resized;
    } else {
        free(resized.owned);
    }
    free(table.bounds), free(table.weights);
    return ready ? DONE : NO_MEMORY;
}

/* Whether Pillow resizes the height before the width: shrinks_down_first in tables.py. */
static int shrinks_down_first(const eomt_geometry *geometry, int pillow) {
    const int64_t height = geometry->image[0], width = geometry->image[1];
    if (geometry->scaled[0] >= height || pillow == EOMT_PILLOW_11) return 0;
    if (pillow == EOMT_PILLOW_12_2) return height > width * 100;
    return height - geometry->scaled[0] > 2 * (width - geometry->scaled[1]);
}

/* Replace an image of another pixel format by one in RGB. */
static int to_rgb(Image *image, int format) {
    if (format == EOMT_RGB) return DONE;
    const int channels = format == EOMT_BGR ? 3 : 4;
    const int first = format == EOMT_BGR || format == EOMT_BGRA ? 2 : 0;
    uint8_t *rgb = allocate((int64_t)image->height * image->width, 3);
    if (!rgb) return NO_MEMORY;
    for (int y = 0; y < image->height; y++) {
        const uint8_t *source = image->pixels + (size_t)y * image->stride;
        uint8_t *target = rgb + (size_t)y * image->width * 3;
        for (int64_t x = 0; x < image->width; x++) {
            target[3 * x] = source[channels * x + first];
            target[3 * x + 1] = source[channels * x + 1];
            target[3 * x + 2] = source[channels * x + 2 - first];
        }
    }
    *image = (Image){rgb, 3 * (size_t)image->width, image->height, image->width, rgb};
    return DONE;
}

/* Copy windows of the scaled image to inputs; pixels outside the image are 0. */
static void place_inputs(const eomt_geometry *geometry, const Image *image, uint8_t *inputs) {
    const int64_t height = geometry->input[0], width = geometry->input[1];
    for (int window = 0; window < inputs_of(geometry); window++) {
        const int top = geometry->axis == 0 ? geometry->starts[window] : 0;
        const int left = geometry->axis == 1 ? geometry->starts[window] : 0;
        const int64_t columns = width < image->width - left ? width : image->width - left;
        for (int64_t y = 0; y < height; y++) {
            uint8_t *row = inputs + (window * height + y) * width * 3;
            const int64_t filled = top + y < image->height ? columns * 3 : 0;
            if (filled)
                memcpy(row, image->pixels + (size_t)(top + y) * image->stride + (size_t)left * 3,
                       (size_t)filled);
            memset(row + filled, 0, (size_t)(width * 3 - filled));
        }
    }
}

int eomt_preprocess(const eomt_geometry *geometry, const uint8_t *pixels, size_t stride,
                    int32_t format, int32_t pillow, uint8_t *inputs, size_t input_bytes) {
    if (!geometry || !pixels || !inputs)
        return fail(EOMT_WRONG_ARGUMENT, "eomt_preprocess needs a geometry, pixels and inputs.");
    if (!within(format, EOMT_RGB, EOMT_BGRA) || !within(pillow, EOMT_PILLOW_13, EOMT_PILLOW_11))
        return fail(EOMT_WRONG_ARGUMENT, "The pixel format %d or the release of Pillow %d is unknown.",
                    format, pillow);
    const int channels = format == EOMT_RGB || format == EOMT_BGR ? 3 : 4;
    if (stride / channels < (size_t)geometry->image[1])
        return fail(EOMT_WRONG_ARGUMENT,
                    "The stride of the image must be at least width * channels = %d * %d bytes.",
                    geometry->image[1], channels);
    if (stride > (size_t)PTRDIFF_MAX / (size_t)geometry->image[0])
        return fail(EOMT_WRONG_ARGUMENT, "The stride of the image is too large.");
    if (!input_bytes || input_bytes != eomt_geometry_input_bytes(geometry))
        return fail(EOMT_WRONG_ARGUMENT,
                    "input_bytes must be eomt_geometry_input_bytes: %d inputs of %dx%dx3 bytes.",
                    inputs_of(geometry), geometry->input[0], geometry->input[1]);
    Image image = {pixels, stride, geometry->image[0], geometry->image[1], NULL};
    const int first = shrinks_down_first(geometry, pillow) ? 0 : 1;
    int result = to_rgb(&image, format);
    for (int pass = 0; pass < 2 && result == DONE; pass++) {
        const int axis = pass ? 1 - first : first;
        result = resize_side(&image, axis, geometry->scaled[axis]);
    }
    if (result == DONE) place_inputs(geometry, &image, inputs);
    free(image.owned);
    return result == DONE ? EOMT_OK : kernel_error(result);
}
