// One step of AdamW with both moments in 8 bits (arXiv 2110.02861): blocks of 256 numbers, each with a scale, as codes
// of a table of 256 levels. A block is decoded, moved and encoded while it lies in cache, so the step reads and writes
// memory once. `first` gives for the leading bits of a number a level at or below it, from which few steps are left.

#include <cmath>
#include <cstdint>
#include <cstring>

static const int BLOCK = 256, SHIFT = 15, LOWEST = 103 << 8, HIGHEST = 127 << 8;  // 2^-24 to 1, 8 bits of fraction

struct Moment {
    uint8_t* codes;
    float* scale;
    const float* levels;
    const uint8_t* first;  // of positive numbers, then of negative ones

    void decode(int64_t block, float* out) const {
        const uint8_t* from = codes + block * BLOCK;
        for (int i = 0; i < BLOCK; ++i) out[i] = levels[from[i]] * scale[block];
    }

    int code(float x) const {
        int32_t bits;
        memcpy(&bits, &x, 4);
        int at = (bits & 0x7fffffff) >> SHIFT;
        at = (at < LOWEST ? LOWEST : at > HIGHEST ? HIGHEST : at) - LOWEST;
        int found = first[bits < 0 ? at + HIGHEST - LOWEST + 1 : at];
        while (found < 255 && x >= levels[found + 1]) ++found;
        return found < 255 && x - levels[found] >= (levels[found + 1] - levels[found]) * 0.5f ? found + 1 : found;
    }

    void encode(int64_t block, const float* x) {
        float most = 1e-12f;
        for (int i = 0; i < BLOCK; ++i) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        scale[block] = most;
        float shares[BLOCK];
        for (int i = 0; i < BLOCK; ++i) shares[i] = x[i] / most;
        uint8_t* to = codes + block * BLOCK;
        for (int i = 0; i < BLOCK; ++i) to[i] = (uint8_t)code(shares[i]);
    }
};

static inline float between(float from, float to, float share) {  // as torch's lerp
    return share < 0.5f ? from + share * (to - from) : to - (to - from) * (1.0f - share);
}

extern "C" void adamw8bit(
    float* weight, const float* gradient, uint8_t* mean_codes, float* mean_scale, uint8_t* square_codes,
    float* square_scale, const float* mean_levels, const uint8_t* mean_first, const float* square_levels,
    const uint8_t* square_first, int64_t blocks, float rate, float decay, float share_mean, float share_square,
    float mean_correction, float square_correction, float epsilon, int threads) {
    Moment mean{mean_codes, mean_scale, mean_levels, mean_first};
    Moment square{square_codes, square_scale, square_levels, square_first};
    float root = sqrtf(square_correction);
#pragma omp parallel for num_threads(threads) schedule(static) firstprivate(mean, square)
    for (int64_t block = 0; block < blocks; ++block) {
        float m[BLOCK], v[BLOCK];
        mean.decode(block, m);
        square.decode(block, v);
        float* w = weight + block * BLOCK;
        const float* g = gradient + block * BLOCK;
        for (int i = 0; i < BLOCK; ++i) {
            m[i] = between(m[i], g[i], share_mean);
            v[i] = between(v[i], g[i] * g[i], share_square);
            float decayed = w[i] - rate * decay * w[i];
            w[i] = decayed - rate * (m[i] / mean_correction) / (sqrtf(v[i]) / root + epsilon);
        }
        mean.encode(block, m);
        square.encode(block, v);
    }
}
