/* Are a network's outputs finite? */
#include <float.h>

#include "pixels.h"

enum { BLOCK = 1 << 14 };

/* Changes with the arguments of any kernel; pixels.py must have the same number. */
API int kernel_version(void) { return 2; }

/* 1 where any of the values [count] is infinite or not a number, else 0. */
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
