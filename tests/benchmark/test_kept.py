from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.benchmark import kept
from dist_trainer.benchmark.measure import Measurement, Spec, resolve_spec
from dist_trainer.config.request import Request
from dist_trainer.errors import RunError


def spec(stage: int, *, rank: int = 0, settings: tuple[str, ...] = ()) -> Spec:
    request = Request(ds="bf16", settings=(f"zero_optimization.stage={stage}", *settings))
    return Spec(request, rank=rank, world_size=2, sequence_length=32)


def test_what_was_measured_is_kept_by_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Spec] = []
    result = Measurement({"init": 1}, 1, 1, 1, 1, 0.1)

    def measure(spec: Spec) -> Measurement:
        asked.append(spec)
        return result

    monkeypatch.setattr(kept, "measure_apart", measure)

    def measured(wanted: Spec) -> Measurement:
        return kept.measured(wanted, resolve_spec(wanted))

    assert measured(spec(2)) == measured(spec(2)) == result
    assert len(asked) == 1
    measured(spec(2, rank=1))
    measured(spec(2, settings=("zero_optimization.overlap_comm=true",)))
    assert len(asked) == 3


def test_a_measurement_that_failed_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(spec: Spec) -> Measurement:
        raise RunError("the process that measured was killed")

    monkeypatch.setattr(kept, "measure_apart", fail)
    with pytest.raises(RunError):
        kept.measured(spec(2), resolve_spec(spec(2)))
    assert kept.find(spec(2), resolve_spec(spec(2))) is None
    assert not list(tmp_path.rglob("*.json"))
