"""Sentence embeddings by a small BERT (arXiv 1810.04805), such as all-MiniLM-L6-v2: texts -> unit vectors [N, E].

A post-norm encoder that sees both ways, mean pooling over a text's tokens, then length 1: what sentence-transformers
does with such a folder. Because it sees both ways, a vector knows its whole text: it may only be shown to what
comes after that text (`data.external`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.core.errors import ModelFileError
from shoestring.core.files import sha256_file
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.decoder import Decoder
from shoestring.models.families.family import Fields
from shoestring.models.families.registry import read_json
from shoestring.models.folder import load_model
from shoestring.models.weights import TensorFile
from shoestring.nn.linear import Linear

_WEIGHTS = "model.safetensors"


class EncoderLayer(nn.Module):
    """x_BTD -> x_BTD: attention over all tokens that are there, then GELU, each normed after its sum."""

    def __init__(self, width: int, heads: int, inner: int, epsilon: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.output = Linear(width, width)
        self.output_norm = nn.LayerNorm(width, epsilon)
        self.up, self.down = Linear(width, inner), Linear(inner, width)
        self.down_norm = nn.LayerNorm(width, epsilon)

    def forward(self, x_BTD: Tensor, there_B11T: Tensor | None) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        q, k, v = (
            part(x_BTD).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y_BHTC = F.scaled_dot_product_attention(q, k, v, attn_mask=there_B11T)
        x_BTD = self.output_norm(x_BTD + self.output(y_BHTC.transpose(1, 2).flatten(2)))
        return self.down_norm(x_BTD + self.down(F.gelu(self.up(x_BTD))))


class SentenceEncoder(nn.Module):
    """Made by `load_encoder`. width: E. longest: tokens that are read of a text, the rest is cut off."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, inner: int, positions: int, epsilon: float
    ):
        super().__init__()
        self.width = width
        self.longest = positions
        self.tokens = nn.Embedding(vocabulary, width, _weight=torch.empty(vocabulary, width))
        self.positions = nn.Embedding(positions, width, _weight=torch.empty(positions, width))
        self.segment = nn.Parameter(torch.empty(width))  # row 0 of token_type_embeddings: one text, no second
        self.norm = nn.LayerNorm(width, epsilon)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, epsilon) for _ in range(layers))
        self.tokenizer: tokenizers.Tokenizer
        self.fingerprint = ""

    def forward(self, tokens_BT: Tensor, there_BT: Tensor) -> Tensor:
        """-> [B, E], of length 1. there_BT: True where a token is, False where padding."""
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.norm(self.tokens(tokens_BT) + self.segment + self.positions(positions_T))
        mask = None if bool(there_BT.all()) else there_BT[:, None, None, :]
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask)
        weights_BT1 = there_BT.unsqueeze(-1).to(x_BTD.dtype)
        mean_BD = (x_BTD * weights_BT1).sum(1) / weights_BT1.sum(1)
        return F.normalize(mean_BD, dim=-1)

    @torch.no_grad()  # not inference mode: its tensors could not stand in a training batch
    def encode(self, texts: Sequence[str], batch: int = 32) -> Tensor:
        """-> float32 [len(texts), E] on the CPU. Texts of about one length share a batch."""
        device = self.segment.device
        encodings = self.tokenizer.encode_batch(list(texts))
        out = torch.empty(len(texts), self.width)
        order = sorted(range(len(texts)), key=lambda n: len(encodings[n].ids))
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            width = max(len(encodings[n].ids) for n in group)
            tokens = torch.zeros(len(group), width, dtype=torch.int64)
            there = torch.zeros(len(group), width, dtype=torch.bool)
            for row, n in enumerate(group):
                ids = encodings[n].ids
                tokens[row, : len(ids)] = torch.tensor(ids)
                there[row, : len(ids)] = True
            out[group] = self(tokens.to(device), there.to(device)).float().cpu()
        return out


def load_encoder(folder: str | Path, device: torch.device | str = "cpu") -> SentenceEncoder:
    """The encoder in a Hugging Face folder of model_type bert that pools by the mean, in float32.

    Raises ModelFileError when it is another kind of model, or its weights do not fit its config.
    """
    folder = Path(folder)
    values = read_json(folder / "config.json")
    fields = Fields(values, str(folder / "config.json"))
    if values.get("model_type") != "bert":
        raise fields.fail(f"not an encoder that can be run here: model_type {values.get('model_type')!r}, not 'bert'")
    for name, needed in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if fields.get(name, needed) != needed:
            raise fields.fail(f"{name} is {values[name]!r}; only {needed!r} can be run here")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        modes = [name for name, on in read_json(pooling).items() if name.startswith("pooling_mode_") and on is True]
        if modes != ["pooling_mode_mean_tokens"]:
            raise ModelFileError(f"only mean pooling can be run here, this asks for {modes}", str(pooling))
    with torch.device("meta"):
        encoder = SentenceEncoder(
            vocabulary=fields.integer("vocab_size"),
            width=fields.integer("hidden_size"),
            layers=fields.integer("num_hidden_layers"),
            heads=fields.integer("num_attention_heads"),
            inner=fields.integer("intermediate_size"),
            positions=fields.integer("max_position_embeddings"),
            epsilon=fields.number("layer_norm_eps", 1e-12),
        )
    encoder.to_empty(device=device)
    _fill(encoder, folder / _WEIGHTS)
    sentence = folder / "sentence_bert_config.json"
    if sentence.is_file():
        encoder.longest = min(encoder.longest, Fields(read_json(sentence), str(sentence)).integer("max_seq_length"))
    encoder.tokenizer = _tokenizer(folder / "tokenizer.json", encoder.longest)
    encoder.fingerprint = sha256_file(folder / _WEIGHTS)
    return encoder.eval().requires_grad_(False)


# Modules of a layer: ours -> BERT's.
_LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "output_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "down_norm": "output.LayerNorm",
}
_OUTER_NAMES = {
    "tokens.weight": "embeddings.word_embeddings.weight",
    "positions.weight": "embeddings.position_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
    "segment": "embeddings.token_type_embeddings.weight",
}


def _bert_name(parameter: str) -> str:
    if parameter in _OUTER_NAMES:
        return _OUTER_NAMES[parameter]
    _, index, module, kind = parameter.split(".")
    return f"encoder.layer.{index}.{_LAYER_NAMES[module]}.{kind}"


def _fill(encoder: SentenceEncoder, weights: Path) -> None:
    with TensorFile(weights) as file:
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in file.infos else ""
        for parameter, target in encoder.named_parameters():
            name = prefix + _bert_name(parameter)
            if name not in file.infos:
                raise ModelFileError(f"tensor {name} is missing", str(weights), "fetch the model again")
            shape, first_row = file.infos[name].shape, parameter == "segment"
            if shape[first_row:] != tuple(target.shape):
                message = f"tensor {name} has shape {list(shape)}, config.json asks for {list(target.shape)}"
                raise ModelFileError(message, str(weights), "fetch the model again")
            if first_row:
                with torch.no_grad():
                    target.copy_(file.read(name)[0])
            else:
                file.read_into(name, target)


def _tokenizer(file: Path, longest: int) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise ModelFileError("this file is missing", str(file), "fetch the model again")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)  # the [CLS] and [SEP] around a text count
    return tokenizer


class CausalEncoder:
    """A decoder as an encoder of tokens: final hidden states of length 1, such as Qwen3-Embedding's.

    A text longer than the model's context is read in windows of that many tokens, each from its beginning alone.
    """

    def __init__(self, decoder: Decoder, tokenizer: tokenizers.Tokenizer):
        self.decoder, self.tokenizer = decoder.eval().requires_grad_(False), tokenizer
        self.width = decoder.config.width

    @torch.no_grad()
    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """-> vectors float32 [M, E], and the characters before the end of each of its M tokens."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        window, device = self.decoder.config.context, self.decoder.embedding.weight.device
        parts = [torch.empty(0, self.width)]
        for start in range(0, len(encoding.ids), window):
            ids = torch.tensor([encoding.ids[start : start + window]], device=device)
            parts.append(F.normalize(self.decoder(ids)[0][0].float(), dim=-1).cpu())
        ends = np.array([end for _, end in encoding.offsets], np.int64)
        return torch.cat(parts).numpy(), ends


def load_causal_encoder(folder: str | Path, device: torch.device | str = "cpu") -> CausalEncoder:
    """The decoder and tokenizer of a model folder. Raises ModelFileError and TokenizerError."""
    decoder = load_model(folder, device=device)
    if decoder.config.input_adapter is not None:
        raise ModelFileError("an encoder cannot be a model that takes another encoder's vectors", str(folder))
    return CausalEncoder(decoder, Tokenizer.load(folder).backend)
