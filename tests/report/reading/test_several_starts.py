"""A run that was started more than once. Between starts the host may have been booted: monotonic clocks begin anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import event, make_gpu_run, memory, sample, write_lines

from dist_trainer.records import host_memory_file, memory_file, samples_file
from dist_trainer.report.summary import summarise

FIRST, SECOND = 0, 900
USED = 2_000_000_000
# The first start's clock is ahead of the second's, both of them.
LATE, EARLY = 5000.0, 10.0


def reason(run_dir: Path) -> str:
    (verdict,) = summarise(run_dir).verdicts
    return f"{verdict.judgement} {(verdict.reason or '').partition(' (')[2]}".strip()


@pytest.mark.parametrize(
    ("first_has_last", "second_has_last", "found"),
    [(False, True, "met"), (True, False, "not judged the samples end there)")],
)
def test_whether_the_samples_have_a_last_is_asked_of_the_last_start(
    tmp_path: Path, found: str, *, first_has_last: bool, second_has_last: bool
) -> None:
    run_dir = make_gpu_run(tmp_path, (USED,))
    of_first = sample(LATE, USED, start_id=FIRST, is_last=first_has_last)
    of_second = sample(EARLY, USED, start_id=SECOND, is_last=second_has_last)
    write_lines(run_dir / "records" / samples_file("rank-0"), [of_first, of_second])
    write_lines(run_dir / "records" / memory_file(0), [])
    assert reason(run_dir) == found


@pytest.mark.parametrize("is_sampled", [True, False])
def test_a_last_look_of_an_earlier_start_says_nothing_of_a_later_one(tmp_path: Path, *, is_sampled: bool) -> None:
    run_dir = make_gpu_run(tmp_path, (USED,))
    samples = [sample(LATE, USED, start_id=FIRST, is_last=True)]
    if is_sampled:
        samples.append(sample(EARLY + 2, USED, start_id=SECOND, is_last=True))
    write_lines(run_dir / "records" / samples_file("rank-0"), samples)
    record = {**memory(9, 0, USED, start_id=SECOND), "monotonic_s": EARLY + 1}
    write_lines(run_dir / "records" / memory_file(0), [record])
    assert reason(run_dir) == ("met" if is_sampled else "not judged the samples end there)")


@pytest.mark.parametrize("is_alone_last", [True, False])
def test_of_files_of_several_starts_those_of_the_last_one_count(tmp_path: Path, *, is_alone_last: bool) -> None:
    """A run that goes on with more ranks, or fewer, changes between a file a rank and one a host."""
    run_dir = make_gpu_run(tmp_path, (USED,))
    alone, of_host = (SECOND, FIRST) if is_alone_last else (FIRST, SECOND)

    def write(files: tuple[str, str], start_id: int, host: str, device: str) -> None:
        at_s = LATE if start_id == FIRST else EARLY
        others = {"device": device, "host": host, "rank": 0, "start_id": start_id}
        one = sample(at_s, USED + start_id, is_last=start_id == SECOND, **others)  # type: ignore[arg-type]
        record = memory(9, 0, USED, device=device, start_id=start_id, host=host)
        write_lines(run_dir / "records" / files[0], [one])
        write_lines(run_dir / "records" / files[1], [{**record, "monotonic_s": at_s - 1}])

    write((samples_file("rank-0"), memory_file(0)), alone, "alone", "GPU-alone")
    write((samples_file("host-0"), host_memory_file(0)), of_host, "together", "GPU-together")
    (verdict,) = summarise(run_dir).verdicts
    name = "alone" if is_alone_last else "together"
    assert (verdict.judgement, verdict.host, verdict.device) == ("met", name, f"GPU-{name}")
    assert verdict.peak_bytes == USED + SECOND


@pytest.mark.parametrize(("start_id", "found"), [(FIRST, "met"), (SECOND, "not judged unknown error)")])
def test_a_trouble_lasts_unless_a_later_look_of_the_same_start_or_a_later_one_saw_more(
    tmp_path: Path, start_id: int, found: str
) -> None:
    facts = {"diagnostic": "unknown error", "source": "rank-0", "unknown": ["used_bytes"], "start_id": start_id}
    at_s = LATE + 1 if start_id == FIRST else EARLY + 1
    run_dir = make_gpu_run(
        tmp_path, (USED,), events=[event("monitor", "unknown error", 15.0, **facts, monotonic_s=at_s)]
    )
    samples = [sample(LATE, USED, start_id=FIRST), sample(EARLY, USED, start_id=SECOND, is_last=True)]
    write_lines(run_dir / "records" / samples_file("rank-0"), samples)
    write_lines(run_dir / "records" / memory_file(0), [])
    assert reason(run_dir) == found
