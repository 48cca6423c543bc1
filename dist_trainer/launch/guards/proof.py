"""How two sides that share a secret prove to each other that they know it, before either trusts any message.

    guard -> launch   MAGIC, the guard's nonce
    launch -> guard   launch's nonce, launch's proof
    guard -> launch   the guard's proof, then messages, see `protocol`; or NO_PROOF if it does not believe launch

A proof is an HMAC under the secret over both nonces, which are new for each connection, and the prover's role, so that
nothing can be replayed. The keys for the messages are derived in the same way, one for each direction. Until the proof
is complete each side reads a fixed number of bytes and does not parse them.
"""

from __future__ import annotations

import os

from dist_trainer.launch.guards.protocol import Channel

MAGIC = b"dtguard2"
NONCE_BYTES = 32
PROOF_BYTES = 32
HELLO_BYTES = len(MAGIC) + NONCE_BYTES
# Tells a guard that refused from one that closed the connection because it ended.
NO_PROOF = bytes(PROOF_BYTES)


class StrangerError(Exception):
    """The other side does not know the secret, or does not follow the protocol."""


class GuardProof:
    """The guard's side."""

    def __init__(self, secret: bytes) -> None:
        self._secret, self._nonce = secret, os.urandom(NONCE_BYTES)
        self.hello = MAGIC + self._nonce

    def answer(self, challenge: bytes) -> tuple[bytes, Channel]:
        """The answer to launch's NONCE_BYTES + PROOF_BYTES, and the channel. Raises StrangerError."""
        nonces = self._nonce + challenge[:NONCE_BYTES]
        if not _is_same(challenge[NONCE_BYTES:], _derive(self._secret, b"launch's proof", nonces)):
            raise StrangerError
        keys = _derive(self._secret, b"guard's messages", nonces), _derive(self._secret, b"launch's messages", nonces)
        return _derive(self._secret, b"guard's proof", nonces), Channel(*keys)


class LaunchProof:
    """The launching process's side, fed with received bytes; `channel` is set once the guard has proved itself."""

    def __init__(self, secret: bytes) -> None:
        self.channel: Channel | None = None
        self._secret, self._nonces, self._waiting = secret, b"", b""

    @property
    def has_greeting(self) -> bool:
        return bool(self._nonces)

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(what to answer, the rest of `data`, which belongs to the channel). Raises StrangerError."""
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
    # Imported late: it loads OpenSSL, which should not delay the launcher's start.
    import hmac

    return hmac.digest(secret, purpose + b"\0" + nonces, "sha256")


def _is_same(told: bytes, expected: bytes) -> bool:
    import hmac

    return hmac.compare_digest(told, expected)
