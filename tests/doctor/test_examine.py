"""The order of an examination, over hosts that are respondents of this one behind a stand-in for ssh."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from test_ways import task

from dist_trainer.cluster.topology import Host, Topology
from dist_trainer.doctor.examine import examine

ROOT = Path(__file__).parents[2]

# Answers the first question as it should, and sleeps over the second.
FALLS_SILENT = """
import time
from dist_trainer.doctor import host
questions = host.lines_of
host.lines_of = lambda fd: (line for number, line in enumerate(questions(fd)) if number == 0 or time.sleep(1000))
host.main(["silent"])
"""
# It reaches this host, whatever the name.
SSH = f"""#!/bin/sh
while [ $# -gt 2 ]; do shift; done
if [ "$1" = silent ]; then exec {sys.executable} -c '{FALLS_SILENT}'; fi
exec /bin/sh -c "$2"
"""


def test_a_host_that_falls_silent_is_named_with_the_question_and_hinders_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, runs = tmp_path / "bin" / "ssh", tmp_path / "runs"
    for folder in (program.parent, runs):
        folder.mkdir()
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("dist_trainer.doctor.examine._ANSWER_LIMIT_S", 5.0)
    two = Topology((Host("well", (0,)), Host("silent", (0,))))
    found = examine(task(topology=two, folder=str(runs), cwd=str(ROOT), interpreter=sys.executable))
    well, silent = found.hosts
    assert silent.facts is not None and silent.unreachable is None
    assert silent.unanswered == {"clock": "no answer within 5 s"}
    assert well.unanswered == {}
    assert well.gpus is not None and well.folder is not None and well.folder.error is None
    assert (found.trial.hosts, found.trial.why_not) == ({}, "there is one rank only")
    assert found.needs.plan is not None
    assert list(runs.iterdir()) == []
