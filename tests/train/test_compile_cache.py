"""Where what torch.compile makes is kept between runs, and for which hosts."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.train.compile_cache import VARIABLE, host_kind, keep_compiled

COMPILED: dict[str, Any] = {"compile": {}}
CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Xeon
cpu MHz\t\t: 2000.000
flags\t\t: fpu avx2 avx512f

processor\t: 1
vendor_id\t: GenuineIntel
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_it_is_kept_in_the_programs_cache(environ: dict[str, str], tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    assert keep_compiled(COMPILED, environ, cpuinfo) is None
    assert environ[VARIABLE] == str(tmp_path / "cache/dist_trainer/inductor" / host_kind(CPUINFO))


def test_a_relative_cache_stays_where_it_is_though_the_rank_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CACHE_HOME": "cache"}
    keep_compiled(COMPILED, environ)
    assert environ[VARIABLE].startswith(f"{tmp_path}{os.sep}cache{os.sep}")


def test_a_folder_that_the_user_names_is_left(environ: dict[str, str], tmp_path: Path) -> None:
    environ[VARIABLE] = "/scratch/inductor"
    assert keep_compiled(COMPILED, environ) is None
    assert environ[VARIABLE] == "/scratch/inductor"
    assert list(tmp_path.iterdir()) == []


def test_muon_is_compiled_too_and_nothing_is_made_where_nothing_is(environ: dict[str, str], tmp_path: Path) -> None:
    keep_compiled({"optimizer": {"type": "AdamW"}}, environ)
    assert (VARIABLE in environ, list(tmp_path.iterdir())) == (False, [])
    keep_compiled({"optimizer": {"type": "Muon"}}, environ)
    assert VARIABLE in environ


def test_hosts_that_cannot_run_each_others_code_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {host_kind(CPUINFO), host_kind(CPUINFO.replace(" avx512f", "")), host_kind(CPUINFO.replace("Xeon", "EPYC"))}
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.17"))
    kinds.add(host_kind(CPUINFO))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.6.0")
    kinds.add(host_kind(CPUINFO))
    assert len(kinds) == 5


def test_the_clock_and_the_number_of_processors_make_no_other_kind() -> None:
    assert host_kind(CPUINFO) == host_kind(CPUINFO.replace("2000.000", "3100.5").partition("\n\n")[0])


def test_where_it_cannot_be_written_torchs_own_folder_stays(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    notice = keep_compiled(COMPILED, environ)
    assert notice is not None
    assert str(tmp_path / "cache") in notice
    assert VARIABLE in notice
    assert VARIABLE not in environ


def test_on_a_file_system_without_locks_torchs_own_folder_stays(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    notice = keep_compiled(COMPILED, environ)
    assert notice is not None
    assert "Function not implemented" in notice
    assert VARIABLE not in environ


def test_ranks_of_a_host_do_not_wait_for_each_other(environ: dict[str, str]) -> None:
    keep_compiled(COMPILED, environ)
    with (Path(environ.pop(VARIABLE)) / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert keep_compiled(COMPILED, environ) is None


def test_without_cpuinfo_there_is_a_folder_still(environ: dict[str, str], tmp_path: Path) -> None:
    assert keep_compiled(COMPILED, environ, tmp_path / "nothing") is None
    assert VARIABLE in environ
