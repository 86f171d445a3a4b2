"""What a cache holds, saved and taken back: by every kind of cache, and by no other model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request, Speed
from shoestring.generate.scheduler import Scheduler
from shoestring.models.adapters import adapted_linears, attach, switch
from shoestring.nn.lora_config import LoRAConfig
from tests.generate.tiny import KINDS, byte_tokenizer, decode, decoder_of, tiny_decoder, tiny_model

GREEDY = SamplingConfig(max_tokens=6, temperature=0)


def ask(scheduler, prompt):
    """-> the new tokens, and how many of the prompt were read."""
    scheduler.reserve(len(prompt) + 6)
    scheduler.speed = Speed()
    id = scheduler.add(Request(prompt, GREEDY))
    return [event.token for event in scheduler.run() if event.request == id], scheduler.speed.prompt_tokens


class Small(LanguageModel):
    """Decoders of 61 tokens have no tokenizer."""

    def __init__(self, decoder):
        self.decoder, self.folder, self.external = decoder, None, None
        self.weights = self.cache = "source"

    def scheduler(self, slots, capacity):
        return Scheduler(self.decoder, self.decoder.new_cache(slots, capacity))


@pytest.mark.parametrize("length", [2, 6, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_goes_on_from_its_saved_beginning_as_if_it_had_been_read(kind, length, tmp_path):
    first = Small(decoder_of(kind))
    beginning = list(range(1, 1 + length))
    scheduler = first.scheduler(2, 40)
    ask(scheduler, [*beginning, 40, 41])
    saved = first.save_prefix(tmp_path / "it", beginning, scheduler)
    assert length - first.decoder.new_cache(1, 1).stride < saved <= length
    second = Small(decoder_of(kind))
    scheduler = second.scheduler(2, 10)
    assert second.load_prefix(tmp_path / "it", scheduler) == saved
    prompt = [*beginning, 7, 8, 9, 10, 11]
    new, read = ask(scheduler, prompt)
    assert read == len(prompt) - saved
    assert new == decode(decoder_of(kind), [prompt], GREEDY)[0][0]
    edited = [*prompt[:-4], 50, 51]  # also when what was taken back is cut again
    assert ask(scheduler, edited)[0] == decode(decoder_of(kind), [edited], GREEDY)[0][0]


def test_a_system_prompt_is_read_once_for_many_conversations(tmp_path):
    model = tiny_model(context=400)
    rules = [{"role": "system", "content": "be brief " * 20}]
    assert model.save_prefix(tmp_path / "rules", model.encode_chat(rules)) > 190
    other = tiny_model(context=400)
    scheduler = other.scheduler(1, 300)
    other.load_prefix(tmp_path / "rules", scheduler)
    messages = [*rules, {"role": "user", "content": "one"}]
    said = other.chat(messages, scheduler=scheduler, temperature=0, max_tokens=8)
    assert other.speed.prompt_tokens < 40
    assert said == tiny_model(context=400).chat(messages, temperature=0, max_tokens=8)


def test_the_file_is_safetensors_that_others_read(tmp_path):
    model = tiny_model()
    model.save_prefix(tmp_path / "it", [1, 2, 3])
    with safe_open(tmp_path / "it", "pt") as file:
        assert file.get_tensor("tokens").tolist() == [1, 2, 3]
        assert file.get_tensor("keys.1").shape == (2, 3, 8)
        assert json.loads(file.metadata()["of"])["adapter"] == "none"


def refused(model, file, words, slots=1):
    scheduler = model.scheduler(slots, 20)
    with pytest.raises(ModelFileError, match=words) as caught:
        model.load_prefix(file, scheduler)
    assert caught.value.where == str(file)
    assert ask(scheduler, [1, 2, 3, 4])[1] == 4  # nothing of it is held


def test_another_model_other_numbers_and_another_adapter_are_refused(tmp_path):
    file = tmp_path / "it"
    model = tiny_model()
    model.save_prefix(file, [1, 2, 3, 4])
    refused(LanguageModel(tiny_decoder(seed=1), byte_tokenizer()), file, "another model")
    half = LanguageModel(tiny_decoder().to(torch.float64), byte_tokenizer())
    refused(half, file, "another model|number formats")
    attach(model.decoder, LoRAConfig(rank=2))
    for linear in adapted_linears(model.decoder).values():
        torch.nn.init.ones_(linear.adapters["default"].lora_B)
    refused(model, file, "another adapter")
    switch(model.decoder, None)
    assert model.load_prefix(file, model.scheduler(1, 20)) == 4


@pytest.mark.parametrize("damage", ["cut", "bit", "text", "empty", "missing"])
def test_a_damaged_file_is_a_sentence_and_nothing_of_it_is_used(damage, tmp_path):
    model, file = tiny_model(), tmp_path / "it"
    model.save_prefix(file, [1, 2, 3, 4])
    data = file.read_bytes()
    changed = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    new = {"cut": data[:-5], "bit": changed, "text": b"hello", "empty": b""}
    file.write_bytes(new[damage]) if damage in new else file.unlink()
    refused(model, file, "cut short|damaged|not a whole|cannot be opened")


def test_nothing_read_is_nothing_saved_and_a_busy_scheduler_takes_nothing(tmp_path):
    model = tiny_model()
    scheduler = model.scheduler(1, 20)
    with pytest.raises(ConfigError, match="nothing of this text"):
        model.save_prefix(tmp_path / "it", [1, 2], scheduler)
    assert not (tmp_path / "it").exists()
    model.save_prefix(tmp_path / "it", [1, 2])
    scheduler.add(model.request([5, 6], GREEDY))
    scheduler.step()
    with pytest.raises(ConfigError, match="every slot is in use"):
        model.load_prefix(tmp_path / "it", scheduler)
