from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.doctor.probes import folder

# In a mount namespace of its own: a file system of 1 MiB, with nothing free.
FULL = """
mount -t tmpfs -o size=1m tmpfs {folder} && cat /dev/zero >{folder}/full 2>/dev/null
exec {python} -c "
from pathlib import Path
from dist_trainer.doctor.probes.folder import write
print(write(Path('{folder}'), 't', 'here', 2**20).error)"
"""


def test_writing_leaves_one_small_file_that_others_can_find(tmp_path: Path) -> None:
    written = folder.write(tmp_path, "t", "here", 2**22)
    assert (written.error, written.write_bytes) == (None, 2**22)
    assert written.write_s > 0
    assert written.kind and written.free_bytes
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size < 100
    assert folder.look(tmp_path, "t", ["here", "there"]).missing == ("there",)
    assert folder.look(tmp_path, "another", ["here"]).missing == ("here",)
    folder.remove(tmp_path, "t", "here")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_to_be_removed_is_no_error(tmp_path: Path) -> None:
    folder.remove(tmp_path, "t", "here")


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    written = folder.write(tmp_path / "none", "t", "here", 2**20)
    assert written.is_missing and written.error


def test_a_file_system_with_little_room_is_not_filled(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    written = folder.write(tmp_path, "t", "here", room.f_frsize * room.f_bavail)
    assert (written.error, written.write_bytes) == (None, 0)


def test_a_full_file_system_says_so(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    script = FULL.format(folder=tmp_path, python=sys.executable)
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "No space left on device", done.stderr
