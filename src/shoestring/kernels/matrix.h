// What decoding multiplies: matrices as they are kept in memory, and a few rows beside them. Weights of 4 and 8 bits
// stand in blocks of 32 along the depth, in tiles of 16 columns of the product ("rows" of the matrix as it is stored):
//
//     d[16] float16   m[16] float16 (formats with an offset)   codes
//
// w = d · code + m, or w = d · (code − 8) for 4 bits without an offset. Codes are laid out so that 64 bytes hold four
// neighbours along the depth for each of the 16 columns: 4-bit ones (0 … 15) 256 bytes, depths 4j … 4j + 3 in the low
// halves and 16 more in the high ones; 8-bit ones (−128 … 127) 512 bytes. Weights of floats lie as torch has them.
#pragma once

#include <cstdint>
#include <cstring>

constexpr int BLOCK = 32, COLUMNS = 16;

enum Format : int { NIBBLES, NIBBLES_OFFSET, BYTES, BYTES_OFFSET, FLOATS, HALVES, BFLOATS };

constexpr bool has_offset(int format) { return format == NIBBLES_OFFSET || format == BYTES_OFFSET; }
constexpr bool is_nibbles(int format) { return format <= NIBBLES_OFFSET; }
constexpr bool is_blocks(int format) { return format <= BYTES_OFFSET; }
constexpr int64_t head_bytes(int format) { return 2 * COLUMNS * (has_offset(format) ? 2 : 1); }
constexpr int64_t block_bytes(int format) {
    return head_bytes(format) + (is_nibbles(format) ? BLOCK / 2 : BLOCK) * COLUMNS;
}
constexpr int64_t float_bytes(int format) { return format == FLOATS ? 4 : 2; }

struct Matrix {
    const uint8_t* weights;  // [⌈columns / 16⌉, depth / 32] blocks, or [columns, depth] floats
    int64_t columns, depth;
    int32_t format;
    const float* bias;  // [columns] or none
};

static inline int64_t tiles_of(const Matrix& of) { return (of.columns + COLUMNS - 1) / COLUMNS; }

// Rows as both kinds of matrices take them; what no matrix takes need not be there.
struct Rows {
    int8_t* codes;    // [rows, depth]
    float* scales;    // [rows, depth / 32]
    float* totals;    // Σ codes of each block
    float* floats;    // [rows, depth]
};

// Which of the two some matrices want.
struct Wants {
    bool codes, floats;
};

static inline Wants wants(const Matrix& of) { return {is_blocks(of.format), !is_blocks(of.format)}; }
static inline Wants operator|(Wants a, Wants b) { return {a.codes || b.codes, a.floats || b.floats}; }

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits;
    if (rest >= 0x7c00)
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest >= 0x400)
        bits = sign | ((rest << 13) + (112u << 23));
    else {  // subnormal: rest · 2^−24
        const float value = (float)rest * 5.9604644775390625e-8f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline float half_at(const uint8_t* from) {
    uint16_t half;
    memcpy(&half, from, 2);
    return half_to_float(half);
}
