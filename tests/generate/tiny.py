"""A tiny decoder with random weights and a byte-level tokenizer whose ids are bytes, made in milliseconds."""

from __future__ import annotations

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from shoestring.data.tokenizer import Tokenizer, byte_alphabet
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request
from shoestring.generate.scheduler import Scheduler
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.decoding_weights import with_int8_cache
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
    return strengthened(build(config, seed=seed).eval())


KINDS = {
    "gqa": {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 8}},
    "window": {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 8, "window": 3}},
    "mla": {
        "attention": {
            "kind": "mla", "heads": 4, "latent_rank": 8, "content_width": 8, "rotary_width": 4, "value_width": 8,
        },
    },
    "mtla": {
        "attention": {
            "kind": "mtla", "heads": 4, "latent_rank": 8, "content_width": 8, "rotary_width": 4, "value_width": 8,
            "stride": 2, "rollback": 3,
        },
    },
    "memory": {
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 8},
        "memory": {"layers": [1], "capacity": 8, "block": 4, "top_k": 2},
    },
}  # fmt: skip
KINDS["int8"] = KINDS["gqa"]  # keys and values in int8


def decoder_of(kind: str, context: int = 64) -> Decoder:
    """A tiny decoder of each kind of cache, whose every token matters; in float64, or last bits would matter too."""
    config = ModelConfig.model_validate(
        {"vocabulary": 61, "width": 32, "layers": 2, "context": context, "feed_forward": {"width": 48}, **KINDS[kind]}
    )
    decoder = strengthened(build(config, seed=0, dtype=torch.float64).eval(), 20)
    return with_int8_cache(decoder) if kind == "int8" else decoder


def strengthened(decoder: Decoder, blocks: float = 6) -> Decoder:
    """Fresh weights are so small that positions and earlier tokens hardly matter."""
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(blocks if name.startswith("blocks") else 6)
    return decoder


def decode(decoder, prompts, sampling, stop_tokens=(), rows=None, external=None, slots=None, **options):
    """-> the new tokens of each prompt, and why each ended. slots: as many as prompts, if not given."""
    capacity = min(max(map(len, prompts)) + sampling.max_tokens, decoder.config.context)
    scheduler = Scheduler(decoder, decoder.new_cache(slots or len(prompts), capacity), **options)
    stops = frozenset(stop_tokens)
    for row, prompt in zip(rows or range(len(prompts)), prompts, strict=True):
        scheduler.add(Request(prompt, sampling, stops, row, external))
    return finish(scheduler, len(prompts))


def finish(scheduler, count):
    """Step until all is done -> what requests 0 .. count − 1 got, and why each ended."""
    rows, reasons = [[] for _ in range(count)], [None] * count
    for event in scheduler.run():
        assert reasons[event.request] is None
        rows[event.request].append(event.token)
        reasons[event.request] = event.reason
    return rows, reasons


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
