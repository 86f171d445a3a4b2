"""A model with an input adapter gets its vectors wherever it reads text, resident or streamed; or it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import shoestring
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.evaluate.perplexity import perplexity
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.encoder import load_causal_encoder
from shoestring.models.folder import save_model
from shoestring.offload import load as loading
from shoestring.offload.model import StreamedDecoder
from shoestring.pretraining.dataset import external_vectors
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny
from tests.generate.tiny import strengthened
from tests.models.test_encoder import tiny_folder

TEXT = "hello world ( x ) return 1 + 1 and hello again, a world"
GREEDY = {"temperature": 0.0, "max_tokens": 10}


def saved(folder: Path, source: dict | None) -> Path:
    tokenizer = chatml(templates.CHATML)
    adapter = {"external_width": 24, "width": 8, "source": source}
    shape = {**tiny.SHAPE, "vocabulary": tokenizer.vocabulary_size, "input_adapter": adapter}
    decoder = strengthened(build(ModelConfig.model_validate(shape), seed=1))
    with torch.no_grad():
        decoder.inputs["adapter"].up.weight.normal_(0, 2.0, generator=torch.Generator().manual_seed(2))
    save_model(decoder, folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectored")
    source = {"kind": "span", "encoder": str(tiny_folder(folder / "encoder")), "span": 4}
    return saved(folder / "model", source)


@pytest.fixture(scope="module")
def without_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("alone") / "model", None)


@pytest.fixture
def streamed(model, monkeypatch):
    """The model as if it did not fit."""
    predict = loading.predict_use

    def resident_is_too_large(config, use, machine, source, weights="source", slots=0):
        found = predict(config, use, machine, source, weights, slots)
        return found if slots else replace(found, tensors=(("all", 10**15),))

    monkeypatch.setattr(loading, "predict_use", resident_is_too_large)
    language = shoestring.load(model, memory="16GB", scoring=True)
    assert isinstance(language.decoder, StreamedDecoder)
    yield language
    loading.close(language)


def test_streamed_decoding_gives_the_resident_models_text(model, streamed):
    resident = shoestring.load(model)
    assert streamed.generate(TEXT, **GREEDY) == resident.generate(TEXT, **GREEDY)
    resident.decoder.inputs["adapter"].up.weight.data.zero_()  # the control: without vectors another text
    assert streamed.generate(TEXT, **GREEDY) != resident.generate(TEXT, **GREEDY)


def test_a_model_that_fits_into_memory_gets_the_vectors_too(model):
    within = shoestring.load(model, memory="16GB")
    assert within.generate(TEXT, **GREEDY) == shoestring.load(model).generate(TEXT, **GREEDY)


def test_perplexity_is_measured_with_the_vectors(model, streamed, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    resident = shoestring.load(model)
    ids = [resident.tokenizer.eos_id, *resident.tokenizer.encode(TEXT)]
    vectors = torch.from_numpy(resident.external.vectors(ids, 0, len(ids) - 1))[None]
    with torch.no_grad():
        losses = []
        for external in (vectors, None):
            hidden, _ = resident.decoder(torch.tensor([ids[:-1]]), external_BTE=external)
            logits = resident.decoder.head(hidden)[0]
            losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))))
    assert abs(losses[0] - losses[1]) > 0.01
    for language in (resident, streamed):
        assert perplexity(language, tmp_path / "text.txt").loss == pytest.approx(losses[0], rel=1e-4)


def test_perplexity_of_conversations_is_measured_with_the_vectors(model, tmp_path):
    messages = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    language = shoestring.load(model)
    found = perplexity(language, tmp_path / "rows.jsonl").loss
    language.decoder.inputs["adapter"].up.weight.data.zero_()
    assert abs(perplexity(language, tmp_path / "rows.jsonl").loss - found) > 0.01


def test_a_model_whose_vectors_nobody_gives_is_refused(without_source, tmp_path):
    language = shoestring.load(without_source)
    (tmp_path / "text.txt").write_text(TEXT)
    for use in (language.generate, language.chat, lambda _: perplexity(language, tmp_path / "text.txt")):
        with pytest.raises(ConfigError, match="its config names none"):
            use(TEXT)
    with pytest.raises(ConfigError, match="has no source"):
        external_vectors(language.decoder.config, None)


def test_fine_tuning_a_model_that_takes_vectors_is_refused(model, tmp_path):
    with pytest.raises(ModelFileError, match="cannot be fine-tuned"):
        shoestring.finetune(model, tiny.sums(tmp_path / "sums.jsonl"), out=str(tmp_path / "run"))


def test_an_encoder_that_takes_vectors_itself_is_refused(model):
    with pytest.raises(ModelFileError, match="an encoder cannot be"):
        load_causal_encoder(model)
