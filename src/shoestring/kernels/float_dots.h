// Products of a few float32 rows with weights of float32, float16 or bfloat16 that lie as torch has them, [columns,
// depth]: four columns at a time, each read once from its beginning to its end. A row's sums do not depend on how many
// rows there are.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "bfloat.h"
#include "matrix.h"

constexpr int EIGHT = 8;
typedef float Eight __attribute__((vector_size(4 * EIGHT)));
typedef uint16_t EightShorts __attribute__((vector_size(2 * EIGHT)));
typedef uint32_t EightWords __attribute__((vector_size(4 * EIGHT)));

// a · b + c, rounded once wherever the processor can. Left to itself a compiler may fuse the two in one loop and not in
// another (GCC avoids chains of them on some processors), and a row's last bits would depend on how many are beside it.
static inline Eight fused(const Eight& a, const Eight& b, const Eight& c) {
#if defined(__FMA__)
    return (Eight)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
static inline float fused(float a, float b, float c) {
#if defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// Eight weights, or one, beginning with number k of a column.
template <int FORMAT>
static inline Eight eight_at(const uint8_t* column, int64_t k) {
    Eight found;
    if constexpr (FORMAT == FLOATS) {
        memcpy(&found, column + 4 * k, sizeof found);
    } else if constexpr (FORMAT == BFLOATS) {
        EightShorts upper;
        memcpy(&upper, column + 2 * k, sizeof upper);
        const EightWords bits = __builtin_convertvector(upper, EightWords) << 16;
        memcpy(&found, &bits, sizeof found);
    } else {
#if defined(__F16C__)
        found = (Eight)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(column + 2 * k)));
#else
        for (int i = 0; i < EIGHT; ++i) found[i] = half_at(column + 2 * (k + i));
#endif
    }
    return found;
}

template <int FORMAT>
static inline float one_at(const uint8_t* column, int64_t k) {
    if constexpr (FORMAT == FLOATS) {
        float found;
        memcpy(&found, column + 4 * k, 4);
        return found;
    } else if constexpr (FORMAT == BFLOATS) {
        Bfloat found;
        memcpy(&found, column + 2 * k, 2);
        return widened(found);
    } else {
        return half_at(column + 2 * k);
    }
}

// M rows by C columns -> y [M, C]. AHEAD: the columns after them are asked for, into the second cache: a processor follows
// a column by itself, and not to the next.
template <int FORMAT, int M, int C, bool AHEAD>
static inline void float_columns(const Matrix& of, int64_t column, const float* rows, float* y, int64_t y_stride) {
    const int64_t depth = of.depth, stride = depth * float_bytes(FORMAT);
    const uint8_t* weights = of.weights + column * stride;
    Eight sums[M][C];
    for (int m = 0; m < M; ++m)
        for (int c = 0; c < C; ++c) sums[m][c] = Eight{};
    int64_t k = 0;
    for (; k + EIGHT <= depth; k += EIGHT) {
        Eight x[M];
#pragma GCC unroll 2
        for (int m = 0; m < M; ++m) memcpy(&x[m], rows + m * depth + k, sizeof x[m]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            if (AHEAD && k * float_bytes(FORMAT) % 64 == 0)
                __builtin_prefetch(weights + (C + c) * stride + k * float_bytes(FORMAT), 0, 2);
            const Eight w = eight_at<FORMAT>(weights + c * stride, k);
#pragma GCC unroll 2
            for (int m = 0; m < M; ++m) sums[m][c] = fused(x[m], w, sums[m][c]);
        }
    }
    float results[M][C];
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            float lanes[EIGHT];
            memcpy(lanes, &sums[m][c], sizeof lanes);
            const float even = (lanes[0] + lanes[4]) + (lanes[2] + lanes[6]);
            results[m][c] = even + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
        }
    for (int m = 0; m < M; ++m)
        for (int c = 0; c < C; ++c) {
            float sum = results[m][c];
            for (int64_t rest = k; rest < depth; ++rest)
                sum = fused(rows[m * depth + rest], one_at<FORMAT>(weights + c * stride, rest), sum);
            y[m * y_stride + c] = of.bias == nullptr ? sum : sum + of.bias[column + c];
        }
}

template <int FORMAT, int M, bool AHEAD>
static inline void float_rows(const Matrix& of, int64_t first, int64_t last, const float* rows, float* y,
                              int64_t y_stride) {
    int64_t column = first;
    for (; column + 4 <= last; column += 4) float_columns<FORMAT, M, 4, AHEAD>(of, column, rows, y + column, y_stride);
    for (; column < last; ++column) float_columns<FORMAT, M, 1, AHEAD>(of, column, rows, y + column, y_stride);
}

// Some rows by the columns of a tile, which stay in a cache while the rows pass by.
template <int FORMAT>
static void float_tile(const Matrix& of, int64_t tile, const float* rows, int64_t count, float* y, int64_t y_stride) {
    const int64_t first = tile * COLUMNS, last = first + COLUMNS < of.columns ? first + COLUMNS : of.columns;
    int64_t row = 0;
    const auto times = [&](auto m) {
        const float* some = rows + row * of.depth;
        if (row == 0)
            float_rows<FORMAT, m, true>(of, first, last, some, y, y_stride);
        else
            float_rows<FORMAT, m, false>(of, first, last, some, y + row * y_stride, y_stride);
    };
    for (; row + 2 <= count; row += 2) times(std::integral_constant<int, 2>());
    if (row < count) times(std::integral_constant<int, 1>());
}
