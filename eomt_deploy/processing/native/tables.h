/* Resize tables: source positions and weights of each resized pixel. tables.py computes the same
   values in Python. */
#pragma once

#include "pixels.h"

/* Number of weights per pixel in the table of an image, see fill_image_table. */
int64_t image_taps(int source, int target);

/* Pillow's bilinear filter along one side, antialiased when shrinking.
   Out: bounds [target, 2], first source pixel and number of source pixels; weights [target, taps],
   in units of 2^-22. */
void fill_image_table(int source, int target, int32_t *bounds, int32_t *weights);

/* Bilinear taps along one side: half-pixel centres, no antialiasing. Out: taps [target]. */
void fill_taps(int source, int target, Tap *taps);

/* Combine two successive resizes along one side: first, from `source` values to at least as many,
   and second [target]. Out: spans [target]. */
void fill_spans(const Tap *first, const Tap *second, int source, int target, Span *spans);
