"""The report as one HTML page: tables made here, curves drawn by the page's own script from values that stand in it.

Nothing is loaded from anywhere, and a policy in the page (Content-Security-Policy) forbids it to: only this script and
this style run, by their digests. What comes from a run is text, escaped here, or JSON in which no tag can end.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from shoestring import __version__
from shoestring.core.units import counted, format_bytes, format_count, format_seconds
from shoestring.plan.receipt import row as receipt_row
from shoestring.train.metrics_file import is_number
from shoestring.train.report.charts import charts_of, marks_of
from shoestring.train.report.events import described, session_rows
from shoestring.train.report.read import RunFigures
from shoestring.train.report.series import median

FOLDER = Path(__file__).parent / "page"
GENERATOR = '<meta name="generator" content="Shoestring report">'  # by which a page of ours is known again
_SHOWN = 5  # samples, before one asks for the rest
_NOT_COMPARED = {"out", "description", "base"}


def page(runs: Sequence[RunFigures], names: Sequence[str]) -> str:
    """names: of the runs, each different."""
    style, script = ((FOLDER / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; base-uri 'none'"
    values = {
        "runs": [{"name": name} for name in names],
        "charts": charts_of(runs),
        "marks": [mark for number, run in enumerate(runs) for mark in marks_of(number, run)],
    }
    title = ", ".join(names)
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
{GENERATOR}
<title>{_text(title)} - training report</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
<p class="quiet">{_opening(runs)}</p>
</header>
<main>
<section>
{_summary(runs, names)}
</section>
<section aria-labelledby="curves">
<h2 id="curves">Curves</h2>
<div id="controls" hidden>
<label>over <select id="axis">
<option value="step">step</option><option value="tokens">tokens</option><option value="seconds">time</option>
</select></label>
<label><input type="checkbox" id="log"> logarithmic</label>
<span id="legend"></span>
</div>
<div id="charts"></div>
{'' if values["charts"] else '<p class="quiet">There is nothing to draw yet.</p>'}
<noscript><p>A script of this page draws the curves; it is switched off here.</p></noscript>
</section>""",
        _differences(runs, names),
        *(_of_run(run, name, len(runs) > 1) for run, name in zip(runs, names, strict=True)),
        f"""</main>
<footer>Shoestring {__version__}, {written}. One file, which loads nothing else.</footer>
<script type="application/json" id="data">{_json(values)}</script>
<script>{script}</script>
</body>
</html>
""",
    ]
    whole = "\n".join(part for part in parts if part)
    return whole.encode("utf-8", "replace").decode()  # half a surrogate pair, of a damaged file, is no character


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(values: Any) -> str:
    """In a script element: without a character that HTML could read."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(value: object) -> str:
    return html.escape(str(value))


def _opening(runs: Sequence[RunFigures]) -> str:
    descriptions = {str(run.settings.get("description") or "") for run in runs} - {""}
    return " · ".join(_text(each) for each in sorted(descriptions)) or "A training run."


# --- tables -------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], name: str, numbers: Iterable[int] = ()) -> str:
    """Cells are HTML already. name: for who cannot see it. numbers: columns aligned to the right."""
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="number">{cell}</{tag}>' if column in right else f"<{tag}>{cell}</{tag}>"
            for column, cell in enumerate(row)
        )

    top = f"<thead><tr>{cells('th', head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    box = f'<div class="scroll" role="group" tabindex="0" aria-label="{_text(name)}">'
    return f"{box}<table>{top}<tbody>{body}</tbody></table></div>"


def _summary(runs: Sequence[RunFigures], names: Sequence[str]) -> str:
    head = ["run", "steps", "tokens", "time", "loss", "held out", "bits/byte", "tokens/s", "peak memory", "predicted"]
    rows = []
    for run, name in zip(runs, names, strict=True):
        speeds = run.columns.get("tokens_per_second")
        held_out = [run.last(each) for each in ("held_out_loss", "sample_held_out_loss")]
        bits = [run.last(each) for each in ("bits_per_byte", "sample_bits_per_byte")]
        rows.append(
            [
                _text(name),
                f"{run.step:,}",
                format_count(run.tokens),
                format_seconds(run.seconds),
                _figure(run.last("loss")),
                _figure(next((each for each in held_out if each is not None), None)),
                _figure(next((each for each in bits if each is not None), None)),
                _count(median(speeds.values) if speeds is not None else None),
                _size(run.peak_memory()),
                _size(run.predicted("memory")),
            ]
        )
    return _table(head, rows, "Summary", range(1, len(head)))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "" if value is None else format_count(value)


def _size(value: float | None) -> str:
    return "" if value is None else format_bytes(value)


def _differences(runs: Sequence[RunFigures], names: Sequence[str]) -> str:
    """Settings in which the runs differ, a column for each."""
    if len(runs) < 2:
        return ""
    keys = sorted({key for run in runs for key in run.settings} - _NOT_COMPARED)
    rows = [
        [_text(key), *(_text(run.settings.get(key, "not set"))[:400] for run in runs)]
        for key in keys
        if len({repr(run.settings.get(key, ...)) for run in runs}) > 1
    ]
    found = _table(["setting", *map(_text, names)], rows, "Settings that differ")
    return f"<section>\n<h2>Settings that differ</h2>\n{found if rows else '<p>None.</p>'}\n</section>"


# --- what one run has to itself -----------------------------------------------------------------------------


def _of_run(run: RunFigures, name: str, many: bool) -> str:
    heading = "h3" if many else "h2"
    parts = [
        f"<h2>{_text(name)}</h2>" if many else "",
        _part(heading, "Samples", _samples(run)),
        _part(heading, "Answers before and after", _answers(run)),
        _part(heading, "What happened", _events(run)),
        _part(heading, "Sessions", _sessions(run)),
        _part(heading, "Predicted and measured", _receipts(run)),
        _part(heading, "Machine", _machine(run)),
        _part(heading, "Recipe", _recipe(run, many)),
    ]
    return "<section>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _part(heading: str, title: str, content: str) -> str:
    return f"<{heading}>{title}</{heading}>\n{content}" if content else ""


def _samples(run: RunFigures) -> str:
    """The newest first."""
    shown = [
        f'<div class="sample"><span class="quiet">step {sample["step"]:,}</span>'
        f'<div class="text"><span class="prompt">{_text(sample["prompt"])}</span>{_text(sample["sample"])}</div></div>'
        for sample in reversed(run.samples)
    ]
    rest = "".join(shown[_SHOWN:])
    earlier = f"<details><summary>{len(shown) - _SHOWN:,} earlier ones</summary>{rest}</details>" if rest else ""
    return "".join(shown[:_SHOWN]) + earlier


def _answers(run: RunFigures) -> str:
    if not run.answers:
        return ""
    names = ("question", "expected", "before", "after")
    rows = [[f'<div class="text">{_text(row.get(name, ""))}</div>' for name in names] for row in run.answers]
    return _table(names, rows, "Answers")


def _events(run: RunFigures) -> str:
    rows = [(step, _text(words)) for step, words in described(run.events)]
    found = _table(["step", "event"], rows, "Events", [0]) if rows else ""
    if run.events_left_out:
        found += f'<p class="quiet">{run.events_left_out:,} more are in metrics.jsonl.</p>'
    return found


def _sessions(run: RunFigures) -> str:
    rows = [[_text(cell) for cell in row] for row in session_rows(run.sessions)]
    return _table(["began", "at step", "to step", "how it ended"], rows, "Sessions", [1, 2]) if rows else ""


def _receipts(run: RunFigures) -> str:
    """The newest session's, line by line; of each before it one line."""
    if not run.receipts:
        return ""
    *earlier, newest = run.receipts
    rows = [[_text(cell) for cell in receipt_row(item)] for item in newest.items]
    table = _table(["", "predicted", "measured", ""], rows, "Predicted and measured", [1, 2, 3])
    found = f'<p class="quiet">{_text(newest.heading())}</p>{table}'
    if earlier:
        lines = "".join(f"<li>{_text(one.time)}: {_text(one.line())}</li>" for one in reversed(earlier))
        found += f"<details><summary>{counted(len(earlier), 'earlier session')}</summary><ul>{lines}</ul></details>"
    return found


def _machine(run: RunFigures) -> str:
    if not run.sessions:
        return ""
    began, ended = run.sessions[-1]
    cores, threads = began.get("cores", "?"), began.get("threads", "?")
    rows = [
        ("processor", f"{began.get('processor', '')}, {cores} cores, {threads} threads"),
        ("GPU", began.get("gpu")),
        ("memory", _bytes(began, "memory")),
        ("matrix peak", f"{began['matrix_peak'] / 1e9:,.0f} GFLOP/s" if is_number(began.get("matrix_peak")) else None),
        ("processes", began.get("processes")),
        ("system", f"{began.get('system', '')}, Python {began.get('python', '?')}, torch {began.get('torch', '?')}"),
        ("engine", began.get("engine")),
        ("memory budget", _bytes(began, "budget")),
        ("predicted", _size(run.predicted("memory"))),
        ("peak", _size(run.peak_memory())),
    ]
    found = _table([], [(_text(name), _text(value)) for name, value in rows if value], "Machine")
    parts = began.get("predicted_parts")
    lines = [
        (_text(part[0]), _size(float(part[1])))
        for part in (parts if isinstance(parts, list) else [])[:100]
        if isinstance(part, list) and len(part) == 2 and is_number(part[1])
    ]
    if lines:
        table = _table(["part", "bytes"], lines, "Memory predicted", [1])
        found += f"<details><summary>memory predicted, part by part</summary>{table}</details>"
    return found


def _bytes(values: dict[str, Any], name: str) -> str | None:
    return format_bytes(values[name]) if is_number(values.get(name)) else None


def _recipe(run: RunFigures, many: bool) -> str:
    if not run.recipe:
        return ""
    text = f'<pre class="recipe">{_text(run.recipe)}</pre>'
    return f"<details{'' if many else ' open'}><summary>{_text(run.folder / 'recipe.yaml')}</summary>{text}</details>"
