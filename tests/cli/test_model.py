"""`shoestring model show`: figures of a recipe's model, without torch, settings applied."""

from __future__ import annotations

import json
import subprocess
import sys

from shoestring.cli import main as cli


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
