// A whole pass of a plain decoder (RMSNorm, grouped-query attention with rotary positions, SwiGLU: Llama, Qwen2, Qwen3)
// over the new tokens of some texts, in one call: at these sizes the interpreter between two operations costs as much
// as the weights do. For matrices in blocks (matrix.h) activations are rounded to int8 before the product; all else is
// float32. Tokens of a text stand one after another, and keys and values are written before any token attends, so that
// prompts, single tokens and many texts at once are the same to it.
//
// One parallel region for all layers and the head: a thread takes its share of a step's tiles, heads or tokens, then
// waits for the others (`Meeting`). Of few tokens every thread makes the rows of a product ready for itself, which takes
// less than waiting.

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "blocks.h"
#include "cached_attention.h"

struct Layer {
    const float *attention_norm, *feed_forward_norm;  // [width]
    const float *query_norm, *key_norm;               // [head width] or none
    Matrix query, key, value, output, gate, up, down;
    void *keys, *values;               // [slots, kv heads, capacity, head width], floats or int8 codes
    float *key_scales, *value_scales;  // [slots, kv heads, capacity] of codes, or none
};

struct Shape {
    int64_t layers, width, heads, kv_heads, head_width, hidden, capacity;
    int64_t longest;  // of the texts, with their new tokens
    float epsilon;
};

// New tokens: the slot and the place of each; cos and sin [tokens, head width / 2]; x [tokens, width], overwritten.
struct Pass {
    int64_t tokens;
    const int64_t *slots, *places;
    const float *cos, *sin;
    float* x;
};

// Scratch for so many tokens, from the caller. rows: of the most of width and heads · head width, for each thread so many
// where there are few tokens. inner: of hidden.
struct Room {
    Rows rows, inner;
    float* wide;    // [tokens, the most of (heads + 2 · kv heads) · head width, 2 · hidden and width]
    float* narrow;  // [tokens, the most of heads · head width and width]
    float* scores;  // [threads, WINDOW · heads of a kv head, longest]
    float* normed;  // [threads, width]
};

static const int64_t WINDOW = 8;  // tokens that are attended together: they read keys once

static const int64_t LANES = 32;

static inline float dot(const float* a, const float* b, int64_t count) {
    float lanes[LANES] = {}, sum = 0.0f;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int64_t j = 0; j < LANES; ++j) lanes[j] += a[i + j] * b[i + j];
    for (; i < count; ++i) sum += a[i] * b[i];
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    return sum + lanes[0];
}

// y may be x.
static inline void norm_row(const float* x, const float* weight, float epsilon, int64_t width, float* y) {
    const float factor = 1.0f / std::sqrt(dot(x, x, width) / (float)width + epsilon);
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * factor * weight[i];
}

static inline void turn(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

// Where the threads of a pass wait for each other, some hundred times a token. OpenMP's own barrier puts them to sleep
// as soon as the process has more threads of OpenMP than processors, as it has where a server decodes beside its main
// thread: a token then takes twice as long. Here a thread looks for some tens of microseconds, then lets others run.
class Meeting {
    static const int64_t LOOKS = 4096;
    alignas(64) std::atomic<int64_t> come{0};
    alignas(64) std::atomic<int64_t> round{0};

   public:
    void wait(int64_t threads) {
        const int64_t now = round.load(std::memory_order_relaxed);
        if (come.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            come.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int64_t look = 0; round.load(std::memory_order_acquire) == now; ++look) {
            if (look >= LOOKS) sched_yield();
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }
};

// What a thread does: its number among so many.
struct Share {
    int64_t thread, threads;
    Meeting* meeting;

    void wait() const { meeting->wait(threads); }

    int64_t begin(int64_t count) const { return count * thread / threads; }
    int64_t end(int64_t count) const { return count * (thread + 1) / threads; }
};

// A thread's share of the products of matrices over the same rows, their columns one after another in y [tokens,
// stride].
static inline void multiply_share(std::initializer_list<const Matrix*> matrices, const Rows& x, int64_t tokens,
                                  float* y, int64_t stride, const Share& share) {
    int64_t all = 0, before = 0;
    for (const Matrix* of : matrices) all += tiles_of(*of);
    for (const Matrix* of : matrices) {
        const int64_t tiles = tiles_of(*of);
        const int64_t first = std::max(share.begin(all) - before, (int64_t)0);
        const int64_t last = std::min(share.end(all) - before, tiles);
        if (first < last) multiply_tiles(*of, first, last, x, tokens, y, stride);
        before += tiles;
        y += of->columns;
    }
}

// One head of one token into its place of the cache.
static inline void keep(const float* x, void* held, float* scales, int64_t place, int64_t width) {
    if (scales == nullptr) {
        memcpy((float*)held + place * width, x, width * sizeof(float));
        return;
    }
    int8_t* codes = (int8_t*)held + place * width;
    float largest = 0.0f;
    for (int64_t i = 0; i < width; ++i) {
        const float size = std::fabs(x[i]);
        largest = size > largest || size != size ? size : largest;
    }
    const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    for (int64_t i = 0; i < width; ++i) codes[i] = inverse > 0.0f ? (int8_t)(int32_t)std::rint(x[i] * inverse) : 0;
    scales[place] = largest / 127.0f;
}

// A thread's share of a product, added to x [tokens, width]; y: room for the product.
static inline void add_share(const Matrix& of, const Rows& rows, int64_t tokens, float* y, float* x, int64_t width,
                             const Share& share) {
    const int64_t tiles = tiles_of(of), first = share.begin(tiles), last = share.end(tiles);
    const int64_t begin = first * COLUMNS, end = std::min(last * COLUMNS, width);
    multiply_tiles(of, first, last, rows, tokens, y, width);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = begin; i < end; ++i) x[t * width + i] += y[t * width + i];
}

// A thread's share of silu(gate) · up, in whole blocks, made ready as `inner`. wide: room for both products.
static inline void gate_share(const Layer& layer, int64_t hidden, const Rows& rows, int64_t tokens, float* wide,
                              const Rows& inner, const Share& share) {
    const int64_t blocks = (hidden + BLOCK - 1) / BLOCK, both = BLOCK / COLUMNS;
    const int64_t first = share.begin(blocks) * both, last = std::min(share.end(blocks) * both, tiles_of(layer.gate));
    const int64_t begin = first * COLUMNS, count = std::min(last * COLUMNS, hidden) - begin;
    if (count <= 0) return;
    multiply_tiles(layer.gate, first, last, rows, tokens, wide, hidden);
    multiply_tiles(layer.up, first, last, rows, tokens, wide + tokens * hidden, hidden);
    const Wants what = wants(layer.down);
    for (int64_t t = 0; t < tokens; ++t) {
        float *gate = wide + t * hidden + begin, *up = gate + tokens * hidden;
        for (int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
        const int64_t block = t * (hidden / BLOCK) + begin / BLOCK;
        if (what.codes)
            round_row(gate, count, inner.codes + t * hidden + begin, inner.scales + block, inner.totals + block);
        if (what.floats) memcpy(inner.floats + t * hidden + begin, gate, count * sizeof(float));
    }
}

static void layer_pass(const Shape& shape, const Layer& layer, const Pass& pass, const Room& room, const Share& share) {
    const int64_t width = shape.width, head = shape.head_width, tokens = pass.tokens, hidden = shape.hidden;
    const int64_t group = shape.heads / shape.kv_heads, attended = shape.heads * head;
    const int64_t all = attended + 2 * shape.kv_heads * head, widest = std::max(attended, width);
    const bool few = tokens < 4 * share.threads;
    const int64_t first = few ? 0 : share.begin(tokens), last = few ? tokens : share.end(tokens);
    const int64_t before = few ? share.thread * tokens : 0, blocks_before = before * (widest / BLOCK);
    const Rows rows{room.rows.codes + before * widest, room.rows.scales + blocks_before,
                    room.rows.totals + blocks_before, room.rows.floats + before * widest};
    float* normed = room.normed + share.thread * width;
    const auto prepare_normed = [&](const float* weight, Wants what) {
        for (int64_t t = first; t < last; ++t) {
            norm_row(pass.x + t * width, weight, shape.epsilon, width, normed);
            prepare_row(normed, t, width, what, rows);
        }
    };
    prepare_normed(layer.attention_norm, wants(layer.query) | wants(layer.key) | wants(layer.value));
    if (!few) share.wait();
    multiply_share({&layer.query, &layer.key, &layer.value}, rows, tokens, room.wide, all, share);
    share.wait();
    // Heads of every token: normed, turned; keys and values go to the cache.
    const int64_t parts = shape.heads + 2 * shape.kv_heads, turned = shape.heads + shape.kv_heads;
    for (int64_t item = share.begin(tokens * parts); item < share.end(tokens * parts); ++item) {
        const int64_t t = item / parts, part = item % parts;
        float* x = room.wide + t * all + part * head;
        if (part < turned) {
            const float* weight = part < shape.heads ? layer.query_norm : layer.key_norm;
            if (weight != nullptr) norm_row(x, weight, shape.epsilon, head, x);
            turn(x, pass.cos + t * (head / 2), pass.sin + t * (head / 2), head / 2);
        }
        if (part >= shape.heads) {
            const int64_t kv = (part - shape.heads) % shape.kv_heads;
            const int64_t place = (pass.slots[t] * shape.kv_heads + kv) * shape.capacity + pass.places[t];
            if (part < turned)
                keep(x, layer.keys, layer.key_scales, place, head);
            else
                keep(x, layer.values, layer.value_scales, place, head);
        }
    }
    share.wait();
    // One token has few heads: each is a task. With more, all heads of a key head are one, of a window of tokens where
    // most follow one another in a text.
    int64_t alike = 0;
    for (int64_t t = 1; t < tokens; ++t) alike += pass.slots[t] == pass.slots[t - 1];
    const int64_t window = !few && 2 * alike >= tokens ? WINDOW : 1, together = few ? 1 : group;
    const int64_t each = shape.heads / together;
    float* scores = room.scores + share.thread * WINDOW * group * shape.longest;
    for (int64_t item = share.thread; item < (tokens + window - 1) / window * each; item += share.threads) {
        const int64_t h = item % each * together, end = std::min((item / each + 1) * window, tokens);
        for (int64_t t = item / each * window, run; t < end; t += run) {
            for (run = 1; t + run < end && pass.slots[t + run] == pass.slots[t];) ++run;
            const int64_t held = (pass.slots[t] * shape.kv_heads + h / group) * shape.capacity;
            const Queries queries{room.wide + t * all + h * head, run, together, all, head, pass.places[t]};
            float* out = room.narrow + t * attended + h * head;
            if (layer.key_scales == nullptr)
                attend(queries, Cached<float>{(float*)layer.keys + held * head, nullptr},
                       Cached<float>{(float*)layer.values + held * head, nullptr}, scores, out, attended);
            else
                attend(queries, Cached<int8_t>{(int8_t*)layer.keys + held * head, layer.key_scales + held},
                       Cached<int8_t>{(int8_t*)layer.values + held * head, layer.value_scales + held}, scores, out,
                       attended);
        }
    }
    share.wait();
    for (int64_t t = first; t < last; ++t)
        prepare_row(room.narrow + t * attended, t, attended, wants(layer.output), rows);
    if (!few) share.wait();
    add_share(layer.output, rows, tokens, room.wide, pass.x, width, share);  // narrow may still be read
    share.wait();
    prepare_normed(layer.feed_forward_norm, wants(layer.gate) | wants(layer.up));
    if (!few) share.wait();
    gate_share(layer, hidden, rows, tokens, room.wide, room.inner, share);
    share.wait();
    add_share(layer.down, room.inner, tokens, room.narrow, pass.x, width, share);
    share.wait();
}

// What follows the layers: logits [count, head columns] of some tokens of the pass.
struct Ends {
    const float* norm;  // [width]
    Matrix head;        // of depth width
    int64_t count;
    const int64_t* which;
    float* logits;
};

static void ends_pass(const Shape& shape, const Pass& pass, const Room& room, const Ends& ends, const Share& share) {
    const int64_t width = shape.width, widest = std::max(shape.heads * shape.head_width, width);
    const bool few = pass.tokens < 4 * share.threads;  // as for the layers: so much room there is
    const int64_t first = few ? 0 : share.begin(ends.count), last = few ? ends.count : share.end(ends.count);
    const int64_t before = few ? share.thread * pass.tokens : 0, blocks_before = before * (widest / BLOCK);
    const Rows rows{room.rows.codes + before * widest, room.rows.scales + blocks_before,
                    room.rows.totals + blocks_before, room.rows.floats + before * widest};
    float* normed = room.normed + share.thread * width;
    for (int64_t i = first; i < last; ++i) {
        norm_row(pass.x + ends.which[i] * width, ends.norm, shape.epsilon, width, normed);
        prepare_row(normed, i, width, wants(ends.head), rows);
    }
    if (!few) share.wait();
    const int64_t tiles = tiles_of(ends.head);
    multiply_tiles(ends.head, share.begin(tiles), share.end(tiles), rows, ends.count, ends.logits, ends.head.columns);
}

// Adds what every layer adds to x; with ends also what follows. threads: that take part, at most so many.
extern "C" void decode_layers(const Shape* shape, const Layer* layers, const Pass* pass, const Room* room,
                              const Ends* ends, int threads) {
    Meeting meeting;
#pragma omp parallel num_threads(threads)
    {
        const Share share{omp_get_thread_num(), omp_get_num_threads(), &meeting};
        for (int64_t i = 0; i < shape->layers; ++i) layer_pass(*shape, layers[i], *pass, *room, share);
        if (ends != nullptr) ends_pass(*shape, *pass, *room, *ends, share);
    }
}

// x [rows, depth], made ready in `room`, times a matrix -> y [rows, columns].
extern "C" void multiply_rows(const Matrix* of, const float* x, int64_t rows, const Rows* room, float* y, int threads) {
    const int64_t depth = of->depth, tiles = tiles_of(*of);
    Rows ready = *room;
    if (!is_blocks(of->format)) ready.floats = const_cast<float*>(x);
#pragma omp parallel num_threads(threads)
    {
        if (is_blocks(of->format)) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; ++row) prepare_row(x + row * depth, row, depth, wants(*of), ready);
        }
        // Tiles that fit into a cache stay there while all rows pass by.
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles; ++tile) multiply_tiles(*of, tile, tile + 1, ready, rows, y, of->columns);
    }
}

// The weights of some columns -> out [count, depth]; false where there is no such column.
extern "C" int unpack_columns(const Matrix* of, const int64_t* numbers, int64_t count, float* out, int threads) {
    for (int64_t i = 0; i < count; ++i)
        if (numbers[i] < 0 || numbers[i] >= of->columns) return 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 16)
    for (int64_t i = 0; i < count; ++i) {
        float* to = out + i * of->depth;
        switch (of->format) {
            case NIBBLES: unpack_column<NIBBLES>(*of, numbers[i], to); break;
            case NIBBLES_OFFSET: unpack_column<NIBBLES_OFFSET>(*of, numbers[i], to); break;
            case BYTES: unpack_column<BYTES>(*of, numbers[i], to); break;
            case BYTES_OFFSET: unpack_column<BYTES_OFFSET>(*of, numbers[i], to); break;
            case FLOATS: unpack_column<FLOATS>(*of, numbers[i], to); break;
            case HALVES: unpack_column<HALVES>(*of, numbers[i], to); break;
            default: unpack_column<BFLOATS>(*of, numbers[i], to);
        }
    }
    return 1;
}
