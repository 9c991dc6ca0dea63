/* Resize tables. The order of the floating-point operations is that of tables.py, so that the
   values are equal to the bit. */
#include "tables.h"

int64_t image_taps(int source, int target) {
    const double scale = (double)source / target;
    return (int64_t)ceil(scale > 1 ? scale : 1) * 2 + 1;
}

void fill_image_table(int source, int target, int32_t *bounds, int32_t *weights) {
    const double scale = (double)source / target, support = scale > 1 ? scale : 1;
    const double inverse = 1.0 / support;
    const int64_t taps = image_taps(source, target);
    for (int i = 0; i < target; i++) {
        const double center = (i + 0.5) * scale;
        int64_t first = (int64_t)(center - support + 0.5);
        int64_t end = (int64_t)(center + support + 0.5);
        first = first > 0 ? first : 0;
        end = end < source ? end : source;
        double total = 0;
        int32_t *own = weights + i * taps;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t tap = 0; tap < taps; tap++) {
                const double distance = fabs((double)(tap + first) - center + 0.5) * inverse;
                const double weight = tap < end - first && distance < 1 ? 1 - distance : 0;
                if (pass == 0)
                    total += weight;
                else
                    own[tap] = (int32_t)(0.5 + weight / total * (1 << 22));
            }
        bounds[2 * i] = (int32_t)first, bounds[2 * i + 1] = (int32_t)(end - first);
    }
}

void fill_taps(int source, int target, Tap *taps) {
    const double scale = (double)source / target;
    for (int i = 0; i < target; i++) {
        const double position = (i + 0.5) * scale - 0.5;
        const int low = larger(0, smaller((int)floor(position), source - 1));
        double weight = position - low;
        weight = weight < 0 ? 0 : weight > 1 ? 1 : weight;
        taps[i].low = low;
        taps[i].high = smaller(low + 1, source - 1);
        taps[i].weight = low == source - 1 ? 0 : (float)weight;
        taps[i].rest = 1.0f - taps[i].weight;
    }
}

void fill_spans(const Tap *first, const Tap *second, int source, int target, Span *spans) {
    for (int i = 0; i < target; i++) {
        double weights[3] = {0};
        const int start = smaller(first[second[i].low].low, source - 3);
        for (int side = 0; side < 2; side++) {
            const Tap between = first[side ? second[i].high : second[i].low];
            const double outer = side ? second[i].weight : second[i].rest;
            const double low = outer * between.rest, high = outer * between.weight;
            /* Positions of weights that are 0 can be too far: the last pixel is its own neighbour. */
            if (low != 0) weights[between.low - start] += low;
            if (high != 0) weights[between.high - start] += high;
        }
        spans[i].first = start;
        for (int tap = 0; tap < 3; tap++) spans[i].weights[tap] = (float)weights[tap];
    }
}
