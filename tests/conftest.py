from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

import slurm

# A busy machine is no reason for a property to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def slurm_environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that reaches a real SLURM of one node with 4 CPUs."""
    reason = slurm.why_no_slurm()
    if reason is not None:
        pytest.skip(reason)
    with slurm.one_host_slurm(tmp_path_factory.mktemp("slurm") / "state") as environ:
        yield environ
