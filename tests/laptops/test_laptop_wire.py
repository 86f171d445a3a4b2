"""Messages between machines: what arrives is what was sent, or is refused."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

import pytest

from shoestring.laptops.handshake import Refused, Versions, admit, ask, check_token, expect, new_token
from shoestring.laptops.wire import HEADER, MAGIC, MOST_BEFORE, MOST_BYTES, MOST_JSON, VERSION, Gone, Late, LinkError
from tests.laptops.ends import TOKEN, both, pair, trusted


def test_what_is_sent_arrives_both_ways_with_its_bytes():
    host, joiner, *_ = trusted()
    content = os.urandom(MOST_BYTES)
    sent = threading.Thread(target=joiner.send, args=["offer", {"a": [1, 2.5, None, "ü"]}, content])
    sent.start()
    message = host.receive(5)
    sent.join(5)
    assert (message.kind, message.fields, message.content) == ("offer", {"a": [1, 2.5, None, "ü"]}, content)
    host.send("alive")
    assert joiner.receive(5).kind == "alive"


def test_the_token_never_passes_and_the_other_one_is_refused():
    host, joiner, one, other = pair()
    heard = bytearray()
    received = joiner._socket.recv

    def listening(count: int) -> bytes:
        part = received(count)
        heard.extend(part)
        return part

    class Listened:
        def __getattr__(self, name):
            return listening if name == "recv" else getattr(other, name)

    joiner._socket = Listened()
    found = both(lambda: admit(host, TOKEN), lambda: ask(joiner, TOKEN + "!"))
    assert all(isinstance(error, Refused) for error in found) and "token" in str(found[1])
    assert TOKEN.encode() not in heard and len(heard) > 2 * HEADER.size


def test_a_host_that_does_not_know_the_token_gets_no_work_done():
    host, joiner, *_ = pair()

    def pretends():
        host.receive(5)
        host.send("challenge", {"nonce": bytes(32).hex()})
        host.receive(5)
        host.send("welcome", {"proof": bytes(32).hex()})

    _, refused = both(pretends, lambda: ask(joiner, TOKEN))
    assert isinstance(refused, Refused) and "does not know the token" in str(refused)


def test_a_proof_of_one_side_is_none_of_the_other():
    """Someone who sends back what he is sent proves nothing."""
    host, stranger, *_ = pair()

    def reflects():
        stranger.send("hello", {"nonce": bytes(32).hex()})
        challenge = stranger.receive(5)
        stranger.send("proof", {"proof": challenge.fields["nonce"]})
        return stranger.receive(5)

    refused, answer = both(lambda: admit(host, TOKEN), reflects)
    assert isinstance(refused, Refused) and answer.kind == "refused"


def test_a_changed_a_repeated_and_a_reflected_message_are_refused():
    def captured(sender, below):
        sender.send("read", {"path": "model/a", "begin": 0})
        below.setblocking(True)
        return below.recv(2**16)

    for change in ("text", "number", "direction"):
        host, joiner, one, other = trusted()
        raw = captured(joiner, one)
        one.setblocking(False)
        if change == "text":
            other.sendall(raw.replace(b"model/a", b"model/b"))
            with pytest.raises(LinkError, match="was changed"):
                host.receive(5)
        elif change == "number":
            other.sendall(raw + raw)
            assert host.receive(5).kind == "read"
            with pytest.raises(LinkError, match="was changed"):
                host.receive(5)
        else:
            one.sendall(raw)
            with pytest.raises(LinkError, match="was changed"):
                joiner.receive(5)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (os.urandom(4096).replace(MAGIC, b"NOPE"), "no message of shoestring"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".ljust(HEADER.size, b"x"), "no message"),
        (HEADER.pack(MAGIC, VERSION + 1, 2, 0, bytes(32)) + b"{}", "version 2"),
        (HEADER.pack(MAGIC, VERSION, 2**32 - 1, 0, bytes(32)), "more than is taken"),
        (HEADER.pack(MAGIC, VERSION, MOST_BEFORE + 1, 0, bytes(32)), "more than is taken"),
        (HEADER.pack(MAGIC, VERSION, 2, 1, bytes(32)), "more than is taken"),
        (HEADER.pack(MAGIC, VERSION, 2, 0, bytes(32)) + b"{]", "no JSON"),
        (HEADER.pack(MAGIC, VERSION, 2, 0, bytes(32)) + b"{}", "does not say what it is"),
        (HEADER.pack(MAGIC, VERSION, 4000, 0, bytes(32)) + b"[" * 4000, "no JSON"),
        (HEADER.pack(MAGIC, VERSION, 16, 0, bytes(32)) + b'{"kind":"hello"}', "nonce"),
        (HEADER.pack(MAGIC, VERSION, 15, 0, bytes(32)) + b'{"kind":"read"}', "was expected"),
    ],
)
def test_a_stranger_is_refused_whatever_it_sends(raw, said):
    host, stranger, *_ = pair()
    stranger._socket.sendall(raw)
    with pytest.raises(LinkError, match=said):
        admit(host, TOKEN)


def test_nothing_larger_than_the_limit_is_taken_from_a_friend_either():
    host, joiner, one, other = trusted()
    other.sendall(HEADER.pack(MAGIC, VERSION, MOST_JSON + 1, 0, bytes(32)))
    with pytest.raises(LinkError, match="more than is taken"):
        host.receive(5)


def test_someone_who_sends_a_byte_now_and_then_does_not_hold_the_door():
    host, stranger, one, other = pair()
    over = threading.Event()

    def drips():
        for byte in HEADER.pack(MAGIC, VERSION, 16, 0, bytes(32)):
            if over.wait(0.05):
                return
            other.sendall(bytes([byte]))

    threading.Thread(target=drips, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(Late):
        host.receive(0.4)
    over.set()
    assert time.monotonic() - started < 1.5


def test_who_takes_nothing_does_not_hold_the_sender():
    host, joiner, *_ = trusted()
    with pytest.raises(Late, match="takes nothing"):
        for _ in range(50):
            host.send("bytes", {}, bytes(MOST_BYTES), seconds=0.3)
    with pytest.raises(Gone):
        host.send("alive")


def test_an_end_that_closes_is_noticed_at_once():
    host, joiner, *_ = trusted()
    joiner.close()
    with pytest.raises(Gone):
        host.receive(5)


def test_ctrl_c_between_two_parts_of_a_message_loses_nothing(monkeypatch):
    host, joiner, one, other = trusted()
    joiner.send("offer", {"number": 7})
    ready, calls = host._ready, []
    received = one.recv

    class Interrupted:
        def __getattr__(self, name):
            if name != "recv":
                return getattr(one, name)

            def recv(count):
                calls.append(count)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return received(min(count, 5))

            return recv

    host._socket = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        host.receive(5)
    assert host.receive(5).fields == {"number": 7} and ready


def test_versions_that_do_not_fit_are_told_with_both():
    here = Versions("0.1.0", "2.13.0+cpu", "little")
    assert here.misfit(Versions("0.1.0", "2.13.1", "little")) is None
    assert here.misfit(Versions("0.2.0", "2.13.0", "little")) == (
        "shoestring is 0.1.0 on the first machine and 0.2.0 on the one that joins"
    )
    said = str(here.misfit(Versions("0.1.0", "2.12.1", "little")))
    assert "torch is 2.13.0+cpu on the first machine and 2.12.1" in said
    assert "byte order" in str(here.misfit(Versions("0.1.0", "2.13.0", "big")))
    with pytest.raises(LinkError, match="not told"):
        Versions.of({"torch": 3})


def test_a_reason_that_is_told_reaches_the_other_end():
    host, joiner, *_ = trusted()
    host.send("refused", {"why": "torch is 2.13 here and 2.11 there"})
    with pytest.raises(Refused, match="2.11 there"):
        expect(joiner, "joined", 5)


def test_tokens_are_long_and_differ():
    from shoestring.core.errors import ConfigError

    tokens = {new_token() for _ in range(50)}
    assert len(tokens) == 50 and all(len(token) == 27 and check_token(token) for token in tokens)
    with pytest.raises(ConfigError, match="could be guessed"):
        check_token("hunter2")


def test_the_header_is_of_one_size():
    assert HEADER.size == 4 + 2 + 4 + 4 + 32 == struct.calcsize("!4sHII32s") and isinstance(socket.AF_INET, int)
