"""Text that obeys a regular expression, a JSON schema or a grammar: at each step only tokens that may lead there.

llguidance, the extra `guided`, parses (Earley, over lexemes as derivatives of regular expressions) and says which
tokens may come. Here are its grammars, a `Guide` for each text, and when a text is complete. The model's end tokens
are not its affair: they may come exactly where the text obeys as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shoestring.core.errors import ConfigError, DataError, TokenizerError
from shoestring.core.extras import need
from shoestring.core.foreign import check_depth, parse_json
from shoestring.generate.lookup import common

if TYPE_CHECKING:
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.generate.config import SamplingConfig

MOST_CHARACTERS = 4_000_000  # of a schema or grammar
MOST_KEPT = 64  # grammars that were read, of one tokenizer: a server is given ever new ones
GuideReason = Literal["complete", "dead_end"]

# How Python and most texts write JSON. With free white space a small model would write little else.
_JSON_STYLE: Any = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_NAMES = {"regex": "regular expression", "json_schema": "JSON schema", "grammar": "grammar"}
_SHOWN = 200  # characters of a parser's message, from its beginning and its end
_END = "<|the end of a constrained text|>"


def text_or_file(text: str, name: str) -> str:
    """What stands in a file of this name, else the text itself. name: of the setting. Raises DataError."""
    if any(mark in text.removeprefix(Path(text).drive) for mark in "\n{:"):  # of schemas and grammars, not of files
        return text
    try:
        with open(text, encoding="utf-8") as file:
            found = file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        raise DataError(f"the {_NAMES[name]} cannot be read: {error.strerror}", where=text) from None
    except ValueError as error:  # also of a name that no file can have
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataError(f"the {_NAMES[name]} cannot be read: {reason}", where=text) from None
    if len(found) > MOST_CHARACTERS:
        raise DataError(f"the {_NAMES[name]} has more than {MOST_CHARACTERS:,} characters", where=text)
    return found


def check_constraint(sampling: SamplingConfig) -> None:
    """Raises ConfigError for a constraint that llguidance cannot read, or where it is missing. No model is needed."""
    if sampling.constraint is not None:
        kind, text = sampling.constraint
        _grammar(kind, text)


def _grammar(kind: str, text: str) -> str:
    """The constraint as llguidance takes it. Raises ConfigError."""
    need("llguidance", kind, "guided")
    from llguidance import LLMatcher

    try:
        if kind == "regex":
            grammar = LLMatcher.grammar_from_regex(text)
        elif kind == "grammar":
            grammar = LLMatcher.grammar_from_lark(text)
        else:
            grammar = LLMatcher.grammar_from_json_schema(_schema(text), overrides=_JSON_STYLE)
    except ValueError as error:
        raise _unusable(kind, str(error)) from None
    if wrong := LLMatcher.validate_grammar(grammar):
        if not wrong.startswith("WARNING"):
            raise _unusable(kind, wrong)
    return grammar


def _schema(text: str) -> dict[str, Any]:
    """Raises ValueError."""
    schema = parse_json(text)
    if not isinstance(schema, dict):
        raise ValueError('a schema is an object, as {"type": "string"}')
    check_depth(schema)
    return schema


def _unusable(kind: str, wrong: str) -> ConfigError:
    lines = [line.strip() for line in wrong.splitlines() if line.strip()] or ["no reason is given"]
    told = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]  # what it was all about
    said = " ".join(lines[:1] + told[:1])
    if len(said) > 2 * _SHOWN:  # it quotes the grammar; what is wrong stands at the end
        said = f"{said[:_SHOWN]} ... {said[-_SHOWN:]}"
    return ConfigError(f"the {_NAMES[kind]} cannot be used: {said}")


class Constraints:
    """Guides for one tokenizer; what a grammar costs to read is paid once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._vocabulary: Any = None  # llguidance's form of it
        self._read: dict[tuple[str, str], Any] = {}

    def guide(self, sampling: SamplingConfig) -> Guide | None:
        """For one text with these settings; None where nothing constrains it. Raises ConfigError, TokenizerError."""
        constraint = sampling.constraint
        if constraint is None:
            return None
        matcher = self._read.get(constraint)
        if matcher is None:
            matcher = self._read[constraint] = self._matcher(*constraint)
            for old in list(self._read)[:-MOST_KEPT]:
                self._read.pop(old, None)
        return Guide(matcher, self._tokenizer.vocabulary_size, self._vocabulary.eos_token)

    def _matcher(self, kind: str, text: str) -> Any:
        grammar = _grammar(kind, text)
        from llguidance import LLMatcher

        if self._vocabulary is None:
            try:
                self._vocabulary = _vocabulary(self._tokenizer)
            except Exception as error:  # of several kinds
                raise TokenizerError(f"text by this tokenizer cannot be constrained: {error}") from None
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise _unusable(kind, matcher.get_error())
        return matcher


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """llguidance's form of a tokenizer. It wants one end, a token that no text has; where a text may end, a `Guide`
    decides for all of the model's ends."""
    import tokenizers
    from llguidance import LLTokenizer

    text, specials = tokenizer.backend.to_str(), tokenizer.special_ids
    end: int | None
    if specials:
        end = tokenizer.eos_id if tokenizer.eos_id in specials else min(specials)
    else:
        backend = tokenizers.Tokenizer.from_str(text)
        backend.add_special_tokens([_END])
        text, end = backend.to_str(), backend.token_to_id(_END)
    assert end is not None
    return LLTokenizer(text, n_vocab=max(tokenizer.vocabulary_size, end + 1), eos_token=end)


class Guide:
    """What may come next in one text. It is asked with the text's new tokens and follows them by itself: forward at no
    cost, and back to where they are others (another beam, a guess that was wrong, a step taken again)."""

    def __init__(self, matcher: Any, vocabulary: int, end: int):
        self._fresh, self._end = matcher, end
        self._vocabulary = vocabulary
        self._tokens: list[int] = []
        self._matcher = matcher.deep_copy()
        self._found: tuple[np.ndarray, bool] | None = None

    def allowed(self, tokens: Sequence[int], ends: frozenset[int], size: int) -> np.ndarray:
        """bool [size]: which ids may follow the new `tokens`. ends: ids that end the text, where it obeys already."""
        mask, accepting = self._state(tokens)
        allowed = np.zeros(size, bool)
        allowed[: len(mask)] = mask[:size]
        allowed[[token for token in ends if 0 <= token < size]] = accepting
        return allowed

    def reason(self, tokens: Sequence[int], ends: frozenset[int]) -> GuideReason | None:
        """Why a text ends with these tokens, none of which ends it: it obeys and nothing can be added, or no token of
        the vocabulary leads on. None while it can go on."""
        mask, accepting = self._state(tokens)
        left = mask.copy()
        left[[token for token in ends if 0 <= token < len(left)]] = False
        if left.any():
            return None
        return "complete" if accepting else "dead_end"

    def _state(self, tokens: Sequence[int]) -> tuple[np.ndarray, bool]:
        """bool [V] of what the constraint lets follow, and whether the text obeys as it stands."""
        tokens = list(tokens)
        shared = common(self._tokens, tokens)
        if shared < len(self._tokens):  # another beam, or a guess that was wrong
            if self._matcher.is_error() or not self._matcher.rollback(len(self._tokens) - shared):
                self._matcher, shared = self._fresh.deep_copy(), 0
            self._tokens, self._found = tokens[:shared], None
        if len(tokens) > shared:
            self._found = None
            self._matcher.consume_tokens(tokens[shared:])
            self._tokens = tokens
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> tuple[np.ndarray, bool]:
        nothing = np.zeros(self._vocabulary, bool)
        if self._matcher.is_error():  # a limit of the parser
            return nothing, False
        accepting = self._matcher.is_accepting()
        packed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            return nothing, accepting
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        mask = bits[: self._vocabulary].astype(bool)
        mask[self._end : self._end + 1] = False  # for `allowed` to say
        return mask, accepting
