from __future__ import annotations

from pathlib import Path

import pytest
from lab import HOSTS, Lab
from launched import SHORT
from ranks import losses, train


@pytest.fixture(scope="session")
def folder(lab: Lab) -> Path:
    """All hosts share it; it holds a hostfile of both."""
    made = lab.folder / "over-hosts"
    made.mkdir()
    (made / "hosts").write_text("".join(f"{host} slots=2\n" for host in HOSTS))
    return made


@pytest.fixture(scope="session")
def expected(folder: Path) -> list[float]:
    """The losses of four ranks on one host."""
    return losses(train(folder, "expected", *SHORT, world_size=4))
