"""One contestant measured: a fresh process, or group of processes, and its figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from common import Job
from environment import HERE, peers_python
from settings import PEERS, SEED, Ours, Setting

from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.rounds import Turn
from dist_trainer.config.deepspeed import file
from dist_trainer.config.files import DEEPSPEED_FILE, find_file
from dist_trainer.config.optimisations import set_path
from dist_trainer.records import STEPS_FILE, StepRecord, read_records

# Compilation, allocation and caches.
NUM_WARM_UP = 2
# The rate is constant, and nothing is computed twice, because the peers have neither.
LEFT_OUT = ("scheduler", "activation_checkpointing")


def deepspeed_config(ours: Ours, setting: Setting) -> dict[str, Any]:
    """The shipped JSON with the changes and the batch."""
    config = file.read(find_file(ours.ds, DEEPSPEED_FILE))
    for name in LEFT_OUT:
        config.pop(name, None)
    for change in ours.changes:
        config = set_path(config, *change.split("=", 1))
    config["train_micro_batch_size_per_gpu"] = ours.micro_batch or setting.micro_batch
    config["gradient_accumulation_steps"] = ours.accumulation or setting.accumulation
    return config


def run_file(setting: Setting, name: str, num_steps: int) -> dict[str, Any]:
    """One phase, without evaluation and checkpoints."""
    return {
        "name": name,
        "deepspeed": "baseline",
        "seed": SEED,
        "model": setting.model,
        "phases": [{"name": "steps", "sequence_length": setting.sequence_length, "steps": num_steps}],
        "checkpoints": {"at_end": False},
        "evaluation": {"num_batches": 0},
    }


@dataclass(frozen=True)
class Comparison:
    """A setting with its name, the number of steps of each measurement, and the folder that keeps its files."""

    name: str
    setting: Setting
    num_steps: int
    folder: Path

    def write_files(self) -> None:
        """The run file, and the DeepSpeed JSON of each of ours."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run = run_file(self.setting, self.name, self.num_steps)
        self._run_file.write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")
        for name, ours in self.setting.ours.items():
            config = deepspeed_config(ours, self.setting)
            self._deepspeed_file(name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def measure(self, turn: Turn) -> Measurement:
        """Runs one contestant to its end. If it fails, its output is kept, and the measurement says where."""
        began = Measurement(turn.cell, turn.round, turn.place, time.time(), num_tokens=self.setting.num_tokens)
        is_ours = turn.cell in self.setting.ours
        with tempfile.TemporaryDirectory(prefix="dist_trainer-peers-") as place:
            words = self._words_of_ours(turn.cell, place) if is_ours else self._words_of_peer(turn.cell, place)
            status, peak_bytes = _run(words, self._environ(turn.cell), Path(place) / "log")
            ended = replace(began, took_s=time.time() - began.time_s, peak_bytes=peak_bytes)
            if status != 0:
                kept = self.folder / f"{turn.cell}-{turn.round}.log"
                kept.write_bytes((Path(place) / "log").read_bytes())
                return replace(ended, failure=f"it ended with status {status}; see {kept.name}")
            step_s, losses = _figures_of_ours(place) if is_ours else _figures_of_peer(place)
        return replace(
            ended, warm_up_s=tuple(step_s[:NUM_WARM_UP]), step_s=tuple(step_s[NUM_WARM_UP:]), loss=losses[-1]
        )

    @property
    def _run_file(self) -> Path:
        return self.folder / "run.yaml"

    def _deepspeed_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _num_ranks(self, cell: str) -> int:
        ours = self.setting.ours.get(cell)
        return (ours.num_ranks if ours else None) or self.setting.num_ranks

    def _environ(self, cell: str) -> dict[str, str]:
        num_threads = max(1, self.setting.num_threads // self._num_ranks(cell))
        return {**os.environ, "OMP_NUM_THREADS": str(num_threads), "DS_ACCELERATOR": "cpu"}

    def _words_of_ours(self, name: str, place: str) -> list[str]:
        ours = self.setting.ours[name]
        return [
            *(sys.executable, "-m", "dist_trainer", "launch", "--nproc-per-node", str(self._num_ranks(name))),
            *("--config", str(self._run_file), "--ds", str(self._deepspeed_file(name)), *ours.switches),
            *("--run-dir", f"{place}/run"),
        ]

    def _words_of_peer(self, name: str, place: str) -> list[str]:
        peer, setting = PEERS[name], self.setting
        first = next(iter(setting.ours))
        config = json.loads(self._deepspeed_file(first).read_text(encoding="utf-8"))
        params = config["optimizer"]["params"]
        job = Job(
            model=setting.model,
            seed=SEED,
            sequence_length=setting.sequence_length,
            micro_batch=setting.micro_batch,
            accumulation=setting.accumulation,
            num_ranks=setting.num_ranks,
            num_steps=self.num_steps,
            adam={key: params[key] for key in ("lr", "betas", "eps", "weight_decay")},
            max_norm=config["gradient_clipping"],
            precision=peer.precision,
            is_compiled=peer.is_compiled,
            deepspeed=str(self._deepspeed_file(first)) if setting.num_ranks > 1 else None,
            results=f"{place}/results.json",
        )
        job.write(Path(place) / "job.json")
        python = peers_python() if peer.needs_environment else sys.executable
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={setting.num_ranks}")
        return [python, *(launcher if setting.num_ranks > 1 else ()), str(HERE / peer.script), f"{place}/job.json"]


def _run(words: Sequence[str], environ: Mapping[str, str], log: Path) -> tuple[int, int]:
    """The exit status, and the peak resident set in bytes of the largest process, which is a rank.

    Where this process is told to end meanwhile, it first ends these.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


def _figures_of_peer(place: str) -> tuple[list[float], list[float]]:
    found = json.loads((Path(place) / "results.json").read_text(encoding="utf-8"))
    return found["step_s"], found["losses"]


def _figures_of_ours(place: str) -> tuple[list[float], list[float]]:
    """Each step from the end of the one before it, as for the peers: with what lies between steps, such as records."""
    steps = list(read_records(Path(place) / "run" / "records" / STEPS_FILE, StepRecord))
    step_s = [steps[0].step_s, *(after.time_s - before.time_s for before, after in pairwise(steps))]
    return step_s, [step.loss for step in steps]
