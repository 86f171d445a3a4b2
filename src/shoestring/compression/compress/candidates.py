"""The ways that `compress` knows, cheap ones first, each with the bytes that its weights will take. Torch-free.

A family is one way in several strengths, from the most bytes to the fewest: within it fewer bytes are taken to lose
more, so that not each has to be tried. Sizes are exact, from shapes: of the tensors that `quantize` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SCALE, _SHAPE = 2, 16  # bytes of a scale, and of the tensor that says a matrix's shape
# Bits and groups of `quantize`, finest first.
_FINE = ((8, 0), (4, 32), (4, 64), (4, 128), (3, 32), (3, 64), (3, 128))
_BY_TEXT = ((8, 128), *_FINE[1:])
_FEW = _FINE[1:]
PRUNED = "pruned"
PARTS = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the parameters that pruning leaves
_AFTER: dict[str, Any] = {"method": "gptq", "bits": 4, "group": 32, "symmetric": False}  # of what is pruned


@dataclass(frozen=True)
class Candidate:
    """key: as it stands in the journal. family: of which it is one strength. bytes: predicted, of all weights.
    steps: verbs, one after another, with their settings."""

    key: str
    name: str
    family: str
    bytes: int
    steps: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Shapes:
    """matrices: (outputs, inputs) of all linears of the blocks. rest: bytes of all else as it is stored; numbers: how
    many numbers that are. stored: bytes of the whole. float32: whether that is what it is stored in."""

    matrices: tuple[tuple[int, int], ...]
    rest: int
    numbers: int
    stored: int
    float32: bool

    def halved(self) -> int:
        """All weights in 16 bits."""
        return 2 * (self.numbers + sum(outputs * inputs for outputs, inputs in self.matrices))

    def quantized(self, bits: int, group: int, symmetric: bool) -> int:
        """As `models.packed_files` lays it out, the rest in 16 bits where it was in float32."""
        total = 2 * self.numbers if self.float32 else self.rest
        for outputs, inputs in self.matrices:
            groups = inputs // group if group else 1
            total += 4 * outputs * _words(inputs, bits) + _SCALE * outputs * groups + _SHAPE
            total += 0 if symmetric else 4 * _words(outputs, bits) * groups
        return total

    def fits(self, group: int) -> bool:
        """Whether groups divide every matrix."""
        return not group or all(inputs % group == 0 for _, inputs in self.matrices)


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)


def families(shapes: Shapes, pruned: Mapping[float, Shapes] | None = None, recover: int = 0) -> list[list[Candidate]]:
    """Cheap families first; those are left out that this model's shapes do not allow. pruned: what is left of the model
    with a part of its parameters, largest part first; recover: steps of training behind that."""
    found: list[list[Candidate]] = []
    if shapes.float32:
        found.append([Candidate("bfloat16", "bfloat16", "bfloat16", shapes.halved(), (("cast", {}),))])
    found += [
        _quantized(shapes, "rtn", _FINE),
        _quantized(shapes, "gptq", _BY_TEXT),
        _quantized(shapes, "gptq", _FEW, symmetric=False),
        _quantized(shapes, "awq", _FEW),
        _quantized(shapes, "learned", _FEW),
        _quantized(shapes, "learned", _FEW, symmetric=False),
    ]
    found.append([_pruned(part, left, recover) for part, left in (pruned or {}).items() if left.fits(_AFTER["group"])])
    return [family for family in found if family]


def _pruned(part: float, left: Shapes, recover: int) -> Candidate:
    """Parts taken out, trained again, and quantized."""
    settings = {**_AFTER, **({"dtype": "bfloat16"} if left.float32 else {})}
    size = left.quantized(settings["bits"], settings["group"], settings["symmetric"])
    pruning = {"parameters": f"{part}x", "recover": recover}
    name = f"pruned to {part}x, gptq asymmetric, {settings['bits']} bits in groups of {settings['group']}"
    return Candidate(f"pruned-{part}", name, PRUNED, size, (("prune", pruning), ("quantize", settings)))


def _quantized(
    shapes: Shapes, method: str, strengths: Sequence[tuple[int, int]], symmetric: bool = True
) -> list[Candidate]:
    family = method if symmetric else f"{method} asymmetric"
    dtype = {"dtype": "bfloat16"} if shapes.float32 else {}
    found = []
    for bits, group in strengths:
        if not shapes.fits(group):
            continue
        settings = {"method": method, "bits": bits, "group": group, "symmetric": symmetric, **dtype}
        each = f"groups of {group}" if group else "rows"
        key = f"{family.replace(' ', '-')}-{bits}-{group}"
        size = shapes.quantized(bits, group, symmetric)
        found.append(Candidate(key, f"{family}, {bits} bits in {each}", family, size, (("quantize", settings),)))
    return found
