"""The rows of docs/memory.md: each setting on some number of GPUs, planned for a GPU, and measured on the CPU.

All rows process the same number of tokens per optimizer step, so that no row saves memory by doing less work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil

from dist_trainer.benchmark import kept
from dist_trainer.benchmark.measure import Measurement, Spec, resolve_spec
from dist_trainer.benchmark.on_gpus import DevicePeaks, train_on_gpus
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed.rules import offload_device
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import BASELINE, ResolvedRun, resolve
from dist_trainer.errors import RunError, UserError
from dist_trainer.memory.plan import RankPlan
from dist_trainer.memory.planner.planner import PlannedDevice, make_plan
from dist_trainer.units import GB, counted, format_gb

CONFIGS = ("small", "medium", "large")
DS = ("memory_saver", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fast")
NUM_GPUS = (1, 2, 4, 8)
SEQUENCES_PER_STEP = 64
SEQUENCE_LENGTH = 1024
# The first micro batch finds no gradients, the last one ends in the update. More in between would change no peak.
MEASURED_ACCUMULATION = 2
# What the measuring process needs besides torch's allocator: the interpreter, libraries, the profiler's records.
PROCESS_BYTES = 1_500_000_000


@dataclass(frozen=True)
class Setting:
    """What one row is about. Its rank 0 is planned and measured."""

    config: str
    ds: str
    num_gpus: int

    @property
    def is_baseline(self) -> bool:
        return self.ds == BASELINE


@dataclass(frozen=True)
class MemoryRow:
    """The figures of one row, in bytes; None if a figure was not asked for or is not available.

    `on_gpu` is the plan for a GPU, `on_cpu` the plan for what `measured` measured. On a CPU, host and device share one
    memory: with offloading both of these figures include what a GPU run would keep on the host.
    """

    setting: Setting
    micro_batch: int
    accumulation: int
    target_bytes: int | None
    is_offloaded: bool
    on_gpu: RankPlan
    on_cpu: RankPlan
    measured: Measurement | None
    device_peaks: DevicePeaks | None

    @property
    def planned_used_bytes(self) -> int:
        used = self.on_gpu.device_used
        assert used is not None, "a plan for a GPU says what NVML will show"
        return used.num_bytes

    @property
    def error(self) -> float | None:
        """(planned - measured) / measured, on the CPU."""
        if self.measured is None:
            return None
        return self.on_cpu.allocated.num_bytes / self.measured.peak_bytes - 1


def settings(configs: Sequence[str], ds: Sequence[str], num_gpus: Sequence[int]) -> list[Setting]:
    """For each run file its baseline on one GPU, then every DeepSpeed file on every number of GPUs."""
    return [
        setting
        for config in configs
        for setting in (
            Setting(config, BASELINE, 1),
            *(Setting(config, name, number) for name in ds if name != BASELINE for number in num_gpus),
        )
    ]


def request_of(setting: Setting) -> Request:
    """The setting with the table's tokens per step. Raises UserError if they cannot be divided among its ranks."""
    own = ("model.loss=full",) if setting.is_baseline else ()
    request = Request(config=setting.config, ds=setting.ds, settings=own)
    micro_batch = resolve(request, world_size=setting.num_gpus, device=ANY_DEVICE).micro_batch
    accumulation, rest = divmod(SEQUENCES_PER_STEP, micro_batch * setting.num_gpus)
    if rest or not accumulation:
        raise UserError(
            f"{SEQUENCES_PER_STEP} sequences cannot be divided so",
            where=setting.ds,
            key="train_micro_batch_size_per_gpu",
            found=f"{micro_batch} on {counted(setting.num_gpus, 'GPU')}",
            expected=f"a divisor of {SEQUENCES_PER_STEP}, with the number of GPUs",
        )
    return replace(request, switches=Switches(micro_batch=micro_batch, accumulation=accumulation))


def measured_spec(setting: Setting) -> Spec:
    """What is measured of a setting: without dropout (whose masks and attention kernel differ on a CPU), without
    torch.compile, and with only as many micro batches as it takes to reach the peak.
    """
    request = request_of(setting)
    accumulation = min(request.switches.accumulation or 1, MEASURED_ACCUMULATION)
    switches = replace(request.switches, accumulation=accumulation, compile=False)
    request = replace(request, switches=switches, settings=(*request.settings, "model.dropout=0"))
    return Spec(request, rank=0, world_size=setting.num_gpus, sequence_length=SEQUENCE_LENGTH)


def plan_row(setting: Setting) -> tuple[MemoryRow, Spec, ResolvedRun]:
    """The row without its measurements, and the spec and run to be measured for it."""
    on_gpu = resolve(request_of(setting), world_size=setting.num_gpus, device=ANY_DEVICE)
    spec = measured_spec(setting)
    on_cpu = resolve_spec(spec)
    targets = on_gpu.run.targets
    row = MemoryRow(
        setting=setting,
        micro_batch=on_gpu.micro_batch,
        accumulation=on_gpu.accumulation,
        target_bytes=targets.target_bytes if targets else None,
        is_offloaded=any(offload_device(on_gpu.deepspeed, what) != "none" for what in ("optimizer", "param")),
        on_gpu=_planned(on_gpu, setting.num_gpus, PlannedDevice("cuda")),
        on_cpu=_planned(on_cpu, setting.num_gpus, PlannedDevice("cpu")),
        measured=None,
        device_peaks=None,
    )
    return row, spec, on_cpu


def _planned(resolved: ResolvedRun, world_size: int, device: PlannedDevice) -> RankPlan:
    plan = make_plan(resolved, world_size=world_size, device=device, ranks=(0,), sequence_length=SEQUENCE_LENGTH)
    return plan.of(0)


def make_rows(wanted: Sequence[Setting], *, measures: bool, gpus: int, say: Callable[[str], None]) -> list[MemoryRow]:
    """Plans every row, measures the rows one after the other, and trains those that fit on the machine's `gpus` GPUs.
    Without `measures` the rows have only measurements kept from before.

    A row too large for this machine's memory is reported and not measured; the others go on.
    """
    rows = []
    for number, setting in enumerate(wanted, start=1):
        row, spec, resolved = plan_row(setting)
        row = replace(row, measured=kept.find(spec, resolved))
        if measures and row.measured is None:
            row = replace(row, measured=_measured(row, spec, resolved, say))
        if setting.num_gpus <= gpus:
            row = replace(row, device_peaks=_trained(setting, say))
        rows.append(row)
        seen = f", measured {row.measured.peak_bytes / GB:.3f} GB, plan {row.error:+.2%}" if row.measured else ""
        say(
            f"{number}/{len(wanted)} {setting.config} {setting.ds} x {setting.num_gpus}: "
            f"NVML planned {format_gb(row.planned_used_bytes)}{seen}"
        )
    return rows


def _measured(row: MemoryRow, spec: Spec, resolved: ResolvedRun, say: Callable[[str], None]) -> Measurement | None:
    try:
        refuse_unless_available(row.on_cpu.allocated.high_bytes + PROCESS_BYTES, row.setting)
        return kept.measure(spec, resolved)
    except (UserError, RunError) as error:
        say(str(error))
        return None


def _trained(setting: Setting, say: Callable[[str], None]) -> DevicePeaks | None:
    """None if the run failed, most likely for lack of memory."""
    try:
        return train_on_gpus(request_of(setting), setting.num_gpus, SEQUENCE_LENGTH)
    except RunError as error:
        say(str(error))
        return None


def refuse_unless_available(need_bytes: int, setting: Setting) -> None:
    """Swap counts as available: the measured figure is what the allocator handed out, wherever the pages are."""
    available_bytes = psutil.virtual_memory().available + psutil.swap_memory().free
    if available_bytes < need_bytes:
        raise UserError(
            "this machine has too little memory free to measure that",
            where=f"{setting.config}, {setting.ds} on {counted(setting.num_gpus, 'GPU')}",
            found=f"{format_gb(available_bytes)} available",
            expected=f"{format_gb(need_bytes)}",
            hint="free some, leave it out (--configs, --ds, --gpus), or plan only (--no-measure)",
        )
