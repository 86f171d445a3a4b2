"""What a model's generation_config.json says about decoding, as our settings; and what of it we do not do. Torch-free.

`do_sample: false` is greedy, as in transformers, and settings of sampling then mean nothing. Where the file leaves
`do_sample` out, its settings of sampling are taken for what its author meant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.generate.config import sampling_config

_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_ALWAYS = {  # theirs -> ours
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "min_length": "min_length",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "bad_words_ids": "bad_words_ids",
    "stop_strings": "stop",
}
# What changes the text and is not done here, with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": ({},),
}


class Advice(NamedTuple):
    """sampling: options of `SamplingConfig`. unused: names of the file's settings that would change the text."""

    sampling: dict[str, Any]
    unused: list[str]


def advice(settings: dict[str, Any], where: str | None = None) -> Advice:
    """Of generation_config.json's content without the special ids. Raises ModelFileError for values that cannot be."""
    sampling = {ours: _value(settings[name]) for name, ours in _ALWAYS.items() if settings.get(name) is not None}
    if settings.get("do_sample") is False:
        sampling["temperature"] = 0.0
    else:
        sampling |= {name: settings[name] for name in _OF_SAMPLING if settings.get(name) is not None}
    try:
        sampling_config(sampling, {})
    except ConfigError as error:
        raise ModelFileError(f"a setting that cannot be used: {error.message}", where, error.hint) from None
    unused = [name for name, neutral in _NEUTRAL.items() if settings.get(name) not in (None, False, *neutral)]
    return Advice(sampling, unused)


def _value(value: Any) -> Any:
    """Lists as the tuples of settings."""
    return tuple(_value(item) for item in value) if isinstance(value, list) else value
