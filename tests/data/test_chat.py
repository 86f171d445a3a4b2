"""Chat templates: the same text as transformers renders, and hostile templates stopped."""

import time

import pytest
import tokenizers
import transformers

from shoestring.core.errors import TokenizerError
from shoestring.data import chat_sandbox
from shoestring.data.chat import render_chat
from shoestring.data.tokenizer import Tokenizer
from tests.data import templates

PLAIN = [
    {"role": "user", "content": "  What is 7 + 8? <b>&amp;</b> é\n"},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": "Sure?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *PLAIN]
CALLS = [
    {"role": "user", "content": "Weather in Zürich?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
        ],
    },
    {"role": "tool", "content": "sunny"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The <weather> of a city's day",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
GROW = "{% set ns = namespace(s='xx', n=9) %}{% for i in range(60) %}"
TEMPLATES = {
    "chatml": templates.CHATML,
    "qwen": templates.QWEN,
    "llama": templates.LLAMA,
    "everything": templates.EVERYTHING,
}


def _backend() -> tokenizers.Tokenizer:
    names = ("<|begin|>", "<|end|>")
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[])
    )
    backend.add_special_tokens(list(names))
    return backend


@pytest.mark.parametrize("messages", [PLAIN, SYSTEM, CALLS], ids=["plain", "system", "calls"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("prompt", [False, True])
def test_renders_as_transformers_does(template, messages, tools, prompt):
    judge = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_backend(), bos_token="<|begin|>", eos_token="<|end|>", chat_template=template
    )
    expected = judge.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    ours = Tokenizer.from_backend(_backend(), bos="<|begin|>", eos="<|end|>", chat_template=template)
    assert ours.render_chat(messages, tools, prompt) == expected
    assert len(expected) > 50


def test_passes_further_variables_to_the_template():
    assert (
        render_chat("{{ enable_thinking }}{{ bos_token }}", PLAIN, enable_thinking=False, bos_token="B")
        == "FalseB"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ''['__class__'] }}{{ (''|attr('__class__')).__mro__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_cannot_reach_python(template):
    try:
        shown = render_chat(template, PLAIN)
    except TokenizerError:
        return
    assert shown == ""  # Jinja's sandbox may answer with an undefined value instead of an error


def test_the_messages_stay_as_they_were():
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(TokenizerError):
        render_chat("{{ messages.append(1) }}", messages)
    assert messages == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{{ 'x' * 10000 }}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ 'x' | center(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10**10) }}",
        GROW + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        GROW + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
        GROW + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
        GROW + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
        GROW + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
        GROW + "{% set b %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = b %}{% endfor %}",
        GROW + "{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}",
        GROW + "{% set ns.s = ns.s|replace('x', ns.s) %}{% endfor %}",
        GROW + "{% set ns.s = ns.s.join(ns.s) %}{% endfor %}",
        GROW + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}",
        "{{ lipsum(n=100000) }}",
        "{{ raise_exception('no') }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ messages[0].content | indent(10**10) }}",
        GROW + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns }}",
        GROW + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set s = 'x' * 10**6 %}{{ ('{0}' * 10**5).format(s) }}",
        "{% set s = 'x' * 10**6 %}{{ ([s] * 10**5) | join }}",
        "{{ ('x\t' * 10**6).expandtabs(90000) }}",
        "{{ ('x\n' * 10**6) | indent(90000) }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{ 'unfinished' ",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
    ids=range(40),
)
def test_a_hostile_template_is_stopped_soon(template):
    began = time.monotonic()
    with pytest.raises(TokenizerError, match="chat template"):
        render_chat(template, PLAIN)
    assert time.monotonic() - began < 5


MANY = "{% set x = range(99999)|list %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ range(99999)|list|reverse|select('in', range(99999)|list)|list|length }}",
        MANY + "{{ x|reverse|reject('in', x)|list }}",
        MANY + "{% if " + "'a' in x or " * 3000 + "false %}{% endif %}",
        MANY + "{% if " + "x[1:] == x[1:] and " * 1500 + "false %}{% endif %}",
        MANY + "".join(f"{{% set v{n} = x[{n}:] %}}" for n in range(1500)),
        "".join(f"{{% set v{n} = 'é' * 15000000 %}}" for n in range(1000)),
        MANY + "{{ x|" + "map(attribute='real')|" * 300 + "list|length }}",
        MANY + "{{ x|map(attribute='" + "real." * 5000 + "real')|list|length }}",
        MANY + "{{ x|batch(1)|list|sum(start=[])|length }}",
        "{{ ('ab,' * 5000000).split(',')|length }}",
        "{{ ('<!--' * 999999)|striptags }}",
        "{{ ('a@' * 999999)|urlize }}",
        "{{ ('a ' * 999999)|wordwrap(1) }}",
        "{{ a }}" * 60_000,
        "{% if a %}" * 3000,
        "{{ a" + ".a" * 30_000 + " }}",
        "{{ a" + "|trim" * 10_000 + " }}",
        "{{ 1" + "+1" * 30_000 + " }}",
    ],
    ids=range(18),
)
def test_what_no_call_or_loop_of_the_template_shows_is_stopped_as_well(template):
    began = time.process_time()
    with pytest.raises(TokenizerError, match="chat template"):
        render_chat(template, PLAIN)
    assert time.process_time() - began < 3


@pytest.mark.parametrize("deep", ["a" + "|trim" * 90, "not " * 90 + "a", "a" + "+a" * 150, "a" + ".a" * 150])
def test_deep_expressions_do_not_take_the_cube_of_their_depth(deep):
    began = time.process_time()
    try:
        render_chat(("{{" + deep + "}}") * 60, PLAIN)
    except TokenizerError:
        pass
    assert time.process_time() - began < 3


def test_a_long_conversation_stays_within_the_limits():
    long = [{"role": role, "content": "word " * 2000} for role in ("user", "assistant")] * 100  # 2 million characters
    for name in ("chatml", "qwen", "llama"):
        assert len(render_chat(TEMPLATES[name], long)) > 2_000_000


def test_time_counts_only_while_the_processor_works(monkeypatch):
    clock = iter(range(0, 10**9, 100))  # a machine that sleeps between any two looks
    monkeypatch.setattr("shoestring.data.chat_sandbox.time.monotonic", lambda: next(clock))
    assert "15" in render_chat(templates.CHATML, PLAIN)


def test_the_reason_that_a_template_gives_is_shown():
    with pytest.raises(TokenizerError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", PLAIN)


def test_a_broken_template_is_reported_with_its_line():
    with pytest.raises(TokenizerError, match="line 3"):
        render_chat("a\nb\n{% if %}", PLAIN)


def test_without_a_template_the_error_says_so():
    with pytest.raises(TokenizerError, match="no chat template"):
        Tokenizer.from_backend(_backend()).render_chat(PLAIN)


def test_time_that_the_template_did_not_take_is_given_again_once(monkeypatch):
    waits = iter([0.0, 0.7, *[0.0] * 9])
    monkeypatch.setattr(chat_sandbox.Sandbox, "_check_time", lambda self: _taking(next(waits)))
    assert render_chat("{% for m in messages %}{{ m }}{% endfor %}", ["a", "b", "c"]) == "abc"
    monkeypatch.setattr(chat_sandbox.Sandbox, "_check_time", lambda self: _taking(0.7))
    with pytest.raises(TokenizerError, match="more than 0.6 seconds"):
        render_chat("{% for m in messages %}{{ m }}{% endfor %}", ["a"])


def _taking(seconds: float) -> None:
    if seconds > chat_sandbox.SECONDS_LIMIT:
        raise chat_sandbox.TooLong(f"more than {chat_sandbox.SECONDS_LIMIT:g} seconds")
