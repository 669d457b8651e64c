"""What a kernel that waits listens to: one message that is signed with its key, whoever else connects."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import elastic_claim
import elastic_waiting
import pytest
from hypothesis import given
from hypothesis import strategies as st

KEY, OTHER = bytes(range(32)), bytes(32)
SECONDS = 20.0


@given(st.binary(max_size=5000))
def test_what_is_sealed_is_read_with_the_key_alone(content: bytes) -> None:
    message = elastic_claim.seal(KEY, content)
    assert elastic_claim.unseal(KEY, message) == content
    assert len(content) < 8 or content not in message
    assert elastic_claim.seal(KEY, content) != message
    with pytest.raises(ValueError, match="signature is wrong"):
        elastic_claim.unseal(OTHER, message)


@given(st.data())
def test_a_message_that_was_changed_is_none(data: st.DataObject) -> None:
    message = bytearray(elastic_claim.seal(KEY, b"content"))
    place = data.draw(st.integers(0, len(message) - 1))
    message[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="signature is wrong"):
        elastic_claim.unseal(KEY, bytes(message))
    with pytest.raises(ValueError, match="signature is wrong"):
        elastic_claim.unseal(KEY, bytes(message[:place]))


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(elastic_claim.LENGTH, "big") + message


@contextmanager
def waiter() -> Iterator[tuple[str, int, list[bytes]]]:
    """Yield where something waits, and the list that gets what it was told."""
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: told.append(elastic_waiting.receive(listener, KEY)), daemon=True)
        thread.start()
        host, port = listener.getsockname()[:2]
        yield host, port, told
        thread.join(SECONDS)
        assert not thread.is_alive()


def connect(place: tuple[str, int, Any]) -> socket.socket:
    return socket.create_connection(place[:2], SECONDS)


def tell(place: tuple[str, int, Any], message: bytes) -> bytes:
    with closing(connect(place)) as connection:
        connection.sendall(framed(message))
        try:
            return connection.recv(elastic_claim.RECEIPT, socket.MSG_WAITALL)
        except ConnectionResetError:
            return b""


def test_the_first_message_with_the_key_is_taken_and_answered() -> None:
    with waiter() as place:
        message = elastic_claim.seal(KEY, b"for ana")
        assert tell(place, message) == elastic_claim.receipt(KEY, message)
    assert place[2] == [b"for ana"]


@pytest.mark.parametrize(
    "wrong",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 100000, elastic_claim.seal(OTHER, b"for eve"), elastic_claim.seal(KEY, b"for eve")[:-1]],
    ids=["nothing", "http", "much", "another key", "cut"],
)
def test_what_is_not_signed_gets_no_answer(wrong: bytes) -> None:
    with waiter() as place:
        assert tell(place, wrong) == b""
        message = elastic_claim.seal(KEY, b"for ana")
        assert tell(place, message) == elastic_claim.receipt(KEY, message)
    assert place[2] == [b"for ana"]


def test_nobody_keeps_others_from_telling() -> None:
    with waiter() as place:
        # more than are served at a time, none of which says anything or ends what it says
        silent = [connect(place) for _ in range(100)]
        for connection in silent[::2]:
            connection.sendall(framed(b"x" * 1000)[:500])
        with closing(connect(place)) as huge:
            huge.sendall((2**32 - 1).to_bytes(4, "big") + b"x")
            message = elastic_claim.seal(KEY, b"for ana")
            begin = time.monotonic()
            assert tell(place, message) == elastic_claim.receipt(KEY, message)
            # before any of them has had its time
            assert time.monotonic() - begin < elastic_waiting._SECONDS
        for connection in silent:
            connection.close()
    assert place[2] == [b"for ana"]


def test_a_message_may_come_in_pieces() -> None:
    with waiter() as place, closing(connect(place)) as connection:
        message = elastic_claim.seal(KEY, b"for ana")
        for part in (framed(message)[:2], framed(message)[2:30], framed(message)[30:]):
            connection.sendall(part)
            time.sleep(0.05)
        assert connection.recv(elastic_claim.RECEIPT, socket.MSG_WAITALL) == elastic_claim.receipt(KEY, message)
    assert place[2] == [b"for ana"]


def test_it_becomes_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A", "B", "C", "POD"):
        monkeypatch.setenv(name, "of before")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "claim.json"
    file.write_text(json.dumps({"ip": "127.0.0.1", "key": KEY.hex(), "claim_port": port}))
    environment = [("POD", None), ("A", "$(POD) $(C) $(HOME) $$(POD)"), ("B", "$(A)"), ("C", "x")]
    message = elastic_claim.seal(KEY, json.dumps({"connection": {"ip": "0.0.0.0", "key": "ana's"}, "environment": environment}).encode())
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(elastic_waiting.wait(str(file))), daemon=True)
    thread.start()
    end = time.monotonic() + SECONDS
    while True:
        try:
            assert tell(("127.0.0.1", port, None), message) == elastic_claim.receipt(KEY, message)
            break
        except ConnectionRefusedError:
            assert time.monotonic() < end
    thread.join(SECONDS)
    # as a kubelet expands them: what came before, and nothing of the image's
    assert (os.environ["A"], os.environ["B"], os.environ["C"]) == ("of before $(C) $(HOME) $(POD)", "of before $(C) $(HOME) $(POD)", "x")
    assert os.environ["POD"] == "of before"
    (written,) = map(Path, found)
    assert written.parent == tmp_path
    assert written.stat().st_mode & 0o777 == 0o600
    assert json.loads(written.read_text()) == {"ip": "127.0.0.1", "key": "ana's"}
    # and nobody can tell it again
    with pytest.raises(ConnectionRefusedError):
        tell(("127.0.0.1", port, None), message)
