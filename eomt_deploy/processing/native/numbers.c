/* Decimal numbers from 0 to 1, rounded correctly and independent of the locale, unlike strtod. */
#include <math.h>

#include "json.h"

/* Numbers with more digits are cut off. 64 limbs have room for 10^(MAX_DIGITS + MAX_EXPONENT). */
enum { MAX_DIGITS = 100, MAX_EXPONENT = 400, LIMBS = 64 };

typedef struct {
    uint32_t limbs[LIMBS]; /* the lowest first */
} Big;

static void multiply_add(Big *number, uint32_t factor, uint32_t added) {
    uint64_t carry = added;
    for (int i = 0; i < LIMBS; i++) {
        carry += (uint64_t)number->limbs[i] * factor;
        number->limbs[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static int compare(const Big *a, const Big *b) {
    for (int i = LIMBS - 1; i >= 0; i--)
        if (a->limbs[i] != b->limbs[i]) return a->limbs[i] < b->limbs[i] ? -1 : 1;
    return 0;
}

static void subtract(Big *a, const Big *b) {
    int64_t borrow = 0;
    for (int i = 0; i < LIMBS; i++) {
        borrow += (int64_t)a->limbs[i] - b->limbs[i];
        a->limbs[i] = (uint32_t)borrow;
        borrow >>= 32;
    }
}

/* numerator / denominator, which is below 1 and above 0, rounded to the nearest double. */
static double divide(Big numerator, const Big *denominator) {
    int exponent = 0;
    while (compare(&numerator, denominator) < 0) multiply_add(&numerator, 2, 0), exponent--;
    int64_t quotient = 0;
    for (int bit = 0; bit < 54; bit++) { /* 53 bits, and one to round */
        const int one = compare(&numerator, denominator) >= 0;
        if (one) subtract(&numerator, denominator);
        quotient = quotient * 2 + one;
        multiply_add(&numerator, 2, 0);
    }
    static const Big zero;
    const int exact = compare(&numerator, &zero) == 0;
    int64_t rounded = quotient >> 1;
    if ((quotient & 1) && (!exact || (rounded & 1))) rounded++;
    return ldexp((double)rounded, exponent - 52);
}

int read_share(const char *value, double *number) {
    const char *at = value;
    const int negative = *at == '-';
    at += negative;
    if (*at < '0' || *at > '9') return 0;
    Big numerator = {{0}}, denominator = {{1}};
    int64_t scale = 0; /* the value is numerator * 10^scale */
    int digits = 0, zero = 1;
    for (int fraction = 0; (*at >= '0' && *at <= '9') || *at == '.'; at++) {
        if (*at == '.') {
            fraction = 1;
            continue;
        }
        zero &= *at == '0';
        if (digits < MAX_DIGITS) {
            multiply_add(&numerator, 10, (uint32_t)(*at - '0'));
            digits += !zero;
            scale -= fraction;
        } else {
            scale += !fraction;
        }
    }
    if (*at == 'e' || *at == 'E') {
        int64_t exponent = 0;
        const int minus = at[1] == '-';
        for (at += 1 + (at[1] == '-' || at[1] == '+'); *at >= '0' && *at <= '9'; at++)
            if (exponent < 1000000000) exponent = exponent * 10 + (*at - '0');
        scale += minus ? -exponent : exponent;
    }
    *number = 0;
    if (zero) return 1;
    if (negative || scale > 0) return 0; /* it has a digit that is not 0: at least 10 */
    if (scale < -MAX_EXPONENT) return 1; /* below the smallest double */
    for (; scale < 0; scale++) multiply_add(&denominator, 10, 0);
    const int order = compare(&numerator, &denominator);
    if (order > 0) return 0;
    *number = order == 0 ? 1 : divide(numerator, &denominator);
    return 1;
}
