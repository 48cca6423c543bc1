"""The benchmark's page as a browser shows it."""

from __future__ import annotations

from pathlib import Path

import chromium
import pytest
from worth_runs import results

from dist_trainer.benchmark.worth.page import make_page, render_html

pytestmark = pytest.mark.skipif(chromium.CHROMIUM is None, reason="no chromium, which the page is looked at with")


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(make_page(results(failures={"fp16": "no fp16 here: " + "0123456789abcdef" * 12})))


@pytest.mark.parametrize("width", [400, 1440])
def test_nothing_of_the_tables_and_charts_is_wider_than_the_window(tmp_path: Path, page: str, width: int) -> None:
    shown, console = chromium.browse(tmp_path, page, width)
    assert shown["scrollWidth"] <= shown["width"] <= width
    assert shown["outside"] == []
    assert console == ""
    assert "no difference shown" in shown["text"]
    assert all(plot_width > 250 and plot_height > 150 for plot_width, plot_height in shown["plots"])


def test_the_tables_and_charts_are_dark_where_one_prefers_that(tmp_path: Path, page: str) -> None:
    (light, _), (dark, _) = (chromium.browse(tmp_path, page, 400, dark=dark) for dark in (False, True))
    assert chromium.brightness(light["background"]) > 200 > 100 > chromium.brightness(light["ink"])
    assert chromium.brightness(dark["background"]) < 60 < 200 < chromium.brightness(dark["ink"])
