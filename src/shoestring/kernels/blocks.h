// Products of rows with matrices as decoding keeps them (matrix.h), and what both need: rows rounded to int8 by blocks,
// and columns of a matrix as floats. With blocks a product is
//
//     y = Σ_blocks  d · scale · (Σ (code − 8, or code) · row's code)  +  m · scale · (Σ row's codes)
//
// the sums in brackets being of integers, and exact.
#pragma once

#include <cmath>

#include "block_dots.h"
#include "float_dots.h"

// What a block's codes are above the integers that they stand for.
constexpr int above(int format) {
    return is_nibbles(format) ? (has_offset(format) ? 0 : 8) : BYTES_ABOVE;
}

// Bytes ahead of a block that are asked for, into the second cache: one stream of memory is slow to come by itself, and
// the first cache has no room for what is not needed yet.
constexpr int64_t ahead(int format) {
    return is_nibbles(format) ? 4096 : 2048;
}

// M rows from `row` on by the 16 columns of a tile -> y [M, 16].
template <int FORMAT, int M>
static inline void tile_rows(const Matrix& of, int64_t tile, const Rows& x, int64_t row, float* y, int64_t y_stride) {
    const int64_t depth = of.depth, blocks = depth / BLOCK;
    const uint8_t* block = of.weights + tile * blocks * block_bytes(FORMAT);
    const int8_t* codes = x.codes + row * depth;
    const float *scales = x.scales + row * blocks, *totals = x.totals + row * blocks;
    Values values[M];
    for (int m = 0; m < M; ++m) values[m] = nothing();
    for (int64_t b = 0; b < blocks; ++b, block += block_bytes(FORMAT), codes += BLOCK) {
        for (int64_t line = 0; line < block_bytes(FORMAT); line += 64)
            __builtin_prefetch(block + ahead(FORMAT) + line, 0, 2);
        Sums sums[M];
        if constexpr (is_nibbles(FORMAT))
            dots_nibbles(sums, block + head_bytes(FORMAT), codes, depth);
        else
            dots_bytes(sums, block + head_bytes(FORMAT), codes, depth);
        const Values d = halves(block);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
            add<above(FORMAT)>(values[m], sums[m], totals[m * blocks + b], scales[m * blocks + b], d);
        if constexpr (has_offset(FORMAT)) {
            const Values offset = halves(block + 2 * COLUMNS);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m)
                add_offset(values[m], totals[m * blocks + b], scales[m * blocks + b], offset);
        }
    }
    for (int m = 0; m < M; ++m) store(y + m * y_stride, values[m]);
}

// Some rows by a tile's columns, which stay in a cache while the rows pass by.
template <int FORMAT>
static void block_tile(const Matrix& of, int64_t tile, const Rows& x, int64_t rows, float* y, int64_t y_stride) {
    float edge[4 * COLUMNS];
    const int64_t column = tile * COLUMNS, left = of.columns - column, used = left < COLUMNS ? left : COLUMNS;
    const bool whole = used == COLUMNS;
    for (int64_t row = 0, some; row < rows; row += some) {
        float* out = y + row * y_stride + column;
        float* to = whole ? out : edge;
        const int64_t stride = whole ? y_stride : COLUMNS;
        some = rows - row >= 4 ? 4 : rows - row >= 2 ? 2 : 1;
        if (some == 4)
            tile_rows<FORMAT, 4>(of, tile, x, row, to, stride);
        else if (some == 2)
            tile_rows<FORMAT, 2>(of, tile, x, row, to, stride);
        else
            tile_rows<FORMAT, 1>(of, tile, x, row, to, stride);
        for (int64_t m = 0; m < some; ++m, out += y_stride) {
            if (!whole) memcpy(out, edge + m * COLUMNS, used * sizeof(float));
            if (of.bias != nullptr)
                for (int64_t n = 0; n < used; ++n) out[n] += of.bias[column + n];
        }
    }
}

// All rows by the columns of tiles first … last, into y [rows, y_stride] from the matrix's first column on.
static inline void multiply_tiles(const Matrix& of, int64_t first, int64_t last, const Rows& x, int64_t rows, float* y,
                                  int64_t y_stride) {
    for (int64_t tile = first; tile < last; ++tile) switch (of.format) {
            case NIBBLES: block_tile<NIBBLES>(of, tile, x, rows, y, y_stride); break;
            case NIBBLES_OFFSET: block_tile<NIBBLES_OFFSET>(of, tile, x, rows, y, y_stride); break;
            case BYTES: block_tile<BYTES>(of, tile, x, rows, y, y_stride); break;
            case BYTES_OFFSET: block_tile<BYTES_OFFSET>(of, tile, x, rows, y, y_stride); break;
            case FLOATS: float_tile<FLOATS>(of, tile, x.floats, rows, y, y_stride); break;
            case HALVES: float_tile<HALVES>(of, tile, x.floats, rows, y, y_stride); break;
            default: float_tile<BFLOATS>(of, tile, x.floats, rows, y, y_stride);
        }
}

// One row to int8 by blocks, to nearest: scale = max|block| / 127. A block with what is not finite becomes NaN as a
// whole, so that broken weights are seen in the logits.
static inline void round_row(const float* x, int64_t depth, int8_t* codes, float* scales, float* totals) {
    for (int64_t b = 0; b < depth / BLOCK; ++b, x += BLOCK, codes += BLOCK) {
        int32_t most = 0;  // of |x|'s bits, which are ordered as the numbers are, with NaN above all
        for (int k = 0; k < BLOCK; ++k) {
            int32_t size;
            memcpy(&size, x + k, 4);
            size &= 0x7fffffff;
            most = size > most ? size : most;
        }
        float largest;
        memcpy(&largest, &most, 4);
        if (most >= 0x7f800000) {
            memset(codes, 0, BLOCK);
            scales[b] = NAN;
            totals[b] = 0;
            continue;
        }
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        float products[BLOCK];  // by themselves: fused with an addition they might round the other way
        int32_t whole[BLOCK], total = 0;
        for (int k = 0; k < BLOCK; ++k) products[k] = x[k] * inverse;
        for (int k = 0; k < BLOCK; ++k) whole[k] = (int32_t)std::rint(products[k]);  // each loop is vectors by itself
        for (int k = 0; k < BLOCK; ++k) total += whole[k];
        for (int k = 0; k < BLOCK; ++k) codes[k] = (int8_t)whole[k];
        scales[b] = largest / 127.0f;
        totals[b] = (float)total;
    }
}

// A row made ready for what wants it, as row t of `to`.
static inline void prepare_row(const float* x, int64_t t, int64_t depth, Wants for_what, const Rows& to) {
    if (for_what.codes) {
        const int64_t block = t * (depth / BLOCK);
        round_row(x, depth, to.codes + t * depth, to.scales + block, to.totals + block);
    }
    if (for_what.floats) memcpy(to.floats + t * depth, x, depth * sizeof(float));
}

// The weights of one column -> out [depth].
template <int FORMAT>
static inline void unpack_column(const Matrix& of, int64_t column, float* out) {
    if constexpr (!is_blocks(FORMAT)) {
        const uint8_t* weights = of.weights + column * of.depth * float_bytes(FORMAT);
        for (int64_t k = 0; k < of.depth; ++k) out[k] = one_at<FORMAT>(weights, k);
        return;
    } else {
        const int64_t blocks = of.depth / BLOCK, n = column % COLUMNS;
        const uint8_t* block = of.weights + column / COLUMNS * blocks * block_bytes(FORMAT);
        for (int64_t b = 0; b < blocks; ++b, block += block_bytes(FORMAT), out += BLOCK) {
            const float d = half_at(block + 2 * n), m = has_offset(FORMAT) ? half_at(block + 2 * (COLUMNS + n)) : 0.0f;
            const uint8_t* codes = block + head_bytes(FORMAT) + 4 * n;
            for (int k = 0; k < BLOCK; ++k) {
                int code;
                if constexpr (is_nibbles(FORMAT)) {
                    const uint8_t both = codes[64 * (k % 16 / 4) + k % 4];
                    code = (k < 16 ? both & 15 : both >> 4) - above(FORMAT);
                } else {
                    code = (int8_t)codes[64 * (k / 4) + k % 4];
                }
                out[k] = (float)code * d + m;
            }
        }
    }
}
