"""What the page of a sweep says, in both its forms."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from markdown_it import MarkdownIt
from scaling_runs import CELLS, GPUS, results

from dist_trainer.benchmark.scaling.chart import IDEAL, speed_up_against_ranks
from dist_trainer.benchmark.scaling.page import make_page, render_html, render_markdown


def markdown(**how: Any) -> str:
    return render_markdown(make_page(results(**how)))


def rows_of(text: str, title: str) -> list[list[str]]:
    part = text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"][2:]


def test_both_forms_say_the_same() -> None:
    made = make_page(results(failures={"weak-4": "no <b>memory</b>"}))
    seen, text = html.unescape(re.sub(r"<[^>]*>", "", render_html(made))), render_markdown(made)
    for words in (*made.sentences, *made.notes, "no <b>memory</b>", "cores of a processor"):
        assert words in seen, words
    assert all(f"launch --config cells/{cell.name}.yaml" in text for cell in CELLS)
    assert made.sentences[1] == "Weak scaling from 1 to 4 ranks: failed."
    assert "<table>" in MarkdownIt("commonmark").enable("table").render(text)


def test_the_page_needs_no_other_file() -> None:
    text = render_html(make_page(results()))
    assert "<script" not in text and "default-src 'none'" in text
    assert re.findall(r"url\(|@import|https?:", text) == []


def test_each_row_has_speed_up_efficiency_and_the_share_of_the_ideal() -> None:
    strong = rows_of(markdown(), "Strong scaling")
    assert strong[0][:7] == ["1", "1", "–", "1.00", "–", "–", "1,000"]
    assert strong[1][:7] == ["2", "x1.80", "1.80 to 1.80", "1.00", "90.0%", "180.0%", "1,800"]
    assert strong[2][0] == "4, more than cores"
    assert strong[2][9:] == ["0.20 GB", "0.20 GB", "1.00%", "7.0000", "8 = 1 x 2 x 4", "1", "7"]
    assert rows_of(markdown(), "Weak scaling")[2][13] == "32 = 1 x 8 x 4"


def test_a_speed_up_that_is_not_shown_is_said_to_be_none() -> None:
    assert rows_of(markdown(tokens_per_s={}, noise=0.02), "Strong scaling")[1][1].endswith(", no difference shown")


def test_shared_cores_and_crowded_ranks_are_said_and_not_on_gpus() -> None:
    assert "All ranks share the 2 cores of this host: the ideal is in proportion to the cores in use" in markdown()
    assert "More ranks than cores: 4." in markdown()
    on_gpus = markdown(capacities=GPUS)
    assert "share the" not in on_gpus and "More ranks than cores" not in on_gpus
    assert (
        "**Weak scaling from 1 to 4 ranks: x3.60 (3.60 to 3.60); efficiency 90%, 90% of the ideal x4.00.**" in on_gpus
    )


def test_what_one_should_know_is_said() -> None:
    assert "busy with other processes in up to 2 rounds of a cell" in markdown(busy_rounds=(1, 2))
    assert "on a busy machine" not in markdown(busy_rounds=(1, 2))
    assert "x2.00 (2.00 to 2.00), on a busy machine; efficiency" in markdown(busy_rounds=(1, 2, 3, 4))
    assert "1 cell of 5 failed." in markdown(failures={"weak-4": "no"})
    assert "5 cells of 5 not measured." in markdown(num_rounds=0)
    few = markdown(num_rounds=2)
    assert "An interval takes three rounds of each order" in few and "but too few rounds to be sure" in few


@pytest.mark.parametrize(("capacities", "rises"), [(GPUS, True), (None, False)])
def test_the_ideal_line_rises_with_the_hardware(capacities: Any, rises: bool) -> None:
    found = speed_up_against_ranks(results(capacities).points if capacities else results().points)
    assert found is not None
    line = dict(found.shapes)[IDEAL]
    heights = [float(number) for number in re.findall(r" ([\d.]+)", line)]
    assert (heights[0] > heights[1] > heights[2]) if rises else (heights[0] == heights[1] == heights[2])
    assert [label.text for label in found.x_labels] == ["1", "2", "4"]
    assert sorted(text for _, _, text, _ in found.numbers) == ["1.80", "1.90", "2.00", "3.60"]


def test_intervals_are_drawn_and_what_has_no_speed_up_is_named() -> None:
    found = speed_up_against_ranks(results(noise=0.02, failures={"weak-4": "no"}).points)
    assert found is not None and found.left_out == ("4 ranks, weak",)
    assert sum(look.startswith("line") for look, _ in found.shapes) == 2 + 3
    assert speed_up_against_ranks(results(num_rounds=0).points) is None
