"""The first machine's door: strangers are refused and logged, and whoever is expected comes in."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from shoestring.core.errors import ConfigError
from shoestring.laptops.config import Address, MachinesConfig, load_machines, one_address, parse_address
from shoestring.laptops.crew import Crew
from shoestring.laptops.handshake import Versions, ask, expect
from shoestring.laptops.listener import MOST_UNPROVED, Listener, bound, connected
from shoestring.laptops.wire import HEADER, MAGIC, VERSION, LinkError, Wire
from tests.laptops.ends import TOKEN

HERE = Address("127.0.0.1", 0)
MACHINE = {
    "memory": 8e9, "process": 2e8, "checkpointing": 7e7, "int8_gain": 1.0, "cores": 4, "threads": 4,
    "bandwidth": 2e10, "pace": 1.0,
    "flops": {"float32": 1e11, "bfloat16": 1e11},
}  # fmt: skip


def config(**given) -> MachinesConfig:
    machines = [{"name": "desk"}, {"name": "anna", "memory": "3GB"}]
    return MachinesConfig.model_validate({"machines": machines, "wait": "1s", **given})


def crew(lines: list[str], **given) -> Crew:
    return Crew(config(**given), HERE, TOKEN, MACHINE, lines.append)


def joins(address: Address, name: str = "anna", machine=MACHINE, versions: Versions | None = None) -> Wire:
    wire = connected(address, 5)
    ask(wire, TOKEN)
    wire.send("join", {"name": name, "memory": 2 * 10**9, "machine": machine,
                       "versions": vars(versions or Versions.here())})  # fmt: skip
    return wire


def settled(wire: Wire, until: str = "alive") -> None:
    """Answer the measurement of the link."""
    from shoestring.laptops.link import answer

    while (message := wire.receive(5)).kind != until:
        if message.kind == "ping":
            answer(wire, message.fields)


def refusal(wire: Wire) -> str:
    with pytest.raises(LinkError) as caught:
        expect(wire, "joined", 5)
    return caught.value.message


def test_who_knows_the_token_comes_in_and_is_measured():
    lines: list[str] = []
    here = crew(lines)
    wire = joins(here.address)
    assert expect(wire, "joined", 5).fields == {"wait": 1.0, "first": "desk"}
    settled(wire)
    desk, anna = here.gather(5)
    assert (desk.name, anna.name, anna.memory) == ("desk", "anna", 2 * 10**9)  # the smaller of both that were said
    assert anna.member is not None and 0 < anna.member.link.latency < 0.1 and anna.member.link.bandwidth > 1e7
    assert any("joined    anna" in line for line in lines)
    here.close("over")
    while (message := wire.receive(5)).kind == "alive":
        pass
    assert (message.kind, message.fields) == ("done", {"why": "over"})


def test_strangers_are_refused_and_logged_and_the_friend_still_comes_in():
    lines: list[str] = []
    here = crew(lines)
    for raw in (os.urandom(500).replace(MAGIC, b"NOPE"), HEADER.pack(MAGIC, VERSION, 2**31, 2**31, bytes(32)), b""):
        with socket.create_connection(here.address, 5) as stranger:
            stranger.sendall(raw)
            if not raw:
                stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(5)
            while stranger.recv(2**16):
                pass
    deadline = time.monotonic() + 5
    while here.listener.refused < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert here.listener.refused == 3 and sum(line.startswith("refused   127.0.0.1:") for line in lines) == 3
    wire = joins(here.address)
    assert expect(wire, "joined", 5).fields["first"] == "desk"
    here.close("over")


def test_many_silent_strangers_are_turned_away_and_do_not_fill_the_log():
    lines: list[str] = []
    listener = Listener(HERE, TOKEN, lambda wire, message: None, lines.append)
    strangers = [socket.create_connection(listener.address, 5) for _ in range(MOST_UNPROVED + 40)]
    deadline = time.monotonic() + 5
    while listener.refused < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert listener.refused == 40 and len(lines) == 20 and "too many" in lines[0]
    for stranger in strangers:
        stranger.close()
    listener.close()


def test_who_is_not_expected_or_does_not_fit_hears_why():
    here = crew([])
    assert "no machine 'bert' in this run" in refusal(joins(here.address, "bert"))
    assert "name of letters" in refusal(joins(here.address, "a/b"))
    assert "what it can do" in refusal(joins(here.address, machine={"memory": -1}))
    other = Versions("0.0.1", Versions.here().torch)
    said = refusal(joins(here.address, versions=other))
    assert "0.0.1 on the one that joins" in said and Versions.here().shoestring in said
    here.close("over")


def test_a_second_machine_of_one_name_is_refused_while_the_first_lives():
    here = crew([])
    first = joins(here.address)
    expect(first, "joined", 5)
    settled(first)
    assert "anna is here already" in refusal(joins(here.address))
    first.close()
    deadline = time.monotonic() + 5
    while here.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    again = joins(here.address)
    assert expect(again, "joined", 5).kind == "joined"
    here.close("over")


def test_a_machine_that_does_not_come_is_not_waited_for_longer_than_that():
    here = crew([])
    started = time.monotonic()
    assert [one.name for one in here.gather(0.6)] == ["desk"] and here.missing() == ["anna"]
    assert time.monotonic() - started < 3
    here.close("over")


def test_a_friend_cannot_read_what_was_not_offered(tmp_path):
    (tmp_path / "secret").write_text("secret")
    lines: list[str] = []
    here = crew(lines)
    wire = joins(here.address)
    expect(wire, "joined", 5)
    settled(wire)
    wire.send("read", {"number": 0, "path": "../secret", "begin": 0, "size": 6})
    with pytest.raises(LinkError):
        while wire.receive(5).kind == "alive":
            pass
    here.close("over")


def test_only_the_address_named_is_bound():
    door = bound(HERE)
    assert door.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match="choose another port"):
        bound(Address("127.0.0.1", door.getsockname()[1]))
    door.close()
    with pytest.raises(ConfigError, match="address of this machine"):
        bound(Address("192.0.2.1", 0))


@pytest.mark.parametrize("every", ["0.0.0.0", "[::]", "0"])
def test_all_addresses_at_once_are_refused(every):
    with pytest.raises(ConfigError, match="every address of this machine"):
        one_address(parse_address(f"{every}:29400"))


def test_addresses_are_read_as_they_are_written():
    assert parse_address("192.168.1.10") == ("192.168.1.10", 29400)
    assert parse_address("[fe80::1]:5") == ("fe80::1", 5) and str(Address("fe80::1", 5)) == "[fe80::1]:5"
    for wrong in ("a b:1", "host:99999", "host:", "::1:29400:x", ""):
        with pytest.raises(ValueError, match="expected an address"):
            parse_address(wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("machines: [{name: a}]", "at least 2 items"),
        ("machines: [{name: a}, {name: a}]", "two have the name a"),
        ("machines: [{name: a}, {name: b c}]", "machines.1.name"),
        ("machines: [{name: a, layers: 3}, {name: b}]", "layers of every machine, or of none"),
        ("machines: [{name: a}, {name: b, memory: much}]", "expected a size such as 4GB"),
        ("machines: [{name: a}, {name: b}]\nlisten: 'x y'", "expected an address"),
        ("machines: [{name: a}, {name: b}]\nwaits: 10m", "did you mean wait"),
    ],
)
def test_a_mistake_in_machines_yaml_is_named(tmp_path, text, said):
    file = tmp_path / "machines.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_machines(file)


def test_flags_stand_over_the_file(tmp_path):
    file = tmp_path / "machines.yaml"
    file.write_text("machines:\n  - {name: desk}\n  - {name: anna, memory: 3GB}\n")
    found = load_machines(file, listen="192.168.1.10:5", wait="2m")
    assert (found.listen, found.wait, found.machines[1].memory) == ("192.168.1.10:5", 120.0, 3 * 10**9)
    assert load_machines(file).listen == "127.0.0.1:29400" and threading.active_count() > 0
