"""A tiny decoder with random weights and a byte-level tokenizer whose ids are bytes, made in milliseconds."""

from __future__ import annotations

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from shoestring.data.tokenizer import Tokenizer, byte_alphabet
from shoestring.generate.language_model import LanguageModel
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.nn.config import GQAConfig, SwiGLUConfig

SPECIALS = ("<|bos|>", "<|end|>")  # ids 256 and 257
BOS, END = 256, 257
TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant:{% endif %}"
)


def tiny_decoder(context: int = 64, vocabulary: int = 260, seed: int = 0, layers: int = 2) -> Decoder:
    config = ModelConfig(
        vocabulary=vocabulary,
        width=32,
        layers=layers,
        context=context,
        attention=GQAConfig(heads=4, kv_heads=2, head_width=8),
        feed_forward=SwiGLUConfig(width=48),
    )
    decoder = build(config, seed=seed).eval()
    with torch.no_grad():  # fresh weights are so small that positions hardly matter
        for parameter in decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return decoder


def byte_tokenizer(chat_template: str | None = TEMPLATE, bos: str | None = "<|bos|>") -> Tokenizer:
    alphabet = byte_alphabet()
    backend = tokenizers.Tokenizer(models.BPE(vocab=dict(alphabet), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    return Tokenizer.from_backend(backend, bos=bos, eos="<|end|>", chat_template=chat_template)


def tiny_model(context: int = 64, **options) -> LanguageModel:
    return LanguageModel(tiny_decoder(context), byte_tokenizer(**options))


class Script(torch.nn.Module):
    """A head that makes the model say given bytes, so that a test can choose the texts."""

    def __init__(self, model: LanguageModel, *replies: bytes):
        super().__init__()
        self.replies = [[*reply, END] for reply in replies]
        self.calls = 0
        self._left: list[int] = []
        model.decoder.head = self  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        if not self._left:
            self._left = list(self.replies.pop(0))
        logits = torch.zeros(hidden_BD.shape[0], 260)
        logits[:, self._left.pop(0)] = 100.0
        self.calls += 1
        return logits

    def skip(self) -> None:
        """The rest of the present reply is not wanted."""
        self._left = []
