from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from plans import make_plan
from run_folders import (
    START_STAGES,
    append,
    event,
    make_cpu_run,
    make_gpu_run,
    make_monitor_run,
    sample,
    write_lines,
    write_start,
)

from dist_trainer.memory.plan import PLAN_ON_GPU_FILE, write_plan
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, memory_file, samples_file
from dist_trainer.report.charts.curves import Compared, memory_chart
from dist_trainer.report.page import Headline, headline, make_page, render_html, render_markdown, write_page
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import summary_of
from dist_trainer.units import GB


def compared(run_dir: Path, name: str = "this", *, now_s: float | None = None) -> Compared:
    findings = read_findings(run_dir, now_s=now_s)
    return Compared(name, findings, summary_of(findings))


def html(run_dir: Path, *others: Path, now_s: float | None = None) -> str:
    page = make_page(compared(run_dir, now_s=now_s), [compared(other, other.name) for other in others])
    return render_html(page)


def markdown(run_dir: Path, *others: Path) -> str:
    return render_markdown(make_page(compared(run_dir), [compared(other, other.name) for other in others]))


class Text(HTMLParser):
    """What a reader sees, and what is not well formed."""

    VOID = ("meta", "link", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.attributes: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [name for name, _ in attrs]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def seen(self) -> str:
        return " ".join(" ".join(self.words).split())


# All that a page of ours has.
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "rel", "href", "class", "style", "title", "scope", "role"),
    *(
        "data-name",
        "data-chart",
        "viewbox",
        "preserveaspectratio",
        "aria-label",
        "aria-hidden",
        "hidden",
        "type",
        "open",
    ),
}
PLAN = make_plan(allocated=1_600_000_000, reserved=1_800_000_000, used=2_300_000_000)


@pytest.fixture
def met(tmp_path: Path) -> Path:
    return make_gpu_run(tmp_path / "met", plan=PLAN)


def test_the_verdict_stands_at_the_top_in_one_sentence_and_then_each_gpu(met: Path) -> None:
    seen = Text(html(met)).seen
    places = [seen.index(text) for text in ("Target met", "Target met on both GPUs: the fullest, rank 0", "Each GPU")]
    assert places == sorted(places)
    assert seen.index("Each GPU") < seen.index("Memory in use on each GPU, by NVML, over time") < seen.index("Loss")
    assert "rank 1 h1 GPU-1 2.20 GB 2.50 GB 0.30 GB 45.0% 2.30 GB +4.5% 25.77 GB met" in seen


def test_target_baseline_and_plan_are_lines_and_phases_are_marked(met: Path) -> None:
    run = compared(met)
    chart = memory_chart(run.findings, run.summary)
    assert {rule.kind: rule.value for rule in chart.rules} == {"baseline": 4.0, "target": 2.5, "plan": 2.3}
    assert [mark.name for mark in chart.marks] == ["short context", "full context"]
    assert [series.name for series in chart.series] == ["rank 0", "rank 1"]
    assert max(bucket.high for bucket in chart.series[0].buckets) == 2.31


def test_the_plans_make_up_stands_beside_the_measured_peak(met: Path) -> None:
    made = make_page(compared(met)).breakdown
    assert made is not None
    planned, measured = made.bars
    assert sum(one.num_bytes for one in planned.segments) == 2_300_000_000
    assert {one.name: one.num_bytes for one in measured.segments} == {
        "allocated": 1_610_000_000,
        "allocator slack": 200_000_000,
        "not torch's": 500_000_000,
    }
    assert all(sum(one.percent for one in bar.segments) <= 100 for bar in made.bars)


def test_it_needs_no_network_and_no_other_file(met: Path) -> None:
    page = html(met)
    assert Text(page).links == ["data:,"]
    assert not re.search(r"https?:|@import|url\(", page)
    assert "default-src 'none'" in page


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    run_dir = make_gpu_run(
        tmp_path, name="'<b>x</b></script> & {{ 7 }}'", events=[event("notice", "<script>1</script>", 1.0)]
    )
    page = html(run_dir)
    assert "<b>x</b>" not in page and "<script>1" not in page
    assert "<b>x</b></script> & {{ 7 }}" in Text(page).seen
    assert "| <" not in markdown(run_dir)


def test_markdown_has_the_same_verdict_tables_and_facts(met: Path) -> None:
    text = markdown(met)
    assert text.startswith("# tiny: Target met\n")
    assert "Target met on both GPUs: the fullest, rank 0, peaked at 2.31 GB" in text
    assert "| rank 1 | h1 GPU-1 | 2.20 GB |" in text
    for title in ("Each GPU", "Peak in each phase", "What the memory is made of, rank 0", "Steps", "What was run"):
        assert f"## {title}\n" in text
    for line in ("| optimizer states | 0.69 GB |", "| NVML used | 2.30 GB | 2.19 GB and 2.42 GB | 2.31 GB | -0.4% |"):
        assert line in text
    assert "- CUDA context: 0.47 GB" in text
    assert '"stage": 2' in text
    assert "\n\n\n" not in text and text.endswith("counts.\n")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_the_peak_of_each_phase_is_that_of_its_own_samples(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, (1,))
    rows = [
        sample(5.0, GB),
        sample(12.0, 2 * GB, phase="short context"),
        # A clock that was set back.
        {**sample(20.0, 3 * GB, phase="full context"), "time_s": 1.0},
        sample(21.0, GB, phase="full context"),
    ]
    write_lines(run_dir / "records" / samples_file("rank-0"), rows)
    table = make_page(compared(run_dir)).phases
    assert table is not None
    assert [row[:2] for row in table.rows] == [
        ("before training", "1.00 GB"),
        ("short context", "2.00 GB"),
        ("full context", "3.00 GB"),
    ]


def test_a_run_under_way_says_its_step_and_is_judged_so_far(tmp_path: Path) -> None:
    from run_folders import START_S

    run_dir = make_gpu_run(tmp_path, ends=False)
    for name in (STEPS_FILE, EVENTS_FILE, memory_file(0), samples_file("rank-0")):
        append(run_dir / "records" / name, '{"step":13,"lo')
    seen = Text(html(run_dir, now_s=START_S + 30)).seen
    assert "running, step 12" in seen
    assert "Target met so far" in seen


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    write_lines(tmp_path / "records" / EVENTS_FILE, [event("start", "tiny on 2 ranks", 0.0)])
    assert "there are no memory records" in Text(html(tmp_path)).seen
    assert "there are no memory records" in markdown(tmp_path)


def test_a_failed_runs_error_stands_at_the_top(tmp_path: Path) -> None:
    error = event("error", "the loss of step 8 is not finite\n  do:       lower the rate", 19.0)
    run_dir = make_gpu_run(tmp_path, ends=False, num_steps=7, events=[error])
    seen = Text(html(run_dir)).seen
    assert seen.index("Run failed") < seen.index("do: lower the rate") < seen.index("Each GPU")
    assert "Target met" not in seen
    text = markdown(run_dir)
    assert text.index("**The run failed.**") < text.index("lower the rate") < text.index("## Each GPU")


def test_a_watched_program_has_memory_and_its_command_and_no_steps(tmp_path: Path) -> None:
    seen = Text(html(make_monitor_run(tmp_path))).seen
    assert "GPU 0 h1 GPU-0 3.00 GB 25.77 GB not judged: no targets are set" in seen
    assert "python job.py --size 3" in seen
    assert "Learning rate" not in seen and "planned" not in seen


def test_without_a_gpu_the_resident_set_is_drawn_without_the_target(tmp_path: Path) -> None:
    plan = make_plan(allocated=510_000_000, device="cpu", phases={"forward": 400_000_000, "backward": 510_000_000})
    run = compared(make_cpu_run(tmp_path, plan=plan))
    assert memory_chart(run.findings, run.summary).rules == ()
    seen = Text(render_html(make_page(run))).seen
    assert "Resident set of each process, over time" in seen
    assert "CPU allocator, forward 0.40 GB 0.40 GB +0.0%" in seen


def test_on_a_cpu_the_report_opens_with_what_it_shows(tmp_path: Path) -> None:
    shown = headline(compared(make_cpu_run(tmp_path)).summary)
    assert (shown.look, shown.mark, shown.text) == ("on-cpu", "", "12 steps on a CPU")


@pytest.mark.parametrize(("used_bytes", "how", "mark"), [(2 * GB, "met", "✓"), (3 * GB, "missed", "✗")])
def test_on_a_cpu_with_a_target_it_opens_with_the_plan_for_gpus(
    used_bytes: int, how: str, mark: str, tmp_path: Path
) -> None:
    run_dir = make_cpu_run(tmp_path)
    write_plan(make_plan(allocated=GB, used=used_bytes), run_dir, PLAN_ON_GPU_FILE)
    run = compared(run_dir)
    assert headline(run.summary) == Headline(how, mark, f"Target {how} by plan")
    assert f"{mark} Target {how} by plan" in Text(render_html(make_page(run))).seen
    assert render_markdown(make_page(run)).startswith(f"# tiny: Target {how} by plan\n")
    other = make_page(run, [run]).compared
    assert other is not None and ("verdict", f"{how} by plan", f"{how} by plan") in other.rows


def test_of_more_than_eight_gpus_the_range_and_the_fullest_are_drawn(tmp_path: Path) -> None:
    run = compared(make_gpu_run(tmp_path, [GB + 10_000_000 * rank for rank in range(9)]))
    series = memory_chart(run.findings, run.summary).series
    assert [one.name for one in series] == ["all 9", "rank 8, the fullest"]
    assert max(bucket.high for bucket in series[0].buckets) == max(bucket.high for bucket in series[1].buckets) == 1.08
    seen = Text(render_html(make_page(run))).seen
    assert seen.index("rank 8") < seen.index("rank 7 h1")
    assert "All 9 GPUs" in seen


def test_runs_are_compared_side_by_side_and_their_curves_overlaid(met: Path, tmp_path: Path) -> None:
    other = make_gpu_run(tmp_path / "other", (3_000_000_000,), num_steps=20)
    watched = make_monitor_run(tmp_path / "watched")
    page = make_page(compared(met), [compared(other, "other"), compared(watched, "watched")])
    assert page.compared is not None
    assert page.compared.header == ("", "this", "other", "watched")
    rows = {row[0]: row[1:] for row in page.compared.rows}
    assert rows["verdict"] == ("met", "missed", "not judged")
    assert rows["steps"][:2] == ("12", "20")
    assert [len(one.chart.series) for one in page.compare_charts] == [3, 2, 2, 2, 2]
    assert "| verdict | met | missed | not judged |" in render_markdown(page)
    assert "Side by side" in Text(render_html(page)).seen


def test_a_long_runs_page_is_small(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path, [GB] * 9, num_steps=5_000, num_samples=4_000, plan=PLAN)
    page = html(run_dir)
    assert len(page) < 500_000
    Text(page)


def test_a_file_of_another_version_is_named_and_the_rest_stands(met: Path) -> None:
    (met / "resolved" / "run.yaml").write_text("name: x\nnovelty: 1\n")
    (met / "resolved" / "plan.json").write_text(json.dumps({"ranks": []}))
    (met / "resolved" / "ds_config.json").write_text("{")
    seen = Text(html(met)).seen
    assert all(f"resolved/{name} cannot be read" in seen for name in ("run.yaml", "plan.json", "ds_config.json"))
    assert "2.31 GB" in seen


EVIL = "</td><script>1</script> ![x](http://h) `a` | \x1b[31m_b_\" onload='x' </svg> {{ 7 }}"


def test_nothing_from_outside_is_markup_wherever_it_stands(tmp_path: Path) -> None:
    """As a run's name, a phase's, a host's, a device's, in messages, words of the command, and the DeepSpeed file."""
    error = event("error", f"{EVIL}\n```\n{EVIL}", 30.0)
    run_dir = make_gpu_run(
        tmp_path / "one",
        plan=PLAN,
        ends=False,
        events=[error, event("notice", EVIL, 1.0)],
        deepspeed={"tensorboard": {"job_name": EVIL, "output_path": "```"}},
    )
    for path in (run_dir / "records").iterdir():
        text = path.read_text(encoding="utf-8")
        for name in ("h1", "GPU-0", "short context", "NVIDIA Stand-in", "zero2"):
            text = text.replace(json.dumps(name), json.dumps(f"{name} {EVIL}"))
        path.write_text(text, encoding="utf-8")
    others = [compared(run_dir, f"other {EVIL} \udcff")]
    write_page(make_page(compared(run_dir, EVIL), others), run_dir)
    html, text = ((run_dir / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    seen = Text(html)
    assert html.count("<script") == html.count("</script>") == html.count('<script type="application/json">') + 1
    assert set(seen.attributes) <= ATTRIBUTES
    assert "<script>1</script>" in seen.seen
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = {one.type for token in tokens for one in (token, *(token.children or ()))}
    assert not kinds & {"html_inline", "html_block", "image", "link_open", "code_inline", "em_open", "s_open"}
    assert "\x1b" not in html + text


def test_what_a_resumed_run_changed_stands_in_what_was_run(tmp_path: Path) -> None:
    changed = ["optimizer.params.lr is 0.001, and was 0.0006", "the global batch is 8, and was 16"]
    run_dir = make_gpu_run(tmp_path, events=[event("resume", "step-8", 15.0, step=8, changed=changed)])
    rows = dict(make_page(compared(run_dir)).run.rows)
    assert rows["changed at step 8"] == "; ".join(changed)


def test_the_loss_says_of_how_many_steps_it_is_the_mean(met: Path) -> None:
    (tile,) = [tile for tile in make_page(compared(met)).tiles if tile.name == "loss"]
    assert tile.detail == "mean of the last 10 steps; validation 4.2500"


def test_how_the_ranks_started_is_drawn_and_said(tmp_path: Path) -> None:
    run_dir = make_gpu_run(tmp_path)
    assert "<h2>Start</h2>" not in html(run_dir)
    assert "## Start" not in markdown(run_dir)
    for rank in range(2):
        write_start(run_dir, rank)
    page = html(run_dir)
    assert set(Text(page).attributes) <= ATTRIBUTES
    assert "rank 1 imports rendezvous engine first step 7.00 s" in Text(page).seen
    assert 'title="imports 2.50 s, from 0.50 s"' in page
    assert "| rank 1 | 0.50 | 2.50 | 1.00 | 1.00 | 2.00 | 7.00 s |" in markdown(run_dir)


def test_a_rank_that_died_before_its_first_step_is_marked_with_what_it_had_reached(tmp_path: Path) -> None:
    failed = event("error", "rank 1 was killed by SIGKILL", 9.0, rank=None)
    run_dir = make_gpu_run(tmp_path, num_steps=0, ends=False, events=[failed])
    write_start(run_dir, 0)
    write_start(run_dir, 1, START_STAGES[:4], host="h<2")
    page = make_page(compared(run_dir))
    assert page.start_rows is not None
    assert page.start_rows.kinds == ("", "missed")
    assert "| rank 1 | h&lt;2 | 0.50 | 2.50 | 1.00 | from 4.00 s |  | in engine |" in markdown(run_dir)
    assert "h&lt;2" in html(run_dir)
