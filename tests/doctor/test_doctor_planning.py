"""The process that plans for the doctor: what it says of a run that would be refused."""

from __future__ import annotations

import io

import pytest

from dist_trainer.config.request import Request
from dist_trainer.doctor import planning
from dist_trainer.doctor.needs import planning_order


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("data.source=/nope",), "data.source: there is no /nope (make it with `data prepare`)\n"),
        (("zero_optimization.stage=7",), "--set zero_optimization.stage: "),
    ],
)
def test_what_would_be_refused_is_one_line_with_its_key(
    settings: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = planning_order(Request(settings=settings), world_size=1, device="cpu")
    monkeypatch.setattr("sys.stdin", io.StringIO(order if isinstance(order, str) else order.decode()))
    assert planning.main() == 2
    shown = capsys.readouterr().err
    assert shown.startswith(said) and shown.count("\n") == 1
