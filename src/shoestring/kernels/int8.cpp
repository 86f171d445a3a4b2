// Products of int8 rows with an int8 matrix, in the instructions that this processor has for them (int8_lanes.h).
//
//   quantize_rows   x [M, K] float32 -> codes int8 [M, K] in −127 … 127, scale [M] = max|row| / 127, sums [M] of codes;
//                   of kept columns, those with the largest numbers, the codes are 0 and the values stay as they are
//   dither_rows     the same of x ⊙ columns, rounded up or down by a pattern that is even over every few rows and columns
//   product_rows    y[m, n] = scale[m]·column[n]·Σ_k codes[m, k]·weight[k, n]  +  Σ_r left[m, r]·right[r, n]  (+ y[m, n]),
//                   kept columns among the second sum
//
// A panel of packed weights stays in a core's L2 cache while all rows pass by, and every number of y is written once.
// Threads share panels; sums are of integers, so no result depends on how many threads there are or how they are cut.

#include "int8_lanes.h"

#include <vector>

constexpr int64_t PANEL_BYTES = 320 << 10;

// --- rounding ---------------------------------------------------------------------------------------------------

// As integers, so that a NaN is the largest of all and reaches the scale.
static inline uint32_t magnitude(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits & 0x7fffffffu;
}

template <bool SCALED>
static float largest(const float* x, const float* columns, int64_t width) {
    uint32_t bits = 0;
    for (int64_t k = 0; k < width; ++k) bits = std::max(bits, magnitude(SCALED ? x[k] * columns[k] : x[k]));
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline float inverse_scale(float largest) { return largest > 1e-30f ? 127.0f / largest : 0.0f; }

template <bool SCALED>
static void quantize_row(
    const float* x, const float* columns, int64_t width, int8_t* codes, float* scale, int32_t* sum) {
    const float highest = largest<SCALED>(x, columns, width), inverse = inverse_scale(highest);
    int32_t total = 0;
    for (int64_t k = 0; k < width; ++k) {
        float value = SCALED ? x[k] * columns[k] : x[k];
        int32_t code = (int32_t)__builtin_rintf(value * inverse);
        codes[k] = (int8_t)code;
        total += (int8_t)code;
    }
    *scale = highest / 127.0f;
    *sum = total;
}

// The R2 sequence of two dimensions as a threshold for each place (Roberts 2018, "The unreasonable effectiveness of
// quasirandom sequences"). In integers with 16 binary places, so that no compiler rounds otherwise than the twin.
static void dither_row(
    const float* x, const float* columns, int64_t width, uint32_t start, int8_t* codes, float* scale, int32_t* sum) {
    const float highest = largest<true>(x, columns, width), inverse = inverse_scale(highest) * 65536.0f;
    int32_t total = 0;
    for (int64_t k = 0; k < width; ++k) {
        int32_t value = (int32_t)__builtin_rintf(x[k] * columns[k] * inverse);
        value = std::min(std::max(value, -(127 << 16)), 127 << 16);
        int32_t code = (value + (int32_t)((start + (uint32_t)k * 2447445413u) >> 16)) >> 16;
        codes[k] = (int8_t)code;
        total += code;
    }
    *scale = highest / 127.0f;
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
            for (int64_t k = 0; k < count; ++k) highest[k] = std::max(highest[k], magnitude(row[k]));
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

extern "C" void dither_rows(
    const float* x, int64_t x_stride, const float* columns, int64_t rows, int64_t width, int8_t* codes,
    int64_t codes_stride, float* scale, int32_t* sums, uint32_t offset, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t m = 0; m < rows; ++m) {
        int8_t* out = codes + m * codes_stride;
        const uint32_t start = (uint32_t)m * 3242174889u + offset;
        dither_row(x + m * x_stride, columns, width, start, out, scale + m, sums + m);
        memset(out + width, 0, codes_stride - width);
    }
}

// --- the product ------------------------------------------------------------------------------------------------

// What one call multiplies. weight: [n][k] with row stride weight_stride, or [k][n] if by_columns.
struct Product {
    const int8_t* codes;
    int64_t codes_stride;
    const float* scale;
    const int32_t* sums;
    int64_t rows, depth;
    const int8_t* weight;
    int64_t weight_stride;
    bool by_columns;
    int64_t width;
    const float* columns;  // may be null, as left and right
    const float* left;     // [rows, rank]
    int64_t left_stride;
    const float* right;  // [rank, width]
    int64_t right_stride, rank;
    const int32_t* chosen;  // [kept], columns of the rows whose values are kept
    const float* values;    // [rows, kept]
    int64_t kept;
    float* y;
    int64_t y_stride;
    bool onto;  // adds to y
};

// ROWS rows, or fewer, by WIDTH columns.
struct Tile {
    const Product& of;
    const Block& block;
    const Code* codes;
    const Lanes* packed;
    int64_t groups;    // of NEIGHBOURS codes
    int32_t* partial;  // [·, WIDTH] sums over the depth so far
    int64_t partial_stride;
    bool first, last;  // of the depth's parts
    int64_t row;
    const float *columns, *right, *kept_right;  // [WIDTH], [rank, WIDTH], [kept, WIDTH]
    float* y;
    int64_t y_stride;
};

template <int M>
static inline void add_thin(
    Floats (&values)[M][VECTORS], const float* left, int64_t stride, const float* right, int64_t rank) {
    for (int64_t r = 0; r < rank; ++r) {
        Floats row[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) row[v] = load<Floats>(right + r * WIDTH + v * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) values[m][v] += left[m * stride + r] * row[v];
    }
}

// Not inlined, so that the loop over the depth has all registers for itself.
template <int M>
__attribute__((noinline)) static void compute(const Tile& tile) {
    const Product& of = tile.of;
    Ints sums[M][VECTORS];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            sums[m][v] = tile.first ? first_sums(of.sums[tile.row + m])
                                    : load<Ints>(tile.partial + m * tile.partial_stride + v * LANES);
    const Code* codes = tile.codes;
    const Lanes* packed = tile.packed;
    for (int64_t g = 0; g < tile.groups; ++g, codes += NEIGHBOURS, ++packed) {
        Ints weights[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) weights[v] = load<Ints>(packed->column + v * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
            Ints row = Ints{} + load<int32_t>(codes + m * tile.block.stride);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[m][v] = dot(sums[m][v], weights[v], row);
        }
    }
    if (!tile.last) {
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) store(tile.partial + m * tile.partial_stride + v * LANES, sums[m][v]);
        return;
    }
    Floats values[M][VECTORS];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            values[m][v] = __builtin_convertvector(sums[m][v], Floats) * of.scale[tile.row + m] *
                           load<Floats>(tile.columns + v * LANES);
    add_thin<M>(values, of.left + tile.row * of.left_stride, of.left_stride, tile.right, of.rank);
    add_thin<M>(values, of.values + tile.row * of.kept, of.kept, tile.kept_right, of.kept);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            float* y = tile.y + m * tile.y_stride + v * LANES;
            store(y, of.onto ? values[m][v] + load<Floats>(y) : values[m][v]);
        }
}

// The last rows go in parts of few sizes: each size is compiled for itself.
static void compute_rows(Tile& tile, int64_t rows) {
    if (rows == ROWS) return compute<ROWS>(tile);
    while (rows > 0) {
        const int64_t some = rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
        some == 4 ? compute<4>(tile) : some == 2 ? compute<2>(tile) : compute<1>(tile);
        rows -= some;
        tile.row += some;
        tile.codes += some * tile.block.stride;
        tile.partial += some * tile.partial_stride;
        tile.y += some * tile.y_stride;
    }
}

// The columns of some tiles, and the sums over their depth so far: a thread's own room, kept from call to call, since
// new memory of this size costs as much as a small product.
struct Panel {
    int64_t tile, tiles;    // the first, and how many
    int64_t begin, depth;   // of the codes
    int64_t room;           // for groups of each tile
    std::vector<Lanes> packed;
    std::vector<float> columns, right, kept_right;
    std::vector<int32_t> partial;

    void pack(const Product& of) {
        grow(packed, tiles * room);
        grow(columns, tiles * WIDTH);
        grow(right, tiles * of.rank * WIDTH);
        grow(kept_right, tiles * of.kept * WIDTH);
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t column = (tile + t) * WIDTH, used = std::min<int64_t>(WIDTH, of.width - column);
            if (of.by_columns)
                pack_columns(
                    of.weight + begin * of.weight_stride + column, of.weight_stride, depth, used, &packed[t * room]);
            else
                pack_rows(
                    of.weight + column * of.weight_stride + begin, of.weight_stride, depth, used, &packed[t * room]);
            for (int64_t n = 0; n < WIDTH; ++n) {
                const float factor = n >= used ? 0.0f : of.columns ? of.columns[column + n] : 1.0f;
                columns[t * WIDTH + n] = factor;
                for (int64_t r = 0; r < of.rank; ++r)
                    right[(t * of.rank + r) * WIDTH + n] = n < used ? of.right[r * of.right_stride + column + n] : 0.0f;
                for (int64_t j = 0; j < of.kept; ++j) {
                    const int64_t k = of.chosen[j], c = column + n;
                    const int64_t at = of.by_columns ? k * of.weight_stride + c : c * of.weight_stride + k;
                    kept_right[(t * of.kept + j) * WIDTH + n] = n < used ? factor * of.weight[at] : 0.0f;
                }
            }
        }
    }

    // Rows start … stop, which begin == 0 to the whole depth pass by in turn.
    void multiply(const Product& of, int64_t start, int64_t stop) {
        const bool first = begin == 0, last = begin + depth >= of.depth;
        if (!first || !last) grow(partial, (stop - start) * tiles * WIDTH);
        Block block;
        alignas(64) float edge[ROWS * WIDTH];
        for (int64_t m = start; m < stop; m += ROWS) {
            const int64_t some = std::min<int64_t>(ROWS, stop - m);
            block.take(of.codes + m * of.codes_stride + begin, of.codes_stride, some, depth);
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t column = (tile + t) * WIDTH, used = std::min<int64_t>(WIDTH, of.width - column);
                float* y = of.y + m * of.y_stride + column;
                const bool whole = used == WIDTH;
                if (!whole && of.onto)
                    for (int64_t i = 0; i < some; ++i) memcpy(edge + i * WIDTH, y + i * of.y_stride, used * 4);
                Tile one{of, block, block.codes, &packed[t * room], (depth + NEIGHBOURS - 1) / NEIGHBOURS,
                         partial.data() + ((m - start) * tiles + t) * WIDTH, tiles * WIDTH, first, last, m,
                         &columns[t * WIDTH], right.data() + t * of.rank * WIDTH,
                         kept_right.data() + t * of.kept * WIDTH, whole ? y : edge, whole ? of.y_stride : WIDTH};
                compute_rows(one, some);
                if (!whole && last)
                    for (int64_t i = 0; i < some; ++i) memcpy(y + i * of.y_stride, edge + i * WIDTH, used * 4);
            }
        }
    }

  private:
    template <typename T>
    static void grow(std::vector<T>& room, int64_t size) {
        if ((int64_t)room.size() < size) room.resize(size);
    }
};

static void multiply(const Product& of, int threads) {
    const int64_t parts = std::max<int64_t>(1, (of.depth + DEPTH - 1) / DEPTH);
    const int64_t part = ((of.depth + parts - 1) / parts + 15) / 16 * 16;  // codes
    const int64_t room = (part + NEIGHBOURS - 1) / NEIGHBOURS, tiles = (of.width + WIDTH - 1) / WIDTH;
    int64_t together = std::max<int64_t>(1, PANEL_BYTES / (room * (int64_t)sizeof(Lanes)));  // tiles of a panel
    together = std::min(together, std::max<int64_t>(1, tiles / (4 * threads)));
    const int64_t panels = (tiles + together - 1) / together;
    // Few panels would leave threads idle: then the rows are cut as well, and a panel is packed more than once.
    const int64_t cuts = panels >= 4 * threads ? 1 : std::min<int64_t>(threads, (of.rows + 63) / 64);
    const int64_t cut = ((of.rows + cuts - 1) / cuts + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < panels * cuts; ++task) {
        static thread_local Panel panel;
        panel.tile = task / cuts * together, panel.tiles = std::min(together, tiles - panel.tile);
        panel.room = room;
        const int64_t start = task % cuts * cut, stop = std::min(of.rows, start + cut);
        for (int64_t begin = 0; begin < of.depth; begin += part) {
            panel.begin = begin, panel.depth = std::min(part, of.depth - begin);
            panel.pack(of);
            panel.multiply(of, start, stop);
        }
    }
}

extern "C" void product_rows(
    const int8_t* codes, int64_t codes_stride, const float* scale, const int32_t* sums, int64_t rows, int64_t depth,
    const int8_t* weight, int64_t weight_stride, int by_columns, int64_t width, const float* columns,
    const float* left, int64_t left_stride, const float* right, int64_t right_stride, int64_t rank,
    const int32_t* chosen, const float* values, int64_t kept, float* y, int64_t y_stride, int onto, int threads) {
    multiply(
        Product{codes, codes_stride, scale, sums, rows, depth, weight, weight_stride, by_columns != 0, width, columns,
                left, left_stride, right, right_stride, rank, chosen, values, kept, y, y_stride, onto != 0},
        threads);
}
