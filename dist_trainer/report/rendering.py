"""A page from its templates: as one HTML file, and as Markdown with the same contents."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import jinja2
from markupsafe import Markup

from dist_trainer.cache import write_whole
from dist_trainer.encoding import printable
from dist_trainer.report.markdown import fenced, finalize, quoted

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
REPORT = "dist_trainer.report"


def html(template: str, page: object, *, packages: tuple[str, ...] = ()) -> str:
    """A self-contained file: style and script are inline, and its Content-Security-Policy allows no loading.

    `packages`, and after them the report, are where the template and what it includes are looked for.
    """
    return _environment(packages).get_template(template).render(page=page, read=partial(_read, packages))


def markdown(template: str, page: object, *, packages: tuple[str, ...] = ()) -> str:
    environment = _environment(packages, finalize=finalize)
    environment.filters.update(quoted=quoted, fenced=fenced)
    text = environment.get_template(template).render(page=page)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def write(html_text: str, markdown_text: str, folder: Path) -> tuple[Path, Path]:
    """Writes both files, each atomically, because someone may be reading the previous ones. Raises OSError."""
    paths = (folder / HTML_FILE, folder / MARKDOWN_FILE)
    for path, text in zip(paths, (html_text, markdown_text), strict=True):
        write_whole(path, printable(text))
    return paths


@cache
def _environment(
    packages: tuple[str, ...], *, finalize: Callable[[object], Markup] | None = None
) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(one) for one in (*packages, REPORT)]),
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _read(packages: tuple[str, ...], name: str) -> str:
    places = [importlib.resources.files(one) / "templates" / name for one in (*packages, REPORT)]
    return next(place for place in places if place.is_file()).read_text(encoding="utf-8")
