"""The sweep's page as a browser shows it."""

from __future__ import annotations

from pathlib import Path

import chromium
import pytest
from scaling_runs import results

from dist_trainer.benchmark.scaling.page import make_page, render_html

pytestmark = pytest.mark.skipif(chromium.CHROMIUM is None, reason="no chromium, which the page is looked at with")


@pytest.mark.parametrize("width", [400, 1440])
def test_nothing_of_the_tables_and_the_chart_is_wider_than_the_window(tmp_path: Path, width: int) -> None:
    page = render_html(make_page(results(noise=0.02, failures={"weak-4": "no memory: " + "0123456789abcdef" * 12})))
    shown, console = chromium.browse(tmp_path, page, width)
    assert shown["scrollWidth"] <= shown["width"] <= width
    assert shown["outside"] == []
    assert console == ""
    assert [plot_width > 250 and plot_height > 150 for plot_width, plot_height in shown["plots"]] == [True]
