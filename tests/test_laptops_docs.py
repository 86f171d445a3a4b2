"""docs/laptops.md, followed to the letter on two "machines": network namespaces of this one, joined by a cable.

From installation to a tuned adapter, but for three things: `pip install shoestring` makes what is installed here be
found in the new environment, smollm2-135m is a tiny model in a folder of this name, and doctor's lines are not read.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "laptops.md").read_text(encoding="utf-8")
MACHINES = {f"shoestring-{name}-{os.getpid()}": address for name, address in (("desk", "1.10"), ("anna", "1.11"))}
INSTALL = "pip install shoestring"


def blocks(kind: str) -> list[str]:
    """Of the first section, as they stand."""
    section = PAGE.split("## From installation to a tuned adapter")[1].split("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def cable():
    """Two network namespaces whose eth0 have the addresses of the page."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces want Linux, root and iproute2 (ip netns)")
    one, two = MACHINES
    steps = [("ip", "netns", "add", name) for name in MACHINES]
    steps += [("ip", "link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)]
    for name, address in MACHINES.items():
        steps += [("ip", "-n", name, "addr", "add", f"192.168.{address}/24", "dev", "eth0")]
        steps += [("ip", "-n", name, "link", "set", device, "up") for device in ("lo", "eth0")]
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces cannot be made here: {' '.join(step)}: {done.stderr.strip()}")
        yield
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def installed(folder: Path) -> None:
    """Block one on a machine whose home is `folder`."""
    (made,) = [block for block in blocks("text") if INSTALL in block]
    places = [str(ROOT / "src"), *site.getsitepackages()]
    instead = (
        "python - <<'END'\nimport pathlib, sysconfig, sys\n"
        f"pathlib.Path(sysconfig.get_path('purelib'), 'here.pth').write_text({chr(10).join(places)!r})\n"
        "command = pathlib.Path(sys.prefix, 'bin', 'shoestring')\n"
        "lines = f'#!{sys.executable}', 'from shoestring.cli.main import main', 'raise SystemExit(main())', ''\n"
        "command.write_text('\\n'.join(lines))\n"
        "command.chmod(0o755)\nEND"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", made.replace(INSTALL, instead)], cwd=folder, check=True, env=around(folder, PATH=path)
    )


def around(folder: Path, **more: str) -> dict[str, str]:
    left_out = ("PYTHONPATH", "SHOESTRING_CACHE", "SHOESTRING_TOKEN")
    here = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**here, "HOME": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "160", **more}


class Terminal:
    """A command of the page in the installed environment, on a terminal, as a person sees it."""

    def __init__(self, machine: str, folder: Path, command: str):
        self.said = ""
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            shell = ["bash", "-ec", f". laptops/bin/activate\n{command}"]
            os.execvpe("ip", ["ip", "netns", "exec", machine, *shell], around(folder))

    def until(self, pattern: str, seconds: float) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < deadline and self._read(), self.said
        return found

    def write(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def ends(self, seconds: float) -> int:
        """Its exit code."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.said
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def _read(self) -> bool:
        """False at its end."""
        if not select.select([self.terminal], [], [], 1)[0]:
            return True
        try:
            new = os.read(self.terminal, 65536)
        except OSError:
            return False
        self.said += new.decode("utf-8", "replace")
        return bool(new)


def test_the_page_has_what_is_typed_on_each_machine():
    doctor, first, friend = blocks("sh")
    assert doctor == "shoestring doctor\n" and friend.startswith("shoestring join 192.168.1.10:29400 --name anna")
    assert first.endswith("--over machines.yaml\n") and "listen: 192.168.1.10:29400" in blocks("yaml")[0]


@pytest.mark.long
def test_two_machines_tune_an_adapter_by_the_commands_of_the_page(cable, base, examples, tmp_path):
    desk, anna = tmp_path / "desk", tmp_path / "anna"
    doctor, first, friend = blocks("sh")
    for folder, machine in zip((desk, anna), MACHINES, strict=True):
        folder.mkdir()
        installed(folder)
        assert Terminal(machine, folder, doctor).ends(900) == 0
    (desk / "machines.yaml").write_text(blocks("yaml")[0])
    shutil.copytree(base, desk / "smollm2-135m")
    (desk / "sums").mkdir()
    shutil.copy(examples, desk / "sums" / "train.jsonl")
    there, here = MACHINES
    one = Terminal(there, desk, first)
    token = one.until(r"token     (\S+)", 300)[1]
    shown = one.until(r"join      (shoestring join \S+ --name anna)", 10)[1]
    assert friend.startswith(shown)
    other = Terminal(here, anna, friend)
    other.until("token     ", 120)
    other.write(f"{token}\n")
    assert one.ends(900) == 0, one.said
    assert other.ends(120) == 0, other.said
    assert token not in other.said
    for line in ("does      finetune: layers", "memory    ", "fetches   ", "the head and its loss, with desk"):
        assert line in other.said
    (adapter,) = (desk / "runs").glob("*/best/adapter_model.safetensors")
    assert adapter.stat().st_size > 0 and not (anna / "runs").exists()
