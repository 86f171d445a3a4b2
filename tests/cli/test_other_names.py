"""What people type who come from other tools leads to what it is called here."""

import importlib

import pytest

from shoestring.cli.main import main
from shoestring.cli.other_names import _FLAGS, OTHER_VERBS
from shoestring.cli.verbs import VERBS
from shoestring.core.config_keys import setting_keys
from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import FinetuneRecipe, finetune_recipe
from shoestring.pretraining.config import PretrainRecipe, load_pretrain_recipe
from shoestring.train.other_names import _GROUPS, OTHER_NAMES

FINETUNE = "finetune smollm2-135m --data mine.jsonl"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (f"{FINETUNE} --lr 1e-4", "did you mean --optimizer.learning_rate?"),
        (f"{FINETUNE} --train_batch_size 8", "did you mean --batch-size?"),
        ("pretrain quickstart --batch-size 8", "did you mean --train.batch_tokens?\n  train.batch_tokens: it counts"),
        (f"{FINETUNE} --per_device_train_batch_size=2", "did you mean --train.microbatch?"),
        (f"{FINETUNE} --lora-r 8", "did you mean --rank?"),
        (f"{FINETUNE} --lora-alpha 16", "did you mean --adapter.alpha?"),
        (f"{FINETUNE} --max-steps 60", "did you mean --steps?"),
        (f"{FINETUNE} --num_train_epochs 3", "did you mean --epochs?"),
        (f"{FINETUNE} --max-seq-length 512", "did you mean --train.sequence_length?"),
        (f"{FINETUNE} --num-gpus 2", "several processes are started by torchrun: torchrun --nproc"),
        (f"{FINETUNE} --fp16", "did you mean --compute?\n  precision.compute: auto, float32, bfloat16"),
        (f"{FINETUNE} --output_dir there", "did you mean --out?"),
        (f"{FINETUNE} --resume_from_checkpoint there", "did you mean --resume?"),
        (f"{FINETUNE} --load_in_4bit", "did you mean --adapter.base?\n  adapter.base: int4, nf4 or int8"),
        (f"{FINETUNE} --gradient_checkpointing", "did you mean --train.activation_checkpointing?"),
        ("finetune --fp16 smollm2-135m --data mine.jsonl", "did you mean --compute?"),
        ("finetune --base_model smollm2-135m --data mine.jsonl", "it stands first, without a flag"),
        ("pretrain quickstart --lr 1", "did you mean --optimizer.learning_rate?"),
        ("pretrain quickstart --epochs 3", "did you mean --train.tokens?\n  train.tokens: pretraining has no epochs"),
        ("pretrain quickstart --n_layer 3", "did you mean --model.layers?"),
        ("pretrain quickstart --max-memory 1GB", "did you mean --memory?"),
        ("recipe show quickstart --max_iters 3", "did you mean --train.steps?"),
        ("generate smollm2-135m --prompt x --max-new-tokens 9", "did you mean --max-tokens?"),
        ("generate smollm2-135m -p x", "did you mean --prompt?"),
        ("generate --model smollm2-135m --prompt x", "it stands first, without a flag: shoestring generate MODEL"),
        ("chat smollm2-135m --system-prompt x", "did you mean --system?"),
        ("chat smollm2-135m --temp 0", "did you mean --temperature?"),
        ("perplexity smollm2-135m --dataset x", "did you mean --data?"),
        ("tokenizer train stdlib --out x --vocab-size 300", "did you mean --vocabulary?"),
        ("merge runs/x --output-dir y", "did you mean --out?"),
        ("quantize smollm2-135m --out x --group_size 128", "did you mean --group?"),
        ("quantize smollm2-135m --out x --dataset stdlib", "did you mean --calibrate?"),
        ("gptq smollm2-135m", "did you mean quantize?"),
        ("sparsify smollm2-135m", "did you mean prune?"),
        ("prune smollm2-135m --out x --dataset stdlib", "did you mean --calibrate?"),
        ("server smollm2-135m", "did you mean serve?"),
        ("train quickstart", "pretrain trains a model from nothing, finetune teaches one your examples"),
        ("eval smollm2-135m", "did you mean evaluate?"),
        ("ppl smollm2-135m", "did you mean perplexity?"),
        ("pull smollm2-135m", "did you mean get?"),
        ("completions bash", "did you mean completion?"),
        ("gguf smollm2-135m", "did you mean export?"),
        ("export smollm2-135m --out x.gguf --outtype q8_0", "did you mean --type?"),
        ("export smollm2-135m --outfile x.gguf", "did you mean --out?"),
    ],
)
def test_a_name_of_another_tool_is_refused_with_ours(capsys, tmp_path, monkeypatch, line, hint):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: unknown ") and f"\n  {hint}" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_so_it_is_in_a_recipe_and_in_python(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\ntrain: {lr: 1}\n")
    with pytest.raises(ConfigError, match=r"unknown setting train.lr\n  did you mean optimizer.learning_rate\?"):
        load_pretrain_recipe(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"unknown setting lora_r .*\n  did you mean adapter.rank\?"):
        finetune_recipe("smollm2-135m", "mine.jsonl", {"lora_r": 8})


def test_every_suggestion_exists_and_no_name_is_listed_twice():
    keys = {*setting_keys(PretrainRecipe), *setting_keys(FinetuneRecipe)}
    assert {key for ours in OTHER_NAMES.values() for key in ours} <= keys
    listed = [name for names, _ in _GROUPS for name in names.split()]
    assert len(listed) == len(set(listed))
    flags = set()
    for row in VERBS:
        app = importlib.import_module(row.module_name).app
        for command in [app, *(app[name] for name in app)]:
            if command.default_command is not None:
                flags |= {name for argument in command.assemble_argument_collection() for name in argument.names}
    assert {flag for ours in _FLAGS.values() for flag in ours} <= flags
    assert not set(OTHER_VERBS) & {row.name for row in VERBS}


def test_finetune_takes_its_model_by_a_flag_too(capsys):
    assert main("finetune --model nowhere --data mine.jsonl --adapter.rnk 3".split()) == 2
    assert "did you mean adapter.rank?" in capsys.readouterr().err
