/* Position of an image in the network inputs: geometry.py in C. */
#include "library.h"

static int too_extreme(int height, int width) {
    return fail(EOMT_WRONG_IMAGE,
                "The aspect ratio of the image of %dx%d pixels is too extreme. Cut the image into "
                "pieces that are closer to a square.",
                height, width);
}

/* Overlapping windows over `length` pixels. Only if rounding leaves the last pixel uncovered, the
   last window is moved to the end. */
static void place_windows(eomt_geometry *geometry, int length, int window) {
    const int count = (int)ceil((double)length / window);
    const double overlap =
        count > 1 ? (double)((int64_t)count * window - length) / (count - 1) : 0;
    for (int i = 0; i < count; i++) geometry->starts[i] = (int32_t)(i * (window - overlap));
    if (geometry->starts[count - 1] < length - window)
        geometry->starts[count - 1] = length - window;
    geometry->windows = count;
}

int eomt_geometry_plan(const eomt_model *model, int32_t height, int32_t width,
                       eomt_geometry **geometry) {
    if (geometry) *geometry = NULL;
    if (!model || !geometry)
        return fail(EOMT_WRONG_ARGUMENT, "eomt_geometry_plan needs a model and a geometry.");
    if (!within(height, 1, MAX_IMAGE_SIDE) || !within(width, 1, MAX_IMAGE_SIDE) ||
        (int64_t)height * width > UINT32_MAX)
        return fail(EOMT_WRONG_IMAGE,
                    "The sides of an image must be at least 1, and it must have fewer than 2^32 "
                    "pixels, got %dx%d.",
                    height, width);
    eomt_geometry plan = {.image = {height, width}, .axis = 1};
    plan.input[0] = model->height, plan.input[1] = model->width;
    const double down = (double)model->height / height, across = (double)model->width / width;
    const int windows = model->resize == EOMT_WINDOWS;
    const double factor = (windows ? down > across : down < across) ? down : across;
    /* As Python's round(): halves are rounded to even. */
    const double scaled[2] = {rint(height * factor), rint(width * factor)};
    for (int side = 0; side < 2; side++) {
        if (windows ? scaled[side] / plan.input[side] > MAX_ASPECT : scaled[side] < 1)
            return too_extreme(height, width);
        plan.scaled[side] = (int32_t)scaled[side];
    }
    if (windows) {
        plan.axis = (int64_t)plan.scaled[0] * plan.input[1] > (int64_t)plan.scaled[1] * plan.input[0]
                        ? 0 : 1;
        place_windows(&plan, plan.scaled[plan.axis], plan.input[plan.axis]);
    }
    *geometry = allocate(1, sizeof plan);
    if (!*geometry) return kernel_error(NO_MEMORY);
    **geometry = plan;
    return EOMT_OK;
}

void eomt_geometry_free(eomt_geometry *geometry) { free(geometry); }

int32_t eomt_geometry_inputs(const eomt_geometry *geometry) {
    return geometry ? inputs_of(geometry) : 0;
}

int32_t eomt_geometry_height(const eomt_geometry *geometry) {
    return geometry ? geometry->image[0] : 0;
}

int32_t eomt_geometry_width(const eomt_geometry *geometry) {
    return geometry ? geometry->image[1] : 0;
}

int32_t eomt_geometry_scaled_height(const eomt_geometry *geometry) {
    return geometry ? geometry->scaled[0] : 0;
}

int32_t eomt_geometry_scaled_width(const eomt_geometry *geometry) {
    return geometry ? geometry->scaled[1] : 0;
}

int32_t eomt_geometry_axis(const eomt_geometry *geometry) { return geometry ? geometry->axis : 0; }

int32_t eomt_geometry_window_start(const eomt_geometry *geometry, int32_t window) {
    return geometry && within(window, 0, inputs_of(geometry) - 1) ? geometry->starts[window] : 0;
}

size_t eomt_geometry_input_bytes(const eomt_geometry *geometry) {
    if (!geometry) return 0;
    const int64_t bytes =
        3 * (int64_t)inputs_of(geometry) * geometry->input[0] * geometry->input[1];
    return bytes <= (int64_t)PTRDIFF_MAX ? (size_t)bytes : 0;
}
