"""A rank that is killed while it saves: `python killed_rank.py STEP WHERE train ...`.

WHERE is "data": half of the data file is written; "index": the data is there, and half of the index; or "latest": the
checkpoint has its name, and `latest` is still that of the one before.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints import data_file, folder, index
from dist_trainer.cli.main import main

STEP, WHERE = sys.argv[1], sys.argv[2]
write_data, write_durably = data_file.write, index.write_durably


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_data(path: Path, layout: Any, contents: Any) -> Any:
    written = write_data(path, layout, contents)
    if WHERE == "data" and path.parent.name == f".step-{STEP}.saving":
        os.truncate(path, layout.num_bytes // 2)
        die()
    return written


def killed_in_small_files(file: Path, content: bytes) -> None:
    if WHERE == "index" and file == file.parent / index.INDEX_FILE and file.parent.name == f".step-{STEP}.saving":
        file.write_bytes(content[: len(content) // 2])
        die()
    if WHERE == "latest" and content == f"step-{STEP}".encode():
        die()
    write_durably(file, content)


if __name__ == "__main__":
    data_file.write = killed_in_data
    index.write_durably = folder.write_durably = killed_in_small_files
    sys.exit(main(sys.argv[3:]))
