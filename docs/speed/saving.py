"""What a save costs, beside DeepSpeed's own: GPT-2 Small on two ranks, at stages 0, 2 and 3.

    .venv/bin/python docs/speed/saving.py [ROUNDS] [STAGE ...]

For each stage two ranks train in bf16, and in each round save and load by each way, in alternating order: DeepSpeed's
save_checkpoint and load_checkpoint; that and an fsync of what it wrote; ours in the foreground; ours in the background,
while the next steps are taken. Each save is of new files, and the one before is deleted. Loads are from the disk, not
from the page cache. Prints medians: seconds of a save and of a load, how long a step was held up, steps with and
without a save, bytes.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_RANKS = 2
STEPS_A_SAVE = 3


def main(words: list[str]) -> None:
    num_rounds, *stages = [int(word) for word in words] or [3]
    for stage in stages or [0, 2, 3]:
        with tempfile.TemporaryDirectory() as folder:
            _start_ranks(stage, num_rounds, folder)
            found = json.loads((Path(folder) / "found.json").read_text())
        ours, theirs = found.pop("bytes"), found.pop("deepspeed bytes")
        print(f"stage {stage}: {ours / 1e9:.2f} GB ours, {theirs / 1e9:.2f} GB DeepSpeed's")
        for name, seconds in found.items():
            print(
                f"  {name:44} {statistics.median(seconds):6.2f} s   ({min(seconds):.2f} to {max(seconds):.2f})",
                flush=True,
            )


def _start_ranks(stage: int, num_rounds: int, folder: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(NUM_RANKS):
        environ = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS), "LOCAL_RANK": str(rank)}
        environ |= {"LOCAL_WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, __file__, "rank", str(stage), str(num_rounds), folder]
        ranks.append(subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL))
    statuses = [rank.wait() for rank in ranks]
    if any(statuses):
        sys.exit("a rank has failed")


def forget(folder: Path) -> None:
    """Takes these files out of the page cache, as they are where a run starts again on another day."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def be_rank(stage: int, num_rounds: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from dist_trainer.checkpoints import index
    from dist_trainer.checkpoints.find import Found
    from dist_trainer.checkpoints.index import Made
    from dist_trainer.checkpoints.position import Position
    from dist_trainer.cluster.rank import find_rank
    from dist_trainer.config.progress import Progress
    from dist_trainer.config.request import Request, Switches
    from dist_trainer.config.resolve import resolve
    from dist_trainer.train import process
    from dist_trainer.train.checkpoints import loading, verifying
    from dist_trainer.train.checkpoints.holders import holders_of
    from dist_trainer.train.checkpoints.saving import Kept, Saver
    from dist_trainer.train.engine import build_engine
    from dist_trainer.train.step import train_step

    torch.set_num_threads(1)
    rank = find_rank(os.environ)
    process.join_process_group(rank, process.device_facts())
    settings = (f"zero_optimization.stage={stage}", "model.dropout=0")
    settings += ('phases=[{"name": "only", "sequence_length": 128, "steps": 10}]',)
    switches = Switches(precision="bf16", micro_batch=1, accumulation=1)
    request = Request(config="small", ds="fused", settings=settings, switches=switches)
    resolved = resolve(request, world_size=NUM_RANKS, device=process.device_facts())

    def built() -> Any:
        return build_engine(resolved, device_index=0)

    engine: Any = built()
    vocab_size = resolved.run.model.vocab_size
    saver: Any = Saver(engine, holders_of(engine, vocab_size), folder / "ours", Made(NUM_RANKS, {}, {}, {}), Kept(1))
    tokens = torch.randint(vocab_size, (1, 129))
    found: dict[str, list[float]] = {}
    taken = 0

    def step(before_update: Any = lambda: None) -> float:
        nonlocal taken
        taken += 1
        batches = iter([(tokens[:, :-1], tokens[:, 1:])])
        return train_step(engine, batches, step=taken, before_update=before_update).step_s

    def timed(name: str, what: Any) -> Any:
        dist.barrier()
        began_s = time.perf_counter()
        result = what()
        dist.barrier()
        found.setdefault(name, []).append(time.perf_counter() - began_s)
        return result

    def position() -> Position:
        return Position(taken, {"only": Progress(taken)})

    def blocking() -> Any:
        return saver.save(position())

    def in_background() -> None:
        plain = sum(step() for _ in range(STEPS_A_SAVE))
        saver.begin(position())
        beside = sum(step(saver.before_update) for _ in range(STEPS_A_SAVE))
        outcome = saver.finish()
        assert outcome is not None and outcome.folder is not None
        found.setdefault("ours, in the background: steps held up", []).append(outcome.held_s)
        found.setdefault(f"{STEPS_A_SAVE} steps", []).append(plain)
        found.setdefault(f"{STEPS_A_SAVE} steps during a save", []).append(beside)

    def by_deepspeed() -> None:
        timed("DeepSpeed's save", lambda: engine.save_checkpoint(str(folder / "theirs")))
        # Else the next way would wait for the disk as well.
        os.sync()
        keep_newest()

    def by_deepspeed_onto_the_disk() -> None:
        timed("DeepSpeed's save, and fsync of its files", onto_the_disk)
        keep_newest()

    def onto_the_disk() -> None:
        engine.save_checkpoint(str(folder / "theirs"))
        dist.barrier()
        files = sorted(file for file in newest_of_theirs().rglob("*") if file.is_file())
        for file in files[rank.rank :: NUM_RANKS]:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

    def newest_of_theirs() -> Path:
        return folder / "theirs" / (folder / "theirs" / "latest").read_text()

    def keep_newest() -> None:
        if rank.rank == 0:
            for saved in (folder / "theirs").glob("global_step*"):
                if saved != newest_of_theirs():
                    shutil.rmtree(saved)
        dist.barrier()

    def by_us() -> None:
        timed("ours, in the foreground (with fsync)", blocking)

    ways = [by_deepspeed, by_deepspeed_onto_the_disk, by_us, in_background]
    for _ in range(2):
        step()
    blocking()
    for number in range(num_rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            step()
            way()
    saved = next((folder / "ours").glob("step-*"))
    theirs = sum(file.stat().st_size for file in (folder / "theirs").rglob("*") if file.is_file())
    engine.destroy()
    # At stage 0 this host has no room for another engine beside this one.
    engine = saver = None
    for number in range(num_rounds):
        for way in ("DeepSpeed's load", "our load, with every checksum")[:: 1 if number % 2 == 0 else -1]:
            gc.collect()
            engine = built()
            forget(folder)
            read = Found(saved, index.read(saved))

            def ours(engine: Any = engine, read: Found = read) -> None:
                assert verifying.damage_of(read, seen="the same") == {}
                loading.load(engine, holders_of(engine, vocab_size), read, with_random_state=True)

            def deepspeeds(engine: Any = engine) -> None:
                engine.load_checkpoint(str(folder / "theirs"))

            timed(way, deepspeeds if way.startswith("DeepSpeed") else ours)
            engine.destroy()
            engine = None
            del ours, deepspeeds
    if rank.rank == 0:
        facts = {"bytes": read.index.num_bytes, "deepspeed bytes": theirs}
        (folder / "found.json").write_text(json.dumps({**found, **facts}))
        shutil.rmtree(folder / "theirs")
    process.leave(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        be_rank(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(sys.argv[1:])
