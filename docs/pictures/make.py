"""Makes the README's pictures from a real run: what the terminal shows, and the page that `report` writes.

    .venv/bin/python docs/pictures/make.py                        # terminal.svg, report.png
    .venv/bin/python docs/pictures/make.py benchmark_results/DIR   # benchmark.png

The first trains `small` for some steps on this machine, on two ranks (minutes on a CPU); the second takes the page of a
benchmark that was run before. Pages need Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dist_trainer.train.display import wrapped

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
SWITCHES = ("--config", "small", "--ds", "zero2", "--accumulation", "1", "--max-steps", "12", "--run-dir", "runs/small")
COLUMNS = 120
WINDOW = (1100, 880)
BENCHMARK_WINDOW = (1100, 1500)


def main() -> None:
    if len(sys.argv) > 1:
        _photograph(Path(sys.argv[1]) / "report.html", HERE / "benchmark.png", BENCHMARK_WINDOW)
        return
    with tempfile.TemporaryDirectory() as folder:
        shown = _run(folder, "launch", *SWITCHES)
        _run(folder, "report", "runs/small")
        (HERE / "terminal.svg").write_text(_terminal(f"$ ./launch.sh {' '.join(SWITCHES)}\n{shown}"), encoding="utf-8")
        _photograph(Path(folder) / "runs" / "small" / "report.html", HERE / "report.png", WINDOW)


def _photograph(page: Path, picture: Path, window: tuple[int, int]) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("a picture of a page needs Chromium (Debian: apt-get install chromium)")
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            f"--window-size={window[0]},{window[1]}",
            f"--screenshot={picture}",
            page.resolve().as_uri(),
        ],
        check=True,
        capture_output=True,
    )


def _run(folder: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dist_trainer", *command], cwd=folder, check=True, capture_output=True, text=True
    )
    # Where the project lies on this machine is nobody's business.
    return done.stdout.replace(f"{PROJECT}/", "")


def _terminal(text: str) -> str:
    console = Console(record=True, width=COLUMNS, file=StringIO(), highlight=False)
    for line in text.splitlines():
        console.print(Text(wrapped(line.rstrip(), COLUMNS)))
    svg = console.export_svg(title="dist_trainer")
    # Whoever looks at it has a font of his own; the picture loads none.
    return re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main()
