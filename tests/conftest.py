from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from lab import Lab, lab, why_no_lab

import slurm

TESTS = Path(__file__).parent
LAUNCH = TESTS / "launch"

# Threads that spin while they wait for each other take four times the time where others want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# DeepSpeed's operators are compiled once, for the tests alone: a user's training gets them optimised.
if "TORCH_EXTENSIONS_DIR" not in os.environ and "CXX" not in os.environ:
    os.environ["TORCH_EXTENSIONS_DIR"] = str(TESTS.parent / ".pytest_cache" / "torch_extensions")
    os.environ["CXX"] = str(TESTS / "quick_g++")

# A busy machine is no reason for a property to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Under nohup, or in a shell's background, the tests start with some signals ignored, and all that they start would too.
# A handler stays here: what is started has the signal as a terminal would have given it.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_on_lab = bool({"lab", "slurm_lab"} & set(getattr(item, "fixturenames", ())))
        if is_on_lab:
            item.add_marker(pytest.mark.cluster)
        # With `-n` a file's tests stay together, for the runs they share; what waits for hosts and launchers, most of
        # the time, goes beside what computes.
        waits = is_on_lab or item.path.is_relative_to(LAUNCH)
        item.add_marker(pytest.mark.xdist_group("hosts" if waits else item.nodeid.partition("::")[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests of one file must not run beside each other: their launchers meet at the same port."""
    if hasattr(session.config, "workerinput"):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist has not put the tests into groups"


@pytest.fixture(scope="module", autouse=True)
def own_environment() -> Iterator[None]:
    """What a file's tests set of this process's environment, as what measures on the CPU does, reaches no other's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def slurm_environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that reaches a real SLURM of one node with 4 CPUs."""
    reason = slurm.why_no_slurm()
    if reason is not None:
        pytest.skip(reason)
    with slurm.one_host_slurm(tmp_path_factory.mktemp("slurm") / "state") as environ:
        yield environ


@pytest.fixture(scope="session", name="lab")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts and a login node. Whoever changes one leaves it as it was; the others' folders in `lab.folder` stay."""
    reason = why_no_lab()
    if reason is not None:
        pytest.skip(reason)
    with lab(tmp_path_factory.mktemp("lab") / "shared") as made:
        yield made


@pytest.fixture(scope="session")
def slurm_lab(lab: Lab) -> Iterator[dict[str, str]]:
    """The environment that reaches a real SLURM over the hosts of `lab`, when a command is run on one of them."""
    reason = slurm.why_no_slurm_over()
    if reason is not None:
        pytest.skip(reason)
    with slurm.slurm_over(lab) as environ:
        yield environ
