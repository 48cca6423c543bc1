from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.launch.hosts.ssh import command_for, shell_text, ssh_problem

# No NUL: no command line can carry it. No surrogates: they are no text.
ARGUMENTS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=5)


@given(ARGUMENTS)
def test_a_shell_reads_the_words_back_as_they_are(arguments: list[str]) -> None:
    text = shell_text(["printf", "%s\\0", *arguments])
    printed = subprocess.run(["/bin/sh", "-c", text], capture_output=True, check=True).stdout
    assert printed.decode().split("\0")[:-1] == arguments


@pytest.mark.parametrize(
    ("status", "stderr", "kind"),
    [
        (0, "", None),
        (1, "ssh: connect to host a port 22: Connection refused", None),
        (255, "ssh: connect to host a port 22: No route to host\r\n", "no route"),
        (255, "ssh: connect to host a port 22: Connection timed out\r\n", "no answer"),
        (255, "Connection timed out during banner exchange\n", "no answer"),
        (255, "Timeout, server a not responding.\r\n", "lost"),
        (255, "client_loop: send disconnect: Broken pipe\r\n", "lost"),
        (255, "kex_exchange_identification: Connection closed by remote host\r\n", "lost"),
        (255, "Received disconnect from a: Too many authentication failures\r\n", "permission denied"),
        (255, "Bad configuration option: nonsense\r\n", "ssh"),
        (255, "", "lost"),
    ],
)
def test_what_ssh_means(status: int, stderr: str, kind: str | None) -> None:
    problem = ssh_problem(status, stderr)
    assert (problem.kind if problem else None) == kind


def test_a_host_key_that_changed_is_not_one_that_is_new() -> None:
    changed = "@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@\nHost key verification failed.\r\n"
    new, old = ssh_problem(255, "Host key verification failed.\r\n"), ssh_problem(255, changed)
    assert new is not None and old is not None
    assert (new.kind, old.kind) == ("host key", "host key")
    assert new.words != old.words


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "box", "box.example"])
def test_this_host_is_asked_without_ssh(name: str) -> None:
    assert command_for(name, "exec true", hostname="box.example") == ("/bin/sh", "-c", "exec true")


def test_ssh_never_asks_and_never_waits_for_ever() -> None:
    command = command_for("node1", "exec true", hostname="box")
    assert command[0] == "ssh"
    assert command[-2:] == ("node1", "exec true")
    for option in ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5"):
        assert option in command
