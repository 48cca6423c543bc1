"""The switches of `benchmark`: what is measured, what is compared, and what a stop leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.benchmark.worth import measuring, telling
from dist_trainer.benchmark.worth.folder import Folder, Settings
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.rounds import Turn
from dist_trainer.cli.main import main

TABLES = {"report.html", "report.md", "results.csv", "results.json"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(telling, "machine_flops_per_s", lambda *_, **__: None)
    monkeypatch.setattr(measuring, "hardware_here", lambda: "cpu")
    return tmp_path


@pytest.fixture
def stopped_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Runs that are made up; the one of this number is interrupted."""

    def set_up(number: int | None) -> None:
        count = iter(range(1000))

        def measure(folder: Folder, turn: Turn, settings: Settings) -> Measurement:
            if next(count) == number:
                raise KeyboardInterrupt
            return Measurement(
                turn.cell, turn.round, turn.place, 5.0, took_s=2.0, num_tokens=64, warm_up_s=(0.2,), step_s=(0.1,)
            )

        monkeypatch.setattr(measuring, "measure", measure)

    return set_up


def test_some_cells_are_measured_and_told(
    stopped_at: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(None)
    assert main(["benchmark", "--only", "bf16,fused", "--repeats", "2", "--results", "out"]) == 0
    assert {path.name for path in Path("out").iterdir()} > TABLES
    assert len(Folder(Path("out")).measurements()) == 10
    said = capsys.readouterr().out
    assert said.startswith("results    out\nround 1 of 2: ")
    assert said.endswith("out/report.html\n           out/report.md\n")


def test_one_that_is_stopped_still_tells_without_measuring_anything_and_says_how_it_goes_on(
    stopped_at: Callable[[int | None], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[str] = []
    monkeypatch.setattr(telling, "machine_flops_per_s", lambda dtype, **_: rates.append(dtype))
    stopped_at(3)
    assert main(["benchmark", "--only", "bf16", "--repeats", "2", "--results", "out"]) == 130
    assert {path.name for path in Path("out").iterdir()} > TABLES
    assert capsys.readouterr().out.endswith("stopped; it goes on with the same switches and --results out\n")
    assert rates == []
    stopped_at(None)
    assert main(["benchmark", "--only", "bf16", "--repeats", "2", "--results", "out"]) == 0
    assert len(Folder(Path("out")).measurements()) == 8
    assert len(rates) == 5


def test_a_stop_while_matrix_products_are_measured_still_tells(
    stopped_at: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(telling, "machine_flops_per_s", stop)
    stopped_at(None)
    assert main(["benchmark", "--only", "bf16", "--results", "out"]) == 130
    assert {path.name for path in Path("out").iterdir()} > TABLES


def test_a_sweep_is_measured_told_and_goes_on_where_it_was_stopped(
    stopped_at: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", "--sweep", "world=1,2,4", "--ds", "zero1", "--repeats", "2", "--results", "out"]
    stopped_at(7)
    assert main(words) == 130
    assert {path.name for path in Path("out").iterdir()} > TABLES
    assert capsys.readouterr().out.endswith("stopped; it goes on with the same switches and --results out\n")
    stopped_at(None)
    assert main(words) == 0
    assert len(Folder(Path("out")).measurements()) == 10
    assert "# How it scales with ranks: tiny" in (Path("out") / "report.md").read_text()


def test_results_are_compared_with_themselves_without_a_regression(
    stopped_at: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(None)
    assert main(["benchmark", "--only", "bf16", "--results", "out"]) == 0
    capsys.readouterr()
    assert main(["benchmark", "--compare", "out", "out"]) == 0
    assert "No regression is shown." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        (["--model-size", "tiny"], "one of the arguments --all --only --compare --sweep --loader is required"),
        (["--only", "fb16"], "there is no such cell"),
        (["--all", "--model-size", "huge"], "no configs file of this name"),
        (["--all", "--steps", "2"], "too few steps"),
        (["--compare", "here", "there"], "here"),
        (["speed"], "benchmark"),
        (["--sweep", "world=0"], "not a number of ranks"),
        (["--sweep", "foo=1"], "world=N,M,..."),
        (["--sweep", "world=1,2", "--nproc-per-node", "2"], "a sweep says its numbers of ranks itself"),
        (["--sweep", "world=1,2", "--ds", "zero9"], "no ds_configs file of this name"),
        (["--sweep", "world=1,2", "--all"], "not allowed with"),
        (["--all", "--ds", "zero1"], "only a sweep takes a DeepSpeed JSON"),
    ],
)
def test_mistakes_are_told(switches: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *switches]) == 2
    assert said in capsys.readouterr().err
