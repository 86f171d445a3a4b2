"""What the benchmarks stand on: a memory limit that the kernel enforces, and large models made of random numbers."""

import json
import shutil
import sys
from collections import Counter

import pytest
import torch

from benchmarks import gpu
from benchmarks.cgroup import memory_group, why_not
from benchmarks.measure import run_worker
from benchmarks.prediction import CASES, calibrated, within
from benchmarks.random_models import SHAPES, config_json, large_model
from shoestring.core.errors import RunError
from shoestring.models.folder import load_model
from shoestring.plan.receipt import Receipt

WORKER = """
import json
import shutil
import sys
held = bytearray(int(sys.argv[1]))
for i in range(0, len(held), 4096):
    held[i] = 1
print('{"held": %d}' % len(held))
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "takes_memory.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_worker_over_its_limit_is_ended_and_one_below_it_is_not(worker):
    if why_not() is not None:  # a benchmark then says "not proven"
        with pytest.raises(RuntimeError, match="no memory cgroup can be made: "), memory_group(64_000_000):
            pass
        return
    result = run_worker("takes_memory", "20000000", memory=64_000_000)
    assert result["held"] == 20_000_000 < result["group_peak"] <= 64_000_000
    with pytest.raises(RuntimeError, match="killed at its limit of 64 MB"):
        run_worker("takes_memory", "90000000", memory=64_000_000)
    assert run_worker("takes_memory", "90000000")["held"] == 90_000_000


def test_a_system_without_groups_is_told_why(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux" in why_not()
    with pytest.raises(RuntimeError, match="Linux"), memory_group(64_000_000):
        pass


@pytest.fixture
def tiny_shape(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", (32, 2, 4, 2, 64, 512, True))
    return "tiny"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_model_is_a_folder_that_transformers_reads_alike(tiny_shape, dtype, tmp_path):
    import transformers

    folder = large_model(tiny_shape, dtype, tmp_path)
    ours = load_model(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens_BT = torch.randint(512, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = ours.head(ours(tokens_BT)[0])
        torch.testing.assert_close(logits, theirs(tokens_BT).logits, rtol=1e-4, atol=1e-5)
    assert 0.015 < float(ours.embedding.weight.detach().std()) < 0.025


def test_a_random_model_is_made_once(tiny_shape, tmp_path):
    folder = large_model(tiny_shape, "float32", tmp_path)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert large_model(tiny_shape, "float32", tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


def test_a_disk_without_room_is_said_before_anything_is_written(tiny_shape, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(RunError, match="are free"):
        large_model(tiny_shape, "float32", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_shapes_are_the_published_ones(tmp_path):
    from shoestring.models.families.registry import read_config

    counts = {}
    for shape in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b"):
        (tmp_path / "config.json").write_text(json.dumps(config_json(shape, "bfloat16")))
        counts[shape] = read_config(tmp_path).parameter_count()
    # Of the published safetensors, by the sizes of their files.
    assert counts == {"qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688}


def test_the_cases_of_the_prediction_are_of_every_use_engine_and_format():
    assert len({str(case) for case in CASES}) == len(CASES) >= 40
    engines = {use: {case.engine for case in CASES if case.use == use} for use in {case.use for case in CASES}}
    assert engines == {
        "pretrain": {"resident", "checkpointed"},
        "finetune": {"resident", "checkpointed", "streamed"},
        "distill": {"resident", "checkpointed"},
        "quantize": {"rtn", "gptq", "awq"},
        "perplexity": {"resident", "streamed"},
        "generate": {"resident", "streamed"},
    }
    assert {case.weights for case in CASES if case.engine == "streamed"} == {"source", "float32", "int8", "int4", "nf4"}
    assert {case.method for case in CASES if case.use == "finetune"} == {"lora", "full", "qlora"}
    assert {case.budget for case in CASES} == {True, False}
    groups = Counter((case.use, case.engine) for case in CASES)
    assert min(groups.values()) >= 2  # the others of a group calibrate each


def test_times_are_judged_by_the_other_cases():
    receipts = [
        Receipt("finetune", engine, "here", predicted_seconds=1.0, measured_seconds=seconds).to_json()
        for engine, seconds in (
            ("resident", 2.0), ("streamed", 10.0), ("resident", 3.0), ("resident", 2.2), ("streamed", 8.0)
        )
    ]  # fmt: skip
    assert calibrated(receipts) == pytest.approx([2.6, 8.0, 2.1, 2.5, 10.0])  # medians of the others
    assert within([0.1] * 9 + [5.0]) == 0.1 and within([0.1] * 8 + [-0.3, 5.0]) == 0.3 and within([-0.2]) == 0.2


def test_the_gpu_benchmark_has_a_twin_on_the_cpu(capsys):
    cases = [name for name in gpu.LIMITS if "compiled" not in name and name != "elite-bf16-one-document"]
    # Without oneDNN's products, whose room for bfloat16 is not that of a GPU, and not that of every processor.
    with torch.backends.mkldnn.flags(enabled=False):
        gpu.main(["--device", "cpu", "--cases", ",".join(cases)])
    output, progress = capsys.readouterr()
    figures = json.loads(output.splitlines()[-1])
    assert [line.split()[0] for line in progress.splitlines() if line.split()[0] in gpu.LIMITS] == cases
    assert not {name: figures[name] for name in cases if "not_available" in figures[name]}
    assert all(figures[name]["agrees"] for name in ("packed-attention", "parity", "parity-streamed"))
    assert len(figures["parity"]["kinds"]) == 16 and figures["parity-streamed"]["gradients"] > 20
    # A streamed model is predicted as it runs on a CPU, in float32; here it is opened in bfloat16.
    for name, near in {"elite-bf16": 0.03, "lora-0.5b": 0.03, "streamed-3b": 0.1}.items():
        assert figures[name]["tokens_per_second"] > 0 and figures[name]["last_loss"] < figures[name]["first_loss"]
        assert figures[name]["peak_mb"] == pytest.approx(figures[name]["predicted_mb"], rel=near)
    assert figures["elite-fp8"]["first_loss"] == pytest.approx(figures["elite-bf16"]["first_loss"], rel=0.01)
    assert figures["decode"]["tokens_per_second_at_8"] > figures["decode"]["tokens_per_second_at_1"] > 0


def test_a_case_of_the_gpu_benchmark_that_fails_or_takes_long_is_told_and_the_rest_goes_on(monkeypatch, capsys):
    def worker(module, flag, name, *rest, timeout):
        assert timeout <= gpu.LIMITS[name]
        if name == "parity":
            raise TimeoutError("not done after 90 s")
        if name == "decode":
            raise RuntimeError("benchmarks.gpu failed:\nTraceback\n\ntorch.OutOfMemoryError: CUDA out of memory")
        return {"tokens_per_second": 12345.678}

    monkeypatch.setattr(gpu, "run_worker", worker)
    found = gpu.run(["parity", "decode", "elite-fp8"], "cuda", 100)
    assert found["parity"] == {"not_available": "TimeoutError: not done after 90 s"}
    assert found["decode"] == {"not_available": "RuntimeError: torch.OutOfMemoryError: CUDA out of memory"}
    assert found["elite-fp8"] == {"tokens_per_second": 12350.0}
    assert gpu.run(["decode"], "cuda", 0) == {"decode": {"not_available": "the 0 s were over"}}
    assert len(capsys.readouterr().err.splitlines()) == 4
    assert sum(gpu.LIMITS.values()) > gpu.SECONDS <= 480  # limits are of each; together they are cut off


def test_without_the_device_the_gpu_benchmark_says_so_at_once(capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--device", "cuda:7"])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: device cuda")
