"""How a guard notices that the launching process is gone."""

from __future__ import annotations

import socket

import pytest

from dist_trainer.launch.guards import link as link_module
from dist_trainer.launch.guards.link import Link
from dist_trainer.launch.guards.protocol import BEAT_S, SILENCE_S, Channel, encode

HERE, THERE = b"here", b"there"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(link_module, "time", made)
    return made


def linked() -> tuple[Link, socket.socket, Channel]:
    mine, other = socket.socketpair()
    mine.setblocking(False)
    other.settimeout(5)
    return Link(mine, Channel(HERE, THERE)), other, Channel(THERE, HERE)


def test_each_side_hears_the_other() -> None:
    link, other, channel = linked()
    link.send(encode("hello", rank=1))
    assert channel.feed(other.recv(1 << 16)) == [{"kind": "hello", "rank": 1}]
    assert link.receive() == []
    other.sendall(channel.seal(encode("bye")))
    assert link.receive() == [{"kind": "bye"}]
    assert not link.is_lost


def test_it_is_lost_when_the_other_side_closes() -> None:
    link, other, _ = linked()
    other.close()
    assert link.receive() == []
    assert link.is_lost


def test_it_is_lost_when_somebody_between_changes_a_message() -> None:
    link, other, channel = linked()
    sealed = bytearray(channel.seal(encode("stop")))
    sealed[-2] ^= 1
    other.sendall(sealed)
    assert link.receive() == []
    assert link.is_lost


def test_it_is_lost_in_silence_and_not_before(clock: Clock) -> None:
    link, other, channel = linked()
    clock.now_s += SILENCE_S
    link.beat()
    assert not link.is_lost
    other.sendall(channel.seal(encode("beat")))
    link.receive()
    clock.now_s += SILENCE_S
    link.beat()
    assert not link.is_lost
    clock.now_s += 0.1
    link.beat()
    assert link.is_lost


def test_it_says_that_it_is_there_once_a_beat(clock: Clock) -> None:
    link, other, channel = linked()
    for _ in range(4):
        clock.now_s += BEAT_S / 2
        link.beat()
    assert channel.feed(other.recv(1 << 16)) == [{"kind": "beat"}] * 2


def test_what_cannot_be_sent_loses_it_and_nothing_more_is_tried() -> None:
    link, other, _ = linked()
    other.close()
    link.send(encode("beat"))
    assert link.is_lost
    link.send(encode("beat"))
