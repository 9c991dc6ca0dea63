/* Instance segmentation: instance.py in C, around the kernel of instance.c. */
#include "segment.h"

enum { TOP = 100 };

/* A query with one of its classes. */
typedef struct {
    double final; /* class score times mask quality */
    float score;
    int32_t query, class_id;
} Candidate;

/* Find the best `TOP` of the scores [queries, columns] without the last column. Equal scores keep
   their order. Return their number. */
static int rank_queries(const float *scores, int queries, int columns, float threshold,
                        Candidate *best) {
    int count = 0;
    for (int q = 0; q < queries; q++)
        for (int class_id = 0; class_id < columns - 1; class_id++) {
            const float score = scores[(int64_t)q * columns + class_id];
            if (!(score >= threshold) || (count == TOP && score <= best[TOP - 1].score)) continue;
            int place = count < TOP ? count++ : TOP - 1;
            for (; place && best[place - 1].score < score; place--) best[place] = best[place - 1];
            best[place] = (Candidate){0, score, q, class_id};
        }
    return count;
}

/* Sort by final score, the highest first. Equal scores keep their order. */
static void sort_candidates(Candidate *candidates, int count) {
    for (int i = 1; i < count; i++) {
        const Candidate moved = candidates[i];
        int place = i;
        for (; place && candidates[place - 1].final < moved.final; place--)
            candidates[place] = candidates[place - 1];
        candidates[place] = moved;
    }
}

int segment_instances(const eomt_model *model, const eomt_geometry *geometry,
                             const float *logits, const float *masks, double threshold,
                             eomt_result *result) {
    const int queries = model->queries, columns = model->class_count + 1;
    Candidate candidates[TOP];
    int32_t used[TOP];
    Measure measures[TOP];
    int64_t first_runs[TOP];
    int count = 0, used_count = 0;
    Resize resize;
    int code = make_resize(model, geometry, &masks, &resize);
    float *scores = allocate((int64_t)queries * columns, sizeof(float));
    result->segments = allocate(TOP, sizeof(Segment));
    if (!scores || !result->segments) code = NO_MEMORY;
    if (code == DONE) code = softmax(logits, queries, columns, scores);
    if (code == DONE) count = rank_queries(scores, queries, columns, (float)threshold, candidates);
    for (int i = 0; i < count; i++) {
        int known = 0;
        for (int j = 0; j < used_count; j++) known |= used[j] == candidates[i].query;
        if (!known) used[used_count++] = candidates[i].query;
    }
    if (code == DONE)
        code = measure_instances(masks, used, used_count, resize.height, resize.width,
                                 resize.sides[0], resize.sides[1], result->height, result->width,
                                 measures, &result->runs);
    if (code == DONE) {
        int64_t runs = 0;
        for (int j = 0; j < used_count; j++) first_runs[j] = runs, runs += measures[j].runs;
        int kept = 0;
        for (int i = 0; i < count; i++)
            for (int j = 0; j < used_count; j++)
                if (used[j] == candidates[i].query) {
                    const double inside = (double)measures[j].inside / (double)UNIT;
                    candidates[i].query = j; /* from here on, its place in `used` */
                    candidates[i].final =
                        candidates[i].score * (inside / ((double)measures[j].area + 1e-6));
                    break;
                }
        for (int i = 0; i < count; i++)
            if (candidates[i].final >= threshold) candidates[kept++] = candidates[i];
        sort_candidates(candidates, kept);
        for (int i = 0; i < kept; i++) {
            const Measure *measure = &measures[candidates[i].query];
            result->segments[i] = (Segment){
                .score = candidates[i].final,
                .class_id = candidates[i].class_id,
                .area = (uint32_t)measure->area,
                .first_run = first_runs[candidates[i].query],
                .runs = (uint32_t)measure->runs,
            };
            if (measure->area)
                memcpy(result->segments[i].box, measure->box, sizeof measure->box);
        }
        result->count = kept;
    }
    free_resize(&resize);
    free(scores);
    return code;
}
