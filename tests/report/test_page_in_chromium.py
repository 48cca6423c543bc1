"""The page as a browser shows it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromium
import pytest
from plans import make_plan
from run_folders import event, make_gpu_run, make_monitor_run

from dist_trainer.report.charts.curves import Compared
from dist_trainer.report.page import make_page, render_html
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import summary_of

pytestmark = pytest.mark.skipif(chromium.CHROMIUM is None, reason="no chromium, which the page is looked at with")


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    return functools.partial(chromium.browse, tmp_path)


def compared(run_dir: Path) -> Compared:
    findings = read_findings(run_dir)
    return Compared(run_dir.name, findings, summary_of(findings))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Everything that a page can have, with names that are long."""
    folder = tmp_path_factory.mktemp("runs")
    plan = make_plan(allocated=1_600_000_000, reserved=1_800_000_000, used=2_300_000_000)
    name = "a-run-with-a-name-that-is-longer-than-a-telephone-is-wide-by-far"
    lost = event("monitor", "GPU-" + "0123456789abcdef" * 6, 15.0, trouble="xid", source="rank-0")
    run_dir = make_gpu_run(folder / name, (2_810_000_000, 2_310_000_000), name=name, plan=plan, events=[lost])
    others = [make_gpu_run(folder / "other", num_steps=20), make_monitor_run(folder / "watched")]
    return render_html(make_page(compared(run_dir), [compared(other) for other in others]))


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_window_and_the_console_is_silent(
    browse: Callable[..., tuple[dict[str, Any], str]], page: str, width: int
) -> None:
    shown, console = browse(page, width)
    assert shown["width"] == width or shown["width"] == width - 15
    assert shown["scrollWidth"] <= shown["width"]
    assert shown["outside"] == []
    assert console == ""
    assert "Target missed on 1 of 2 GPUs: rank 0 peaked at 2.81 GB" in shown["text"]
    assert all(plot_width > 250 and plot_height > 150 for plot_width, plot_height in shown["plots"])


def test_pointing_at_a_chart_shows_the_values_there(
    browse: Callable[..., tuple[dict[str, Any], str]], page: str
) -> None:
    shown, _ = browse(page, 1440)
    lines = shown["tip"].split("\n")
    assert lines[0].endswith("s") and "GB" in shown["tip"]


def test_it_is_dark_where_one_prefers_that(browse: Callable[..., tuple[dict[str, Any], str]], page: str) -> None:
    (light, _), (dark, _) = browse(page, 390), browse(page, 390, dark=True)
    assert chromium.brightness(light["background"]) > 200 > 100 > chromium.brightness(light["ink"])
    assert chromium.brightness(dark["background"]) < 60 < 200 < chromium.brightness(dark["ink"])
