"""Vectors for each token from a causal model: aligned by places in the text, and blind to what follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shoestring.data.external_tokens import TokenVectors, settled_places
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import train_tokenizer
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.encoder import load_causal_encoder
from shoestring.models.external import open_external
from shoestring.models.folder import save_model

TEXT = "def he(self): return hello\n\n    said = he + hell  # 漢字 ünï\nprint(said, hello)\n" * 2
SHAPE = {
    "vocabulary": 400, "width": 16, "layers": 2, "context": 24,
    "attention": {"heads": 2, "kv_heads": 1, "head_width": 8}, "feed_forward": {"width": 24},
}  # fmt: skip


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train_tokenizer([TEXT] * 2, 280, 2)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with a tokenizer of its own, whose context is shorter than the text."""
    folder = tmp_path_factory.mktemp("encoder") / "model"
    tokenizer = train_tokenizer([TEXT.upper(), TEXT] * 3, 330, 2)
    save_model(build(ModelConfig.model_validate(SHAPE), seed=0), folder, tokenizer)
    return folder


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.separator_id, *tokenizer.encode(text)]


def test_each_token_gets_the_last_settled_token_of_the_encoder(ours, encoder_folder):
    encoder = load_causal_encoder(encoder_folder)
    source, ids = TokenVectors(ours, encoder.encode, encoder.width), ids_of(ours, TEXT)
    vectors = source.vectors(ids, 0, len(ids))
    encoding = encoder.tokenizer.encode(TEXT, add_special_tokens=False)
    _, settled = encoder.encode(TEXT)
    known, raw = 0, TEXT.encode()
    for n in range(len(ids)):
        end = len(b"".join(ours.token_bytes()[i] for i in ids[: n + 1]))
        seen = raw[:end].decode("utf-8", "ignore")  # a character cut in two is not known yet
        begun = [p for p in range(1, len(seen)) if seen[p - 1].isspace() and not seen[p].isspace()]
        place = begun[-1] - 1 if begun else 0
        last = [m for m, e in enumerate(settled) if e <= place]
        if not last:
            assert not vectors[n].any()
            continue
        window = last[-1] // 24 * 24
        tokens = torch.tensor([encoding.ids[window : last[-1] + 1]])
        with torch.no_grad():
            expected = torch.nn.functional.normalize(encoder.decoder(tokens)[0][0, -1], dim=-1)
        assert np.allclose(vectors[n], expected.numpy(), atol=1e-5)
        known += 1
    assert known > len(ids) // 2


def test_a_changed_text_changes_no_vector_before_the_change(ours, encoder_folder):
    encoder = load_causal_encoder(encoder_folder)
    source, ids = TokenVectors(ours, encoder.encode, encoder.width), ids_of(ours, TEXT)
    vectors, later = source.vectors(ids, 0, len(ids)), 0.0
    for cut in range(3, len(TEXT), 5):
        for new in ("Z", " ", "l", "\n", "\u3000"):
            other = ids_of(ours, TEXT[:cut] + new + TEXT[cut + 1 :])
            same = next((n for n, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), len(ids))
            changed = source.vectors(other, 0, len(other))
            assert np.abs(vectors[:same] - changed[:same]).max() < 1e-5
            rest = slice(same, min(len(ids), len(other)))
            later = max(later, float(np.abs(vectors[rest] - changed[rest]).max(initial=0)))
    assert later > 0.1


def test_the_encoders_own_cuts_would_leak(ours, encoder_folder):
    """The control: its last token that ends at or before ours is another one when the text goes on differently."""
    encoder = load_causal_encoder(encoder_folder)

    def naive(text: str, place: int) -> int:
        return int((encoder.encode(text)[1] <= place).sum())

    leaks = [
        (cut, place)
        for cut in range(3, 80, 5)
        for place in (cut - 3, cut - 2, cut - 1)
        if naive(TEXT, place) != naive(TEXT[:cut] + "Z" + TEXT[cut + 1 :], place)
    ]
    assert leaks


def test_tokens_made_one_by_one_get_the_same_vectors(ours, encoder_folder):
    encoder = load_causal_encoder(encoder_folder)
    source, ids = TokenVectors(ours, encoder.encode, encoder.width), ids_of(ours, TEXT)
    one_by_one = np.concatenate([source.vectors(ids[: n + 1], n, n + 1) for n in range(len(ids))])
    assert np.allclose(one_by_one, source.vectors(ids, 0, len(ids)), atol=1e-5)


def test_a_config_names_a_causal_encoder(ours, encoder_folder):
    adapter = {"external_width": 16, "source": {"kind": "token", "encoder": str(encoder_folder)}}
    config = ModelConfig.model_validate({**SHAPE, "input_adapter": adapter})
    source = open_external(config, ours)
    assert isinstance(source, TokenVectors) and source.vectors(ids_of(ours, TEXT), 20, 30).any()


def test_text_is_settled_where_a_word_begins():
    assert [places.tolist() for places in settled_places("a bc \n  d")] == [[1, 7], [2, 8], [3, 9]]
    assert [places.tolist() for places in settled_places("é ü")] == [[2], [2], [5]]
    assert not any(len(places) for text in ("", "abc", "a ") for places in settled_places(text))
