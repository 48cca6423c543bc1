from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dist_trainer.monitor.mailbox import SLOT_BYTES, Mailbox


def test_what_one_posts_the_other_reads(tmp_path: Path) -> None:
    made = Mailbox.make(tmp_path / "mailbox", 3)
    opened = Mailbox.open(tmp_path / "mailbox", 3)
    assert opened.read(1) is None
    opened.post(1, {"step": 3, "host": "h1"})
    made.post(0, {"step": 9})
    assert (made.read(1), made.read(0), made.read(2)) == ({"step": 3, "host": "h1"}, {"step": 9}, None)
    opened.post(1, {"step": 4})
    assert made.read(1) == {"step": 4}
    made.accept(2, 10)
    assert [opened.has_accepted(slot, 10) for slot in range(3)] == [False, False, True]
    # Of two that took one slot only one is accepted.
    assert not opened.has_accepted(2, 18)


def test_it_stays_for_those_who_have_it_when_its_name_is_gone(tmp_path: Path) -> None:
    made = Mailbox.make(tmp_path / "mailbox", 1)
    opened = Mailbox.open(tmp_path / "mailbox", 1)
    (tmp_path / "mailbox").unlink()
    opened.post(0, {"step": 1})
    assert made.read(0) == {"step": 1}


def test_what_somebody_else_has_put_under_its_name_is_not_opened(tmp_path: Path) -> None:
    path, other = tmp_path / "mailbox", tmp_path / "other"
    Mailbox.make(other, 1)
    path.symlink_to(other)
    with pytest.raises(OSError):
        Mailbox.open(path, 1)
    with pytest.raises(FileExistsError):
        Mailbox.make(path, 1)
    if os.geteuid() == 0:
        os.chown(other, 65534, 65534)
        with pytest.raises(PermissionError, match="another user"):
            Mailbox.open(other, 1)


def test_a_message_that_is_being_written_is_none_and_never_a_part_of_one(tmp_path: Path) -> None:
    mailbox = Mailbox.make(tmp_path / "mailbox", 2)
    done = threading.Event()

    def post() -> None:
        number = 0
        while not done.is_set():
            number += 1
            mailbox.post(1, {"number": number, "again": number, "rest": "x" * (number % 1000)})

    writer = threading.Thread(target=post)
    writer.start()
    reader = Mailbox.open(tmp_path / "mailbox", 2)
    seen = [reader.read(1) for _ in range(5000)]
    done.set()
    writer.join()
    whole = [message for message in seen if message is not None]
    assert whole and all(message["number"] == message["again"] for message in whole)
    assert all(len(message["rest"]) == message["number"] % 1000 for message in whole)


def test_half_a_message_is_none(tmp_path: Path) -> None:
    mailbox = Mailbox.make(tmp_path / "mailbox", 1)
    mailbox.post(0, {"step": 1})
    content = bytearray((tmp_path / "mailbox").read_bytes())
    content[18] ^= 1
    (tmp_path / "mailbox").write_bytes(content)
    assert Mailbox.open(tmp_path / "mailbox", 1).read(0) is None


def test_what_is_no_board_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Mailbox.open(tmp_path / "none", 1)
    with pytest.raises(OSError, match="No such file"):
        Mailbox.make(tmp_path / "none" / "mailbox", 1)
    Mailbox.make(tmp_path / "mailbox", 1)
    with pytest.raises(OSError, match="exists"):
        Mailbox.make(tmp_path / "mailbox", 1)
    with pytest.raises(OSError, match="length"):
        Mailbox.open(tmp_path / "mailbox", 2)


def test_a_message_longer_than_a_slot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer than a slot"):
        Mailbox.make(tmp_path / "mailbox", 1).post(0, {"text": "x" * SLOT_BYTES})
