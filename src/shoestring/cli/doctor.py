"""`shoestring doctor`: what this machine has, measured, and what that means for training; who multiplies matrices.

`--save laptop.yaml` describes it for `shoestring plan --machine laptop.yaml`, on another machine too.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.units import counted, format_bytes, format_count
from shoestring.plan.machine_file import check_saving, save_machine

app = verb(
    "doctor",
    "What this machine has, measured, and what that means for training.",
    ("shoestring doctor", "shoestring doctor --save laptop.yaml"),
)

# Weights, gradient and AdamW's two moments in float32; a fifth is left to activations and the system.
TRAINING_BYTES_PER_PARAMETER = 16
TRAINING_SHARE_OF_MEMORY = 0.8
# Forward and backward take 6 operations per parameter and token (Kaplan et al. 2020, arXiv 2001.08361,
# section 2.1); small models reach about half of the matrix peak.
OPERATIONS_PER_PARAMETER = 6
USUAL_SHARE_OF_PEAK = 0.5
EXAMPLE_PARAMETERS = 10_000_000
# Of the processor, that other programs take.
NOTEWORTHY_LOAD = 0.1

# Products that every run makes: name, layout, rows, outputs and length of the sums.
USUAL_PRODUCTS: tuple[tuple[str, str, int, int, int], ...] = (
    ("forward, 768 wide", "forward", 768, 768, 768),
    ("input gradient", "input gradient", 768, 768, 768),
    ("weight gradient", "weight gradient", 768, 768, 768),
    ("forward, 192 wide", "forward", 192, 192, 192),
    ("input gradient", "input gradient", 192, 192, 192),
    ("weight gradient", "weight gradient", 192, 192, 192),
    ("forward, rank 12", "forward", 768, 12, 768),
    ("input gradient", "input gradient", 768, 12, 768),
    ("weight gradient", "weight gradient", 12, 768, 768),
    ("forward, 12 rows", "forward", 12, 768, 768),
)


@app.default
def doctor(
    *,
    save: Annotated[
        Path | None, Parameter(help="describe this machine in a file, for plan --machine on this one or another")
    ] = None,
    json: Json = False,
) -> None:
    if save is not None:
        check_saving(save)
    found = measure()
    if save is not None:
        _save(save)
    if json:
        console.print_json(found if save is None else {**found, "saved": str(save)})
        return
    for name, text in describe(found).items():
        console.show(f"{name:<11}{text}")
    for line in matmul_table(found["matmul"]):
        console.show(line)
    if save is not None:
        console.show(f"{'saved':<11}{save}: shoestring plan RECIPE --machine {save}")


def _save(path: Path) -> None:
    """With what `measure` has just measured, and the size of a process of its own."""
    from shoestring.core.waiting import waiting
    from shoestring.forecast.computer import this_computer
    from shoestring.forecast.own_size import fresh_sizes

    with waiting("measuring a process of its own"):
        process = fresh_sizes()
    save_machine(this_computer(process), path)


def measure() -> dict[str, Any]:
    """The figures that the five lines are made of: bytes, bytes/s, FLOP/s, tokens/s."""
    import torch

    from shoestring.core import machine, speeds
    from shoestring.core.device import resolve_device
    from shoestring.core.files import cache_dir
    from shoestring.core.matmul import TABLE
    from shoestring.core.matmul_choice import Kind
    from shoestring.kernels import allocator

    device = resolve_device("auto")
    cache = cache_dir()
    load = machine.others_load()
    quiet = load is None or load < NOTEWORTHY_LOAD  # else what is known from a quieter time is nearer to the truth
    peaks = {name: speeds.matrix_peak(name, device, refresh=quiet) for name in ("float32", "bfloat16")}
    memory = machine.total_memory_bytes()
    training_memory, gpu = memory, None
    if device.type == "cuda":
        training_memory = torch.cuda.get_device_properties(device).total_memory
        gpu = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        gpu = "Apple GPU (MPS, which we have not run)"
    kinds = [
        Kind.of(dtype, layout, rows, outputs, inner)
        for dtype in (torch.float32, torch.bfloat16)
        for _, layout, rows, outputs, inner in USUAL_PRODUCTS
    ]
    return {
        "processor": machine.cpu_model(),
        "cores": machine.cpu_count(),
        "load_of_others": load if load is None else round(load, 3),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "matrix_peak": peaks,
        "matmul": {"forced": TABLE.forced or None, "kinds": {str(kind): TABLE.entry(kind) for kind in kinds}},
        "memory": memory,
        "memory_bandwidth": speeds.memory_bandwidth(refresh=quiet),
        "caching_allocator": allocator.install(),
        "disk": str(cache),
        "disk_free": shutil.disk_usage(cache).free,
        "disk_read_speed": speeds.disk_read_speed(),
        "torch": torch.__version__,
        "device": str(device),
        "gpu": gpu,
        "tokens_per_second": USUAL_SHARE_OF_PEAK
        * peaks["float32"]
        / OPERATIONS_PER_PARAMETER
        / EXAMPLE_PARAMETERS,
        "largest_model": int(TRAINING_SHARE_OF_MEMORY * training_memory / TRAINING_BYTES_PER_PARAMETER),
    }


def matmul_table(found: dict[str, Any]) -> list[str]:
    """Who multiplies what, and how fast: a line in words, then a row for each of the usual products."""
    from shoestring.core.matmul import served_by, spoken

    rows = [["GFLOP/s", "float32", "bfloat16"]]
    chosen: dict[str, dict[str, str]] = {"float32": {}, "bfloat16": {}}
    for name, layout, *sizes in USUAL_PRODUCTS:
        cells = []
        for dtype, served in chosen.items():
            kind = f"{dtype} {layout} {'x'.join(map(str, sizes))}"
            entry = found["kinds"][kind]
            served[kind] = entry["library"]
            ordered = sorted(entry["gflops"], key=lambda library: library != entry["library"])
            cells.append(", ".join(f"{spoken(library)} {entry['gflops'][library]:.0f}" for library in ordered))
        rows.append([name, *cells])
    words = "; ".join(f"{dtype}: {served_by(served)}" for dtype, served in chosen.items())
    if found["forced"]:
        words = f"{spoken(found['forced'])} for all, as SHOESTRING_MATMUL says; measured: {words}"
    if any(entry["threads"] == 1 for entry in found["kinds"].values()):
        words += " (by one thread)"
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [f"{'matmul':<11}{words}", *(f"{'':<11}{line}".rstrip() for line in lines)]


def describe(found: dict[str, Any]) -> dict[str, str]:
    """The five lines, and one on what disturbed them: name -> text."""
    peaks = found["matrix_peak"]
    single, half = (f"{peaks[name] / 1e9:,.0f}" for name in ("float32", "bfloat16"))
    gain = peaks["bfloat16"] / peaks["float32"]
    faster = "bfloat16" if gain > 1.2 else "float32"
    lines = {
        "processor": f"{found['processor']}, {counted(found['cores'], 'core')}, {found['vector_units']}:"
        f" matrix products {single} GFLOP/s in float32, {half} in bfloat16",
        "memory": f"{format_bytes(found['memory'])}, read at {format_bytes(found['memory_bandwidth'])}/s; tensors from"
        f" {'the caching allocator' if found['caching_allocator'] else 'the system (no compiler, or switched off)'}",
        "disk": f"{format_bytes(found['disk_free'])} free, read at {format_bytes(found['disk_read_speed'])}/s"
        f" ({found['disk']})",
        "torch": f"{found['torch']}, {counted(found['threads'], 'thread')}, {found['gpu'] or 'no GPU'}",
        "training": f"about {format_count(found['tokens_per_second'])} tokens/s at"
        f" {format_count(EXAMPLE_PARAMETERS)} parameters; up to {format_count(found['largest_model'])} fit"
        f" with AdamW; compute in {faster}",
    }
    if (found["load_of_others"] or 0) >= NOTEWORTHY_LOAD:
        lines["load"] = (
            f"other programs take {found['load_of_others']:.0%} of the processor: what was measured now is too low, and"
            " a run beside them is slower; ask again when they are done"
        )
    return lines
