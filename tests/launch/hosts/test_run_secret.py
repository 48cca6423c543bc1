"""How the secret of a run comes to its guards, and who cannot have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_trainer.errors import UserError
from dist_trainer.launch.hosts.run_secret import (
    FROM_ENVIRONMENT,
    VARIABLE,
    RunSecret,
    new_secret,
    public_id,
    read_private,
    secret_by_hand,
    take_secret,
    user_secret_path,
    write_private,
)

SECRET = b"what launch and its guards know."
LONG_ID = "0123456789abcdef" * 4


def test_a_guard_takes_it_out_of_its_environment() -> None:
    environ = {"PATH": "/bin", **RunSecret(SECRET).variables({})}
    assert take_secret(FROM_ENVIRONMENT, environ) == RunSecret(SECRET)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("text", ["", "no digits", "abcd"])
def test_a_guard_without_one_says_so(text: str) -> None:
    with pytest.raises(UserError, match="secret did not arrive"):
        take_secret(FROM_ENVIRONMENT, {VARIABLE: text})


@pytest.mark.parametrize(
    ("asked", "then"),
    [("NONE", VARIABLE), ("NIL", VARIABLE), ("ALL", f"ALL,{VARIABLE}"), ("A,B", f"A,B,{VARIABLE}"), (None, None)],
)
def test_srun_passes_it_on_whatever_the_job_exports(asked: str | None, then: str | None) -> None:
    environ = {} if asked is None else {"SLURM_EXPORT_ENV": asked}
    assert RunSecret(SECRET).variables(environ).get("SLURM_EXPORT_ENV") == then


def test_it_is_not_shown() -> None:
    secret = new_secret(in_file=True)
    assert str(secret.value) not in repr(secret)
    assert secret.variables({}) == {}
    assert new_secret(in_file=True) != secret


def test_its_file_is_this_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "secret", SECRET)
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert take_secret(str(tmp_path / "secret"), {}) == RunSecret(SECRET, str(tmp_path / "secret"))


def test_a_file_that_others_made_or_may_read_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, SECRET)
    with pytest.raises(FileExistsError):
        write_private(path, SECRET)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError):
        read_private(tmp_path / "link")
    with pytest.raises(OSError):
        write_private(tmp_path / "link", SECRET)
    path.chmod(0o640)
    with pytest.raises(OSError, match="0640"):
        read_private(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(OSError, match="plain file"):
        read_private(tmp_path / "pipe")
    if os.geteuid() == 0:
        path.chmod(0o600)
        os.chown(path, 65534, 65534)
        with pytest.raises(OSError, match="user 65534"):
            read_private(path)


def test_by_hand_the_users_own_file_counts_and_is_made_once(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    secret = secret_by_hand("one", environ)
    assert secret_by_hand("one", environ) == secret
    assert secret_by_hand("other", environ) != secret
    path = user_secret_path(environ)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["secret"]
    path.chmod(0o644)
    with pytest.raises(UserError, match="a secret that all of them know") as caught:
        secret_by_hand("one", environ)
    assert "0644" in str(caught.value)


def test_by_hand_an_id_that_nobody_guesses_is_the_secret(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    secret = secret_by_hand(LONG_ID, environ)
    assert list(tmp_path.iterdir()) == []
    assert secret_by_hand(LONG_ID, {"XDG_CONFIG_HOME": str(tmp_path / "other")}) == secret
    assert secret.value != LONG_ID.encode()
    assert public_id(LONG_ID) != LONG_ID
    assert public_id("dist_trainer") == "dist_trainer"
