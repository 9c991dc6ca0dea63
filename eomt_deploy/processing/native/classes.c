/* Class probabilities. */
#include "kernels.h"

/* Number of partial sums. The order of additions is the same on a GPU. */
enum { SUMS = 32 };

/* Softmax of each row of logits [rows, columns]. Out: probabilities of the same shape. */
API int softmax(const float *logits, int64_t rows, int columns, float *probabilities) {
    if (!logits || !probabilities || rows < 0 || !within(columns, 1, MAX_NUMBER + 1))
        return WRONG_ARGUMENTS;
    for (int64_t row = 0; row < rows; row++) {
        const float *in = logits + row * columns;
        float *restrict out = probabilities + row * columns;
        float highest = in[0], sums[SUMS] = {0};
        for (int i = 1; i < columns; i++) highest = in[i] > highest ? in[i] : highest;
        for (int i = 0; i < columns; i++) out[i] = exponential(in[i] - highest);
        int i = 0;
        for (; i + SUMS <= columns; i += SUMS)
            for (int lane = 0; lane < SUMS; lane++) sums[lane] += out[i + lane];
        for (; i < columns; i++) sums[i % SUMS] += out[i];
        for (int step = SUMS / 2; step; step /= 2)
            for (int lane = 0; lane < step; lane++) sums[lane] += sums[lane + step];
        for (i = 0; i < columns; i++) out[i] /= sums[0];
    }
    return DONE;
}
