"""Fields under other names and tables of people's own become the same examples, and it is told how they are read."""

import json

import pytest

from shoestring.core.errors import ConfigError, DataError
from shoestring.data.sources import Skipped
from shoestring.data.supervised.rows import ExampleSource
from shoestring.data.supervised.show import header_line
from shoestring.finetuning.examples import prepare_dataset
from tests.data import families

TURNS = [{"role": "user", "content": "7 + 8?"}, {"role": "assistant", "content": "15"}]
SYSTEM = {"role": "system", "content": "Be brief."}


def read(tmp_path, rows, **options):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ExampleSource(file, **options)
    return source, [example.messages for example in source.examples(Skipped())]


PAIRS = [
    ("question", "answer"), ("query", "response"), ("input", "output"), ("prompt", "response"), ("prompt", "chosen"),
    ("Question", "ANSWER"), ("question", "response"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "answered"), PAIRS)
def test_usual_names_of_a_question_and_its_answer_are_known(tmp_path, asked, answered):
    source, messages = read(tmp_path, [{"id": 3, asked: "7 + 8?", answered: "15"}] * 2)
    assert (source.form, messages) == ("prompt", [TURNS, TURNS])
    assert source.columns == {f: n for f, n in (("prompt", asked), ("completion", answered)) if f != n}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"instruction": "7 + 8?", "response": "15"}, "alpaca"),
        ({"conversation": TURNS}, "messages"),
        ({"dialogue": json.dumps(TURNS)}, "messages"),
        ({"chosen": TURNS, "rejected": []}, "messages"),
        ({"messages": [{"from": "human", "value": "7 + 8?"}, {"from": "gpt", "value": "15"}]}, "sharegpt"),
        ({"prompt": "7 + 8?", "chosen": TURNS}, "prompt"),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:]}, "prompt"),
        ({"prompt": TURNS[:1], "completion": "15"}, "prompt"),
    ],
)
def test_other_forms_under_other_names_give_the_same_messages(tmp_path, row, form):
    source, messages = read(tmp_path, [row])
    assert (source.form, messages) == (form, [TURNS])


def test_a_context_and_a_system_prompt_are_read_beside_an_instruction(tmp_path):
    row = {"system_prompt": "Be brief.", "instruction": "Add.", "context": "7, 8", "response": "15"}
    assert read(tmp_path, [row])[1] == [[SYSTEM, {"role": "user", "content": "Add.\n\n7, 8"}, TURNS[1]]]


def test_a_prompt_that_is_a_list_of_numbers_is_text(tmp_path):
    assert read(tmp_path, [{"prompt": "[3, 1]", "completion": "[1, 3]"}])[1][0][0]["content"] == "[3, 1]"


def test_columns_name_the_rest_and_win_over_a_field_of_that_name(tmp_path):
    row = {"Q": "7 + 8?", "A": "15", "prompt": "another"}
    columns = {"prompt": "Q", "completion": "A"}
    source, messages = read(tmp_path, [row], columns=columns)
    assert (source.form, messages, source.columns) == ("prompt", [TURNS], columns)
    assert [example.unused for example in source.examples(Skipped())] == [("prompt",)]
    with pytest.raises(DataError, match="there is no column 'X' to be read as prompt; there are 'Q', 'A', 'prompt'"):
        read(tmp_path, [row], columns={"prompt": "X"})
    with pytest.raises(ConfigError, match="no form of examples has a field 'promt'"):
        read(tmp_path, [row], columns={"promt": "Q"})


def test_unknown_names_lead_to_columns(tmp_path):
    with pytest.raises(DataError, match="with the fields 'Q', 'A'\n(.*\n)*  --columns prompt=NAME completion=NAME"):
        read(tmp_path, [{"Q": "a", "A": "b"}])


CSV = 'Question,Answer,n\n7 + 8?,15,1\n"a, ""b""\nc",d,2\n'


def test_a_table_is_read_with_its_quotes_and_the_header_tells_how(tmp_path):
    for name, text in (("qa.csv", CSV), ("qa.tsv", CSV.replace("a, ", "a; ").replace(",", "\t").replace("; ", ", "))):
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        source = ExampleSource(tmp_path / name)
        examples = list(source.examples(Skipped()))
        assert [example.messages[0]["content"] for example in examples] == ["7 + 8?", 'a, "b"\nc']
        assert examples[0].where.endswith(f"{name}:2") and examples[1].where.endswith(f"{name}:3")
    dataset = prepare_dataset(tmp_path / "qa.csv", families.base())
    assert ": prompt (Question as prompt, Answer as completion), 2 examples" in header_line(dataset)
    assert dataset.notes == ("fields that are not used: n (2 rows)",)


def test_semicolons_separate_where_the_first_line_has_them(tmp_path):
    (tmp_path / "qa.csv").write_text("prompt;completion\n1,5 + 1;2,5\n")
    (example,) = ExampleSource(tmp_path / "qa.csv").examples(Skipped())
    assert example.plain == ("1,5 + 1", "2,5")


WRONG = {
    b"prompt,completion\na,b\na,b,c\n": "qa.csv:3: a row of 3 cells, and there are 2 names in the first line",
    b'prompt,completion\n"a,b\n': "qa.csv:2: not a readable row",
    b"prompt,prompt\na,b\n": "qa.csv:1: two columns are named 'prompt'",
    b"prompt,completion\n\xe9,b\n": "qa.csv:2: not UTF-8: byte 0xe9",
    b"": "qa.csv: no names of columns in the first line",
    b"prompt,completion\n": "qa.csv: there are no rows",
}


@pytest.mark.parametrize("content", WRONG)
def test_a_wrong_table_is_told_with_its_line(tmp_path, content):
    (tmp_path / "qa.csv").write_bytes(content)
    with pytest.raises(DataError, match=WRONG[content]):
        list(ExampleSource(tmp_path / "qa.csv").examples(Skipped()))


def test_a_row_that_does_not_fit_can_be_left_out(tmp_path):
    (tmp_path / "qa.csv").write_text("prompt,completion\na,b\na,b,c\n,\nd,e\n")
    skipped = Skipped()
    examples = list(ExampleSource(tmp_path / "qa.csv", on_bad_line="skip").examples(skipped))
    assert [example.plain[0] for example in examples] == ["a", "", "d"] and skipped.counts == {"bad lines": 1}


def test_a_workbook_is_told_apart_from_a_table(tmp_path):
    (tmp_path / "qa.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match='a workbook of a spreadsheet program.*\n  save the sheet as "CSV UTF-8"'):
        ExampleSource(tmp_path / "qa.xlsx")
