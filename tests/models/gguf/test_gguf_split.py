"""A model in several GGUF files is read from any of them; a part without the others says which it is."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from safetensors.numpy import load_file

from shoestring.core.errors import ModelFileError
from shoestring.models.get import get
from shoestring.models.gguf.convert import convert
from shoestring.models.gguf.reader import GGUFFile
from shoestring.models.gguf.split import model_name, part_paths
from tests.models.gguf.gguf_files import tiny_model, write_gguf


def split(whole: Path, folder: Path, parts: int = 3, **metadata: int) -> list[Path]:
    """As llama.cpp's gguf-split does: all metadata in the first part, tensors in turn."""
    folder.mkdir(exist_ok=True)
    with GGUFFile(whole) as file:
        tensors = [(info, bytes(file.raw(info))) for info in file.tensors.values()]
    reader = gguf.GGUFReader(whole)
    paths = []
    for number in range(parts):
        path = folder / f"tiny-{number + 1:05d}-of-{parts:05d}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", metadata.get("no", number))
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", metadata.get("tensors", len(tensors)))
        if number == 0:
            for field in reader.fields.values():
                if field.name.startswith(("GGUF.", "general.architecture")):
                    continue
                inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        own = tensors[number::parts]
        for info, raw in own:
            shape = tuple(info.shape)
            writer.add_tensor_info(info.name, shape, "float32", len(raw), raw_dtype=info.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with open(path, "ab") as stream:
            for _, raw in own:
                stream.write(b"\0" * (-stream.tell() % 32) + raw)
            stream.write(b"\0" * (-stream.tell() % 32))
        paths.append(path)
    return paths


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "whole.gguf", tiny_model("llama"))


@pytest.mark.parametrize("given", [0, 1, 2])
def test_every_part_leads_to_the_whole_model(given: int, whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path / "parts")
    expected = load_file(convert(whole, tmp_path / "a") / "model.safetensors")
    found = load_file(convert(parts[given], tmp_path / "b") / "model.safetensors")
    assert expected.keys() == found.keys() and len(expected) > 15
    assert all((expected[name] == found[name]).all() for name in expected)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_all_parts_are_one_model_in_the_cache_until_one_changes(whole, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    parts = split(whole, tmp_path / "parts", 2)
    first = get(str(parts[0]))
    assert get(str(parts[1])) == first and first.name.startswith("tiny-")
    split(write_gguf(tmp_path / "other.gguf", tiny_model("llama", seed=1)), tmp_path / "parts", 2)
    assert get(str(parts[1])) != first


@pytest.mark.parametrize("given", [0, 1])
def test_a_part_alone_says_which_one_it_is_and_which_is_missing(given: int, whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path / "parts", 2)
    parts[1 - given].unlink()
    said = f"this is part {given + 1} of 2, and {parts[1 - given].name} is not beside it"
    with pytest.raises(ModelFileError, match=said):
        convert(parts[given], tmp_path / "out")


def test_parts_that_do_not_belong_together_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="says that it is the same one"):
        convert(split(whole, tmp_path / "parts", 2, no=0)[0], tmp_path / "out")
    with pytest.raises(ModelFileError, match=r"the parts hold \d+ tensors, and split.tensors.count is 5"):
        convert(split(whole, tmp_path / "parts", 2, tensors=5)[0], tmp_path / "out")
    parts = split(whole, tmp_path / "parts", 2)
    parts[0].rename(parts[0].with_name("renamed.gguf"))
    with pytest.raises(ModelFileError, match="its name does not say so"):
        convert(parts[0].with_name("renamed.gguf"), tmp_path / "out")


def test_names_of_parts() -> None:
    path = Path("a") / "m-00002-of-00003.gguf"
    assert [part.name for part in part_paths(path)] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert model_name(path) == "m" and model_name(Path("x.gguf")) == "x"
    for name in ("x.gguf", "m-00001-of-00000.gguf", "m-1-of-2.gguf"):
        assert part_paths(Path(name)) == [Path(name)]
