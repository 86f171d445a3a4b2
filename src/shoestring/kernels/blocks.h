// Products of few rows with weights of 4 or 8 bits in blocks of 32, the rows rounded to int8 by blocks too: for decoding,
// where reading the weights is what takes the time.
//
// Weights stand in tiles of 16 columns of the product ("rows" of the matrix as it is stored). A tile's block is
//
//     d[16] float16   m[16] float16 (formats with an offset)   codes
//
// and stands for w = d · code + m, or w = d · (code − 8) for 4 bits without an offset. Codes are laid out so that 64 bytes hold four neighbours along the depth for each of
// the 16 columns: 4-bit ones (0 … 15) 256 bytes, depths 4j … 4j + 3 in the low halves and 16 more in the high ones; 8-bit
// ones (−128 … 127) 512 bytes. A row of activations is a scale, scale · Σ codes and 32 codes for each block. A product is
//
//     y = Σ_blocks  d · scale · (Σ code · code)  +  m · (scale · Σ codes)
//
// the sum in brackets being of integers, and exact. SHOESTRING_PLAIN forces the portable way: for tests.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

constexpr int BLOCK = 32, COLUMNS = 16;

enum Format : int { NIBBLES = 0, NIBBLES_OFFSET = 1, BYTES = 2, BYTES_OFFSET = 3 };

constexpr bool has_offset(int format) { return format == NIBBLES_OFFSET || format == BYTES_OFFSET; }
constexpr bool is_nibbles(int format) { return format <= NIBBLES_OFFSET; }
constexpr int64_t block_bytes(int format) {
    return 2 * COLUMNS * (has_offset(format) ? 2 : 1) + (is_nibbles(format) ? BLOCK / 2 : BLOCK) * COLUMNS;
}

struct Matrix {
    const uint8_t* tiles;  // [⌈columns / 16⌉, depth / 32] blocks
    int64_t columns, depth;
    int32_t format;
    const float* bias;  // [columns] or none
};

// Rounded rows: codes [rows, depth], scales and sums [rows, depth / 32].
struct Rounded {
    const int8_t* codes;
    const float *scales, *sums;
    int64_t depth;
};

// --- what the ways have in common -----------------------------------------------------------------------------------

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t rest = half & 0x7fff, bits;
    if (rest >= 0x7c00)
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest >= 0x400)
        bits = sign | ((rest << 13) + (112u << 23));
    else {  // subnormal: rest · 2^−24
        float value = (float)rest * 5.9604644775390625e-8f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && !defined(SHOESTRING_PLAIN) && !defined(SHOESTRING_NARROW)
// --- 16 columns in a vector -----------------------------------------------------------------------------------------

struct Sums {  // int32 of the 16 columns
    __m512i of;
};
struct Values {  // float32 of the 16 columns
    __m512 of;
};
static inline Values nothing() { return {_mm512_setzero_ps()}; }
static inline Values halves(const uint8_t* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from))};
}
static inline void store(float* to, Values v) { _mm512_storeu_ps(to, v.of); }
static inline void add_scaled(Values& to, const Sums& sums, Values d, float scale) {
    to.of = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums.of), _mm512_mul_ps(d.of, _mm512_set1_ps(scale)), to.of);
}
static inline void add_offset(Values& to, Values m, float sum) {
    to.of = _mm512_fmadd_ps(m.of, _mm512_set1_ps(sum), to.of);
}
static inline __m512i four(const int8_t* codes) {
    int32_t word;
    memcpy(&word, codes, 4);
    return _mm512_set1_epi32(word);
}

// Unsigned bytes below 64 by signed ones. AVX-512 without VNNI adds pairs in int16 first: they cannot overflow.
static inline __m512i dot_unsigned(__m512i sums, __m512i weights, __m512i row) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(sums, weights, row);
#else
    return _mm512_add_epi32(
        sums, _mm512_madd_epi16(_mm512_maddubs_epi16(weights, row), _mm512_set1_epi16(1)));
#endif
}

template <int M>
static inline void dots_nibbles(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int m = 0; m < M; ++m) sums[m].of = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * j);
        const __m512i a = _mm512_and_si512(both, low), b = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            sums[m].of = dot_unsigned(sums[m].of, a, four(rows + m * stride + 4 * j));
            sums[m].of = dot_unsigned(sums[m].of, b, four(rows + m * stride + 16 + 4 * j));
        }
    }
}

// Signed bytes by signed ones: |w| by a row with w's sign, or with VNNI w + 128, which `scale · Σ codes` takes off again.
template <int M>
static inline void dots_bytes(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
#if defined(__AVX512VNNI__)
    const __m512i high = _mm512_set1_epi8((char)0x80);
    for (int m = 0; m < M; ++m) {
        int32_t sum = 0;
        for (int k = 0; k < BLOCK; ++k) sum += rows[m * stride + k];
        sums[m].of = _mm512_set1_epi32(-128 * sum);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
        const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(codes + 64 * j), high);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
            sums[m].of = _mm512_dpbusd_epi32(sums[m].of, weights, four(rows + m * stride + 4 * j));
    }
#else
    for (int m = 0; m < M; ++m) sums[m].of = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
        const __m512i weights = _mm512_loadu_si512(codes + 64 * j), size = _mm512_abs_epi8(weights);
        const __mmask64 negative = _mm512_movepi8_mask(weights);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m512i row = four(rows + m * stride + 4 * j);
            const __m512i turned = _mm512_mask_sub_epi8(row, negative, _mm512_setzero_si512(), row);
            sums[m].of = dot_unsigned(sums[m].of, size, turned);
        }
    }
#endif
}

#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__) && !defined(SHOESTRING_PLAIN)
// --- 8 columns in a vector ------------------------------------------------------------------------------------------

struct Sums {
    __m256i of[2];
};
struct Values {
    __m256 of[2];
};
static inline Values nothing() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
static inline Values halves(const uint8_t* from) {
    return {{_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)),
             _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 16)))}};
}
static inline void store(float* to, Values v) {
    _mm256_storeu_ps(to, v.of[0]);
    _mm256_storeu_ps(to + 8, v.of[1]);
}
static inline void add_scaled(Values& to, const Sums& sums, Values d, float scale) {
    const __m256 factor = _mm256_set1_ps(scale);
    for (int v = 0; v < 2; ++v)
        to.of[v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.of[v]), _mm256_mul_ps(d.of[v], factor), to.of[v]);
}
static inline void add_offset(Values& to, Values m, float sum) {
    const __m256 factor = _mm256_set1_ps(sum);
    for (int v = 0; v < 2; ++v) to.of[v] = _mm256_fmadd_ps(m.of[v], factor, to.of[v]);
}
static inline __m256i four(const int8_t* codes) {
    int32_t word;
    memcpy(&word, codes, 4);
    return _mm256_set1_epi32(word);
}

// A block's sums of pairs fit into int16: eight times 2 · 15 · 127.
template <int M>
static inline void dots_nibbles(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i pairs[M][2];
    for (int m = 0; m < M; ++m) pairs[m][0] = pairs[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const __m256i both = _mm256_loadu_si256((const __m256i*)(codes + 64 * j + 32 * v));
            const __m256i a = _mm256_and_si256(both, low), b = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const int8_t* row = rows + m * stride + 4 * j;
                pairs[m][v] = _mm256_add_epi16(pairs[m][v], _mm256_maddubs_epi16(a, four(row)));
                pairs[m][v] = _mm256_add_epi16(pairs[m][v], _mm256_maddubs_epi16(b, four(row + 16)));
            }
        }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2; ++v) sums[m].of[v] = _mm256_madd_epi16(pairs[m][v], ones);
}

template <int M>
static inline void dots_bytes(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int m = 0; m < M; ++m) sums[m].of[0] = sums[m].of[1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const __m256i weights = _mm256_loadu_si256((const __m256i*)(codes + 64 * j + 32 * v));
            const __m256i size = _mm256_abs_epi8(weights);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const __m256i turned = _mm256_sign_epi8(four(rows + m * stride + 4 * j), weights);
                sums[m].of[v] =
                    _mm256_add_epi32(sums[m].of[v], _mm256_madd_epi16(_mm256_maddubs_epi16(size, turned), ones));
            }
        }
}

#else
// --- plain loops, which a compiler turns into vectors as it can -----------------------------------------------------

struct Sums {
    int32_t of[COLUMNS];
};
struct Values {
    float of[COLUMNS];
};
static inline Values nothing() { return {}; }
static inline Values halves(const uint8_t* from) {
    Values v;
    for (int n = 0; n < COLUMNS; ++n) {
        uint16_t half;
        memcpy(&half, from + 2 * n, 2);
        v.of[n] = half_to_float(half);
    }
    return v;
}
static inline void store(float* to, Values v) { memcpy(to, v.of, sizeof v.of); }
static inline void add_scaled(Values& to, const Sums& sums, Values d, float scale) {
    for (int n = 0; n < COLUMNS; ++n) to.of[n] += (float)sums.of[n] * (d.of[n] * scale);
}
static inline void add_offset(Values& to, Values m, float sum) {
    for (int n = 0; n < COLUMNS; ++n) to.of[n] += m.of[n] * sum;
}

template <int M>
static inline void dots_nibbles(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    for (int m = 0; m < M; ++m) {
        int32_t total[COLUMNS] = {};
        for (int j = 0; j < 4; ++j) {
            const int8_t* row = rows + m * stride + 4 * j;
            for (int n = 0; n < COLUMNS; ++n)
                for (int i = 0; i < 4; ++i) {
                    const uint8_t both = codes[64 * j + 4 * n + i];
                    total[n] += (both & 15) * row[i] + (both >> 4) * row[16 + i];
                }
        }
        memcpy(sums[m].of, total, sizeof total);
    }
}

template <int M>
static inline void dots_bytes(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const int8_t* weights = (const int8_t*)codes;
    for (int m = 0; m < M; ++m) {
        int32_t total[COLUMNS] = {};
        for (int j = 0; j < 8; ++j) {
            const int8_t* row = rows + m * stride + 4 * j;
            for (int n = 0; n < COLUMNS; ++n)
                for (int i = 0; i < 4; ++i) total[n] += weights[64 * j + 4 * n + i] * row[i];
        }
        memcpy(sums[m].of, total, sizeof total);
    }
}
#endif

// --- a tile ---------------------------------------------------------------------------------------------------------

// M rows by the 16 columns of a tile -> y [M, 16], as they are in memory.
template <int FORMAT, int M>
static void tile_rows(const Matrix& of, int64_t tile, const Rounded& x, int64_t row, float* y, int64_t y_stride) {
    const int64_t blocks = of.depth / BLOCK;
    const uint8_t* block = of.tiles + tile * blocks * block_bytes(FORMAT);
    const int8_t* codes = x.codes + row * x.depth;
    const float *scales = x.scales + row * blocks, *sums = x.sums + row * blocks;
    Values values[M];
    for (int m = 0; m < M; ++m) values[m] = nothing();
    for (int64_t b = 0; b < blocks; ++b, block += block_bytes(FORMAT)) {
        const uint8_t* packed = block + 2 * COLUMNS * (has_offset(FORMAT) ? 2 : 1);
        Sums dots[M];
        if constexpr (is_nibbles(FORMAT))
            dots_nibbles<M>(dots, packed, codes + b * BLOCK, x.depth);
        else
            dots_bytes<M>(dots, packed, codes + b * BLOCK, x.depth);
        const Values d = halves(block);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) add_scaled(values[m], dots[m], d, scales[m * blocks + b]);
        if constexpr (has_offset(FORMAT)) {
            const Values offset = halves(block + 2 * COLUMNS);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) add_offset(values[m], offset, sums[m * blocks + b]);
        } else if constexpr (is_nibbles(FORMAT)) {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) add_offset(values[m], d, -8.0f * sums[m * blocks + b]);
        }
    }
    for (int m = 0; m < M; ++m) store(y + m * y_stride, values[m]);
}

template <int FORMAT>
static void tile_all(const Matrix& of, int64_t tile, const Rounded& x, int64_t begin, int64_t end, float* y,
                     int64_t y_stride) {
    float edge[4 * COLUMNS];
    const int64_t column = tile * COLUMNS, used = of.columns - column < COLUMNS ? of.columns - column : COLUMNS;
    for (int64_t row = begin; row < end;) {
        const int64_t left = end - row;
        const int some = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        float* to = used == COLUMNS ? y + row * y_stride + column : edge;
        const int64_t stride = used == COLUMNS ? y_stride : COLUMNS;
        if (some == 4)
            tile_rows<FORMAT, 4>(of, tile, x, row, to, stride);
        else if (some == 2)
            tile_rows<FORMAT, 2>(of, tile, x, row, to, stride);
        else
            tile_rows<FORMAT, 1>(of, tile, x, row, to, stride);
        for (int m = 0; m < some; ++m) {
            float* out = y + (row + m) * y_stride + column;
            if (used < COLUMNS) memcpy(out, edge + m * COLUMNS, used * sizeof(float));
            if (of.bias != nullptr)
                for (int64_t n = 0; n < used; ++n) out[n] += of.bias[column + n];
        }
        row += some;
    }
}

// Rows begin … end of y [·, y_stride] in the columns of tiles first … last.
static inline void multiply_tiles(const Matrix& of, int64_t first, int64_t last, const Rounded& x, int64_t begin,
                                  int64_t end, float* y, int64_t y_stride) {
    for (int64_t tile = first; tile < last; ++tile) switch (of.format) {
            case NIBBLES: tile_all<NIBBLES>(of, tile, x, begin, end, y, y_stride); break;
            case NIBBLES_OFFSET: tile_all<NIBBLES_OFFSET>(of, tile, x, begin, end, y, y_stride); break;
            case BYTES: tile_all<BYTES>(of, tile, x, begin, end, y, y_stride); break;
            default: tile_all<BYTES_OFFSET>(of, tile, x, begin, end, y, y_stride);
        }
}

static inline int64_t tiles_of(const Matrix& of) { return (of.columns + COLUMNS - 1) / COLUMNS; }

// One row to int8 by blocks, to nearest: scale = max|block| / 127.
static inline void round_row(const float* x, int64_t depth, int8_t* codes, float* scales, float* sums) {
    for (int64_t b = 0; b < depth / BLOCK; ++b, x += BLOCK, codes += BLOCK) {
        float largest = 0.0f;
        for (int k = 0; k < BLOCK; ++k) {
            const float size = x[k] < 0 ? -x[k] : x[k];
            largest = size > largest ? size : largest;
        }
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        const float shifter = 12582912.0f;  // 1.5 · 2^23: what is added to it is rounded to a whole number
        int32_t sum = 0;
        for (int k = 0; k < BLOCK; ++k) {
            float shifted = x[k] * inverse + shifter;
            int32_t bits;
            memcpy(&bits, &shifted, 4);
            const int8_t code = (int8_t)(bits - 0x4b400000);
            codes[k] = code;
            sum += code;
        }
        scales[b] = largest / 127.0f;
        sums[b] = scales[b] * (float)sum;
    }
}
