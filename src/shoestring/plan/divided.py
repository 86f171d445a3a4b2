"""What a step takes in one process of several that share a model (`train.fsdp`). Torch-free.

Weights, gradients and moments lie in equal parts, once the model has been loaded and divided. Whole are, for a while:
what stands around the blocks (embedding, head, norm), from the pass forward to the end of the pass backward; the block
that computes, with the buffer that it or the next one came in; in the pass backward what gradients it has so far, and
the buffer in which those of the block before are on their way to their ranks. The rest is as in one process.
"""

from __future__ import annotations

from shoestring.plan.moments import beside_step, kept_moments
from shoestring.plan.peak import HEAD, LAYER, Walk
from shoestring.plan.shapes import EngineSpec, JobShape, Line
from shoestring.plan.tape import FLOAT, HALF

WEIGHTS, MOMENTS = "weights, a part of them", "moments, a part of them"  # lines that a receipt knows


def divided(shape: JobShape, spec: EngineSpec, walk: Walk) -> list[Line]:
    """Lines of one process's tensors. walk: of the whole model, with its own rows, one or two microbatches."""
    config, shards = shape.config, spec.shards
    around, block = walk.stored, walk.matrices
    weights = config.unique_layers * block + around
    moments = kept_moments(shape.moving, walk.trained) / shards
    half = shape.compute in ("bfloat16", "float16")
    inside = HALF / FLOAT if half else 1.0  # of a block's bytes, as it computes
    once = len(walk.phases) // (2 if shape.rows > spec.microbatch else 1)
    best, lines = 0.0, list[tuple[str, float]]()
    backward, behind = False, 0  # how many blocks have gone backward
    for number, phase in enumerate(walk.phases):
        first = walk.phases[number % once]
        layer = phase.name == LAYER
        backward = phase.name == HEAD or (backward and layer)
        behind = behind + 1 if backward and layer else 0
        work = phase.peak - phase.gradients_at_peak
        kept = min(phase.kept - phase.gradients, work)
        arrived = (first.gradients if number < once else weights) / shards
        fresh = (first.gradients_at_peak - first.gradients) * inside if backward else 0.0
        found = [
            ("gradients, a part of them", arrived),
            ("weights around the blocks, whole", around),
            ("blocks that are whole", block * inside * (2 if layer else 1) + (block * inside / shards if half else 0)),
            ("gradients on their way", fresh + (block if behind > 1 else 0)),
            ("kept activations", kept),
            (phase.name, work - kept),
        ]
        if (size := sum(bytes for _, bytes in found)) > best:
            best, lines = size, found
    step = beside_step(shape.moving, walk.trained)
    moving = [("gradients, a part of them", weights / shards), ("moving the weights", step)]
    if sum(size for _, size in moving) > best:
        lines = moving
    lines = [(WEIGHTS, weights / shards), (MOMENTS, moments), *lines]
    if weights > sum(size for _, size in lines):
        lines = [("weights, whole while they are loaded", weights)]
    return [(name, int(size)) for name, size in lines if size]
