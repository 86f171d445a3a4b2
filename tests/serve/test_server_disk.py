"""What happens on disk does no harm to a running server; and which weights, caches and adapters it serves."""

import shutil

import pytest

from shoestring.generate.language_model import LanguageModel
from shoestring.generate.live_adapters import LiveAdapters
from shoestring.models.folder import save_model
from shoestring.offload.model import open_streamed
from shoestring.serve.http.names import Named
from tests.generate.test_adapters_on_blocks import adapted
from tests.generate.test_ways_of_decoding import decoder_of
from tests.generate.tiny import byte_tokenizer, tiny_decoder
from tests.serve.served import client_of, tiny_app

SETTINGS = {"prompt": "abc", "max_tokens": 12, "temperature": 0}


@pytest.fixture
def folder(tmp_path):
    save_model(tiny_decoder(100), tmp_path / "model", byte_tokenizer())
    save_model(tiny_decoder(100, seed=1), tmp_path / "other", byte_tokenizer())
    return tmp_path / "model"


def said(client, name="tiny"):
    response = client.post("/v1/completions", json={"model": name, **SETTINGS})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def replace(folder):
    """Put the other model in its place."""
    folder.rename(folder.with_name("away"))
    (folder.parent / "other").rename(folder)


@pytest.mark.parametrize("weights", ["source", "float32", "bf16", "int8"])
def test_a_model_that_is_replaced_goes_on_as_it_was(folder, weights):
    language = LanguageModel.load(folder, "cpu", weights=weights)
    with client_of(tiny_app(language)) as client:
        before = said(client)
        for file in (folder.parent / "other").iterdir():  # in place, which a memory map would see
            shutil.copyfile(file, folder / file.name)
        assert said(client) == before
        replace(folder)
        assert said(client) == before
        shutil.rmtree(folder)
        assert said(client) == before
    assert LanguageModel.load(folder.with_name("away"), "cpu").generate(**SETTINGS) != before


def test_a_model_that_is_read_from_disk_for_every_token_goes_on_as_it_was(folder):
    language = LanguageModel(open_streamed(folder).eval(), byte_tokenizer(), folder)
    with client_of(tiny_app(language)) as client:
        before = said(client)
        replace(folder)
        assert said(client) == before
        shutil.rmtree(folder)
        assert said(client) == before
    language.decoder.close()


@pytest.mark.parametrize(("weights", "cache"), [("int8", "source"), ("int4", "int8")])
def test_weights_caches_and_adapters_are_those_of_generate(tmp_path, weights, cache):
    save_model(decoder_of(), tmp_path / "model", byte_tokenizer())
    adapted(decoder_of(), tmp_path / "adapter")
    folder, adapter = str(tmp_path / "model"), str(tmp_path / "adapter")
    alone = LanguageModel.load(folder, weights=weights, cache=cache)
    expected = [alone.generate(**SETTINGS)]
    LiveAdapters(alone).use(adapter)
    expected.append(alone.generate(**SETTINGS))
    assert expected[0] != expected[1]
    served = LanguageModel.load(folder, weights=weights, cache=cache)
    with client_of(tiny_app(served, (Named("mine", adapter),))) as client:
        assert [said(client, name) for name in ("tiny", "mine", "tiny", "mine")] == expected * 2
