/* Shared by the functions of eomt.h. */
#pragma once

#define EOMT_BUILD
#include "eomt.h"
#include "pixels.h"

/* Maximum number of windows of an image, as in geometry.py. */
enum { MAX_ASPECT = 64, MAX_IMAGE_SIDE = 1 << 30 };

typedef struct {
    const char *name;
    uint8_t thing, color[3];
} Class;

struct eomt_model {
    char *texts; /* memory of all names */
    const char *name, *precision;
    Class *classes;
    double thresholds[3];
    int32_t task, resize, height, width, mask_height, mask_width, queries, class_count, batch;
};

/* Sizes are height, width. */
struct eomt_geometry {
    int32_t image[2], scaled[2], input[2];
    int32_t windows; /* 0 for a letterbox */
    int32_t axis;
    int32_t starts[MAX_ASPECT];
};

typedef struct {
    double score;
    int64_t first_run;
    int32_t class_id, box[4];
    uint32_t area, runs;
} Segment;

struct eomt_result {
    int32_t task, height, width, label_bytes, count;
    void *labels;
    Segment *segments;
    uint32_t *runs;
};

/* Set the message of eomt_error_message, and return the code. The format knows %s and %d (int). */
int fail(int code, const char *format, ...);

/* The error of a kernel. */
int kernel_error(int code);

static inline int inputs_of(const eomt_geometry *geometry) {
    return geometry->windows ? geometry->windows : 1;
}
