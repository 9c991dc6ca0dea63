/* Segmentation of one image: one function per task, and what they share. They return the code of a
   kernel, and fill in a result that has its task and size. */
#pragma once

#include "kernels.h"
#include "library.h"

/* The tables that resize a mask to the image: down [height], across [width]. */
typedef struct {
    Span *sides[2];
    float *masks; /* the mask logits, enlarged to at least 3 x 3, or NULL if they are large enough */
    int height, width;
} Resize;

/* Make the tables. Masks [Q, h, w] that are too small are replaced by enlarged ones. The resize must
   be freed even after an error. */
int make_resize(const eomt_model *model, const eomt_geometry *geometry, const float **masks,
                Resize *resize);
void free_resize(Resize *resize);

/* Make labels [height, width] for values below `count`, in the smallest type. */
int make_labels(eomt_result *result, int count);

int segment_semantic(const eomt_model *model, const eomt_geometry *geometry, const float *logits,
                     const float *masks, eomt_result *result);
int segment_panoptic(const eomt_model *model, const eomt_geometry *geometry, const float *logits,
                     const float *masks, const double *thresholds, eomt_result *result);
int segment_instances(const eomt_model *model, const eomt_geometry *geometry, const float *logits,
                      const float *masks, double threshold, eomt_result *result);
