"""What counts as an answer, and what only looks like one."""

import pytest

from shoestring.evaluate.suite.checks import continues, says
from shoestring.evaluate.suite.question import Reply

NUMBER, LETTER = r"\b\d+\b", r"\b[A-Z]\b"


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("14", True), ("14, 17, 20", True), ("2, 5, 8, 11, 14", True), ("The next number is 14, as 3 are added.", True),
        ("11 + 3 = 14. The next one is 14.", True), ("11 + 3 = 14. The next one is 15.", False),
        ("Each is 14 more. The next one is **25**.", False), ("12, 13, 14, 15", False), ("none", False), ("114", False),
    ],
)  # fmt: skip
def test_what_follows_is_the_first_or_the_last_or_what_is_called_so(said, right):
    assert continues("14", NUMBER)(Reply(said)) is right


def test_letters_on_the_way_count_for_nothing():
    check = continues("I", LETTER)
    assert check(Reply("After A: B, C. After G: H, I. The next one is I."))
    assert not check(Reply("After A: B, C, D. After G: H, I, J. The next one is J."))
    assert not check(Reply("A B C D E F G H I J K L"))


def test_a_number_is_one_among_few():
    check = says("7", "seven")
    assert check(Reply("A week has 7 days.")) and check(Reply("Seven.")) and check(Reply("24 hours in each of 7 days"))
    assert not check(Reply("1 2 3 4 5 6 7 8")) and not check(Reply("17"))
