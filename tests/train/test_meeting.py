"""Ranks come to the place where they meet, and who does not is named."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from typing import Any

import pytest

from dist_trainer.cluster.rank import RankInfo
from dist_trainer.errors import UserError
from dist_trainer.train import meeting
from dist_trainer.train.meeting import _Patience, await_first_rank, meet


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> RankInfo:
    """Rank 0 of 4 that SLURM's variables name, at a port that is free, in a hurry."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 2, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, seconds in {"TIME_LIMIT_S": 2.0, "_MISSING_AFTER_S": 0.5, "_FIRST_MISSING_AFTER_S": 0.5}.items():
        monkeypatch.setattr(meeting, name, seconds)
    return RankInfo(0, 4, 0, 4, "127.0.0.1", port, "slurm")


def test_rank_0_names_the_ranks_that_have_not_come_and_who_says_that_there_are_so_many(
    place: RankInfo, capfd: pytest.CaptureFixture[str]
) -> None:
    other: list[Any] = []
    third = dataclasses.replace(place, rank=2)
    come = threading.Thread(target=lambda: other.append(meet(third, is_launched=False)))
    come.start()
    with pytest.raises(UserError) as raised:
        meet(place, is_launched=False)
    come.join()
    assert len(other) == 1, "the rank that found rank 0 goes on"
    said = capfd.readouterr().err
    assert said.count("dist_trainer: ") == 1, "once within two minutes"
    for text in (said, str(raised.value)):
        assert f"ranks 1 and 3 of 4 have not come to 127.0.0.1:{place.master_port}" in text
        assert "SLURM_STEP_NUM_TASKS" in text
        assert "RANK=0 WORLD_SIZE=1" in text


def test_one_rank_of_a_host_says_that_rank_0_has_not_come(place: RankInfo, capfd: pytest.CaptureFixture[str]) -> None:
    errors: list[UserError] = []

    def come(rank: int) -> None:
        try:
            meet(dataclasses.replace(place, rank=rank), is_launched=False)
        except UserError as error:
            errors.append(error)

    waiting = [threading.Thread(target=come, args=(rank,)) for rank in (1, 2, 3)]
    for one in waiting:
        one.start()
    for one in waiting:
        one.join()
    said = capfd.readouterr().err
    assert said.count("rank 0 has not come to") == 1
    assert "Connection refused" in said
    assert len(errors) == 3


def test_all_that_come_meet_without_a_word(place: RankInfo, capfd: pytest.CaptureFixture[str]) -> None:
    met: list[Any] = []
    ranks = [
        threading.Thread(
            target=lambda rank=rank: met.append(meet(dataclasses.replace(place, rank=rank), is_launched=False))
        )
        for rank in range(4)
    ]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert len(met) == 4
    assert capfd.readouterr().err == ""


def test_under_launch_which_names_hosts_itself_ranks_wait_longer_before_they_speak(place: RankInfo) -> None:
    assert _Patience(place, 60.0).next_word_s == 60.0
    assert _Patience(place).next_word_s == 0.5


def test_a_rank_that_is_first_at_the_meeting_place_goes_on_as_soon_as_rank_0_is_there(place: RankInfo) -> None:
    """torch's store would look again half a second later."""
    opened_s: list[float] = []

    def open_late() -> None:
        time.sleep(0.2)
        with socket.create_server(("127.0.0.1", place.master_port or 0)) as server:
            opened_s.append(time.monotonic())
            server.accept()[0].close()

    late = threading.Thread(target=open_late)
    late.start()
    await_first_rank(place, _Patience(dataclasses.replace(place, rank=1)))
    assert opened_s, "it came back before anybody listened"
    late.join()


def test_nothing_is_said_if_the_last_rank_came_just_now(place: RankInfo, capfd: pytest.CaptureFixture[str]) -> None:
    patience = _Patience(place, 0.0)
    patience.wait(list)
    assert capfd.readouterr().err == ""
    patience.wait(lambda: [2])
    assert "rank 2 of 4 has not come" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([], "some ranks"),
        ([3], "rank 3"),
        ([1, 2], "ranks 1 and 2"),
        (list(range(1, 100)), "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 91 more"),
    ],
)
def test_of_many_ranks_the_first_are_named(ranks: list[int], words: str) -> None:
    assert meeting._named(ranks) == words
