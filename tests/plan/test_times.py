"""What seconds are predicted from: bytes that the allocator hands out, operations that torch counts; and their sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.core.filled import filled_sizes
from shoestring.kernels import allocator
from shoestring.models.builder import build
from shoestring.plan import predict as predicting
from shoestring.plan.constants import KERNEL, PRODUCTS
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.predict import predict
from shoestring.plan.quantizing import LINEARS, Rounding, block_time
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Training
from shoestring.plan.speed import MOVING, WAITING, WRITING
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.resident import ResidentEngine
from tests.plan import counted

MACHINE = Machine(300_000_000, 5e10, read_speed=1e9, total=16_000_000_000, bandwidth=1e10)
MOE = {"feed_forward": {"kind": "moe", "width": 96, "experts": 4}}


@pytest.fixture(autouse=True)
def _ours() -> None:
    if not allocator.install():
        pytest.skip("tensors are counted where there is a compiler")


@pytest.mark.parametrize("microbatches", [1, 2, 4])
@pytest.mark.parametrize("engine", ["resident", "checkpointed"])
def test_bytes_made_are_those_that_the_allocator_hands_out(microbatches: int, engine: str) -> None:
    config = counted.config(192, vocabulary=600, layers=7)
    recompute = "full" if engine == "checkpointed" else "selective"
    parts = counted.batches(microbatches, 2, 96, 600)
    made = ResidentEngine(lambda: counted.model(config, Training()), recompute=recompute)
    made.load()
    made.begin(next_token, AdamWConfig())
    for _ in range(2):
        made.forward_backward(parts)
        made.optimizer_step(1.0, 1.0)
    allocator.trace_start()
    made.forward_backward(parts)
    taken = sum(event.bytes for event in allocator.trace_stop() if event.bytes > 0)
    made.close()
    shape, spec = JobShape(config, 2 * microbatches, 96), EngineSpec(engine, 2, recompute)
    walk = predicting._walk(shape, spec, torch.get_num_threads(), False, False)
    assert walk.made == pytest.approx(taken, rel=0.05)


def test_products_are_the_operations_that_torch_counts() -> None:
    config = counted.config(128, vocabulary=500, layers=5)
    decoder = build(config, seed=0)
    tokens_BT = torch.randint(0, 500, (2, 64))
    with FlopCounterMode(display=False) as counter:
        hidden = decoder(tokens_BT)[0]
        (hidden @ decoder.head.weight.T).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    matrices = sum(n for operation, n in counts.items() if "mm" in str(operation))
    time = dict(predict(JobShape(config, 2, 64), EngineSpec("resident", 2), MACHINE).time)
    operations = time["products of matrices"] * PRODUCTS * MACHINE.flops
    # Attention is in there as well, at a lower speed: 64 keys at most, beside matrices of 128.
    assert matrices <= operations <= 1.5 * matrices


def test_every_engines_lines_add_up() -> None:
    config = counted.config(128, layers=6)
    training = Training(False, 8)
    checkpointed, streamed = EngineSpec("checkpointed", 2, "full"), EngineSpec("streamed", 2, "full", 2)
    for spec in (EngineSpec("resident", 2), checkpointed, streamed):
        found = predict(JobShape(config, 4, 64, training), spec, MACHINE)
        assert found.seconds == pytest.approx(sum(seconds for _, seconds in found.time)) and found.tokens == 256
        assert dict(found.time)[MOVING] > 0 and (WAITING in dict(found.time)) == (spec.engine == "streamed")


def test_a_slow_disk_is_waited_for_where_the_layers_do_not_fit_beside() -> None:
    shape = JobShape(counted.config(128, layers=6), 4, 64, Training(False, 8))
    spec = EngineSpec("streamed", 2, "full", 2)
    small = replace(MACHINE, total=1_000_000)
    slow = replace(small, read_speed=1e6)
    waited = [dict(predict(shape, spec, machine).time)[WAITING] for machine in (MACHINE, small, slow)]
    assert waited[0] == 0.0 and waited[2] > 1.0 and waited[2] > waited[1]
    computed = predict(shape, spec, MACHINE).seconds
    layers = 6 * 2 * predict_layer_bytes(shape)
    assert waited[2] == pytest.approx(layers / 1e6, rel=0.5) and computed < 0.2


def predict_layer_bytes(shape: JobShape) -> int:
    """Of a block's matrices, in float32."""
    block = build(shape.config, seed=0).blocks[0]
    return sum(p.numel() * 4 for p in block.parameters() if p.dim() == 2)


def test_a_use_is_its_prompt_and_its_tokens() -> None:
    config = counted.config(256, vocabulary=4000, layers=6)
    prompt = predict_use(config, Use(1, 200, 1), MACHINE, "float32").seconds
    both = predict_use(config, Use(1, 200, 33), MACHINE, "float32")
    writing = dict(both.time)[WRITING] / 32
    assert both.seconds - 32 * writing == pytest.approx(prompt, rel=0.01)
    # A token reads every weight once: at the speed of memory it is no faster than that.
    assert writing >= 4 * config.parameter_count() / MACHINE.bandwidth
    streamed = predict_use(config, Use(1, 200, 33), MACHINE, "float32", slots=2)
    assert dict(streamed.time)[WRITING] > 2 * 32 * writing


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "learned"])
def test_a_block_takes_longer_with_more_text_and_wider_matrices(method: str) -> None:
    def seconds(width: int, tokens: int) -> float:
        stages = (((width, width),) * 3, ((width, width),), ((2 * width, width),) * 2, ((width, 2 * width),))
        assert sum(map(len, stages)) == len(LINEARS)
        job = Rounding(stages, method, tokens, 256, 1024, 128, 10)
        return sum(each for _, each in block_time(counted.config(width), job, MACHINE))

    assert seconds(128, 2048) < seconds(256, 2048)
    assert (seconds(128, 2048) < seconds(128, 4096)) == (method != "rtn")


LIBRARIES = "matrix libraries, for each size of a product"


def libraries(shape: JobShape, spec: EngineSpec, machine: Machine = MACHINE) -> int:
    return dict(predict(shape, spec, machine).beside).get(LIBRARIES, 0)


def test_products_of_half_precision_are_kept_compiled_each_by_its_size() -> None:
    """Of a block: queries and output, keys and values, gate and up, down; forward, and two gradients of each."""
    shape = JobShape(counted.config(128), 4, 256, compute="bfloat16", measured=False)
    spec = EngineSpec("resident", 2)
    head = 3  # logits, and both gradients
    assert libraries(shape, spec) == KERNEL * (4 * 3 + head)
    assert libraries(replace(shape, measured=True), spec) == KERNEL * (4 * 3 + head + 4 + 2)
    assert libraries(replace(shape, compute="float32"), spec) == 0
    assert libraries(shape, spec, replace(MACHINE, gpu=True)) == 0


def test_experts_bring_kernels_of_their_own_in_bfloat16() -> None:
    """As many as there are numbers of rows that they are filled up to."""
    spec = EngineSpec("resident", 2)
    dense, mixed = (
        JobShape(config, 4, 256, compute="bfloat16", measured=False)
        for config in (counted.config(128), counted.config(128, **MOE))
    )
    experts = libraries(mixed, spec) - libraries(dense, spec) + 6 * KERNEL  # which has gate and up, and down
    assert experts == 6 * KERNEL * filled_sizes(512)
    longer = replace(mixed, length=4096), replace(dense, length=4096)
    assert libraries(longer[0], spec) - libraries(longer[1], spec) < 4 * experts


def test_lengths_that_a_run_is_likely_to_meet_are_counted() -> None:
    def kernels(rows: int, steps: int, *lengths: float, alike: bool = False) -> float:
        shape = JobShape(
            counted.config(128), rows, 64, compute="bfloat16", measured=False, lengths=lengths, alike=alike,
            steps=steps,
        )  # fmt: skip
        return libraries(shape, EngineSpec("resident", rows)) / KERNEL / 15

    assert kernels(1, 1, 1.0) == 1
    assert kernels(1, 1, 0.5, 0.5) == 1  # a step has one
    assert kernels(1, 2, 0.5, 0.5) == 2  # half of all runs meet both
    assert kernels(1, 2, 0.9, 0.1) == 1
    assert kernels(1, 0, 0.5, 0.5) == 2
    assert kernels(8, 2, 0.5, 0.5) == 1  # the longest of eight rows is nearly always long
    assert kernels(8, 2, 0.5, 0.5, alike=True) == 2
