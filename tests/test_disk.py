from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from ranks import run
from small_disks import in_own_mounts

from dist_trainer.disk import WriteError, cannot_write, check_room, explained, write_text, writing
from dist_trainer.errors import RunError, UserError


def os_error(number: int, filename: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), filename)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, RunError, "the disk is full"),
        (errno.EDQUOT, RunError, "quota"),
        (errno.EIO, RunError, "the disk fails"),
        (errno.ENOENT, RunError, "gone"),
        (errno.ESTALE, RunError, "no longer knows"),
        (errno.EROFS, UserError, "read-only"),
        (errno.EACCES, UserError, "may not be used"),
    ],
)
def test_an_error_names_the_folder_what_is_free_and_what_was_needed(
    tmp_path: Path, number: int, kind: type[UserError], words: str
) -> None:
    file = tmp_path / "gone" / "file"
    with pytest.raises(WriteError) as raised, writing(file, 3_000_000):
        raise os_error(number)
    told = explained(raised.value)
    assert type(told) is kind
    assert words in told.problem
    assert told.where == str(file)
    assert f"free in {tmp_path}" in str(told.found)
    assert os.strerror(number) in str(told.found)
    assert told.expected == "room for 3.0 MB"


def test_an_error_without_a_file_is_of_the_folder_that_is_written_to_or_not_a_disks(tmp_path: Path) -> None:
    told = explained(os_error(errno.ENOSPC), tmp_path)
    assert told is not None and told.where == str(tmp_path)
    assert explained(os_error(errno.ENOSPC)) is None
    assert explained(os_error(errno.ECONNRESET, "file"), tmp_path) is None


def test_what_could_not_be_written_comes_before_the_reason(tmp_path: Path) -> None:
    told = cannot_write("cannot write the report", os_error(errno.EROFS, "elsewhere"), tmp_path)
    assert (told.problem, told.where) == ("cannot write the report: the file system is read-only", str(tmp_path))
    told = cannot_write("cannot write the report", os_error(errno.EEXIST), tmp_path)
    assert (told.problem, told.found) == ("cannot write the report", os.strerror(errno.EEXIST))


def test_room_is_looked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there", 1, "a checkpoint")
    with pytest.raises(RunError, match="no room for a checkpoint") as raised:
        check_room(tmp_path / "not" / "there", 10**18, "a checkpoint")
    assert str(raised.value.found).endswith(" free")
    assert raised.value.expected == "1000000000.00 GB"


def test_a_few_bytes_are_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as raised, writing(tmp_path / "steps.jsonl", 312):
        raise os_error(errno.ENOSPC)
    told = explained(raised.value)
    assert told is not None and told.expected == "room for 312 bytes"


def test_what_was_free_is_what_was_free_when_it_failed() -> None:
    code = """
import os
from pathlib import Path
from dist_trainer.disk import WriteError, cannot_write, explained, write_text
try:
    write_text(Path("/mnt/plan.json"), "x" * 3_000_000)
except WriteError as error:
    os.unlink("/mnt/plan.json")
    print(explained(error))
    print(cannot_write("it cannot be written", error, Path("/mnt")))
"""
    ended = in_own_mounts('mount -t tmpfs -o size=1m tmpfs /mnt && exec "$@"', [sys.executable, "-c", code])
    assert ended.output.count("device, 0 bytes free in /mnt") == 2, ended.output


def test_where_the_folder_of_the_process_is_gone_the_reason_is_still_said() -> None:
    code = """
import errno, os, tempfile
from pathlib import Path
from dist_trainer.disk import explained, writing
os.chdir(tempfile.mkdtemp())
os.rmdir(os.getcwd())
try:
    with writing(Path("run/steps.jsonl"), 10):
        raise OSError(errno.ENOENT, "gone")
except OSError as error:
    print(explained(error).problem)
"""
    ended = run([sys.executable, "-c", code], cwd=Path.cwd())
    assert ended.output == "a folder or file is gone\n"


def test_text_is_written_with_its_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "file", "ä\n")
    assert (tmp_path / "new" / "file").read_bytes() == "ä\n".encode()


ON_A_FULL_DISK = """
import time
from pathlib import Path
from dist_trainer.cache import write_whole
from dist_trainer.data.atomic_folder import atomic_folder
from dist_trainer.disk import explained, write_text
from dist_trainer.errors import UserError
from dist_trainer.records import Event, RecordWriter, read_records

def records():
    writer = RecordWriter(Path("/mnt/records/events.jsonl"))
    for number in range(100_000):
        writer.write(Event("notice", "x" * 100, number, 0.0))

def folder():
    with atomic_folder(Path("/mnt/data")) as made:
        (made / "train.bin").write_bytes(bytes(3_000_000))

for number, what in enumerate([
    lambda: write_text(Path("/mnt/summary.json"), "x" * 3_000_000),
    lambda: write_whole(Path("/mnt/cache"), "x" * 3_000_000),
    folder,
    records,
]):
    try:
        what()
        print("written")
    except UserError as error:
        print(number, error)
    except OSError as error:
        print(number, explained(error))
    for file in Path("/mnt").glob("*.json"):
        file.unlink()
read = [event.rank for event in read_records(Path("/mnt/records/events.jsonl"), Event)]
print(read == list(range(len(read))), len(read) > 1000)
"""


def test_on_a_disk_that_is_full_every_writer_says_so() -> None:
    script = 'mount -t tmpfs -o size=1m tmpfs /mnt && exec "$@"'
    ended = in_own_mounts(script, [sys.executable, "-c", ON_A_FULL_DISK])
    assert ended.output.count("the disk is full") == 4, ended.output
    assert ended.output.count("bytes free in /mnt") == 4
    assert ended.output.count("room for 3.0 MB") == 2
    assert "/mnt/data" in ended.output and "/mnt/records/events.jsonl" in ended.output
    assert ended.output.endswith("True True\n"), "what was whole can be read"


def test_the_command_line_says_it_too_and_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words to learn from\n" * 200)
    script = 'mount -t tmpfs -o ro tmpfs /mnt && exec "$@"'
    words = ["data", "prepare", "--vocab-size", "300", "--output", "/mnt/data", "--input", str(tmp_path / "text.txt")]
    ended = in_own_mounts(script, [sys.executable, "-m", "dist_trainer", *words], cwd=tmp_path)
    assert ended.status == 2, ended.output
    assert "the output cannot be written: the file system is read-only" in ended.output
    assert "Traceback" not in ended.output


def test_where_files_are_all_that_lacks_room_that_is_said() -> None:
    code = """
from pathlib import Path
from dist_trainer.disk import WriteError, cannot_write, explained, write_text
try:
    write_text(Path("/mnt/a/b/plan.json"), "{}")
except WriteError as error:
    print(explained(error))
    print(cannot_write("it cannot be written", error, Path("/mnt")))
"""
    script = 'mount -t tmpfs -o size=9m,nr_inodes=2 tmpfs /mnt && exec "$@"'
    ended = in_own_mounts(script, [sys.executable, "-c", code])
    assert ended.output.count("no room for one more file (its inodes are used up)") == 2, ended.output
    assert "9.4 MB free in /mnt" in ended.output and "expected" not in ended.output


def test_a_private_file_is_its_owners_also_where_an_open_one_stood(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_text(path, "before")
    assert path.stat().st_mode & 0o077 != 0
    write_text(path, "after", private=True)
    assert (path.stat().st_mode & 0o777, path.read_text()) == (0o600, "after")
