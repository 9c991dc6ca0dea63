/* Post-processing of one image: checks, and what the tasks share. */
#include "segment.h"
#include "tables.h"

/* One side of a Resize: mask to network input, without padding to the image. */
static Span *side_of(const eomt_geometry *geometry, int side, int mask) {
    const int input = geometry->input[side], image = geometry->image[side];
    Tap *first = allocate(input, sizeof(Tap)), *second = allocate(image, sizeof(Tap));
    Span *spans = allocate(image, sizeof(Span));
    if (first && second && spans) {
        fill_taps(mask, input, first);
        fill_taps(geometry->scaled[side], image, second);
        fill_spans(first, second, larger(mask, 3), image, spans);
    } else {
        free(spans), spans = NULL;
    }
    free(first), free(second);
    return spans;
}

/* Copy masks [count, h, w], repeating the last row and column until there are at least 3. */
static float *enlarged(const float *masks, int64_t count, int height, int width) {
    const int rows = larger(height, 3), columns = larger(width, 3);
    float *target = allocate(count * rows * columns, sizeof(float)), *at = target;
    for (int64_t i = 0; target && i < count; i++)
        for (int y = 0; y < rows; y++)
            for (int x = 0; x < columns; x++)
                *at++ = masks[(i * height + smaller(y, height - 1)) * width + smaller(x, width - 1)];
    return target;
}

void free_resize(Resize *resize) {
    free(resize->sides[0]), free(resize->sides[1]), free(resize->masks);
}

int make_resize(const eomt_model *model, const eomt_geometry *geometry, const float **masks,
                       Resize *resize) {
    const int height = model->mask_height, width = model->mask_width;
    *resize = (Resize){.height = larger(height, 3), .width = larger(width, 3)};
    resize->sides[0] = side_of(geometry, 0, height);
    resize->sides[1] = side_of(geometry, 1, width);
    if (height < 3 || width < 3) {
        resize->masks = enlarged(*masks, model->queries, height, width);
        if (!resize->masks) return NO_MEMORY;
        *masks = resize->masks;
    }
    return resize->sides[0] && resize->sides[1] ? DONE : NO_MEMORY;
}

int make_labels(eomt_result *result, int count) {
    result->label_bytes = count <= 256 ? 1 : 2;
    result->labels = allocate((int64_t)result->height * result->width, (size_t)result->label_bytes);
    return result->labels ? DONE : NO_MEMORY;
}

static int check_arguments(const eomt_model *model, const eomt_geometry *geometry,
                           size_t class_count, size_t mask_count, const double *thresholds) {
    const int windows = model->resize == EOMT_WINDOWS;
    if (geometry->input[0] != model->height || geometry->input[1] != model->width ||
        (geometry->windows > 0) != windows)
        return fail(EOMT_WRONG_ARGUMENT, "The geometry belongs to another model.");
    const uint64_t rows = (uint64_t)inputs_of(geometry) * (uint64_t)model->queries;
    if (class_count != rows * ((uint64_t)model->class_count + 1) ||
        mask_count != rows * (uint64_t)model->mask_height * (uint64_t)model->mask_width)
        return fail(EOMT_WRONG_ARGUMENT,
                    "The model has class logits [%d, %d, %d] and mask logits [%d, %d, %d, %d] for "
                    "this image; class_count and mask_count must be their numbers of values.",
                    inputs_of(geometry), model->queries, model->class_count + 1,
                    inputs_of(geometry), model->queries, model->mask_height, model->mask_width);
    for (int i = 0; i < 3; i++)
        if (!(thresholds[i] <= 1))
            return fail(EOMT_WRONG_ARGUMENT, "A threshold must be at most 1; a negative value "
                                             "stands for the default of the model.");
    return EOMT_OK;
}

int eomt_postprocess(const eomt_model *model, const eomt_geometry *geometry,
                     const float *class_logits, size_t class_count, const float *mask_logits,
                     size_t mask_count, double score, double mask, double overlap,
                     eomt_result **result) {
    if (result) *result = NULL;
    if (!model || !geometry || !class_logits || !mask_logits || !result)
        return fail(EOMT_WRONG_ARGUMENT,
                    "eomt_postprocess needs a model, a geometry, logits and a result.");
    double thresholds[] = {score, mask, overlap};
    int code = check_arguments(model, geometry, class_count, mask_count, thresholds);
    if (code) return code;
    for (int i = 0; i < 3; i++)
        if (thresholds[i] < 0) thresholds[i] = model->thresholds[i];
    if (any_not_finite(class_logits, (int64_t)class_count) ||
        any_not_finite(mask_logits, (int64_t)mask_count))
        return fail(EOMT_NOT_FINITE, "The network returned NaN or infinite logits.");
    eomt_result *made = allocate(1, sizeof *made);
    if (!made) return kernel_error(NO_MEMORY);
    *made = (eomt_result){
        .task = model->task, .height = geometry->image[0], .width = geometry->image[1]};
    code = model->task == EOMT_SEMANTIC
               ? segment_semantic(model, geometry, class_logits, mask_logits, made)
           : model->task == EOMT_PANOPTIC
               ? segment_panoptic(model, geometry, class_logits, mask_logits, thresholds, made)
               : segment_instances(model, geometry, class_logits, mask_logits,
                                   thresholds[EOMT_SCORE], made);
    if (code != DONE) {
        eomt_result_free(made);
        return kernel_error(code);
    }
    *result = made;
    return EOMT_OK;
}
