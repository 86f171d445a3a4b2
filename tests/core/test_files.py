"""Files and folders appear whole or not at all, also when the writer is killed or the disk is full."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shoestring.core import files, temporaries
from shoestring.core.errors import RunError
from shoestring.core.files import (
    atomic_folder,
    atomic_write,
    cache_dir,
    exclusive,
    hold,
    recover_folder,
    remove_stale,
    replace_symlink_or_pointer,
    resolve_pointer,
    sha256_file,
)

# Replaces a folder of 20 files that all hold one number, over and over, with the next number.
WRITER = """
import sys
import threading
from pathlib import Path
from shoestring.core import files
if sys.argv[2] == "two-step":
    files._exchange = lambda first, second: False
folder, number = Path(sys.argv[1]), 0
while True:
    number += 1
    with files.atomic_folder(folder, replace=True) as new:
        for i in range(20):
            (new / str(i)).write_text(str(number))
    if number == 2:
        print("ready", flush=True)
"""


def numbers(folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted(map(str, range(20)))
    return {p.read_text() for p in folder.iterdir()}


def kill_a_writer(folder, way, delay):
    with subprocess.Popen([sys.executable, "-c", WRITER, folder, way], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("way", ["exchange", "two-step"])
def test_a_replaced_folder_is_whole_after_kill_at_random_instants(tmp_path, way):
    instants = random.Random(7)
    folder = tmp_path / "model"
    for _ in range(3):
        kill_a_writer(folder, way, instants.uniform(0.0, 0.05))
        if way == "two-step":
            recover_folder(folder)
        assert len(numbers(folder)) == 1
    with atomic_folder(folder, replace=True) as new:
        (new / "a").write_text("b")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # what the killed writers left is gone


@pytest.mark.long
@pytest.mark.parametrize("way", ["exchange", "two-step"])
def test_a_replaced_folder_is_whole_after_many_kills(tmp_path, way):
    instants = random.Random(8)
    folder = tmp_path / "model"
    for _ in range(40):
        kill_a_writer(folder, way, instants.uniform(0.0, 0.1))
        recover_folder(folder)
        assert len(numbers(folder)) == 1


def test_writing_in_place_would_be_caught_by_the_kill_test(tmp_path):
    for i in range(20):
        (tmp_path / str(i)).write_text("1" if i < 9 else "2")  # as a writer without care would leave it
    assert len(numbers(tmp_path)) == 2


def test_the_old_folder_comes_back_when_the_process_died_between_two_renames(tmp_path):
    folder, dead = tmp_path / "model", 2**22 + 1
    aside = tmp_path / f".model.{temporaries.host()}-{dead}-0123abcd.old"
    aside.mkdir()
    (aside / "weights").write_text("old")
    remove_stale(folder)  # must not delete the only copy
    recover_folder(folder)
    assert (folder / "weights").read_text() == "old" and not aside.exists()


def test_a_link_to_a_folder_is_replaced_and_what_it_named_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x").write_text("old")
    (tmp_path / "near").symlink_to("far")
    with atomic_folder(tmp_path / "near", replace=True) as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "far" / "x").read_text() == "old" and (tmp_path / "near" / "x").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["far", "near"]


def test_temporaries_of_living_processes_are_left_alone(tmp_path):
    living = tmp_path / f".a.{temporaries.host()}-{os.getppid()}-0123abcd.tmp"
    dead = tmp_path / f".a.{temporaries.host()}-{2**22 + 1}-0123abcd.tmp"
    other_name = tmp_path / f".ab.{temporaries.host()}-{2**22 + 1}-0123abcd.tmp"
    for path in (living, dead, other_name):
        path.write_text("")
    with atomic_write(tmp_path / "a") as file:
        file.write("x")
    assert living.exists() and other_name.exists() and not dead.exists()


def test_an_exception_leaves_file_and_folder_as_they_were(tmp_path):
    (tmp_path / "f").write_text("old")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "f") as file:
        file.write("new")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "d", replace=True) as folder:
        (folder / "x").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "f").read_text() == (tmp_path / "d" / "x").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def test_a_folder_with_content_is_not_replaced_unasked(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("x")
    with pytest.raises(RunError, match="exists and is not empty"), atomic_folder(tmp_path / "d"):
        raise AssertionError("must be refused before any work")
    assert (tmp_path / "d" / "mine").read_text() == "x"


def test_the_folder_one_stands_in_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="you are in it"), atomic_folder(".", replace=True):
        raise AssertionError("must be refused before any work")


def test_a_full_disk_is_one_sentence_and_nothing_half_written(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for manager in (atomic_write(tmp_path / "f"), atomic_folder(tmp_path / "d")):
        with pytest.raises(RunError, match="full: this was not written; what was written before"), manager as target:
            if isinstance(target, Path):
                (target / "x").write_text("1")
            else:
                target.write("1")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_reported_by_safetensors_is_the_same_sentence(tmp_path):
    class SafetensorError(Exception):
        pass

    with pytest.raises(RunError, match="the disk is full"), atomic_folder(tmp_path / "d"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_really_full_device_is_one_sentence(tmp_path):
    if not Path("/dev/full").exists():
        return  # Linux only; the monkeypatched test above runs everywhere
    with pytest.raises(RunError, match="the disk is full"), atomic_folder(tmp_path / "d"):
        with open("/dev/full", "w") as file:
            file.write("x")


def test_a_read_only_disk_is_one_sentence(tmp_path, monkeypatch):
    def read_only(*arguments, **named):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))

    monkeypatch.setattr(files.Path, "mkdir", read_only)
    with pytest.raises(RunError, match="the disk is read-only"), atomic_folder(tmp_path / "a" / "d"):
        raise AssertionError("must be refused before any work")


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (lambda here: here / "file" / "out", "a file stands in the way"),
        (lambda here: here / ("n" * 300), "File name too long"),
        (lambda here: here / ("n" * 240), "File name too long"),  # its temporary sibling is longer
        (lambda here: here / ("n" * 300) / "out", "File name too long"),
        (lambda here: here / os.fsdecode(b"a\xff"), "not UTF-8"),
    ],
    ids=["below a file", "long", "rather long", "long above", "bytes"],
)
def test_a_place_that_cannot_be_is_one_sentence_that_names_it(tmp_path, place, sentence):
    (tmp_path / "file").write_text("x")
    for writing in (atomic_write, atomic_folder):
        with pytest.raises(RunError, match=sentence) as caught, writing(place(tmp_path)):
            raise AssertionError("must be refused before any work")
        assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_forbidden_input_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(PermissionError), atomic_write(tmp_path / "f"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/input.txt")


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "f").write_text("x")
    for path in (tmp_path / "f", tmp_path / "f" / "d"):
        with pytest.raises(RunError), atomic_folder(path, replace=True):
            raise AssertionError("must be refused before any work")


def test_latest_moves_atomically_and_resolves(tmp_path):
    for name in ("step-1", "step-2"):
        (tmp_path / name).mkdir()
        replace_symlink_or_pointer(tmp_path / "latest", name)
    assert resolve_pointer(tmp_path / "latest") == tmp_path / "step-2"


def test_latest_is_a_text_file_where_symlinks_are_refused(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(files.os, "symlink", refuse)
    replace_symlink_or_pointer(tmp_path / "latest", "step-1")
    assert (tmp_path / "latest").read_text() == "step-1\n"
    assert resolve_pointer(tmp_path / "latest") == tmp_path / "step-1"


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own" and cache_dir().is_dir()
    monkeypatch.delenv("SHOESTRING_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "shoestring"


def test_a_lock_is_held_until_it_is_released_or_its_owner_dies(tmp_path):
    file = tmp_path / "lock"
    code = "import sys, time; from shoestring.core.files import hold; held = hold(sys.argv[1]); print(held, flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(60)", str(file)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and "Held" in owner.stdout.readline()
    assert hold(file) is None
    owner.kill()
    owner.wait()
    held = hold(file)
    assert held is not None and hold(file) is None
    held.release()
    again = hold(file)
    assert again is not None
    again.release()


def test_whoever_wants_a_lock_that_another_has_waits_for_as_long_as_it_takes(tmp_path):
    held, entered = hold(tmp_path / "lock"), threading.Event()
    assert held is not None

    def enter():
        with exclusive(tmp_path / "lock"):
            entered.set()

    threading.Thread(target=enter, daemon=True).start()
    assert not entered.wait(0.2)
    held.release()
    assert entered.wait(5)
