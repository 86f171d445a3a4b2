"""A model whose layers lie on two or three processes trains and decodes as it does in one, whatever it is made of."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from shoestring.core.errors import ModelFileError
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import read_config
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.config import block_order
from shoestring.offload.pipeline.load import load_part, open_streamed_part
from shoestring.offload.pipeline.place import Place
from tests.offload import split_cases
from tests.offload.split_cases import CASES
from tests.offload.split_ranks import RANGES

ALONE: dict[str, tuple] = {}
STARTS = [
    pytest.param((3, ("full, tied", "full, untied", "lora", "lora, streamed int8", "shared by turns")), id="three"),
    pytest.param((2, tuple(CASES)), id="two, every kind", marks=pytest.mark.long),
    pytest.param((3, tuple(CASES)), id="three, every kind", marks=pytest.mark.long),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    (folder / "models").mkdir()
    for name, case in CASES.items():
        split_cases.save(folder / "models" / name, case)
    return folder


@pytest.fixture(scope="module", params=STARTS)
def left(request, folder) -> Path:
    """Run cases in so many processes; -> what they left."""
    world, names = request.param
    out = folder / f"{world}-{len(names)}"
    out.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).parents[2]
    env = {
        **os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "SHOESTRING_CACHE": str(folder / "cache"),
    }  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.offload.split_ranks", str(out), *names],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    told = [worker.communicate(timeout=400)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * world, "\n".join(told)
    return out


@pytest.fixture(scope="module")
def facts(left) -> list[dict]:
    return [json.loads(file.read_text())["facts"] for file in sorted(left.glob("?.json"))]


@pytest.fixture(scope="module")
def ends(left) -> list[dict]:
    return [json.loads(file.read_text())["ends"] for file in sorted(left.glob("?.json"))]


def expected(folder: Path, name: str) -> tuple:
    if name not in ALONE:
        ALONE[name] = split_cases.alone(folder / "models" / name, CASES[name])
    return ALONE[name]


def test_losses_norms_gradients_and_weights_are_those_of_one_process(folder, left, facts):
    for name in facts[0]:
        case = CASES[name]
        figures, gradients, weights, _ = expected(folder, name)
        close = {"rtol": 1e-5, "atol": 1e-5} if case.compute == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
        told = {**close, "msg": lambda said, name=name: f"{name}: {said}"}
        for of_rank in facts:
            assert_close(torch.tensor(of_rank[name]["figures"]), torch.tensor(figures), **told)
        if case.dtype == torch.float64:  # in which nothing but rounding in the order of sums could differ
            told |= {"rtol": 1e-6, "atol": 1e-9}
        seen: dict[str, torch.Tensor] = {}
        for rank in range(len(facts)):
            found = load_file(left / f"{name}-{rank}.safetensors")
            if rank == 0:
                trained = {key.removeprefix("weights/"): found[key] for key in found if key.startswith("weights/")}
                assert trained.keys() == weights.keys()
                assert_close(trained, weights, **{**told, "atol": 10 * told["atol"]})
            for key, gradient in found.items():
                if not key.startswith("weights/"):
                    assert key not in seen or torch.equal(seen[key], gradient)  # a shared block's, on all that hold it
                    seen[key] = gradient
        assert seen.keys() == gradients.keys()
        assert_close(seen, gradients, **told)


def test_greedy_tokens_are_those_of_one_process_on_every_machine(folder, facts):
    for name in facts[0]:
        *_, decoder = expected(folder, name)
        decoder.eval()
        tokens = split_cases.batches(0)[0].tokens_BT[:1]
        with torch.no_grad():
            logits = decoder.head(decoder(tokens)[0])[0, -1]
            found = tokens[0, :6].tolist()
            for _ in range(6):
                found.append(int(decoder.head(decoder(torch.tensor([found]))[0])[0, -1].argmax()))
        for of_rank in facts:
            assert_close(torch.tensor(of_rank[name]["logits"]), logits.float(), rtol=1e-3, atol=1e-3)
            assert of_rank[name]["tokens"] == found


def test_a_process_holds_the_tensors_of_its_layers_and_nothing_else(facts):
    ranges = RANGES[len(facts)]
    for name in {"full, tied", "full, untied", "shared by turns"} & facts[0].keys():
        config = ModelConfig.model_validate({**split_cases.SHAPE, **CASES[name].shape})
        order = block_order(config.layers, config.sharing)
        every = [name for name, _ in build(config, device="meta").named_parameters()]
        for rank, (first, end) in enumerate(ranges):
            here = {f"blocks.{order[position]}" for position in range(first, end)}
            here |= {"norm", "embedding" if config.tied_head else "head"} if rank == len(ranges) - 1 else set()
            here |= {"embedding"} if rank == 0 and not config.tied_head else set()
            wanted = [each for each in every if any(each.startswith(f"{part}.") for part in here)]
            assert facts[rank][name]["held"] == sorted(wanted)


def test_what_is_sent_is_the_hidden_states_and_their_gradients_alone(facts):
    """And where a tied matrix is trained the rows of the step's tokens, once each."""
    counted = [batch for batch in split_cases.batches(19) if bool((batch.labels_BT != -100).any())]
    states = 4 * split_cases.SHAPE["width"] * sum(batch.tokens_BT.numel() for batch in counted)
    rows = 4 * split_cases.SHAPE["width"] * len(torch.cat([batch.tokens_BT.flatten() for batch in counted]).unique())
    assert all(CASES[name].steps == 20 for name in ("full, tied", "full, untied", "lora"))
    ends = len(facts) - 1
    for rank, of_rank in enumerate(facts):
        neighbours = (rank > 0) + (rank < ends)
        assert of_rank["full, untied"]["sent"] == neighbours * states
        assert of_rank["full, tied"]["sent"] == 2 * (neighbours * states + (rank in (0, ends)) * rows)  # in float64
        # Nothing is trained before the first layer, so the first machine's gradients end there.
        assert of_rank["lora"]["sent"] == neighbours * states
        assert all(seconds >= 0 for seconds in of_rank["lora"]["times"]) and of_rank["lora"]["times"][0] > 0


def test_a_fresh_part_begins_as_it_would_in_the_whole(left, facts):
    whole = dict(build(ModelConfig.model_validate(split_cases.SHAPE), seed=5).named_parameters())
    seen = set()
    for rank in range(len(facts)):
        for name, tensor in load_file(left / f"fresh-{rank}.safetensors").items():
            assert torch.equal(tensor, whole[name]), name
            seen.add(name)
    assert seen == whole.keys()


def test_a_step_that_one_machine_cannot_do_is_left_by_all(ends):
    assert [of_rank["too large"] for of_rank in ends] == ["Elsewhere"] * (len(ends) - 1) + ["RuntimeError"]


def test_who_waits_for_a_machine_that_has_gone_is_told_in_a_sentence(ends):
    for of_rank in ends[:-1]:
        said, seconds = of_rank["lost"]
        assert said.startswith("another process has gone: ") and "\n" not in said and seconds < 60


def test_a_folder_may_hold_the_tensors_of_its_machine_alone(folder, tmp_path):
    """Frozen and trained, in memory and streamed."""
    for name, trained in (("full, untied", True), ("lora", False)):
        whole = folder / "models" / name
        config = read_config(whole)
        for rank in range(2):
            place = Place(rank, RANGES[2])
            part = tmp_path / f"{name}-{rank}"
            shutil.copytree(whole, part)
            held = place.holds(config, trained)
            tensors = load_file(whole / "model.safetensors")
            with WeightFiles(whole) as files:
                kept = {at.tensor: tensors[at.tensor] for parameter, at in files.places.items() if held(parameter)}
            assert 0 < len(kept) < len(tensors)
            save_file(kept, part / "model.safetensors")
            for load in (load_part, open_streamed_part):
                if load is open_streamed_part and trained:
                    continue
                more = {"trained": trained} if load is load_part else {}
                one, other = (load(each, place, **more) for each in (whole, part))
                assert dict(one.named_parameters()).keys() == dict(other.named_parameters()).keys()
                for index in place.blocks(tuple(range(config.layers))):
                    for each in (one, other):
                        if each.stream is not None:
                            each.stream.load(index - place.first)
                    for key, tensor in one.blocks[index].state_dict().items():
                        assert torch.equal(other.blocks[index].state_dict()[key], tensor)
                for each in (one, other):
                    each.close()
            with pytest.raises(ModelFileError, match="missing from the weights"):
                load_part(part, Place(1 - rank, RANGES[2]), trained=trained)
