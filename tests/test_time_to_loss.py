"""The score is every character's, from its own window's past; the baseline has nanoGPT's shape; the clock leaves
evaluations out."""

import math
import time

import pytest
import torch

from benchmarks import characters, fast_characters, plain_gpt, time_to_loss

VOCABULARY = 5


def _logits(tokens):
    """Of a model whose answer depends on all of a row's past: logits from the running sum of its tokens."""
    sums = tokens.cumsum(1)
    return torch.stack([(sums * (v + 1) % 7).float() / 3 for v in range(VOCABULARY)], -1)


def _by_hand(text):
    total = 0.0
    for place in range(1, len(text)):
        begin = (place - 1) // 64 * 64
        past = text[begin:place]
        assert 1 <= len(past) <= 64
        total -= float(_logits(past[None])[0, -1].log_softmax(-1)[text[place]])
    return total / (len(text) - 1)


@pytest.mark.parametrize("length", [2, 64, 65, 66, 64 * 70 + 1, 64 * 3 + 20])
def test_the_score_is_the_mean_over_every_character_but_the_first_in_windows_of_64(length):
    text = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
    assert characters.score(_logits, text) == pytest.approx(_by_hand(text), rel=1e-6)


def test_the_first_nine_tenths_train_and_the_rest_validates(tmp_path):
    (tmp_path / "text.txt").write_text("abcab\ncabd" * 10)
    read = characters.read_characters(tmp_path / "text.txt")
    assert (len(read.train), len(read.validation), read.vocabulary) == (90, 10, 5)
    assert read.validation.tolist() == [1, 2, 3, 1, 2, 0, 3, 1, 2, 4]


def test_the_baseline_has_the_published_shape_and_rates():
    torch.manual_seed(0)
    model = plain_gpt.PlainGPT(65)
    block = 12 * 128**2 + 2 * 128
    assert sum(p.numel() for p in model.parameters()) == 65 * 128 + 64 * 128 + 4 * block + 128
    assert [plain_gpt.learning_rate(step) for step in (99, 100)] == [pytest.approx(1e-3, rel=0.011), 1e-3]
    assert plain_gpt.learning_rate(2000) == pytest.approx(1e-4)
    assert plain_gpt.learning_rate(1050) == pytest.approx((1e-3 + 1e-4) / 2)
    tokens = torch.randint(65, (2, 64))
    later = tokens.clone()
    later[:, 40:] = 0
    with torch.no_grad():
        one, other = model(tokens), model(later)
    torch.testing.assert_close(one[:, :40], other[:, :40])
    assert not torch.allclose(one[:, 40:], other[:, 40:])
    assert float(one.std()) < 1  # begins near a uniform guess


@pytest.mark.parametrize("kind", [fast_characters, plain_gpt])
def test_both_learn_from_their_first_steps(kind):
    text = torch.arange(4000) % 7
    training = kind.Training(text, 65, 1)
    before = characters.score(training.logits, text[:1000])
    for _ in range(3):
        training.step()
    assert training.done == 3 and characters.score(training.logits, text[:1000]) < before - 0.02
    assert before == pytest.approx(math.log(65), abs=0.3)


class _Slow:
    """Takes a second for a step and ten for each score, on a clock that stands still otherwise."""

    steps = 200

    def __init__(self, monkeypatch):
        self.done, self.now = 0, 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(characters, "score", self.score)

    def step(self):
        self.done, self.now = self.done + 1, self.now + 1.0

    def logits(self, tokens):
        raise AssertionError

    def score(self, logits_of, text):
        self.now += 10.0
        return 3 - self.done / 100


def test_evaluations_are_frequent_near_the_end_and_their_time_is_left_out(monkeypatch):
    training = _Slow(monkeypatch)
    found = time_to_loss.train_to(1.1, training, torch.zeros(2), started=995.0)
    assert (found["before"], found["steps"], found["reached"]) == (5.0, 190, True)
    assert found["seconds"] == 5.0 + 190 and found["loss"] == pytest.approx(1.1)
    assert [step for step, _, _ in found["curve"]] == [*range(16, 160, 16), *range(160, 191, 2)]
    short = time_to_loss.train_to(0.5, _Slow(monkeypatch), torch.zeros(2), started=1000.0)
    assert (short["steps"], short["seconds"], short["reached"]) == (200, 200.0, False)
