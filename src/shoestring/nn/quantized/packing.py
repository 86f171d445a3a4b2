"""Codes of few bits in 32-bit words, side by side without gaps, as compressed-tensors packs them.

codes int8 [R, N] in −2^(b−1) … 2^(b−1) − 1 <-> words int32 [R, ⌈N·b / 32⌉]. Code i of a row, made positive by adding
2^(b−1), stands at bits i·b and up of the row, the lowest bit first; with 3, 5, 6 and 7 bits some lie across two words.
What is left of the last word is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TURN = 32  # codes after which the pattern begins anew, in `bits` words


def words(codes: int, bits: int) -> int:
    """32-bit words that so many codes take."""
    return -(-codes * bits // 32)


def pack(codes_RN: Tensor, bits: int) -> Tensor:
    """codes: int8, all of them in the range of so many bits."""
    rows, count = codes_RN.shape
    if bits in (4, 8):
        return _pack_bytes(codes_RN, bits)
    positive = codes_RN.to(torch.int64) + (1 << bits - 1)
    turns = F.pad(positive, (0, -count % _TURN)).reshape(rows, -1, _TURN)
    packed = torch.zeros(rows, turns.shape[1], bits, dtype=torch.int64, device=codes_RN.device)
    for i in range(_TURN):
        word, first = divmod(i * bits, 32)
        packed[..., word] |= (turns[..., i] << first) & 0xFFFFFFFF
        if first + bits > 32:
            packed[..., word + 1] |= turns[..., i] >> (32 - first)
    packed = packed.view(rows, -1)[:, : words(count, bits)]
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def _pack_bytes(codes_RN: Tensor, bits: int) -> Tensor:
    """The same for codes of which a byte holds one or two; words are in the order of bytes that files have."""
    rows, count = codes_RN.shape
    positive_RN = torch.zeros(rows, words(count, bits) * 32 // bits, dtype=torch.uint8, device=codes_RN.device)
    if bits == 8:
        torch.bitwise_xor(codes_RN.view(torch.uint8), 128, out=positive_RN[:, :count])
        return positive_RN.view(torch.int32)
    positive_RN[:, :count] = codes_RN + 8
    pairs = torch.empty(rows, positive_RN.shape[1] // 2, dtype=torch.uint8, device=codes_RN.device)
    torch.bitwise_or(positive_RN[:, ::2], positive_RN[:, 1::2] << 4, out=pairs)
    return pairs.view(torch.int32)


def unpack(words_RW: Tensor, bits: int, count: int) -> Tensor:
    """-> the first `count` codes of each row, int8 [R, count]."""
    if bits in (4, 8):
        return _unpack_bytes(words_RW, bits)[:, :count]
    rows = words_RW.shape[0]
    turns = F.pad(words_RW, (0, -words_RW.shape[1] % bits)).reshape(rows, -1, bits).to(torch.int64) & 0xFFFFFFFF
    codes = torch.empty(rows, turns.shape[1], _TURN, dtype=torch.int8, device=words_RW.device)
    for i in range(_TURN):
        word, first = divmod(i * bits, 32)
        positive = turns[..., word] >> first
        if first + bits > 32:
            positive = positive | turns[..., word + 1] << (32 - first)
        codes[..., i] = (positive & (1 << bits) - 1) - (1 << bits - 1)
    return codes.view(rows, -1)[:, :count]


def _unpack_bytes(words_RW: Tensor, bits: int) -> Tensor:
    """The same for codes of which a byte holds one or two; words are in the order of bytes that files have."""
    bytes_RB = words_RW.contiguous().view(torch.uint8)
    if bits == 8:
        return (bytes_RB ^ 128).view(torch.int8)
    pairs = torch.stack([bytes_RB & 15, bytes_RB >> 4], -1).flatten(1)
    return pairs.view(torch.int8) - 8
