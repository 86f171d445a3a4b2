"""A decoder as an ONNX graph: token ids and a cache in, logits and a longer cache out.

Inputs: input_ids int64 [B, T], attention_mask int64 [B, S] over what the cache holds and the new tokens (0 for padding,
at the beginning of a row), past_key_values.N.key and .value [B, K, S − T, C]. Outputs: logits [B, T, V], present.N.key
and .value [B, K, S, C]. Those are the names that transformers.js and onnxruntime-genai read. Positions are counted from
the mask. Only standard operators but for matrices in blocks, so that every build of onnxruntime runs it; norms and
products with a transposed key have the form that onnxruntime joins into one operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from shoestring.core.errors import ModelFileError
from shoestring.export.config import ONNXType
from shoestring.export.kinds import listed, unusual
from shoestring.export.onnx.graph import Graph
from shoestring.export.onnx.linears import Matrices
from shoestring.models.config import ModelConfig
from shoestring.models.weight_files import Place
from shoestring.nn.config import GQAConfig, RopeConfig, block_order
from shoestring.nn.feed_forward_config import GELUConfig, SwiGLUConfig
from shoestring.nn.rope import scaled_frequencies

# What a graph can say although Llama's kin have it not: beginnings of the names in `kinds.unusual`.
_POSSIBLE = (
    "a sliding window", "reversible blocks", "a soft cap on logits", "low-rank matrices", "positions of kind",
    "feed-forwards of kind",
)  # fmt: skip
_NOT_SEEN = -1e30


class Places(NamedTuple):
    """What the layers share. positions [B, T]; bias [B, 1, T, S]: 0 where a key is seen; by_head and by_key_head:
    shapes of scores, [B, H, T, S] and [B, K, H / K · T, S]; cos and sin [B, 1, T, C/2], None without rotary ones."""

    positions: str
    bias: str
    by_head: str
    by_key_head: str
    cos: str | None
    sin: str | None


def check_kinds(config: ModelConfig, where: str | None = None) -> None:
    """Raises ModelFileError, which names all that a graph cannot say."""
    parts = [name for name in unusual(config) if not name.startswith(_POSSIBLE)]
    if config.feed_forward.kind == "moe":
        parts.append("experts")
    if parts:
        raise ModelFileError(f"this model has {listed(parts)}, which is not written as an ONNX graph", where)


def decoder_graph(
    config: ModelConfig, places: Mapping[str, Place], kind: ONNXType
) -> tuple[Graph, list[Any], list[Any]]:
    """-> the graph, its inputs and its outputs. places: of the parameters, by the decoder's names."""
    attention = config.attention
    assert isinstance(attention, GQAConfig)
    graph = Graph()
    builder = _Builder(graph, config, attention, Matrices(graph, places, kind))
    builder.run()
    return graph, *_ends(config, attention)


def _ends(config: ModelConfig, attention: GQAConfig) -> tuple[list[Any], list[Any]]:
    from onnx import TensorProto, helper

    def value(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def caches(prefix: str, length: str) -> list[Any]:
        shape = ["batch_size", attention.kv_heads, length, attention.head_width]
        names = [f"{prefix}.{layer}.{part}" for layer in range(config.layers) for part in ("key", "value")]
        return [value(name, TensorProto.FLOAT, shape) for name in names]

    tokens = value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    mask = value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
    logits = value("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", config.vocabulary])
    inputs = [tokens, mask, *caches("past_key_values", "past_sequence_length")]
    return inputs, [logits, *caches("present", "total_sequence_length")]


class _Builder:
    """Writes the nodes, from the embedding to the logits."""

    def __init__(self, graph: Graph, config: ModelConfig, attention: GQAConfig, matrices: Matrices):
        self.g, self.config, self.attention, self.matrices = graph, config, attention, matrices

    def run(self) -> None:
        g, config = self.g, self.config
        shared = self.shared()
        x = self.matrices.embedding("input_ids")
        if config.has_learned_positions:
            table = self.matrices.vector("inputs.positions.weight")
            x = g.op("Add", x, g.op("Gather", table, shared.positions))
        order = block_order(config.layers, config.sharing)
        if config.block == "reversible":
            first = second = x
            for layer, block in enumerate(order):
                first = g.op("Add", first, self.attend(second, layer, block, shared))
                second = g.op("Add", second, self.feed(first, block))
            x = g.op("Mul", g.op("Add", first, second), g.constant(0.5, np.float32))
        else:
            for layer, block in enumerate(order):
                x = g.op("Add", x, self.attend(x, layer, block, shared))
                x = g.op("Add", x, self.feed(x, block))
        logits = self.matrices.head(self.norm(x, "norm.weight"), config.tied_head)
        if config.logit_softcap is not None:
            cap = g.constant(config.logit_softcap, np.float32)
            logits = g.op("Mul", g.op("Tanh", g.op("Div", logits, cap)), cap)
        g.named("logits", logits)

    def shared(self) -> Places:
        g = self.g
        new = g.op("Gather", g.op("Shape", "input_ids"), g.constant(1))  # T
        total = g.op("Gather", g.op("Shape", "attention_mask"), g.constant(1))  # S
        past, one = g.op("Sub", total, new), g.constant(1)
        ends = [g.op("Unsqueeze", value, g.constant([0])) for value in (past, total)]
        counted = g.op("Sub", g.op("CumSum", "attention_mask", one), one)
        counted = g.op("Max", counted, g.constant(0))  # of padding
        positions = g.op("Slice", counted, *ends, g.constant([1]))
        keys = g.op("Unsqueeze", g.op("Range", g.constant(0), total, one), g.constant([0]))  # [1, S]
        queries = g.op("Unsqueeze", g.op("Range", past, total, one), g.constant([1]))  # [T, 1]
        seen = g.op("GreaterOrEqual", queries, keys)
        if self.attention.window is not None:
            oldest = g.op("Sub", queries, g.constant(self.attention.window))
            seen = g.op("And", seen, g.op("Greater", keys, oldest))
        real = g.op("Unsqueeze", g.op("Cast", "attention_mask", to=9), g.constant([1]))  # bool [B, 1, S]
        allowed = g.op("And", real, seen)
        bias = g.op("Where", allowed, g.constant(0.0, np.float32), g.constant(_NOT_SEEN, np.float32))
        bias = g.op("Unsqueeze", bias, g.constant([1]))
        news, totals = (g.op("Unsqueeze", value, g.constant([0])) for value in (new, total))
        heads = self.attention.heads, self.attention.kv_heads
        by_head = g.op("Concat", g.constant([0, heads[0]]), news, totals, axis=0)
        by_key_head = g.op("Concat", g.constant([0, heads[1], -1]), totals, axis=0)
        position = self.config.position
        if not isinstance(position, RopeConfig):
            return Places(positions, bias, by_head, by_key_head, None, None)
        frequencies, temperature = scaled_frequencies(position, self.attention.head_width)
        angles = g.op("Unsqueeze", g.op("Cast", positions, to=1), g.constant([1, 3]))  # [B, 1, T, 1]
        angles = g.op("Mul", angles, g.constant(frequencies.numpy(), np.float32))
        scale = g.constant(temperature, np.float32)
        cos, sin = (g.op("Mul", g.op(kind, angles), scale) for kind in ("Cos", "Sin"))
        return Places(positions, bias, by_head, by_key_head, cos, sin)

    def attend(self, x: str, layer: int, block: int, shared: Places) -> str:
        """What attention adds; x is not normed yet."""
        g, a, name = self.g, self.attention, f"blocks.{block}.attention"
        x = self.norm(x, f"blocks.{block}.attention_norm.weight")
        q, k, v = (
            g.op("Reshape", self.matrices.linear(x, f"{name}.{part}"), g.constant([0, 0, heads, a.head_width]))
            for part, heads in (("query", a.heads), ("key", a.kv_heads), ("value", a.kv_heads))
        )
        if a.qk_norm:
            q, k = self.norm(q, f"{name}.query_norm.weight"), self.norm(k, f"{name}.key_norm.weight")
        q, k, v = (g.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, k, v))
        q, k = self.turn(q, shared), self.turn(k, shared)
        k = g.named(f"present.{layer}.key", g.op("Concat", f"past_key_values.{layer}.key", k, axis=2))
        v = g.named(f"present.{layer}.value", g.op("Concat", f"past_key_values.{layer}.value", v, axis=2))
        q = g.op("Mul", q, g.constant(a.head_width**-0.5, np.float32))
        q = g.op("Reshape", q, g.constant([0, a.kv_heads, -1, a.head_width]))  # heads of one key, one after another
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Reshape", scores, shared.by_head), shared.bias)
        weights = g.op("Reshape", g.op("Softmax", scores, axis=-1), shared.by_key_head)
        y = g.op("Reshape", g.op("MatMul", weights, v), g.constant([0, a.heads, -1, a.head_width]))
        y = g.op("Transpose", y, perm=[0, 2, 1, 3])
        y = g.op("Reshape", y, g.constant([0, 0, a.heads * a.head_width]))
        return self.matrices.linear(y, f"{name}.output")

    def turn(self, x: str, shared: Places) -> str:
        """Rotary positions: both halves of a head, turned against each other. [B, H, T, C]"""
        if shared.cos is None or shared.sin is None:
            return x
        g = self.g
        a, b = g.ops("Split", 2, x, axis=-1, num_outputs=2)
        first = g.op("Sub", g.op("Mul", a, shared.cos), g.op("Mul", b, shared.sin))
        second = g.op("Add", g.op("Mul", b, shared.cos), g.op("Mul", a, shared.sin))
        return g.op("Concat", first, second, axis=-1)

    def feed(self, x: str, block: int) -> str:
        """What the feed-forward adds; x is not normed yet."""
        g, kind, name = self.g, self.config.feed_forward, f"blocks.{block}.feed_forward"
        x = self.norm(x, f"blocks.{block}.feed_forward_norm.weight")
        up = self.matrices.linear(x, f"{name}.up")
        if isinstance(kind, SwiGLUConfig):
            gate = self.matrices.linear(x, f"{name}.gate")
            up = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        elif isinstance(kind, GELUConfig):
            up = g.op("Gelu", up, approximate="tanh" if kind.tanh else "none")
        else:
            positive = g.op("Relu", up)
            up = g.op("Mul", positive, positive)
        return self.matrices.linear(up, f"{name}.down")

    def norm(self, x: str, weight: str) -> str:
        g = self.g
        squares = g.op("ReduceMean", g.op("Pow", x, g.constant(2.0, np.float32)), g.constant([-1]), keepdims=1)
        root = g.op("Sqrt", g.op("Add", squares, g.constant(self.config.norm_epsilon, np.float32)))
        return g.op("Mul", g.op("Div", x, root), self.matrices.vector(weight))
