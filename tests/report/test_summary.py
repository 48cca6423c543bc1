from __future__ import annotations

import dataclasses
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dist_trainer.config.run import TargetConfig
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, memory_file
from dist_trainer.report.summary import Summary, describe, show, summarise, write

TARGETS = TargetConfig(baseline_bytes=4_000_000_000, target_bytes=2_500_000_000)

STEPS = [
    {"step": step, "phase": "short", "loss": 12.0 - step, "grad_norm": 1.0, "learning_rate": 1e-3, "loss_scale": None}
    | {"num_tokens": 1000, "tokens_per_s": speed, "data_wait_s": 0.1, "step_s": 0.5, "time_s": 100.0 + step}
    for step, speed in enumerate((10.0, 2000.0, 1000.0, 4000.0, 3000.0, *([2500.0] * 7)), start=1)
]
EVENTS = [
    {"kind": "start", "message": "tiny on 2 ranks", "rank": 0, "time_s": 100.0, "facts": {"device": "cpu"}},
    {"kind": "evaluation", "message": "", "rank": 0, "time_s": 106.0, "facts": {"loss": 5.5, "phase": "short"}},
    {"kind": "evaluation", "message": "", "rank": 0, "time_s": 112.0, "facts": {"loss": 4.25, "phase": "long"}},
    {"kind": "end", "message": "step 12", "rank": 0, "time_s": 112.0, "facts": {}},
]


def reading(rank: int, step: int, used: int | None, device: str = "GPU-x", rss: int = 600_000_000) -> dict[str, object]:
    return {
        "step": step,
        "rank": rank,
        "host": "h1",
        "device": device,
        "allocated_peak_bytes": used,
        "reserved_peak_bytes": used,
        "device_used_bytes": used,
        "rss_bytes": rss,
        "time_s": 100.0 + step,
    }


GPU_READINGS = [reading(0, 1, 2_310_000_000), reading(0, 2, 1_000_000_000)], [reading(1, 1, 2_600_000_000)]
CPU_READINGS = [reading(0, 1, None, "cpu"), reading(0, 2, None, "cpu", 650_000_000)], [reading(1, 1, None, "cpu")]


def write_lines(path: Path, objects: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in objects), encoding="utf-8")


def make_run(
    folder: Path, memory: tuple[list[dict[str, object]], ...] = GPU_READINGS, *, steps: int = len(STEPS)
) -> Path:
    records = folder / "records"
    write_lines(records / STEPS_FILE, STEPS[:steps])
    write_lines(records / EVENTS_FILE, EVENTS)
    for rank, readings in enumerate(memory):
        write_lines(records / memory_file(rank), readings)
    return folder


def summary_of(run_dir: Path, targets: TargetConfig | None = TARGETS, entropy: float | None = 6.125) -> Summary:
    return summarise(run_dir, name="tiny", targets=targets, unigram_entropy_nats=entropy)


def shown(summary: Summary, run_dir: Path, width: int = 160) -> str:
    stream = StringIO()
    show(summary, run_dir, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def row(text: str, label: str) -> str:
    """The value beside a label in the table that was printed."""
    (found,) = (line for line in text.splitlines() if line.strip("│ ").startswith(f"{label} "))
    return found.strip("│ ").removeprefix(label).strip("│ ")


def heading(text: str) -> str:
    """What stands over the table, which is folded where it is wider than the table: without spaces."""
    return "".join(text.partition("┌")[0].split())


def test_the_values_follow_from_the_records(tmp_path: Path) -> None:
    summary = summary_of(make_run(tmp_path))
    assert summary.num_steps == 12
    assert summary.num_tokens == 12_000
    assert summary.first_loss == 11.0
    assert summary.last_loss == pytest.approx(sum(12.0 - step for step in range(3, 13)) / 10)
    assert summary.validation_loss == 4.25
    assert summary.unigram_entropy_nats == 6.125
    assert summary.train_s == 6.0
    assert summary.data_wait_fraction == pytest.approx(0.2)
    assert [(verdict.rank, verdict.peak_bytes, verdict.judgement) for verdict in summary.verdicts] == [
        (0, 2_310_000_000, "met"),
        (1, 2_600_000_000, "missed"),
    ]


def test_the_speed_is_the_median_without_the_first_step_which_warms_up(tmp_path: Path) -> None:
    assert summary_of(make_run(tmp_path / "four", steps=4)).median_tokens_per_s == 2000.0
    assert summary_of(make_run(tmp_path / "five", steps=5)).median_tokens_per_s == 2500.0
    assert summary_of(make_run(tmp_path / "one", steps=1)).median_tokens_per_s == 10.0


def test_a_run_that_took_no_step_has_no_figures_rather_than_zeros(tmp_path: Path) -> None:
    summary = summarise(tmp_path, name="tiny", targets=None, unigram_entropy_nats=None)
    assert summary == Summary("tiny", 0, 0, None, None, None, None, None, None, 0, ())
    text = shown(summary, tmp_path)
    assert row(text, "steps") == "0 (0 tokens, 0.0s)"
    assert "loss" not in text.replace(str(tmp_path), "")


def test_summary_json_holds_the_same_values(tmp_path: Path) -> None:
    summary = summary_of(make_run(tmp_path))
    path = write(summary, tmp_path)
    assert path == tmp_path / "summary.json"
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text) == json.loads(json.dumps(dataclasses.asdict(summary)))
    assert json.loads(text)["verdicts"][1]["judgement"] == "missed"
    assert json.loads(text)["last_loss"] == summary.last_loss


def test_the_table_says_each_ranks_peak_target_and_judgement(tmp_path: Path) -> None:
    text = shown(summary_of(make_run(tmp_path)), tmp_path)
    assert row(text, "memory, rank 0") == "2.31 GB of 2.50 GB: met (42% below 4.00 GB)"
    assert row(text, "memory, rank 1") == "2.60 GB of 2.50 GB: missed (35% below 4.00 GB)"
    assert row(text, "steps") == "12 (12.0K tokens, 6.0s)"
    assert row(text, "loss") == "11.0000 -> 4.5000 (mean of the last 10 steps)"
    assert row(text, "validation loss") == "4.2500"
    assert row(text, "unigram entropy") == "6.1250 (the loss of token frequencies alone)"
    assert row(text, "speed") == "2.5K tokens/s (median)"
    assert row(text, "waiting for data") == "20.0% of the time"
    assert heading(text) == f"tiny:{tmp_path}"


def test_the_table_says_that_a_cpu_is_not_judged_and_its_own_figure(tmp_path: Path) -> None:
    text = shown(summary_of(make_run(tmp_path, CPU_READINGS)), tmp_path)
    assert row(text, "memory, rank 0") == "0.65 GB resident; not judged: no GPU"
    assert row(text, "memory, rank 1") == "0.60 GB resident; not judged: no GPU"
    assert "of 2.50 GB" not in text


def test_a_gpu_that_gave_no_reading_is_not_said_to_use_what_the_process_holds(tmp_path: Path) -> None:
    (verdict,) = summary_of(make_run(tmp_path, ([reading(0, 1, None)],))).verdicts
    assert describe(verdict) == "0.60 GB resident; not judged: NVML gave no reading"


def test_without_targets_the_use_is_shown(tmp_path: Path) -> None:
    first, _ = summary_of(make_run(tmp_path), targets=None).verdicts
    assert describe(first) == "2.31 GB used; not judged: the run file has no targets"


def test_more_than_the_baseline_is_said_to_be_above_it(tmp_path: Path) -> None:
    (verdict,) = summary_of(make_run(tmp_path, ([reading(0, 1, 5_000_000_000)],))).verdicts
    assert describe(verdict) == "5.00 GB of 2.50 GB: missed (25% above 4.00 GB)"


def test_brackets_in_a_folders_name_are_no_markup(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "a[b]" / "c[/d]")
    assert heading(shown(summary_of(run_dir), run_dir)) == f"tiny:{run_dir}"
