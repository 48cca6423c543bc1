"""`launch` by MPICH's and Intel's mpirun over two hosts that differ: places, arguments, statuses, and nothing left."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from lab import HOSTS, Lab
from ranks import Ended

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LITERAL = ("a b", "it's", "$HOME", ";", '{"a":1}', "", ":", "--", "-hosts", "é\\n")


@pytest.fixture(scope="module", params=hydra.KINDS)
def folder(lab: Lab, request: pytest.FixtureRequest) -> Path:
    made = lab.folder / str(request.param)
    made.mkdir()
    (made / "hosts").write_text("".join(f"{host} slots={2 - place}\n" for place, host in enumerate(HOSTS)))
    hydra.make_mpirun(request.param, made / "bin")
    return made


def launch(lab: Lab, folder: Path, name: str, *words: str) -> Ended:
    (folder / name).mkdir()
    where = ["--launcher=mpirun", "--hostfile", "hosts", "--", str(folder / name), *words]
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "launch")])
    environ = {"PATH": path, "PYTHONPATH": modules}
    return lab.run(HOSTS[0], ["python", "-m", "launch_echo", *where], cwd=folder, environ=environ)


def record(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / f"rank-{rank}.json").read_text())
    return found


def test_each_rank_has_its_place_and_its_arguments(lab: Lab, folder: Path) -> None:
    ended = launch(lab, folder, "end", "end", *LITERAL)
    assert ended.status == 0, ended.output
    records = [record(folder, "end", rank) for rank in range(3)]
    assert [(one["rank"]["local_rank"], one["rank"]["local_world_size"]) for one in records] == [(0, 2), (1, 2), (0, 1)]
    assert {one["rank"]["master_addr"] for one in records} == {HOSTS[0]}
    assert len({one["rank"]["master_port"] for one in records}) == 1
    assert all(one["argv"][3:] == list(LITERAL) for one in records)
    lab.wait_until_nothing_runs()


@pytest.mark.parametrize(
    ("behaviour", "status", "said"), [("exit:3", 3, "ended with status 3"), ("kill:9", 137, "was killed by SIGKILL")]
)
def test_the_first_rank_to_fail_is_named_and_ends_the_others(
    behaviour: str, status: int, said: str, lab: Lab, folder: Path
) -> None:
    """Hydra by itself would wait for the others after a status, and give 9 for SIGKILL."""
    ended = launch(lab, folder, behaviour.replace(":", "-"), behaviour)
    assert ended.status == status, ended.output
    assert ended.output == f"dist_trainer: rank 1 on {HOSTS[0]} {said}\n"
    lab.wait_until_nothing_runs()
