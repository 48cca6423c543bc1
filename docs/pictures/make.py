"""Makes the README's pictures from a real run: what the terminal shows, and the page that `report` writes.

    .venv/bin/python docs/pictures/make.py

trains `small` for some steps on this machine, on two ranks (minutes on a CPU), and needs Chromium for the page.
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


def main() -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("the picture of the report needs Chromium (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        shown = _run(folder, "launch", *SWITCHES)
        _run(folder, "report", "runs/small")
        (HERE / "terminal.svg").write_text(_terminal(f"$ ./launch.sh {' '.join(SWITCHES)}\n{shown}"), encoding="utf-8")
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--window-size={WINDOW[0]},{WINDOW[1]}",
                f"--screenshot={HERE / 'report.png'}",
                (Path(folder) / "runs" / "small" / "report.html").as_uri(),
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
