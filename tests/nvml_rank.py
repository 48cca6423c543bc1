"""`python -m nvml_rank ARGUMENTS`: dist_trainer, with each rank of a CPU run watched on a GPU of the stand-in driver.

A CPU rank has no GPU, and the program never claims one for it. Here rank N of a host takes the N-th GPU that
CUDA_VISIBLE_DEVICES shows, as it would on a GPU, so that whole runs are judged where there is none.
"""

from __future__ import annotations

import os
import sys

from dist_trainer.monitor import memory
from dist_trainer.monitor.devices import DeviceIdentity, list_gpus
from dist_trainer.monitor.nvml import LostError, Nvml
from dist_trainer.monitor.visible import visible_devices


def rank_device(cuda_index: int | None) -> DeviceIdentity | None:
    assert cuda_index is None, "this is for ranks on a CPU"
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        nvml = Nvml(lambda trouble: None)
    except LostError:
        return DeviceIdentity("00000000-0000-0000-0000-000000000000")
    devices = visible_devices(list_gpus(nvml, lambda trouble: None), os.environ).devices
    nvml.close()
    return DeviceIdentity(devices[local_rank].uuid)


if __name__ == "__main__":
    memory.rank_device = rank_device
    from dist_trainer.cli import main

    sys.exit(main(sys.argv[1:]))
