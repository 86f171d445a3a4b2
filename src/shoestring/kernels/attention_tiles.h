// Small products of floats that stay in registers, and what attention.cpp needs around them: vectors of the
// processor's width, 2^x, and blocks of rows as such products want them.
//
// A tile is ROWS × PANEL sums, c[m][n] = Σ_d a[m][d] · b[d][n]. b's rows are read as vectors, a's numbers one by one
// and spread over a vector: so many sums that each vector read serves several multiplications.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

// SHOESTRING_WIDE and SHOESTRING_NARROW, as macros, force a width: for tests.
#if defined(SHOESTRING_NARROW)
constexpr int LANES = 4, VECTORS = 4, ROWS = 6;
#elif defined(__AVX512F__) || defined(SHOESTRING_WIDE)
constexpr int LANES = 16, VECTORS = 2, ROWS = 12;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, VECTORS = 2, ROWS = 6;
#elif defined(__ARM_NEON)
constexpr int LANES = 4, VECTORS = 4, ROWS = 6;
#else
constexpr int LANES = 4, VECTORS = 2, ROWS = 6;
#endif
constexpr int PANEL = LANES * VECTORS;  // columns of a tile
constexpr int KEYS = 96;                // of a block: whole panels, and whole tiles' rows
static_assert(KEYS % PANEL == 0 && KEYS % ROWS == 0, "blocks are made of whole tiles");

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));
typedef uint16_t FourHalves __attribute__((vector_size(8)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
struct Bfloat {
    uint16_t bits;
};

// 2^x on [-½, ½] as 1 + x · p(x): least relative error, 2e-9 before rounding.
constexpr float EXP2_1 = 0.6931471824645996f, EXP2_2 = 0.24022647738456726f, EXP2_3 = 0.055503323674201965f;
constexpr float EXP2_4 = 0.00961843691766262f, EXP2_5 = 0.0013398875016719103f, EXP2_6 = 0.00015353360504377633f;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

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

static inline int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// 2^x, within 2 units in the last place; 0 below 2^-126.5.
static inline Floats exp2_of(Floats x) {
    const float shifter = 12582912.0f;  // 1.5 · 2^23: what is added to it is rounded to a whole number
    x = x < -127.0f ? Floats{} - 127.0f : x;
    x = x > 127.0f ? Floats{} + 127.0f : x;
    Floats shifted = x + shifter;
    Floats r = x - (shifted - shifter);
    Floats p = r * EXP2_6 + EXP2_5;
    p = p * r + EXP2_4;
    p = p * r + EXP2_3;
    p = p * r + EXP2_2;
    p = p * r + EXP2_1;
    p = p * r + 1.0f;
    return p * (Floats)(((Ints)shifted - 0x4b400000 + 127) << 23);
}

static inline float largest(Floats x) {
    float lanes[LANES];
    store(lanes, x);
    Four four = load<Four>(lanes);
    for (int i = 4; i < LANES; i += 4) {
        Four other = load<Four>(lanes + i);
        four = four > other ? four : other;
    }
    Four other = __builtin_shuffle(four, FourInts{2, 3, 0, 1});
    four = four > other ? four : other;
    return std::max(four[0], four[1]);
}

static inline float total(Floats x) {
    float lanes[LANES], sum = 0;
    store(lanes, x);
    for (int i = 0; i < LANES; ++i) sum += lanes[i];
    return sum;
}

// --- products ---------------------------------------------------------------------------------------------------

enum class Onto { NOTHING, SUMS, SCALED };  // a tile replaces c, is added to it, or to its rows times `factor`

// ACROSS: a[d][m], so that the product is of a's transpose. Not inlined: the loop needs all registers.
template <int V, bool ACROSS, Onto ONTO>
__attribute__((noinline)) static void tile(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c, int64_t c_stride,
    const float* factor) {
    Floats sums[ROWS][V];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            if (ONTO == Onto::NOTHING) sums[m][v] = Floats{};
            if (ONTO == Onto::SUMS) sums[m][v] = load<Floats>(c + m * c_stride + v * LANES);
            if (ONTO == Onto::SCALED) sums[m][v] = load<Floats>(c + m * c_stride + v * LANES) * factor[m];
        }
    const int64_t a_row = ACROSS ? 1 : a_stride, a_step = ACROSS ? a_stride : 1;
    for (int64_t d = 0; d < depth; ++d, a += a_step, b += b_stride) {
        Floats row[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) row[v] = load<Floats>(b + v * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Floats one = a[m * a_row] - Floats{};  // spread: what is taken off changes nothing, not even a sign
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[m][v] += one * row[v];
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(c + m * c_stride + v * LANES, sums[m][v]);
}

// The same for all columns of b, a multiple of LANES.
template <bool ACROSS, Onto ONTO>
static inline void product(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c, int64_t c_stride,
    int64_t columns, const float* factor = nullptr) {
    int64_t n = 0;
    for (; n + PANEL <= columns; n += PANEL)
        tile<VECTORS, ACROSS, ONTO>(a, a_stride, b + n, b_stride, depth, c + n, c_stride, factor);
    for (; n < columns; n += LANES)
        tile<1, ACROSS, ONTO>(a, a_stride, b + n, b_stride, depth, c + n, c_stride, factor);
}

// --- rows as products want them ---------------------------------------------------------------------------------

static inline float widen(float x) { return x; }
static inline float widen(Bfloat x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    return load<float>(&bits);
}

static inline Four four_of(const float* from) { return load<Four>(from); }
static inline Four four_of(const Bfloat* from) {
    return (Four)(__builtin_convertvector(load<FourHalves>(from), FourInts) << 16);
}

static inline Floats floats_of(const float* from) { return load<Floats>(from); }
static inline Floats floats_of(const Bfloat* from) {
    return (Floats)(__builtin_convertvector(load<Halves>(from), Ints) << 16);
}

static inline void narrow(float x, float* to) { *to = x; }
static inline void narrow(float x, Bfloat* to) {  // to the nearest, ties to even
    uint32_t bits = load<uint32_t>(&x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = (uint16_t)(x == x ? rounded : 0x7fc0);
}

// [rows, width] -> [up to `room` rows, stride], zeros around them.
template <typename T>
static void take_rows(
    const T* from, int64_t from_stride, int64_t rows, int64_t width, float factor, float* to, int64_t stride,
    int64_t room) {
    for (int64_t r = 0; r < room; ++r, to += stride) {
        if (r >= rows) {
            std::fill(to, to + stride, 0.0f);
            continue;
        }
        const T* row = from + r * from_stride;
        for (int64_t c = 0; c < width; ++c) to[c] = widen(row[c]) * factor;
        std::fill(to + width, to + stride, 0.0f);
    }
}

// [rows, width] -> panels [width, PANEL] of so many rows each, the last one filled up with zeros.
template <typename T>
static void take_panels(const T* from, int64_t from_stride, int64_t rows, int64_t width, float* to) {
    for (int64_t n = 0; n < up_to(rows, PANEL); n += 4) {
        float* column = to + n / PANEL * PANEL * width + n % PANEL;
        for (int64_t c = 0; c < width; c += 4) {
            Four a[4], b[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) a[i] = n + i < rows ? four_of(from + (n + i) * from_stride + c) : Four{};
            b[0] = __builtin_shuffle(a[0], a[2], FourInts{0, 4, 1, 5});
            b[1] = __builtin_shuffle(a[0], a[2], FourInts{2, 6, 3, 7});
            b[2] = __builtin_shuffle(a[1], a[3], FourInts{0, 4, 1, 5});
            b[3] = __builtin_shuffle(a[1], a[3], FourInts{2, 6, 3, 7});
            store(column + c * PANEL, __builtin_shuffle(b[0], b[2], FourInts{0, 4, 1, 5}));
            store(column + (c + 1) * PANEL, __builtin_shuffle(b[0], b[2], FourInts{2, 6, 3, 7}));
            store(column + (c + 2) * PANEL, __builtin_shuffle(b[1], b[3], FourInts{0, 4, 1, 5}));
            store(column + (c + 3) * PANEL, __builtin_shuffle(b[1], b[3], FourInts{2, 6, 3, 7}));
        }
    }
}

// A thread's own memory, kept from call to call.
struct Buffer {
    struct alignas(64) Line {
        float numbers[16];
    };
    std::vector<Line> lines;

    float* of(int64_t count) {
        if ((int64_t)lines.size() * 16 < count) lines.resize((count + 15) / 16);
        return lines.data()->numbers;
    }
};
