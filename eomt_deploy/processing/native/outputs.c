/* Check that the outputs of a network are finite. */
#include <float.h>

#include "kernels.h"

enum { BLOCK = 1 << 14 };

/* Increase it when the arguments of a kernel change; VERSION in compiled.py must be equal. */
API int kernel_version(void) { return 3; }

/* Return 1 if any of the values [count] is infinite or NaN, else 0. */
API int any_not_finite(const float *values, int64_t count) {
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int length = count - start < BLOCK ? (int)(count - start) : BLOCK;
        const float *block = values + start;
        int32_t wrong = 0;
        for (int i = 0; i < length; i++) wrong |= -!(fabsf(block[i]) <= FLT_MAX);
        if (wrong) return 1;
    }
    return 0;
}
