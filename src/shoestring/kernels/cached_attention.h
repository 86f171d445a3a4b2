// Softmax attention of some queries of one text over what the cache holds of it, in float32 or in int8 with a scale for
// each place. Scores are made for up to three queries and four keys at a time, sums of values for up to four queries and
// 16 columns. What a query gets does not depend, to the last bit, on which others are beside it: every score and every
// sum is made in one order.
#pragma once

#include <algorithm>
#include <cmath>

#include "exponential.h"
#include "float_dots.h"

// Query r is of token r / heads and head r % heads; its token stands at place first_place + r / heads.
struct Queries {
    const float* first;
    int64_t tokens, heads, token_stride, width, first_place;

    int64_t rows() const { return tokens * heads; }
    int64_t offset(int64_t r, int64_t stride) const { return r / heads * stride + r % heads * width; }
    int64_t length(int64_t r) const { return first_place + r / heads + 1; }
};

// Keys or values of one head, [places, width]; scales: of each place, where they are codes.
template <typename Number>
struct Cached {
    const Number* numbers;
    const float* scales;
};

static inline Eight eight_of(const float* from) {
    Eight found;
    memcpy(&found, from, sizeof found);
    return found;
}
static inline Eight eight_of(const int8_t* from) {
    typedef int8_t Codes __attribute__((vector_size(EIGHT)));
    typedef int32_t Ints __attribute__((vector_size(4 * EIGHT)));
    Codes codes;
    memcpy(&codes, from, sizeof codes);
    return __builtin_convertvector(__builtin_convertvector(codes, Ints), Eight);
}

// The sums of four vectors' lanes: 0 + 1 and 2 + 3, then these, then both halves.
static inline void sum_four(const Eight& a, const Eight& b, const Eight& c, const Eight& d, float* to) {
    const Eight ab = __builtin_shuffle(a, b, EightWords{0, 8, 2, 10, 4, 12, 6, 14}) +
                     __builtin_shuffle(a, b, EightWords{1, 9, 3, 11, 5, 13, 7, 15});
    const Eight cd = __builtin_shuffle(c, d, EightWords{0, 8, 2, 10, 4, 12, 6, 14}) +
                     __builtin_shuffle(c, d, EightWords{1, 9, 3, 11, 5, 13, 7, 15});
    const Eight all = __builtin_shuffle(ab, cd, EightWords{0, 1, 8, 9, 4, 5, 12, 13}) +
                      __builtin_shuffle(ab, cd, EightWords{2, 3, 10, 11, 6, 7, 14, 15});
    float lanes[EIGHT];
    memcpy(lanes, &all, sizeof lanes);
    for (int i = 0; i < 4; ++i) to[i] = lanes[i] + lanes[i + 4];
}

static inline float sum_one(const Eight& a) {
    float lanes[EIGHT];
    memcpy(lanes, &a, sizeof lanes);
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// scale · M queries · K keys -> scores[m][0 … K). K: 4 or 1.
template <int M, int K, typename Number>
static inline void score(const float* const* queries, Cached<Number> keys, int64_t width, float scale,
                         float* const* scores) {
    Eight sums[M][K];
    for (int m = 0; m < M; ++m)
        for (int k = 0; k < K; ++k) sums[m][k] = Eight{};
    int64_t c = 0;
    for (; c + EIGHT <= width; c += EIGHT) {
        Eight query[M];
#pragma GCC unroll 3
        for (int m = 0; m < M; ++m) memcpy(&query[m], queries[m] + c, sizeof query[m]);
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
            const Eight key = eight_of(keys.numbers + k * width + c);
#pragma GCC unroll 3
            for (int m = 0; m < M; ++m) sums[m][k] = fused(query[m], key, sums[m][k]);
        }
    }
#pragma GCC unroll 3
    for (int m = 0; m < M; ++m) {
        float found[K];
        if constexpr (K == 4)
            sum_four(sums[m][0], sums[m][1], sums[m][2], sums[m][3], found);
        else
            found[0] = sum_one(sums[m][0]);
        for (int k = 0; k < K; ++k) {
            for (int64_t rest = c; rest < width; ++rest)
                found[k] = fused(queries[m][rest], (float)keys.numbers[k * width + rest], found[k]);
            scores[m][k] = found[k] * (keys.scales == nullptr ? scale : scale * keys.scales[k]);
        }
    }
}

// In place: exp(x − max) / Σ.
static inline void softmax(float* row, int64_t length) {
    float highest = row[0];
    for (int64_t s = 1; s < length; ++s) highest = row[s] > highest ? row[s] : highest;
    for (int64_t s = 0; s < length; ++s) row[s] = exponential(row[s] - highest);
    Eight sums = Eight{};
    int64_t s = 0;
    for (; s + EIGHT <= length; s += EIGHT) {
        Eight some;
        memcpy(&some, row + s, sizeof some);
        sums += some;
    }
    float sum = sum_one(sums);
    for (; s < length; ++s) sum += row[s];
    const float inverse = 1.0f / sum;
    for (s = 0; s < length; ++s) row[s] *= inverse;
}

// Σ_s weights[m][s] · values[s] -> out[m], for V · 8 columns.
template <int M, int V, typename Number>
static inline void weigh(const float* const* weights, const Number* values, int64_t length, int64_t width,
                         float* const* out) {
    Eight sums[M][V];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) sums[m][v] = Eight{};
    for (int64_t s = 0; s < length; ++s, values += width) {
        Eight value[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) value[v] = eight_of(values + v * EIGHT);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const Eight weight = weights[m][s] - Eight{};
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sums[m][v] = fused(weight, value[v], sums[m][v]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) memcpy(out[m] + v * EIGHT, &sums[m][v], sizeof sums[m][v]);
}

template <int M, typename Number>
static inline void weigh_rows(const float* const* weights, const Number* values, int64_t length, int64_t width,
                              float* const* out) {
    float* to[M];
    int64_t c = 0;
    for (; c + 2 * EIGHT <= width; c += 2 * EIGHT) {
        for (int m = 0; m < M; ++m) to[m] = out[m] + c;
        weigh<M, 2>(weights, values + c, length, width, to);
    }
    for (; c + EIGHT <= width; c += EIGHT) {
        for (int m = 0; m < M; ++m) to[m] = out[m] + c;
        weigh<M, 1>(weights, values + c, length, width, to);
    }
    for (; c < width; ++c)
        for (int m = 0; m < M; ++m) {
            float sum = 0.0f;
            for (int64_t s = 0; s < length; ++s) sum = fused(weights[m][s], (float)values[s * width + c], sum);
            out[m][c] = sum;
        }
}

// scores: room for rows · longest numbers, longest being the length of the last query; out: as queries, with a stride
// of its own between tokens.
template <typename Number>
static void attend(const Queries& queries, Cached<Number> keys, Cached<Number> values, float* scores, float* out,
                   int64_t out_stride) {
    const int64_t rows = queries.rows(), width = queries.width, longest = queries.length(rows - 1);
    const float scale = 1.0f / std::sqrt((float)width);
    const auto query = [&](int64_t r) { return queries.first + queries.offset(r, queries.token_stride); };
    for (int64_t s = 0, count; s < longest; s += count) {
        count = s + 4 <= longest ? 4 : 1;
        const Cached<Number> at{keys.numbers + s * width, keys.scales == nullptr ? nullptr : keys.scales + s};
        for (int64_t r = 0, some; r < rows; r += some) {
            some = rows - r == 4 ? 2 : std::min(rows - r, (int64_t)3);  // four are two and two
            const float* from[3];
            float* to[3];
            for (int64_t m = 0; m < some; ++m) {
                from[m] = query(r + m);
                to[m] = scores + (r + m) * longest + s;
            }
            if (some == 3)
                count == 4 ? score<3, 4>(from, at, width, scale, to) : score<3, 1>(from, at, width, scale, to);
            else if (some == 2)
                count == 4 ? score<2, 4>(from, at, width, scale, to) : score<2, 1>(from, at, width, scale, to);
            else
                count == 4 ? score<1, 4>(from, at, width, scale, to) : score<1, 1>(from, at, width, scale, to);
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t length = queries.length(r);
        float* row = scores + r * longest;
        softmax(row, length);
        for (int64_t s = 0; values.scales != nullptr && s < length; ++s) row[s] *= values.scales[s];
        for (int64_t s = length; s < longest; ++s) row[s] = 0.0f;  // what comes later is not seen
    }
    for (int64_t r = 0, some; r < rows; r += some) {
        some = std::min(rows - r, (int64_t)4);
        const float* weights[4];
        float* to[4];
        for (int64_t m = 0; m < some; ++m) {
            weights[m] = scores + (r + m) * longest;
            to[m] = out + queries.offset(r + m, out_stride);
        }
        if (some == 4)
            weigh_rows<4>(weights, values.numbers, longest, width, to);
        else if (some == 3)
            weigh_rows<3>(weights, values.numbers, longest, width, to);
        else if (some == 2)
            weigh_rows<2>(weights, values.numbers, longest, width, to);
        else
            weigh_rows<1>(weights, values.numbers, longest, width, to);
    }
}
