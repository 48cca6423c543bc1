from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from plans import make_plan
from rich.console import Console
from run_folders import (
    START_S,
    append,
    event,
    make_cpu_run,
    make_gpu_run,
    make_monitor_run,
    memory,
    sample,
    step,
    write_lines,
)

from dist_trainer.memory.plan import PLAN_ON_GPU_FILE, write_plan
from dist_trainer.memory.targets import Baseline
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, memory_file, samples_file
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import Summary, rows, show, summarise, write
from dist_trainer.report.verdict import describe, strict_problem


def shown(summary: Summary, run_dir: Path, width: int = 200) -> str:
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
    summary = summarise(make_gpu_run(tmp_path, (2_310_000_000, 2_600_000_000)))
    assert (summary.name, summary.state, summary.state_text) == ("tiny", "finished", "finished at step 12")
    assert (summary.num_steps, summary.num_tokens) == (12, 12_000)
    assert summary.first_loss == pytest.approx(12 - 8 / 12)
    assert summary.last_loss == pytest.approx(sum(12 - 8 * number / 12 for number in range(3, 13)) / 10)
    assert (summary.validation_loss, summary.unigram_entropy_nats) == (4.25, 6.125)
    assert (summary.train_s, summary.data_wait_fraction) == (6.0, pytest.approx(0.2))
    assert [(verdict.rank, verdict.peak_bytes, verdict.judgement) for verdict in summary.verdicts] == [
        (0, 2_310_000_000, "met"),
        (1, 2_600_000_000, "missed"),
    ]
    assert summary.verdict.judgement == "missed"


def test_the_speed_is_the_median_without_the_first_step_which_warms_up(tmp_path: Path) -> None:
    for speeds, median in (((10.0, 2000.0, 1000.0, 4000.0), 2000.0), ((10.0,), 10.0)):
        steps = [step(number, tokens_per_s=speed) for number, speed in enumerate(speeds, 1)]
        write_lines(tmp_path / "records" / STEPS_FILE, steps)
        assert summarise(tmp_path).median_tokens_per_s == median


def test_a_folder_with_no_step_has_no_figures_rather_than_zeros(tmp_path: Path) -> None:
    summary = summarise(tmp_path)
    assert (summary.num_steps, summary.first_loss, summary.median_tokens_per_s, summary.verdicts) == (0, None, None, ())
    text = shown(summary, tmp_path)
    assert row(text, "steps") == "0 (0 tokens, 0.0s)"
    assert row(text, "verdict") == "Running; nothing is recorded yet. So far: not judged: there are no memory records."


def test_peaks_before_any_step_say_nothing_of_training(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path)
    (run_dir / "records" / STEPS_FILE).write_text("")
    summary = summarise(run_dir)
    assert [verdict.reason for verdict in summary.verdicts] == ["no step was taken"] * 2


def test_summary_json_holds_the_same_values(tmp_path: Path) -> None:
    plan = make_plan(allocated=1_600_000_000, reserved=1_800_000_000, used=2_300_000_000)
    summary = summarise(make_gpu_run(tmp_path, (2_310_000_000, 2_600_000_000), plan=plan))
    path = write(summary, tmp_path)
    assert path == tmp_path / "summary.json"
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    values = json.loads(text)
    assert values == json.loads(json.dumps(dataclasses.asdict(summary)))
    assert values["verdict"]["judgement"] == "missed"
    verdict = values["verdicts"][1]
    assert (verdict["judgement"], verdict["target_headroom_bytes"]) == ("missed", -100_000_000)
    assert [one["quantity"] for one in verdict["predictions"]] == ["allocated", "reserved", "NVML used"]


def test_the_table_says_each_ranks_peak_target_and_judgement(tmp_path: Path) -> None:
    text = shown(summarise(make_gpu_run(tmp_path, (2_310_000_000, 2_600_000_000))), tmp_path)
    assert row(text, "memory, rank 0") == "2.31 GB of 2.50 GB: met (42% below 4.00 GB)"
    assert row(text, "memory, rank 1") == "2.60 GB of 2.50 GB: missed (35% below 4.00 GB)"
    assert row(text, "steps") == "12 (12.0K tokens, 6.0s)"
    assert row(text, "loss") == "11.3333 -> 7.0000 (mean of the last 10 steps)"
    assert row(text, "validation loss") == "4.2500"
    assert row(text, "unigram entropy") == "6.1250 (the loss of token frequencies alone)"
    assert row(text, "speed") == "2.2K tokens/s (median)"
    assert row(text, "waiting for data") == "20.0% of the time"
    assert row(text, "verdict").startswith("Target missed on 1 of 2 GPUs: rank 1 peaked at 2.60 GB, 0.10 GB over the")
    assert heading(text) == f"tiny:{tmp_path}"


def test_met_is_said_of_the_fullest_gpu_with_reduction_and_plan(tmp_path: Path) -> None:
    plan = make_plan(allocated=1_600_000_000, reserved=1_800_000_000, used=2_300_000_000)
    assert summarise(make_gpu_run(tmp_path, plan=plan)).verdict.sentence == (
        "Target met on both GPUs: the fullest, rank 0, peaked at 2.31 GB of 2.50 GB, 42.2% below the baseline of "
        "4.00 GB (the run file's figure); planned 2.30 GB (-0.4%)."
    )


def test_a_cpu_is_not_judged_and_its_own_figures_are_given(tmp_path: Path) -> None:
    plan = make_plan(allocated=510_000_000, device="cpu", phases={"forward": 400_000_000, "backward": 510_000_000})
    summary = summarise(make_cpu_run(tmp_path, plan=plan))
    first, second = summary.verdicts
    assert (
        describe(first) == "0.50 GB by the CPU allocator, 1.01 GB resident; not judged: no GPU; planned 0.51 GB (+2.0%)"
    )
    assert describe(second) == "1.01 GB resident; not judged: no GPU"
    assert summary.verdict.judgement == "not judged"
    assert summary.verdict.sentence == (
        "On a CPU: there is no GPU to judge. Rank 0 peaked at 0.50 GB by the CPU allocator, 1.01 GB resident; "
        "planned 0.51 GB (+2.0%)."
    )
    assert "of 2.50 GB" not in shown(summary, tmp_path)


@pytest.mark.parametrize(("used_bytes", "how"), [(2_300_000_000, "met"), (2_600_000_000, "missed")])
def test_on_a_cpu_the_plan_for_gpus_is_held_against_the_target(tmp_path: Path, used_bytes: int, how: str) -> None:
    run_dir = make_cpu_run(tmp_path)
    write_plan(make_plan(allocated=1_600_000_000, used=used_bytes), run_dir, PLAN_ON_GPU_FILE)
    verdict = summarise(run_dir).verdict
    assert (verdict.judgement, verdict.by_plan) == ("not judged", how)
    assert verdict.sentence.startswith(
        f"Target {how} by plan: a GPU would need {used_bytes / 1e9:.2f} GB of 2.50 GB. This run was on a CPU. Rank 0"
    )
    unknown = strict_problem(verdict)
    assert unknown is not None and unknown.startswith("what is not known does not pass. ")


def test_the_plan_for_gpus_says_nothing_of_a_run_on_gpus(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path)
    write_plan(make_plan(allocated=1_600_000_000, used=2_600_000_000), run_dir, PLAN_ON_GPU_FILE)
    assert summarise(run_dir).verdict.by_plan is None


def test_the_higher_of_samples_and_records_at_step_edges_counts(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, (2_000_000_000, 2_000_000_000))
    write_lines(run_dir / "records" / memory_file(0), [memory(1, 0, 2_400_000_000)])
    append(run_dir / "records" / samples_file("rank-1"), json.dumps(sample(23.9, 2_450_000_000)) + "\n")
    assert [verdict.peak_bytes for verdict in summarise(run_dir).verdicts] == [2_400_000_000, 2_450_000_000]


def test_without_samples_the_records_at_step_edges_are_judged_and_said_to_be_those(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path)
    (run_dir / "records" / samples_file("rank-0")).unlink()
    first, second = summarise(run_dir).verdicts
    assert (first.judgement, first.peak_bytes) == ("met", 2_310_000_000)
    assert "sampling was off" in first.notes[0]
    assert second.notes == ()


def test_a_gpu_lost_part_way_is_not_known_from_then_on(tmp_path: Path) -> None:
    facts = {"diagnostic": "gpu lost", "source": "rank-1", "unknown": ["used_bytes", "process_bytes"]}
    run_dir = make_gpu_run(tmp_path, events=[event("monitor", "GPU-1 is lost", 15.0, rank=1, **facts)])
    path = run_dir / "records" / samples_file("rank-1")
    write_lines(path, [sample(float(at), 2_200_000_000 if at < 15 else None, device="GPU-1") for at in range(24)])
    summary = summarise(run_dir)
    first, second = summary.verdicts
    assert first.judgement == "met"
    assert second.judgement == "not judged"
    assert second.reason.startswith("not known after ") and second.reason.endswith(" (gpu lost)")
    assert summary.verdict.judgement == "not judged"
    assert summary.verdict.sentence.startswith("Not judged: rank 1: not known after ")


def test_a_trouble_that_passed_does_not_keep_the_judgement_back(tmp_path: Path) -> None:
    facts = {"diagnostic": "unknown error", "source": "rank-1", "unknown": ["used_bytes", "process_bytes"]}
    run_dir = make_gpu_run(tmp_path, events=[event("monitor", "unknown error", 15.0, rank=1, **facts)])
    assert summarise(run_dir).verdict.judgement == "met"


@pytest.mark.parametrize("rest", [[], [sample(99.0, None, is_last=True)]], ids=["without a last", "not read at last"])
def test_samples_that_end_before_the_run_leave_the_rest_unknown(tmp_path: Path, rest: list[dict[str, object]]) -> None:
    run_dir = make_gpu_run(tmp_path, num_steps=100)
    write_lines(run_dir / "records" / samples_file("rank-0"), [sample(5.0, 2_000_000_000), *rest])
    assert summarise(run_dir).verdicts[0].reason.endswith("(the samples end there)")


def test_a_driver_that_was_never_there_is_named(tmp_path: Path) -> None:
    facts = {"diagnostic": "driver not loaded", "source": "rank-0", "unknown": ["used_bytes", "process_bytes"]}
    run_dir = make_gpu_run(tmp_path, (0,), events=[event("monitor", "the driver is not loaded", 0.5, **facts)])
    write_lines(run_dir / "records" / samples_file("rank-0"), [sample(1.0, None)])
    write_lines(run_dir / "records" / memory_file(0), [memory(1, 0, None)])
    (verdict,) = summarise(run_dir).verdicts
    assert verdict.reason == "NVML gave no reading: driver not loaded"


def test_a_watched_programs_gpus_are_measured_and_not_judged(tmp_path: Path) -> None:
    summary = summarise(make_monitor_run(tmp_path / "watched", status=5))
    assert (summary.name, summary.state_text) == ("watched", "the command ended with status 5")
    assert [(verdict.source, verdict.peak_bytes) for verdict in summary.verdicts] == [
        ("gpu-0", 3_000_000_000),
        ("gpu-1", 1_000_000_000),
    ]
    assert summary.verdict.sentence == "Not judged: no targets are set. GPU 0 peaked at 3.00 GB used."
    assert "memory, GPU 1" in shown(summary, tmp_path)
    assert "steps" not in shown(summary, tmp_path)


def test_a_baseline_runs_peak_is_compared_with_and_named(tmp_path: Path) -> None:
    summary = summarise(make_gpu_run(tmp_path), baseline=Baseline(3_300_000_000, "runs/before", ("other batch",)))
    assert summary.verdicts[0].reduction == pytest.approx(0.3)
    assert "30.0% below the baseline of 3.30 GB (measured in runs/before)" in summary.verdict.sentence
    assert summary.verdict.notes == ("other batch",)


def test_a_plan_for_longer_sequences_than_were_measured_is_noted(tmp_path: Path) -> None:
    long = make_plan(allocated=1, used=2_300_000_000, sequence_length=1024)
    (note,) = summarise(make_gpu_run(tmp_path / "long", plan=long)).verdict.notes
    assert note == "the plan is for 1024 tokens a sequence, what was measured had 64"
    same = make_plan(allocated=1, used=2_300_000_000, sequence_length=64)
    assert summarise(make_gpu_run(tmp_path / "same", plan=same)).verdict.notes == ()
    cpu = make_plan(allocated=510_000_000, device="cpu", sequence_length=64)
    assert "had 32" in summarise(make_cpu_run(tmp_path / "cpu", plan=cpu)).verdict.notes[0]


def test_many_ranks_are_told_by_the_fullest(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, [2_000_000_000 + 1_000_000 * rank for rank in range(64)], num_samples=3)
    text = shown(summarise(run_dir), run_dir)
    assert "memory, rank 63" in text and "memory, rank 55" not in text
    text_of_others = "56 more, none of them higher; half of all at most 2.03 GB, the lowest 2.00 GB"
    assert row(text, "memory, others") == text_of_others


def test_strict_passes_a_met_target_at_the_end_and_nothing_else(tmp_path: Path) -> None:
    def problem(run_dir: Path) -> str | None:
        return strict_problem(summarise(run_dir).verdict)

    assert problem(make_gpu_run(tmp_path / "met")) is None
    missed = problem(make_gpu_run(tmp_path / "missed", (2_600_000_000,)))
    assert missed is not None and missed.startswith("Target missed: rank 0 peaked")
    unknown = problem(make_cpu_run(tmp_path / "cpu"))
    assert unknown is not None and unknown.startswith(
        "what is not known does not pass. On a CPU: there is no GPU to judge."
    )
    running = problem(make_gpu_run(tmp_path / "running", ends=False))
    assert running is not None and "has not come to its end" in running


def test_a_failed_run_says_so_first(tmp_path: Path) -> None:
    error = event("error", "the loss of step 7 is not finite\n  do: lower the rate", 18.0)
    summary = summarise(make_gpu_run(tmp_path, ends=False, num_steps=7, events=[error]))
    assert (summary.state, summary.verdict.is_final) == ("failed", False)
    assert summary.verdict.sentence.startswith(
        "The run failed at step 7: the loss of step 7 is not finite. Up to then: t"
    )


def test_a_run_that_was_resumed_after_a_failure_is_no_failure(tmp_path: Path) -> None:
    failed = event("error", "a peer was lost", 5.0)
    assert summarise(make_gpu_run(tmp_path, events=[failed, event("start", "again", 6.0)])).state == "finished"


def test_half_written_lines_are_left_out(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, ends=False)
    for name in (STEPS_FILE, EVENTS_FILE, memory_file(0), samples_file("rank-0")):
        append(run_dir / "records" / name, '{"step":13,"loss":1.0,"time_s":')
    summary = summarise(run_dir)
    assert summary.num_steps == 12
    assert summary.verdicts[0].peak_bytes == 2_310_000_000


def test_brackets_in_a_folders_name_are_no_markup(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path / "a[b]" / "c[/d]")
    assert heading(shown(summarise(run_dir), run_dir)) == f"tiny:{run_dir}"


def test_a_run_without_an_end_goes_on_unless_its_process_is_known_to_be_gone(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, ends=False)
    assert read_findings(run_dir, now_s=START_S + 30).progress.text == "running, step 12"
    quiet = read_findings(run_dir, now_s=START_S + 3624).progress
    assert quiet.state == "running"
    assert quiet.text.startswith("running, step 12; nothing was recorded for 1h 00m, and whether it still runs cannot")


WRITER = """
import json, sys
from pathlib import Path
from dist_trainer.endings import show_life
path = Path(sys.argv[1])
life = show_life(path)
with path.open("a") as events:
    events.write(json.dumps({"kind": "start", "message": "again", "rank": 0, "time_s": 0.0, "facts": life}) + "\\n")
print("began", flush=True)
sys.stdin.read()
"""


def test_a_run_that_was_killed_is_known_to_be_at_once_whatever_the_clock_says(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, ends=False)
    command = [sys.executable, "-c", WRITER, str(run_dir / "records" / EVENTS_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"began\n"
        assert read_findings(run_dir, now_s=START_S + 10**6).progress.text == "running, step 12"
        writer.kill()
    killed = read_findings(run_dir, now_s=START_S - 10**6).progress
    assert killed.state == "silent"
    assert killed.text == (
        "no end is recorded at step 12, and nothing writes any more: it was killed, or the folder is a copy"
    )


def test_events_count_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    """The clock was set back an hour before the error."""
    run_dir = make_gpu_run(tmp_path, ends=False)
    error = {**event("error", "a disk is full", 20.0), "time_s": START_S - 3600.0}
    append(run_dir / "records" / EVENTS_FILE, json.dumps(error) + "\n")
    assert read_findings(run_dir).progress.text == "failed at step 12: a disk is full"


def test_what_launch_says_counts_over_what_a_rank_noticed_first(tmp_path: Path) -> None:
    echo = event("error", "RuntimeError: connection closed by peer", 19.0)
    cause = event("error", "rank 1 on h2 was killed by SIGKILL", 19.5, rank=None)
    summary = summarise(make_gpu_run(tmp_path, ends=False, events=[echo, cause]))
    assert summary.state_text == "failed at step 12: rank 1 on h2 was killed by SIGKILL"


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    interrupted = event("interrupted", "interrupted at step 12 (SIGINT)", 19.0, rank=None)
    summary = summarise(make_gpu_run(tmp_path, ends=False, events=[interrupted]))
    assert (summary.state, summary.state_text) == ("interrupted", "interrupted at step 12 (SIGINT)")
    assert summary.verdict.sentence.startswith("The run was interrupted at step 12 (SIGINT). Up to then: t")


def test_what_is_damaged_is_counted_and_told_and_not_fatal(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path)
    whole = summarise(run_dir)
    assert whole.problems == ()
    records = run_dir / "records"
    append(records / "events.jsonl", '{"kind":"notice","message":"no time","rank":0}\n')
    append(records / "steps.jsonl", '{"step":"x"}\n[[[\n')
    append(records / "memory-rank-0.jsonl", json.dumps(memory(3, 0, 5) | {"rss_bytes": "much"}) + "\n")
    append(records / "memory-samples-rank-1.jsonl", json.dumps(sample(3, 5) | {"used_bytes": [1]}) + "\n")
    (run_dir / "resolved" / "launch.json").write_text('{"argv": 3}')
    (run_dir / "resolved" / "ds_config.json").write_text('{"train_batch_size": 1}')
    (run_dir / "resolved" / "plan.json").write_text('{"ranks": []}')
    (run_dir / "resolved" / "run.yaml").write_text("s: {[]}")
    damaged = summarise(run_dir)
    assert [problem.partition(":")[0] for problem in damaged.problems] == [
        *("resolved/run.yaml cannot be read", "resolved/ds_config.json cannot be read"),
        *("resolved/launch.json cannot be read", "resolved/plan.json cannot be read"),
        *("records/events.jsonl", "records/memory-rank-0.jsonl"),
        *("records/memory-samples-rank-1.jsonl", "records/steps.jsonl"),
    ]
    assert damaged.problems[-1] == "records/steps.jsonl: 2 damaged lines are left out"
    assert [row for row in rows(damaged) if row[0] == "not readable"] == [
        ("not readable", problem) for problem in damaged.problems
    ]
    assert (damaged.num_steps, damaged.last_loss) == (whole.num_steps, whole.last_loss)
    assert [one.peak_bytes for one in damaged.verdicts] == [one.peak_bytes for one in whole.verdicts]
