"""An ONNX graph in the making: nodes, small constants, and weights that stay on the disk until they are written.

Weights go into a file of their own beside the graph, as ONNX's external data, one after another, so that neither
protobuf's two gigabytes nor memory sets a limit to a model.
Format: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

OPSET, CONTRIB_OPSET, IR_VERSION = 20, 1, 9
CONTRIB = "com.microsoft"  # onnxruntime's own operators, in all its builds
_ALIGNMENT = 4096  # of a weight in its file, so that it can be mapped


@dataclass(frozen=True)
class Weight:
    """make() gives its numbers, of this shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Graph:
    """Every method gives the names of what it adds."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Weight] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], tuple[str, np.ndarray]] = {}

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """A node with several outputs."""
        from onnx import helper

        number = len(self.nodes)
        names = [f"{kind.lower()}_{number}" + (f"_{n}" if outputs > 1 else "") for n in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, [*inputs], names, name=f"{kind}_{number}", domain=domain or None, **attributes)
        )
        return names

    def named(self, name: str, value: str) -> str:
        """The same value under a name of its own."""
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"Identity_{len(self.nodes)}"))
        return name

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A few numbers; equal ones share a name."""
        array = np.ascontiguousarray(np.asarray(values, dtype))
        array = array.reshape(np.shape(values))  # a scalar stays one
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = (f"constant_{len(self._constants)}", array)
        return self._constants[key][0]

    def weight(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray], dtype: Any = np.float32) -> str:
        self.weights.setdefault(name, Weight(name, shape, np.dtype(dtype), make))
        return name

    def model(self, inputs: list[Any], outputs: list[Any], data: str) -> Any:
        """The ModelProto. data: the name of the file with the weights."""
        from onnx import helper, numpy_helper

        initializers = [numpy_helper.from_array(array, name) for name, array in self._constants.values()]
        offset = 0
        for weight in self.weights.values():
            offset = _aligned(offset)
            initializers.append(_external(weight, data, offset))
            offset += weight.nbytes
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="shoestring"
        )

    def write_weights(self, file: IO[bytes]) -> None:
        """In the order and at the places that `model` says."""
        at = 0
        for weight in self.weights.values():
            file.write(bytes(_aligned(at) - at))
            values = np.ascontiguousarray(weight.make(), weight.dtype)
            assert values.shape == weight.shape, weight.name
            file.write(values.reshape(-1).view(np.uint8).data)
            at = _aligned(at) + weight.nbytes


def write(graph: Graph, path: Path, inputs: list[Any], outputs: list[Any]) -> list[Path]:
    """Write `path` and its weights beside it, into a folder that the caller makes appear at once. -> the files."""
    data = path.with_name(f"{path.name}_data")  # as transformers.js calls it
    model = graph.model(inputs, outputs, data.name)
    with open(data, "wb") as file:
        graph.write_weights(file)
    path.write_bytes(model.SerializeToString())
    return [path, data]


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _external(weight: Weight, data: str, offset: int) -> Any:
    from onnx import TensorProto, helper

    tensor = TensorProto()
    tensor.name = weight.name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(weight.dtype)
    tensor.dims.extend(weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": data, "offset": offset, "length": weight.nbytes}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor
