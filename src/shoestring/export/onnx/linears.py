"""The matrices of an ONNX graph in each number format: x [B, T, in] -> [B, T, out].

fp32: MatMul. int8: what goes in is rounded to 8 bits as it comes, by one scale for all of it, weights by one for each
output (DynamicQuantizeLinear, MatMulInteger), all standard operators. int4: onnxruntime's MatMulNBits, blocks of 32
with a scale and codes 0 to 15 about 8; the head stays int8. An embedding in int8 has a scale for each row.
Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from shoestring.core.errors import ModelFileError
from shoestring.export.config import ONNXType
from shoestring.export.onnx.graph import CONTRIB, Graph
from shoestring.export.rows import whole
from shoestring.models.weight_files import Place

_BLOCK = 32
_MIDDLE = 8


class Matrices:
    """Writes the matrices of the model's parameters into a graph. places: by the decoder's names."""

    def __init__(self, graph: Graph, places: Mapping[str, Place], kind: ONNXType):
        self.graph, self.places, self.kind = graph, places, kind
        self._rounded: dict[str, list[str]] = {}  # what went through DynamicQuantizeLinear already

    def linear(self, x: str, name: str) -> str:
        """name: of a linear of the decoder, dense or of low rank."""
        if f"{name}.first.weight" in self.places:
            return self.linear(self.linear(x, f"{name}.first"), f"{name}.second")
        product = {"fp32": self._float, "int8": self._int8, "int4": self._int4}[self.kind](x, f"{name}.weight")
        return self.graph.op("Add", product, self.vector(f"{name}.bias")) if f"{name}.bias" in self.places else product

    def head(self, x: str, tied: bool) -> str:
        """x [B, T, D] -> logits [B, T, V]."""
        name = "embedding.weight" if tied else "head.weight"
        if self.kind != "fp32":
            return self._int8(x, name)
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
        rounded = partial(_by_rows, self.places[name])
        codes = g.weight(f"{name}.rows", (vocabulary, width), lambda: rounded()[0], np.int8)
        scales = g.weight(f"{name}.rows_scale", (vocabulary, 1), lambda: rounded()[1][:, None])
        found = g.op("Cast", g.op("Gather", codes, tokens), to=_FLOAT)
        return g.op("Mul", found, g.op("Gather", scales, tokens))

    def vector(self, name: str) -> str:
        """A parameter as it is, float32."""
        place = self.places[name]
        return self.graph.weight(name, tuple(place.info.shape), partial(_finite, place))

    def _float(self, x: str, name: str) -> str:
        place = self.places[name]
        outputs, inputs = place.info.shape
        return self.graph.op("MatMul", x, self.graph.weight(name, (inputs, outputs), lambda: _finite(place).T))

    def _int8(self, x: str, name: str) -> str:
        g, place = self.graph, self.places[name]
        outputs, inputs = place.info.shape
        codes = g.weight(f"{name}.int8", (inputs, outputs), lambda: _by_rows(place)[0].T, np.int8)
        scales = g.weight(f"{name}.scale", (outputs,), lambda: _by_rows(place)[1])
        if x not in self._rounded:
            self._rounded[x] = g.ops("DynamicQuantizeLinear", 3, x)
        rounded, scale, zero = self._rounded[x]
        sums = g.op("Cast", g.op("MatMulInteger", rounded, codes, zero), to=_FLOAT)
        return g.op("Mul", sums, g.op("Mul", scales, scale))

    def _int4(self, x: str, name: str) -> str:
        g, place = self.graph, self.places[name]
        outputs, inputs = place.info.shape
        blocks = -(-inputs // _BLOCK)
        codes = g.weight(f"{name}.int4", (outputs, blocks, _BLOCK // 2), lambda: _in_blocks(place)[0], np.uint8)
        scales = g.weight(f"{name}.scale", (outputs * blocks,), lambda: _in_blocks(place)[1].ravel())
        return g.op(
            "MatMulNBits", x, codes, scales, domain=CONTRIB, K=inputs, N=outputs, bits=4, block_size=_BLOCK
        )


_FLOAT = 1  # TensorProto.FLOAT


def _finite(place: Place) -> np.ndarray:
    values = whole(place)
    if not np.isfinite(values).all():
        raise ModelFileError(f"tensor {place.parameter} holds numbers that are not finite", hint="the model is broken")
    return values


def _by_rows(place: Place) -> tuple[np.ndarray, np.ndarray]:
    """-> codes −127 to 127, int8 [out, in], and scales, float32 [out]."""
    values = _finite(place)
    scales = np.abs(values).max(1) / np.float32(127)
    steps = np.where(scales > 0, scales, np.float32(1))
    return np.rint(values / steps[:, None]).astype(np.int8), scales.astype(np.float32)


def _in_blocks(place: Place) -> tuple[np.ndarray, np.ndarray]:
    """-> codes, uint8 [out, blocks, 16], two in a byte with the earlier one below, and scales, float32 [out, blocks].

    The number furthest from zero gets the code 0, as in Q4_0 of GGUF."""
    values = _finite(place)
    short = -values.shape[1] % _BLOCK
    blocks = np.pad(values, ((0, 0), (0, short))).reshape(len(values), -1, _BLOCK)
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = furthest / np.float32(-_MIDDLE)
    steps = np.where(scales != 0, scales, np.float32(1))
    codes = np.clip(np.rint(blocks / steps) + _MIDDLE, 0, 15).astype(np.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scales[..., 0].astype(np.float32)
