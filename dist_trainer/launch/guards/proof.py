"""How two sides that share a secret prove to each other that they know it, before either believes a word.

    guard -> launch   MAGIC, the guard's nonce
    launch -> guard   launch's nonce, its proof
    guard -> launch   its proof, and from here on messages, see `protocol`; or NO_PROOF, when it does not believe launch

A proof is an HMAC under the secret over both nonces, drawn anew for each connection, and over who it is that proves; so
nothing that was ever said can be said again. The keys of what follows are made likewise, one for each direction. Until
the proof is there each side reads a fixed number of bytes, and looks into none of them.
"""

from __future__ import annotations

import os

from dist_trainer.launch.guards.protocol import Channel

MAGIC = b"dtguard2"
NONCE_BYTES = 32
PROOF_BYTES = 32
HELLO_BYTES = len(MAGIC) + NONCE_BYTES
# A guard that goes away without a word has only ended.
NO_PROOF = bytes(PROOF_BYTES)


class StrangerError(Exception):
    """The other side does not know the secret, or does not speak as one that does."""


class GuardProof:
    """The guard's side."""

    def __init__(self, secret: bytes) -> None:
        self._secret, self._nonce = secret, os.urandom(NONCE_BYTES)
        self.hello = MAGIC + self._nonce

    def answer(self, challenge: bytes) -> tuple[bytes, Channel]:
        """What to send back to NONCE_BYTES + PROOF_BYTES of the launching process. Raises StrangerError."""
        nonces = self._nonce + challenge[:NONCE_BYTES]
        if not _is_same(challenge[NONCE_BYTES:], _derive(self._secret, b"launch's proof", nonces)):
            raise StrangerError
        keys = _derive(self._secret, b"guard's messages", nonces), _derive(self._secret, b"launch's messages", nonces)
        return _derive(self._secret, b"guard's proof", nonces), Channel(*keys)


class LaunchProof:
    """The launching process's side, fed with what comes; `channel` is there once the guard has proved itself."""

    def __init__(self, secret: bytes) -> None:
        self.channel: Channel | None = None
        self._secret, self._nonces, self._waiting = secret, b"", b""

    @property
    def has_greeting(self) -> bool:
        return bool(self._nonces)

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What to answer, and what of the bytes is the channel's. Raises StrangerError."""
        self._waiting += data
        answer = b""
        if not self._nonces:
            if self._waiting[: len(MAGIC)] != MAGIC[: len(self._waiting)]:
                raise StrangerError
            if len(self._waiting) < HELLO_BYTES:
                return b"", b""
            nonce = os.urandom(NONCE_BYTES)
            self._nonces = self._waiting[len(MAGIC) : HELLO_BYTES] + nonce
            self._waiting = self._waiting[HELLO_BYTES:]
            answer = nonce + _derive(self._secret, b"launch's proof", self._nonces)
        if len(self._waiting) < PROOF_BYTES:
            return answer, b""
        if not _is_same(self._waiting[:PROOF_BYTES], _derive(self._secret, b"guard's proof", self._nonces)):
            raise StrangerError
        self.channel = Channel(
            _derive(self._secret, b"launch's messages", self._nonces),
            _derive(self._secret, b"guard's messages", self._nonces),
        )
        return answer, self._waiting[PROOF_BYTES:]


def _derive(secret: bytes, purpose: bytes, nonces: bytes) -> bytes:
    # Brings OpenSSL, which need not come in before the launcher is started.
    import hmac

    return hmac.digest(secret, purpose + b"\0" + nonces, "sha256")


def _is_same(told: bytes, expected: bytes) -> bool:
    import hmac

    return hmac.compare_digest(told, expected)
