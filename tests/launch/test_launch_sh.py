"""launch.sh in a copy of its own, with a stand-in for pip: what it installs and when."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands for the Python of an environment: `-m pip install` is noted, `-m dist_trainer` says where it was called.
FAKE_PYTHON = """\
#!/bin/sh
case "$*" in
"-m pip --version") ;;
"-m pip install"*) echo "$*" >>"{log}"; [ ! -e "{log}.fail" ] ;;
"-m venv"*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; echo "venv" >>"{log}" ;;
"-m dist_trainer"*) printf '%s|' "$PWD" "$@" ;;
*) exec "{python}" "$@" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    clone = tmp_path / "a clone"
    clone.mkdir()
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, clone / name)
    path = tmp_path / "bin"
    path.mkdir()
    broken = path / "python3.13"
    broken.write_text("#!/bin/sh\nexit 127\n")
    good = path / "python3.12"
    good.write_text(FAKE_PYTHON.format(log=tmp_path / "log", python=sys.executable))
    for program in (broken, good):
        program.chmod(0o755)
    return clone


def launch(clone: Path, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": f"{clone.parent / 'bin'}:/usr/bin:/bin", "HOME": str(clone.parent)} | variables
    return subprocess.run(
        [str(clone / "launch.sh"), *words], cwd=cwd or clone, env=environ, capture_output=True, text=True, check=False
    )


def installs(clone: Path) -> list[str]:
    log = clone.parent / "log"
    return log.read_text().splitlines() if log.exists() else []


def test_it_installs_once_and_keeps_the_users_folder_and_words(clone: Path, tmp_path: Path) -> None:
    for _ in range(2):
        answer = launch(clone, "--config", "a b", "$HOME", cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout == f"{tmp_path}|-m|dist_trainer|launch|--config|a b|$HOME|"
    assert len(installs(clone)) == 2
    assert installs(clone)[0] == "venv"


def test_a_changed_dependency_list_and_an_extra_install_again(clone: Path) -> None:
    assert launch(clone, "--setup", "dev").returncode == 0
    assert launch(clone, "--setup", "dev").returncode == 0
    assert launch(clone).returncode == 0
    assert len(installs(clone)) == 2
    assert installs(clone)[-1].endswith("a clone[dev]")
    with (clone / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert launch(clone, "--setup", "dev").returncode == 0
    assert len(installs(clone)) == 3


def test_an_install_that_failed_is_not_taken_as_good(clone: Path, tmp_path: Path) -> None:
    fail = tmp_path / "log.fail"
    fail.touch()
    answer = launch(clone)
    assert answer.returncode != 0
    assert answer.stdout == ""
    fail.unlink()
    assert launch(clone).stdout.startswith(str(clone))
    assert len([line for line in installs(clone) if "install" in line]) == 2


def test_without_a_python_it_says_so(clone: Path, tmp_path: Path) -> None:
    for name in ("python3.12", "python3.11", "python3.10", "python3", "python"):
        program = tmp_path / "bin" / name
        program.write_text("#!/bin/sh\nexit 127\n")
        program.chmod(0o755)
    answer = launch(clone)
    assert answer.returncode == 2
    assert "no Python 3.10 or newer" in answer.stderr


def test_an_active_environment_that_has_it_comes_first(clone: Path) -> None:
    answer = launch(clone, "--dry-run", VIRTUAL_ENV=sys.prefix, PYTHONPATH=str(ROOT))
    assert "making" not in answer.stderr
    assert installs(clone) == []


@pytest.mark.parametrize("name", ["launch.sh", *(f"slurm/{path.name}" for path in sorted((ROOT / "slurm").iterdir()))])
def test_shellcheck(name: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    assert subprocess.run([shellcheck, ROOT / name], check=False).returncode == 0


def test_the_scripts_are_executable() -> None:
    assert os.access(ROOT / "launch.sh", os.X_OK)
