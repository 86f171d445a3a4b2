// Causal softmax attention and its gradients, block by block (FlashAttention, arXiv 2205.14135 and 2307.08691): scores
// live in a core's first caches only, and blocks that causality, documents or the window hide are never computed.
//
// Rows hold documents, each causal within itself; a token sees itself and the `window` − 1 tokens before it. The heads
// of a group share keys and values. float32 or bfloat16 in memory, float32 in all sums. Scores are kept in powers of
// two: exp(x) = 2^(x · log2 e).
//
// Forward: a task is a block of queries of all heads of a group, which passes over its keys with a running softmax.
// Backward: a task is one document (or every `parts`-th block of its keys) of one group; for each block of keys it
// passes over the queries that see it. dK and dV of the block stay in cache, dQ is added up in memory.

#include <cmath>

#include "attention_tiles.h"

struct Place {  // of x[row][head][token][·], in numbers; the last is contiguous
    int64_t row, head, token;
};

struct Numbers {
    int64_t heads, groups;        // query heads; key and value heads
    int64_t width, value_width;   // of a head: multiples of 8
    int64_t window, spans;        // documents: how many
    int64_t parts, rows, tokens;  // of a document's keys, going backward; all rows, and the tokens of each
    int64_t threads;
    Place q, k, v, y, dy, dq, dk, dv;
};

struct Attention : Numbers {
    const int64_t* span;  // [spans, 3]: row, first token, token after the last
    float scale;
};

namespace {

constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;
constexpr int64_t STRIP = 4 * ROWS;  // queries whose scores are held at once, forward
constexpr int64_t BACK_STRIP = 48;   // and backward
static_assert(BACK_STRIP % ROWS == 0, "whole tiles");

struct Range {
    int64_t first, last;  // the one after it
    bool empty() const { return first >= last; }
};

// What `queries` tokens from `token` on see of `count` keys from `key` on.
static inline Range seen(int64_t token, int64_t queries, int64_t key, int64_t count, int64_t window) {
    return {std::max<int64_t>(0, token - window + 1 - key), std::min(count, token + queries - key)};
}

static inline Range panels_of(Range keys) { return {keys.first / PANEL, (keys.last + PANEL - 1) / PANEL}; }

// Scores outside `keys`, within whole panels, become minus infinity: all of them where a row sees nothing there.
static inline void hide(float* scores, Range keys, Range panels) {
    const int64_t first = panels.first * PANEL, last = panels.last * PANEL;
    for (int64_t n = first; n < std::min(keys.first, last); ++n) scores[n] = NOTHING;
    for (int64_t n = std::max(keys.last, first); n < last; ++n) scores[n] = NOTHING;
}

struct Running {  // softmax of a row, over blocks of keys
    float top;
    Floats sum;

    // scores -> their share; what came before counts `factor` as much.
    float take(float* scores, Range panels) {
        const int64_t first = panels.first * PANEL, last = panels.last * PANEL;
        Floats most = load<Floats>(scores + first);
        for (int64_t n = first + LANES; n < last; n += LANES) {
            Floats x = load<Floats>(scores + n);
            most = x > most ? x : most;
        }
        const float before = top;
        top = std::max(top, largest(most));
        const float base = top == NOTHING ? 0.0f : top;
        const float factor = exp2_of(Floats{} + (before - base))[0];
        Floats added = {};
        for (int64_t n = first; n < last; n += LANES) {
            Floats share = exp2_of(load<Floats>(scores + n) - base);
            store(scores + n, share);
            added += share;
        }
        sum = sum * factor + added;
        return factor;
    }
};

struct Room {
    Buffer keys, values, key_rows, queries, gradients, sums, value_sums, scores, shares, statistics;
    std::vector<Running> running;
};

struct Queries {
    int64_t span, group, first, last;
};

template <typename T>
void attend_block(const Attention& of, Queries block, const T* q, const T* k, const T* v, T* y, float* log_sums) {
    static thread_local Room room;
    const int64_t row = of.span[3 * block.span], start = of.span[3 * block.span + 1];
    const int64_t each = of.heads / of.groups, head = block.group * each;
    const int64_t count = block.last - block.first, held = up_to(count, ROWS);
    const int64_t columns = up_to(of.value_width, LANES);
    q += row * of.q.row, k += row * of.k.row + block.group * of.k.head, v += row * of.v.row + block.group * of.v.head;
    y += row * of.y.row;
    float* queries = room.queries.of(each * held * of.width);
    float* sums = room.sums.of(each * held * columns);
    float* panels = room.keys.of(KEYS * of.width);
    float* values = room.values.of(KEYS * columns);
    float* scores = room.scores.of(STRIP * KEYS);
    room.running.assign(each * held, Running{NOTHING, Floats{}});
    std::fill(sums, sums + each * held * columns, 0.0f);
    for (int64_t h = 0; h < each; ++h)
        take_rows(
            q + (head + h) * of.q.head + block.first * of.q.token, of.q.token, count, of.width, of.scale * LOG2_E,
            queries + h * held * of.width, of.width, held);

    for (int64_t key = std::max(start, block.first - of.window + 1); key < block.last; key += KEYS) {
        const int64_t some = std::min<int64_t>(KEYS, block.last - key);
        take_panels(k + key * of.k.token, of.k.token, some, of.width, panels);
        take_rows(v + key * of.v.token, of.v.token, some, of.value_width, 1.0f, values, columns, some);
        for (int64_t strip = 0; strip < each * held; strip += STRIP) {
            // Tiles of a strip may be of two heads.
            const int64_t tiles = std::min(STRIP, each * held - strip) / ROWS;
            Range keys[STRIP / ROWS], parts[STRIP / ROWS];
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t token = block.first + (strip + t * ROWS) % held;
                keys[t] = seen(token, std::min<int64_t>(ROWS, block.last - token), key, some, of.window);
                parts[t] = keys[t].empty() ? Range{0, 0} : panels_of(keys[t]);
            }
            for (int64_t p = 0; p < up_to(some, PANEL) / PANEL; ++p)
                for (int64_t t = 0; t < tiles; ++t)
                    if (parts[t].first <= p && p < parts[t].last)
                        tile<VECTORS, false, Onto::NOTHING>(
                            queries + (strip + t * ROWS) * of.width, of.width, panels + p * PANEL * of.width, PANEL,
                            of.width, scores + t * ROWS * KEYS + p * PANEL, KEYS, nullptr);
            for (int64_t t = 0; t < tiles; ++t) {
                if (keys[t].empty()) continue;
                float factors[ROWS];
                for (int64_t m = 0; m < ROWS; ++m) {
                    const int64_t token = std::min(block.first + (strip + t * ROWS) % held + m, block.last - 1);
                    hide(scores + (t * ROWS + m) * KEYS, seen(token, 1, key, some, of.window), parts[t]);
                    factors[m] = room.running[strip + t * ROWS + m].take(scores + (t * ROWS + m) * KEYS, parts[t]);
                }
                product<false, Onto::SCALED>(
                    scores + t * ROWS * KEYS + keys[t].first, KEYS, values + keys[t].first * columns, columns,
                    keys[t].last - keys[t].first, sums + (strip + t * ROWS) * columns, columns, columns, factors);
            }
        }
    }
    for (int64_t h = 0; h < each; ++h)
        for (int64_t r = 0; r < count; ++r) {
            const Running& one = room.running[h * held + r];
            const float sum = total(one.sum), inverse = 1.0f / sum;
            const float* from = sums + (h * held + r) * columns;
            T* to = y + (head + h) * of.y.head + (block.first + r) * of.y.token;
            for (int64_t c = 0; c < of.value_width; ++c) narrow(from[c] * inverse, to + c);
            log_sums[(row * of.heads + head + h) * of.tokens + block.first + r] = one.top * LN_2 + std::log(sum);
        }
}

template <typename T>
void attend(const Attention& of, const T* q, const T* k, const T* v, T* y, float* log_sums) {
    const int64_t each = of.heads / of.groups, size = up_to(std::max<int64_t>(240 / each, 1), STRIP);
    std::vector<Queries> blocks;
    for (int64_t span = 0; span < of.spans; ++span)
        for (int64_t group = 0; group < of.groups; ++group)
            for (int64_t first = of.span[3 * span + 1], last = of.span[3 * span + 2]; first < last; first += size)
                blocks.push_back({span, group, first, std::min(first + size, last)});
    // From the last to the first: those at a document's end have the most keys.
#pragma omp parallel for num_threads(of.threads) schedule(dynamic, 1)
    for (int64_t i = (int64_t)blocks.size() - 1; i >= 0; --i) attend_block(of, blocks[i], q, k, v, y, log_sums);
}

template <typename T>
struct Backward {
    const Attention& of;
    const T *q, *k, *v, *y, *dy;
    const float* log_sums;
    float *dq, *other_dq;  // zeros: of the first part, and of each other one, [rows, tokens, heads, width] all
    T *dk, *dv;

    void run(int64_t span, int64_t group, int64_t part) const;
};

template <typename T>
void Backward<T>::run(int64_t span, int64_t group, int64_t part) const {
    static thread_local Room room;
    const int64_t row = of.span[3 * span], start = of.span[3 * span + 1], end = of.span[3 * span + 2];
    const int64_t each = of.heads / of.groups, head = group * each, length = end - start;
    const int64_t wide = up_to(of.width, LANES), columns = up_to(of.value_width, LANES);
    const T *q = this->q + row * of.q.row, *dy = this->dy + row * of.dy.row, *y = this->y + row * of.y.row;
    const T* k = this->k + row * of.k.row + group * of.k.head;
    const T* v = this->v + row * of.v.row + group * of.v.head;
    const int64_t size = of.rows * of.tokens * of.heads * of.width;
    float* dq = (part == 0 ? this->dq : other_dq + (part - 1) * size) + row * of.dq.row;
    float* panels = room.keys.of(KEYS * of.width);
    float* value_panels = room.values.of(KEYS * of.value_width);
    float* key_rows = room.key_rows.of(KEYS * wide);
    float* queries = room.queries.of(BACK_STRIP * wide);
    float* gradients = room.gradients.of(BACK_STRIP * columns);
    float* key_sums = room.sums.of(KEYS * wide);
    float* value_sums = room.value_sums.of(KEYS * columns);
    float* scores = room.scores.of(BACK_STRIP * KEYS);
    float* shares = room.shares.of(BACK_STRIP * KEYS);
    float* tops = room.statistics.of(2 * each * length);  // log-sums in powers of two
    float* meant = tops + each * length;                  // Σ_c dy · y, what the softmax takes off
    for (int64_t h = 0; h < each; ++h)
        for (int64_t r = 0; r < length; ++r) {
            const T* a = dy + (head + h) * of.dy.head + (start + r) * of.dy.token;
            const T* b = y + (head + h) * of.y.head + (start + r) * of.y.token;
            Floats sum = {};
            int64_t c = 0;
            for (; c + LANES <= of.value_width; c += LANES) sum += floats_of(a + c) * floats_of(b + c);
            float rest = 0;
            for (; c < of.value_width; ++c) rest += widen(a[c]) * widen(b[c]);
            meant[h * length + r] = total(sum) + rest;
            tops[h * length + r] = log_sums[(row * of.heads + head + h) * of.tokens + start + r] * LOG2_E;
        }

    for (int64_t key = start + part * KEYS; key < end; key += of.parts * KEYS) {
        const int64_t some = std::min<int64_t>(KEYS, end - key), all_panels = up_to(some, PANEL) / PANEL;
        take_panels(k + key * of.k.token, of.k.token, some, of.width, panels);
        take_panels(v + key * of.v.token, of.v.token, some, of.value_width, value_panels);
        take_rows(k + key * of.k.token, of.k.token, some, of.width, of.scale, key_rows, wide, some);
        std::fill(key_sums, key_sums + KEYS * wide, 0.0f);
        std::fill(value_sums, value_sums + KEYS * columns, 0.0f);
        const int64_t last = std::min(end, key + some - 1 + of.window);
        for (int64_t h = 0; h < each; ++h)
            for (int64_t token = key; token < last; token += BACK_STRIP) {
                const int64_t count = std::min(BACK_STRIP, last - token), held = up_to(count, ROWS);
                take_rows(
                    q + (head + h) * of.q.head + token * of.q.token, of.q.token, count, of.width, of.scale * LOG2_E,
                    queries, wide, held);
                take_rows(
                    dy + (head + h) * of.dy.head + token * of.dy.token, of.dy.token, count, of.value_width, 1.0f,
                    gradients, columns, held);
                Range keys[BACK_STRIP / ROWS], parts[BACK_STRIP / ROWS];
                const int64_t tiles = held / ROWS;
                for (int64_t t = 0; t < tiles; ++t) {
                    const int64_t first = token + t * ROWS;
                    keys[t] = seen(first, std::min<int64_t>(ROWS, last - first), key, some, of.window);
                    parts[t] = keys[t].empty() ? Range{0, 0} : panels_of(keys[t]);
                }
                for (int64_t p = 0; p < all_panels; ++p)
                    for (int64_t t = 0; t < tiles; ++t)
                        if (parts[t].first <= p && p < parts[t].last) {
                            const int64_t at = t * ROWS * KEYS + p * PANEL;
                            tile<VECTORS, false, Onto::NOTHING>(
                                queries + t * ROWS * wide, wide, panels + p * PANEL * of.width, PANEL, of.width,
                                shares + at, KEYS, nullptr);
                            tile<VECTORS, false, Onto::NOTHING>(
                                gradients + t * ROWS * columns, columns, value_panels + p * PANEL * of.value_width,
                                PANEL, of.value_width, scores + at, KEYS, nullptr);
                        }
                // Probabilities into `shares`, gradients of the scores into `scores`.
                for (int64_t m = 0; m < held; ++m) {
                    float *share = shares + m * KEYS, *score = scores + m * KEYS;
                    const Range within = parts[m / ROWS];
                    const int64_t from = within.first * PANEL, to = within.last * PANEL;
                    const bool there = m < count;
                    const float top = there ? tops[h * length + token - start + m] : 0.0f;
                    const float taken = there ? meant[h * length + token - start + m] : 0.0f;
                    hide(share, there ? seen(token + m, 1, key, some, of.window) : Range{0, 0}, within);
                    for (int64_t n = from; n < to; n += LANES) {
                        Floats p = exp2_of(load<Floats>(share + n) - top);
                        store(share + n, p);
                        store(score + n, p * (load<Floats>(score + n) - taken));
                    }
                    std::fill(share, share + from, 0.0f);
                    std::fill(score, score + from, 0.0f);
                    std::fill(share + to, share + KEYS, 0.0f);
                    std::fill(score + to, score + KEYS, 0.0f);
                }
                for (int64_t t = 0; t < tiles; ++t) {
                    if (keys[t].empty()) continue;
                    const int64_t there = std::min<int64_t>(ROWS, count - t * ROWS);
                    const float* a = scores + t * ROWS * KEYS + keys[t].first;
                    const float* b = key_rows + keys[t].first * wide;
                    float* c = dq + (head + h) * of.dq.head + (token + t * ROWS) * of.dq.token;
                    const int64_t depth = keys[t].last - keys[t].first;
                    if (there == ROWS && wide == of.width) {
                        product<false, Onto::SUMS>(a, KEYS, b, wide, depth, c, of.dq.token, wide);
                        continue;
                    }
                    float apart[ROWS * 256];
                    product<false, Onto::NOTHING>(a, KEYS, b, wide, depth, apart, wide, wide);
                    for (int64_t m = 0; m < there; ++m)
                        for (int64_t n = 0; n < of.width; ++n) c[m * of.dq.token + n] += apart[m * wide + n];
                }
                for (int64_t n = 0; n < some; n += ROWS) {
                    const int64_t from = std::max<int64_t>(0, key + n - token);
                    const int64_t to = std::min(count, key + std::min<int64_t>(n + ROWS, some) - 1 + of.window - token);
                    if (from >= to) continue;
                    product<true, Onto::SUMS>(
                        shares + from * KEYS + n, KEYS, gradients + from * columns, columns, to - from,
                        value_sums + n * columns, columns, columns);
                    product<true, Onto::SUMS>(
                        scores + from * KEYS + n, KEYS, queries + from * wide, wide, to - from, key_sums + n * wide,
                        wide, wide);
                }
            }
        for (int64_t n = 0; n < some; ++n) {
            T* to = dk + row * of.dk.row + group * of.dk.head + (key + n) * of.dk.token;
            for (int64_t c = 0; c < of.width; ++c) narrow(key_sums[n * wide + c] * LN_2, to + c);
            to = dv + row * of.dv.row + group * of.dv.head + (key + n) * of.dv.token;
            for (int64_t c = 0; c < of.value_width; ++c) narrow(value_sums[n * columns + c], to + c);
        }
    }
}

template <typename T>
void attend_backward(const Backward<T>& all) {
    const Attention& of = all.of;
    std::vector<int64_t> spans(of.spans);
    for (int64_t i = 0; i < of.spans; ++i) spans[i] = i;
    const auto length = [&](int64_t i) { return of.span[3 * i + 2] - of.span[3 * i + 1]; };
    // The longest first, so that no thread begins one when the others are done.
    std::stable_sort(spans.begin(), spans.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
    const int64_t tasks = of.spans * of.groups * of.parts;
#pragma omp parallel for num_threads(of.threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks; ++i)
        all.run(spans[i / of.parts / of.groups], i / of.parts % of.groups, i % of.parts);
}

}  // namespace

extern "C" void attention_float(
    const Numbers* of, const int64_t* span, float scale, const float* q, const float* k, const float* v, float* y,
    float* log_sums) {
    attend(Attention{*of, span, scale}, q, k, v, y, log_sums);
}

extern "C" void attention_bfloat(
    const Numbers* of, const int64_t* span, float scale, const Bfloat* q, const Bfloat* k, const Bfloat* v, Bfloat* y,
    float* log_sums) {
    attend(Attention{*of, span, scale}, q, k, v, y, log_sums);
}

extern "C" void attention_backward_float(
    const Numbers* of, const int64_t* span, float scale, const float* q, const float* k, const float* v,
    const float* y, const float* dy, const float* log_sums, float* dq, float* other_dq, float* dk, float* dv) {
    const Attention all{*of, span, scale};
    attend_backward(Backward<float>{all, q, k, v, y, dy, log_sums, dq, other_dq, dk, dv});
}

extern "C" void attention_backward_bfloat(
    const Numbers* of, const int64_t* span, float scale, const Bfloat* q, const Bfloat* k, const Bfloat* v,
    const Bfloat* y, const Bfloat* dy, const float* log_sums, float* dq, float* other_dq, Bfloat* dk, Bfloat* dv) {
    const Attention all{*of, span, scale};
    attend_backward(Backward<Bfloat>{all, q, k, v, y, dy, log_sums, dq, other_dq, dk, dv});
}
