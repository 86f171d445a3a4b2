"""Fine-tuning that leaves the rest of the model as it was: a penalty on its distance from the base, on other examples.

Each optimizer step adds weight · KL(base ‖ tuned), in nats per token, on some ordinary examples. The base is the same
model with its adapter set aside, so it costs no memory. Mixing such examples into the data teaches their words, again
and again; this teaches whole distributions, which are at their least distance where the model does not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from shoestring.core.device import to_device
from shoestring.data.batch import PADDING_SEGMENT, Batch
from shoestring.data.supervised.batches import SupervisedStream
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.supervise import AllTruncated, ModelSide, StopNeverSupervised
from shoestring.finetuning.config import FinetuneRecipe, PreserveConfig
from shoestring.finetuning.examples import prepare_dataset
from shoestring.models.adapters import without_adapters
from shoestring.models.decoder import Decoder
from shoestring.nn.base_distance import base_distance
from shoestring.nn.head import OutputHead
from shoestring.train import parallel
from shoestring.train.dropout import microbatch_seeds
from shoestring.train.objective import Loss, Objective, Penalty

KEPT_BYTES = 32_000_000  # of the base's hidden states


class Preserving:
    """An objective and, every so many steps, the penalty. batches: of ordinary examples, one for each penalty.

    The base's hidden states of the first rows are kept: rows come again.
    """

    def __init__(
        self, objective: Objective, model: Decoder, batches: Iterator[Batch], weight: float = 1.0, every: int = 1
    ):
        self._objective, self._model, self._batches = objective, model, batches
        self._weight, self._every = weight, every
        self._kept: dict[bytes, Tensor] = {}

    def __call__(self, hidden_BTD: Tensor, head: OutputHead, batch: Batch) -> Loss:
        return self._objective(hidden_BTD, head, batch)

    def penalties(self, step: int) -> Iterator[Penalty]:
        yield from self._objective.penalties(step)
        if step % self._every:
            return
        device, batch = self._model.embedding.weight.device, next(self._batches)
        name = b"".join(part.numpy().tobytes() for part in (batch.tokens_BT, batch.segments_BT))
        counted = batch.segments_BT != PADDING_SEGMENT
        count = int(counted.sum())  # all of it here: asking a GPU would wait for it
        places = counted if device.type == "cpu" else tuple(to_device(i, device) for i in counted.nonzero().unbind(1))
        batch = batch.to(device)
        base_BTD = self._base(batch, name)
        with microbatch_seeds(self._model, 1) as (seed,):  # ranks have other rows, and draw other masks
            hidden_BTD, _ = self._model(
                batch.tokens_BT, batch.positions_BT, batch.segments_BT, seed=seed, layout=batch.layout
            )
        distance = base_distance(hidden_BTD[places], base_BTD[places], self._model.head)
        yield Penalty("base_distance", distance / count, self._weight)

    @torch.no_grad()
    def _base(self, batch: Batch, name: bytes) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        with without_adapters(self._model):
            base_BTD, _ = self._model(batch.tokens_BT, batch.positions_BT, batch.segments_BT, layout=batch.layout)
        if sum(kept.nbytes for kept in self._kept.values()) + base_BTD.nbytes <= KEPT_BYTES:
            self._kept[name] = base_BTD
        return base_BTD


def preserving(
    objective: Objective, recipe: FinetuneRecipe, ordinary: SupervisedDataset, model: Decoder, steps_done: int
) -> Preserving:
    """As the recipe's section says; steps_done: of a run that goes on."""
    held = recipe.preserve
    batches = ordinary_batches(ordinary, held.tokens, recipe.seed, -(-steps_done // held.every))
    return Preserving(objective, model, batches, held.weight, held.every)


def ordinary_examples(source: str | Path, config: PreserveConfig, model: ModelSide | Path) -> SupervisedDataset:
    """What the model's predictions are held on, all of every example. Raises as `prepare_dataset` does."""
    try:
        return prepare_dataset(source, model, config.tokens, supervise="all", validation=0.0)
    except (AllTruncated, StopNeverSupervised) as error:
        raise AllTruncated(error.message, str(source), "use a larger preserve.tokens") from None


def ordinary_batches(dataset: SupervisedDataset, tokens: int, seed: int, taken: int = 0) -> SupervisedStream:
    """A row at a time for each process. taken: by each in a run that goes on."""
    rank, world = parallel.rank(), parallel.world_size()
    stream = SupervisedStream(dataset, tokens, 1, world, "packed", seed, rank=rank, world=world)
    epoch, sample = divmod(taken * world, stream.samples_per_epoch)
    stream.restore({**stream.state(), "epoch": epoch, "next_sample": sample})
    return stream
