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
        [str(clone / "launch.sh"), *words],
        cwd=cwd or clone,
        env=environ,
        capture_output=True,
        errors="replace",
        check=False,
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


def test_it_may_be_started_through_a_link(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "launch.sh").symlink_to(clone / "launch.sh")
    answer = launch(tmp_path / "elsewhere", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (0, f"{tmp_path}|-m|dist_trainer|launch|")
    assert (clone / ".venv").exists()


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


def test_a_folder_in_which_python_makes_no_environment_is_named(clone: Path, tmp_path: Path) -> None:
    moved = tmp_path / os.fsdecode(b"caf\xe9")
    clone.rename(moved)
    answer = launch(moved, "--setup")
    assert (answer.returncode, installs(moved)) == (2, [])
    assert "whose name is not UTF-8" in answer.stderr
    clone = moved.rename(tmp_path / "größe 数")
    assert launch(clone, "--setup").returncode == 0


def test_an_active_environment_that_has_it_comes_first(clone: Path) -> None:
    answer = launch(clone, "--dry-run", VIRTUAL_ENV=sys.prefix, PYTHONPATH=str(ROOT))
    assert "making" not in answer.stderr
    assert installs(clone) == []


@pytest.mark.parametrize(
    "words", [("plan", "--ds", "zero2"), ("report", "a b"), ("launch", "--dry-run"), ("--version",)]
)
def test_another_command_is_that_command(clone: Path, words: tuple[str, ...]) -> None:
    said = "".join(f"{word}|" for word in words)
    assert launch(clone, *words).stdout == f"{clone}|-m|dist_trainer|{said}"


@pytest.mark.parametrize("words", [(), ("--config", "small"), ("--dry-run", "plan")], ids=" ".join)
def test_switches_alone_are_those_of_launch(clone: Path, words: tuple[str, ...]) -> None:
    said = "".join(f"{word}|" for word in words)
    assert launch(clone, *words).stdout == f"{clone}|-m|dist_trainer|launch|{said}"


@pytest.mark.parametrize("switch", ["--help", "-h"])
def test_help_names_what_only_the_script_knows_and_installs_nothing(clone: Path, switch: str) -> None:
    answer = launch(clone, switch)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "./launch.sh --setup [EXTRA]" in answer.stdout
    assert installs(clone) == []
    assert launch(clone, "--setup").returncode == 0
    answer = launch(clone, switch)
    assert "./launch.sh --setup [EXTRA]" in answer.stdout
    assert answer.stdout.endswith(f"{clone}|-m|dist_trainer|launch|{switch}|")


@pytest.mark.parametrize("words", [("nonsense",), ("de",), ("dev|", "x"), ("dev", "dev"), ("--dry-run",)], ids=" ".join)
def test_an_extra_that_is_not_there_is_a_mistake_and_installs_nothing(clone: Path, words: tuple[str, ...]) -> None:
    answer = launch(clone, "--setup", *words)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert words[0] in answer.stderr
    assert len(words) > 1 or answer.stderr.rstrip().endswith("; there is: dev")
    assert installs(clone) == []


def test_the_extras_are_those_that_pip_knows(clone: Path) -> None:
    with (clone / "pyproject.toml").open("a") as file:
        file.write('\n[project.urls]\nhomepage = "x"\n')
    text = (clone / "pyproject.toml").read_text()
    text = text.replace("[project.optional-dependencies]", '[project.optional-dependencies]\ngpu-extras = ["x"]')
    (clone / "pyproject.toml").write_text(text)
    assert launch(clone, "--setup", "homepage").stderr.rstrip().endswith("; there is: gpu-extras dev")
    assert launch(clone, "--setup", "gpu-extras").returncode == 0


@pytest.mark.parametrize("name", ["launch.sh", *(f"slurm/{path.name}" for path in sorted((ROOT / "slurm").iterdir()))])
def test_shellcheck(name: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    assert subprocess.run([shellcheck, ROOT / name], check=False).returncode == 0


def test_the_scripts_are_executable() -> None:
    assert os.access(ROOT / "launch.sh", os.X_OK)
