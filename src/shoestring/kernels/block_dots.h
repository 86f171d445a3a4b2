// One block of weights by the codes of M rows: exact sums for the 16 columns of a tile, and what they add to a product.
// Four ways, chosen when it is compiled, which is on the machine where it runs:
//
//   16 columns   AVX-512, with VNNI or without
//    8 columns   AVX2, with AVX-VNNI or without
//   plain        loops that a compiler turns into vectors as it can (ARM; x86 of before 2013)
//
// dots_…(sums, codes, rows, stride): sums[m] = Σ_k code[k] · rows[m · stride + k]. Codes of 4 bits are 0 … 15; those of
// 8 bits count as code + BYTES_ABOVE, which `add` takes off again. Rows are −127 to 127. A call instead of its body
// would send the sums of four rows through memory: a third of the time.
// SHOESTRING_PLAIN and SHOESTRING_NARROW, as macros, force the lesser ways: for tests.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "matrix.h"

#define INLINED [[gnu::always_inline]] static inline

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
static inline void store(float* to, const Values& v) { _mm512_storeu_ps(to, v.of); }
// to += d · scale · (sums − ABOVE · total)
template <int ABOVE>
static inline void add(Values& to, const Sums& sums, float total, float scale, const Values& d) {
    __m512 dots = _mm512_cvtepi32_ps(sums.of);
    if (ABOVE) dots = _mm512_fmadd_ps(_mm512_set1_ps(total), _mm512_set1_ps(-ABOVE), dots);
    to.of = _mm512_fmadd_ps(dots, _mm512_mul_ps(d.of, _mm512_set1_ps(scale)), to.of);
}
// to += m · total · scale
static inline void add_offset(Values& to, float total, float scale, const Values& m) {
    to.of = _mm512_fmadd_ps(_mm512_mul_ps(m.of, _mm512_set1_ps(total)), _mm512_set1_ps(scale), to.of);
}
static inline __m512i four(const int8_t* codes) {
    int32_t word;
    memcpy(&word, codes, 4);
    return _mm512_set1_epi32(word);
}

// Unsigned bytes up to 128 by signed ones. Without VNNI pairs are added in int16 first: 2 · 128 · 127 fits.
static inline __m512i add_dots(__m512i sums, __m512i weights, __m512i row) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(sums, weights, row);
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(weights, row), _mm512_set1_epi16(1)));
#endif
}

template <int M>
INLINED void dots_nibbles(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int m = 0; m < M; ++m) sums[m].of = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i both = _mm512_loadu_si512(codes + 64 * j);
        const __m512i a = _mm512_and_si512(both, low), b = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const int8_t* row = rows + m * stride + 4 * j;
            sums[m].of = add_dots(add_dots(sums[m].of, a, four(row)), b, four(row + 16));
        }
    }
}

#if defined(__AVX512VNNI__)
constexpr int BYTES_ABOVE = 128;  // signed bytes made unsigned
#else
constexpr int BYTES_ABOVE = 0;
#endif

template <int M>
INLINED void dots_bytes(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    for (int m = 0; m < M; ++m) sums[m].of = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
        const __m512i weights = _mm512_loadu_si512(codes + 64 * j);
#if defined(__AVX512VNNI__)
        const __m512i size = _mm512_xor_si512(weights, _mm512_set1_epi8((char)0x80));
#else  // |w| by a row with w's sign
        const __m512i size = _mm512_abs_epi8(weights);
        const __mmask64 negative = _mm512_movepi8_mask(weights);
#endif
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            __m512i row = four(rows + m * stride + 4 * j);
#if !defined(__AVX512VNNI__)
            row = _mm512_mask_sub_epi8(row, negative, _mm512_setzero_si512(), row);
#endif
            sums[m].of = add_dots(sums[m].of, size, row);
        }
    }
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
static inline void store(float* to, const Values& v) {
    _mm256_storeu_ps(to, v.of[0]);
    _mm256_storeu_ps(to + 8, v.of[1]);
}
template <int ABOVE>
static inline void add(Values& to, const Sums& sums, float total, float scale, const Values& d) {
    for (int v = 0; v < 2; ++v) {
        __m256 dots = _mm256_cvtepi32_ps(sums.of[v]);
        if (ABOVE) dots = _mm256_fmadd_ps(_mm256_set1_ps(total), _mm256_set1_ps(-ABOVE), dots);
        to.of[v] = _mm256_fmadd_ps(dots, _mm256_mul_ps(d.of[v], _mm256_set1_ps(scale)), to.of[v]);
    }
}
static inline void add_offset(Values& to, float total, float scale, const Values& m) {
    const __m256 count = _mm256_set1_ps(total), factor = _mm256_set1_ps(scale);
    for (int v = 0; v < 2; ++v) to.of[v] = _mm256_fmadd_ps(_mm256_mul_ps(m.of[v], count), factor, to.of[v]);
}
static inline __m256i four(const int8_t* codes) {
    int32_t word;
    memcpy(&word, codes, 4);
    return _mm256_set1_epi32(word);
}

#if defined(__AVXVNNI__)
constexpr int BYTES_ABOVE = 128;  // signed bytes made unsigned

template <int M>
INLINED void dots_nibbles(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int m = 0; m < M; ++m) sums[m].of[0] = sums[m].of[1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const __m256i both = _mm256_loadu_si256((const __m256i*)(codes + 64 * j + 32 * v));
            const __m256i a = _mm256_and_si256(both, low), b = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const int8_t* row = rows + m * stride + 4 * j;
                sums[m].of[v] = _mm256_dpbusd_avx_epi32(sums[m].of[v], a, four(row));
                sums[m].of[v] = _mm256_dpbusd_avx_epi32(sums[m].of[v], b, four(row + 16));
            }
        }
}

template <int M>
INLINED void dots_bytes(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const __m256i high = _mm256_set1_epi8((char)0x80);
    for (int m = 0; m < M; ++m) sums[m].of[0] = sums[m].of[1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const __m256i weights = _mm256_loadu_si256((const __m256i*)(codes + 64 * j + 32 * v));
            const __m256i size = _mm256_xor_si256(weights, high);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m)
                sums[m].of[v] = _mm256_dpbusd_avx_epi32(sums[m].of[v], size, four(rows + m * stride + 4 * j));
        }
}

#else
constexpr int BYTES_ABOVE = 0;

// A block's sums of pairs fit into int16: eight times 2 · 15 · 127 is 30,480. After each step sums are "changed" (asm):
// a compiler that may move all steps' loads to the front has no registers left for the sums, and takes half as long again.
template <int M>
INLINED void dots_nibbles(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i pairs[M][2];
    for (int m = 0; m < M; ++m) pairs[m][0] = pairs[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m256i left = _mm256_loadu_si256((const __m256i*)(codes + 64 * j));
        const __m256i right = _mm256_loadu_si256((const __m256i*)(codes + 64 * j + 32));
        const __m256i a[2] = {_mm256_and_si256(left, low), _mm256_and_si256(right, low)};
        const __m256i b[2] = {_mm256_and_si256(_mm256_srli_epi16(left, 4), low),
                              _mm256_and_si256(_mm256_srli_epi16(right, 4), low)};
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const int8_t* row = rows + m * stride + 4 * j;
            const __m256i first = four(row), second = four(row + 16);
            for (int v = 0; v < 2; ++v) {
                pairs[m][v] = _mm256_add_epi16(pairs[m][v], _mm256_maddubs_epi16(a[v], first));
                pairs[m][v] = _mm256_add_epi16(pairs[m][v], _mm256_maddubs_epi16(b[v], second));
            }
            asm volatile("" : "+x"(pairs[m][0]), "+x"(pairs[m][1]));
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < 2; ++v) sums[m].of[v] = _mm256_madd_epi16(pairs[m][v], ones);
}

// |w| by a row with w's sign; 2 · 128 · 127 fits into int16, more pairs would not.
template <int M>
INLINED void dots_bytes(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
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
                const __m256i dots = _mm256_madd_epi16(_mm256_maddubs_epi16(size, turned), ones);
                sums[m].of[v] = _mm256_add_epi32(sums[m].of[v], dots);
                asm volatile("" : "+x"(sums[m].of[v]));
            }
        }
}
#endif

#else
// --- plain loops ----------------------------------------------------------------------------------------------------

struct Sums {
    int32_t of[COLUMNS];
};
struct Values {
    float of[COLUMNS];
};
static inline Values nothing() { return {}; }
static inline Values halves(const uint8_t* from) {
    Values v;
    for (int n = 0; n < COLUMNS; ++n) v.of[n] = half_at(from + 2 * n);
    return v;
}
static inline void store(float* to, const Values& v) { memcpy(to, v.of, sizeof v.of); }
template <int ABOVE>
static inline void add(Values& to, const Sums& sums, float total, float scale, const Values& d) {
    for (int n = 0; n < COLUMNS; ++n) to.of[n] += ((float)sums.of[n] - ABOVE * total) * (d.of[n] * scale);
}
static inline void add_offset(Values& to, float total, float scale, const Values& m) {
    for (int n = 0; n < COLUMNS; ++n) to.of[n] += m.of[n] * total * scale;
}

constexpr int BYTES_ABOVE = 0;

template <int M>
INLINED void dots_nibbles(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    for (int m = 0; m < M; ++m) {
        int32_t total[COLUMNS];  // apart: bytes might be anything, sums too
        for (int n = 0; n < COLUMNS; ++n) total[n] = 0;
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
INLINED void dots_bytes(Sums (&sums)[M], const uint8_t* codes, const int8_t* rows, int64_t stride) {
    const int8_t* weights = (const int8_t*)codes;
    for (int m = 0; m < M; ++m) {
        int32_t total[COLUMNS];  // apart: bytes might be anything, sums too
        for (int n = 0; n < COLUMNS; ++n) total[n] = 0;
        for (int j = 0; j < 8; ++j) {
            const int8_t* row = rows + m * stride + 4 * j;
            for (int n = 0; n < COLUMNS; ++n)
                for (int i = 0; i < 4; ++i) total[n] += weights[64 * j + 4 * n + i] * row[i];
        }
        memcpy(sums[m].of, total, sizeof total);
    }
}
#endif
