from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.doctor.facts import ClockReading, SystemFacts
from dist_trainer.doctor.session import Reply, Route, Session, read, why_it_ended

REAL = (sys.executable, "-m", "dist_trainer.doctor.host")
LIMIT_S = 60.0


def talk(routes: list[Route], conversation: Callable[[Session], Awaitable[Any]], **options: Any) -> Any:
    async def whole() -> Any:
        session = Session(routes, **options)
        try:
            return await conversation(session)
        finally:
            await session.close()

    return asyncio.run(whole())


def real(name: str) -> Route:
    return Route((name,), (*REAL, name))


def shell(name: str, script: str) -> Route:
    return Route((name,), ("/bin/sh", "-c", script))


def test_every_host_answers_for_itself() -> None:
    async def conversation(session: Session) -> tuple[dict[str, Reply], dict[str, Reply]]:
        first = await session.ask("clock", timeout_s=LIMIT_S)
        return first, await session.ask("clock", timeout_s=LIMIT_S, only=["b"])

    first, second = talk([real("a"), real("b")], conversation)
    assert (list(first), list(second)) == (["a", "b"], ["b"])
    for reply in (*first.values(), *second.values()):
        assert reply.value is not None
        assert reply.sent_s <= read(ClockReading, reply.value).time_s <= reply.received_s


def test_one_host_that_fails_hinders_no_other_and_is_not_asked_again() -> None:
    async def conversation(session: Session) -> tuple[dict[str, Reply], dict[str, Reply]]:
        return await session.ask("clock", timeout_s=LIMIT_S), await session.ask("clock", timeout_s=LIMIT_S)

    first, second = talk([real("a"), shell("b", "echo oh no >&2; exit 3")], conversation)
    silence = first["b"].silence
    assert silence is not None
    assert (silence.words, silence.status) == ("the probe ended with status 3: oh no", 3)
    assert first["a"].value is not None
    assert list(second) == ["a"]


def test_silence_ends_at_the_time_limit() -> None:
    async def conversation(session: Session) -> dict[str, Reply]:
        return await session.ask("clock", timeout_s=0.5)

    silence = talk([shell("a", "exec cat >/dev/null")], conversation)["a"].silence
    assert silence is not None and silence.words == "no answer within 0.5 s"


def test_a_question_that_a_host_cannot_answer_does_not_end_the_talk() -> None:
    async def conversation(session: Session) -> tuple[dict[str, Reply], dict[str, Reply]]:
        cannot = await session.ask("look", timeout_s=LIMIT_S, folder="a\0b", token="t", hosts=["b"])
        return cannot, await session.ask("clock", timeout_s=LIMIT_S)

    cannot, can = talk([real("a")], conversation)
    assert cannot["a"].silence is not None and "null" in cannot["a"].silence.words
    assert can["a"].value is not None


def test_what_a_shell_prints_is_noise_and_no_answer() -> None:
    async def conversation(session: Session) -> tuple[dict[str, Reply], dict[str, tuple[str, ...]]]:
        return await session.ask("clock", timeout_s=LIMIT_S), session.noise

    route = shell("a", f"echo Welcome!; exec {' '.join(REAL)} a")
    replies, noise = talk([route, real("b")], conversation)
    assert replies["a"].value is not None
    assert noise == {"a": ("Welcome!",)}


def test_a_program_that_is_not_there() -> None:
    async def conversation(session: Session) -> dict[str, Reply]:
        return await session.ask("clock", timeout_s=LIMIT_S)

    silence = talk([Route(("a",), ("no-such-program",))], conversation)["a"].silence
    assert silence is not None and silence.words.startswith("no-such-program cannot be started here")


def test_connections_are_made_so_many_at_a_time(tmp_path: Path) -> None:
    async def conversation(session: Session) -> dict[str, Reply]:
        return await session.ask("clock", timeout_s=LIMIT_S)

    # Each says when it is being made and when it has answered: never two at once.
    log = tmp_path / "log"
    script = f"echo in >>{log}; read line; sleep 0.1; echo out >>{log}; exit 1"
    talk([shell(name, script) for name in "abc"], conversation, fan_out=1)
    assert log.read_text().split() == ["in", "out"] * 3


def test_one_connection_may_lead_to_many_hosts() -> None:
    async def conversation(session: Session) -> dict[str, Reply]:
        return await session.ask("clock", timeout_s=LIMIT_S)

    # As srun does: each line to every task, and their lines mixed.
    both = f"exec 3>&1; tee >({' '.join(REAL)} b >&3) | {' '.join(REAL)} a"
    replies = talk([Route(("a", "b"), ("bash", "-c", both))], conversation)
    assert [host for host, reply in replies.items() if reply.value is not None] == ["a", "b"]


@pytest.mark.parametrize(
    ("program", "status", "stderr", "words"),
    [
        ("ssh", 255, "ssh: connect to host a port 22: Connection refused\n", "the host answers, and no sshd listens"),
        ("ssh", 1, "Traceback\nValueError: x\n", "the probe ended with status 1: ValueError: x"),
        ("srun", 1, "srun: error: Unable to create step\n", "the probe ended with status 1: srun: error: Unable"),
        ("/bin/sh", 255, "", "the probe ended with status 255"),
    ],
)
def test_why_a_connection_ended(program: str, status: int, stderr: str, words: str) -> None:
    assert why_it_ended(program, status, stderr).words.startswith(words)


def test_an_answer_of_another_version_is_read_as_far_as_it_goes() -> None:
    assert read(ClockReading, {"time_s": 1.0, "new": 2}) == ClockReading(1.0)
    with pytest.raises(ValueError, match="python"):
        read(SystemFacts, {"hostname": "a"})
