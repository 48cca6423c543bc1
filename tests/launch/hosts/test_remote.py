from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd import local_sshd, why_no_sshd

from dist_trainer.launch.hosts.remote import run_on_hosts
from dist_trainer.launch.hosts.ssh import Problem

SAY_ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"
NASTY = [
    "a b",
    "",
    "$HOME",
    "`id`",
    "a;b",
    "'",
    '"',
    "\\",
    '{"a": 1}',
    "*",
    "--",
    "-x",
    "a\nb",
    "ü",
    "!",
    "~",
    "&",
    "<",
]


@pytest.fixture(scope="module")
def ssh_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH on which ssh to any name leads to this host."""
    reason = why_no_sshd()
    if reason is not None:
        pytest.skip(reason)
    with local_sshd(tmp_path_factory.mktemp("ssh") / "sshd") as environ:
        yield environ["PATH"]


def test_the_words_arrive_literally_over_ssh(ssh_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", ssh_path)
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    say_all = f"{SAY_ARGUMENTS}; import os; print(os.getcwd(), os.environ['A'], sys.stdin.read(), sep='|')"
    results = run_on_hosts(
        ["elsewhere", "localhost"],
        [sys.executable, "-c", say_all, *NASTY],
        timeout_s=30,
        stdin=b"input",
        cwd=str(folder),
        env={"A": "$x 'y'"},
    )
    for result in results.values():
        assert (result.status, result.problem, result.stderr) == (0, None, "")
        arguments, facts = result.stdout.splitlines()
        assert json.loads(arguments) == NASTY
        assert facts == f"{folder}|$x 'y'|input"


def test_each_host_has_a_result_of_its_own(ssh_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", ssh_path)
    results = run_on_hosts(["one", "two", "localhost"], ["sh", "-c", "echo $$; exit 7"], timeout_s=30, fan_out=1)
    assert list(results) == ["one", "two", "localhost"]
    assert {result.status for result in results.values()} == {7}
    assert len({result.stdout for result in results.values()}) == 3


def test_a_time_limit_ends_the_wait_and_keeps_what_was_said() -> None:
    result = run_on_hosts(["localhost"], ["sh", "-c", "echo begun; exec sleep 1000"], timeout_s=2)["localhost"]
    assert (result.status, result.stdout) == (None, "begun\n")
    assert result.problem == Problem("time limit", "no end within 2 s")


def test_what_a_killed_command_leaves_behind_holds_nobody_up() -> None:
    script = "sleep 1000 & echo $!; exec sleep 1000"
    result = run_on_hosts(["localhost"], ["sh", "-c", script], timeout_s=2)["localhost"]
    os.kill(int(result.stdout), signal.SIGKILL)
    assert result.problem == Problem("time limit", "no end within 2 s")


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [(["no-such-program"], 127, "not found"), (["sh", "-c", "kill -9 $$"], 137, ""), (["false"], 1, "")],
)
def test_a_command_that_fails_is_no_problem_of_the_way_there(argv: list[str], status: int, said: str) -> None:
    result = run_on_hosts([socket.gethostname()], argv, timeout_s=30)[socket.gethostname()]
    assert (result.status, result.problem) == (status, None)
    assert said in result.stderr


def test_a_command_need_not_read_its_stdin() -> None:
    result = run_on_hosts(["localhost"], ["true"], timeout_s=30, stdin=b"x" * 2**20)["localhost"]
    assert result.is_ok


def test_real_ssh_says_what_is_wrong(ssh_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(ssh_path.partition(os.pathsep)[0]).parent
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "other_key")], check=True)
    config = (folder / "ssh_config").read_text()
    cases = {
        "refused": "  Port 1\n",
        "permission denied": f"  IdentityFile {folder}/other_key\n  IdentitiesOnly yes\n",
        "host key": "  StrictHostKeyChecking yes\n",
        "unknown host": "  HostName no-such-host.invalid\n",
    }
    own = "".join(f"Host {name.replace(' ', '-')}\n{lines}" for name, lines in cases.items())
    # What is said first counts.
    kept = config.replace(f"  IdentityFile {folder}/user_key\n", "")
    (folder / "faulty_config").write_text(f"{own}{kept}")
    program = folder / "faulty" / "ssh"
    program.parent.mkdir(exist_ok=True)
    real = (folder / "bin" / "ssh").read_text().replace("ssh_config", "faulty_config")
    program.write_text(real)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{ssh_path}")
    results = run_on_hosts([name.replace(" ", "-") for name in cases], ["true"], timeout_s=30)
    kinds = [result.problem.kind if result.problem else result for result in results.values()]
    assert kinds == list(cases)
    assert {result.status for result in results.values()} == {None}
