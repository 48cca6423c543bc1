from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dist_trainer.launch.launchers.unmarked_hostfile import unmarked

# As DeepSpeed's runner does it, which takes what is no file for no hostfile at all.
READER = (
    "import os, sys; path = sys.argv[2]; print(os.path.isfile(path), sys.argv[1:2], sys.argv[3:], open(path).read())"
)


def test_the_module_gets_its_words_and_a_hostfile_without_the_mark(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(READER)
    hosts = tmp_path / "hosts"
    hosts.write_bytes(b"\xef\xbb\xbfh1 slots=2\r\n")
    words = ["-m", "dist_trainer.launch.launchers.unmarked_hostfile", "reader", "--hostfile", str(hosts), "--", "a b"]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True ['--hostfile'] ['--', 'a b'] h1 slots=2\n\n"
    assert list(tmp_path.glob("hosts*")) == [hosts]


def test_only_the_hostfile_is_replaced(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("h1 slots=2\n")
    first, second, path, *rest = unmarked(["runner", "--hostfile", str(hosts), "--include", "h1:0", "--hostfile", "x"])
    assert (first, second, rest) == ("runner", "--hostfile", ["--include", "h1:0", "--hostfile", "x"])
    assert Path(path).read_text() == "h1 slots=2\n"
