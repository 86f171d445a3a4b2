// A whole pass of a plain decoder (RMSNorm, grouped-query attention with rotary positions, SwiGLU: Llama, Qwen2, Qwen3)
// over the new tokens of some texts, in one call: at these sizes the interpreter between two operations costs as much
// as the weights do. For matrices in blocks (matrix.h) activations are rounded to int8 before the product; all else is
// float32. Tokens of a text stand one after another, and keys and values are written before any token attends, so that
// prompts, single tokens and many texts at once are the same to it.
//
// One parallel region for all layers: a thread takes its share of a step's tiles, heads or rows, then waits for the
// others.

#include <omp.h>

#include <algorithm>
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

// Scratch for so many tokens, from the caller. depth: the most of width, heads · head width and hidden.
struct Room {
    Rows rows;      // of depth
    float* wide;    // [tokens, the most of (heads + 2 · kv heads) · head width and 2 · hidden]
    float* narrow;  // [tokens, the most of heads · head width and width]
    float* scores;  // [threads, WINDOW · heads of a kv head, longest]
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

// What a thread does: its number among so many.
struct Share {
    int64_t thread, threads;

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

static void layer_pass(const Shape& shape, const Layer& layer, const Pass& pass, const Room& room, const Share& share,
                       int64_t widest) {
    const int64_t width = shape.width, head = shape.head_width, tokens = pass.tokens;
    const int64_t group = shape.heads / shape.kv_heads, hidden = shape.hidden;
    const int64_t attended = shape.heads * head, all = attended + 2 * shape.kv_heads * head;
    const int64_t first = share.begin(tokens), last = share.end(tokens);
    const Wants three = wants(layer.query) | wants(layer.key) | wants(layer.value);
    for (int64_t t = first; t < last; ++t) {
        norm_row(pass.x + t * width, layer.attention_norm, shape.epsilon, width, room.narrow + t * widest);
        prepare_row(room.narrow + t * widest, t, width, three, room.rows);
    }
#pragma omp barrier
    multiply_share({&layer.query, &layer.key, &layer.value}, room.rows, tokens, room.wide, all, share);
#pragma omp barrier
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
#pragma omp barrier
    // One token has few heads: each is a task. Of many, a window of tokens with all heads of a key head is one.
    const bool few = tokens < 4 * share.threads;
    const int64_t window = few ? 1 : WINDOW, together = few ? 1 : group, each = shape.heads / together;
    float* scores = room.scores + share.thread * WINDOW * group * shape.longest;
    for (int64_t item = share.thread; item < (tokens + window - 1) / window * each; item += share.threads) {
        const int64_t h = item % each * together, end = std::min((item / each + 1) * window, tokens);
        for (int64_t t = item / each * window, run; t < end; t += run) {
            for (run = 1; t + run < end && pass.slots[t + run] == pass.slots[t];) ++run;
            const int64_t held = (pass.slots[t] * shape.kv_heads + h / group) * shape.capacity;
            const Queries queries{room.wide + t * all + h * head, run, together, all, head, pass.places[t]};
            float* out = room.narrow + t * widest + h * head;
            if (layer.key_scales == nullptr)
                attend(queries, Cached<float>{(float*)layer.keys + held * head, nullptr},
                       Cached<float>{(float*)layer.values + held * head, nullptr}, scores, out, widest);
            else
                attend(queries, Cached<int8_t>{(int8_t*)layer.keys + held * head, layer.key_scales + held},
                       Cached<int8_t>{(int8_t*)layer.values + held * head, layer.value_scales + held}, scores, out,
                       widest);
        }
    }
#pragma omp barrier
    for (int64_t t = first; t < last; ++t)
        prepare_row(room.narrow + t * widest, t, attended, wants(layer.output), room.rows);
#pragma omp barrier
    multiply_share({&layer.output}, room.rows, tokens, room.narrow, widest, share);
#pragma omp barrier
    const Wants two = wants(layer.gate) | wants(layer.up);
    for (int64_t t = first; t < last; ++t) {
        float *x = pass.x + t * width, *y = room.narrow + t * widest;
        for (int64_t i = 0; i < width; ++i) x[i] += y[i];
        norm_row(x, layer.feed_forward_norm, shape.epsilon, width, y);
        prepare_row(y, t, width, two, room.rows);
    }
#pragma omp barrier
    multiply_share({&layer.gate, &layer.up}, room.rows, tokens, room.wide, 2 * hidden, share);
#pragma omp barrier
    for (int64_t t = first; t < last; ++t) {
        float *gate = room.wide + t * 2 * hidden, *up = gate + hidden;
        for (int64_t i = 0; i < hidden; ++i) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
        prepare_row(gate, t, hidden, wants(layer.down), room.rows);
    }
#pragma omp barrier
    multiply_share({&layer.down}, room.rows, tokens, room.narrow, widest, share);
#pragma omp barrier
    for (int64_t t = first; t < last; ++t)
        for (int64_t i = 0; i < width; ++i) pass.x[t * width + i] += room.narrow[t * widest + i];
    // The next layer begins with rows of x that this thread has written.
}

// Adds what every layer adds to x. threads: that take part, at most so many.
extern "C" void decode_layers(const Shape* shape, const Layer* layers, const Pass* pass, const Room* room,
                              int threads) {
    const int64_t widest = std::max(shape->heads * shape->head_width, shape->width);
#pragma omp parallel num_threads(threads)
    {
        const Share share{omp_get_thread_num(), omp_get_num_threads()};
        for (int64_t i = 0; i < shape->layers; ++i) layer_pass(*shape, layers[i], *pass, *room, share, widest);
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
