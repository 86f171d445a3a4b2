"""`shoestring report`: what stands on the page, that strangers' runs cannot do anything there, and what is refused."""

import base64
import hashlib
import html.parser
import json
import re
import statistics
import subprocess
import sys

import pytest

import shoestring
from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, RunError
from shoestring.finetuning.job import finetune
from shoestring.pretraining.config import PretrainRecipe, load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train.report.read import Column, read_run
from shoestring.train.report.series import MOST, thinned
from tests.train import tiny
from tests.train.report_runs import BEGAN, write_run

HOSTILE = """</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><!-- &lt;b&gt; '"""


class Tags(html.parser.HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]


def page_of(*runs, out=None):
    return shoestring.report([str(run) for run in runs], out).out.read_text(encoding="utf-8")


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_a_run_is_shown_with_all_that_it_tells(tmp_path):
    stage = {"event": "stage", "step": 50, "tokens": 51200, "stage": 2, "batch_tokens": 2048, "sequence_length": 64}
    events = (
        {**stage, "layers": 4},
        {"event": "skipped", "step": 60, "reason": "the loss is not a finite number"},
        {"event": "rolled_back", "step": 61, "to": 50, "reason": "10 steps in a row were skipped"},
        {"event": "not_written", "step": 70, "what": "checkpoint", "reason": "the disk is full"},
        {"event": "something_new", "step": 80, "of": 7},
    )
    run = write_run(tmp_path / "first", extra=(*events, {"step": 90, "tokens": 90, "seconds": 45, "balance": 0.25}))
    page = page_of(run)
    titles = [chart["title"] for chart in data_of(page)["charts"]]
    assert titles == [
        "Loss", "Bits per byte", "Speed", "Memory", "Learning rate", "Gradient norm", "Share of the matrix peak",
        "balance",
    ]  # fmt: skip
    loss, bits, _, memory, *_ = data_of(page)["charts"]
    assert [curve["name"] for curve in loss["curves"]] == ["training", "held out, a sample", "held out, all"]
    assert len(loss["curves"][0]["mean"]) == 200 and len(loss["curves"][1]["mean"]) == 9
    assert bits["curves"][1]["step"] == [200] and bits["curves"][1]["tokens"] == [200 * 1024]
    assert [(level["name"], level["value"]) for level in memory["levels"]] == [
        ("predicted", 900_000_000), ("predicted, in tensors", 500_000_000),
    ]  # fmt: skip
    assert [mark["what"] for mark in data_of(page)["marks"]] == ["stage", "rolled back", "not written"]
    for words in (
        "stage 2 begins: 2,048 tokens in rows of 64, 4 layers", "changed nothing: the loss is not a finite number",
        "went back to the weights of step 50", "checkpoint not written: the disk is full", "something_new: of 7",
        "A Processor, 8 cores, 8 threads", "learning_rate: 0.003", "process and libraries", "finished", "400 GFLOP/s",
        "(x): return 200", "5 earlier ones",
    ):  # fmt: skip
        assert words in page, words


def test_several_runs_share_their_charts_and_what_differs_is_told(tmp_path):
    first = write_run(tmp_path / "a" / "run", steps=50)
    second = write_run(tmp_path / "b" / "run", steps=80, recipe="model: {width: 64}\nout: elsewhere\n")
    page = page_of(first, second, out=tmp_path / "both.html")
    data = data_of(page)
    assert [run["name"] for run in data["runs"]] == ["a/run", "b/run"]
    assert {curve["run"] for curve in data["charts"][0]["curves"]} == {0, 1}
    differing = page.partition("Settings that differ</h2>")[2].partition("</table>")[0]
    assert "model.width" in differing and "<td>32</td><td>64</td>" in differing
    assert "optimizer.learning_rate" in differing and "not set" in differing and "elsewhere" not in differing
    twice = shoestring.report([first, first], tmp_path / "twice.html")
    assert list(twice.runs) == ["run (1)", "run (2)"]


def test_nothing_of_a_run_becomes_part_of_the_page(tmp_path):
    name = HOSTILE.replace("/", "⁄")  # what a folder may be called
    run = write_run(tmp_path / name, steps=20, recipe=f"description: '{HOSTILE[:-2]}'\n{HOSTILE}: [\n")
    with open(run / "metrics.jsonl", "a") as file:
        for line in (
            {"step": 21, "sample": HOSTILE, "prompt": HOSTILE},
            {"step": 22, "event": HOSTILE, HOSTILE: HOSTILE},
            {"step": 23, HOSTILE: 1.5},
            {"step": 24, "event": "skipped", "reason": HOSTILE},
            {"step": 25, "event": "stage", "stage": HOSTILE, "layers": HOSTILE},
        ):
            file.write(json.dumps(line) + "\n")
    began = {**BEGAN, "processor": HOSTILE, "torch": HOSTILE, "engine": HOSTILE, "time": HOSTILE, "how": HOSTILE}
    (run / "sessions.jsonl").write_text(json.dumps({**began, "predicted_parts": [[HOSTILE, 1]]}) + "\n")
    answer = {"question": HOSTILE, "expected": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    (run / "answers.json").write_text(json.dumps([answer]))
    clean = Tags(page_of(write_run(tmp_path / "clean", steps=20), out=tmp_path / "clean.html"))
    page = page_of(run, run, out=tmp_path / "hostile.html")
    found = Tags(page)
    assert found.tags.count("script") == clean.tags.count("script") == 2
    assert set(found.tags) - set(clean.tags) <= {"h3", "details", "summary"} and "img" not in found.tags
    assert not [name for _, name, _ in found.attributes if name.startswith("on") or name in ("src", "href", "style")]
    data = data_of(page)
    assert any(chart["title"].startswith("</script><script>") for chart in data["charts"])
    assert "<!--" not in page and page.count("<script>window") == 0


def test_only_the_pages_own_script_and_style_may_run_and_nothing_may_be_loaded(tmp_path):
    page = page_of(write_run(tmp_path / "run", steps=5))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    for kind, pattern in (("script", r"<script>(.*?)</script>"), ("style", r"<style>(.*?)</style>")):
        text = re.search(pattern, page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert "@import" not in page and "url(" not in page.replace("url(#${this.clip})", "")


def test_what_stood_out_is_in_the_picture_of_many_values():
    column = Column()
    for step in range(1, 100_001):
        value = 1000.0 if step == 77_777 else step % 7
        for name, number in (("step", step), ("tokens", 2 * step), ("seconds", step / 10), ("values", value)):
            getattr(column, name).append(number)
    found = thinned(column)
    assert {len(found[name]) for name in found} == {MOST}
    assert max(found["high"]) == 1000 and min(found["low"]) == 0 and found["step"][-1] == 100_000
    assert statistics.fmean(found["mean"]) == pytest.approx(statistics.fmean(column.values), rel=1e-5)
    few = thinned(column, most=200_000)
    assert "low" not in few and len(few["mean"]) == 100_000


def test_a_damaged_folder_is_shown_as_far_as_it_goes(tmp_path):
    run = write_run(tmp_path / "run", steps=10)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 11, "loss": NaN, "tokens": 1e400}\n[1]\n{"step": true}\n{"step": -4, "loss": 1}\n')
        file.write(b'{"step": 1' + b"0" * 300 + b', "loss": 1}\n{"step": 12, "loss": "high", "lr": [1]}\n\xff\xfe\n')
        file.write(b'{"step": 13, "event": 5}\n{"step": 14, "sample": 7}\n{"step": 15, "lo')
    (run / "sessions.jsonl").write_text('{"session": "ended"}\n{"session": "began", "predicted": [], "cores": {}}\nx\n')
    (run / "sessions.jsonl").open("a").write('{"session": "began", "processor": "\\ud800"}\n')
    (run / "answers.json").write_text('[1, {"question": 2}, {"question": "q", "after": null}]')
    (run / "recipe.yaml").write_bytes(b"a: [\xff")
    figures = read_run(run)
    assert figures.step == 14 and list(figures.columns["loss"].step) == list(range(1, 11))
    page = page_of(run)
    assert data_of(page)["charts"][0]["title"] == "Loss" and "killed, or still at work" in page
    (run / "metrics.jsonl").write_text("")
    assert "There is nothing to draw yet" in page_of(run)


def test_a_run_is_found_by_what_is_in_its_folder(tmp_path):
    run = write_run(tmp_path / "run", steps=5)
    (run / "step-000005").mkdir()
    (run / "latest").symlink_to("step-000005")
    for path in (run, run / "latest", run / "step-000005"):
        assert shoestring.report(path).out == run / "report.html"


def test_where_a_run_went_on_is_marked(tmp_path):
    run = write_run(tmp_path / "run", steps=50)
    with open(run / "sessions.jsonl", "a") as file:
        for step in (20, 0, 900, "x"):
            file.write(json.dumps({**BEGAN, "step": step}) + "\n")
    marks = data_of(page_of(run))["marks"]
    assert marks == [{"run": 0, "what": "resumed", "step": 20, "tokens": 20 * 1024, "seconds": 10.0}]


def test_what_is_no_run_and_what_is_no_report_are_left_alone(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", steps=5)
    with pytest.raises(RunError, match="there is no such folder"):
        shoestring.report(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no run here: there is no metrics.jsonl"):
        shoestring.report(tmp_path)
    with pytest.raises(ConfigError, match="1 to 20 runs, not of 0"):
        shoestring.report([])
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(RunError, match="it is no report"):
        shoestring.report(run, mine)
    with pytest.raises(RunError, match="this is a folder"):
        shoestring.report(run, tmp_path)
    assert mine.read_text() == "<p>mine</p>"
    shoestring.report(run)
    assert shoestring.report(run).out.is_file()  # a report is written anew
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["out"] == "report.html" and (tmp_path / "report.html").is_file()
    assert shown["runs"]["run (2)"]["steps"] == 5


def test_a_report_needs_no_torch(tmp_path):
    run = write_run(tmp_path / "run", steps=5)
    code = f"import sys\nfrom shoestring.cli.main import main\nassert main(['report', {str(run)!r}]) == 0\n"
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True)
    assert (run / "report.html").is_file()


def test_a_real_run_tells_its_samples_machine_and_memory(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text"), extra="log: {samples: 2}"))
    result = pretrain(recipe, out=tmp_path / "run")
    run = read_run(result.out)
    assert [(sample["step"], len(sample["sample"]) > 0) for sample in run.samples] == [
        (step, True) for step in (3, 3, 6, 6, 8, 8)
    ]
    assert run.predicted("memory") == result.predicted_memory and run.peak_memory() >= result.peak_memory
    began, ended = run.sessions[-1]
    assert ended["how"] == "finished" and ended["step"] == 8 and began["cores"] > 0
    assert {"loss", "held_out_loss", "tokens_per_second", "memory", "lr"} <= set(run.columns)
    titles = [chart["title"] for chart in data_of(page_of(result.out))["charts"]]
    assert titles[:5] == ["Loss", "Bits per byte", "Speed", "Memory", "Learning rate"]


def test_a_fine_tuning_tells_its_answers_and_what_it_says_on_the_way(base, examples, tmp_path):
    run = finetune(base, examples, out=tmp_path / "run", steps=4, log__samples=1, train__answers=1).out
    page, figures = page_of(run), read_run(run)
    assert len(figures.answers) == 1 and set(figures.answers[0]) == {"question", "expected", "before", "after"}
    assert {sample["step"] for sample in figures.samples} >= {4} and figures.samples[-1]["prompt"].endswith("?\n")
    assert "Answers before and after" in page and "held-out loss before the first step" in page
    assert [chart["title"] for chart in data_of(page)["charts"]][:2] == ["Loss", "Bits per byte"]


def test_samples_that_could_not_be_written_are_refused_at_once():
    for setting in ({"precision.compile": True}, {"precision.fp8": {"recipe": "tensorwise"}}):
        with pytest.raises(ConfigError, match="log.samples"):
            load_pretrain_recipe("quickstart-smoke", {"log.samples": 1, **setting})


def test_a_job_that_writes_no_samples_refuses_the_setting():
    class Other(PretrainRecipe):
        writes_samples = False

    values = load_pretrain_recipe("quickstart-smoke").model_dump()
    Other.model_validate(values)
    with pytest.raises(ValueError, match="pretraining and fine-tuning write samples"):
        Other.model_validate({**values, "log": {"samples": 1}})


def test_samples_do_not_change_what_is_learned(tmp_path):
    """Nor does being interrupted between them."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.recipe_text(tiny.corpus(tmp_path / "text")))
    runs = {
        samples: pretrain(recipe, out=tmp_path / f"run{samples}", log__samples=samples).checkpoint for samples in (0, 2)
    }
    weights = [(folder / "model.safetensors").read_bytes() for folder in runs.values()]
    assert weights[0] == weights[1]
