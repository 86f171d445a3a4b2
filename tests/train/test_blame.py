"""Whom the others wait for, by what each process last said of itself."""

import pytest

from shoestring.train.blame import Seen, Status, blame, lost

LIMIT = 60.0


def seen(*statuses, quiet=None, unheard=None, gone=()):
    """Of ranks 0, 1, ...: (step, exchange, waits, limited)."""
    found = []
    for rank, (step, exchange, waits, limited) in enumerate(statuses):
        status = Status(step, "passes", exchange, waits, limited, host="here", place="here", pid=100 + rank)
        found.append(Seen(rank, status, (quiet or {}).get(rank, 70.0), (unheard or {}).get(rank, 0.5), rank in gone))
    return found


WAITS, WORKS = (7, 30, True, True), (7, 29, False, True)


def test_who_has_entered_fewest_exchanges_is_behind_and_named_with_step_and_silence():
    verdict = blame(seen(WAITS, WORKS, WAITS), 0, 61.0, False, LIMIT)
    assert verdict.rank == 1 and verdict.event == "hung_rank" and verdict.silent == 70
    assert verdict.sentence == "rank 1 hangs: it has been silent for 1:10 in step 7 (passes)"
    two = blame(seen(WAITS, WORKS, (7, 28, False, True)), 0, 61.0, False, LIMIT)
    assert two.rank == 2


def test_before_the_limit_nobody_is_blamed():
    assert blame(seen(WAITS, WORKS), 0, 59.0, False, LIMIT) is None
    assert blame(seen(WORKS, WAITS), 0, 0.0, False, LIMIT) is None, "it is this one that the others wait for"


def test_the_first_may_take_any_time_for_what_it_does_for_all_while_it_lives():
    """Preparing text, saving: it has entered no exchange, the others wait in the next one."""
    saves = (7, 29, False, False)
    assert blame(seen(saves, WAITS, quiet={0: 7000}), 1, 7000.0, True, LIMIT) is None
    assert blame(seen(saves, WAITS, quiet={0: 7000}), 1, 7000.0, False, LIMIT) is None
    silent = blame(seen(saves, WAITS, quiet={0: 7000}, unheard={0: 61}), 1, 7000.0, True, LIMIT)
    assert silent.rank == 0 and "no sign of life: it has been silent for 1:01, since step 7" in silent.sentence


def test_what_the_first_has_done_for_all_arrives_within_the_limit():
    done = seen((7, 30, True, False), WAITS, (7, 29, False, True), quiet={0: 61})
    assert blame(done, 1, 7000.0, True, LIMIT).rank == 2
    assert blame(seen((7, 30, True, False), WAITS, quiet={0: 5}), 1, 7000.0, True, LIMIT) is None


def test_a_frozen_process_is_named_wherever_it_stands():
    inside = blame(seen(WAITS, WAITS, unheard={1: 65}), 0, 61.0, False, LIMIT)
    assert inside.rank == 1 and "no sign of life" in inside.sentence
    behind = blame(seen(WAITS, (7, 29, False, False), unheard={1: 65}), 0, 61.0, False, LIMIT)
    assert behind.rank == 1 and "no sign of life" in behind.sentence


def test_where_all_wait_in_one_exchange_the_connection_is_blamed():
    verdict = blame(seen(WAITS, WAITS), 0, 61.0, False, LIMIT)
    assert verdict.rank is None and "no rank is behind" in verdict.sentence and "step 7" in verdict.sentence


def test_a_process_that_is_gone_is_named_as_soon_as_somebody_waits():
    gone = seen(WAITS, WORKS, gone=[1])
    assert blame(gone, 0, 4.0, False, LIMIT) is None, "an exchange may break off by itself"
    verdict = blame(gone, 0, 5.5, False, LIMIT)
    assert (verdict.event, verdict.rank) == ("lost_rank", 1)
    assert verdict.sentence == "rank 1 has died in step 7 (passes), silent for 1:10: process 101 on here is gone"
    assert blame(gone, 0, 5.5, True, LIMIT).rank == 1
    said = lost(gone[1:], 9).sentence
    assert said.startswith("rank 1 has died in step 9, silent"), "it was there with the others, and could not say so"


def test_the_reason_of_the_one_that_could_not_go_on_comes_before_those_that_left_because_of_it():
    failed = Status(3, "reading its batch", failed="a.jsonl:4: not a JSON object")
    others = [Seen(1, Status(3), 9.0, 0.5, gone=True), Seen(2, failed, 9.0, 0.5, gone=True)]
    verdict = lost(others, 3)
    assert verdict.rank == 2
    assert verdict.sentence == "rank 2 cannot go on in step 3 (reading its batch): a.jsonl:4: not a JSON object"


@pytest.mark.parametrize(("quiet", "rank"), [({0: 61, 1: 61}, 1), ({0: 61, 1: 3}, "nobody"), ({0: 3, 1: 61}, "nobody")])
def test_in_passes_that_exchange_by_themselves_both_have_to_be_quiet(quiet, rank):
    """An engine that overlaps: rank 0 has issued more than rank 1, and waits where nobody tells when."""
    verdict = blame(seen((7, 30, False, True), (7, 29, False, True), quiet=quiet), 0, 0.0, False, LIMIT)
    assert ("nobody" if verdict is None else verdict.rank) == rank


def test_a_slow_step_that_nobody_waits_for_is_no_hang_until_three_times_the_limit():
    step = (7, 30, False, True)
    assert blame(seen(step, step, quiet={0: 170, 1: 170}), 0, 0.0, False, LIMIT) is None
    assert blame(seen(step, step, quiet={0: 181, 1: 181}), 0, 0.0, False, LIMIT).rank is None
    callbacks = (7, 30, False, False)
    assert blame(seen(callbacks, callbacks, quiet={0: 9999, 1: 9999}), 0, 0.0, False, LIMIT) is None
