from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_disks import in_own_mounts

from dist_trainer.data import corpus
from dist_trainer.data.corpus import standard_library_dataset, standard_library_sources
from dist_trainer.data.info import read_info
from dist_trainer.data.tokens import open_tokens
from dist_trainer.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def small_library(tmp_path: Path) -> Path:
    """A Python whose standard library is four modules."""
    folder = tmp_path / "library"
    folder.mkdir()
    for name in ("ast", "dis", "json/decoder", "json/encoder"):
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(Path(os.__file__).parent.joinpath(f"{name}.py").read_bytes())
    return folder


def library_at(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(folder))


def test_the_sources_are_modules_without_tests_and_packages() -> None:
    names = [source.name for source in standard_library_sources()]
    assert names == sorted(names, key=lambda name: Path(name).parts)
    assert {"os.py", "asyncio/tasks.py", "json/decoder.py"} <= set(names)
    left_out = ("site-packages/", "dist-packages/", "test/", "tests/", "idlelib/", "__pycache__/")
    assert not [name for name in names if name.startswith(left_out) or any(f"/{part}" in name for part in left_out)]


def test_a_module_that_is_not_utf8_is_left_out(monkeypatch: pytest.MonkeyPatch, small_library: Path) -> None:
    (small_library / "latin.py").write_bytes(b"# \xe9")
    library_at(monkeypatch, small_library)
    assert [source.name for source in standard_library_sources()] == [
        "ast.py",
        "dis.py",
        "json/decoder.py",
        "json/encoder.py",
    ]


def test_a_python_without_sources_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library_at(monkeypatch, tmp_path)
    with pytest.raises(UserError, match="no source of its standard library"):
        standard_library_sources()


def test_of_many_processes_one_prepares_and_all_get_its_folder(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from dist_trainer.data.corpus import standard_library_dataset as dataset;"
        "folder = dataset(300, folder=pathlib.Path(sys.argv[1])); print(folder, folder.stat().st_ino)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    name = f"stdlib-{platform.python_version()}-300-1"
    assert len(answers) == 1
    assert answers.pop().split()[0] == str(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.lock"]

    # A second call finds it; nothing is written.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / name).iterdir()}
    assert standard_library_dataset(300, folder=tmp_path) == tmp_path / name
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / name).iterdir()}

    tokens = open_tokens(tmp_path / name, "train", 300)
    assert tokens.num_tokens > 1_000_000
    assert read_info(tmp_path / name).num_documents > 400


def test_an_error_of_the_child_arrives_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocabulary is too small") as raised:
        standard_library_dataset(100, folder=tmp_path)
    assert (raised.value.key, raised.value.found) == ("vocab_size", 100)
    assert raised.value.expected
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cache folder cannot be written") as raised:
        standard_library_dataset(300, folder=tmp_path / "file")
    assert raised.value.where == str(tmp_path / "file")
    assert "XDG_CACHE_HOME" in str(raised.value.hint)


def test_what_a_killed_preparation_left_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_library: Path
) -> None:
    library_at(monkeypatch, small_library)
    folder = tmp_path / "cache" / "stdlib"
    abandoned = folder.with_name(".stdlib.partial-1-abcd")
    abandoned.mkdir(parents=True)
    (abandoned / "train.bin").write_bytes(b"half")
    assert corpus.main([str(folder), "300"]) == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["stdlib", "stdlib.lock"]


@pytest.mark.parametrize("is_first", [True, False])
def test_where_there_are_no_locks_the_first_rename_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_library: Path, is_first: bool
) -> None:
    folder = tmp_path / "cache" / "stdlib"

    def no_lock(stream: object, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    find_sources: Callable[[], object] = standard_library_sources

    def overtaken() -> object:
        if not is_first:
            folder.mkdir()
            (folder / "dataset.json").write_text("the other's")
        return find_sources()

    library_at(monkeypatch, small_library)
    monkeypatch.setattr(fcntl, "flock", no_lock)
    monkeypatch.setattr(corpus, "standard_library_sources", overtaken)
    assert corpus.main([str(folder), "300"]) == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["stdlib", "stdlib.lock"]
    if is_first:
        assert read_info(folder).num_documents == 4
    else:
        assert (folder / "dataset.json").read_text() == "the other's"


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "stdlib"
    with (folder.with_name("stdlib.lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "dist_trainer.data.corpus", str(folder), "300"]
        with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdin is not None
            # It waits for the lock, and would for ever: the end of its stdin is what a dead parent leaves it.
            child.stdin.close()
            assert child.wait(timeout=60) == 1
    assert not folder.exists()


def test_the_child_says_its_error_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main([str(tmp_path / "stdlib"), "5"]) == 2
    assert json.loads(capsys.readouterr().out)["found"] == 5


def test_a_full_cache_says_which_variable_names_another(small_library: Path) -> None:
    code = f"""
from pathlib import Path
from dist_trainer.data import corpus
from dist_trainer.errors import UserError
corpus.sysconfig.get_path = lambda name: {str(small_library)!r}
try:
    corpus._prepare_once(Path("/mnt/stdlib"), 300, False)
except UserError as error:
    print(error)
"""
    script = 'mount -t tmpfs -o size=40k tmpfs /mnt && exec "$@"'
    ended = in_own_mounts(script, [sys.executable, "-c", code])
    assert "the disk is full" in ended.output, ended.output
    assert "set XDG_CACHE_HOME to a folder that has room" in ended.output
