/* Arithmetic that the CPU and the GPU share, so that their results are equal to the bit. C, C++ and
   CUDA compile this file. The includer defines INLINE, and FUSED(a, b, c): a * b + c, rounded once.
   Compilers must not fuse other operations (-ffp-contract=off, --fmad=false). */

/* One side of two successive resizes, combined: SPAN in tables.py. */
typedef struct {
    int first;
    float weights[3];
} Span;

/* Three neighbouring values, interpolated. */
INLINE float weighted(const float *weights, float a, float b, float c) {
    return FUSED(weights[2], c, FUSED(weights[1], b, weights[0] * a));
}

/* A power of 2 and the rest of exp(x), whose product is within 2 ulp of it, for x in [-87, 88]; x
   outside is clamped. There are no branches, so that compilers vectorize loops over it.
   exp(x) = 2^n * exp(r), |r| <= ln(2)/2, with the Taylor series of degree 7 for exp(r). NaN gives
   exp(88). */
typedef struct {
    float power, rest;
} Factors;

INLINE Factors exponential_factors(float x) {
    float y = x;
    y = y < 88.0f ? y : 88.0f;
    y = y > -87.0f ? y : -87.0f;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const float shifted = FUSED(y, 1.44269504088896341f, magic);
    const float n = shifted - magic;
    const float r = FUSED(n, 2.12194440e-4f, FUSED(n, -0.693359375f, y));
    float p = 1.98412698e-4f;
    p = FUSED(p, r, 1.38888889e-3f);
    p = FUSED(p, r, 8.33333333e-3f);
    p = FUSED(p, r, 4.16666667e-2f);
    p = FUSED(p, r, 1.66666667e-1f);
    p = FUSED(p, r, 0.5f);
    p = FUSED(p, r, 1.0f);
    p = FUSED(p, r, 1.0f);
    union {
        unsigned bits;
        float value;
    } power;
    power.bits = ((unsigned)(int)n + 127u) << 23;
    const Factors factors = {power.value, p};
    return factors;
}

INLINE float exponential(float x) {
    const Factors factors = exponential_factors(x);
    return factors.rest * factors.power;
}

/* Sigmoid within 2 ulp. NaN gives almost 0. */
INLINE float sigmoid(float x) {
    const Factors factors = exponential_factors(-x);
    return 1.0f / FUSED(factors.rest, factors.power, 1.0f);
}

/* Probabilities above 0.5 are multiples of this unit. So integer sums of them are exact, and do not
   depend on the order. */
#define UNIT 16777216.0f

/* sigmoid(x) is 1 for a logit that is at least as high. */
#define CERTAIN 17.0f

/* Slack for the range of interpolated values, because rounding can move them out of the range of
   their source values. */
INLINE float slack(float low, float high) {
    const float below = low < 0 ? -low : low, above = high < 0 ? -high : high;
    return 1e-6f * (below > above ? below : above);
}
