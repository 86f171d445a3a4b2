"""The matrices of an ONNX graph in each number format: x [B, T, in] -> [B, T, out].

fp32: MatMul. int8: what goes in is rounded to 8 bits as it comes, with a scale for each token, since a few tokens have
numbers a hundred times as large as all others'; weights have one for each output, and 7 bits: sums of two products of
8-bit numbers overflow the 16 bits that some processors have for them. All standard operators (MatMulInteger). int4:
onnxruntime's MatMulNBits, blocks of 32 with a scale and codes about their middle; 8 bits in the head and in what loses
most by 4, values and down projections. Codes of a tied embedding are there once, for both its uses.
Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from shoestring.core.errors import ModelFileError
from shoestring.export.config import ONNXType
from shoestring.export.onnx.graph import CONTRIB, Graph
from shoestring.export.rows import whole
from shoestring.models.weight_files import Place

_BLOCK = 32
_ZERO = 128  # the code of 0 in 8 bits
_LARGEST = 63  # of an int8 weight: 2 · 63 · 255 < 2^15
_FLOAT, _UINT8 = 1, 2  # of TensorProto
_IN_EIGHT = ("attention.value", "feed_forward.down")  # where the others have 4 bits
_SMALLEST = 1e-30  # scale, of a token that is zero everywhere
_IN_BYTES = 4  # accuracy_level: what goes into MatMulNBits may be rounded to 8 bits, block by block
_Pair = tuple[np.ndarray, np.ndarray]


class Matrices:
    """Writes the matrices of the model's parameters into a graph. places: by the decoder's names."""

    def __init__(self, graph: Graph, places: Mapping[str, Place], kind: ONNXType):
        self.graph, self.places, self.kind = graph, places, kind
        self._rounded: dict[str, tuple[str, str]] = {}  # codes and scales of what was rounded already

    def linear(self, x: str, name: str) -> str:
        """name: of a linear of the decoder, dense or of low rank."""
        if f"{name}.first.weight" in self.places:
            return self.linear(self.linear(x, f"{name}.first"), f"{name}.second")
        matrix = f"{name}.weight"
        match self.kind:
            case "fp32":
                product = self._float(x, matrix)
            case "int8":
                product = self._int8(x, matrix)
            case "int4":
                product = self._blocks(x, matrix, 8 if any(part in name for part in _IN_EIGHT) else 4)
        return self.graph.op("Add", product, self.vector(f"{name}.bias")) if f"{name}.bias" in self.places else product

    def head(self, x: str, tied: bool) -> str:
        """x [B, T, D] -> logits [B, T, V]."""
        name = "embedding.weight" if tied else "head.weight"
        if self.kind == "int4":
            return self._blocks(x, name, 8)
        if self.kind == "int8":
            return self._int8(x, name, as_rows=tied)
        vocabulary, width = self.places[name].info.shape
        g = self.graph
        rows = g.op("Reshape", x, g.constant([-1, width]))
        logits = g.op("Gemm", rows, self.vector(name), transB=1)  # the embedding as it is, which is there once
        batch = g.op("Slice", g.op("Shape", x), g.constant([0]), g.constant([2]))
        return g.op("Reshape", logits, g.op("Concat", batch, g.constant([vocabulary]), axis=0))

    def embedding(self, tokens: str) -> str:
        """tokens [B, T] -> [B, T, D]."""
        g, name = self.graph, "embedding.weight"
        if self.kind == "fp32":
            return g.op("Gather", self.vector(name), tokens)
        vocabulary, width = self.places[name].info.shape
        middle = g.constant(float(_ZERO), np.float32)
        if self.kind == "int8":
            codes, scales = self._by_rows(name, as_rows=True)
            found = g.op("Sub", g.op("Cast", g.op("Gather", codes, tokens), to=_FLOAT), middle)
            return g.op("Mul", found, g.op("Unsqueeze", g.op("Gather", scales, tokens), g.constant([-1])))
        codes, scales = self._in_blocks(name, 8)
        blocks = -(-width // _BLOCK)
        scales = g.op("Reshape", scales, g.constant([vocabulary, blocks, 1]))
        found = g.op("Sub", g.op("Cast", g.op("Gather", codes, tokens), to=_FLOAT), middle)  # [B, T, blocks, 32]
        found = g.op("Reshape", g.op("Mul", found, g.op("Gather", scales, tokens)), g.constant([0, 0, blocks * _BLOCK]))
        return found if width % _BLOCK == 0 else g.op("Slice", found, *(g.constant([n]) for n in (0, width, 2)))

    def vector(self, name: str) -> str:
        """A parameter as it is, float32."""
        place = self.places[name]
        return self.graph.weight(name, tuple(place.info.shape), lambda: _finite(place))

    def _float(self, x: str, name: str) -> str:
        place = self.places[name]
        outputs, inputs = place.info.shape
        return self.graph.op("MatMul", x, self.graph.weight(name, (inputs, outputs), lambda: _finite(place).T))

    def _int8(self, x: str, name: str, as_rows: bool = False) -> str:
        g = self.graph
        codes, scales = self._by_rows(name, as_rows)
        if as_rows:
            codes = g.op("Transpose", codes, perm=[1, 0])  # done once, when the graph is loaded
        rounded, scale = self._by_tokens(x)
        zero = g.constant(_ZERO, np.uint8)
        sums = g.op("Cast", g.op("MatMulInteger", rounded, codes, zero, zero), to=_FLOAT)
        return g.op("Mul", g.op("Mul", sums, scale), scales)

    def _by_tokens(self, x: str) -> tuple[str, str]:
        """x [B, T, D] -> codes 1 to 255 about 128, uint8, and scales [B, T, 1]."""
        if x not in self._rounded:
            g = self.graph
            largest = g.op("ReduceMax", g.op("Abs", x), g.constant([-1]), keepdims=1)
            scale = g.op("Div", largest, g.constant(_ZERO - 1, np.float32))
            scale = g.op("Max", scale, g.constant(_SMALLEST, np.float32))
            codes = g.op("Add", g.op("Round", g.op("Div", x, scale)), g.constant(_ZERO, np.float32))
            self._rounded[x] = g.op("Cast", codes, to=_UINT8), scale
        return self._rounded[x]

    def _by_rows(self, name: str, as_rows: bool) -> tuple[str, str]:
        """The weights of codes, uint8 [in, out] or as rows [out, in], and of scales, float32 [out]."""
        place = self.places[name]
        outputs, inputs = place.info.shape
        first, second = _once(lambda: _of_rows(place))
        shape = (outputs, inputs) if as_rows else (inputs, outputs)
        codes = self.graph.weight(f"{name}.int8", shape, first if as_rows else lambda: first().T, np.uint8)
        return codes, self.graph.weight(f"{name}.scale", (outputs,), second)

    def _blocks(self, x: str, name: str, bits: int) -> str:
        codes, scales = self._in_blocks(name, bits)
        outputs, inputs = self.places[name].info.shape
        sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": _BLOCK}
        return self.graph.op("MatMulNBits", x, codes, scales, domain=CONTRIB, accuracy_level=_IN_BYTES, **sizes)

    def _in_blocks(self, name: str, bits: int) -> tuple[str, str]:
        """The weights of codes, uint8 [out, blocks, 4 · bits], and of scales, float32 [out · blocks]."""
        place = self.places[name]
        outputs, inputs = place.info.shape
        blocks = -(-inputs // _BLOCK)
        first, second = _once(lambda: _of_blocks(place, bits))
        codes = self.graph.weight(f"{name}.int{bits}", (outputs, blocks, _BLOCK * bits // 8), first, np.uint8)
        return codes, self.graph.weight(f"{name}.scale", (outputs * blocks,), lambda: second().ravel())


def _once(make: Callable[[], _Pair]) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """The first and the second of what is made, made once if they are asked for one after the other."""
    kept: list[np.ndarray] = []

    def first() -> np.ndarray:
        codes, scales = make()
        kept[:] = [scales]
        return codes

    def second() -> np.ndarray:
        return kept.pop() if kept else make()[1]

    return first, second


def _finite(place: Place) -> np.ndarray:
    values = whole(place)
    if not np.isfinite(values).all():
        raise ModelFileError(f"tensor {place.parameter} holds numbers that are not finite", hint="the model is broken")
    return values


def _of_rows(place: Place) -> _Pair:
    """-> codes 65 to 191 about 128, uint8 [out, in], and scales, float32 [out]."""
    values = _finite(place)
    scales = np.abs(values).max(1) / np.float32(_LARGEST)
    steps = np.where(scales > 0, scales, np.float32(1))
    return (np.rint(values / steps[:, None]) + _ZERO).astype(np.uint8), scales.astype(np.float32)


def _of_blocks(place: Place, bits: int) -> _Pair:
    """-> codes, uint8 [out, blocks, 4 · bits], of 4 bits two in a byte with the earlier one below, and scales, float32
    [out, blocks]. The number furthest from zero gets the code 0, as in Q4_0 of GGUF."""
    values, middle = _finite(place), 1 << bits - 1
    short = -values.shape[1] % _BLOCK
    blocks = np.pad(values, ((0, 0), (0, short))).reshape(len(values), -1, _BLOCK)
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = furthest / np.float32(-middle)
    steps = np.where(scales != 0, scales, np.float32(1))
    codes = np.clip(np.rint(blocks / steps) + middle, 0, 2 * middle - 1).astype(np.uint8)
    packed = codes if bits == 8 else codes[..., 0::2] | codes[..., 1::2] << 4
    return packed, scales[..., 0].astype(np.float32)
