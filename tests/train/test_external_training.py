"""A model with an input adapter, from the recipe to text: trained with an encoder's vectors, decoded with the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import shoestring
from shoestring.core.errors import ConfigError
from shoestring.models.external import open_external
from shoestring.models.folder import load_model
from shoestring.models.resolve import find_model
from shoestring.pretraining.job import pretrain
from tests.models.test_encoder import tiny_folder
from tests.train import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model with an input adapter; its encoder beside it."""
    folder = tmp_path_factory.mktemp("external")
    encoder = tiny_folder(folder / "encoder")
    (folder / "recipe.yaml").write_text(recipe_text(folder, encoder))
    pretrain(folder / "recipe.yaml", out=str(folder / "run"))
    return folder / "run"


def recipe_text(folder: Path, encoder: Path, width: int = 24) -> str:
    source = f"{{kind: span, encoder: {encoder}, span: 4}}"
    adapter = f"  input_adapter: {{external_width: {width}, width: 8, source: {source}}}"
    return tiny.recipe_text(tiny.corpus(folder / "text")).replace("  layers: 2\n", f"  layers: 2\n{adapter}\n")


def test_training_moves_the_adapter_through_the_vectors(run):
    decoder = load_model(find_model(run))
    assert decoder.inputs["adapter"].up.weight.abs().max() > 0


def test_the_trained_model_uses_the_vectors(run):
    model = shoestring.load(run)
    ids = model.encode_prompt("def f1_1(x):\n    return x * 1 + 1\n")
    assert model.external is not None
    vectors = torch.from_numpy(model.external.vectors(ids, 0, len(ids))).unsqueeze(0)
    with_vectors, _ = model.decoder(torch.tensor([ids]), external_BTE=vectors)
    without, _ = model.decoder(torch.tensor([ids]))
    assert torch.equal(with_vectors[:, :4], without[:, :4])
    assert not torch.allclose(with_vectors[:, 4:], without[:, 4:])


def test_cached_decoding_supplies_the_vectors_of_new_tokens(run):
    model = shoestring.load(run)
    prompts = [model.encode_prompt(text) for text in ("def f1_1(x):\n    return", "def f2(")]
    done = model.complete_ids([list(prompt) for prompt in prompts], max_tokens=12, temperature=0)
    for prompt, completion in zip(prompts, done, strict=True):
        ids = list(prompt)
        for token in completion.tokens:  # the whole sequence again for every token, without a cache
            vectors = torch.from_numpy(model.external.vectors(ids, 0, len(ids))).unsqueeze(0)
            with torch.no_grad():
                hidden, _ = model.decoder(torch.tensor([ids]), external_BTE=vectors)
                logits = model.decoder.head(hidden[0, -1])[: model.tokenizer.vocabulary_size]
            assert logits[token] >= logits.max() - 1e-4
            ids.append(token)


def outputs(model: shoestring.LanguageModel, text: str) -> tuple[list[int], torch.Tensor]:
    """The whole way from text: tokens, encoder, alignment, decoder."""
    ids = model.encode_prompt(text)
    source = open_external(model.decoder.config, model.tokenizer)
    assert source is not None
    vectors = torch.from_numpy(source.vectors(ids, 0, len(ids))).unsqueeze(0)
    with torch.no_grad():
        return ids, model.decoder(torch.tensor([ids]), external_BTE=vectors)[0][0]


def leak(one: tuple[list[int], torch.Tensor], other: tuple[list[int], torch.Tensor]) -> tuple[float, float]:
    """The largest change of outputs at tokens before the first that differs, and after it."""
    same = next(n for n, (a, b) in enumerate(zip(one[0], other[0], strict=False)) if a != b)
    shorter = min(len(one[0]), len(other[0]))
    difference = (one[1][:shorter] - other[1][:shorter]).abs()
    return float(difference[:same].max()), float(difference[same:].max())


TEXT = "def f1_1(x):\n    return x * 1 + 1\ndef f1_2(x):\n    return x * 2 + 2\n"


def test_a_changed_text_changes_no_earlier_output(run):
    model = shoestring.load(run)
    for cut in (20, 33, 45, 60):
        before, after = leak(outputs(model, TEXT), outputs(model, TEXT[:cut] + "QZ" + TEXT[cut + 1 :]))
        assert before < 1e-5 < 1e-2 < after


def test_vectors_shown_one_span_too_early_are_caught_by_that_test(run):
    model = shoestring.load(run)

    def leaking(text: str) -> tuple[list[int], torch.Tensor]:
        ids = model.encode_prompt(text)
        vectors = model.external.vectors([*ids, 0, 0, 0, 0], 4, len(ids) + 4)
        with torch.no_grad():
            return ids, model.decoder(torch.tensor([ids]), external_BTE=torch.from_numpy(vectors)[None])[0][0]

    changed = [leak(leaking(TEXT), leaking(TEXT[:cut] + "QZ" + TEXT[cut + 1 :]))[0] for cut in (20, 33, 45, 60)]
    assert max(changed) > 1e-4


def test_an_encoder_of_another_width_is_refused(run, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe_text(tmp_path, run.parent / "encoder", width=32))
    with pytest.raises(ConfigError, match="gives vectors of width 24, the input adapter takes 32"):
        pretrain(tmp_path / "recipe.yaml", out=str(tmp_path / "run"))
