// Numbers of bfloat16: the upper half of a float.

#pragma once

#include <cstdint>
#include <cstring>

struct Bfloat {
    uint16_t bits;
};

static inline float widened(float x) { return x; }
static inline float widened(Bfloat x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

static inline void narrowed(float x, float* to) { *to = x; }
static inline void narrowed(float x, Bfloat* to) {  // to the nearest, ties to even; what is not a number stays so
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to->bits = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
