// exp(x) in plain arithmetic that the compiler turns into vectors: Cephes' polynomial of degree 6, within 2 units in the
// last place. Below −87 it is exp(−87), above 88 exp(88); what is not a number stays so.

#pragma once

#include <cstdint>
#include <cstring>

static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifter = 12582912.0f;  // 1.5 · 2^23: what is added to it is rounded to a whole number
    float shifted = x * 1.44269504088896341f + shifter;
    float n = shifted - shifter;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000 + 127) << 23;  // 2^n
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}
