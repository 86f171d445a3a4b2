"""What a model family is: how to read and write one `model_type` of config.json, and its tensor names.

`Fields` reads a config.json strictly: every field is taken, or known to be harmless, or refused by name,
because a setting that is skipped silently gives a model that runs and is wrong. Torch-free, so that a folder
can be judged at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from shoestring.core.errors import ModelFileError
from shoestring.models.config import ModelConfig

# Fields that do not change what the model computes: bookkeeping, other tools' defaults, training's settings.
HARMLESS = frozenset({
    "architectures", "model_type", "_name_or_path", "name_or_path", "transformers_version",
    "torch_dtype", "dtype", "use_cache", "attention_dropout", "bos_token_id", "eos_token_id",
    "pad_token_id", "unk_token_id", "sep_token_id", "id2label", "label2id", "problem_type",
    "num_labels", "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate",
    "task_specific_params", "tokenizer_class", "use_bfloat16", "_attn_implementation",
    "_attn_implementation_autoset", "attn_implementation", "_commit_hash", "is_llama_config",
    "transformers.js_config", "unsloth_fixed", "unsloth_version", "finetuning_task", "prefix",
    "max_new_tokens", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p",
    "typical_p", "repetition_penalty", "length_penalty", "num_beams", "num_beam_groups",
    "num_return_sequences", "diversity_penalty", "no_repeat_ngram_size", "early_stopping",
    "exponential_decay_length_penalty", "bad_words_ids", "begin_suppress_tokens", "suppress_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "output_scores",
    "decoder_start_token_id", "encoder_no_repeat_ngram_size", "torchscript", "pruned_heads",
    "tf_legacy_loss",
})  # fmt: skip

# Fields that must have one of these values: with any other, the model computes something that we do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "pretraining_tp": (1, 0),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "logits_soft_cap": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
}

_REQUIRED = object()


class Fields:
    """A config.json's content, read field by field; `where` names the file in errors."""

    def __init__(self, values: dict[str, Any], where: str | None):
        self.values = values
        self.where = where
        self.taken: set[str] = set()

    def fail(self, message: str, hint: str | None = None) -> ModelFileError:
        return ModelFileError(message, self.where, hint)

    def get(self, name: str, default: Any = None) -> Any:
        """The value; the default where the field is missing or null."""
        self.taken.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def integer(self, name: str, default: Any = _REQUIRED) -> int:
        value = self._typed(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
            raise self.fail(f"{name} must be a positive whole number, not {_show(value)}")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        value = self._typed(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-30 < value < 1e30:
            raise self.fail(f"{name} must be a positive number, not {_show(value)}")
        return float(value)

    def nullable(self, name: str, read: Callable[[str, Any], Any], default: Any) -> Any:
        """What `read` makes of the value; None where null is written, the default where nothing is."""
        if name in self.values and self.get(name) is None:
            return None
        return read(name, default)

    def optional_number(self, name: str) -> float | None:
        return None if self.get(name) is None else self.number(name)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._typed(name, default)
        if not isinstance(value, bool):
            raise self.fail(f"{name} must be true or false, not {_show(value)}")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.fail(f"{name} must be an object, not {_show(value)}")
        return value

    def _typed(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is _REQUIRED:
            raise self.fail(f"{name} is missing", "config.json is incomplete; fetch the model again")
        return value

    def finish(self) -> list[str]:
        """Refuse what is left and changes the computation; -> names of harmless fields that were not used."""
        ignored = []
        for name, value in self.values.items():
            if name in self.taken:
                continue
            if name == "quantization_config" and value is not None:
                method = value.get("quant_method") if isinstance(value, dict) else None
                kind = "" if method is None else f": {_show(method)}"
                raise self.fail(
                    f"the weights are quantized (quantization_config{kind}), and such cannot be read",
                    "use the model's unquantized weights",
                )
            if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
                raise self.fail(
                    f"{name} is {_show(value)}, which this model family does not support here",
                    "supported: " + " or ".join(_show(allowed) for allowed in NEUTRAL[name] or (None,)),
                )
            if name not in NEUTRAL and name not in HARMLESS and value is not None:
                raise self.fail(
                    f"unknown field {name} ({_show(value)}), which may change what the model computes",
                    "if it does not, remove it from config.json",
                )
            ignored.append(name)
        return ignored


def _show(value: Any) -> str:
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Names of modules in a block: ours -> Hugging Face's. The families here share them.
BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
OUTER_NAMES = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_OUTER = re.compile(r"(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Family:
    """One `model_type`. `read` makes a ModelConfig of config.json's fields, `write` the other way round.

    expresses: whether a config can be written as this family without loss.
    """

    model_type: str
    architecture: str
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    expresses: Callable[[ModelConfig], bool]
    block_names: dict[str, str]
    outer_names: dict[str, str]

    def tensor_name(self, parameter: str) -> str:
        """The name in a Hugging Face folder of one of the decoder's parameters; KeyError if it has none."""
        if match := _BLOCK.fullmatch(parameter):
            index, module, kind = match.groups()
            return f"model.layers.{index}.{self.block_names[module]}.{kind}"
        if match := _OUTER.fullmatch(parameter):
            module, kind = match.groups()
            return f"{self.outer_names[module]}.{kind}"
        raise KeyError(parameter)

    def read_config(self, values: dict[str, Any], where: str | None = None) -> tuple[ModelConfig, list[str]]:
        """-> the config, and the fields of config.json that do not matter here. Raises ModelFileError."""
        fields = Fields(values, where)
        try:
            config = self.read(fields)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise fields.fail(f"not a usable {self.model_type} config: {key}: {message}") from error
        return config, fields.finish()
