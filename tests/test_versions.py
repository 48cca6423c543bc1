"""The versions that records and checkpoints say."""

from __future__ import annotations

import importlib.metadata

import pytest

from dist_trainer import __version__
from dist_trainer.versions import versions


def test_they_are_those_of_the_program_and_of_what_computes() -> None:
    found = versions()
    assert found["dist_trainer"] == __version__
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["deepspeed"] == importlib.metadata.version("deepspeed")


def test_a_login_node_may_lack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert versions() == {"dist_trainer": __version__}
