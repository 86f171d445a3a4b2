"""Who multiplies is measured once, kept in a file, the same for all processes, and repeated by a resumed run."""

import json
import os
import subprocess
import sys

import pytest
import torch

from shoestring.core import matmul_choice
from shoestring.core.matmul_choice import Clocks, Kind, Table, machine_key

KIND = Kind.of(torch.float32, "forward", 512, 512, 512)
OTHER = Kind.of(torch.float32, "weight gradient", 512, 512, 512)


class Laboratory:
    """Libraries that take the seconds they are told to, on a clock that only they move."""

    def __init__(self, **seconds):
        self.seconds, self.now, self.calls = seconds, 0.0, []

    def product(self, name):
        def multiply(rows, weight):
            self.calls.append((name, tuple(rows.shape)))
            self.now += self.seconds[name] * rows.shape[0] * rows.shape[1] * weight.shape[0] / 768**3
            return rows @ weight.t()

        return multiply

    def libraries(self, dtype):
        return {name: self.product(name) for name in self.seconds}

    def table(self, forced=""):
        return Table(self.libraries, forced, Clocks(lambda: self.now, lambda: self.now))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    return tmp_path / "matmul.json"


def test_the_faster_library_serves():
    assert Laboratory(torch=0.02, onednn=0.01).table().choose(KIND) == "onednn"
    assert Laboratory(torch=0.01, onednn=0.02).table().choose(OTHER) == "torch"


def test_torchs_own_stays_unless_another_is_clearly_faster():
    assert Laboratory(torch=0.0104, onednn=0.01).table().choose(KIND) == "torch"
    assert Laboratory(torch=0.0106, onednn=0.01).table().choose(OTHER) == "onednn"


def test_libraries_take_turns_on_operands_of_the_class():
    laboratory = Laboratory(torch=0.02, onednn=0.01)
    laboratory.table().choose(Kind.of(torch.float32, "forward", 2048, 49152, 16))
    names = [name for name, _ in laboratory.calls]
    assert abs(names.count("torch") - names.count("onednn")) == 0
    assert max(shape for _, shape in laboratory.calls) == (768, 12), "never of the caller's size"


def test_a_hopeless_library_is_not_tried_at_full_size():
    laboratory = Laboratory(torch=2.0, onednn=0.01)  # as bfloat16 is without units for it
    assert laboratory.table().choose(KIND) == "onednn"
    assert ("torch", (768, 768)) not in laboratory.calls
    assert laboratory.now < 2.0


def test_threads_that_are_held_up_leave_the_word_to_one(monkeypatch):
    """Other programs make calls of several threads as slow as the scheduler's turns, whichever library it is."""
    laboratory, waits = Laboratory(torch=0.02, onednn=0.01), iter(range(10**6))

    def wall():
        return laboratory.now + 0.03 * next(waits) ** 1.5  # ever longer

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    entry = Table(laboratory.libraries, "", Clocks(lambda: laboratory.now, wall)).entry(KIND)
    assert entry["library"] == "onednn" and entry["threads"] == 1
    assert entry["gflops"]["onednn"] == pytest.approx(2 * 768**3 / 0.01 / 1e9, rel=1e-3)
    entry = Table(laboratory.libraries, "", Clocks(lambda: laboratory.now, lambda: laboratory.now / 2)).entry(OTHER)
    assert entry["threads"] == 2
    assert entry["gflops"]["onednn"] == pytest.approx(2 * 768**3 / 0.005 / 1e9, rel=1e-3)


def test_measuring_leaves_threads_random_numbers_and_modes_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Laboratory(torch=0.02, onednn=0.01).table().choose(KIND)
        assert torch.is_autocast_enabled("cpu")
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_operands_lie_as_the_layout_says():
    for transposed, layout in matmul_choice.LAYOUTS.items():
        operands = Kind.of(torch.float32, layout, 512, 100, 30).operands()
        assert [tuple(x.shape) for x in operands] == [(768, 48), (192, 48)]
        assert [not x.is_contiguous() for x in operands] == list(transposed)


def test_the_choice_is_kept_and_another_process_adopts_it(cache):
    Laboratory(torch=0.02, onednn=0.01).table().choose(KIND)
    later = Laboratory(torch=0.01, onednn=0.02)
    assert later.table().choose(KIND) == "onednn" and not later.calls
    kept = json.loads(cache.read_text())[machine_key()][str(KIND)]
    assert kept["library"] == "onednn" and kept["gflops"]["onednn"] > kept["gflops"]["torch"]


def test_a_kind_is_asked_for_once_in_a_process(cache):
    table = Laboratory(torch=0.02, onednn=0.01).table()
    product = table.product(KIND)
    cache.write_text("{}")
    assert table.product(KIND) is product


def test_the_first_of_two_processes_decides_for_both(cache):
    """Each would choose its own: both begin together, one measures, the other waits for the file and adopts."""
    script = """
import sys, time, torch
from shoestring.core.matmul_choice import Kind, Table
own = sys.argv[1]
def product(name):
    def multiply(rows, weight):
        time.sleep(0.001 if name == own else 0.03)
        return rows
    return multiply
libraries = lambda dtype: {name: product(name) for name in ("torch", "onednn")}
import shoestring.core.matmul_choice as choice, time
table = Table(libraries, "", choice.Clocks(time.perf_counter, time.perf_counter))
print("ready", flush=True)
sys.stdin.readline()
print(table.choose(Kind.of(torch.float32, "forward", 512, 512, 512)))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, own], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ,
        )
        for own in ("torch", "onednn")
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(said) == 1
    assert said == {json.loads(cache.read_text())[machine_key()][str(KIND)]["library"]}


def test_one_is_alone_as_long_as_it_measures(cache, monkeypatch):
    """The negative control: without the lock the later one would measure too, and its word would differ."""
    first, second = Laboratory(torch=0.02, onednn=0.01), Laboratory(torch=0.01, onednn=0.02)
    measure, said = matmul_choice.measure, []

    def interrupted(kind, products, clocks):
        monkeypatch.setattr(matmul_choice, "measure", measure)
        said.append(second.table().choose(kind))  # all of it happens while the first one measures
        return measure(kind, products, clocks)

    monkeypatch.setattr(matmul_choice, "measure", interrupted)
    monkeypatch.setattr(matmul_choice, "exclusive", lambda file: open(os.devnull))
    said.append(first.table().choose(KIND))
    assert said == ["torch", "onednn"]


def test_a_resumed_run_repeats_its_choices_whatever_the_file_says(cache):
    run = Laboratory(torch=0.02, onednn=0.01).table()
    run.choose(KIND)
    recorded = json.loads(json.dumps(run.choices()))
    assert recorded["choices"] == {"float32 forward 768x768x768": "onednn"}
    cache.unlink()
    Laboratory(torch=0.01, onednn=0.02).table().choose(KIND)
    resumed = Laboratory(torch=0.01, onednn=0.02).table()
    assert resumed.choose(KIND) == "torch"
    before = resumed.product(KIND)
    assert resumed.adopt(recorded)
    assert resumed.choose(KIND) == "onednn" and resumed.product(KIND) is not before
    assert resumed.choices() == recorded


def test_another_processors_record_is_ignored_and_said(monkeypatch):
    run = Laboratory(torch=0.02, onednn=0.01).table()
    run.choose(KIND)
    recorded = run.choices()
    here = Laboratory(torch=0.01, onednn=0.02).table()
    monkeypatch.setattr(matmul_choice, "_processor", lambda: "another one")
    assert not here.adopt(recorded)
    assert here.choose(KIND) == "torch"
    assert here.choices()["machine"] != recorded["machine"]


@pytest.mark.parametrize("version, threads", [("99.0", 1), (None, 77)])
def test_another_torch_or_number_of_threads_chooses_anew(monkeypatch, version, threads):
    table = Laboratory(torch=0.02, onednn=0.01).table()
    table.choose(KIND)
    recorded = table.choices()
    if version is not None:
        monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert not table.adopt(recorded) and table.choices()["choices"] == {}
    assert Laboratory(torch=0.01, onednn=0.02).table().choose(KIND) == "torch"


def test_a_run_from_before_there_were_choices_resumes(cache):
    assert Laboratory(torch=0.02, onednn=0.01).table().adopt({})


def test_a_library_that_is_not_here_is_not_adopted(cache):
    recorded = {"machine": machine_key(), "choices": {str(KIND): "gone"}}
    table = Laboratory(torch=0.01, onednn=0.02).table()
    assert not table.adopt(recorded) and table.choose(KIND) == "torch"


def test_a_library_can_be_forced(cache):
    laboratory = Laboratory(torch=0.01, onednn=0.02)
    table = laboratory.table("onednn")
    assert table.choose(KIND) == "onednn" and not laboratory.calls and not cache.exists()
    assert laboratory.table("nonsense").forced == ""
    assert Laboratory(torch=0.01).table("onednn").choose(KIND) == "torch", "as for float64"
    recorded = table.choices()
    assert laboratory.table("onednn").adopt(recorded) and not laboratory.table("torch").adopt(recorded)


def test_a_forced_library_that_a_format_lacks_is_recorded_and_adopted():
    def libraries(dtype):
        names = ("torch", "onednn") if dtype == torch.float32 else ("torch",)
        return {name: lambda rows, weight: rows @ weight.t() for name in names}

    table = Table(libraries, "onednn")
    assert [table.choose(KIND), table.choose(KIND._replace(dtype=torch.bfloat16))] == ["onednn", "torch"]
    assert Table(libraries, "onednn").adopt(table.choices())


@pytest.mark.parametrize("wish, forced", [("mkl", "torch"), ("onednn", "onednn"), ("", "")])
def test_the_environment_forces_one(wish, forced):
    asked = "from shoestring.core.matmul import TABLE; print(TABLE.forced)"
    environment = {**os.environ, "SHOESTRING_MATMUL": wish}
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == forced


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 1}', '{"KEY": {"float32 forward 768x768x768": "x"}}'])
def test_a_damaged_file_only_costs_time(cache, content):
    cache.write_text(content.replace("KEY", machine_key()))
    assert Laboratory(torch=0.02, onednn=0.01).table().choose(KIND) == "onednn"
    assert json.loads(cache.read_text())[machine_key()][str(KIND)]["library"] == "onednn"


def test_without_a_cache_it_chooses_for_itself(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("SHOESTRING_CACHE", str(blocked))
    laboratory = Laboratory(torch=0.02, onednn=0.01)
    table = laboratory.table()
    assert table.choose(KIND) == "onednn"
    count = len(laboratory.calls)
    assert table.entry(KIND)["library"] == "onednn" and len(laboratory.calls) == count


def test_a_file_that_cannot_be_written_is_still_read(cache, monkeypatch):
    Laboratory(torch=0.02, onednn=0.01).table().choose(KIND)

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(matmul_choice, "exclusive", refused)
    later = Laboratory(torch=0.01, onednn=0.02)
    table = later.table()
    assert table.choose(KIND) == "onednn" and not later.calls
    assert table.choose(OTHER) == "torch" and later.calls


def test_a_real_measurement_is_plausible_and_small():
    from shoestring.core.machine import peak_rss_bytes
    from shoestring.core.matmul import libraries

    torch.ones(2000, 2000).mm(torch.ones(2000, 2000))  # libraries have their buffers
    before = peak_rss_bytes()
    entry = Table(libraries).entry(Kind.of(torch.float32, "weight gradient", 300, 300, 300))
    assert all(0.1 < rate < 1e5 for rate in entry["gflops"].values())
    assert peak_rss_bytes() - before < 20e6
