"""`shoestring model show`: figures of a recipe's model, without torch, settings applied."""

from __future__ import annotations

import json
import subprocess
import sys

from shoestring.cli import main as cli
from shoestring.models.adapters import attach
from shoestring.models.folder import load_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from tests.finetuning import tiny


def shown(capsys, *arguments: str) -> str:
    assert cli.main(["model", "show", *arguments]) == 0
    return capsys.readouterr().out


def test_the_table_partitions_the_parameters_and_names_the_costs(capsys):
    out = shown(capsys, "velocity-2b")
    assert "1,713,639,424" in out and "saved as        llama" in out
    for label in ("weights", "cache", "activations", "forward", "a training step"):
        assert f"\n{label}" in out


def test_json_has_whole_numbers_and_settings_are_applied(capsys):
    figures = json.loads(shown(capsys, "compact", "--model.sharing.unique_layers", "6", "--json"))
    assert sum(figures["parameters"].values()) == figures["parameter_count"]
    fewer = json.loads(shown(capsys, "compact", "--json"))["parameters"]["attention"]
    assert figures["parameters"]["attention"] * 2 == fewer
    assert figures["format"] == "shoestring"
    searching = 4  # positions of the one block among six that searches
    assert figures["cache_bytes_per_token"] == (24 * 2 + searching) * 4 * 64 * 4


def test_full_recomputation_is_less_memory_for_more_operations(capsys):
    kept = json.loads(shown(capsys, "elite-112m", "--json"))
    again = json.loads(shown(capsys, "elite-112m", "--train.activation_checkpointing", "full", "--json"))
    assert again["activation_bytes_per_token"] < kept["activation_bytes_per_token"] / 3
    assert again["training_operations_per_token"] > kept["training_operations_per_token"]
    assert kept["repeated_operations_per_token"] == 0


def test_it_does_not_import_torch():
    code = "import sys; from shoestring.cli.main import main; main(['model', 'show', 'quickstart'])"
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0 and b"parameters" in done.stdout


def test_a_model_folder_an_adapter_and_a_run_are_shown(capsys, tmp_path):
    folder = tiny.chat_model(tmp_path / "model")
    figures = json.loads(shown(capsys, str(folder), "--json"))
    assert figures["model"] == str(folder) and figures["sequence_length"] == tiny.SHAPE["context"]
    assert figures["parameter_count"] == load_model(folder).parameter_count()
    decoder = load_model(folder)
    attach(decoder, LoRAConfig(rank=2))
    run = tmp_path / "run"
    save_adapter(decoder, run / "step-000001", folder)
    (run / "latest").symlink_to("step-000001")
    (run / "recipe.yaml").write_text(f"job: finetune\nmodel: {folder}\n")
    for name in (run, run / "step-000001"):
        again = json.loads(shown(capsys, str(name), "--json", "--train.sequence_length", "64"))
        assert again["parameters"] == figures["parameters"] and again["sequence_length"] == 64


def test_a_known_model_is_shown_from_the_cache(capsys, tmp_path, monkeypatch):
    folder = tiny.chat_model(tmp_path / "cache" / "models" / "smollm2-135m")
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    assert f"{load_model(folder).parameter_count():,}" in shown(capsys, "smollm2-135m")


def test_settings_of_a_recipe_are_refused_for_a_model(capsys, tmp_path):
    folder = tiny.chat_model(tmp_path / "model")
    assert cli.main(["model", "show", str(folder), "--model.layers", "3"]) == 2
    assert "model.layers" in capsys.readouterr().err


def test_what_is_neither_a_recipe_nor_a_model_is_one_sentence(capsys):
    for name, close in (("smolm2-135m", "smollm2-135m"), ("quickstrat", "quickstart"), ("zzz", "there are:")):
        assert cli.main(["model", "show", name]) == 2
        told = capsys.readouterr().err
        assert f"no recipe or model '{name}'" in told and close in told
