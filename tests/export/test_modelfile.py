"""A chat template that is a fixed form becomes Ollama's; what is more than a form is told, not guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.data.tokenizer import Tokenizer
from shoestring.export.gguf.chat_form import chat_form
from shoestring.export.gguf.modelfile import go_template, modelfile
from shoestring.export.job import export_gguf
from shoestring.models.folder import GenerationDefaults
from tests.data import families, templates
from tests.export.folders import saved

TALK = [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"},
]  # fmt: skip
RULE = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    "tokenizer",
    [
        families.chatml(templates.CHATML), families.chatml(families.QWEN25), families.llama(families.LLAMA3),
        families.chatml(families.QWEN3),
    ],
    ids=["chatml", "qwen2.5", "llama3", "qwen3"],
)  # fmt: skip
def test_the_form_renders_what_the_template_renders(tokenizer: Tokenizer) -> None:
    form = chat_form(tokenizer)
    assert form is not None
    for messages in (TALK[:1], TALK, [RULE, TALK[0]], [RULE, *TALK]):
        assert form.render(messages) == tokenizer.render_chat(messages)


def test_a_template_that_is_more_than_a_form_has_none() -> None:
    assert chat_form(families.small(["<s>", "</s>"], "<s>", "</s>", families.MISTRAL)) is None
    assert chat_form(families.small(["</s>"], None, "</s>", None)) is None
    numbered = "{% for m in messages %}{{ loop.index }}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    assert chat_form(families.small(["</s>"], None, "</s>", numbered)) is None


def test_a_template_without_system_messages_is_a_form_without_them() -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    form = chat_form(families.small(["</s>"], None, "</s>", refusing))
    assert form is not None and form.system is None
    assert go_template(form) == (
        '{{ range .Messages }}{{ if eq .Role "user" }}[user]{{ .Content }}</s>'
        '{{ else if eq .Role "assistant" }}[assistant]{{ .Content }}</s>{{ end }}{{ end }}[assistant]'
    )


def test_the_go_template_of_chatml() -> None:
    form = chat_form(families.chatml(templates.CHATML))
    assert form is not None and go_template(form) == (
        "{{ if not .System }}<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )


def test_what_stands_before_every_text_anyway_is_not_in_the_go_template() -> None:
    form = chat_form(families.llama(families.LLAMA3))
    assert form is not None and "<|begin_of_text|>" in go_template(form)
    assert "<|begin_of_text|>" not in go_template(form, "<|begin_of_text|>")


def test_braces_of_a_template_stay_text() -> None:
    braces = "{% for m in messages %}{{ '{{' + m.role + '}}' }}{{ m.content }}</s>{% endfor %}"
    form = chat_form(families.small(["</s>"], None, "</s>", braces))
    assert form is not None and '{{ "{{" }}user}}{{ .Content }}</s>' in go_template(form)


def test_a_modelfile_has_ends_context_and_the_models_own_sampling() -> None:
    tokenizer = families.chatml(templates.CHATML)
    ends = [tokenizer.backend.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
    settings = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True, "top_p": None}
    text = modelfile("m.gguf", tokenizer, GenerationDefaults(settings=settings), ends, 512)
    assert text.startswith('FROM ./m.gguf\nTEMPLATE """{{ if not .System }}')
    assert text.endswith(
        '"""\nPARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\nPARAMETER num_ctx 512\n'
        "PARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER repeat_penalty 1.1\n"
    )
    greedy = modelfile("m.gguf", tokenizer, GenerationDefaults(settings={"do_sample": False}), ends, 8192)
    assert greedy.endswith("PARAMETER temperature 0\n") and "num_ctx" not in greedy
    mistral = families.small(["<s>", "</s>"], "<s>", "</s>", families.MISTRAL)
    other = modelfile("m.gguf", mistral, GenerationDefaults(), [mistral.eos_id or 0], 8192)
    assert "TEMPLATE" not in other and "\n# The chat template is more than a fixed form" in other


def test_it_stands_beside_the_file(tmp_path: Path) -> None:
    done = export_gguf(saved(tmp_path / "model"), tmp_path / "mine.gguf", "q8_0")
    assert done.beside == [tmp_path / "mine.Modelfile"]
    assert done.beside[0].read_text().startswith("FROM ./mine.gguf\n")
