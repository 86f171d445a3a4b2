"""The ways that `compress` knows, cheap ones first, each with the bytes that its weights will take. Torch-free.

A family is one way in several strengths, from the most bytes to the fewest: within it fewer bytes are taken to lose
more, so that not each has to be tried. Sizes are exact, from shapes: of the tensors that `quantize` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoestring.compression.quantize.config import WIDE, told

_SCALE, _SHAPE = 2, 16  # bytes of a scale, and of the tensor that says a matrix's shape
# Bits and groups of `quantize`, finest first.
_FINE = ((8, 0), (4, 32), (4, 64), (4, 128), (3, 32), (3, 64), (3, 128))
_BY_TEXT = ((8, 128), *_FINE[1:])
_FEW = _FINE[1:]
# Linears in 8 bits beside 4, from most to fewest: alike what inference servers compute as one.
_WIDE: tuple[tuple[str, ...], ...] = (
    ("output", "gate", "up", "down"), ("query", "key", "value", "output", "down"), ("query", "key", "value", "down"),
    ("output", "down"), ("down",), (),
)  # fmt: skip
PRUNED = "pruned"
PARTS = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the parameters that pruning leaves
_AFTER: dict[str, Any] = {"method": "gptq", "bits": 4, "group": 32, "symmetric": False}  # of what is pruned


@dataclass(frozen=True)
class Candidate:
    """key: as it stands in the journal. family: of which it is one strength. bytes: predicted, of all weights, and
    outside: of embedding, head and norms. steps: verbs, one after another, with their settings."""

    key: str
    name: str
    family: str
    bytes: int
    outside: int
    steps: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Shapes:
    """matrices: (name in its block, outputs, inputs) of all linears of the blocks. rest: bytes of all else as it is
    stored; numbers: how many numbers that are. stored: bytes of the whole. float32: whether that is what it is stored
    in. ends: rows, width and bytes a number of the embedding, and of a head of its own."""

    matrices: tuple[tuple[str, int, int], ...]
    rest: int
    numbers: int
    stored: int
    float32: bool
    ends: tuple[tuple[int, int, int], ...]

    def halved(self) -> int:
        """All weights in 16 bits."""
        return 2 * (self.numbers + sum(outputs * inputs for _, outputs, inputs in self.matrices))

    def quantized(
        self, bits: int, group: int, symmetric: bool, wide: Sequence[str] = (), embedding: int | None = None
    ) -> int:
        """As `models.packed_files` lays it out. embedding: bits of the ends, if they are in few."""
        total = self.outside(embedding)
        for name, outputs, inputs in self.matrices:
            groups, each = inputs // group if group else 1, WIDE if name in wide else bits
            total += 4 * outputs * _words(inputs, each) + _SCALE * outputs * groups + _SHAPE
            total += 0 if symmetric else 4 * _words(outputs, each) * groups
        return total

    def outside(self, embedding: int | None = None) -> int:
        """All that is no linear: the ends in 8 bits as `models.rounded_rows` has them, if they are; else, and the rest,
        in 16 bits where it was in float32."""
        total = 2 * self.numbers if self.float32 else self.rest
        if embedding is not None:
            names = 2 if len(self.ends) == 1 else 1  # a tied head has scales under its own name too
            for rows, width, stored in self.ends:
                total += rows * width * (1 - (2 if self.float32 else stored)) + _SCALE * rows * names
        return total

    def fits(self, group: int) -> bool:
        """Whether groups divide every matrix."""
        return not group or all(inputs % group == 0 for *_, inputs in self.matrices)


def _words(codes: int, bits: int) -> int:
    return -(-codes * bits // 32)


def families(shapes: Shapes, pruned: Mapping[float, Shapes] | None = None, recover: int = 0) -> list[list[Candidate]]:
    """Cheap families first; those are left out that this model's shapes do not allow. pruned: what is left of the model
    with a part of its parameters, largest part first; recover: steps of training behind that."""
    found: list[list[Candidate]] = []
    if shapes.float32:
        size = shapes.halved()
        found.append([Candidate("bfloat16", "bfloat16", "bfloat16", size, shapes.outside(), (("cast", {}),))])
    found += [
        [*_quantized(shapes, "rtn", _FINE[:1]), _rows(shapes), *_quantized(shapes, "rtn", _FINE[1:])],
        _wide(shapes),
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
    settings = {**_AFTER, **_stored(left)}
    size = left.quantized(settings["bits"], settings["group"], settings["symmetric"])
    pruning = {"parameters": f"{part}x", "recover": recover}
    name = f"pruned to {part}x, gptq asymmetric, {settings['bits']} bits in groups of {settings['group']}"
    steps = ("prune", pruning), ("quantize", settings)
    return Candidate(f"pruned-{part}", name, PRUNED, size, left.outside(), steps)


def _rows(shapes: Shapes) -> Candidate:
    """All in 8 bits."""
    settings = {"method": "rtn", "bits": WIDE, "group": 0, "embedding": WIDE, **_stored(shapes)}
    size, name = shapes.quantized(WIDE, 0, True, embedding=WIDE), f"rtn, {told(WIDE, 0, (), WIDE)}"
    return Candidate("rtn-8-0-embedding", name, "rtn", size, shapes.outside(WIDE), (("quantize", settings),))


def _wide(shapes: Shapes) -> list[Candidate]:
    """4 bits in groups of 32, and some linears in 8, as embedding and head are: what lies between the two."""
    if not shapes.fits(group := 32):
        return []
    found = []
    for wide in _WIDE:
        settings = {
            "method": "gptq", "bits": 4, "group": group, "wide": wide, "embedding": WIDE, **_stored(shapes),
        }  # fmt: skip
        name = f"gptq, {told(4, group, wide, WIDE)}"
        key = "-".join(("gptq", "4", str(group), "embedding", *wide))
        size = shapes.quantized(4, group, True, wide, WIDE)
        found.append(Candidate(key, name, "gptq wide", size, shapes.outside(WIDE), (("quantize", settings),)))
    return found


def _stored(shapes: Shapes) -> dict[str, Any]:
    return {"dtype": "bfloat16"} if shapes.float32 else {}


def _quantized(
    shapes: Shapes, method: str, strengths: Sequence[tuple[int, int]], symmetric: bool = True
) -> list[Candidate]:
    family = method if symmetric else f"{method} asymmetric"
    found = []
    for bits, group in strengths:
        if not shapes.fits(group):
            continue
        settings = {"method": method, "bits": bits, "group": group, "symmetric": symmetric, **_stored(shapes)}
        each = f"groups of {group}" if group else "rows"
        key, name = f"{family.replace(' ', '-')}-{bits}-{group}", f"{family}, {bits} bits in {each}"
        size = shapes.quantized(bits, group, symmetric)
        found.append(Candidate(key, name, family, size, shapes.outside(), (("quantize", settings),)))
    return found
