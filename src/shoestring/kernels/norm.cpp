// Root-mean-square norm of rows and its gradients, each in one pass over memory: a row stays in the cache between the sum
// of its squares and what is written. Plain loops of float32 that the compiler turns into vectors.

#include <algorithm>
#include <cmath>
#include <cstdint>

static const int64_t LANES = 32;  // sums side by side, so that additions need not wait for one another

template <typename Term>
static inline float sum_of(int64_t count, Term term) {
    float lanes[LANES] = {}, sum = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int64_t j = 0; j < LANES; ++j) lanes[j] += term(i + j);
    for (; i < count; ++i) sum += term(i);
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    return sum + lanes[0];
}

// y = x · scale · weight, scale = 1 / sqrt(mean(x²) + epsilon) of each row.
extern "C" void rms_norm(
    const float* x, const float* weight, float epsilon, float* y, float* scale, int64_t rows, int64_t width,
    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float* in = x + row * width;
        float* out = y + row * width;
        float squares = sum_of(width, [=](int64_t i) { return in[i] * in[i]; });
        float factor = 1.0f / std::sqrt(squares / (float)width + epsilon);
        for (int64_t i = 0; i < width; ++i) out[i] = in[i] * factor * weight[i];
        scale[row] = factor;
    }
}

// With n = x · scale and h = gradient · weight: x_gradient = (h − n · mean(h · n)) · scale, and weight_gradient the sum of
// gradient · n over all rows, if it is asked for: [parts, width] sums of as many parts of the rows, whatever the threads.
extern "C" void rms_norm_backward(
    const float* gradient, const float* x, const float* weight, const float* scale, float* x_gradient,
    float* weight_gradient, int64_t parts, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
        float* sums = weight_gradient == nullptr ? nullptr : weight_gradient + part * width;
        if (sums != nullptr) std::fill(sums, sums + width, 0.0f);
        for (int64_t row = part * rows / parts; row < (part + 1) * rows / parts; ++row) {
            const float *in = x + row * width, *g = gradient + row * width;
            float* out = x_gradient + row * width;
            const float factor = scale[row];
            float along = sum_of(width, [=](int64_t i) { return g[i] * weight[i] * in[i]; });
            const float lessen = along * factor * factor / (float)width;
            for (int64_t i = 0; i < width; ++i) out[i] = (g[i] * weight[i] - in[i] * lessen) * factor;
            if (sums != nullptr)
                for (int64_t i = 0; i < width; ++i) sums[i] += g[i] * in[i] * factor;
        }
    }
}
