/* Semantic segmentation: semantic.py in C, around the kernel of semantic.c. */
#include "segment.h"
#include "tables.h"

enum { TILE_SIDE = 16 }; /* side of a tile, in pixels of the merged windows */

/* Parts of the axis that the same windows cover. Windows have equal lengths and ascending starts.
   Return their number. Out: parts [2 * windows]. */
static int find_stretches(const int32_t *starts, int windows, int length, Stretch *parts) {
    int count = 0, opened = 0, closed = 0;
    while (closed < windows) {
        const int32_t here = opened < windows && starts[opened] < starts[closed] + length
                                 ? starts[opened] : starts[closed] + length;
        if (count && opened > closed) parts[count - 1].end = here;
        while (opened < windows && starts[opened] == here) opened++;
        while (closed < windows && starts[closed] + length == here) closed++;
        if (opened > closed) parts[count++] = (Stretch){here, 0, closed, opened - closed};
    }
    return count;
}

/* Class probabilities [N, C, lanes] from logits [N, Q, C + 1]. */
static int fill_probabilities(const eomt_model *model, int inputs, const float *logits, int lanes,
                              float *probabilities) {
    const int columns = model->class_count + 1, queries = model->queries;
    float *rows = allocate((int64_t)queries * columns, sizeof(float));
    int code = rows ? DONE : NO_MEMORY;
    for (int input = 0; input < inputs && code == DONE; input++) {
        code = softmax(logits + (int64_t)input * queries * columns, queries, columns, rows);
        float *target = probabilities + (int64_t)input * model->class_count * lanes;
        for (int class_id = 0; class_id < model->class_count; class_id++, target += lanes)
            for (int q = 0; q < lanes; q++)
                target[q] = q < queries ? rows[(int64_t)q * columns + class_id] : 0;
    }
    free(rows);
    return code;
}

int segment_semantic(const eomt_model *model, const eomt_geometry *geometry,
                            const float *logits, const float *masks, eomt_result *result) {
    const int inputs = inputs_of(geometry), lanes = (int)rounded_up(model->queries);
    const int32_t *merged = inputs > 1 ? geometry->scaled : geometry->input;
    const int sizes[][2] = {{model->mask_height, geometry->input[0]},
                            {model->mask_width, geometry->input[1]},
                            {merged[0], geometry->image[0]},
                            {merged[1], geometry->image[1]}};
    Tap *taps[4];
    int ready = make_labels(result, model->class_count + 1) == DONE;
    for (int i = 0; i < 4; i++) {
        taps[i] = allocate(sizes[i][1], sizeof(Tap));
        ready &= taps[i] != NULL;
    }
    float *probabilities = allocate((int64_t)inputs * model->class_count * lanes, sizeof(float));
    Stretch stretches[2 * MAX_ASPECT];
    ready &= probabilities != NULL;
    int code = ready ? fill_probabilities(model, inputs, logits, lanes, probabilities) : NO_MEMORY;
    if (code == DONE) {
        for (int i = 0; i < 4; i++) fill_taps(sizes[i][0], sizes[i][1], taps[i]);
        static const int32_t zero[1];
        const int length = inputs > 1 ? geometry->input[geometry->axis] : merged[geometry->axis];
        const Job job = {
            .masks = masks,
            .probabilities = probabilities,
            .starts = inputs > 1 ? geometry->starts : zero,
            .stretches = stretches,
            .input_down = taps[0],
            .input_across = taps[1],
            .image_down = taps[2],
            .image_across = taps[3],
            .labels = result->labels,
            .windows = inputs,
            .queries = model->queries,
            .lanes = lanes,
            .classes = model->class_count,
            .mask_height = model->mask_height,
            .mask_width = model->mask_width,
            .input_height = geometry->input[0],
            .input_width = geometry->input[1],
            .merged_height = merged[0],
            .merged_width = merged[1],
            .axis = geometry->axis,
            .stretch_count = find_stretches(inputs > 1 ? geometry->starts : zero, inputs, length,
                                            stretches),
            .height = result->height,
            .width = result->width,
            .tile_rows = larger(1, (int)((int64_t)TILE_SIDE * result->height / merged[0])),
            .tile_columns = larger(1, (int)((int64_t)TILE_SIDE * result->width / merged[1])),
            .wide = result->label_bytes - 1,
        };
        code = classify_pixels(&job, 0, result->height);
    }
    for (int i = 0; i < 4; i++) free(taps[i]);
    free(probabilities);
    return code;
}
