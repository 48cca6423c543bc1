from __future__ import annotations

from collections.abc import Callable, Iterable

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from dist_trainer.report.markdown import fenced, finalize, quoted

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PLACES: dict[str, Callable[[str], str]] = {
    "paragraph": lambda text: f"before\n\n{text}\n\nafter",
    "heading": lambda text: f"# {text}: met",
    "item": lambda text: f"- {text}\n- next",
    "bold": lambda text: f"- name: **{text}** (more)",
    "cell": lambda text: f"| a | b |\n|---|---|\n| {text} | 1 |\n",
}
HARMLESS = {"text", "text_special", "softbreak"}
EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://h/x.png) [y](javascript:alert(1))",
    "`code` ``two`` `",
    "a | b | c",
    "a\\|b \\` \\",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "---",
    "===",
    "__init__.py and _x_ and *y* and ~~z~~ but snake_case",
    "&lt;b&gt; &#60;",
    "two\nlines\n\n# and a heading\r\n```",
    "[ref]: http://h",
    "a$x$b",
    "    indented",
)


def flat(tokens: Iterable[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *(token.children or ()))]


def text_of(place: str, text: str) -> str:
    """What a reader sees of it, when nothing but text came of it; nothing around it has changed."""
    tokens = flat(READER.parse(PLACES[place](quoted(text))))
    plain = flat(READER.parse(PLACES[place]("x")))
    kinds = [token.type for token in tokens if token.type not in HARMLESS]
    assert kinds == [token.type for token in plain if token.type not in HARMLESS]
    return "".join(token.content for token in tokens if token.type in HARMLESS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", EVIL)
def test_what_is_quoted_shows_as_it_is(place: str, text: str) -> None:
    assert text_of(place, text) == text_of(place, "x").replace("x", " ".join(text.split()), 1)


@pytest.mark.parametrize("place", PLACES)
@given(text=st.text(st.sampled_from("ab1 \n\t`*_[]()<>|~$&#-+=.!\\:;/é"), min_size=1).filter(str.strip))
def test_no_text_becomes_markup(place: str, text: str) -> None:
    if place == "bold" and not text.strip()[0].isalnum():
        # Asterisks before a space or punctuation are no emphasis, and show.
        return
    assert " ".join(text.split()) in text_of(place, text).replace("\n", " ")


def test_usual_texts_are_left_as_they_are() -> None:
    for text in (
        "2.31 GB",
        "-0.4%",
        "7.5 -> 6.1 (mean)",
        "runs/tiny-zero2-001",
        "data_wait_s",
        "rank 3: 1.5 of 2",
        "C++",
    ):
        assert quoted(text) == text


@given(text=st.text(st.sampled_from("a`~\n #"), min_size=1))
def test_no_text_leaves_its_block(text: str) -> None:
    (block, after, *_) = READER.parse(f"{fenced(text, 'json')}\n\nafter")
    assert (block.type, after.type) == ("fence", "paragraph_open")
    assert block.content == text + "\n"


def test_a_template_quotes_what_is_no_markdown_yet() -> None:
    template = jinja2.Environment(autoescape=True, finalize=finalize).from_string("# {{ a }} **{{ b }}** {{ c }} <i>")
    assert template.render(a="*<b>", b=3, c=Markup("**x**")) == r"# \*&lt;b> **3** **x** <i>"
