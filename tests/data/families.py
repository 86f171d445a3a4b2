"""Small tokenizers that carry the special tokens and chat templates of real families, and a notation for masks.

A mask made by hand is the text as the model reads it, with ‹ and › around what it learns.
"""

from __future__ import annotations

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from shoestring.data.tokenizer import Tokenizer, byte_alphabet
from tests.data import templates

# The two sentences in which the shared template is shorter than the published one.
QWEN25 = templates.QWEN.replace(
    "<|im_start|>system\\nYou are a helpful assistant.",
    "<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
).replace(
    "You have function signatures within <tools></tools> XML tags:\\n<tools>",
    "You may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>",
)

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# The way in which Qwen3 writes thoughts: kept after the last question only, and an empty one in the last turn.
QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content else '' %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' + content }}
{%- elif m.role == 'assistant' %}{{- content }}
{%- else %}{{- m.content }}
{%- endif %}{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Mistral's habit: the system message is put into the last question, so that no beginning of the text is stable.
MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\n\n' %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{{- '[INST] ' + (system if loop.index0 >= messages | length - 2 else '') + m.content + '[/INST]' }}"
    "{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)

MERGES = [("Ċ", "Ċ"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "5")]


def small(specials: list[str], bos: str | None, eos: str | None, template: str | None, **config) -> Tokenizer:
    """A byte-level tokenizer: every byte, five merges, and these special tokens."""
    tokens = [*sorted(byte_alphabet()), *(a + b for a, b in MERGES)]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    return Tokenizer.from_backend(backend, bos=bos, eos=eos, chat_template=template, config=config)


def chatml(template: str) -> Tokenizer:
    return small(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", template)


def llama(template: str) -> Tokenizer:
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return small(names, "<|begin_of_text|>", "<|eot_id|>", template)


def base() -> Tokenizer:
    """Without a template; opens texts with bos."""
    return small(["<s>", "</s>"], "<s>", "</s>", None, add_bos_token=True)


def by_hand(tokenizer: Tokenizer, marked: str) -> tuple[list[int], list[bool]]:
    """ids and mask of a text in which ‹ and › enclose what is learned."""
    ids: list[int] = []
    mask: list[bool] = []
    for number, part in enumerate(marked.replace("›", "‹").split("‹")):
        found = tokenizer.encode(part, specials=True)
        ids += found
        mask += [number % 2 == 1] * len(found)
    return ids, mask


def found(dataset, index: int = 0) -> tuple[list[int], list[bool]]:
    """ids and mask of a dataset's example, in the same form."""
    ids, mask = dataset.example(index)
    return ids.tolist(), np.asarray(mask).tolist()
