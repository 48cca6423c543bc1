"""How fast this machine multiplies matrices, on the spot: what a step's share of it (MFU) is measured against.

    python -m dist_trainer.benchmark.worth.gemm DTYPE NUM_THREADS

prints one process's rate in FLOP/s. On a CPU as many processes as ranks run at once, each with a rank's threads.
"""

from __future__ import annotations

import subprocess
import sys
import time

# Large enough for the best rate, small enough for some tries within a second on one core.
SIZE = 1024
_TRY_S = 1.0
# Either the GPUs multiply, or the cores.
_CUDA_SIZE = 8192


def machine_flops_per_s(dtype: str, *, num_ranks: int, num_threads: int) -> float | None:
    """The sum over all ranks' processes at once; None where this hardware or torch does not multiply in `dtype`."""
    words = [sys.executable, "-m", __name__, dtype, str(num_threads)]
    started = [
        subprocess.Popen(
            [*words, str(rank)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for rank in range(num_ranks)
    ]
    rates = []
    for process in started:
        out, _ = process.communicate()
        try:
            rates.append(float(out))
        except ValueError:
            return None
    return sum(rates)


def flops_per_s(dtype: str, num_threads: int, rank: int) -> float:
    """The best of the tries within a second, after one that warms up."""
    import torch

    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(num_threads)
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    size = _CUDA_SIZE if on_gpu else SIZE
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
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
