"""Fine-tuning over two machines beside one of them: LoRA r=8 on the shape of Qwen2.5-0.5B, frozen layers in int8.

    python -m benchmarks.laptops [--quick] [--shape qwen2.5-0.5b] [--memory 600MB] [--rows 8] [--tokens 128] [--steps 4]

Each machine is a process tree of `shoestring` on one core, in a memory cgroup and a network namespace of its own, with
a cache of its own; the second joins by the token and fetches its layers from the first. Their link is limited to 300
Mbit/s, with 1 ms of delay, by the kernel's traffic control, as far as it has these (tbf, netem); the figures say what
was measured. Alone, one such machine streams the same layers from its disk, as its plan chooses.

speed_ratio: tokens/s of both over one, medians of the steps behind the first. peak_mb: the most of either machine's
worker; group_peak_mb: of either machine's processes together, with the page cache of what they read, which the kernel
drops at the limit. prediction_error: of the plan's tokens/s. bytes_per_token: sent between the two, beside the
formula's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cgroup import MemoryGroup, memory_group, why_not
from benchmarks.measure import ROOT, finish, show
from benchmarks.random_models import SHAPES, large_model
from shoestring.core.units import parse_bytes

DESK, ANNA = "10.213.77.1", "10.213.77.2"
PORT, TOKEN = 29417, "a-token-for-a-benchmark-alone"
RATE, DELAY = "300mbit", "1ms"
PATIENCE = 3600.0  # seconds
WARMUP = 1  # steps before the timed ones


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, two timed steps: coarse")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--memory", default="600MB", help="of each machine")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--tokens", type=int, default=128, help="of a row")
    parser.add_argument("--steps", type=int, default=4, help="timed, after one to warm up")
    parser.add_argument("--weights", default="int8", help="of the frozen layers: int8, int4, bfloat16, source")
    parser.add_argument("--layers", help="of each machine, as 13,11, instead of the plan's")
    parser.add_argument("--keep", type=Path, help="folder for caches and runs [a temporary one]")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shape, arguments.steps = "small-70m", 2
    if reason := why_not():
        print(f"the memory limit is not proven: {reason}", file=sys.stderr)
    model = large_model(arguments.shape)
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "rows.jsonl", arguments.tokens)
        with machines() as link:
            alone = one(arguments, model, folder)
            both = two(arguments, model, folder)
    report(arguments, alone, both, link)


# --- the machines -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def machines() -> Iterator[str]:
    """Two namespaces with a link between them; -> how it was limited. Everything is removed at the end."""
    names = [f"shoe{os.getpid()}{end}" for end in "ab"]
    _NAMES[:] = names
    limited = []
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "veth0", "netns", names[1])
        for name, address in zip(names, (DESK, ANNA), strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "veth0")
            _run("ip", "-n", name, "link", "set", "veth0", "up")
            limited.append(_limit(name))
        yield limited[0]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


_NAMES: list[str] = []


def _limit(name: str) -> str:
    """With what the kernel has of traffic control."""
    tc = ["tc", "-n", name, "qdisc", "add", "dev", "veth0", "root"]
    if subprocess.run([*tc, "netem", "delay", DELAY, "rate", RATE], capture_output=True).returncode == 0:
        return f"{RATE}, {DELAY} each way"
    if subprocess.run([*tc, "tbf", "rate", RATE, "burst", "256kb", "latency", "100ms"], capture_output=True).returncode:
        return "not limited: no traffic control here"
    return f"{RATE}, no delay: netem is not here"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def process(
    number: int, arguments: list[str], folder: Path, memory: int, **given: Any
) -> Iterator[tuple[subprocess.Popen[str], MemoryGroup | None]]:
    """`shoestring ARGUMENTS` on the machine of this number; ended with the block."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    cache = folder / f"cache{number}"
    cache.mkdir(exist_ok=True)
    around = {
        **os.environ, "PYTHONPATH": path, "SHOESTRING_CACHE": str(cache), "OMP_NUM_THREADS": "1",
        "SHOESTRING_TOKEN": TOKEN,
    }  # fmt: skip
    command = ["taskset", "-c", str(number % (os.cpu_count() or 1)), sys.executable, "-m", "shoestring", *arguments]
    command = ["ip", "netns", "exec", _NAMES[number], *command]
    with contextlib.ExitStack() as stack:
        group = None
        if why_not() is None:
            group = stack.enter_context(memory_group(memory))
            command = group.command(command)
        log = stack.enter_context(open(folder / f"log{number}.txt", "w", encoding="utf-8"))
        running = subprocess.Popen(command, stderr=log, text=True, env=around, cwd=folder, **given)
        try:
            yield running, group
        finally:
            if running.poll() is None:
                running.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.wait(20)
                running.kill()
            running.wait()
            time.sleep(0.5)  # its worker ends with it


def write_rows(file: Path, tokens: int) -> None:
    """Rows that are longer than is taken of them, so that steps are full; but one, which shows where a text ends."""
    words = [f"word{i % 97} is number {i}" for i in range(tokens)]
    with open(file, "w", encoding="utf-8") as out:
        out.write(json.dumps({"text": "A short one."}) + "\n")
        for row in range(63):
            out.write(json.dumps({"text": f"Row {row}: " + ", ".join(words[row % 7 :] + words)}) + "\n")


def settings(arguments: argparse.Namespace, out: str) -> list[str]:
    steps, tokens = WARMUP + arguments.steps, arguments.tokens
    return [
        "--data", "rows.jsonl", "--rank", "8", "--steps", str(steps), "--compute", "float32", "--out", out, "--json",
        "--train.sequence_length", str(tokens), "--train.batch_tokens", str(tokens * arguments.rows),
        "--train.answers", "0", "--data.validation", "0", "--data.layout", "padded", "--log.every", "1",
        "--train.checkpoint_every", "1000", "--budget.weights", arguments.weights, "--budget.engine", "streamed",
    ]  # fmt: skip


# --- the measurements ---------------------------------------------------------------------------------------------


def one(arguments: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    out, memory = f"alone-{time.time_ns()}", parse_bytes(arguments.memory)
    command = ["finetune", str(model), *settings(arguments, out), "--memory", arguments.memory]
    with process(0, command, folder, memory, stdout=subprocess.PIPE) as (running, group):
        result = _result(running, folder, 0)
        return measured(folder / out, result, [group])


def two(arguments: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    out, memory = f"both-{time.time_ns()}", parse_bytes(arguments.memory)
    layers = (arguments.layers or ",").split(",")
    named = [
        {"name": name, "memory": arguments.memory, **({"layers": int(count)} if count else {})}
        for name, count in zip(("desk", "anna"), layers, strict=True)
    ]
    (folder / "machines.yaml").write_text(json.dumps({"listen": f"{DESK}:{PORT}", "machines": named}))
    command = ["finetune", str(model), *settings(arguments, out), "--over", "machines.yaml"]
    join = ["join", f"{DESK}:{PORT}", "--name", "anna", "--memory", arguments.memory]
    with process(0, command, folder, memory, stdout=subprocess.PIPE) as (first, desk):
        _until_listening(first, folder)
        with process(1, join, folder, memory, stdout=subprocess.DEVNULL) as (_, anna):
            return measured(folder / out, _result(first, folder, 0), [desk, anna])


def _until_listening(first: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while "join      shoestring" not in (folder / "log0.txt").read_text(encoding="utf-8"):
        if first.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((folder / "log0.txt").read_text(encoding="utf-8")[-4000:])
        time.sleep(0.5)


def _result(running: subprocess.Popen[str], folder: Path, number: int) -> dict[str, Any]:
    said, _ = running.communicate(timeout=PATIENCE)
    if running.returncode:
        raise RuntimeError((folder / f"log{number}.txt").read_text(encoding="utf-8")[-4000:])
    return json.loads(said.strip().splitlines()[-1])


def measured(out: Path, result: dict[str, Any], groups: list[MemoryGroup | None]) -> dict[str, Any]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][WARMUP:]
    steps = {line["step"]: line["tokens"] for line in lines if "loss" in line}
    sent = sum(line["sent"] for line in lines if "machine" in line)
    plan = json.loads((out / "machines.json").read_text()) if (out / "machines.json").is_file() else None
    return {
        "speed": statistics.median(speeds),
        "losses": [line["loss"] for line in lines if "loss" in line],
        "peaks": [result["peak_memory"]] if plan is None else list(result["machines"].values()),
        "groups": [group.peak for group in groups if group is not None],
        "sent": sent / max(steps.values()),
        "plan": plan,
    }


def report(arguments: argparse.Namespace, alone: dict[str, Any], both: dict[str, Any], link: str) -> None:
    plan, width = both["plan"], SHAPES[arguments.shape][0]
    formula = 2 * 4 * width  # hidden states there, their gradients back
    predicted = plan["tokens_per_second"]
    rows = [
        ["alone", f"{alone['speed']:.2f}", _megabytes(alone["peaks"]), _megabytes(alone["groups"]), "", ""],
        [
            "two machines", f"{both['speed']:.2f}", _megabytes(both["peaks"]), _megabytes(both["groups"]),
            f"{predicted:.2f}", f"{both['sent']:,.0f}",
        ],
    ]  # fmt: skip
    title = f"{arguments.shape}, {arguments.rows} × {arguments.tokens} tokens a step, {arguments.memory}; link {link}"
    show(title, ["", "tokens/s", "workers' peak MB", "groups' peak MB", "predicted", "bytes/token"], rows)
    for part in plan["parts"]:
        print(f"{part['name']}: layers {part['start']} to {part['end'] - 1}, {part['peak'] / 1e6:,.0f} MB predicted")
    apart = max(abs(a - b) for a, b in zip(alone["losses"], both["losses"], strict=True))
    finish(
        {
            "speed_ratio": both["speed"] / alone["speed"],
            "speed_alone": alone["speed"],
            "speed_both": both["speed"],
            "peak_mb": max(both["peaks"]) / 1e6,
            "group_peak_mb": max(both["groups"], default=0) / 1e6,
            "prediction_error": predicted / both["speed"] - 1,
            "bytes_per_token": both["sent"],
            "bytes_per_token_formula": formula,
            "largest_loss_difference": apart,
        }
    )


def _megabytes(sizes: list[int]) -> str:
    return ", ".join(f"{size / 1e6:,.0f}" for size in sizes) or "not proven"


if __name__ == "__main__":
    main()
