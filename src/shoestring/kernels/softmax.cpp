// Softmax of rows of logits in place, with what cross-entropy wants of them, in one read and one write of memory: a row
// (200 kB for 50,000 words) stays in the cache between its passes. Plain loops that the compiler turns into vectors.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bfloat.h"
#include "exponential.h"

static const int64_t LANES = 64;    // sums side by side, so that additions need not wait for one another
static const int64_t BLOCK = 4096;  // numbers whose sums are float; blocks are added up in double

static float highest_of(const float* z, int64_t count) {
    float lanes[LANES];
    for (int64_t j = 0; j < LANES; ++j) lanes[j] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int64_t j = 0; j < LANES; ++j) lanes[j] = z[i + j] > lanes[j] ? z[i + j] : lanes[j];
    float highest = -INFINITY;
    for (int64_t j = 0; j < LANES; ++j) highest = std::max(highest, lanes[j]);
    for (; i < count; ++i) highest = std::max(highest, z[i]);
    return highest;
}

// z becomes exp(z − highest), or stays as it is where `keeps`; -> their sum.
template <bool keeps>
static double exponentials(float* z, int64_t count, float highest) {
    double sum = 0.0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t end = std::min(start + BLOCK, count), i = start;
        float lanes[LANES] = {};
        for (; i + LANES <= end; i += LANES)
            for (int64_t j = 0; j < LANES; ++j) {
                float e = exponential(z[i + j] - highest);
                if (!keeps) z[i + j] = e;
                lanes[j] += e;
            }
        float rest = 0.0f;
        for (; i < end; ++i) {
            float e = exponential(z[i] - highest);
            if (!keeps) z[i] = e;
            rest += e;
        }
        for (int64_t j = 0; j < LANES; ++j) rest += lanes[j];
        sum += rest;
    }
    return sum;
}

// A row's logarithm of its sum of exponentials; z becomes probabilities, but for the label's, if it stands here.
static float probabilities(float* z, int64_t count, int64_t label, bool less_one, bool loss_alone) {
    float highest = highest_of(z, count);
    double sum = loss_alone ? exponentials<true>(z, count, highest) : exponentials<false>(z, count, highest);
    if (!loss_alone) {
        float share = (float)(1.0 / sum);
        for (int64_t i = 0; i < count; ++i) z[i] *= share;
        if (label >= 0 && label < count) z[label] = less_one ? z[label] - 1.0f : 0.0f;
    }
    return (float)(highest + std::log(sum));
}

struct Rows {
    int64_t rows, count, stride, first;
    const int64_t* labels;
    float *normalizers, *labelled;
    bool less_one, loss_alone;
    int threads;
};

static void each_row(const Rows& of, float* logits) {
#pragma omp parallel for num_threads(of.threads) schedule(static)
    for (int64_t row = 0; row < of.rows; ++row) {
        float* z = logits + row * of.stride;
        int64_t label = of.labels[row] - of.first;
        if (label >= 0 && label < of.count) of.labelled[row] = z[label];
        of.normalizers[row] = probabilities(z, of.count, label, of.less_one, of.loss_alone);
    }
}

// In bfloat16: each thread has a row of floats to work in, and rounds once.
static void each_row(const Rows& of, Bfloat* logits) {
#pragma omp parallel num_threads(of.threads)
    {
        std::vector<float> wide(of.count);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < of.rows; ++row) {
            Bfloat* z = logits + row * of.stride;
            float* w = wide.data();
            int64_t label = of.labels[row] - of.first;
            for (int64_t i = 0; i < of.count; ++i) w[i] = widened(z[i]);
            if (label >= 0 && label < of.count) of.labelled[row] = w[label];
            of.normalizers[row] = probabilities(w, of.count, label, of.less_one, of.loss_alone);
            if (!of.loss_alone)
                for (int64_t i = 0; i < of.count; ++i) narrowed(w[i], &z[i]);
        }
    }
}

// Rows of `count` logits, `stride` numbers apart. labels: from `first` on; those of other numbers stand elsewhere. Each
// row gets the logarithm of its sum of exponentials and, where its label stands here, that logit. Then logits become
// probabilities, but for the label's: that less one where `less_one`, else 0. loss_alone: they stay as they are.
extern "C" void softmax_rows(
    void* logits, int bfloat, int64_t rows, int64_t count, int64_t stride, const int64_t* labels, int64_t first,
    float* normalizers, float* labelled, int less_one, int loss_alone, int threads) {
    const Rows of{
        rows, count, stride, first, labels, normalizers, labelled, less_one != 0, loss_alone != 0, threads};
    if (bfloat)
        each_row(of, (Bfloat*)logits);
    else
        each_row(of, (float*)logits);
}
