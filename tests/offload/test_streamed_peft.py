"""The streamed step against peft on transformers: loss and every adapter's gradient, in float64."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from shoestring.data.batch import IGNORED, Batch
from shoestring.models.adapters import attach
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.model import open_streamed
from shoestring.train.objective import next_token
from tests.models import tiny_families
from tests.offload import tiny

PARTS = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight",
         "magnitude": "lora_magnitude_vector.default.weight"}  # fmt: skip
NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "gate": "gate_proj",
         "up": "up_proj", "down": "down_proj"}  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_loss_and_gradients_are_pefts(tmp_path, family, dora):
    folder = tiny.save(tmp_path / "model", family)
    streamed = open_streamed(folder, dtype=torch.float64)
    attach(streamed, LoRAConfig(rank=3, dora=dora), seed=1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in tiny.trained(streamed).items():
            if name.endswith(".lora_B"):
                parameter.normal_(0, 0.05, generator=random)
    save_adapter(streamed, tmp_path / "adapter", folder)
    judge = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), tmp_path / "adapter", is_trainable=True,
        autocast_adapter_dtype=False,
    ).double()  # fmt: skip
    tiny_families.norms_in_float64(judge)

    batches = []
    for one in tiny.batches(2):  # one document a row
        rows, tokens = one.tokens_BT.shape
        positions_BT = torch.arange(tokens).expand(rows, -1)
        batches.append(Batch(one.tokens_BT, one.labels_BT, positions_BT, torch.zeros(rows, tokens, dtype=torch.int64)))
    total = sum(int((batch.labels_BT != IGNORED).sum()) for batch in batches)
    expected = 0.0
    for batch in batches:
        logits = judge(input_ids=batch.tokens_BT).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten(), reduction="sum")
        (loss / total).backward()
        expected += float(loss.detach()) / total

    found = StreamedEngine.around(streamed.train(), next_token).forward_backward(batches).mean
    assert found == pytest.approx(expected, rel=1e-9)
    theirs = {name.removeprefix("base_model.model.model.layers."): p.grad for name, p in judge.named_parameters()}
    compared = 0
    for name, parameter in tiny.trained(streamed).items():
        _, layer, part, linear, _, _, last = name.split(".")
        module = "self_attn" if part == "attention" else "mlp"
        gradient = theirs[f"{layer}.{module}.{NAMES[linear]}.{PARTS[last]}"]
        assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)
        compared += 1
    assert compared == tiny.LAYERS * 7 * (3 if dora else 2)
    streamed.close()
