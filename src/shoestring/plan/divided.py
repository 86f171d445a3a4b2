"""What a step takes in one process of several that share a model (`train.fsdp`). Torch-free.

Weights, gradients and moments lie in equal parts, once the model has been loaded and divided. Whole are, for a while:
what stands around the blocks (embedding, head, norm) from the pass forward to the end of the pass backward, and its
gradient from the loss on; the block that computes and the next one, and in the pass backward a block's gradient, with a
copy on its way to the others.
"""

from __future__ import annotations

from shoestring.plan.moments import beside_step, kept_moments
from shoestring.plan.peak import Walk
from shoestring.plan.shapes import JobShape, Line
from shoestring.plan.tape import FLOAT, HALF


def divided(shape: JobShape, shards: int, walk: Walk) -> list[Line]:
    """Lines of one process's tensors. walk: of the whole model, with its own rows."""
    config = shape.config
    around, block = walk.stored, walk.matrices
    weights = config.unique_layers * block + around
    inside = HALF if shape.compute in ("bfloat16", "float16") else FLOAT
    gathered = 2 * block * inside / FLOAT
    travelling = 2 * block * inside / FLOAT + block  # a block's gradient, and its sum in float32
    found = []
    for phase in walk.phases:
        gradients = phase.gradients_at_peak
        kept = min(phase.kept - phase.gradients, phase.peak - gradients)
        whole = min(gradients, around)
        found.append((
            phase.peak - gradients + whole + (gradients - whole) / shards,
            phase.name, kept, phase.peak - gradients - kept, whole + (gradients - whole) / shards, whole > 0,
        ))  # fmt: skip
    _, name, kept, work, gradients, backward = max(found)
    lines = [
        ("weights, a part of them", weights / shards),
        ("moments, a part of them", kept_moments(shape.moving, walk.trained) / shards),
        ("gradients, a part of them and those around the blocks", gradients),
        ("weights around the blocks, whole", around),
        ("blocks that are whole for a while", gathered + (travelling if backward else 0)),
        ("kept activations", kept),
        (name, work),
    ]
    step = sum(size for _, size in lines[2:])
    every = weights / shards
    after = [("gradients, a part of them", every), ("summing those around the blocks", 3 * around)]
    moving = [("gradients, a part of them", every), ("moving the weights", beside_step(shape.moving, walk.trained))]
    for others in (after, moving):
        if sum(size for _, size in others) > step:
            lines = [*lines[:2], *others]
            step = sum(size for _, size in others)
    if weights > sum(size for _, size in lines):
        lines = [("weights, whole while they are loaded", weights)]
    return [(name, int(size)) for name, size in lines if size]
