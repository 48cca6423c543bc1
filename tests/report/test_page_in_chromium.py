"""The page as a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plans import make_plan
from run_folders import event, make_gpu_run, make_monitor_run

from dist_trainer.report.charts.curves import Compared
from dist_trainer.report.page import make_page, render_html
from dist_trainer.report.reading.findings import read_findings
from dist_trainer.report.summary import summary_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, which the page is looked at with")

# A frame of a given width around the page, which is asked what it shows; a headless window cannot be very narrow.
FRAME = """<!doctype html><meta charset="utf-8"><body>
<iframe id="f" style="border:0;width:{width}px;height:900px"></iframe>
<pre id="answer"></pre><script>
const f = document.getElementById("f");
f.srcdoc = {page};
f.onload = () => {{
  const w = f.contentWindow, d = f.contentDocument;
  const outside = [...d.querySelectorAll("main *, header *")].filter((e) => {{
    if (e.closest(".scroll, svg, details:not([open])") || !e.getClientRects().length) return false;
    const box = e.getBoundingClientRect();
    return box.right > {width} + 0.5 || box.left < -0.5;
  }});
  const plot = d.querySelector(".plot"), box = plot.querySelector("svg").getBoundingClientRect();
  const place = {{ clientX: box.left + box.width * 0.6, clientY: box.top + 20 }};
  plot.dispatchEvent(new w.PointerEvent("pointermove", place));
  const tip = plot.querySelector(".tip");
  document.getElementById("answer").textContent = JSON.stringify({{
    width: d.documentElement.clientWidth, scrollWidth: d.documentElement.scrollWidth,
    outside: outside.map((e) => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40)),
    text: d.body.innerText, tip: tip.hidden ? null : tip.innerText,
    plots: [...d.querySelectorAll(".plot svg")].map((s) => s.getBoundingClientRect()).map((s) => [s.width, s.height]),
    background: w.getComputedStyle(d.body).backgroundColor, ink: w.getComputedStyle(d.body).color,
  }});
}};
</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Shows a page in a frame of a width; gives what the frame says, and the browser's console."""

    def run(page: str, width: int, *, dark: bool = False) -> tuple[dict[str, Any], str]:
        source = json.dumps(page).replace("</", "<\\/")
        path = tmp_path / f"frame-{width}.html"
        path.write_text(FRAME.format(width=width, page=source), encoding="utf-8")
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            "--enable-logging=stderr",
        ]
        command += [f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={max(width, 600)},1000"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=90, check=False)
        answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
        assert answer is not None and answer.group(1), done.stderr[-2000:]
        text = answer.group(1)
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", " "), ("&amp;", "&")):
            text = text.replace(entity, character)
        return json.loads(text), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return run


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

    def brightness(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert brightness(light["background"]) > 200 > 100 > brightness(light["ink"])
    assert brightness(dark["background"]) < 60 < 200 < brightness(dark["ink"])
