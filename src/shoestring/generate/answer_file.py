"""`shoestring generate MODEL --file PROMPTS --out ANSWERS`: a file of prompts to a file of answers, resumed."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import ConfigError, DataError, RunError
from shoestring.core.files import sha256_file
from shoestring.core.interrupt import EXIT_CODE, answered
from shoestring.core.units import counted
from shoestring.core.waiting import waiting
from shoestring.generate.answers_file import AnswersFile
from shoestring.generate.config import SamplingConfig
from shoestring.generate.identity import identity
from shoestring.generate.prompt_rows import prompt_rows
from shoestring.generate.receipts import of_texts
from shoestring.generate.request import Speed
from shoestring.generate.texts import Asked, Completion, as_result, completed, places, searched

if TYPE_CHECKING:
    from shoestring.generate.language_model import LanguageModel, SpecialTokens

SLOTS = 16  # texts decoded at once
_ROWS = 2**32  # more than a file has: the second text of row r has the random numbers of row r + 2^32


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


@dataclass(frozen=True)
class _Row:
    where: str
    id: Any
    prompt: array[int]
    sampling: SamplingConfig


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
    "new_tokens", "stop_reason", "score"?, "logprobs"?}, or all but the first two in a list "results" where a row has
    several texts. Answers that are there already are kept.

    options: fields of `SamplingConfig`; those of a row come before them. Raises DataError with the line of a bad row,
    before anything is computed; RunError where `out` belongs to other prompts, options or another model; Stopped on
    Ctrl-C.
    """
    file, sampling = Path(prompts), model.sampling(**options)
    asked: dict[int, _Row] = {}
    unused: Counter[str] = Counter()
    with waiting("prompts") as told:
        for row in prompt_rows(file):
            own = row.settings(options, model.sampling) if row.sampling else sampling
            asked[row.row] = _Row(row.where, row.id, row.encode(model, special_tokens, own), own)
            unused.update(row.unused)
            told.advance()
    if unused and say is not None:
        say(f"{file}: not read: " + ", ".join(f"{name} ({counted(rows, 'row')})" for name, rows in unused.items()))
    of = {"prompts": sha256_file(file), "special_tokens": special_tokens}
    of |= {name: value for name, value in identity(model).items()} | sampling.model_dump(mode="json")
    with AnswersFile(Path(out), of) as answers:
        found, new, written = len(answers.done), 0, 0
        if answers.mended and say is not None:
            say(f"{out}: its last line was cut short, and is answered again")
        left = {row: one for row, one in asked.items() if row not in answers.done}
        model.speed = Speed()
        try:
            with waiting("answers", len(asked)) as told:
                told.found(found)
                for number, texts in _answered(model, left, slots):
                    results = [as_result(model.tokenizer, text) for text in texts]
                    id = asked[number].id
                    answer = {"row": number, **({} if id is None else {"id": id})}
                    answers.add(answer | (results[0] if len(results) == 1 else {"results": results}))
                    new += sum(len(text.tokens) for text in texts)
                    written += len(texts)
                    told.advance()
            answers.sort()
        except KeyboardInterrupt:
            answered()
            done = f"{len(answers.done):,} of {counted(len(asked), 'prompt')} are answered"
            raise Stopped(f"stopped: {done}; the same command goes on", str(out)) from None
    if all(row.sampling.num_beams == 1 for row in left.values()):  # beams are not predicted
        of_texts(model, model.speed.prompt_tokens, written, slots)
    seconds = model.speed.prompt_seconds + model.speed.new_seconds
    return Answers(str(out), len(asked), found, new, round(seconds, 3))


def _answered(model: LanguageModel, left: dict[int, _Row], slots: int) -> Iterator[tuple[int, list[Completion]]]:
    """(row, its texts) of each, in the order in which the last of them ends; rows with beams come behind the others."""
    together = {number: row for number, row in left.items() if row.sampling.num_beams == 1}
    texts = sum(row.sampling.num_return_sequences for row in together.values())
    if texts:
        lengths = [len(row.prompt) + row.sampling.max_tokens for row in together.values()]
        longest = min(max(lengths), model.decoder.config.context)
        scheduler = model.scheduler(places(model, min(slots, texts), longest), longest)
        asked = (
            Asked(number + copy * _ROWS, row.prompt, row.sampling)
            for number, row in together.items()
            for copy in range(row.sampling.num_return_sequences)
        )
        ended: dict[int, dict[int, Completion]] = {}
        for stream, completion in completed(model, asked, scheduler):
            copy, number = divmod(stream, _ROWS)
            ended.setdefault(number, {})[copy] = completion
            if len(ended[number]) == together[number].sampling.num_return_sequences:
                yield number, [text for _, text in sorted(ended.pop(number).items(), key=lambda pair: pair[0])]
    for number, row in left.items():
        if number not in together:
            try:
                found = searched(model, row.prompt, row.sampling)
            except ConfigError as error:
                raise DataError(error.message, row.where, error.hint) from None
            yield number, found
