// Products of int8 rows with an int8 matrix, in the dot-product instructions of AVX-512 VNNI or AVX-VNNI.
//
//   quantize_rows   x [M, K] float32 -> codes int8 [M, K] in −127 … 127, scale [M] = max|row| / 127, sums [M] of codes;
//                   of kept columns, those with the largest numbers, the codes are 0 and the values stay as they are
//   product_rows    y[m, n] = scale[m]·column[n]·Σ_k codes[m, k]·weight[k, n]  +  Σ_r left[m, r]·right[r, n]  (+ y[m, n]),
//                   kept columns among the second sum
//
// The instruction multiplies unsigned by signed bytes, so weights are packed with 128 added, and 128·sums[m] is
// taken off again: exact in int32. A panel of packed weights stays in a core's L2 cache while all rows pass by, and
// every number of y is written once. Threads share panels; no result depends on how many there are.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512VNNI__)
constexpr int LANES = 16, ROWS = 12;
#elif defined(__AVXVNNI__)
constexpr int LANES = 8, ROWS = 6;
#else
#error "no dot products of bytes on this processor"
#endif
constexpr int VECTORS = 2, WIDTH = LANES * VECTORS;  // of one tile: ROWS × WIDTH accumulators in registers
constexpr int64_t PANEL_BYTES = 320 << 10;

typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef float Floats __attribute__((vector_size(LANES * 4)));

static inline Ints dot(Ints sums, Ints unsigned_bytes, Ints signed_bytes) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#else
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)unsigned_bytes, (__m256i)signed_bytes);
#endif
}

template <typename V>
static inline V load(const void* from) {
    V value;
    memcpy(&value, from, sizeof value);
    return value;
}

// --- rounding ---------------------------------------------------------------------------------------------------

template <bool SCALED>
static void quantize_row(
    const float* x, const float* columns, int64_t width, int8_t* codes, float* scale, int32_t* sum) {
    // As integers, so that a NaN is the largest of all and reaches the scale.
    uint32_t largest_bits = 0;
    for (int64_t k = 0; k < width; ++k) {
        float value = SCALED ? x[k] * columns[k] : x[k];
        uint32_t bits;
        memcpy(&bits, &value, 4);
        bits &= 0x7fffffffu;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    float largest;
    memcpy(&largest, &largest_bits, 4);
    float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    int32_t total = 0;
    for (int64_t k = 0; k < width; ++k) {
        float value = SCALED ? x[k] * columns[k] : x[k];
        int32_t code = (int32_t)__builtin_rintf(value * inverse);
        codes[k] = (int8_t)code;
        total += (int8_t)code;
    }
    *scale = largest / 127.0f;
    *sum = total;
}

// The columns with the largest numbers, in any order.
static void choose_columns(
    const float* x, int64_t x_stride, int64_t rows, int64_t width, int64_t kept, int32_t* chosen, int threads) {
    constexpr int64_t BLOCK = 128;
    std::vector<uint32_t> largest((width + BLOCK - 1) / BLOCK * BLOCK);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t begin = 0; begin < width; begin += BLOCK) {
        const int64_t count = std::min(BLOCK, width - begin);
        uint32_t highest[BLOCK] = {};
        for (int64_t m = 0; m < rows; ++m) {
            const float* row = x + m * x_stride + begin;
            for (int64_t k = 0; k < count; ++k) {
                uint32_t bits;
                memcpy(&bits, row + k, 4);
                bits &= 0x7fffffffu;
                highest[k] = bits > highest[k] ? bits : highest[k];
            }
        }
        memcpy(largest.data() + begin, highest, sizeof highest);
    }
    std::vector<int32_t> order(width);
    for (int64_t k = 0; k < width; ++k) order[k] = (int32_t)k;
    std::nth_element(order.begin(), order.begin() + kept, order.end(), [&](int32_t a, int32_t b) {
        return largest[a] != largest[b] ? largest[a] > largest[b] : a < b;
    });
    std::copy(order.begin(), order.begin() + kept, chosen);
}

// columns may be null. kept < width: how many columns to keep; values [rows, kept] takes them.
extern "C" void quantize_rows(
    const float* x, int64_t x_stride, const float* columns, int64_t rows, int64_t width, int8_t* codes,
    int64_t codes_stride, float* scale, int32_t* sums, int64_t kept, int32_t* chosen, float* values, int threads) {
    std::vector<float> factors;
    if (kept) {
        choose_columns(x, x_stride, rows, width, kept, chosen, threads);
        factors.assign(width, 1.0f);
        if (columns) std::copy(columns, columns + width, factors.begin());
        for (int64_t j = 0; j < kept; ++j) factors[chosen[j]] = 0.0f;
        columns = factors.data();
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t m = 0; m < rows; ++m) {
        int8_t* out = codes + m * codes_stride;
        const float* row = x + m * x_stride;
        for (int64_t j = 0; j < kept; ++j) values[m * kept + j] = row[chosen[j]];
        if (columns)
            quantize_row<true>(row, columns, width, out, scale + m, sums + m);
        else
            quantize_row<false>(row, nullptr, width, out, scale + m, sums + m);
        memset(out + width, 0, codes_stride - width);
    }
}

// --- the product ------------------------------------------------------------------------------------------------

// Four neighbours along k of each column, as one int32, 128 added to each byte: packed[k/4][column of the tile].
#if defined(__AVX512VNNI__)
// 16 rows of 64 bytes -> 16 rows of what stood in one column of 4 bytes, WIDTH apart.
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
    const __m512i high = _mm512_set1_epi32((int)0x80808080u);
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

static void pack_rows(const int8_t* weight, int64_t stride, int64_t depth, int64_t columns, uint32_t* packed) {
    // weight[n][k]: each row is a column of the product.
    const int64_t quads = (depth + 3) / 4, whole = depth / 4;
    for (int64_t begin = 0; begin < quads; begin += 16) {
        int64_t end = std::min(begin + 16, quads);
        for (int64_t n = 0; n < WIDTH; ++n) {
            const int8_t* row = weight + n * stride;
#if defined(__AVX512VNNI__)
            if (n % 16 == 0 && n + 16 <= columns && begin + 16 <= whole) {
                transpose(row + 4 * begin, stride, packed + begin * WIDTH + n);
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
                packed[q * WIDTH + n] = bytes ^ 0x80808080u;
            }
        }
    }
}

static void pack_columns(const int8_t* weight, int64_t stride, int64_t depth, int64_t columns, uint32_t* packed) {
    // weight[k][n].
    static const int8_t zeros[WIDTH] = {};
    int8_t tail[4][WIDTH];
    for (int64_t k = 0; k < depth; k += 4, packed += WIDTH) {
        const int8_t* rows[4];
        for (int i = 0; i < 4; ++i) {
            rows[i] = k + i < depth ? weight + (k + i) * stride : zeros;
            if (columns < WIDTH && k + i < depth) {
                memset(tail[i], 0, WIDTH);
                memcpy(tail[i], rows[i], columns);
                rows[i] = tail[i];
            }
        }
        const __m128i high = _mm_set1_epi8((char)0x80);
        for (int n = 0; n < WIDTH; n += 16) {
            __m128i a = load<__m128i>(rows[0] + n), b = load<__m128i>(rows[1] + n);
            __m128i c = load<__m128i>(rows[2] + n), d = load<__m128i>(rows[3] + n);
            __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
            __m128i ab2 = _mm_unpackhi_epi8(a, b), cd2 = _mm_unpackhi_epi8(c, d);
            __m128i* out = (__m128i*)(packed + n);
            _mm_storeu_si128(out + 0, _mm_xor_si128(_mm_unpacklo_epi16(ab, cd), high));
            _mm_storeu_si128(out + 1, _mm_xor_si128(_mm_unpackhi_epi16(ab, cd), high));
            _mm_storeu_si128(out + 2, _mm_xor_si128(_mm_unpacklo_epi16(ab2, cd2), high));
            _mm_storeu_si128(out + 3, _mm_xor_si128(_mm_unpackhi_epi16(ab2, cd2), high));
        }
    }
}

struct Tile {
    const int8_t* codes;
    int64_t codes_stride, quads;
    const float* scale;
    const int32_t* sums;
    const uint32_t* packed;
    const float* columns;  // [WIDTH]
    const float *left, *right;  // left [·, rank], right [rank, WIDTH]
    int64_t left_stride, rank;
    const float *values, *kept_right;  // values [·, kept], kept_right [kept, WIDTH]
    int64_t kept;
    float* y;
    int64_t y_stride;
    bool onto;  // adds to y
};

template <int M>
static inline void add_thin(
    Floats (&values)[M][VECTORS], const float* left, int64_t stride, const float* right, int64_t rank) {
    for (int64_t r = 0; r < rank; ++r) {
        Floats row[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) row[v] = load<Floats>(right + r * WIDTH + v * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) values[m][v] += left[m * stride + r] * row[v];
    }
}

template <int M>
static void compute(const Tile& tile) {
    Ints sums[M][VECTORS];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[m][v] = Ints{} - 128 * tile.sums[m];
    const int8_t* codes = tile.codes;
    const uint32_t* packed = tile.packed;
    for (int64_t q = 0; q < tile.quads; ++q, codes += 4, packed += WIDTH) {
        Ints weights[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) weights[v] = load<Ints>(packed + v * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
            Ints row = Ints{} + load<int32_t>(codes + m * tile.codes_stride);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v) sums[m][v] = dot(sums[m][v], weights[v], row);
        }
    }
    Floats values[M][VECTORS];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v)
            values[m][v] = __builtin_convertvector(sums[m][v], Floats) * tile.scale[m] *
                           load<Floats>(tile.columns + v * LANES);
    add_thin<M>(values, tile.left, tile.left_stride, tile.right, tile.rank);
    add_thin<M>(values, tile.values, tile.kept, tile.kept_right, tile.kept);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            float* y = tile.y + m * tile.y_stride + v * LANES;
            Floats value = tile.onto ? values[m][v] + load<Floats>(y) : values[m][v];
            memcpy(y, &value, sizeof value);
        }
}

// The last rows go in parts of few sizes: each size is compiled for itself.
static void compute_rows(Tile tile, int64_t rows) {
    if (rows == ROWS) return compute<ROWS>(tile);
    while (rows > 0) {
        const int64_t some = rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
        some == 4 ? compute<4>(tile) : some == 2 ? compute<2>(tile) : compute<1>(tile);
        rows -= some;
        tile.codes += some * tile.codes_stride;
        tile.scale += some;
        tile.sums += some;
        tile.left += some * tile.left_stride;
        tile.values += some * tile.kept;
        tile.y += some * tile.y_stride;
    }
}

// weight: [n][k] with row stride weight_stride, or [k][n] if `by_columns`. columns, left and right may be null.
extern "C" void product_rows(
    const int8_t* codes, int64_t codes_stride, const float* scale, const int32_t* sums, int64_t rows, int64_t depth,
    const int8_t* weight, int64_t weight_stride, int by_columns, int64_t width, const float* columns,
    const float* left, int64_t left_stride, const float* right, int64_t right_stride, int64_t rank,
    const int32_t* chosen, const float* values, int64_t kept, float* y, int64_t y_stride, int onto, int threads) {
    const int64_t quads = (depth + 3) / 4, tiles = (width + WIDTH - 1) / WIDTH;
    int64_t together = std::max<int64_t>(1, PANEL_BYTES / (quads * 4 * WIDTH));  // tiles of a panel
    together = std::min(together, std::max<int64_t>(1, tiles / (4 * threads)));
    const int64_t panels = (tiles + together - 1) / together;
    // Few panels would leave threads idle: then the rows are cut as well, and a panel is packed more than once.
    const int64_t cuts = panels >= 4 * threads ? 1 : std::min<int64_t>(threads, (rows + 63) / 64);
    const int64_t rows_cut = ((rows + cuts - 1) / cuts + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint32_t> packed(together * quads * WIDTH + 16);
        std::vector<float> scales(together * WIDTH), rights(together * rank * WIDTH),
            kept_rights(together * kept * WIDTH);
        float edge[ROWS * WIDTH];
        uint32_t* aligned = (uint32_t*)(((uintptr_t)packed.data() + 63) & ~(uintptr_t)63);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < panels * cuts; ++task) {
            const int64_t first = task / cuts * together, count = std::min(together, tiles - first);
            for (int64_t t = 0; t < count; ++t) {
                const int64_t column = (first + t) * WIDTH, used = std::min<int64_t>(WIDTH, width - column);
                uint32_t* out = aligned + t * quads * WIDTH;
                if (by_columns)
                    pack_columns(weight + column, weight_stride, depth, used, out);
                else
                    pack_rows(weight + column * weight_stride, weight_stride, depth, used, out);
                for (int64_t n = 0; n < WIDTH; ++n) {
                    scales[t * WIDTH + n] = n >= used ? 0.0f : columns ? columns[column + n] : 1.0f;
                    for (int64_t r = 0; r < rank; ++r)
                        rights[(t * rank + r) * WIDTH + n] = n < used ? right[r * right_stride + column + n] : 0.0f;
                    const int8_t* own = by_columns ? weight + column + n : weight + (column + n) * weight_stride;
                    for (int64_t j = 0; j < kept; ++j)
                        kept_rights[(t * kept + j) * WIDTH + n] =
                            n < used ? scales[t * WIDTH + n] * own[by_columns ? chosen[j] * weight_stride : chosen[j]]
                                     : 0.0f;
                }
            }
            const int64_t stop = std::min(rows, (task % cuts + 1) * rows_cut);
            for (int64_t m = task % cuts * rows_cut; m < stop; m += ROWS) {
                const int64_t some = std::min<int64_t>(ROWS, stop - m);
                for (int64_t t = 0; t < count; ++t) {
                    const int64_t column = (first + t) * WIDTH, used = std::min<int64_t>(WIDTH, width - column);
                    float* out = y + m * y_stride + column;
                    const bool whole = used == WIDTH;
                    if (!whole && onto)
                        for (int64_t i = 0; i < some; ++i)
                            memcpy(edge + i * WIDTH, out + i * y_stride, used * sizeof(float));
                    compute_rows(
                        Tile{codes + m * codes_stride, codes_stride, quads, scale + m, sums + m,
                             aligned + t * quads * WIDTH, scales.data() + t * WIDTH, left + m * left_stride,
                             rights.data() + t * rank * WIDTH, left_stride, rank, values + m * kept,
                             kept_rights.data() + t * kept * WIDTH, kept, whole ? out : edge,
                             whole ? y_stride : WIDTH, onto != 0},
                        some);
                    if (!whole)
                        for (int64_t i = 0; i < some; ++i)
                            memcpy(out + i * y_stride, edge + i * WIDTH, used * sizeof(float));
                }
            }
        }
    }
}
