"""How fast this machine multiplies matrices: the rate of which a step's FLOP/s are a share, its MFU.

    python -m dist_trainer.benchmark.worth.gemm DTYPE NUM_THREADS RANK

prints one process's rate in FLOP/s. As many processes as ranks run at once, each with a rank's threads or GPU. DTYPE is
one of DTYPES; "tf32" and "bf32" are fp32 matrices multiplied in that precision.
"""

from __future__ import annotations

import subprocess
import sys
import time

from dist_trainer.errors import UserError

DTYPES = ("fp32", "bf16", "fp16", "tf32", "bf32")
# Rows and columns on a CPU: large enough for the best rate, small enough for some tries within a second on one core.
SIZE = 1024
_TRY_S = 1.0
# The same on a GPU.
_CUDA_SIZE = 8192


def machine_flops_per_s(dtype: str, *, num_ranks: int, num_threads: int) -> float | None:
    """FLOP/s of all ranks' processes together, which have ended then; None if this hardware or torch cannot multiply in
    `dtype`.
    """
    words = [sys.executable, "-m", __name__, dtype, str(num_threads)]
    started = [
        subprocess.Popen(
            [*words, str(rank)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for rank in range(num_ranks)
    ]
    said = [process.communicate()[0] for process in started]
    try:
        return sum(float(out) for out in said)
    except ValueError:
        return None


def flops_per_s(dtype: str, num_threads: int, rank: int) -> float:
    """2 x size^3 FLOP over the shortest of the tries within `_TRY_S`, after one that warms up.

    Raises UserError for tf32 or bf32 on hardware without it.
    """
    import torch

    from dist_trainer.train.matmul import fast_here, set_in_torch

    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(num_threads)
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    size = _CUDA_SIZE if on_gpu else SIZE
    if dtype in ("tf32", "bf32"):
        fast = fast_here("cuda" if on_gpu else "cpu")
        if fast != dtype:
            raise UserError("this hardware does not multiply in it", where="DTYPE", found=dtype, expected=fast)
        set_in_torch(fast)
    else:
        set_in_torch("fp32")
    in_fp32 = dict.fromkeys(("fp32", "tf32", "bf32"), torch.float32)
    kind = {**in_fp32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))

    def once() -> float:
        begin_s = time.perf_counter()
        torch.matmul(left, right)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin_s

    once()
    best_s, end_s = once(), time.perf_counter() + _TRY_S
    while time.perf_counter() < end_s:
        best_s = min(best_s, once())
    return 2.0 * size**3 / best_s


if __name__ == "__main__":
    print(flops_per_s(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
