"""One of some ranks that measures what its saves and loads take: FOLDER, and CASES as JSON.

A case is {"name", "stage", "precision"}. The first rank writes FOLDER/measured.json: case -> phase -> the peak of
torch's CPU allocator in bytes. Phases are those of a step, and `save` (in the background), `blocking` and `load`;
`copy` has the bytes that are planned for copies, and `planned` those of the plan's peak.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2]
SHAPE = ("model.num_layers=2", "model.hidden_size=128", "checkpoints.every_steps=1")
# Small ones, which do not hide what a save or a load takes.
BUCKETS = {
    0: (),
    2: ("zero_optimization.reduce_bucket_size=20000", "zero_optimization.allgather_bucket_size=20000"),
    3: ("zero_optimization.reduce_bucket_size=20000", "zero_optimization.stage3_prefetch_bucket_size=20000"),
}


def trained(case: dict[str, Any]) -> Any:
    from one_rank import Trained

    settings = (*SHAPE, *BUCKETS[case["stage"]])
    return Trained(stage=case["stage"], precision=case["precision"], settings=settings)


def planned(resolved: Any, world_size: int) -> dict[str, int]:
    from dist_trainer.memory.checkpoint_size import copy_bytes
    from dist_trainer.memory.engines.settings import read_settings
    from dist_trainer.memory.planner.planner import PlannedDevice, make_plan
    from dist_trainer.model.size import num_parameters

    settings = read_settings(resolved.deepspeed, cuda=False)
    plan = make_plan(resolved, world_size=world_size, device=PlannedDevice("cpu"))
    copied = copy_bytes(settings, num_parameters(resolved.run.model), world_size, pinned=False)
    return {"copy": copied, "planned": plan.ranks[0].allocated.num_bytes}


def measured(case: dict[str, Any], folder: Path, world_size: int) -> dict[str, int]:
    import gc

    from one_rank import MODEL, batches, load

    from dist_trainer.checkpoints.index import Made
    from dist_trainer.checkpoints.position import Position, Progress
    from dist_trainer.monitor.allocator import OUTSIDE, AllocatorProfile, mark_phases
    from dist_trainer.train.checkpoints.holders import holders_of
    from dist_trainer.train.checkpoints.saving import Kept, Saver
    from dist_trainer.train.engine import build_engine
    from dist_trainer.train.step import train_step

    own = folder / os.environ["RANK"]
    own.mkdir(exist_ok=True)
    resolved = trained(case).resolved(own, world_size=world_size)
    saves = folder / case["name"]
    data = ((inputs[: resolved.micro_batch], targets[: resolved.micro_batch]) for inputs, targets in batches())
    next(data)
    gc.collect()
    profile = AllocatorProfile()
    profile.start()
    engine = build_engine(resolved, device_index=0)
    mark_phases(engine, profile)
    for step in (1, 2):
        train_step(engine, data, step=step)
    profile.mark(OUTSIDE)
    saver = Saver(engine, holders_of(engine, MODEL["vocab_size"]), saves, Made(world_size, {}, {}, {}), Kept())
    profile.mark("blocking")
    outcomes = [saver.save(Position(2, {"only": Progress(2)}))]
    profile.mark("save")
    saver.begin(Position(3, {"only": Progress(3)}))
    saver.before_update()
    outcomes.append(saver.finish())
    profile.mark(OUTSIDE)
    profile.stop()
    assert all(outcome is not None and outcome.folder is not None for outcome in outcomes), outcomes
    peaks = profile.peaks().peaks_bytes
    engine.destroy()
    del engine, saver
    gc.collect()
    profile = AllocatorProfile()
    profile.start()
    engine = build_engine(resolved, device_index=0)
    profile.mark("load")
    load(engine, saves / "step-2")
    profile.mark(OUTSIDE)
    profile.stop()
    engine.destroy()
    return peaks | {"load": profile.peaks().peaks_bytes["load"]} | planned(resolved, world_size)


def main(folder: Path, cases: list[dict[str, Any]]) -> None:
    sys.path.insert(0, str(TESTS))
    import torch

    from dist_trainer.cluster.rank import find_rank
    from dist_trainer.train import process

    torch.set_num_threads(1)
    rank = find_rank(os.environ)
    process.join_process_group(rank, process.device_facts())
    peaks = {case["name"]: measured(case, folder, rank.world_size) for case in cases}
    if rank.rank == 0:
        (folder / "measured.json").write_text(json.dumps(peaks))
    process.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
