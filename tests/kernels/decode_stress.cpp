// Random shapes through the kernels of decoding, in blocks of exactly their size: for sanitizers.

#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "decode.cpp"

static std::mt19937 draw(0);
static int64_t between(int64_t low, int64_t high) { return low + (int64_t)(draw() % (uint64_t)(high - low + 1)); }

template <typename T>
using Held = std::unique_ptr<T[]>;

static Held<float> numbers(int64_t count) {
    Held<float> made(new float[count]);
    for (int64_t i = 0; i < count; ++i) made[i] = (float)between(-1000, 1000) / 500;
    return made;
}

template <typename T>
static Held<T> room(int64_t count) {
    return Held<T>(new T[count]);
}

// A matrix with its memory, which is what it needs and no more; halves are small numbers, so that nothing overflows.
struct Made {
    Held<uint8_t> bytes;
    Held<float> bias;
    Matrix matrix;

    Made(int format, int64_t columns, int64_t depth) {
        const int64_t tiles = (columns + COLUMNS - 1) / COLUMNS;
        const int64_t size =
            is_blocks(format) ? tiles * (depth / BLOCK) * block_bytes(format) : columns * depth * float_bytes(format);
        bytes = room<uint8_t>(size);
        for (int64_t i = 0; i < size; ++i) bytes[i] = (uint8_t)between(0, 255);
        for (int64_t at = 0; is_blocks(format) && at < size; at += block_bytes(format))
            for (int64_t i = at + 1; i < at + head_bytes(format); i += 2) bytes[i] = (uint8_t)between(0x10, 0x20);
        for (int64_t i = 0; !is_blocks(format) && i < columns * depth; ++i)
            bytes[(i + 1) * float_bytes(format) - 1] = (uint8_t)between(0x20, 0x38);
        if (between(0, 1)) bias = numbers(columns);
        matrix = {bytes.get(), columns, depth, format, bias.get()};
    }
};

static int any_format(int64_t depth) {
    return (int)(depth % BLOCK ? between(FLOATS, BFLOATS) : between(NIBBLES, BFLOATS));
}

// Room for rows, of this depth.
struct Prepared {
    Held<int8_t> codes;
    Held<float> scales, floats;
    Held<float> totals;
    Rows rows;

    Prepared(int64_t count, int64_t depth)
        : codes(room<int8_t>(count * depth)), scales(room<float>(count * (depth / BLOCK))),
          floats(room<float>(count * depth)), totals(room<float>(count * (depth / BLOCK))) {
        rows = {codes.get(), scales.get(), totals.get(), floats.get()};
    }
};

static void multiply_once(int threads) {
    const int64_t depth = between(0, 1) ? BLOCK * between(1, 6) : between(1, 90), columns = between(1, 70);
    const int64_t count = between(0, 11);
    Made of(any_format(depth), columns, depth);
    Prepared ready(count, depth);
    auto x = numbers(count * depth);
    auto y = room<float>(count * columns);
    multiply_rows(&of.matrix, x.get(), count, &ready.rows, y.get(), threads);
    auto wanted = room<int64_t>(count);
    for (int64_t i = 0; i < count; ++i) wanted[i] = between(0, columns - 1);
    auto out = room<float>(count * depth);
    if (!unpack_columns(&of.matrix, wanted.get(), count, out.get(), threads)) abort();
    const int64_t beyond[2] = {columns, -1};
    for (int64_t one : beyond)
        if (unpack_columns(&of.matrix, &one, 1, out.get(), threads)) abort();
}

static void pass_once(int threads) {
    const int64_t kv_heads = between(1, 3), group = between(1, 4), heads = kv_heads * group;
    const bool blocks = between(0, 1);
    const int64_t head = blocks ? 32 * between(1, 2) : 2 * between(1, 25);
    const int64_t width = blocks ? 32 * between(1, 3) : between(1, 80);
    const int64_t hidden = blocks ? 32 * between(1, 4) : between(1, 90);
    const int64_t layers = between(1, 3), slots = between(1, 4), capacity = between(3, 40);
    const int64_t held_by_one = slots * kv_heads * capacity * head;
    std::vector<Made> made;
    std::vector<Held<float>> vectors;
    std::vector<Layer> all(layers);
    made.reserve(7 * layers);
    const auto matrix = [&](int64_t columns, int64_t depth) {
        made.emplace_back(any_format(depth), columns, depth);
        return made.back().matrix;
    };
    const auto vector = [&](int64_t count) {
        vectors.push_back(numbers(count));
        return vectors.back().get();
    };
    std::vector<Held<int8_t>> bytes;
    const bool normed = between(0, 1), codes = between(0, 1);
    for (Layer& layer : all) {
        layer.attention_norm = vector(width), layer.feed_forward_norm = vector(width);
        layer.query_norm = normed ? vector(head) : nullptr, layer.key_norm = normed ? vector(head) : nullptr;
        layer.query = matrix(heads * head, width), layer.key = matrix(kv_heads * head, width);
        layer.value = matrix(kv_heads * head, width), layer.output = matrix(width, heads * head);
        layer.gate = matrix(hidden, width), layer.up = matrix(hidden, width), layer.down = matrix(width, hidden);
        if (codes) {
            layer.keys = bytes.emplace_back(room<int8_t>(held_by_one)).get();
            layer.values = bytes.emplace_back(room<int8_t>(held_by_one)).get();
            for (int64_t i = 0; i < held_by_one; ++i)
                ((int8_t*)layer.keys)[i] = ((int8_t*)layer.values)[i] = (int8_t)between(-127, 127);
            layer.key_scales = vector(held_by_one / head), layer.value_scales = vector(held_by_one / head);
        } else {
            layer.keys = vector(held_by_one), layer.values = vector(held_by_one);
        }
    }
    std::vector<int64_t> slot, place;
    int64_t longest = 0;
    for (int64_t s = 0; s < slots; ++s) {
        const int64_t held = between(0, capacity - 1), more = between(s == 0, std::min<int64_t>(capacity - held, 20));
        for (int64_t i = 0; i < more; ++i) slot.push_back(s), place.push_back(held + i);
        if (more) longest = std::max(longest, held + more);
    }
    const int64_t tokens = (int64_t)slot.size(), attended = heads * head, keys = kv_heads * head;
    const int64_t narrow = std::max(width, attended), copies = tokens < 4 * threads ? threads : 1;
    auto cosine = numbers(tokens * head / 2), sine = numbers(tokens * head / 2), x = numbers(tokens * width);
    Prepared ready(copies * tokens, narrow), inner(tokens, hidden);
    auto wide = room<float>(tokens * std::max({attended + 2 * keys, 2 * hidden, width}));
    auto small = room<float>(tokens * narrow), scores = room<float>(threads * WINDOW * group * longest);
    auto one = room<float>(threads * width);
    const Shape shape{layers, width, heads, kv_heads, head, hidden, capacity, longest, 1e-5f};
    const Pass pass{tokens, slot.data(), place.data(), cosine.get(), sine.get(), x.get()};
    const Room given{ready.rows, inner.rows, wide.get(), small.get(), scores.get(), one.get()};
    std::vector<int64_t> which(between(1, tokens));
    for (int64_t& one : which) one = between(0, tokens - 1);
    const Matrix top = matrix(between(1, 70), width);
    auto logits = room<float>((int64_t)which.size() * top.columns);
    const Ends ends{vector(width), top, (int64_t)which.size(), which.data(), logits.get()};
    decode_layers(&shape, all.data(), &pass, &given, between(0, 1) ? &ends : nullptr, threads);
}

int main(int, char** arguments) {
    for (int i = 0; i < atoi(arguments[1]); ++i) {
        const int threads = (int)between(1, 3);
        multiply_once(threads);
        pass_once(threads);
    }
}
