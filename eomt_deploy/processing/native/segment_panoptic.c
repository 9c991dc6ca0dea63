/* Panoptic segmentation: panoptic.py in C, around the kernels of panoptic.c. */
#include "segment.h"

/* The queries that may become segments: index, class and score of each. */
typedef struct {
    int32_t query, class_id, segment;
    float score;
} Chosen;

/* Choose the queries whose best class is not "no object" and scores above the threshold. Return
   their number. */
static int choose_queries(const float *probabilities, int queries, int columns, float threshold,
                          Chosen *chosen) {
    int count = 0;
    for (int q = 0; q < queries; q++, probabilities += columns) {
        int best = 0;
        for (int i = 1; i < columns; i++)
            if (probabilities[i] > probabilities[best]) best = i;
        if (best != columns - 1 && probabilities[best] > threshold)
            chosen[count++] = (Chosen){q, best, -1, probabilities[best]};
    }
    return count;
}

/* Keep the queries that won enough of their mask, and merge those of the same stuff class. In:
   areas [3, count] of paint_panoptic. Out: chosen[].segment, segments. Return their number. */
static int join_queries(const eomt_model *model, Chosen *chosen, int count, const int64_t *areas,
                        double overlap, int32_t *stuff_segment, Segment *segments) {
    int found = 0;
    for (int i = 0; i < model->class_count; i++) stuff_segment[i] = -1;
    for (int i = 0; i < count; i++) {
        const int64_t mask_area = areas[i], won = areas[count + i], seen = areas[2 * count + i];
        const int class_id = chosen[i].class_id, stuff = !model->classes[class_id].thing;
        /* As in the official code, pixels that a query won outside its mask count, too. */
        if (!mask_area || !seen || (double)won / (double)mask_area < overlap) continue;
        if (stuff && stuff_segment[class_id] >= 0) {
            chosen[i].segment = stuff_segment[class_id];
            segments[chosen[i].segment].area += (uint32_t)seen;
            continue;
        }
        stuff_segment[class_id] = chosen[i].segment = found;
        segments[found++] = (Segment){
            .score = chosen[i].score, .class_id = class_id, .area = (uint32_t)seen};
    }
    return found;
}

int segment_panoptic(const eomt_model *model, const eomt_geometry *geometry,
                            const float *logits, const float *masks, const double *thresholds,
                            eomt_result *result) {
    const int queries = model->queries, columns = model->class_count + 1;
    const int height = result->height, width = result->width;
    Resize resize;
    int code = make_resize(model, geometry, &masks, &resize);
    const int64_t plane = (int64_t)resize.height * resize.width;
    float *probabilities = allocate((int64_t)queries * columns, sizeof(float));
    Chosen *chosen = allocate(queries, sizeof(Chosen));
    float *scores = allocate(queries, sizeof(float)), *kept = NULL;
    int64_t *areas = allocate(3 * (int64_t)queries, sizeof(int64_t));
    int32_t *numbers = allocate(5 * (int64_t)queries + model->class_count + 1, sizeof(int32_t));
    int16_t *owners = NULL;
    int count = 0;
    result->segments = allocate(queries, sizeof(Segment));
    if (!probabilities || !chosen || !scores || !areas || !numbers || !result->segments)
        code = NO_MEMORY;
    if (code == DONE) code = softmax(logits, queries, columns, probabilities);
    if (code == DONE)
        count = choose_queries(probabilities, queries, columns, (float)thresholds[EOMT_SCORE], chosen);
    if (code == DONE && count) {
        kept = allocate(count * plane, sizeof(float));
        owners = allocate((int64_t)height * width, sizeof(int16_t));
        if (!kept || !owners) code = NO_MEMORY;
    }
    if (code == DONE && count) {
        for (int i = 0; i < count; i++) {
            memcpy(kept + i * plane, masks + chosen[i].query * plane, sizeof(float) * (size_t)plane);
            scores[i] = chosen[i].score;
        }
        memset(areas, 0, 3 * sizeof(int64_t) * (size_t)count);
        code = paint_panoptic(kept, count, resize.height, resize.width, resize.sides[0],
                              resize.sides[1], height, width, scores,
                              (float)thresholds[EOMT_MASK], 0, height, owners, areas);
    }
    if (code == DONE) {
        result->count = join_queries(model, chosen, count, areas, thresholds[EOMT_OVERLAP], numbers,
                                     result->segments);
        code = make_labels(result, result->count + 1);
    }
    if (code == DONE && !count)
        memset(result->labels, 0, (size_t)height * (size_t)width);
    if (code == DONE && count) {
        int32_t *segment_of = numbers, *boxes = numbers + count + 1;
        for (int i = 0; i < count; i++) segment_of[i] = chosen[i].segment;
        segment_of[count] = -1;
        for (int i = 0; i < result->count; i++)
            memcpy(boxes + 4 * i, (int32_t[]){width, height, 0, 0}, 4 * sizeof(int32_t));
        code = label_segments(owners, height, width, segment_of, count, result->count, 0, height,
                              result->label_bytes - 1, result->labels, boxes);
        for (int i = 0; i < result->count; i++)
            memcpy(result->segments[i].box, boxes + 4 * i, 4 * sizeof(int32_t));
    }
    free_resize(&resize);
    free(probabilities), free(chosen), free(scores), free(areas), free(numbers);
    free(kept), free(owners);
    return code;
}
