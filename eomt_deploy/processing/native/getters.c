/* Getters of models and results. */
#include "library.h"

#define MODEL_GETTER(type, name, value, otherwise) \
    type eomt_model_##name(const eomt_model *model) { return model ? model->value : otherwise; }

MODEL_GETTER(const char *, name, name, NULL)
MODEL_GETTER(const char *, precision, precision, NULL)
MODEL_GETTER(int32_t, task, task, -1)
MODEL_GETTER(int32_t, resize, resize, -1)
MODEL_GETTER(int32_t, height, height, 0)
MODEL_GETTER(int32_t, width, width, 0)
MODEL_GETTER(int32_t, mask_height, mask_height, 0)
MODEL_GETTER(int32_t, mask_width, mask_width, 0)
MODEL_GETTER(int32_t, queries, queries, 0)
MODEL_GETTER(int32_t, classes, class_count, 0)
MODEL_GETTER(int32_t, batch, batch, 0)

double eomt_model_threshold(const eomt_model *model, int32_t threshold) {
    return model && within(threshold, EOMT_SCORE, EOMT_OVERLAP) ? model->thresholds[threshold]
                                                                : (double)NAN;
}

static const Class *class_of(const eomt_model *model, int32_t class_id) {
    return model && within(class_id, 0, model->class_count - 1) ? &model->classes[class_id] : NULL;
}

const char *eomt_model_class_name(const eomt_model *model, int32_t class_id) {
    const Class *info = class_of(model, class_id);
    return info ? info->name : NULL;
}

int32_t eomt_model_class_is_thing(const eomt_model *model, int32_t class_id) {
    const Class *info = class_of(model, class_id);
    return info ? info->thing : -1;
}

int32_t eomt_model_class_color(const eomt_model *model, int32_t class_id) {
    const Class *info = class_of(model, class_id);
    return info ? info->color[0] << 16 | info->color[1] << 8 | info->color[2] : -1;
}

#define RESULT_GETTER(type, name, otherwise) \
    type eomt_result_##name(const eomt_result *result) { return result ? result->name : otherwise; }

RESULT_GETTER(int32_t, task, -1)
RESULT_GETTER(int32_t, height, 0)
RESULT_GETTER(int32_t, width, 0)
RESULT_GETTER(const void *, labels, NULL)
RESULT_GETTER(int32_t, label_bytes, 0)
RESULT_GETTER(int32_t, count, 0)

static const Segment *segment_of(const eomt_result *result, int32_t segment) {
    return result && within(segment, 0, result->count - 1) ? &result->segments[segment] : NULL;
}

#define SEGMENT_GETTER(type, name, value, otherwise)                        \
    type eomt_result_##name(const eomt_result *result, int32_t segment) { \
        const Segment *found = segment_of(result, segment);                 \
        return found ? value : otherwise;                                   \
    }

SEGMENT_GETTER(int32_t, class, found->class_id, -1)
SEGMENT_GETTER(double, score, found->score, (double)NAN)
SEGMENT_GETTER(uint32_t, area, found->area, 0)
SEGMENT_GETTER(const int32_t *, box, found->box, NULL)
SEGMENT_GETTER(const uint32_t *, runs, found->runs ? result->runs + 2 * found->first_run : NULL, NULL)
SEGMENT_GETTER(uint32_t, run_count, found->runs, 0)

int eomt_result_mask(const eomt_result *result, int32_t segment, uint8_t *mask,
                     size_t mask_bytes) {
    const Segment *found = segment_of(result, segment);
    if (!found || !mask)
        return fail(EOMT_WRONG_ARGUMENT,
                    "eomt_result_mask needs a mask and the number of a segment, from 0 to %d.",
                    eomt_result_count(result) - 1);
    const uint64_t pixels = (uint64_t)result->height * (uint64_t)result->width;
    if (mask_bytes != pixels)
        return fail(EOMT_WRONG_ARGUMENT, "mask_bytes must be height * width: %d * %d.",
                    result->height, result->width);
    if (result->labels) {
        const int label = segment + 1;
        const uint8_t *narrow = result->labels;
        const uint16_t *wide = result->labels;
        for (size_t i = 0; i < mask_bytes; i++)
            mask[i] = (result->label_bytes == 2 ? wide[i] : narrow[i]) == label;
        return EOMT_OK;
    }
    memset(mask, 0, mask_bytes);
    const uint32_t *run = result->runs + 2 * found->first_run;
    for (uint32_t i = 0; i < found->runs; i++, run += 2)
        memset(mask + run[0], 1, run[1] - run[0]);
    return EOMT_OK;
}

void eomt_result_free(eomt_result *result) {
    if (!result) return;
    free(result->labels), free(result->segments), free(result->runs);
    free(result);
}
