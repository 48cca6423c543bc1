"""What a rank sets before torch comes in."""

from __future__ import annotations

import os

import pytest

from dist_trainer.train.before_meeting import let_threads_wait_briefly

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOICES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_openmps_threads_spin_briefly_and_then_sleep() -> None:
    let_threads_wait_briefly()
    assert {name: os.environ.get(name) for name in CHOICES if name in os.environ} == {"GOMP_SPINCOUNT": "10000"}


@pytest.mark.parametrize("name", CHOICES)
def test_a_user_who_chose_how_they_wait_has_the_last_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ACTIVE")
    let_threads_wait_briefly()
    assert {name: os.environ.get(name) for name in CHOICES if name in os.environ} == {name: "ACTIVE"}
