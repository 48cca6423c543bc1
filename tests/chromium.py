"""A page as Chromium shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

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
    text: d.body.innerText, tip: !tip || tip.hidden ? null : tip.innerText,
    plots: [...d.querySelectorAll(".plot svg")].map((s) => s.getBoundingClientRect()).map((s) => [s.width, s.height]),
    background: w.getComputedStyle(d.body).backgroundColor, ink: w.getComputedStyle(d.body).color,
  }});
}};
</script>"""


def browse(folder: Path, page: str, width: int, *, dark: bool = False) -> tuple[dict[str, Any], str]:
    """Shows a page in a frame of a width; gives what the frame says, and the browser's console."""
    source = json.dumps(page).replace("</", "<\\/")
    path = folder / f"frame-{width}.html"
    path.write_text(FRAME.format(width=width, page=source), encoding="utf-8")
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--enable-logging=stderr",
    ]
    command += [f"--user-data-dir={folder / 'browser'}", f"--window-size={max(width, 600)},1000"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=90, check=False)
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer is not None and answer.group(1), done.stderr[-2000:]
    text = answer.group(1)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", " "), ("&amp;", "&")):
        text = text.replace(entity, character)
    return json.loads(text), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def brightness(colour: str) -> float:
    """Of a colour as a browser says it, 0 to 255."""
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
