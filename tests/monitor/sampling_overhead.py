"""What sampling costs a training step: python tests/monitor/sampling_overhead.py [--help]

Steps run in alternate blocks with the sampler off and on, in one process, over the stand-in driver with a latency per
call. Each pair of blocks gives the ratio of their mean step times; which of the two comes first is drawn by lot. As
many pairs in between, with the sampler off in both, say how far such a ratio strays by itself on this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSIDE = "SAMPLING_OVERHEAD_INSIDE"
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--block-s", type=float, default=2.0)
    parser.add_argument("--interval-s", type=float, default=0.1)
    parser.add_argument("--latency-us", type=int, default=1000, help="of each call to the driver")
    parser.add_argument("--gpus", type=int, default=1, help="of more than one: the monitor of a host with so many")
    parser.add_argument(
        "--step",
        choices=("train", "launches"),
        default="train",
        help="train: forward, backward and AdamW of a small GPT; launches: thousands of tiny operations, which keep "
        "Python as busy as launching kernels does",
    )
    args = parser.parse_args()
    if os.environ.get(INSIDE):
        measure(args)
        return
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import nvml_stub

    with tempfile.TemporaryDirectory() as folder:
        driver = nvml_stub.build(Path(folder))
        script = nvml_stub.Script(latency_us=args.latency_us)
        for _ in range(args.gpus):
            gpu = script.gpu(used_bytes=2**30)
            # Memory that changes each second, so that the processes are asked for more often than once a second.
            script.used(gpu, {1000 * second: 2**30 + second % 2 * 2**21 for second in range(3600)})
            script.process(gpu, "self", 2**29)
            script.value(gpu, utilization_percent=90, power_mw=300_000, temperature_c=60, sm_clock_mhz=1400)
            script.value(gpu, memory_clock_mhz=1200, throttle_reasons=0, ecc_errors=0)
        environ = os.environ | driver.environ(script) | {INSIDE: folder}
        subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environ, check=True)


def measure(args: argparse.Namespace) -> None:
    import nvml_stub

    from dist_trainer.monitor.gpu.devices import DeviceIdentity
    from dist_trainer.monitor.host import Hello, HostMonitor, PlaceOnHost
    from dist_trainer.monitor.mailbox import Mailbox
    from dist_trainer.monitor.rank import RankSampler

    def make_monitor() -> RankSampler | HostMonitor:
        if args.gpus == 1:
            return RankSampler(records, 0, DeviceIdentity(nvml_stub.gpu_uuid(0)), args.interval_s)
        path = records.with_name(f"mailbox-{time.monotonic_ns()}")
        mailbox = Mailbox.make(path, args.gpus)
        for number in range(args.gpus):
            hello = Hello.of_this_process(number, DeviceIdentity(nvml_stub.gpu_uuid(number)))
            mailbox.post(number, dataclasses.asdict(hello))
        return HostMonitor(records, mailbox, PlaceOnHost(0, 0, args.gpus), args.interval_s)

    records = Path(os.environ[INSIDE]) / "records"
    step = training_step() if args.step == "train" else launching_step()
    for _ in range(5):
        step()
    cpu_per_s: list[float] = []
    off_steps_s: list[float] = []

    def block(is_on: bool) -> tuple[float, float]:
        if not is_on:
            return mean_step_s(step, args.block_s)
        rank = make_monitor()
        with rank:
            # The first look is at all fields and belongs to the start, not to the steps.
            while not rank.sampler.cpu_s:
                time.sleep(0.001)
            started_s, started_cpu_s = time.monotonic(), rank.sampler.cpu_s
            taken = mean_step_s(step, args.block_s)
            cpu_per_s.append((rank.sampler.cpu_s - started_cpu_s) / (time.monotonic() - started_s))
        assert rank.peak_used_bytes is not None, "nothing was sampled"
        return taken

    def pair(is_on: bool) -> tuple[float, float]:
        if random.random() < 0.5:
            off, other = block(False), block(is_on)
        else:
            other, off = block(is_on), block(False)
        off_steps_s.append(off[0])
        return other[0] / off[0], other[1] / off[1]

    # In turn, so that whatever else the machine does meets both alike.
    pairs = [(pair(True), pair(False)) for _ in range(args.pairs)]
    on, off = ([list(column) for column in zip(*kind, strict=True)] for kind in zip(*pairs, strict=True))
    assert threading.active_count() == 1
    print(f"step {args.step}: {1000 * statistics.median(off_steps_s):.2f} ms, the median with the sampler off")
    setting = f"every {args.interval_s} s, {args.latency_us} us a call"
    print(f"{args.gpus} GPUs, {setting}; {args.pairs} pairs of {args.block_s} s")
    for name, place in (("wall time", 0), ("CPU time of the step's thread", 1)):
        print(f"{name}: on / off {in_words(on[place])}, off / off {in_words(off[place])}")
    print(f"CPU time of the sampler's thread: {1000 * statistics.median(cpu_per_s):.2f} ms a second")


def mean_step_s(step: Callable[[], None], block_s: float) -> tuple[float, float]:
    """Of one step: wall time, and CPU time of this thread, which other programs on the machine disturb less."""
    count = 0
    start_s, start_cpu_s = time.perf_counter(), time.thread_time()
    while time.perf_counter() < start_s + block_s:
        step()
        count += 1
    return (time.perf_counter() - start_s) / count, (time.thread_time() - start_cpu_s) / count


def in_words(ratios: list[float]) -> str:
    """The median of the ratios with its 95% interval by bootstrap."""
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return f"{percent(statistics.median(ratios))} ({percent(low)} to {percent(high)})"


def percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f}%"


def training_step() -> Callable[[], None]:
    import torch

    from dist_trainer.config.run import ModelConfig
    from dist_trainer.model.gpt import GPT

    torch.set_num_threads(1)
    config = ModelConfig(num_layers=4, hidden_size=128, num_heads=4, vocab_size=2048, context_length=256)
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(0, 2048, (2, 128))

    def step() -> None:
        loss = model(tokens, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def launching_step() -> Callable[[], None]:
    import torch

    torch.set_num_threads(1)
    value = torch.zeros(1)

    def step() -> None:
        for _ in range(10_000):
            value.add_(1.0)

    return step


if __name__ == "__main__":
    main()
