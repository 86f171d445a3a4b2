"""Tool calls in the form that a template expects. Judge: transformers' renderer, given that form."""

import json

import pytest
import transformers

from shoestring.data.supervised.rows import without_nulls
from shoestring.data.tool_calls import CallForm
from shoestring.finetuning.examples import prepare_dataset
from tests.data import families, templates

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 1}}}
TURNS = [
    {"role": "user", "content": "Zürich?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]
# As DeepSeek-R1-Distill writes calls: joined strings, and only where the content is none.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is none %}{% for t in m['tool_calls'] %}"
    "{{ '<|im_start|>' + t['type'] + ' ' + t['function']['name'] + '\n```json\n' + t['function']['arguments']"
    " + '\n```<|im_end|>' }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is not none %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{% if m['role'] == 'tool' %}{{ '<|im_start|>' + m['content'] }}{% endif %}{% endfor %}"
)
V3 = R1.replace("m['content'] is none", "'tool_calls' in m")
V3 = V3.replace("m['content'] is not none", "'tool_calls' not in m")
JOINED = "'\n```json\n' + t['function']['arguments'] + '\n```<|im_end|>'"
REPR = V3.replace(JOINED, "t.function.arguments ~ '<|im_end|>'")
FORMS = {
    R1: CallForm(True, True), V3: CallForm(True), REPR: CallForm(True), families.QWEN25: CallForm(),
    templates.LLAMA: CallForm(),
}  # fmt: skip


@pytest.mark.parametrize("template", list(FORMS), ids=["R1", "V3", "repr", "Qwen", "Llama"])
def test_a_call_is_written_as_the_template_means_it(template):
    tokenizer = families.chatml(template)
    form = FORMS[template]
    given = json.loads(json.dumps(TURNS[:2]))
    if form.text:
        function = given[1]["tool_calls"][0]["function"]
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    ours = tokenizer.render_chat(TURNS[:2], add_generation_prompt=False, bos_token="", date_string="x")
    if form.none:  # transformers takes out contents that are none, which such a template cannot bear
        call = '<|im_start|>function weather\n```json\n{"city": "Zürich", "n": 1}\n```<|im_end|>'
        assert ours == f"<|im_start|>Zürich?{call}"
        return
    judge = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, chat_template=template)
    assert ours == judge.apply_chat_template(given, tokenize=False, bos_token="", date_string="x")
    assert '"city": "Zürich"' in ours


@pytest.mark.parametrize("template", [R1, V3])
def test_calls_are_learned_with_deepseeks_templates(template):
    dataset = prepare_dataset([{"messages": TURNS}], families.chatml(template))
    ids, mask = dataset.example(0)
    learned = dataset.tokenizer.decode(ids[mask].tolist())
    assert 'weather\n```json\n{"city": "Zürich", "n": 1}\n```' in learned and learned.endswith("It is sunny.")


def test_nulls_that_a_column_of_objects_adds_are_no_arguments_and_no_schema():
    filled = {"a": {"x": 1, "y": None, "z": [{"x": None, "y": 2}]}, "b": None}
    assert without_nulls(filled) == {"a": {"x": 1, "z": [{"y": 2}]}}
