// Random shapes, documents and windows through the attention kernel, in memory of exactly their size: for sanitizers.

#include <cstdlib>
#include <memory>
#include <random>

#include "attention.cpp"

static std::mt19937 draw(0);
static int64_t between(int64_t low, int64_t high) { return low + (int64_t)(draw() % (uint64_t)(high - low + 1)); }

template <typename T>
static std::unique_ptr<T[]> numbers(int64_t count) {
    std::unique_ptr<T[]> made(new T[count]);
    for (int64_t i = 0; i < count; ++i) narrow((float)between(-1000, 1000) / 500, &made[i]);
    return made;
}

template <typename T>
static void once() {
    Numbers of{};
    of.groups = between(1, 3), of.heads = of.groups * between(1, 4);
    of.width = 8 * between(2, 12), of.value_width = 8 * between(2, 12);
    of.rows = between(1, 2), of.tokens = between(1, 250), of.threads = between(1, 2), of.parts = between(1, 3);
    of.window = between(0, 1) ? between(1, 260) : (int64_t)1 << 40;
    std::vector<int64_t> spans;
    for (int64_t row = 0; row < of.rows; ++row)
        for (int64_t first = 0; first < of.tokens;) {
            const int64_t last = std::min(of.tokens, first + between(1, 200));
            spans.insert(spans.end(), {row, first, last});
            first = last;
        }
    of.spans = (int64_t)spans.size() / 3;
    auto place = [&](int64_t heads, int64_t width) { return Place{of.tokens * heads * width, width, heads * width}; };
    of.q = of.dq = place(of.heads, of.width), of.k = of.dk = place(of.groups, of.width);
    of.v = of.dv = place(of.groups, of.value_width), of.y = of.dy = place(of.heads, of.value_width);
    const int64_t all = of.rows * of.tokens;
    auto q = numbers<T>(all * of.heads * of.width), k = numbers<T>(all * of.groups * of.width);
    auto v = numbers<T>(all * of.groups * of.value_width), y = numbers<T>(all * of.heads * of.value_width);
    auto dy = numbers<T>(all * of.heads * of.value_width), dk = numbers<T>(all * of.groups * of.width);
    auto dv = numbers<T>(all * of.groups * of.value_width);
    std::unique_ptr<float[]> sums(new float[all * of.heads]), dq(new float[all * of.heads * of.width]());
    std::unique_ptr<float[]> others(new float[(of.parts - 1) * all * of.heads * of.width]());
    const Attention whole{of, spans.data(), 0.2f};
    attend(whole, q.get(), k.get(), v.get(), y.get(), sums.get());
    attend_backward(Backward<T>{
        whole, q.get(), k.get(), v.get(), y.get(), dy.get(), sums.get(), dq.get(), others.get(), dk.get(), dv.get()});
}

int main(int, char** arguments) {
    for (int i = std::atoi(arguments[1]); i > 0; --i) i % 2 ? once<float>() : once<Bfloat>();
}
