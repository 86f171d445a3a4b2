"""How much the loss feels an error in what a matrix gives: of each, by some of the text, once forward and once back.

With g the gradient of the loss of all tokens with respect to an output y of a linear, errors e in its outputs change
the loss by about ½·Σ (gᵀe)², the second order with the empirical Fisher matrix for the Hessian. For errors that lie as
the outputs do, and independently of gradients (as in K-FAC, arXiv 1503.05671), that is w·Σ ‖e‖² with

    w = ½ · trace(G·C) / (N · trace(C)),   G = Σ g·gᵀ, C = Σ y·yᵀ over N tokens

Blocks are read one at a time, on the way forward and again on the way back; between them stand the hidden states that
each block takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.ends import begin, ending
from shoestring.compression.passage import Kept, MakeKept, Passage, pass_through
from shoestring.compression.quantize.config import LINEARS
from shoestring.compression.quantize.gptq import Hessian
from shoestring.compression.read_block import read_block
from shoestring.data.batch import PADDING_SEGMENT, Batch
from shoestring.models.builder import build
from shoestring.models.weight_files import WeightFiles
from shoestring.train.objective import next_token

TOKENS = 4096  # of the text, about


def loss_weights(
    files: WeightFiles, batches: Sequence[Batch], states: MakeKept, done: Callable[[], Any]
) -> dict[str, float]:
    """w of each matrix in the blocks, as `INDEX.NAME`, in nats. states: where hidden ones are. done: called for each
    block, twice."""
    plain = build(files.config, device="meta")
    passages = begin(_some(batches), plain, files.places, states)
    inputs: list[list[Kept]] = []
    for index in range(files.config.layers):
        inputs.append([_kept(passage.hidden_BTD, states) for passage in passages])
        pass_through(read_block(files, index), passages)
        done()
    with ending(plain, files.places) as (norm, head):
        for passage in passages:
            last_BTD = passage.hidden_BTD.requires_grad_()
            with torch.enable_grad():
                loss = next_token(norm(last_BTD), head, passage.batch).sum
            (passage.hidden_BTD,) = torch.autograd.grad(loss, last_BTD)
    tokens = sum(int(passage.there_BT.sum()) for passage in passages)
    found = {}
    for index in reversed(range(files.config.layers)):
        block = read_block(files, index)
        for name, (outputs_OO, gradients_OO) in _back(block, passages, inputs.pop()).items():
            size = float(outputs_OO.diagonal().sum()) * tokens
            found[f"{index}.{name}"] = 0.5 * float((outputs_OO * gradients_OO).sum()) / size if size else 0.0
        done()
    return found


def _some(batches: Sequence[Batch]) -> list[Batch]:
    """The first, as many as make so many tokens."""
    chosen, tokens = [], 0
    for batch in batches:
        if tokens >= TOKENS:
            break
        chosen.append(batch)
        tokens += int((batch.segments_BT != PADDING_SEGMENT).sum())
    return chosen


def _kept(hidden_BTD: Tensor, states: MakeKept) -> Kept:
    kept = states()
    kept.put(hidden_BTD)
    return kept


def _back(block: nn.Module, passages: Sequence[Passage], inputs: Sequence[Kept]) -> dict[str, tuple[Tensor, Tensor]]:
    """Bring gradients, which the passages hold, before the block; -> second moments of each linear's outputs and of
    their gradients."""
    found = {}
    with _watched(block) as (there, sums):
        for passage, kept in zip(passages, inputs, strict=True):
            there.append(passage.there_BT)
            before_BTD = kept.get().requires_grad_()
            with torch.enable_grad():
                after_BTD = block(before_BTD, passage.context)[0]
            (passage.hidden_BTD,) = torch.autograd.grad(after_BTD, before_BTD, passage.hidden_BTD)
        for name, (outputs, gradients) in sums.items():
            found[name] = outputs.sum_II, gradients.sum_II.to(outputs.sum_II.dtype)
    return found


@contextmanager
def _watched(block: nn.Module) -> Iterator[tuple[list[Tensor], dict[str, tuple[Hessian, Hessian]]]]:
    """Sums over all that passes the block's linears, forward and back, where the last of a list of masks is true."""
    there: list[Tensor] = []
    sums: dict[str, tuple[Hessian, Hessian]] = {}

    def watch(outputs: Hessian, gradients: Hessian) -> Any:
        def see(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            given = output.detach() if module.bias is None else output.detach() - module.bias
            outputs.add(given[there[-1]])
            output.register_hook(lambda gradient: gradients.add(gradient[there[-1]]))

        return see

    handles = []
    for name in LINEARS:
        linear: Any = block.get_submodule(name)
        sums[name] = Hessian(linear.out_features), Hessian(linear.out_features)
        handles.append(linear.register_forward_hook(watch(*sums[name])))
    try:
        yield there, sums
    finally:
        for handle in handles:
            handle.remove()
