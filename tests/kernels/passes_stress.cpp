// Random shapes through the kernels that pass over memory once, in blocks of exactly their size: for sanitizers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "bfloat.h"
#include "exponential.h"
namespace normed {
#include "norm.cpp"
}
namespace gated {
#include "swiglu.cpp"
}
#include "softmax.cpp"
namespace turned {
#include "rope.cpp"
}

static std::mt19937 draw(0);
static int64_t between(int64_t low, int64_t high) { return low + (int64_t)(draw() % (uint64_t)(high - low + 1)); }

static std::unique_ptr<float[]> numbers(int64_t count) {
    std::unique_ptr<float[]> made(new float[count]);
    for (int64_t i = 0; i < count; ++i) made[i] = (float)between(-1000, 1000) / 50;
    return made;
}

// [B, H, T, C], heads before or after tokens, with a gap after each head.
static int64_t lay_out(const int64_t* sizes, int64_t* strides) {
    const int inner = (int)between(1, 2), outer = 3 - inner;
    strides[3] = 1;
    strides[inner] = sizes[3] + between(0, 9);
    strides[outer] = sizes[inner] * strides[inner];
    strides[0] = sizes[outer] * strides[outer];
    int64_t last = 0;
    for (int i = 0; i < 4; ++i) last += (sizes[i] - 1) * strides[i];
    return sizes[0] * sizes[1] * sizes[2] ? last + 1 : 0;
}

static void turn_once(int threads) {
    const int64_t sizes[4] = {between(0, 3), between(0, 9), between(0, 40), 2 * between(1, 50)};
    int64_t strides[4], out_strides[4];
    const int64_t tables = between(0, 1) ? 1 : sizes[0], table = sizes[2] * sizes[3] / 2;
    const int bfloat = (int)between(0, 1), numbers_in = bfloat ? 2 : 1;
    auto x = numbers((lay_out(sizes, strides) + numbers_in - 1) / numbers_in);
    auto out = numbers((lay_out(sizes, out_strides) + numbers_in - 1) / numbers_in);
    auto cosine = numbers(tables * table), sine = numbers(tables * table);
    turned::turn(
        x.get(), strides, cosine.get(), sine.get(), tables == sizes[0] ? table : 0, 1, out.get(), out_strides, sizes,
        bfloat, threads);
}

static void once() {
    const int threads = (int)between(1, 2);
    int64_t rows = between(0, 40), width = between(1, 300), parts = between(1, 16), count = rows * width;
    auto x = numbers(count), weight = numbers(width), y = numbers(count), scale = numbers(rows);
    auto dy = numbers(count), dx = numbers(count), dw = numbers(parts * width);
    normed::rms_norm(x.get(), weight.get(), 1e-5f, y.get(), scale.get(), rows, width, threads);
    normed::rms_norm_backward(
        dy.get(), x.get(), weight.get(), scale.get(), dx.get(), between(0, 1) ? dw.get() : nullptr, parts, rows, width,
        threads);
    const int halves = (int)between(0, 1), many = halves ? 2 : 1;
    gated::silu_product(x.get(), dy.get(), y.get(), halves, many * count, threads);
    gated::silu_product_backward(dx.get(), x.get(), dy.get(), y.get(), dx.get(), halves, many * count, threads);
    const int64_t stride = width + between(0, 40), first = between(0, 200);
    const int bfloat = (int)between(0, 1);  // half as many floats, rounded up
    const int64_t all = rows ? (rows - 1) * stride + width : 0;
    auto logits = numbers(bfloat ? (all + 1) / 2 : all), sums = numbers(rows), labelled = numbers(rows);
    std::unique_ptr<int64_t[]> labels(new int64_t[rows]);
    for (int64_t i = 0; i < rows; ++i) labels[i] = between(0, 600);
    softmax_rows(
        logits.get(), bfloat, rows, width, stride, labels.get(), first, sums.get(), labelled.get(),
        (int)between(0, 1), (int)between(0, 1), threads);
    turn_once(threads);
}

int main(int, char** arguments) {
    for (int i = std::atoi(arguments[1]); i > 0; --i) once();
}
