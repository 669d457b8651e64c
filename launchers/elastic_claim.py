"""What a kernel that waits is told once it is somebody's: a message that only who knows the pod's own key can write, or read.

A key is random, known to the gateways and to one pod, and used for one message: keys for encryption and for signatures are derived
from it, the cipher is the stream of SHAKE-256 under key and nonce, and the signature (HMAC-SHA-256) is over what was encrypted.
Standard library only, and nothing else of ours: the gateway writes with it what the pod reads with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

PORT = 52316
"""Where a kernel that waits listens."""
LONGEST = 4 * 2**20
"""Bytes that a message may have."""
LENGTH = 4
"""Bytes before each message that say how long it is."""
RECEIPT = 32
"""Bytes of the answer to a message."""
_NONCE = 16
_SIGNATURE = 32


def seal(key: bytes, content: bytes) -> bytes:
    """Return the message that holds ``content``, without its length before it."""
    nonce = secrets.token_bytes(_NONCE)
    sealed = nonce + _exclusive_or(content, _stream(key, nonce, len(content)))
    return _sign(key, b"message", sealed) + sealed


def unseal(key: bytes, message: bytes) -> bytes:
    """Return what a message holds. Raises ValueError if it is not of somebody who knows the key."""
    signature, sealed = message[:_SIGNATURE], message[_SIGNATURE:]
    if len(sealed) < _NONCE or not hmac.compare_digest(signature, _sign(key, b"message", sealed)):
        raise ValueError("the message's signature is wrong")
    nonce, content = sealed[:_NONCE], sealed[_NONCE:]
    return _exclusive_or(content, _stream(key, nonce, len(content)))


def receipt(key: bytes, message: bytes) -> bytes:
    """Return the answer to a message: proof that it was read by who knows the key."""
    return _sign(key, b"receipt", message)


def _sign(key: bytes, purpose: bytes, text: bytes) -> bytes:
    derived = hmac.new(key, b"elastic-kernels claim: " + purpose, hashlib.sha256).digest()
    return hmac.new(derived, text, hashlib.sha256).digest()


def _stream(key: bytes, nonce: bytes, length: int) -> bytes:
    derived = hmac.new(key, b"elastic-kernels claim: cipher", hashlib.sha256).digest()
    return hashlib.shake_256(derived + nonce).digest(length)


def _exclusive_or(text: bytes, stream: bytes) -> bytes:
    return (int.from_bytes(text, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(text), "big")
