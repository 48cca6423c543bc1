from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dist_trainer.benchmark import kept, memory_table
from dist_trainer.benchmark.measure import Measurement, Spec
from dist_trainer.benchmark.memory_table import Setting, measured_spec, request_of, settings
from dist_trainer.benchmark.memory_text import BEGIN, END
from dist_trainer.benchmark.on_gpus import DevicePeaks
from dist_trainer.cli.benchmark import main
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.errors import RunError, UserError

GB = 10**9
MITE = """\
name: mite
deepspeed: zero2
seed: 7
model: {num_layers: 1, hidden_size: 32, num_heads: 2, vocab_size: 512, context_length: 1024, dropout: 0.1}
phases:
  - {name: only, sequence_length: 1024, steps: 10}
"""


def test_each_configuration_begins_with_its_baseline() -> None:
    found = settings(["small", "medium"], ["zero2", "baseline"], [1, 2])
    assert [(one.config, one.ds, one.num_gpus) for one in found] == [
        ("small", "baseline", 1),
        ("small", "zero2", 1),
        ("small", "zero2", 2),
        ("medium", "baseline", 1),
        ("medium", "zero2", 1),
        ("medium", "zero2", 2),
    ]


def test_every_row_takes_the_same_sequences_a_step() -> None:
    for setting in settings(memory_table.CONFIGS, memory_table.DS, memory_table.NUM_GPUS):
        resolved = resolve(request_of(setting), world_size=setting.num_gpus, device=ANY_DEVICE)
        assert resolved.train_batch_size == memory_table.SEQUENCES_PER_STEP
        # One micro batch for each that is measured: the peak of more is that of two.
        assert resolved.accumulation >= memory_table.MEASURED_ACCUMULATION


def test_a_batch_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be divided"):
        request_of(Setting("small", "zero2", 3))


def test_what_is_measured_has_no_dropout_and_is_not_compiled() -> None:
    spec = measured_spec(Setting("small", "fast", 4))
    resolved = resolve(spec.request, world_size=4, device=ANY_DEVICE)
    assert resolved.run.model.dropout == 0
    assert "compile" not in resolved.deepspeed
    assert (spec.rank, spec.world_size, spec.sequence_length) == (0, 4, 1024)
    assert resolved.accumulation == memory_table.MEASURED_ACCUMULATION


def test_a_file_without_a_place_for_the_table_is_refused_before_anything_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "memory.md"
    path.write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(UserError, match="no place for the table"):
        main(["memory", "--no-measure", "--write", str(path)])


def test_a_run_that_does_not_fit_on_the_gpus_leaves_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(request: Request, num_gpus: int, sequence_length: int) -> DevicePeaks:
        if num_gpus == 1:
            raise RunError("out of memory")
        return DevicePeaks(7, 5, 6)

    monkeypatch.setattr(memory_table, "train_on_gpus", train)
    wanted = [Setting("tiny", "zero2", number) for number in (1, 2, 4)]
    said: list[str] = []
    rows = memory_table.make_rows(wanted, measures=False, gpus=2, say=said.append)
    assert [row.device_peaks for row in rows] == [None, DevicePeaks(7, 5, 6), None]
    assert any("out of memory" in line for line in said)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_free(num_bytes: int) -> None:
        """Half of it as swap."""
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=num_bytes // 2))
        monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=num_bytes // 2))

    return set_free


def test_rows_are_planned_and_measured_and_what_does_not_fit_here_is_said_and_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_bytes: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured: list[Spec] = []

    def measure(spec: Spec) -> Measurement:
        measured.append(spec)
        return Measurement({"step": 2 * GB}, 2 * GB, 0, 0, 0, 0.0)

    monkeypatch.setattr(kept, "measure_apart", measure)
    (tmp_path / "mite.yaml").write_text(MITE)
    arguments = ["memory", "--configs", str(tmp_path / "mite.yaml"), "--ds", "zero2", "--gpus", "2"]
    free_bytes(1 * GB)
    assert main(arguments) == 0
    assert not measured
    assert capsys.readouterr().out.count("this machine has too little memory free to measure that") == 2
    free_bytes(100 * GB)
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert main([*arguments, "--ds", "zero2", "zero3", "--no-measure"]) == 0
    assert len(measured) == 2, "the baseline and zero2, each once"
    shown = capsys.readouterr().out.splitlines()
    assert [line.count("| 2.00 |") for line in shown[-3:]] == [1, 1, 0]
    assert "| zero2 | 2 | 1 x 32 |" in shown[-2]
