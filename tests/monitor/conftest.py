from __future__ import annotations

import nvml_stub
import pytest


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> nvml_stub.Driver:
    """The stand-in for NVIDIA's library."""
    return nvml_stub.build(tmp_path_factory.mktemp("driver"))
