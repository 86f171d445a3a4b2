"""The events of a run in words, for its report. One that nobody described here is shown with what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoestring.train.metrics_file import LASTING, is_number

_MOVES = ("shortened", "lengthened")
_PLACES = ("event", "step", "tokens", "seconds")


def described(events: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(step, what happened) of each. A timed run's end moves with the machine's load: such moves are one line."""
    rows: list[tuple[str, str]] = []
    moves = [event for event in events if event["event"] in _MOVES]
    for event in events:
        if event["event"] in _MOVES and len(moves) > 1:
            if event is moves[-1]:
                words = f"the end moved {len(moves):,} times in all, to {_number(event, 'to')} steps"
                rows.append((_step(event), words))
            continue
        rows.append((_step(event), _words(event)))
    return rows


def _words(event: dict[str, Any]) -> str:
    kind = event["event"]
    if kind == "skipped":
        return f"changed nothing: {event.get('reason')}"
    if kind == "rolled_back":
        return f"went back to the weights of step {_number(event, 'to')}: {event.get('reason')}"
    if kind in LASTING:
        return f"the run broke off: {event.get('reason')}"
    if kind == "not_written":
        return f"{event.get('what')} not written: {event.get('reason')}"
    if kind == "stage":
        portion = f"{_number(event, 'batch_tokens')} tokens in rows of {_number(event, 'sequence_length')}"
        return f"stage {event.get('stage')} begins: {portion}, {_number(event, 'layers')} layers"
    if kind == "planned":
        return f"the time fits {_number(event, 'steps')} steps"
    if kind in _MOVES:
        return f"the end moved from {_number(event, 'from')} to {_number(event, 'to')} steps"
    if kind == "extended":
        schedule = "begins anew" if event.get("schedule") == "anew" else "is that of the longer run"
        until = "for as long as the time lasts" if event.get("to") is None else f"to {_number(event, 'to')} steps"
        return f"made longer, {until}; the schedule {schedule}"
    if kind == "stopped_early":
        return f"stopped early: the held-out loss has not fallen since step {_number(event, 'best_step')}"
    if kind == "started" and is_number(event.get("before")):
        return f"held-out loss before the first step: {event['before']:.4g}"
    rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in _PLACES)
    return f"{kind}: {rest}" if rest else str(kind)


def session_rows(sessions: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[tuple[str, str, str, str]]:
    """(began, from step, to step, how it ended) of each."""
    rows = []
    for began, ended in sessions:
        how = str(ended.get("how", "killed, or still at work"))
        when = str(began.get("time", "")).replace("T", " ").replace("+00:00", " UTC")
        if began.get("restart") is not None:
            when += f", restart {began['restart']} by torchrun"
        rows.append((when, _number(began, "step"), _number(ended, "step"), how))
    return rows


def _step(event: dict[str, Any]) -> str:
    return _number(event, "step")


def _number(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return f"{value:,}" if is_number(value) else "?" if value is None else str(value)
