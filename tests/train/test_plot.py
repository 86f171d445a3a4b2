"""The picture of a run: what is in which curve, and that nothing of it is hidden."""

import json

import pytest
from matplotlib.figure import Figure

from shoestring.train.loggers import as_curves
from shoestring.train.plot import text_plot, write_plot


def training(step, loss):
    return {"step": step, "tokens": 100 * step, "loss": loss}


def held_out(step, loss, part="whole", tokens=900):
    values = {"held_out_loss": loss, "bits_per_byte": loss / 2, "held_out_tokens": tokens, "held_out_set": part}
    return {"step": step, "tokens": 100 * step, **values}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The figure of these lines of metrics.jsonl."""

    def draw(*lines):
        figures = []
        save = Figure.savefig

        def saved(self, *args, **more):
            figures.append(self)
            return save(self, *args, **more)

        monkeypatch.setattr(Figure, "savefig", saved)
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png", "a run", 1.5)
        return figures[-1]

    return draw


def points(figure):
    (axes,) = figure.axes
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}


def test_a_sample_and_all_of_the_held_out_text_are_two_curves_with_names(drawn):
    lines = [training(n, 5.0 - n / 10) for n in range(1, 11)]
    lines += [held_out(3, 4.0, "sample", 80), held_out(6, 3.66, "sample", 80), held_out(10, 3.82)]
    found = points(drawn(*lines))
    assert found["held out, a sample of 80 tokens: 1.83 bits per byte"] == [4.0, 3.66]
    assert found["held out, all of 900 tokens: 1.91 bits per byte"] == [3.82]


def test_a_run_that_was_stopped_has_a_sample_alone(drawn):
    found = points(drawn(training(1, 5.0), training(2, 4.0), held_out(2, 4.2, "sample", 80)))
    assert [name for name in found if "held out" in name] == ["held out, a sample of 80 tokens: 2.10 bits per byte"]


def test_a_run_of_one_step_shows_a_point(drawn):
    figure = drawn(training(1, 5.0))
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "training"]
    assert line.get_marker() == "o" and list(line.get_ydata()) == [5.0]


def test_the_legend_is_crossed_by_no_curve_and_both_axes_have_names(drawn):
    figure = drawn(*[training(n, 3.0) for n in range(1, 40)], held_out(39, 3.1))
    figure.canvas.draw()
    (legend,) = figure.legends
    axes = figure.axes[0]
    below = legend.get_window_extent().y1
    assert below <= axes.get_window_extent().y0
    (second,) = axes.child_axes
    assert (axes.get_ylabel(), second.get_ylabel()) == ("loss, nats per token", "held-out loss in bits per byte")


def test_other_loggers_get_a_curve_for_each_set():
    assert as_curves(held_out(3, 4.0, "sample")).keys() >= {"sample_held_out_loss", "sample_bits_per_byte"}
    assert "held_out_loss" not in as_curves(held_out(3, 4.0, "sample"))
    assert as_curves(held_out(3, 4.0)) == held_out(3, 4.0)


def test_a_terminals_plot_of_one_value_is_one_row():
    assert text_plot([2.5], width=4, height=8).splitlines() == ["2.50 ┤•", "     └─ loss"]
