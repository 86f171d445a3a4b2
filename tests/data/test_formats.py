"""Rows of all forms, from all kinds of files, become the same examples; wrong rows are named by file and line."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.core.errors import ConfigError, DataError, NetworkError
from shoestring.data.hub import training_files
from shoestring.data.sources import Skipped
from shoestring.data.supervised.formats import to_example
from shoestring.data.supervised.rows import ExampleSource
from tests.data.fake_hub import FakeHub, unreachable

TURNS = [{"role": "user", "content": "7 + 8?"}, {"role": "assistant", "content": "15"}]
ROWS = {
    "messages": {"messages": TURNS},
    "sharegpt": {"conversations": [{"from": "human", "value": "7 + 8?"}, {"from": "gpt", "value": "15"}]},
    "alpaca": {"instruction": "7 + 8?", "input": "", "output": "15"},
    "prompt": {"prompt": "7 + 8?", "completion": "15"},
}


def read(path, form="auto", on_bad_line="stop", skipped=None):
    source = ExampleSource(path, form, on_bad_line)
    return source, list(source.examples(skipped or Skipped()))


def jsonl(tmp_path, *lines, name="rows.jsonl"):
    file = tmp_path / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("form", ROWS)
def test_each_form_is_detected_and_gives_the_same_messages(tmp_path, form):
    source, examples = read(jsonl(tmp_path, ROWS[form], ROWS[form]))
    assert source.form == form
    assert [example.messages for example in examples] == [TURNS, TURNS]
    assert examples[1].where.endswith("rows.jsonl:2") and examples[0].learn == [True, True]


def test_text_is_detected(tmp_path):
    source, examples = read(jsonl(tmp_path, {"text": "once"}))
    assert source.form == "text" and examples[0].plain == ("", "once") and not examples[0].messages


def test_a_given_form_wins_over_the_detected_one(tmp_path):
    file = jsonl(tmp_path, {**ROWS["messages"], "text": "rendered"})
    assert read(file)[0].form == "messages"
    assert read(file, "text")[1][0].plain == ("", "rendered")


@pytest.mark.parametrize("kind", ["json", "parquet", "gz"])
def test_other_files_give_the_same_examples(tmp_path, kind):
    content = [{"messages": TURNS}, {"messages": [{"role": "system", "content": "Be brief."}, *TURNS]}]
    expected = [example.messages for example in read(jsonl(tmp_path, *content))[1]]
    file = tmp_path / ("rows.jsonl.gz" if kind == "gz" else f"rows.{kind}")
    if kind == "json":
        file.write_text(json.dumps(content, indent=1))
    elif kind == "gz":
        file.write_bytes(gzip.compress("\n".join(map(json.dumps, content)).encode()))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
    source, examples = read(file)
    assert [example.messages for example in examples] == expected and source.form == "messages"


def test_nulls_that_parquet_fills_in_are_no_fields(tmp_path):
    call = {"type": "function", "function": {"name": "sum", "arguments": '{"a": 7}'}}
    turns = [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}, TURNS[1]]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), file)
    messages = read(file)[1][0].messages
    assert messages[0] == TURNS[0] and messages[2] == TURNS[1]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "sum", "arguments": {"a": 7}}
    assert read(file)[1][0].where.endswith("rows.parquet: row group 1, row 1")


def test_sharegpt_carries_system_tools_and_calls(tmp_path):
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "Sunny."},
    ]
    tools = [{"name": "weather"}]
    row = {"conversations": turns, "system": "Be brief.", "tools": json.dumps(tools)}
    (example,) = read(jsonl(tmp_path, row))[1]
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[2]["tool_calls"][0]["function"]["name"] == "weather" and example.tools == tools


SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize("form", ROWS)
def test_a_system_message_beside_the_rest_is_kept_in_every_form(tmp_path, form):
    (example,) = read(jsonl(tmp_path, {**ROWS[form], "system": "Be brief."}))[1]
    assert example.messages == [SYSTEM, *TURNS] and example.plain is None and example.unused == ()


def test_a_system_message_that_stands_twice_is_kept_once_and_two_are_refused(tmp_path):
    row = {"messages": [SYSTEM, *TURNS], "system": "Be brief."}
    assert read(jsonl(tmp_path, row))[1][0].messages == [SYSTEM, *TURNS]
    with pytest.raises(DataError, match="two system messages, which differ"):
        read(jsonl(tmp_path, {**row, "system": "Be long."}))
    with pytest.raises(DataError, match="system is not a string"):
        read(jsonl(tmp_path, {**row, "system": ["a"]}))


def test_alpacas_history_comes_before_the_question(tmp_path):
    (example,) = read(jsonl(tmp_path, {**ROWS["alpaca"], "history": [["1 + 1?", "2"]]}))[1]
    assert example.messages == [*HISTORY, *TURNS] and example.plain is None and all(example.learn)
    with pytest.raises(DataError, match="entry 1 of history is not a question with its answer"):
        read(jsonl(tmp_path, {**ROWS["alpaca"], "history": ["1 + 1?"]}))


def test_tools_are_kept_beside_a_question_too(tmp_path):
    for form in ("prompt", "alpaca"):
        assert read(jsonl(tmp_path, {**ROWS[form], "tools": [{"name": "f"}]}))[1][0].tools == [{"name": "f"}]


@pytest.mark.parametrize("form", ROWS)
def test_fields_that_hold_something_and_are_not_read_are_named(tmp_path, form):
    row = {**ROWS[form], "thoughts": "hm", "score": 0, "empty": "", "none": None, "list": []}
    assert read(jsonl(tmp_path, row))[1][0].unused == ("thoughts", "score")


def test_an_old_function_call_is_a_tool_call(tmp_path):
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    (example,) = read(jsonl(tmp_path, {"messages": [TURNS[0], call]}))[1]
    assert example.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (pyarrow.array([b"a", b"\xb5"], pyarrow.binary()).view(pyarrow.string()), "group 1, row 2: a text that is not"),
        (pyarrow.array([1, 2**60]).cast(pyarrow.timestamp("ms")), "not a readable Parquet file"),
    ],
    ids=["text", "date"],
)
def test_cells_of_parquet_that_python_cannot_hold_are_a_sentence(tmp_path, values, sentence):
    file = tmp_path / "rows.parquet"
    table = pyarrow.table({"prompt": ["a", "b"], "completion": ["c", "d"], "more": values})
    pyarrow.parquet.write_table(table, file)
    with pytest.raises(DataError, match=sentence):
        read(file)


def test_parquet_adds_no_nulls_to_arguments_and_schemas(tmp_path):
    def call(**arguments):
        return {"type": "function", "function": {"name": "f", "arguments": arguments}}

    tool = {"name": "f", "parameters": {"properties": {"x": {"type": "number"}}}}
    other = {"name": "g", "parameters": {"properties": {"y": {"type": "number", "enum": [1]}}}}
    content = [
        {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call(x=1)]}], "tools": [tool]},
        {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call(y=2)]}], "tools": [other]},
    ]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), file)
    first, second = read(file)[1]
    assert [e.messages[1]["tool_calls"][0]["function"]["arguments"] for e in (first, second)] == [{"x": 1}, {"y": 2}]
    assert [first.tools, second.tools] == [[tool], [other]]
    assert read(jsonl(tmp_path, content[0] | {"tools": [{"a": None}]}))[1][0].tools == [{"a": None}]  # meant so


EMPTY = {
    "": "rows.jsonl: there are no rows",
    "[\n": "(?s)rows.jsonl:1: not a JSON object: unexpected end of line.*a list of all rows goes into a .json file",
    "[{}]\n": "(?s)rows.jsonl:1: no row can be read.*|rows.jsonl:1: not a JSON object.*",
    '{\n"text": 1\n}\n': "(?s)rows.jsonl:1: .*a row stands on one line; objects over several lines go into a .json",
}


@pytest.mark.parametrize("text", EMPTY)
def test_a_file_that_is_no_jsonl_is_told_what_it_is(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=EMPTY[text]):
        read(tmp_path / "rows.jsonl")


def test_parts_of_text_are_joined_and_alpacas_input_follows_the_instruction(tmp_path):
    parts = [{"type": "text", "text": "7 "}, {"type": "text", "text": "+ 8?"}]
    row = {"messages": [{"role": "user", "content": parts}, TURNS[1]]}
    assert read(jsonl(tmp_path, row))[1][0].messages == TURNS
    row = {"instruction": "Add.", "input": "7, 8", "output": "15"}
    (example,) = read(jsonl(tmp_path, row))[1]
    assert example.messages[0]["content"] == "Add.\n\n7, 8" and example.plain == ("Add.\n\n7, 8\n\n", "15")


def test_a_broken_line_is_told_as_the_house_tells_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path, ROWS["messages"], '{"messages": [{"role": "user"', name="mine.jsonl")
    with pytest.raises(DataError) as error:
        read("mine.jsonl")
    assert str(error.value) == (
        "mine.jsonl:2: not a JSON object: unexpected end of line\n"
        '  expected one of: {"messages": [...]}, {"prompt": ..., "completion": ...},'
        ' {"instruction": ..., "output": ...}, {"conversations": [...]}, {"text": ...}\n'
        "  --on-bad-line skip leaves such lines out and counts them"
    )


BAD = {
    "[1, 2]": "not a JSON object",
    '{"messages": "hello"}': "no list of messages",
    '{"messages": []}': "no list of messages, or an empty one",
    '{"messages": [{"role": "user"}]}': r"message 1 \(user\) has no content",
    '{"messages": [{"role": "human", "content": "a"}]}': "message 1 has the role 'human'",
    '{"messages": [{"role": "user", "content": 5}]}': "neither a string nor a list",
    '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}': "not text: image_url",
    '{"messages": [{"role": "assistant", "tool_calls": [5]}]}': "tool_calls that are not a list of calls",
    '{"messages": [{"role": "user", "content": "a", "weight": 2}]}': "weight 2",
    '{"prompt": "a", "completion": "b"}': "not a row of the form messages: it has the fields 'prompt', 'completion'",
    '{"messages": [{"role": "user", "content": "\\ud800"}]}': "half of a surrogate pair",
    '{"messages": NaN}': "no list of messages",
}


@pytest.mark.parametrize("line", BAD)
def test_a_wrong_row_is_named_with_its_line_and_can_be_left_out(tmp_path, line):
    file = jsonl(tmp_path, ROWS["messages"], line, ROWS["messages"])
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*{BAD[line]}"):
        read(file, "messages")
    skipped = Skipped()
    assert len(read(file, "messages", "skip", skipped)[1]) == 2
    assert skipped.counts == {"bad lines": 1} and skipped.first["bad lines"].endswith("rows.jsonl:2")


def test_an_unknown_speaker_is_named(tmp_path):
    for speaker, shown in (("narrator", "'narrator'"), (["gpt"], r"\['gpt'\]"), (None, "None")):
        row = {"conversations": [{"from": speaker, "value": "a"}]}
        with pytest.raises(DataError, match=f"turn 1 is from {shown}"):
            read(jsonl(tmp_path, row))


def test_an_unknown_form_shows_the_fields_and_the_known_forms(tmp_path):
    with pytest.raises(DataError, match="unknown form, with the fields 'question', 'reply'\n  expected one of"):
        read(jsonl(tmp_path, {"question": "a", "reply": "b"}))


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"x"), ("a.parquet", b"PAR1 no"), ("a.json", b"{"), ("a.json", b"{}")]
)
def test_files_that_are_no_examples_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_a_missing_file_points_to_the_hubs_names(tmp_path):
    with pytest.raises(DataError, match="no such file or folder\n  for a data set on the hub write hf:OWNER/NAME"):
        read(tmp_path / "none.jsonl")


def test_a_split_folder_gives_its_training_file(tmp_path):
    jsonl(tmp_path, ROWS["messages"], name="train.jsonl")
    jsonl(tmp_path, ROWS["messages"], ROWS["messages"], name="test.jsonl")
    assert len(read(tmp_path)[1]) == 1


def test_a_data_set_on_the_hub_is_read_from_its_training_files(tmp_path, monkeypatch):
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "README.md").write_text("a data set")
    for part in ("train", "test"):
        (tmp_path / "converted" / "default" / part).mkdir(parents=True)
        jsonl(tmp_path / "converted" / "default" / part, ROWS["sharegpt"], name="0.jsonl")
    fake = FakeHub(monkeypatch, main=tmp_path / "main", convert=tmp_path / "converted")
    assert ExampleSource("hf:owner/name").form == "sharegpt"
    assert fake.asked == [("owner/name", "main"), ("owner/name", "refs/convert/parquet")]
    assert fake.fetched == ["default/train/0.jsonl"]


def test_a_hub_that_does_not_answer_is_a_network_error(monkeypatch):
    unreachable(monkeypatch, "no route")
    with pytest.raises(NetworkError, match="no route"):
        ExampleSource("hf:owner/name")


def test_training_files_are_of_one_kind_one_split_and_one_configuration():
    files = [
        "b/train-0.parquet",
        "default/train-1.parquet",
        "default/train-0.parquet",
        "default/test-0.parquet",
        "x.json",
    ]
    assert training_files(files) == ["default/train-0.parquet", "default/train-1.parquet"]
    assert training_files(["data.jsonl", "data_test.jsonl"]) == ["data.jsonl"]
    assert training_files(["README.md", ".gitattributes", "config.json"]) == []


SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3)
KEYS = st.sampled_from(
    "messages conversations instruction input history output prompt completion text tools system role content from"
    " value tool_calls function name arguments weight train type id".split()
)
WORDS = st.sampled_from(["user", "assistant", "tool", "human", "gpt", "function_call", '{"name": "f"}', "[]"])
ANYTHING = st.recursive(
    SCALARS | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(row=ANYTHING | st.dictionaries(KEYS, ANYTHING, max_size=4), form=st.sampled_from(list(ROWS)))
def test_any_row_is_an_example_or_a_sentence(row, form):
    try:
        example = to_example(row, form, "a:1")
    except DataError as error:
        assert error.where == "a:1"
    else:
        assert example.messages and all(isinstance(m["content"], str) for m in example.messages) and example.question()


def test_exercises_are_made_on_the_spot_the_same_each_time():
    source = ExampleSource("exercises:comparisons")
    first, again = (list(source.examples(Skipped())) for _ in range(2))
    assert source.form == "messages" and len(first) > 1000 and first == again
    assert [m["role"] for m in first[0].messages] == ["user", "assistant"]
    with pytest.raises(ConfigError, match="known: arithmetic"):
        ExampleSource("exercises:chess")
