"""Parts of a model: fetched by range, checked by hash, resumed; read as the whole file's."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shoestring.core.errors import NetworkError
from shoestring.laptops import pieces
from shoestring.laptops.fetch import fetch, from_folder, from_hub, mark_parts, missing
from shoestring.laptops.join import source_of
from shoestring.laptops.pieces import RemoteFile, is_below, needed, read_files
from shoestring.laptops.share import Shared
from shoestring.laptops.wire import MOST_BYTES, LinkError
from shoestring.models.fingerprint import Fingerprint

LAYERS = 4


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(300, 200) for i in range(LAYERS)}
    tensors |= {"model.embed_tokens.weight": torch.randn(500, 200), "model.norm.weight": torch.randn(200)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "notes.md").write_text("private")
    return folder


def reader(shared: Shared, calls: list[tuple[str, int, int]] | None = None):
    def read(path: str, begin: int, size: int) -> bytes:
        if calls is not None:
            calls.append((path, begin, size))
        return shared.read({"path": path, "begin": begin, "size": size})

    return read


def offered(model: Path, start: int, end: int) -> tuple[Shared, list[RemoteFile]]:
    shared = Shared()
    files = shared.offer_folder(model, "model", lambda tensor: needed(tensor, start, end, LAYERS, tied=False))
    return shared, read_files([file.to_json() for file in files])


def test_a_machine_fetches_its_layers_alone_and_finds_them_where_they_stand(model, tmp_path):
    shared, files = offered(model, 1, 3)
    there = tmp_path / "there"
    done = fetch(files, there, [reader(shared)])
    whole = (model / "model.safetensors").stat().st_size
    assert done == sum(file.bytes for file in files) < whole
    assert sorted(path.name for path in (there / "model").iterdir() if path.name[0] != ".") == [
        "config.json", "model.safetensors",
    ]  # fmt: skip
    part = there / "model" / "model.safetensors"
    assert part.stat().st_size == whole
    with safe_open(part, "pt") as mine, safe_open(model / "model.safetensors", "pt") as theirs:
        for name in theirs.keys():
            same = torch.equal(mine.get_tensor(name), theirs.get_tensor(name))
            assert same == (name.split(".")[2] in ("1", "2") or "norm" in name), name


def test_what_was_cut_off_goes_on_and_another_split_fetches_only_what_is_new(model, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 60_000)
    shared, files = offered(model, 0, 2)
    there, calls = tmp_path / "there", []

    def breaks(path, begin, size):
        if len(calls) == 4:
            raise LinkError("the cable")
        return reader(shared, calls)(path, begin, size)

    with pytest.raises(LinkError, match="the cable"):
        fetch(files, there, [breaks])
    left = missing(files, there)
    assert 0 < left < sum(file.bytes for file in files)
    assert fetch(files, there, [reader(shared)]) == left and missing(files, there) == 0
    more, wider = offered(model, 0, 3)
    layer = 300 * 200 * 4
    assert layer <= missing(wider, there) <= layer + 2 * 60_000
    fetch(wider, there, [reader(more)])
    with safe_open(there / "model" / "model.safetensors", "pt") as mine:
        with safe_open(model / "model.safetensors", "pt") as theirs:
            name = "model.layers.2.mlp.up_proj.weight"
            assert torch.equal(mine.get_tensor(name), theirs.get_tensor(name))


def test_what_has_another_hash_is_not_taken(model, tmp_path):
    shared, files = offered(model, 0, LAYERS)

    def lies(path, begin, size):
        return os.urandom(size)

    with pytest.raises(NetworkError, match="another SHA-256"):
        fetch(files, tmp_path / "there", [lies])
    fetch(files, tmp_path / "there", [lies, reader(shared)])
    there = tmp_path / "there" / "model" / "model.safetensors"
    assert there.read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_folder_of_its_own_is_read_before_the_first_machine_is_asked(model, tmp_path):
    shared, files = offered(model, 0, 2)
    calls: list[tuple[str, int, int]] = []
    own = tmp_path / "own"
    own.mkdir()
    (own / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    fetch(files, tmp_path / "there", [from_folder(own, "model"), reader(shared, calls)])
    assert {path for path, *_ in calls} == {"model/config.json"}


def test_a_file_of_another_content_and_the_same_size_is_fetched_again_each_time(tmp_path):
    source, there = tmp_path / "state.json", tmp_path / "there"
    for text in ("aaaa", "bbbb", "aaaa"):
        source.write_text(text)
        shared = Shared()
        files = [shared.offer(source, "run/state.json")]
        assert missing(files, there) == 4
        fetch(files, there, [reader(shared)])
        assert (there / "run" / "state.json").read_text() == text and missing(files, there) == 0


def test_only_what_was_offered_is_read(model):
    shared, files = offered(model, 1, 2)
    weights = next(file for file in files if file.path.endswith(".safetensors"))
    piece = weights.pieces[-1]
    assert len(shared.read({"path": weights.path, "begin": piece.begin, "size": 10})) == 10
    outside = next(
        begin for begin in range(0, weights.size, 1000)
        if not any(p.begin <= begin and begin + 10 <= p.end for p in weights.pieces)
    )  # fmt: skip
    for fields in (
        {"path": weights.path, "begin": outside, "size": 10},
        {"path": "model/notes.md", "begin": 0, "size": 7},
        {"path": "../model/notes.md", "begin": 0, "size": 7},
        {"path": weights.path, "begin": piece.begin, "size": MOST_BYTES + 1},
        {"path": weights.path, "begin": -1, "size": 10},
        {"path": weights.path, "begin": True, "size": 10},
        {"path": None},
    ):
        with pytest.raises(LinkError):
            shared.read(fields)
    shared.begin(2)
    with pytest.raises(LinkError):
        shared.read({"path": weights.path, "begin": piece.begin, "size": 10})


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../a", "a/../b", "a//b", "a\\b", "C:/a", ".hidden", "a/.x", "", "a/" * 9 + "b", "a\n", "ä", "a."],
)
def test_a_path_that_would_stand_elsewhere_is_refused(path):
    assert not is_below(path)
    with pytest.raises(LinkError):
        RemoteFile.of({"path": path, "size": 1, "pieces": []})


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"path": "a", "size": -1, "pieces": []},
        {"path": "a", "size": 2**60, "pieces": []},
        {"path": "a", "size": 10, "pieces": [[0, 11, "0" * 64]]},
        {"path": "a", "size": 10, "pieces": [[5, 5, "0" * 64]]},
        {"path": "a", "size": 10, "pieces": [[0, 6, "0" * 64], [5, 8, "0" * 64]]},
        {"path": "a", "size": 10, "pieces": [[0, 5, "../../"]]},
        {"path": "a", "size": 10, "pieces": [[0, 5.0, "0" * 64]]},
        {"path": "a", "size": 2**30, "pieces": [[0, 2**30, "0" * 64]]},
        {"path": "a", "size": 10, "pieces": 7},
    ],
)
def test_an_impossible_file_is_refused(value):
    with pytest.raises(LinkError):
        RemoteFile.of(value)
    with pytest.raises(LinkError):
        read_files([value])


def test_two_files_in_one_place_are_refused():
    one = {"path": "a", "size": 1, "pieces": []}
    with pytest.raises(LinkError, match="one place"):
        read_files([one, {**one, "path": "A"}])


def test_ends_are_on_the_machines_that_need_them():
    def held(start: int, end: int, tied: bool) -> set[str]:
        names = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.11.x"]
        return {name for name in names if needed(name, start, end, 12, tied)}

    assert held(0, 4, False) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert held(4, 8, False) == {"model.norm.weight"}
    assert held(8, 12, False) == {"lm_head.weight", "model.norm.weight", "model.layers.11.x"}
    assert "model.embed_tokens.weight" in held(8, 12, True) and "lm_head.weight" in held(0, 4, True)
    assert not needed("model.layers.1.x", 10, 12, 12, False)


def test_a_part_has_the_fingerprint_of_the_whole(model, tmp_path):
    shared, files = offered(model, 0, 1)
    fetch(files, tmp_path / "there", [reader(shared)])
    whole = Fingerprint.of([model / "model.safetensors"])
    part = tmp_path / "there" / "model" / "model.safetensors"
    from shoestring.core.files import sha256_file

    mark_parts(part.parent, {"model.safetensors": sha256_file(model / "model.safetensors")}, "0-1")
    found = Fingerprint.of([part])
    assert found.digest == whole.digest
    assert found.key != whole.key  # what is made of a part, such as a store of its layers, is none of the whole


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub's files: ranges of those in `folder`, or, where it is told to, never anything."""

    folder: Path
    gives = True
    asked: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        Hub.asked.append((self.path, self.headers["Range"]))
        file = self.folder / self.path.rpartition("/")[2]
        if not self.gives or not file.is_file():
            self.send_error(401 if file.is_file() else 404)
            return
        begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        content = file.read_bytes()[begin : end + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def hub(model, monkeypatch):
    import huggingface_hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.folder, Hub.gives, Hub.asked = model, True, []
    address = f"http://127.0.0.1:{server.server_port}"
    plain = huggingface_hub.hf_hub_url
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *a, **b: plain(*a, **b, endpoint=address))
    yield Hub
    server.shutdown()
    server.server_close()


def test_ranges_come_from_the_hub_and_no_other_bytes(model, hub, tmp_path):
    shared, files = offered(model, 1, 3)
    calls: list[tuple[str, int, int]] = []
    there = tmp_path / "there"
    fetch(files, there, [from_hub("mine/model", "v1", "model"), reader(shared, calls)])
    assert not calls and all(path.startswith("/mine/model/resolve/v1/") for path, _ in hub.asked)
    sizes = [int(end) - int(begin) + 1 for _, text in hub.asked for begin, end in [text[6:].split("-")]]
    assert sum(sizes) == sum(file.bytes for file in files) < (model / "model.safetensors").stat().st_size
    with safe_open(there / "model" / "model.safetensors", "pt") as found:
        name = "model.layers.2.mlp.up_proj.weight"
        with safe_open(model / "model.safetensors", "pt") as whole:
            assert torch.equal(found.get_tensor(name), whole.get_tensor(name))


def test_what_the_hub_refuses_or_has_otherwise_comes_from_the_first_machine(model, hub, tmp_path):
    shared, files = offered(model, 0, 2)
    hub.gives = False
    fetch(files, tmp_path / "one", [from_hub("mine/model", None, "model"), reader(shared)])
    assert len(hub.asked) == 1, "it is not asked again"
    hub.gives, hub.folder = True, tmp_path / "other"
    hub.folder.mkdir()
    for file in model.iterdir():
        (hub.folder / file.name).write_bytes(bytes(file.stat().st_size))
    calls: list[tuple[str, int, int]] = []
    fetch(files, tmp_path / "two", [from_hub("mine/model", None, "model"), reader(shared, calls)])
    assert calls and missing(files, tmp_path / "two") == 0


def test_a_name_on_the_hub_is_read_there_unless_it_is_in_the_cache(monkeypatch, model, hub):
    from shoestring.models import get

    monkeypatch.setattr(get, "cached", lambda name: None)
    read = source_of("hf:mine/model@v2")
    assert read("model/config.json", 0, 2) == b"{}"
    assert hub.asked == [("/mine/model/resolve/v2/config.json", "bytes=0-1")]
    assert source_of(model)("model/config.json", 0, 2) == b"{}" and len(hub.asked) == 1
