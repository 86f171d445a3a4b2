"""What a base of few bits costs: QLoRA beside LoRA, the same steps on the same exercises with the same seed.

    python -m benchmarks.qlora [--quick] [--bases int4 nf4 int8]

The weights that `shoestring get smollm2-135m` brings were 4-bit ones (GGUF's Q4_1: a scale and a lowest value for 32
inputs, as int4 here), so that int4 would repeat them exactly. Its hidden channels are therefore put into another order
first: the same function, of weights that are on nobody's grid. Loss on the exercises of five kinds, in nats per
supervised token: of the last tenth of the training steps, and held out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.measure import finish, run_worker, show

KINDS = ("arithmetic", "patterns", "comparisons", "format", "code")
BASES = ("int4", "nf4", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="ten steps: shows that it runs, not what it costs")
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=256, help="of a step")
    parser.add_argument("--held-out", type=int, default=200, help="examples measured before and after")
    parser.add_argument("--worker", choices=("lora", *BASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(_train(arguments)))
        return
    steps, held_out = (10, 20) if arguments.quick else (arguments.steps, arguments.held_out)
    common = ["--steps", str(steps), "--tokens", str(arguments.tokens), "--held-out", str(held_out)]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _exercises(folder)
        _permuted(folder / "model")
        results = {
            who: run_worker("benchmarks.qlora", "--worker", who, "--folder", text, *common)
            for who in ("lora", *arguments.bases)
        }
    lora = results["lora"]
    show(
        f"SmolLM2-135M, channels permuted; rank 16, {steps} steps of {arguments.tokens} tokens",
        ["base", "before", "last steps", "held out", "beside float32", "peak MB"],
        [
            ["float32" if who == "lora" else who, f"{result['before']:.3f}", f"{result['last']:.4f}",
             f"{result['held_out']:.4f}", f"{result['last'] / lora['last'] - 1:+.1%}, "
             f"{result['held_out'] / lora['held_out'] - 1:+.1%}", f"{result['peak'] / 1e6:,.0f}"]
            for who, result in results.items()
        ],
    )  # fmt: skip
    ratios = {f"{who}_loss_ratio": results[who]["held_out"] / lora["held_out"] for who in arguments.bases}
    trained = {f"{who}_training_loss_ratio": results[who]["last"] / lora["last"] for who in arguments.bases}
    finish(ratios | trained)


def _exercises(folder: Path) -> None:
    from shoestring.data.synthetic.kinds import make

    rows = [json.dumps(exercise.row()) for kind in KINDS for exercise in make(kind, 1000, 1).train]
    (folder / "exercises.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _permuted(folder: Path) -> None:
    """SmolLM2 with the channels of the residual stream, of each feed-forward and of each head's values reordered."""
    import torch
    from safetensors.torch import load_file, save_file

    from shoestring.models.resolve import find_model

    base = find_model("smollm2-135m")
    shutil.copytree(base, folder)
    weights, config = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
    random = torch.Generator().manual_seed(1)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads

    def order(n: int) -> torch.Tensor:
        return torch.randperm(n, generator=random)

    stream = order(config["hidden_size"])
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        within = [order(width) for _ in range(groups)]
        values = torch.cat([channels + group * width for group, channels in enumerate(within)])
        mixed = torch.cat([within[head * groups // heads] + head * width for head in range(heads)])
        inner = order(config["intermediate_size"])
        rows = {"self_attn.v_proj": values, "mlp.gate_proj": inner, "mlp.up_proj": inner}
        columns = {"self_attn.o_proj": mixed, "mlp.down_proj": inner}
        for name in ("self_attn.q_proj", "self_attn.k_proj", *rows):
            weight = weights[f"{layer}{name}.weight"][:, stream]
            weights[f"{layer}{name}.weight"] = weight[rows[name]] if name in rows else weight
        for name, channels in columns.items():
            weights[f"{layer}{name}.weight"] = weights[f"{layer}{name}.weight"][stream][:, channels]
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weights[name] = weight[stream]
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[name] = weight[:, stream]
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def _train(arguments: argparse.Namespace) -> dict[str, float | None]:
    import shoestring
    from shoestring.train.metrics import read_metrics

    who, folder, steps = arguments.worker, arguments.folder, arguments.steps
    base = {} if who == "lora" else {"adapter.method": "qlora", "adapter.base": who}
    result = shoestring.finetune(
        folder / "model",
        folder / "exercises.jsonl",
        out=str(folder / who),
        overrides={
            "train.steps": steps, "train.batch_tokens": arguments.tokens, "train.evaluate_every": steps,
            "train.evaluate_examples": arguments.held_out, "train.answers": 0, **base,
        },
    )  # fmt: skip
    losses = [line["loss"] for line in read_metrics(result.out / "metrics.jsonl") if "loss" in line]
    last = losses[-max(steps // 10, 1) :]
    return {
        "before": result.loss_before,
        "last": sum(last) / len(last),
        "held_out": result.loss_after,
        "peak": result.peak_memory,
    }


if __name__ == "__main__":
    main()
