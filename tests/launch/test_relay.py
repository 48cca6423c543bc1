from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dist_trainer.launch.relay import relayed


def test_a_command_goes_on_when_nobody_reads_what_it_prints() -> None:
    """`yes` would be ended by SIGPIPE, as mpirun ends itself."""
    read_fd, write_fd = os.pipe()
    with relayed(write_fd) as output:
        assert output is not None
        command = ["sh", "-c", "for i in $(seq 5000); do echo $i; done; exit 7"]
        with subprocess.Popen(command, stdout=output) as process:
            assert os.read(read_fd, 2) == b"1\n"
            os.close(read_fd)
            assert process.wait(60) == 7
    os.close(write_fd)


def test_all_has_arrived_at_the_end() -> None:
    read_fd, write_fd = os.pipe()
    with relayed(write_fd) as output:
        subprocess.run([sys.executable, "-c", "print('x' * 50_000)"], stdout=output, check=True)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as reader:
        assert reader.read() == b"x" * 50_000 + b"\n"


def test_a_file_is_the_launchers_own(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file, relayed(file.fileno()) as output:
        assert output is None
