// The turn of rotary positions in one pass over memory: float32 or bfloat16, computed in float32. Token by token, so that
// a row of the tables serves all heads, and both halves of a head in one loop, which the compiler turns into vectors.

#include <cstdint>

#include "bfloat.h"

static const int64_t ALONE = 1 << 14;  // pairs of numbers that one thread turns while others would be woken

template <typename T>
static inline void turn_row(
    const T* __restrict x, const float* __restrict cosine, const float* __restrict sine, float direction,
    T* __restrict out, int64_t half) {
#pragma omp simd
    for (int64_t j = 0; j < half; ++j) {
        const float a = widened(x[j]), b = widened(x[half + j]), c = cosine[j], s = direction * sine[j];
        narrowed(a * c - b * s, &out[j]);
        narrowed(b * c + a * s, &out[half + j]);
    }
}

template <typename T>
static void turn_rows(
    const void* xs, const int64_t* x_strides, const float* cosines, const float* sines, int64_t table, float direction,
    void* outs, const int64_t* out_strides, const int64_t* sizes, int threads) {
    const int64_t heads = sizes[1], tokens = sizes[2], half = sizes[3] / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (sizes[0] * tokens * heads * half > ALONE)
    for (int64_t i = 0; i < sizes[0] * tokens; ++i) {
        const int64_t row = i / tokens, token = i % tokens, angles = row * table + token * half;
        const T* x = (const T*)xs + row * x_strides[0] + token * x_strides[2];
        T* out = (T*)outs + row * out_strides[0] + token * out_strides[2];
        for (int64_t h = 0; h < heads; ++h)
            turn_row(
                x + h * x_strides[1], cosines + angles, sines + angles, direction, out + h * out_strides[1], half);
    }
}

// x and out: [B, H, T, C] of these strides, the last one 1; tables: [B, T, C/2], `table` numbers from row to row (0 when
// all rows share one).
extern "C" void turn(
    const void* x, const int64_t* x_strides, const float* cosine, const float* sine, int64_t table, float direction,
    void* out, const int64_t* out_strides, const int64_t* sizes, int bfloat, int threads) {
    (bfloat ? turn_rows<Bfloat> : turn_rows<float>)(
        x, x_strides, cosine, sine, table, direction, out, out_strides, sizes, threads);
}
