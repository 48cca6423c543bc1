"""What one host answers, asked as the doctor asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.doctor.protocol import Unpacker

LIMIT_S = 60.0
# Says at the end which of these have been imported.
WITHOUT_HEAVY = """
import sys
from dist_trainer.doctor.host import main
main(["here"])
print(sorted({"torch", "deepspeed", "pydantic", "rich"} & set(sys.modules)), file=sys.stderr)
"""

AS_HERE = "from dist_trainer.doctor.host import main; main(['here'])"


@contextmanager
def respondent(*code: str, environ: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    argv = code or ("-m", "dist_trainer.doctor.host", "here")
    process = subprocess.Popen(
        [sys.executable, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | (environ or {}),
    )
    with process:
        yield process
        process.kill()


def ask(process: subprocess.Popen[bytes], do: str, **options: Any) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"id": 1, "do": do, **options}).encode() + b"\n")
    process.stdin.flush()
    unpacker = Unpacker()
    for line in process.stdout:
        taken = unpacker.take(line)
        if taken is not None:
            assert taken[:2] == ("here", 1)
            return taken[2]
    raise AssertionError("no answer")


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def test_it_tells_about_itself_and_imports_nothing_heavy() -> None:
    with respondent("-c", WITHOUT_HEAVY) as process:
        facts = ask(process, "facts", ports=[1])["answer"]
        assert ask(process, "listen")["answer"]["port"] > 0
        assert process.stdin is not None and process.stderr is not None
        process.stdin.close()
        assert process.stderr.read().decode().strip() == "[]"
    assert facts["interpreter"] == sys.executable
    assert facts["packages"]["torch"] and facts["packages"]["deepspeed"]
    assert facts["cpus"]["num_usable"] >= 1
    assert facts["memory"]["total_bytes"] > 0
    assert facts["limits"]["open_files"] > 0
    assert facts["troubles"] == []


@pytest.mark.parametrize("ending", ["stdin", signal.SIGTERM, signal.SIGALRM])
def test_what_it_wrote_is_taken_away_when_it_ends(ending: str | signal.Signals, tmp_path: Path) -> None:
    with respondent() as process:
        answer = ask(process, "write", folder=str(tmp_path), token="t", max_bytes=2**20)["answer"]
        assert answer["error"] is None and answer["write_bytes"] == 2**20
        assert len(left_in(tmp_path)) == 1
        if isinstance(ending, signal.Signals):
            process.send_signal(ending)
        else:
            assert process.stdin is not None
            process.stdin.close()
        process.wait(LIMIT_S)
        assert left_in(tmp_path) == []


def test_under_nohup_a_hang_up_does_not_end_it() -> None:
    with respondent("-c", f"import signal; signal.signal(1, signal.SIG_IGN)\n{AS_HERE}") as process:
        assert "time_s" in ask(process, "clock")["answer"]
        process.send_signal(signal.SIGHUP)
        assert "time_s" in ask(process, "clock")["answer"]


def test_hosts_see_each_others_files_in_a_folder_that_they_share(tmp_path: Path) -> None:
    with respondent() as process:
        ask(process, "write", folder=str(tmp_path), token="t", max_bytes=0)
        (tmp_path / ".dist_trainer-doctor-t-other").write_text("t")
        seen = ask(process, "look", folder=str(tmp_path), token="t", hosts=["here", "other", "apart"])["answer"]
        assert seen == {"missing": ["apart"]}


def test_under_srun_it_knows_its_name_from_the_environment() -> None:
    with respondent("-m", "dist_trainer.doctor.host", environ={"SLURMD_NODENAME": "here"}) as process:
        assert "time_s" in ask(process, "clock")["answer"]


def test_nobody_there_to_read_the_answer_ends_it() -> None:
    with respondent() as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.close()
        process.stdin.write(b'{"id": 1, "do": "clock"}\n')
        process.stdin.flush()
        assert process.wait(LIMIT_S) != 0
