"""`shoestring generate MODEL --file PROMPTS --out ANSWERS`: a file of prompts to a file of answers, resumed."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import RunError
from shoestring.core.files import sha256_file
from shoestring.core.interrupt import EXIT_CODE, answered
from shoestring.core.units import counted
from shoestring.core.waiting import waiting
from shoestring.generate.answers_file import AnswersFile
from shoestring.generate.batch import answer_rows
from shoestring.generate.identity import identity
from shoestring.generate.prompt_rows import prompt_rows

if TYPE_CHECKING:
    from shoestring.generate.language_model import LanguageModel, SpecialTokens
    from shoestring.generate.request import Speed

SLOTS = 16  # texts decoded at once


class Stopped(RunError):
    """Ctrl-C; what was answered is saved."""

    exit_code = EXIT_CODE


@dataclass(frozen=True)
class Answers:
    """What was done. found: answers that were there before. new_tokens, seconds: of the others."""

    out: str
    rows: int
    found: int
    new_tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def answer_file(
    model: LanguageModel,
    prompts: str | Path,
    out: str | Path,
    special_tokens: SpecialTokens = "read",
    say: Callable[[str], Any] | None = None,
    slots: int = SLOTS,
    **options: Any,
) -> Answers:
    """Answer every row of `prompts` (see `prompt_rows`) as a line of `out`: {"row", "id"?, "text", "prompt_tokens",
    "new_tokens", "stop_reason"}. Answers that are there already are kept.

    options: fields of `SamplingConfig`. Raises DataError with the line of a bad row, before anything is computed;
    RunError where `out` belongs to other prompts, options or another model; Stopped on Ctrl-C.
    """
    file, sampling = Path(prompts), model.sampling(**options)
    asked: dict[int, tuple[Any, array[int]]] = {}
    unused: Counter[str] = Counter()
    longest = 0
    with waiting("prompts") as told:
        for row in prompt_rows(file):
            tokens = row.encode(model, special_tokens)
            asked[row.row] = row.id, tokens
            longest = max(longest, len(tokens))
            unused.update(row.unused)
            told.advance()
    if unused and say is not None:
        say(f"{file}: not read: " + ", ".join(f"{name} ({counted(rows, 'row')})" for name, rows in unused.items()))
    of = {"prompts": sha256_file(file), "special_tokens": special_tokens}
    of |= {name: value for name, value in identity(model).items()} | sampling.model_dump(mode="json")
    with AnswersFile(Path(out), of) as answers:
        found, speed = len(answers.done), None
        if answers.mended and say is not None:
            say(f"{out}: its last line was cut short, and is answered again")
        left = [(row, tokens) for row, (_, tokens) in asked.items() if row not in answers.done]
        try:
            if left:
                speed = _answer(model, left, longest, sampling, asked, answers, slots)
            answers.sort()
        except KeyboardInterrupt:
            answered()
            done = f"{len(answers.done):,} of {counted(len(asked), 'prompt')} are answered"
            raise Stopped(f"stopped: {done}; the same command goes on", str(out)) from None
    new = 0 if speed is None else speed.new_tokens + len(left)
    seconds = 0.0 if speed is None else speed.prompt_seconds + speed.new_seconds
    return Answers(str(out), len(asked), found, new, round(seconds, 3))


def _answer(
    model: LanguageModel,
    left: list[tuple[int, array[int]]],
    longest: int,
    sampling: Any,
    asked: dict[int, tuple[Any, array[int]]],
    answers: AnswersFile,
    slots: int,
) -> Speed:
    with waiting("answers", len(asked)) as told:
        told.found(len(answers.done))
        for row, completion in answer_rows(model, left, longest, sampling, min(slots, len(left))):
            id = asked[row][0]
            answers.add(
                {"row": row, **({} if id is None else {"id": id})}
                | {"text": completion.text, "prompt_tokens": completion.prompt_tokens}
                | {"new_tokens": len(completion.tokens), "stop_reason": completion.reason}
            )
            told.advance()
    return model.speed
