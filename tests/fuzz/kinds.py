"""Kinds of foreign files: a sound one of each, how it is damaged, and what of the product reads it."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow
import zstandard
from gguf import GGMLQuantizationType, quants
from pyarrow import parquet
from safetensors.torch import load_file

from shoestring.cli.main import main
from shoestring.compression.distill.job import distill
from shoestring.compression.factorize.job import factorize
from shoestring.compression.quantize.job import quantize
from shoestring.core.errors import ShoestringError
from shoestring.data.chat import render_chat
from shoestring.finetuning.job import finetune
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from shoestring.plan.machine_file import save_machine
from shoestring.plan.receipt import Item, Receipt, append
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train.metrics import truncate_metrics
from shoestring.train.plot import write_plot
from shoestring.train.report.write import report
from tests.data import templates
from tests.data.families import QWEN3
from tests.finetuning import tiny
from tests.forecast.machines import described
from tests.fuzz.mutations import (
    HOSTILE,
    changed,
    damaged,
    damaged_json,
    damaged_lines,
    damaged_safetensors,
    damaged_template,
)
from tests.models.gptq_folders import make_folder
from tests.train.tiny import corpus, recipe_text

Damage = Callable[[bytes, random.Random], bytes]


@dataclass
class Kind:
    """files: of `sound`, one of which is damaged, by one of its ways. read: runs in a folder with a copy of `sound`; ->
    the exit code."""

    name: str
    sound: Path
    files: dict[str, list[Damage]]
    read: Callable[[Path, random.Random], int]

    def answer(self, folder: Path, rng: random.Random | None) -> int:
        shutil.copytree(self.sound, folder / "it", symlinks=True)
        if rng is not None:
            name = rng.choice(list(self.files))
            file = folder / "it" / name
            data = rng.choice(self.files[name])(file.read_bytes(), rng)
            file.write_bytes(data)
        return self.read(folder / "it", rng or random.Random(0))


def command(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def call(function: Callable[..., Any], *arguments: Any, **settings: Any) -> int:
    """A function of the library, with the command line's exit codes."""
    try:
        function(*arguments, **settings)
    except ShoestringError as error:
        print(f"error: {error}")
        return 2
    return 0


def make_kinds(root: Path) -> list[Kind]:
    """All kinds, with their sound files under `root`."""
    root.mkdir(parents=True)
    base = tiny.chat_model(root / "base")
    rows = tiny.sums(root / "sums.jsonl")
    generation = {"eos_token_id": [1], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    (base / "generation_config.json").write_text(json.dumps(generation))
    make = [_recipe, _values, _model, _shards, _tokenizer, _adapter, _gguf, _rows, _columns, _text, _template, _state]
    more = [_machine, _trained, _metrics, _prepared, _compressed, _quantized, _of_gptq, _factorized, _distilled]
    return [each(root / each.__name__, base, rows) for each in [*make, *more]]


def _machine(sound: Path, base: Path, rows: Path) -> Kind:
    """A machine that was described, and is planned for."""
    sound.mkdir()
    save_machine(described(), sound / "laptop.yaml")

    def read(it: Path, rng: random.Random) -> int:
        return command("plan", "quickstart-smoke", "--machine", it / "laptop.yaml")

    return Kind("machine", sound, {"laptop.yaml": [damaged]}, read)


def _recipe(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    source = Path(load_pretrain_recipe.__code__.co_filename).parents[1] / "recipes" / "quickstart.yaml"
    (sound / "r.yaml").write_bytes(source.read_bytes())
    (sound / "j.yaml").write_text(json.dumps(load_pretrain_recipe("quickstart").model_dump(mode="json")))
    files = {"r.yaml": [damaged], "j.yaml": [damaged_json]}
    return Kind("recipe", sound, files, lambda it, rng: max(command("recipe", "check", it / name) for name in files))


def _values(sound: Path, base: Path, rows: Path) -> Kind:
    """Settings on the command line."""
    sound.mkdir()
    (sound / "v").write_bytes(b'["a", {"b": 1e3}]')
    keys = ["model.width", "train.steps", "optimizer.betas", "seed", "model.attention", "train.time", "budget.memory"]

    def read(it: Path, rng: random.Random) -> int:
        value = rng.choice([(it / "v").read_bytes().decode(errors="replace"), str(rng.choice(HOSTILE))])
        key = rng.choice([*keys, ".".join(["a"] * 2000), value[:20]])
        return min(call(load_pretrain_recipe, "quickstart-smoke", {key: value}), 2)

    return Kind("value", sound, {"v": [damaged]}, read)


def _model(sound: Path, base: Path, rows: Path) -> Kind:
    shutil.copytree(base, sound)
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "generation_config.json": [damaged_json],
        "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    speak = ("--prompt", "1+1?", "--max-tokens", 2)
    return Kind("model", sound, files, lambda it, rng: command("generate", it, *speak))


def _quantized(sound: Path, base: Path, rows: Path) -> Kind:
    """Weights in few bits, with zero points."""
    quantize(base, sound, group=16, method="rtn", symmetric=False)
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("quantized", sound, files, lambda it, rng: call(load_model, it))


def _factorized(sound: Path, base: Path, rows: Path) -> Kind:
    """Matrices of ranks of their own."""
    factorize(base, sound, "0.95x")
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("factorized", sound, files, lambda it, rng: call(load_model, it))


def _of_gptq(sound: Path, base: Path, rows: Path) -> Kind:
    """Weights in few bits as the libraries of GPTQ write them."""
    make_folder(base, sound, "gptq")
    files: dict[str, list[Damage]] = {
        "config.json": [damaged_json, damaged], "model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("gptq", sound, files, lambda it, rng: call(load_model, it))


def _shards(sound: Path, base: Path, rows: Path) -> Kind:
    """Weights in several files with an index."""
    save_model(load_model(base), sound, max_shard_bytes=20_000)
    index = json.loads((sound / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    files: dict[str, list[Damage]] = {
        "model.safetensors.index.json": [damaged_json, damaged], first: [damaged_safetensors, damaged]
    }  # fmt: skip
    return Kind("shards", sound, files, lambda it, rng: call(load_model, it))


def _tokenizer(sound: Path, base: Path, rows: Path) -> Kind:
    shutil.copytree(base, sound)
    config = json.loads((sound / "tokenizer_config.json").read_text())
    (sound / "chat_template.jinja").write_text(config.pop("chat_template"))
    backend = json.loads((sound / "tokenizer.json").read_text())
    added = {str(each["id"]): {"content": each["content"], "special": True} for each in backend["added_tokens"]}
    (sound / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": added}))
    (sound / "special_tokens_map.json").write_text(
        json.dumps({"additional_special_tokens": list(added), "x": {"content": "y"}})
    )
    files: dict[str, list[Damage]] = {
        "tokenizer.json": [damaged_json, damaged_json, damaged], "tokenizer_config.json": [damaged_json, damaged],
        "special_tokens_map.json": [damaged_json], "chat_template.jinja": [damaged_template],
    }  # fmt: skip

    def read(it: Path, rng: random.Random) -> int:
        return command("chat", it, "--prompt", "1+1? é <|im_end|>", "--max-tokens", 2)

    return Kind("tokenizer", sound, files, read)


def _adapter(sound: Path, base: Path, rows: Path) -> Kind:
    from shoestring.models.adapters import attach

    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=4))
    save_adapter(decoder, sound, base)
    config = json.loads((sound / "adapter_config.json").read_text())
    patterns = {
        "rank_pattern": {r"model\.layers\.0\..*q_proj": 4, "layers.1.mlp.(up|gate)_proj": 4},
        "alpha_pattern": {"v_proj": 8},
    }
    (sound / "adapter_config.json").write_text(json.dumps({**config, **patterns}))
    files: dict[str, list[Damage]] = {
        "adapter_config.json": [damaged_json, damaged_json, damaged],
        "adapter_model.safetensors": [damaged_safetensors, damaged],
    }  # fmt: skip
    return Kind("adapter", sound, files, lambda it, rng: command("generate", it, "--prompt", "1", "--max-tokens", 2))


def _gguf(sound: Path, base: Path, rows: Path) -> Kind:
    """A llama with a byte-level tokenizer, by gguf's own writer."""
    sound.mkdir()
    tensors = load_file(base / "model.safetensors")
    backend = json.loads((base / "tokenizer.json").read_text())
    known = {**backend["model"]["vocab"], **{each["content"]: each["id"] for each in backend["added_tokens"]}}
    tokens = sorted(known, key=lambda token: known[token])
    shape = ModelConfig.model_validate({**tiny.SHAPE, "vocabulary": len(tokens)})
    heads, kv_heads = shape.attention.heads, shape.attention.kv_heads
    writer = gguf.GGUFWriter(sound / "m.gguf", "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(48)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    special = {each["content"] for each in backend["added_tokens"]}
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in backend["model"]["merges"]])
    writer.add_eos_token_id(known[sorted(special)[0]])
    writer.add_chat_template(templates.CHATML)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module not in whole:
            _, _, layer, rest = module.split(".", 3)
            whole[module] = f"blk.{layer}.{names[rest]}"
        values = tensor.numpy()
        kind = GGMLQuantizationType.Q8_0 if values.ndim > 1 and values.shape[1] % 32 == 0 else GGMLQuantizationType.F32
        stored = quants.quantize(np.ascontiguousarray(values), kind) if kind == GGMLQuantizationType.Q8_0 else values
        writer.add_tensor(f"{whole[module]}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Kind(
        "gguf", sound, {"m.gguf": [damaged]}, lambda it, rng: command("get", it / "m.gguf", "--out", it / "out")
    )


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, {"y": "z"}], "n": None}}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "array"}}}},
}
ROWS: list[list[dict[str, Any]]] = [
    [{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], "tools": [TOOL]}] * 3,
    [{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
                   {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "3"},
                   {"role": "assistant", "content": "b", "weight": 1}]}] * 3,
    [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}] * 3,
    [{"instruction": "a", "input": "b", "output": "c"}] * 3,
    [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}],
    [{"text": "a b c"}] * 3,
]  # fmt: skip


def _rows(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    shutil.copytree(base, sound / "model")
    files: dict[str, list[Damage]] = {}
    for number, form in enumerate(ROWS):
        text = "".join(json.dumps(row) + "\n" for row in form)
        (sound / f"{number}.jsonl").write_text(text)
        (sound / f"{number}.json").write_text(json.dumps(form))
        files |= {f"{number}.jsonl": [damaged_lines, damaged], f"{number}.json": [damaged_json]}
    for name, separator in (("t.csv", ","), ("t.tsv", "\t")):
        table = [["question", "answer"], ["a", '"b\n c"'], ["d", "e"]]
        (sound / name).write_text("".join(f"{separator.join(row)}\n" for row in table))
        files[name] = [damaged]

    def read(it: Path, rng: random.Random) -> int:
        # The damaged one is the newest.
        file = max((it / name for name in files), key=lambda file: file.stat().st_mtime_ns)
        return command("data", "show", file, "--model", it / "model", "-n", 1)

    return Kind("rows", sound, files, read)


def _columns(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    shutil.copytree(base, sound / "model")
    for number, form in enumerate((ROWS[0], ROWS[2], ROWS[3])):
        parquet.write_table(pyarrow.Table.from_pylist(form), sound / f"{number}.parquet")
    files: dict[str, list[Damage]] = {
        f"{number}.parquet": [damaged_parquet, damaged_parquet, damaged] for number in range(3)
    }

    def read(it: Path, rng: random.Random) -> int:
        file = max((it / name for name in files), key=lambda file: file.stat().st_mtime_ns)
        return command("data", "show", file, "--model", it / "model", "-n", 1)

    return Kind("columns", sound, files, read)


def damaged_parquet(data: bytes, rng: random.Random) -> bytes:
    """Rows with other values, where they still make columns."""
    rows = changed(parquet.read_table(pyarrow.BufferReader(data)).to_pylist(), rng)
    whole = pyarrow.BufferOutputStream()
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows), whole)
    except (pyarrow.ArrowException, OverflowError, AttributeError, TypeError, ValueError):
        return damaged(data, rng)
    return whole.getvalue().to_pybytes()


def _text(sound: Path, base: Path, rows: Path) -> Kind:
    """What a tokenizer is trained on and shards are made of, in every format."""
    sound.mkdir()
    content = [{"text": f"a line {n}", "id": n} for n in range(30)]
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    (sound / "t.jsonl").write_bytes(lines)
    (sound / "t.txt").write_text("some text\n" * 50)
    (sound / "t.json").write_text(json.dumps(content, indent=1))
    (sound / "t.csv").write_text("id,text\n" + "".join(f'{n},"a ""line"" {n}"\n' for n in range(30)))
    (sound / "t.jsonl.gz").write_bytes(gzip.compress(lines))
    (sound / "t.jsonl.zst").write_bytes(zstandard.compress(lines))
    (sound / "t.txt.zst").write_bytes(zstandard.compress(b"some text\n" * 50))
    parquet.write_table(pyarrow.Table.from_pylist(content), sound / "t.parquet", row_group_size=10)
    files: dict[str, list[Damage]] = {file.name: [damaged] for file in sorted(sound.iterdir())}
    files["t.jsonl"].append(damaged_lines)
    files["t.json"].append(damaged_json)

    def read(it: Path, rng: random.Random) -> int:
        file = max((it / name for name in files), key=lambda file: file.stat().st_mtime_ns)
        return command("prepare", file, "--vocabulary", 280, "--out", it / "out")

    return Kind("text", sound, files, read)


def _template(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    several = {
        "chatml": templates.CHATML,
        "qwen": templates.QWEN,
        "llama": templates.LLAMA,
        "all": templates.EVERYTHING,
    }
    for name, template in {**several, "qwen3": QWEN3}.items():
        (sound / name).write_text(template)
    messages = [{"role": "user", "content": "a <b> é"}, {"role": "assistant", "content": "<think>\nb\n</think>\n\nc"}]

    def read(it: Path, rng: random.Random) -> int:
        file = max(it.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        text = file.read_bytes().decode(errors="replace")
        return call(render_chat, text, messages * rng.choice([1, 1, 50]), [TOOL], bos_token="<s>", eos_token="</s>")

    return Kind("template", sound, {name: [damaged_template] for name in (*several, "qwen3")}, read)


def _state(sound: Path, base: Path, rows: Path) -> Kind:
    """A fine-tuning run, one step before its end."""
    out = sound / "run"
    finetune(
        base,
        rows,
        out=str(out),
        overrides={**tiny.SHORT, "train.steps": 3, "train.checkpoint_every": 2, "train.keep": 2},
    )
    _one_step_back(out, 2)
    return _resumed("finetune", sound, out)


def _trained(sound: Path, base: Path, rows: Path) -> Kind:
    """A pretraining run, one step before its end."""
    sound.mkdir()
    (sound / "recipe.yaml").write_text(recipe_text(corpus(sound.parent / "text"), 4, "log: {every: 1}"))
    out = sound / "run"
    pretrain(sound / "recipe.yaml", out=str(out), overrides={"train.keep": 2})
    _one_step_back(out, 3)
    return _resumed("pretrain", sound, out)


def _distilled(sound: Path, base: Path, rows: Path) -> Kind:
    """A distillation from samples of its teacher, one step before its end."""
    out = sound / "run"
    overrides = {**tiny.SHORT, "train.steps": 3, "train.checkpoint_every": 2, "train.keep": 2}
    del overrides["train.answers"]
    distill(base, base, rows, out=out, cache_samples=4, overrides=overrides)
    _one_step_back(out, 2)
    kind = _resumed("distill", sound, out)
    samples = {"run/.samples/journal.json": [damaged_json, damaged]}
    for file in (out / ".samples").glob("part-*"):
        samples[f"run/.samples/{file.name}"] = [damaged_safetensors, damaged]
    return replace(kind, files={**kind.files, **samples})


def _one_step_back(out: Path, step: int) -> None:
    for folder in out.glob("step-*"):
        if folder.name != f"step-{step:06d}":
            shutil.rmtree(folder)
    os.remove(out / "latest")
    os.symlink(f"step-{step:06d}", out / "latest")


def _resumed(verb: str, sound: Path, out: Path) -> Kind:
    trainer = f"run/{next(out.glob('step-*')).name}/trainer"
    files: dict[str, list[Damage]] = {
        f"{trainer}/state.json": [damaged_json, damaged_json, damaged],
        f"{trainer}/optimizer.safetensors": [damaged_safetensors, damaged],
        f"{trainer}/random.safetensors": [damaged_safetensors, damaged],
        "run/metrics.jsonl": [damaged_lines, damaged],
        "run/recipe.yaml": [damaged],
    }  # fmt: skip
    if verb == "finetune":
        files["run/answers.json"] = [damaged_json]

    def read(it: Path, rng: random.Random) -> int:
        recipe = (it / "run" / "recipe.yaml").read_bytes()  # the run stands elsewhere now
        (it / "run" / "recipe.yaml").write_bytes(recipe.replace(str(out).encode(), str(it / "run").encode()))
        return command(verb, "--resume", it / "run")

    return Kind(f"{verb} run", sound, files, read)


def _metrics(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    numbers = {"tokens": 64, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0}
    held_out = {"tokens": 64, "held_out_loss": 2.0, "bits_per_byte": 1.0, "held_out_tokens": 9}
    lines = [{"step": step, **(held_out if step % 3 == 0 else numbers)} for step in range(1, 20)]
    (sound / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def read(it: Path, rng: random.Random) -> int:
        drawn = call(write_plot, it / "metrics.jsonl", it / "loss.png", "x", 2.0)
        shown = call(report, it)
        return max(drawn, shown, call(truncate_metrics, it / "metrics.jsonl", 5))

    answers = [{"question": "1 + 1?", "expected": "2", "before": "3", "after": "2"}]
    (sound / "answers.json").write_text(json.dumps(answers))
    (sound / "recipe.yaml").write_text("model: {width: 32}\nout: runs/x\n")
    began = {"session": "began", "step": 0, "processor": "x", "cores": 8, "matrix_peak": 1e11}
    predicted = {"predicted": {"memory": 10**9}, "predicted_parts": [["weights", 10**9]]}
    sessions = [{**began, **predicted}, {"session": "ended", "step": 19, "peak_memory": 10**9, "how": "finished"}]
    (sound / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sessions))
    receipt = Receipt("pretrain", "resident", "x | 8 threads", count=3, measured_seconds=1.5, predicted_seconds=1.0)
    for item in (Item("weights", "bytes", 1e9, 1e9), Item("a step", "seconds", 1.0, None)):
        append(replace(receipt, items=(*receipt.items, item)), sound / "receipts.jsonl")
    files: dict[str, list[Damage]] = {
        "metrics.jsonl": [damaged_lines, damaged], "sessions.jsonl": [damaged_lines, damaged],
        "receipts.jsonl": [damaged_lines, damaged],
        "answers.json": [damaged_json, damaged], "recipe.yaml": [damaged],
    }  # fmt: skip
    return Kind("metrics", sound, files, read)


def _prepared(sound: Path, base: Path, rows: Path) -> Kind:
    return _token_shards("prepared", sound, base, compress=False)


def _compressed(sound: Path, base: Path, rows: Path) -> Kind:
    return _token_shards("compressed", sound, base, compress=True)


def _token_shards(name: str, sound: Path, base: Path, compress: bool) -> Kind:
    """Token shards, read by a run's first step."""
    from shoestring.data.loader import PackedLoader
    from shoestring.data.prepare import Settings, prepare
    from shoestring.data.shards import ShardFolder
    from shoestring.data.tokenizer import Tokenizer

    prepare(corpus(sound.parent / f"{name}-text"), Tokenizer.load(base), sound, settings=Settings(compress=compress))

    def open_it(it: Path) -> None:
        next(PackedLoader(ShardFolder(it), "train", 16, 2, seed=1))

    files: dict[str, list[Damage]] = {"index.json": [damaged_json, damaged]}
    for file in sorted(sound.iterdir()):
        if file.name.endswith((".bin", ".bin.zst", ".offsets", ".blocks")):
            files[file.name] = [damaged]
    return Kind(name, sound, files, lambda it, rng: call(open_it, it))
