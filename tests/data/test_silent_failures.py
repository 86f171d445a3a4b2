"""What would train on nothing, or never to stop, or on other text than the user's, stops with the reason."""

import json

import pytest

from shoestring.core.errors import DataError, TokenizerError
from shoestring.data.supervised.spans import DroppedContent, MovedContent
from shoestring.data.supervised.supervise import AllTruncated, NothingSupervised, StopNeverSupervised
from shoestring.finetuning.examples import prepare_dataset
from tests.data import families, templates

USER = {"role": "user", "content": "What is 7 + 8?"}
ANSWER = {"role": "assistant", "content": "7 + 8 = 15"}
GOOD = {"messages": [USER, ANSWER]}
SILENT = {"messages": [USER]}
LONG = {"messages": [{"role": "user", "content": "why? " * 200}, ANSWER]}
QWEN = families.QWEN25


def prepared(tmp_path, rows, model, length=None, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = families.chatml(model) if isinstance(model, str) else model
    return prepare_dataset(file, tokenizer, length, **settings)


def test_an_example_without_an_answer_stops_with_its_line(tmp_path):
    with pytest.raises(
        NothingSupervised, match=r"rows\.jsonl:2: no assistant turn to learn from\n  --on-bad-line skip"
    ):
        prepared(tmp_path, [GOOD, SILENT], QWEN)


def test_an_example_without_an_answer_can_be_left_out_and_is_counted(tmp_path):
    dataset = prepared(tmp_path, [GOOD, SILENT, GOOD], QWEN, on_bad_line="skip")
    assert dataset.counts.examples == 2 and sum(dataset.counts.skipped.values()) == 1
    assert "rows.jsonl:2" in str(dataset.skipped)


def test_data_without_any_answer_stops_even_when_skipping(tmp_path):
    with pytest.raises(NothingSupervised, match="no example is left to learn from: 2 "):
        prepared(tmp_path, [SILENT, SILENT], QWEN, on_bad_line="skip")


def test_an_empty_answer_is_counted_as_such_and_not_as_the_templates(tmp_path):
    empty = {"messages": [USER, {"role": "assistant", "content": ""}]}
    dataset = prepared(tmp_path, [GOOD, empty], QWEN, on_bad_line="skip")
    assert dataset.counts.skipped == {"nothing to learn": 1}


@pytest.mark.parametrize("supervise", ["assistant", "last"])
def test_the_last_turn_alone_is_suggested_only_where_more_are_learned(tmp_path, supervise):
    template = QWEN.replace("message.content + '<|im_end|>'", "'<|im_end|>'")
    with pytest.raises(DroppedContent) as error:
        prepared(tmp_path, [{"messages": [ANSWER]}], template, supervise=supervise)
    assert ("data.supervise last" in str(error.value)) == (supervise == "assistant")


# Asked as DeepSeek-R1 is: the generation prompt opens a thought, the training text has none.
OPENED = QWEN.rpartition("assistant\\n'")[0] + "assistant\\n<think>\\n' }}{%- endif %}"
TWO = {"messages": [USER, ANSWER, USER, ANSWER]}


@pytest.mark.parametrize(
    ("template", "rows", "notes"),
    [
        (QWEN, [GOOD, TWO], ()),
        (OPENED, [GOOD, TWO], (r"2 conversations taught without '<think>\n', which the model will see",)),
        (families.QWEN3, [GOOD], ()),
        (families.QWEN3, [TWO, GOOD], (r"1 conversations in which the template puts '<think>\n\n</think>' before",)),
    ],
)
def test_replies_that_are_asked_for_otherwise_than_they_are_taught_are_told(tmp_path, template, rows, notes):
    found = prepared(tmp_path, rows, template).notes
    assert len(found) == len(notes) and all(a.startswith(b) for a, b in zip(found, notes, strict=True))


def test_fields_that_nothing_reads_are_told_by_name_and_count(tmp_path):
    rows = [{**GOOD, "score": 1}, {"messages": [{**USER, "name": "Ann", "id": "1"}, ANSWER]}, GOOD]
    unread, unused = reversed(prepared(tmp_path, rows, QWEN).notes)
    assert unused == "fields that are not used: score (1 row)"
    assert unread.startswith("1 conversations with 'name' in messages, which the template does not read (first: ")


def test_an_empty_completion_is_nothing_to_learn(tmp_path):
    with pytest.raises(NothingSupervised, match="no token of this example would be learned"):
        prepared(tmp_path, [{"prompt": "7 + 8", "completion": ""}], families.base())


def test_an_empty_answer_is_nothing_to_learn(tmp_path):
    with pytest.raises(NothingSupervised, match="no assistant turn to learn from"):
        prepared(tmp_path, [{"messages": [USER, {"role": "assistant", "content": " \n"}]}], QWEN)


def test_only_unlearned_turns_are_nothing_to_learn(tmp_path):
    with pytest.raises(NothingSupervised):
        prepared(tmp_path, [{"messages": [USER, {**ANSWER, "weight": 0}]}], QWEN)


def test_a_template_that_never_ends_a_turn_stops(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(StopNeverSupervised, match=r"no answer ends with a stop token \(<\|im_end\|>\)"):
        prepared(tmp_path, [GOOD], template)


def test_an_end_token_that_is_not_the_models_stops(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>\n{% endfor %}"
    with pytest.raises(StopNeverSupervised):
        prepared(tmp_path, [GOOD], template)


def test_generation_blocks_without_an_end_token_stop(tmp_path):
    template = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %} .<|im_end|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(StopNeverSupervised):
        prepared(tmp_path, [GOOD], template)


def test_a_base_model_without_eos_stops(tmp_path):
    with pytest.raises(TokenizerError, match="no eos token"):
        prepared(tmp_path, [{"prompt": "a", "completion": "b"}], families.small([], None, None, None))


def test_a_template_that_leaves_out_the_system_message_stops(tmp_path):
    template = QWEN.replace("messages[0]['content'] + '<|im_end|>\\n'", "'hello<|im_end|>\\n'")
    assert template != QWEN
    row = {"messages": [{"role": "system", "content": "he"}, USER, ANSWER]}
    with pytest.raises(DroppedContent, match=r"drops text of message 1 \(system\)"):
        prepared(tmp_path, [row], template)
    assert prepared(tmp_path, [row], QWEN).counts.examples == 1


def test_a_template_that_leaves_out_the_answers_end_stops(tmp_path):
    template = QWEN.replace("message.content + '<|im_end|>'", "message.content[:20] + '<|im_end|>'")
    row = {"messages": [USER, {"role": "assistant", "content": "one two three four five six seven"}]}
    with pytest.raises(DroppedContent, match=r"drops text of message 2 \(assistant\)"):
        prepared(tmp_path, [row], template)


def test_a_template_that_leaves_out_a_users_turn_stops(tmp_path):
    template = "{% for m in messages[-2:] %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(DroppedContent, match=r"message 1 \(user\)"):
        prepared(tmp_path, [{"messages": [USER, ANSWER, USER, ANSWER]}], template)


def test_a_template_that_knows_no_tools_stops(tmp_path):
    tool = {"type": "function", "function": {"name": "sum", "parameters": {}}}
    with pytest.raises(DroppedContent, match="leaves out the tools"):
        prepared(tmp_path, [{**GOOD, "tools": [tool]}], templates.CHATML)


def test_a_template_that_knows_no_tool_calls_stops(tmp_path):
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": 7, "b": 8}}}
    turns = [USER, {"role": "assistant", "content": "I ask.", "tool_calls": [call]}]
    with pytest.raises(DroppedContent, match=r"drops tool_calls of message 2 \(assistant\)"):
        prepared(tmp_path, [{"messages": turns}], templates.CHATML)


def test_thoughts_that_a_template_drops_from_earlier_turns_stop_unless_only_the_last_is_learned(tmp_path):
    thinking = {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n15"}
    row = {"messages": [USER, thinking, USER, thinking]}
    with pytest.raises(DroppedContent, match=r"message 2 \(assistant\)\n  data\.supervise last"):
        prepared(tmp_path, [row], families.QWEN3)
    dataset = prepared(tmp_path, [row], families.QWEN3, supervise="last")
    text = dataset.tokenizer.decode(dataset.example(0)[0], skip_specials=False)
    assert text.count("Easy.") == 1


def test_an_end_token_inside_an_answer_stops(tmp_path):
    row = {"messages": [USER, {"role": "assistant", "content": "It is <|im_end|> in Qwen."}]}
    with pytest.raises(DroppedContent, match=r"contains <\|im_end\|>, which ends its turn"):
        prepared(tmp_path, [row], QWEN)


def test_a_template_that_reorders_turns_stops_when_they_cannot_be_told_apart(tmp_path):
    turns = [{**USER, "content": "what"}, {**ANSWER, "content": "one"}, {**USER, "content": "so"}]
    reversing = "{% for m in messages[::-1] %}{{ m.role }}{SIZE}: {{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(MovedContent, match=r"what message 2 \(assistant\) became"):
        prepared(tmp_path, [{"messages": turns}], reversing.replace("{SIZE}", "{{ m.content | length }}"))
    dataset = prepared(tmp_path, [{"messages": turns}], reversing.replace("{SIZE}", ""))
    marked = "user: so<|im_end|>assistant: ‹one<|im_end|>›user: what<|im_end|>"
    assert families.found(dataset) == families.by_hand(dataset.tokenizer, marked)


def test_an_example_whose_answer_is_cut_away_stops_with_its_line(tmp_path):
    with pytest.raises(AllTruncated, match=r"rows\.jsonl:2: nothing to learn is left of its [\d,]+ tokens"):
        prepared(tmp_path, [GOOD, LONG], QWEN, 256)


def test_an_example_whose_answer_is_cut_away_can_be_left_out(tmp_path):
    dataset = prepared(tmp_path, [GOOD, LONG], QWEN, 256, on_bad_line="skip")
    assert dataset.counts.examples == 1 and "cut before anything learned" in str(dataset.skipped)


def test_data_of_which_everything_is_cut_away_stops_even_when_skipping(tmp_path):
    with pytest.raises(AllTruncated, match="every example is cut before anything to learn"):
        prepared(tmp_path, [LONG, LONG], QWEN, 256, on_bad_line="skip")


def test_data_of_which_every_end_is_cut_away_stops(tmp_path):
    row = {"messages": [USER, {"role": "assistant", "content": "because " * 100}]}
    with pytest.raises(AllTruncated, match="all 2 examples are cut before their end"):
        prepared(tmp_path, [row, row], QWEN, 256)


def test_one_whole_example_among_the_cut_ones_is_enough(tmp_path):
    row = {"messages": [USER, {"role": "assistant", "content": "because " * 100}]}
    counts = prepared(tmp_path, [row, GOOD], QWEN, 256).counts
    assert (counts.truncated, counts.stops) == (1, 1)


def test_a_template_that_refuses_a_conversation_is_named_with_the_line(tmp_path):
    template = "{{ raise_exception('roles must alternate') if messages[0].role != 'user' }}" + templates.CHATML
    with pytest.raises(TokenizerError, match=r"rows\.jsonl:1: the chat template refuses .*roles must alternate"):
        prepared(tmp_path, [{"messages": [ANSWER, USER, ANSWER]}], template)


def test_a_conversation_cannot_be_joined_without_a_template(tmp_path):
    with pytest.raises(DataError, match="cannot be joined without a template"):
        prepared(tmp_path, [GOOD], QWEN, template="none")
