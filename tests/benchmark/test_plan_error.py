from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.benchmark import plan_error
from dist_trainer.benchmark.measure import Measurement
from dist_trainer.benchmark.plan_error import MIDGET, Case, Model, Row
from dist_trainer.cli.benchmark import main
from dist_trainer.errors import UserError
from dist_trainer.memory.plan import Figure, PhasePlan, RankPlan

MITE = Model("mite", "tiny", 32, 2, ("model.num_layers=2", "model.hidden_size=64", "model.vocab_size=512"))

WORDY = Model("wordy", "tiny", 8, 1, ("model.num_layers=2", "model.hidden_size=64", "model.vocab_size=50000"))


def row(planned: int, measured: int, case: Case | None = None) -> Row:
    figure = Figure(planned, planned, planned)
    phases = (PhasePlan("init", 50, {}), PhasePlan("step", planned, {}))
    plan = RankPlan(0, figure, figure, None, "step", {}, phases, 0)
    return Row(case or Case(), plan, Measurement({"init": 100, "step": measured}, measured, 0, 0, 0, 0.0))


def test_the_zero_matrix_has_every_stage_world_bucket_overlap_and_end_of_the_world() -> None:
    cases = list(plan_error.zero_cases())
    plain = [case for case in cases if case.max_live is None]
    assert len(set(cases)) == len(cases)
    # 4 stages x 2 buckets x 2 overlaps x (1 rank of 1, and 2 of each larger world).
    assert len(plain) == 4 * 2 * 2 * (1 + 2 + 2 + 2)
    assert {(case.world_size, case.rank) for case in plain} == {
        (1, 0),
        (2, 0),
        (2, 1),
        (8, 0),
        (8, 7),
        (64, 0),
        (64, 63),
    }
    assert {case.max_live for case in cases if case.stage == 3} == {None, 100_000, 1_000_000_000}


def test_the_precision_matrix_has_both_precisions_checkpointing_accumulation_and_a_model_at_full_size() -> None:
    cases = list(plan_error.precision_cases())
    assert len(cases) == 16
    assert {case.model.config for case in cases} == {"tiny", "small"}
    assert {(case.stage, case.world_size) for case in cases} == {(0, 1)}


def test_a_case_says_what_runs() -> None:
    case = Case(stage=3, world_size=8, rank=7, bucket=500_000_000, overlap=True, max_live=100_000, accumulation=4)
    spec = plan_error.spec_of(case)
    assert (spec.rank, spec.world_size, spec.sequence_length) == (7, 8, MIDGET.sequence_length)
    assert "zero_optimization.stage3_max_live_parameters=100000" in spec.request.settings
    assert "zero_optimization.overlap_comm=true" in spec.request.settings
    assert spec.request.switches.accumulation == 4
    assert "stage 3, rank 7 of 8, bucket 5e8, overlap, max_live 1e5" in case.name


def test_errors_are_fractions_of_what_was_measured() -> None:
    assert row(98, 100).error == pytest.approx(-0.02)
    assert row(103, 100).phase_errors == pytest.approx({"init": -0.5, "step": 0.03})


def test_the_summary_names_the_worst_case() -> None:
    rows = [row(100, 100), row(101, 100), row(95, 100, Case(stage=2, world_size=8))]
    text = plan_error.summary(rows, 0.02)
    assert text.startswith("3 cases: median error 1.00%, largest 5.00%")
    assert "stage 2, rank 0 of 8" in text
    assert text.endswith("1 beyond 2.0%")


def test_a_plan_is_held_against_the_real_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cases = [
        Case(model=MITE, stage=2, world_size=8, rank=7, bucket=100_000),
        # Whose peak is at the embedding that is the last layer's weight too.
        Case(model=WORDY, stage=3, world_size=8, bucket=100_000, accumulation=2),
    ]
    monkeypatch.setattr(plan_error, "zero_cases", lambda *arguments: cases)
    assert main(["plan-error", "--tolerance", "0.02"]) == 0
    assert "0 beyond 2.0%" in capsys.readouterr().out
    assert main(["plan-error", "--tolerance", "0"]) == 1


def test_a_benchmark_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="memory, plan-error"):
        main(["speed"])
    with pytest.raises(UserError, match="fraction"):
        main(["plan-error", "--tolerance", "2%"])
