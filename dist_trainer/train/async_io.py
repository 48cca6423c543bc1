"""Whether DeepSpeed can offload to NVMe on this host: the op that it builds for that needs libaio.

`python -m dist_trainer.train.async_io` answers by its exit status, for `launch`, which must not import DeepSpeed.
"""

from __future__ import annotations

import sys

# Not 1, which is the exit status of a Python that fails.
EXIT_MISSING = 3


def has_async_io() -> bool:
    """Asks DeepSpeed, which compiles and links a small program, unless the op came prebuilt."""
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(installed_ops.get(AsyncIOBuilder.NAME)) or bool(AsyncIOBuilder().is_compatible(verbose=False))


if __name__ == "__main__":
    sys.exit(0 if has_async_io() else EXIT_MISSING)
