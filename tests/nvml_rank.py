"""`python -m nvml_rank ARGUMENTS`: dist_trainer, with each rank of a CPU run watched on a GPU of the stand-in driver.

A CPU rank has no GPU, and the program never claims one for it. Here rank N of a host takes the N-th GPU that
CUDA_VISIBLE_DEVICES shows, as it would on a GPU, so that whole runs are judged where there is none. NVML_RANK_HOST says
that runs of more ranks than this have one monitor a host; the ranks of later hosts take the GPUs that follow, and each
host has a folder in NVML_RANK_MEMORY for its memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dist_trainer.monitor import host, memory
from dist_trainer.monitor import mailbox as mailbox
from dist_trainer.monitor.gpu.devices import DeviceIdentity, list_gpus
from dist_trainer.monitor.gpu.nvml import LostError, Nvml
from dist_trainer.monitor.gpu.visible import visible_devices

HOST_VARIABLE = "NVML_RANK_HOST"


def rank_device(cuda_index: int | None) -> DeviceIdentity | None:
    assert cuda_index is None, "this is for ranks on a CPU"
    place = int(os.environ.get("RANK" if HOST_VARIABLE in os.environ else "LOCAL_RANK", "0"))
    try:
        nvml = Nvml(lambda diagnostic: None)
    except LostError:
        return DeviceIdentity("00000000-0000-0000-0000-000000000000")
    devices = visible_devices(list_gpus(nvml, lambda diagnostic: None), os.environ).devices
    nvml.close()
    return DeviceIdentity(devices[place].uuid)


if __name__ == "__main__":
    memory.rank_device = rank_device
    if HOST_VARIABLE in os.environ:
        host.MAX_NUM_RANKS_ALONE = int(os.environ[HOST_VARIABLE])
        number = int(os.environ["RANK"]) // int(os.environ["LOCAL_WORLD_SIZE"])
        mailbox.FOLDER = Path(os.environ["NVML_RANK_MEMORY"], str(number))
        mailbox.FOLDER.mkdir(parents=True, exist_ok=True)
    from dist_trainer.cli import main

    sys.exit(main(sys.argv[1:]))
