"""Code that misbehaves is stopped, and nothing outside its folder is touched."""

import os
import time
from pathlib import Path

import pytest

from shoestring.evaluate.suite import sandbox
from shoestring.evaluate.suite.sandbox import passes

needed = pytest.mark.skipif(sandbox.why_not() is not None, reason=str(sandbox.why_not()))


def test_a_system_without_what_it_needs_says_so(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    assert "Linux" in sandbox.why_not()
    with pytest.raises(RuntimeError, match="no sandbox"):
        passes("x = 1", "")
    monkeypatch.setattr(sandbox.sys, "platform", "linux")
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert "unshare" in sandbox.why_not()


@needed
def test_what_is_right_passes_and_what_is_wrong_does_not():
    assert passes("def add(a, b):\n    return a + b", "assert add(2, 3) == 5")
    assert passes("import math, re, json, collections", "assert math.gcd(4, 6) == 2")
    assert not passes("def add(a, b):\n    return a - b", "assert add(2, 3) == 5")
    assert not passes("this is no Python", "")


@needed
@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)", "import os\nos._exit(0)", "print('every assertion held')\nimport os\nos._exit(1)",
        "raise SystemExit", "import os\nos.kill(os.getpid(), 9)",
    ],
)  # fmt: skip
def test_ending_early_is_no_success(program):
    assert not passes(program, "assert False")


@needed
@pytest.mark.parametrize(
    "program",
    [
        "held = bytearray(2 * 10**9)",
        "import socket\nsocket.create_connection(('1.1.1.1', 53), 2)",
        "import socket\nsocket.create_connection(('127.0.0.1', 22), 2)",
        "import os\nfor _ in range(100):\n    if os.fork() == 0:\n        import time\n        time.sleep(60)",
        "import os\nwhile True:\n    os.fork()",
        "open('big', 'wb').write(bytes(5 * 10**6))",
        "for n in range(1000):\n    open(f'{n}', 'w').write('x')",
        "while True:\n    print('x' * 10**6)",
    ],
    ids=["memory", "network", "loopback", "processes", "fork bomb", "a large file", "many files", "output"],
)
def test_what_takes_too_much_is_stopped(program):
    before = time.monotonic()
    assert not passes(program, "")
    assert time.monotonic() - before < 3 * sandbox.SECONDS


@needed
def test_an_endless_loop_is_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    before = time.monotonic()
    assert not passes("while True:\n    pass", "")
    assert not passes("import time\ntime.sleep(60)", "")
    assert time.monotonic() - before < 9


@needed
def test_nothing_outside_can_be_seen_or_changed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    home = str(Path.home())
    assert not passes(f"open({str(secret)!r}).read()", "")
    assert not passes(f"import os\nos.remove({str(secret)!r})", "")
    assert not passes(f"import shutil\nshutil.rmtree({str(tmp_path)!r})", "")
    assert not passes("open('/usr/x', 'w')", "") and not passes("open('/x', 'w')", "")
    assert passes(f"import os\nassert not os.path.exists({home!r}) and sorted(os.listdir('.')) == []", "")
    assert passes(
        "import os\nassert os.environ.keys() <= {'PATH', 'HOME', 'LANG', 'LC_CTYPE', 'PWD', 'OLDPWD', 'SHLVL', '_'}", ""
    )
    assert passes("open('mine', 'w').write('x')", "assert open('mine').read() == 'x'")
    assert secret.read_text() == "mine" and not Path("/usr/x").exists()


@needed
def test_it_cannot_become_more_than_it_is():
    for call in (
        "os.setuid(0)",
        "os.chroot('/')",
        "os.unshare(0x10000000)" if hasattr(os, "unshare") else "os.setuid(0)",
    ):
        assert passes(
            f"import os\ntry:\n    {call}\nexcept OSError:\n    pass\nelse:\n    assert os.getuid() != 0", ""
        ) or not passes(f"import os\n{call}", "")
    assert not passes("import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/scratch', b'tmpfs', 0, None) == 0", "")
