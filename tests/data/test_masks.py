"""What is learned, against masks written by hand: the text that the model reads, with ‹ › around the learned part."""

import json

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, processors

from shoestring.finetuning.examples import prepare_dataset
from shoestring.models.get import get
from tests.data import families, templates
from tests.data.families import by_hand, found

SMOLLM2_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
QWEN_SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"

TURNS = [
    {"role": "user", "content": "What is 7 + 8?"},
    {"role": "assistant", "content": "7 + 8 = 15"},
    {"role": "user", "content": "Sure, in the end?"},
    {"role": "assistant", "content": "Yes, the sum."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TURNS[:2]]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Today's", "parameters": {}}}
TOOL_TURNS = [
    {"role": "user", "content": "Zürich?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]
ANSWERED_BY_TOOL = [TURNS[0], {"role": "tool", "content": "15"}, {"role": "assistant", "content": "It is 15."}]


@pytest.fixture(scope="module")
def smollm2():
    from shoestring.data.tokenizer import Tokenizer

    return Tokenizer.load(get("smollm2-135m"))


def prepared(tmp_path, row, tokenizer, length=None, **options):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return prepare_dataset(file, tokenizer, length, **options)


def assert_learns(tmp_path, row, tokenizer, marked, length=None, **options):
    dataset = prepared(tmp_path, row, tokenizer, length, **options)
    ids, mask = by_hand(tokenizer, marked)
    assert found(dataset) == (ids[:length], mask[:length])
    assert any(mask[:length]) and not all(mask[:length])


# SmolLM2, with its real tokenizer


def test_smollm2_several_turns(tmp_path, smollm2):
    assert_learns(
        tmp_path,
        {"messages": TURNS},
        smollm2,
        SMOLLM2_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes, the sum.<|im_end|>›\n",
    )


def test_smollm2_system(tmp_path, smollm2):
    assert_learns(
        tmp_path,
        {"messages": SYSTEM},
        smollm2,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n"
        "<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n",
    )


def test_smollm2_tool_answer(tmp_path, smollm2):
    assert_learns(
        tmp_path,
        {"messages": ANSWERED_BY_TOOL},
        smollm2,
        SMOLLM2_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>tool\n15<|im_end|>\n"
        "<|im_start|>assistant\n‹It is 15.<|im_end|>›\n",
    )


def test_smollm2_cut_inside_the_second_answer(tmp_path, smollm2):
    marked = (
        SMOLLM2_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes,› the sum.<|im_end|>\n"
    )
    whole, _ = by_hand(smollm2, marked)
    length = len(whole) - 5  # "the", "sum", ".", "<|im_end|>", "\n"
    assert_learns(tmp_path, {"messages": TURNS}, smollm2, marked, length)
    counts = prepared(tmp_path, {"messages": TURNS}, smollm2, length).counts
    assert (counts.truncated, counts.longest, counts.tokens) == (1, len(whole), length)


# Qwen2.5


def test_qwen_several_turns(tmp_path):
    assert_learns(
        tmp_path,
        {"messages": TURNS},
        families.chatml(families.QWEN25),
        QWEN_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes, the sum.<|im_end|>›\n",
    )


def test_qwen_system(tmp_path):
    assert_learns(
        tmp_path,
        {"messages": SYSTEM},
        families.chatml(families.QWEN25),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n"
        "<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n",
    )


QWEN_TOOLS = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "weather", "description": "Today\'s", "parameters": {}}}\n</tools>\n\n'
    "Return a json object within <tool_call></tool_call> tags.<|im_end|>\n"
    "<|im_start|>user\nZürich?<|im_end|>\n<|im_start|>assistant\n"
    '‹<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>›\n'
    "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n‹It is sunny.<|im_end|>›\n"
)


def test_qwen_calls_a_tool(tmp_path):
    assert_learns(tmp_path, {"messages": TOOL_TURNS, "tools": [TOOL]}, families.chatml(families.QWEN25), QWEN_TOOLS)


def test_qwen_calls_a_tool_with_arguments_given_as_text(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    turns = [TOOL_TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}, *TOOL_TURNS[2:]]
    row = {"messages": turns, "tools": json.dumps([TOOL])}
    assert_learns(tmp_path, row, families.chatml(families.QWEN25), QWEN_TOOLS)


def test_qwen_cut_inside_the_answer(tmp_path):
    marked = QWEN_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n"
    tokenizer = families.chatml(families.QWEN25)
    second = "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes, the sum.<|im_end|>›\n"
    length = len(by_hand(tokenizer, marked)[0]) + 10
    assert_learns(tmp_path, {"messages": TURNS}, tokenizer, marked + second, length)


# Llama 3 and 3.1


def test_llama3_several_turns(tmp_path):
    assert_learns(
        tmp_path,
        {"messages": TURNS},
        families.llama(families.LLAMA3),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 7 + 8?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n‹7 + 8 = 15<|eot_id|>›"
        "<|start_header_id|>user<|end_header_id|>\n\nSure, in the end?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n‹Yes, the sum.<|eot_id|>›",
    )


def test_llama3_system_and_trimmed_text(tmp_path):
    answer = {"role": "assistant", "content": "\n 7 + 8 = 15 \n"}
    assert_learns(
        tmp_path,
        {"messages": [*SYSTEM[:2], answer]},
        families.llama(families.LLAMA3),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 7 + 8?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n‹7 + 8 = 15<|eot_id|>›",
    )


def test_llama31_calls_a_tool_on_a_fixed_day(tmp_path):
    tool = json.dumps(TOOL, indent=4, ensure_ascii=False)
    assert_learns(
        tmp_path,
        {"messages": TOOL_TURNS, "tools": [TOOL]},
        families.llama(templates.LLAMA),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Given the following functions, please respond with a JSON for a function call.\n\n"
        f"{tool}\n\nZürich?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        '‹{"name": "weather", "parameters": {"city": "Zürich"}}<|eot_id|>›'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"sunny"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n‹It is sunny.<|eot_id|>›",
    )


def test_llama3_cut_right_after_the_first_answer(tmp_path):
    tokenizer = families.llama(families.LLAMA3)
    first = (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is 7 + 8?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n‹7 + 8 = 15<|eot_id|>›"
    )
    assert_learns(tmp_path, {"messages": TURNS}, tokenizer, first, len(by_hand(tokenizer, first)[0]))


# A base model without a template


def test_base_prompt_and_completion_are_joined(tmp_path):
    row = {"prompt": "The sum of 7 and 8 is", "completion": " 15"}
    assert_learns(tmp_path, row, families.base(), "<s>The sum of 7 and 8 is‹ 15</s>›")


def test_base_several_turns_with_system(tmp_path):
    dataset = prepared(tmp_path, {"messages": [SYSTEM[0], *TURNS]}, families.base())
    marked = (
        "<s>System:\nBe brief.\n\nUser:\nWhat is 7 + 8?\n\nAssistant:\n‹7 + 8 = 15</s>›\n\n"
        "User:\nSure, in the end?\n\nAssistant:\n‹Yes, the sum.</s>›\n\n"
    )
    assert found(dataset) == by_hand(dataset.tokenizer, marked)
    # The template goes with the tokenizer, so that the tuned model can be talked to in the same way.
    prompt = dataset.tokenizer.render_chat(TURNS[:1])
    assert prompt == "<s>User:\nWhat is 7 + 8?\n\nAssistant:\n"


def test_base_tool_answer(tmp_path):
    marked = "<s>User:\nWhat is 7 + 8?\n\nTool:\n15\n\nAssistant:\n‹It is 15.</s>›\n\n"
    assert_learns(tmp_path, {"messages": ANSWERED_BY_TOOL}, families.base(), marked)


def test_base_cut_inside_the_second_answer(tmp_path):
    tokenizer = families.base()
    marked = (
        "<s>User:\nWhat is 7 + 8?\n\nAssistant:\n‹7 + 8 = 15</s>›\n\n"
        "User:\nSure, in the end?\n\nAssistant:\n‹Yes, the sum.</s>›\n\n"
    )
    assert_learns(tmp_path, {"messages": TURNS}, tokenizer, marked, len(by_hand(tokenizer, marked)[0]) - 6)


def test_text_is_learned_whole_and_ends_with_eos(tmp_path):
    dataset = prepared(tmp_path, {"text": "the end <s>"}, families.base(), special_tokens="text")
    tokenizer = families.base()
    ids = [tokenizer.bos_id, *tokenizer.encode("the end <s>"), tokenizer.eos_id]
    assert found(dataset) == (ids, [False] + [True] * (len(ids) - 1))


# Choices, and templates that do more


def test_only_the_last_turn_is_learned_when_asked(tmp_path):
    marked = (
        QWEN_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n7 + 8 = 15<|im_end|>\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes, the sum.<|im_end|>›\n"
    )
    assert_learns(tmp_path, {"messages": TURNS}, families.chatml(families.QWEN25), marked, supervise="last")


def test_everything_is_learned_when_asked(tmp_path):
    dataset = prepared(tmp_path, {"messages": SYSTEM}, families.chatml(families.QWEN25), supervise="all")
    assert all(found(dataset)[1])


def test_a_turn_of_weight_zero_is_not_learned(tmp_path):
    turns = [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]
    marked = (
        QWEN_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n7 + 8 = 15<|im_end|>\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes, the sum.<|im_end|>›\n"
    )
    assert_learns(tmp_path, {"messages": turns}, families.chatml(families.QWEN25), marked)


def test_prompt_as_messages_learns_the_completion_alone(tmp_path):
    marked = (
        QWEN_SYSTEM + "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n7 + 8 = 15<|im_end|>\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes, the sum.<|im_end|>›\n"
    )
    row = {"prompt": TURNS[:3], "completion": TURNS[3:]}
    assert_learns(tmp_path, row, families.chatml(families.QWEN25), marked)


@pytest.mark.parametrize("inside", [True, False], ids=["end token inside", "end token outside"])
def test_generation_blocks_decide_and_take_in_the_end_token(tmp_path, inside):
    before, after = ("", "<|im_end|>") if inside else ("<|im_end|>", "")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        f"So: {{% generation %}}{{{{ m.content }}}}{after}{{% endgeneration %}}{before}{{{{ '\n' }}}}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    marked = (
        "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\nSo: ‹7 + 8 = 15<|im_end|>›\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\nSo: ‹Yes, the sum.<|im_end|>›\n"
    )
    assert_learns(tmp_path, {"messages": TURNS}, families.chatml(template), marked)


def test_qwen3_learns_the_empty_thought_of_the_last_turn_and_finds_the_earlier_ones_end(tmp_path):
    marked = (
        "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n"
        "<|im_start|>assistant\n‹<think>\n\n</think>\n\nYes, the sum.<|im_end|>›\n"
    )
    assert_learns(tmp_path, {"messages": TURNS}, families.chatml(families.QWEN3), marked)


def test_a_template_that_moves_the_system_message_is_followed(tmp_path):
    tokenizer = families.small(["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", families.MISTRAL)
    marked = (
        "<s>[INST] What is 7 + 8?[/INST] ‹7 + 8 = 15</s>›"
        "[INST] Be brief.\n\nSure, in the end?[/INST]‹ Yes, the sum.</s>›"
    )
    assert_learns(tmp_path, {"messages": [SYSTEM[0], *TURNS]}, tokenizer, marked)


def test_a_generation_prompt_that_opens_a_thought_is_cut_back_to_what_the_text_has(tmp_path):
    template = templates.CHATML.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>\n' }}")
    row = {"messages": [TURNS[0], {"role": "assistant", "content": "<the> 15"}]}
    marked = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n"
        "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n‹<the> 15<|im_end|>›\n"
    )
    assert_learns(tmp_path, row, families.chatml(template), marked)


JOINED = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
SHARED = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "5 apples"}]}


def test_an_answer_is_encoded_apart_from_its_prompt_as_when_generating(tmp_path):
    tokenizer = families.small(["</s>"], None, "</s>", JOINED)
    assert len(tokenizer.encode("15")) == 1
    assert_learns(tmp_path, SHARED, tokenizer, "1‹5 apples</s>›")


def test_a_conversation_may_begin_with_the_assistant(tmp_path, smollm2):
    marked = (
        SMOLLM2_SYSTEM + "<|im_start|>assistant\n‹7 + 8 = 15<|im_end|>›\n"
        "<|im_start|>user\nSure, in the end?<|im_end|>\n<|im_start|>assistant\n‹Yes, the sum.<|im_end|>›\n"
    )
    assert_learns(tmp_path, {"messages": TURNS[1:]}, smollm2, marked)


def test_a_template_file_of_ones_own_is_used(tmp_path):
    (tmp_path / "own.jinja").write_text(JOINED)
    tokenizer = families.chatml(families.QWEN25)
    dataset = prepared(tmp_path, SHARED, tokenizer, template=str(tmp_path / "own.jinja"))
    assert found(dataset) == by_hand(tokenizer, "1‹5 apples<|im_end|>›")
    assert dataset.tokenizer.chat_template == JOINED


def test_a_system_message_of_the_settings_comes_before_conversations_without_one(tmp_path):
    tokenizer = families.chatml(families.QWEN25)
    asked = {"messages": TURNS[:2]}
    row = prepared(tmp_path, {"messages": SYSTEM}, tokenizer)
    assert found(prepared(tmp_path, asked, tokenizer, system="Be brief.")) == found(row)
    assert found(prepared(tmp_path, {"messages": SYSTEM}, tokenizer, system="Other.")) == found(row)
    joined = {"prompt": "What is 7 + 8?", "completion": "15"}
    marked = "<s>System:\nBe brief.\n\nUser:\nWhat is 7 + 8?\n\nAssistant:\n‹15</s>›\n\n"
    dataset = prepared(tmp_path, joined, families.base(), system="Be brief.")
    assert found(dataset) == by_hand(dataset.tokenizer, marked)


def test_a_token_shared_with_the_prompt_is_not_learned_where_texts_cannot_be_cut(tmp_path):
    tokenizer = families.small(["</s>"], None, "</s>", JOINED)
    tokenizer.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    ids, mask = found(prepared(tmp_path, SHARED, tokenizer))
    assert tokenizer.decode(ids[:2]) == " 15" and mask == [False] * 2 + [True] * (len(ids) - 2)


def test_positions_are_characters_also_behind_wide_ones_and_trimmed_spaces(tmp_path):
    tokenizer = families.chatml(families.QWEN25)
    tokenizer.backend.post_processor = processors.ByteLevel(trim_offsets=True)
    turns = [{"role": "user", "content": "é 😀 ' the"}, {"role": "assistant", "content": " the 😀 ü"}]
    marked = QWEN_SYSTEM + "<|im_start|>user\né 😀 ' the<|im_end|>\n<|im_start|>assistant\n‹ the 😀 ü<|im_end|>›\n"
    assert_learns(tmp_path, {"messages": turns}, tokenizer, marked)


# Independent judges


BLOCKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("messages", [TURNS, SYSTEM, ANSWERED_BY_TOOL], ids=["turns", "system", "tool"])
def test_the_mask_is_the_one_of_transformers_for_a_template_with_generation_blocks(tmp_path, messages):
    tokenizer = families.chatml(BLOCKS)
    judge = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token="<|im_end|>", chat_template=BLOCKS
    )
    judged = judge.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = found(prepared(tmp_path, {"messages": messages}, tokenizer))
    assert (ids, [int(m) for m in mask]) == (judged["input_ids"], judged["assistant_masks"])
    # The same template without its blocks must be understood from the outside alike.
    plain = families.chatml(BLOCKS.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    assert found(prepared(tmp_path, {"messages": messages}, plain)) == (ids, mask)


CONTENT = st.text(st.sampled_from("the15 \n\té😀<>|{}%'\"assistant\\"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), family=st.sampled_from(["chatml", "llama"]))
def test_any_texts_give_the_mask_that_the_pieces_give(tmp_path, contents, family):
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    if family == "chatml":
        tokenizer = families.chatml(BLOCKS.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
        pieces = [
            f"<|im_start|>{m['role']}\n" + ("‹{}<|im_end|>›\n" if m["role"] == "assistant" else "{}<|im_end|>\n")
            for m in messages
        ]
    else:
        tokenizer = families.llama(families.LLAMA3)
        pieces = [
            f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n"
            + ("‹{}<|eot_id|>›" if m["role"] == "assistant" else "{}<|eot_id|>")
            for m in messages
        ]
        pieces[0] = "<|begin_of_text|>" + pieces[0]
        contents = [text.strip() for text in contents]
    marked = "".join(piece.replace("{}", text) for piece, text in zip(pieces, contents, strict=True))
    assert found(prepared(tmp_path, {"messages": messages}, tokenizer)) == by_hand(tokenizer, marked)
