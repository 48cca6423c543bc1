from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from worth_runs import CELLS, ENVIRONMENT, results

from dist_trainer.benchmark.worth.cells import AGAIN, ALL, BASELINE
from dist_trainer.benchmark.worth.page import Page, make_page, render_html, render_markdown, write_page
from dist_trainer.benchmark.worth.rows import MatmulRates


def page(**how: Any) -> Page:
    return make_page(results(**how))


class Read(HTMLParser):
    """What a reader sees, and what is not well formed."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"style", "script", "title"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def cells_of(markdown: str, title: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by their first cell."""
    part = markdown.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {row[0].split(r"\. ")[-1]: row[1:] for row in rows[2:]}


def test_the_page_is_well_formed_and_needs_no_other_file() -> None:
    text = render_html(page())
    assert Read(text).links == ["data:,"]
    assert "<script" not in text and "default-src 'none'" in text
    assert re.findall(r"url\(|@import|https?:", text) == []


def test_both_forms_say_the_same() -> None:
    made = page(noise=0.0)
    seen, markdown = Read(render_html(made)).text, render_markdown(made)
    for words in (
        "All together: 2.00 (2.00 to 2.00) times the baseline's speed, 25.0% less peak memory.",
        "Spoil the loss, and are not praised for their speed: fast.json.",
        "this processor has no fp16 arithmetic",
        "2 cores of a processor",
    ):
        assert words in seen and words in markdown, words
    commands = [f"launch --config cells/{cell.name}.yaml" for cell in CELLS]
    assert all(command in seen and command in markdown for command in commands)
    assert "<table>" in MarkdownIt("commonmark").enable("table").render(markdown)


def test_each_row_has_its_judgement_and_each_column_its_figure() -> None:
    environment = replace(ENVIRONMENT, rates=MatmulRates({"fp32": 1e11}, {"bf16": 1e15}))
    markdown = render_markdown(page(environment=environment, noise=0.0, energy_j=1234.0))
    speed, memory = cells_of(markdown, "Speed"), cells_of(markdown, "Memory, loss and energy")
    assert len(speed) == len(memory) == len(CELLS)
    assert speed["bf16"][:8] == [
        *("50.0% faster", "1,500", "1.500", "1.50 to 1.50"),
        *("333.3 ms", "666.7 ms", "4.00 s", "666.7 ms"),
    ]
    assert speed["bf16"][8] == "0.91%" and speed["bf16"][9] == "–" and speed["bf16"][11] == "7, 1 busy"
    assert speed["baseline"][9].endswith("%") and speed["bf16"][10].endswith("%")
    assert speed["activation checkpointing"][0] == "20.0% slower"
    assert speed["fp16"] == ["failed", *["–"] * 10, "0"]
    assert memory["bf16"] == ["0.76 GB", "0.75 GB", "25.0%", "6.0000", "yes", "1,234 J"]
    assert memory["fast.json"][4] == "no" and memory["baseline"][4] == "–"
    assert cells_of(markdown, "What failed, and why")["fp16"][0] == "7 rounds of 7"


def test_where_the_interval_includes_1_no_winner_is_named_anywhere() -> None:
    made = page(speeds={}, noise=0.02)
    markdown, seen = render_markdown(made), Read(render_html(made)).text
    speed = cells_of(markdown, "Speed")
    shown = {name: row for name, row in speed.items() if row[3] != "–"}
    assert len(shown) == len(CELLS) - 2
    for row in shown.values():
        low, high = map(float, row[3].split(" to "))
        assert row[0] in ("no difference shown", "spoils the loss") or not low <= 1 <= high, row
    assert speed["bf16"][0] == speed["all together"][0] == "no difference shown"
    assert "All together: no difference in speed is shown (0." in markdown
    worth = cells_of(markdown, "What each optimisation is worth")
    assert worth["bf16"][0].startswith("no difference shown (") and "x" not in worth["bf16"][0]
    assert "bf16, alone no difference shown (" in seen


def test_a_cell_that_spoils_the_loss_is_not_praised_anywhere() -> None:
    made = page(losses={"bf16": 9.0, ALL: 9.0, "fast": 9.0}, speeds={"bf16": 3.0, ALL: 3.0, "fast": 3.0})
    markdown, seen = render_markdown(made), Read(render_html(made)).text
    speed = cells_of(markdown, "Speed")
    assert [speed[name][0] for name in ("bf16", "all together", "fast.json")] == ["spoils the loss"] * 3
    assert cells_of(markdown, "What each optimisation is worth")["bf16"][0].startswith("spoils the loss, x")
    assert "**All together spoil the loss: 3.0" in markdown
    assert "bf16, alone spoils the loss" in seen and "all together spoils the loss, " in seen


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"num_rounds": 0}, "All together were not measured."),
        ({"failures": {ALL: "out of memory"}}, "All together failed: out of memory"),
        ({"failures": {BASELINE: "out of memory"}}, "There is no baseline to compare all together with."),
        (
            {"num_rounds": 2, "noise": 0.0},
            "All together: 2.00 times the baseline's speed, but too few rounds to be sure, 25.0% less peak memory.",
        ),
        (
            {"speeds": {ALL: 0.5}, "noise": 0.0, "peak_bytes": None},
            "All together: 0.50 (0.50 to 0.50) times the baseline's speed.",
        ),
        ({"cells": CELLS[:4]}, "All together were not measured."),
    ],
)
def test_the_first_sentence_says_what_all_together_came_to(how: dict[str, Any], sentence: str) -> None:
    made = page(**how)
    assert made.sentence == sentence
    assert sentence in Read(render_html(made)).text and sentence in render_markdown(made)


def test_a_baseline_that_differs_from_itself_is_said() -> None:
    quiet, loud = page().notes[0], page(speeds={AGAIN: 1.1}, noise=0.0).notes[0]
    assert "no difference is shown, as it should be" in quiet
    assert loud.startswith("The baseline measured again beside itself: x1.10") and "differs from itself" in loud


def test_with_too_few_rounds_no_difference_is_claimed() -> None:
    markdown = render_markdown(page(num_rounds=5))
    speed = cells_of(markdown, "Speed")
    assert {row[0] for row in speed.values()} <= {"too few rounds", "–", "failed", "spoils the loss"}
    assert speed["bf16"][3] == "–"
    assert "An interval takes three rounds of each order" in markdown


def test_both_files_are_written(tmp_path: Path) -> None:
    made = page()
    html, markdown = write_page(made, tmp_path)
    assert (html.name, markdown.name) == ("report.html", "report.md")
    assert html.read_text(encoding="utf-8") == render_html(made)
    assert markdown.read_text(encoding="utf-8") == render_markdown(made)


def test_text_from_outside_is_shown_and_makes_no_markup() -> None:
    made = page(failures={"fp16": "<b>no</b> | *fp16*\nhere"})
    assert "<b>no</b> | *fp16* here" in Read(render_html(made)).text
    assert r"&lt;b>no&lt;/b> \| \*fp16\* here" in render_markdown(made)
