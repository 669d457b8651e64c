"""A kernel's messages pass as they are: what a websocket carries is what Jupyter Server would have made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jupyter_client.jsonutil import date_default
from jupyter_client.session import Session

from elastic_kernels.gateway.passing import pieces, verify

KEY = b"a key"


def sent(kind: str, content: dict[str, Any], key: bytes = KEY) -> list[bytes]:
    """Return what a kernel sends, without identities."""
    kernel = Session(key=key)
    parent = kernel.msg("execute_request")["header"]
    parts: list[bytes] = kernel.serialize(kernel.msg(kind, content, parent=parent))
    return parts[1:]


@pytest.mark.parametrize(
    "content",
    [
        {"name": "stdout", "text": "plain"},
        {"name": "stdout", "text": 'quotes " and \\ and \n and snow ☃ and \U0001f409'},
        {"data": {"text/plain": "1", "application/json": {"a": [1, 2.5, None, True]}}, "metadata": {}, "transient": {}},
        {},
    ],
)
def test_the_text_is_the_one_that_jupyter_server_writes(content: dict[str, Any]) -> None:
    parts = sent("display_data", content)
    theirs = Session(key=KEY).deserialize(parts)
    expected = json.loads(json.dumps({**theirs, "channel": "iopub"}, default=date_default))
    assert json.loads(b"".join(pieces("iopub", json.loads(parts[1]), parts))) == expected


def test_what_is_no_text_does_not_pass() -> None:
    parts = sent("stream", {"text": "?"})
    parts[4] = b'{"text": "\xff"}'
    with pytest.raises(UnicodeDecodeError):
        pieces("iopub", json.loads(parts[1]), parts)


def test_a_signature_is_verified_and_holds_once() -> None:
    session = Session(key=KEY)
    parts = sent("stream", {"text": "1"})
    verify(session, parts)
    with pytest.raises(ValueError, match="twice"):
        verify(session, parts)
    with pytest.raises(ValueError, match="not signed"):
        verify(session, [b"", *parts[1:]])
    with pytest.raises(ValueError, match="another key"):
        verify(session, sent("stream", {"text": "1"}, key=b"another key"))
    changed = sent("stream", {"text": "1"})
    changed[4] = b'{"text": "2"}'
    with pytest.raises(ValueError, match="another key"):
        verify(session, changed)


def test_an_unsigned_session_takes_all() -> None:
    verify(Session(key=b""), sent("stream", {"text": "1"}, key=b""))
