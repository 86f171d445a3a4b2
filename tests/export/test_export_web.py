"""A folder for browsers: what is in it, where it comes from, and, where there is a browser, that it answers."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import io
import json
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, RunError
from shoestring.export.job import export, export_web
from shoestring.export.web import folder as web_folder
from shoestring.export.web import packages as npm
from shoestring.models.builder import build
from shoestring.models.folder import save_model
from shoestring.models.get import get
from tests.export.folders import saved, tokenizer_of
from tests.export.test_export_refusals import MTLA, config

CHROMIUM = shutil.which("chromium")
BROWSER = CHROMIUM and shutil.which("npm") and importlib.util.find_spec("playwright")


@pytest.fixture
def library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for what npm would fetch."""
    folder = tmp_path_factory.mktemp("library")
    for name in npm.FILES:
        (folder / name).write_text(name)
    monkeypatch.setattr(web_folder, "packages", lambda say: folder)
    return folder


def test_the_folder_has_all_that_its_page_names_and_the_model(library: Path, tmp_path: Path) -> None:
    done = export_web(saved(tmp_path / "tiny"), tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "index.html", "lib", "model", "page.css", "page.js", "page.json", "worker.js",
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "lib").iterdir()) == sorted(npm.FILES)
    graph = sorted(path.name for path in (out / "model" / "onnx").iterdir())
    assert graph == ["model_quantized.onnx", "model_quantized.onnx_data"]
    named = re.findall(r'(?:href|src)="([^":,]+)"', (out / "index.html").read_text())
    named += re.findall(r'new Worker\("([^"]+)"', (out / "page.js").read_text())
    named += re.findall(r'(?:from|new URL\()\s*"(?:\./)?(\w[^"]+)"', (out / "worker.js").read_text())
    assert {"page.css", "page.js", "worker.js", "lib/ort.wasm", "lib/transformers.min.js", "page.json"} <= set(named)
    assert all((out / name).is_file() for name in named)
    about = json.loads((out / "page.json").read_text())
    assert (about["name"], about["type"], about["context"], about["chat"]) == ("tiny", "int8", 128, True)
    assert done.bytes == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert done.unchecked[-1] == "the page in a browser" and done.checked


def test_nothing_on_the_page_comes_from_elsewhere(library: Path, tmp_path: Path) -> None:
    export(saved(tmp_path / "tiny"), tmp_path / "out", "web", "int4")
    for name in ("index.html", "page.css", "page.js", "worker.js"):
        written = re.sub(r"^\s*//.*", "", (tmp_path / "out" / name).read_text(), flags=re.MULTILINE)  # no comments
        assert not re.search(r"https?:|//\w", written)
    assert "env.allowRemoteModels = false" in (tmp_path / "out" / "worker.js").read_text()


def test_what_a_graph_cannot_say_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(web_folder, "packages", lambda say: pytest.fail("npm was asked"))
    save_model(build(config(attention=MTLA), seed=1), tmp_path / "model", tokenizer_of())
    assert main(["export", str(tmp_path / "model"), "--to", "web", "--out", str(tmp_path / "out")]) == 2
    assert "temporal latent attention (mtla), which is not written as an ONNX graph" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def archive(folder: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / "some-1.0.tgz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """npm's place is taken; the packages it was asked for."""
    asked: list[str] = []
    about = json.dumps({"dependencies": {"onnxruntime-web": "1.2.3-dev"}}).encode()
    holds = [{"package.json": about}, {}]
    for files, names in zip(holds, (npm._OF_TRANSFORMERS, npm._OF_ONNXRUNTIME), strict=True):
        files.update({inside: name.encode() for name, inside in names.items()})

    def run(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        archive(cwd, holds[len(asked)])
        asked.append(command[2])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(npm.shutil, "which", lambda name: name)
    monkeypatch.setattr(npm.subprocess, "run", run)
    return asked


def test_packages_are_fetched_once_in_the_versions_that_belong_together(fetched: list[str]) -> None:
    place = npm.packages()
    assert fetched == [f"@huggingface/transformers@{npm.TRANSFORMERS_VERSION}", "onnxruntime-web@1.2.3-dev"]
    assert {name: (place / name).read_text() for name in npm.FILES} == {name: name for name in npm.FILES}
    assert npm.packages() == place and len(fetched) == 2


def test_a_package_without_its_file_and_an_npm_that_fails_are_sentences(
    fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(npm._OF_ONNXRUNTIME, "ort.wasm", "dist/renamed.wasm")
    with pytest.raises(RunError, match=r"the npm package some-1.0.tgz has no dist/renamed.wasm"):
        npm.packages()
    failed = subprocess.CompletedProcess([], 1, "", "npm error code ENOTFOUND\nnpm error network no such host\n")
    monkeypatch.setattr(npm.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RunError, match="npm could not fetch @huggingface/.*: npm error network no such host"):
        npm.packages()
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="--to web needs npm"):
        npm.packages()
    assert not list((tmp_path / "cache" / "npm").glob("*"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Where a plain file server shows the folder `out`."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "out"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.long
@pytest.mark.skipif(not BROWSER, reason="no Chromium, npm and Playwright here")
def test_the_page_holds_a_conversation_with_the_network_cut(served: str, tmp_path: Path) -> None:
    from playwright.sync_api import TimeoutError, sync_playwright

    done = export_web(get("smollm2-135m"), tmp_path / "out")
    model = sum(file.stat().st_size for file in (tmp_path / "out" / "model").rglob("*") if file.is_file())
    assert done.bytes - model < 40e6
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic"])
        context = browser.new_context()
        page = context.new_page()
        page.goto(served)
        status = page.locator("#status")
        status.filter(has_text="Ready").wait_for(timeout=120_000)
        context.set_offline(True)
        for number, question in enumerate(["What is the capital of France?", "Tell me a long story about it."]):
            page.fill("#text", question)
            page.press("#text", "Enter")
            page.locator(".assistant").nth(number).filter(has_text=re.compile(r"\w+ \w+")).wait_for(timeout=60_000)
            with contextlib.suppress(TimeoutError):  # it ends by itself, or it is stopped
                page.wait_for_selector("#send:not([disabled])", timeout=20_000)
            if page.is_visible("#stop"):
                page.click("#stop")
            page.wait_for_selector("#send:not([disabled])", timeout=20_000)
            assert re.search(r"\d tokens/s", status.inner_text())
        answers = page.locator(".assistant").all_inner_texts()
        browser.close()
    assert "France" in answers[0] and len(answers) == 2
