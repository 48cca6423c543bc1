from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from examinations import exam
from test_ways import task

from dist_trainer.cluster.topology import Host, Topology
from dist_trainer.doctor.examination import HostReport, Startup
from dist_trainer.doctor.startup import look_again
from dist_trainer.launch.hosts import remote
from dist_trainer.launch.hosts.remote import RemoteResult

LOST = HostReport("localhost", (0,), unreachable="the probe ended with status 1")


def found_with(interpreter: Path | str, cwd: Path) -> Startup | None:
    (report,) = look_again(task(interpreter=str(interpreter), cwd=str(cwd)), exam(LOST)).hosts
    return report.startup


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_what_stands_in_the_way_of_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ".".join(map(str, sys.version_info[:3]))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert found_with(sys.executable, tmp_path) == Startup(True, True, own, None)
    assert found_with(sys.executable, tmp_path / "none") == Startup(False, True, own, None)
    absent = found_with(tmp_path / "python", tmp_path)
    assert absent is not None and (absent.has_interpreter, absent.python) == (False, None)
    bare = script(tmp_path / "bare", f'exec {sys.executable} -S -I "$@"')
    assert found_with(bare, tmp_path) == Startup(True, True, own, "ModuleNotFoundError: No module named 'dist_trainer'")


def test_a_host_is_looked_at_as_the_user_that_the_hostfile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_on_hosts(hosts: Iterable[str], argv: object, **named: object) -> dict[str, RemoteResult]:
        return {host: RemoteResult(host, 0, f"python {host}", "", 0.1) for host in hosts}

    monkeypatch.setattr(remote, "run_on_hosts", run_on_hosts)
    asked = task(topology=Topology((Host("node2", (0,), user="me"),)))
    (report,) = look_again(asked, exam(replace(LOST, name="node2"))).hosts
    assert report.startup is not None and report.startup.python == "me@node2"


def test_only_hosts_that_can_be_reached_are_looked_at_again() -> None:
    off = replace(LOST, name="nowhere.invalid", unreachable_kind="no route")
    made = exam(off, HostReport("b", (0,)))
    assert look_again(task(), made) is made


def test_in_a_job_there_is_no_other_way_to_a_host() -> None:
    made = exam(LOST)
    assert look_again(task(how="srun"), made) is made
