// How a processor multiplies int8 codes: a lane of 32 bits holds neighbours along k of a row or of a column, and one
// instruction multiplies them and adds them up, in all lanes of a vector at once. Two ways, the same exact sums:
//
//   bytes   four codes in a lane. AVX-512 VNNI and AVX-VNNI multiply unsigned by signed bytes, so weights are packed
//           with 128 added, and 128·Σ codes is taken off again; NEON's dot products are of signed bytes
//   pairs   two codes in a lane, widened to int16, where there are no such instructions: AVX2's multiplies twice as
//           many numbers as its float32 one, but each needs an addition as well, so 1.6 times is the most (Zen 3)
//
// SHOESTRING_PAIRS and SHOESTRING_PLAIN, as macros, force the lesser ways: for tests.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

// ROWS × VECTORS accumulators, the weights' VECTORS and one or two more fit into the registers.
#if defined(SHOESTRING_PLAIN)
constexpr int LANES = 8, VECTORS = 2, ROWS = 4;
#elif defined(__AVX512VNNI__) && !defined(SHOESTRING_PAIRS)
#define BYTES
constexpr int LANES = 16, VECTORS = 2, ROWS = 12;
#elif defined(__AVXVNNI__) && !defined(SHOESTRING_PAIRS)
#define BYTES
constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
#elif defined(__ARM_FEATURE_DOTPROD) && !defined(SHOESTRING_PAIRS)
#define BYTES
constexpr int LANES = 4, VECTORS = 4, ROWS = 6;
#elif defined(__AVX512BW__)
constexpr int LANES = 16, VECTORS = 2, ROWS = 12;
#elif defined(__AVX2__)
constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
#else
constexpr int LANES = 8, VECTORS = 2, ROWS = 4;
#endif
constexpr int WIDTH = LANES * VECTORS;  // columns of a tile: a multiple of 16, which packing counts on

typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int8_t Codes __attribute__((vector_size(16)));
typedef int16_t Pairs __attribute__((vector_size(16)));
typedef int16_t Widened __attribute__((vector_size(32)));

struct alignas(64) Lanes {  // of a tile's columns, for some neighbours along k
    uint32_t column[WIDTH];
};

template <typename V>
static inline V load(const void* from) {
    V value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <typename V>
static inline void store(void* to, V value) {
    memcpy(to, &value, sizeof value);
}

// 16 codes, or fewer and zeros.
static inline Codes load_codes(const int8_t* from, int64_t count) {
    if (count >= 16) return load<Codes>(from);
    Codes value = {};
    if (count > 0) memcpy(&value, from, count);
    return value;
}

// a[0] b[0] a[1] b[1] … of the lower and of the upper halves.
static inline Codes zip_low(Codes a, Codes b) {
    return __builtin_shuffle(a, b, Codes{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
static inline Codes zip_high(Codes a, Codes b) {
    return __builtin_shuffle(a, b, Codes{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
static inline Pairs zip_low(Pairs a, Pairs b) {
    return __builtin_shuffle(a, b, Pairs{0, 8, 1, 9, 2, 10, 3, 11});
}
static inline Pairs zip_high(Pairs a, Pairs b) {
    return __builtin_shuffle(a, b, Pairs{4, 12, 5, 13, 6, 14, 7, 15});
}

#if defined(BYTES)
// --- bytes ------------------------------------------------------------------------------------------------------

constexpr int NEIGHBOURS = 4;
constexpr int64_t DEPTH = 1 << 30;  // codes of a row that are taken at once: all
typedef int8_t Code;

#if defined(__x86_64__)
constexpr uint32_t ADDED = 0x80808080u;  // by exclusive or
static inline Ints first_sums(int32_t sum) { return Ints{} - 128 * sum; }
#else
constexpr uint32_t ADDED = 0;
static inline Ints first_sums(int32_t) { return Ints{}; }
#endif

static inline Ints dot(Ints sums, Ints weights, Ints row) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)row);
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights, (__m256i)row);
#else
    return (Ints)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)row);
#endif
}

// A few rows' codes, where they are.
struct Block {
    const Code* codes;
    int64_t stride;

    void take(const int8_t* from, int64_t from_stride, int64_t, int64_t) { codes = from, stride = from_stride; }
};

#if defined(__AVX512VNNI__)
// 16 rows of 64 bytes -> 16 rows of what stood in one column of 4 bytes.
static void transpose(const int8_t* from, int64_t stride, uint32_t* to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = load<__m512i>(from + i * stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    const __m512i high = _mm512_set1_epi32((int)ADDED);
    for (int j = 0; j < 4; ++j) {  // a[i + j] holds in its quarter l what rows i … i + 3 have in column 4·l + j
        __m512i even = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), odd = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        __m512i even2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        __m512i odd2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_si512(to + j * WIDTH, _mm512_xor_si512(_mm512_shuffle_i32x4(even, even2, 0x88), high));
        _mm512_storeu_si512(to + (4 + j) * WIDTH, _mm512_xor_si512(_mm512_shuffle_i32x4(odd, odd2, 0x88), high));
        _mm512_storeu_si512(to + (8 + j) * WIDTH, _mm512_xor_si512(_mm512_shuffle_i32x4(even, even2, 0xdd), high));
        _mm512_storeu_si512(to + (12 + j) * WIDTH, _mm512_xor_si512(_mm512_shuffle_i32x4(odd, odd2, 0xdd), high));
    }
}
#endif

// weight[n][k]: each row is a column of the product.
static void pack_rows(const int8_t* weight, int64_t stride, int64_t depth, int64_t columns, Lanes* packed) {
    const int64_t quads = (depth + 3) / 4, whole = depth / 4;
    for (int64_t begin = 0; begin < quads; begin += 16) {
        int64_t end = std::min(begin + 16, quads);
        for (int64_t n = 0; n < WIDTH; ++n) {
            const int8_t* row = weight + n * stride;
#if defined(__AVX512VNNI__)
            if (n % 16 == 0 && n + 16 <= columns && begin + 16 <= whole) {
                transpose(row + 4 * begin, stride, packed[begin].column + n);
                n += 15;
                continue;
            }
#endif
            for (int64_t q = begin; q < end; ++q) {
                uint32_t bytes = 0;
                if (n < columns) {
                    if (q < whole)
                        memcpy(&bytes, row + 4 * q, 4);
                    else
                        memcpy(&bytes, row + 4 * q, depth - 4 * q);
                }
                packed[q].column[n] = bytes ^ ADDED;
            }
        }
    }
}

// weight[k][n].
static void pack_columns(const int8_t* weight, int64_t stride, int64_t depth, int64_t columns, Lanes* packed) {
    const Codes added = Codes{} + (int8_t)ADDED;
    for (int64_t k = 0; k < depth; k += 4, ++packed)
        for (int64_t n = 0; n < WIDTH; n += 16) {
            Codes rows[4];
            for (int i = 0; i < 4; ++i)
                rows[i] = k + i < depth ? load_codes(weight + (k + i) * stride + n, columns - n) : Codes{};
            Pairs low = (Pairs)zip_low(rows[0], rows[1]), low2 = (Pairs)zip_low(rows[2], rows[3]);
            Pairs high = (Pairs)zip_high(rows[0], rows[1]), high2 = (Pairs)zip_high(rows[2], rows[3]);
            uint32_t* out = packed->column + n;
            store(out, (Codes)zip_low(low, low2) ^ added);
            store(out + 4, (Codes)zip_high(low, low2) ^ added);
            store(out + 8, (Codes)zip_low(high, high2) ^ added);
            store(out + 12, (Codes)zip_high(high, high2) ^ added);
        }
}

#else
// --- pairs ------------------------------------------------------------------------------------------------------

constexpr int NEIGHBOURS = 2;
constexpr int64_t DEPTH = 1024;  // codes of a row that are taken at once: many columns' weights fit into a cache
typedef int16_t Code;

static inline Ints first_sums(int32_t) { return Ints{}; }

static inline Ints dot(Ints sums, Ints weights, Ints row) {
#if defined(__AVX512BW__) && !defined(SHOESTRING_PLAIN)
    return sums + (Ints)_mm512_madd_epi16((__m512i)weights, (__m512i)row);
#elif defined(__AVX2__) && !defined(SHOESTRING_PLAIN)
    return sums + (Ints)_mm256_madd_epi16((__m256i)weights, (__m256i)row);
#else
    return sums + (weights << 16 >> 16) * (row << 16 >> 16) + (weights >> 16) * (row >> 16);
#endif
}

static inline Widened widen(Codes codes) { return __builtin_convertvector(codes, Widened); }

// A few rows' codes, widened, at places that are known when this is compiled.
struct Block {
    static constexpr int64_t stride = DEPTH + 32;  // an odd number of cache lines
    alignas(64) Code codes[ROWS * stride];

    void take(const int8_t* from, int64_t from_stride, int64_t rows, int64_t depth) {
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t k = 0; k < depth; k += 16)  // rows of codes end with zeros
                store(codes + m * stride + k, widen(load<Codes>(from + m * from_stride + k)));
    }
};

// weight[n][k]: 8 rows of 8 pairs become 8 rows of what stood in one column of pairs.
static void pack_rows(const int8_t* weight, int64_t stride, int64_t depth, int64_t columns, Lanes* packed) {
    for (int64_t n = 0; n < WIDTH; n += 8)
        for (int64_t k = 0; k < depth; k += 16) {
            Pairs a[8], b[8];
            for (int i = 0; i < 8; ++i)
                a[i] = n + i < columns ? (Pairs)load_codes(weight + (n + i) * stride + k, depth - k) : Pairs{};
            for (int round = 0; round < 3; ++round) {
                for (int i = 0; i < 4; ++i) {
                    b[2 * i] = zip_low(a[i], a[i + 4]);
                    b[2 * i + 1] = zip_high(a[i], a[i + 4]);
                }
                std::copy(b, b + 8, a);
            }
            for (int i = 0; i < 8 && k + 2 * i < depth; ++i)
                store(packed[k / 2 + i].column + n, widen((Codes)a[i]));
        }
}

// weight[k][n].
static void pack_columns(const int8_t* weight, int64_t stride, int64_t depth, int64_t columns, Lanes* packed) {
    for (int64_t k = 0; k < depth; k += 2, ++packed)
        for (int64_t n = 0; n < WIDTH; n += 16) {
            Codes even = load_codes(weight + k * stride + n, columns - n);
            Codes odd = k + 1 < depth ? load_codes(weight + (k + 1) * stride + n, columns - n) : Codes{};
            store(packed->column + n, widen(zip_low(even, odd)));
            store(packed->column + n + 8, widen(zip_high(even, odd)));
        }
}
#endif
