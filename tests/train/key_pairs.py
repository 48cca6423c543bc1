"""Walks the table of DeepSpeed's keys two by two over the real engine: what we accept it has to train, what we refuse
it has to refuse, but for rules of our own.

    python tests/train/key_pairs.py                    all pairs: those that are accepted in rows that hold many each
    python tests/train/key_pairs.py --skip 50          the same without the first 50
    python tests/train/key_pairs.py --compile          torch.compile at each stage, which is slow
    python tests/train/key_pairs.py --short            refused files, and the first rows: the form in the suite

Each difference is shown: the keys, what we say, what the engine says. It ends with 1 where there is one.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from allpairspy import AllPairs
from engine_cases import CASES
from one_rank import MICRO_BATCH, MODEL, batches, one_rank

from dist_trainer.config.deepspeed import resolve as deepspeed
from dist_trainer.config.deepspeed.keys import children, table
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve
from dist_trainer.config.run import ModelConfig
from dist_trainer.errors import UserError
from dist_trainer.model.gpt import GPT
from dist_trainer.train import process
from dist_trainer.train.engine import build_engine
from dist_trainer.train.muon import import_uncompiled_unless_used

UNSAID: Any = None
# They hold nine of ten pairs of values.
NUM_SHORT_ROWS = 16
_Pair = tuple[tuple[str, str], tuple[str, str]]
# Blocks that are about other things than the engine's work, or that write files: no pair with them is of interest.
_APART = (
    *("tensorboard", "csv_monitor", "wandb", "comet", "comms_logger", "flops_profiler", "autotuning", "checkpoint"),
    *("aio", "timers", "pipeline", "hybrid_engine", "weight_quantization", "tensor_parallel", "expert_parallel"),
    *("data_efficiency", "datastates_ckpt", "compile"),
)
_APART_KEYS = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print"),
    *("log_level", "memory_breakdown", "dump_state", "optimizer", "scheduler", "optimizer.params", "scheduler.params"),
    *("sequence_parallel_size", "data_parallel_size", "managed_gradient_accumulation", "allgather_size"),
    # For NVMe alone, and old spellings.
    *(f"zero_optimization.offload_{what}.nvme_path" for what in ("param", "optimizer")),
    *(f"zero_optimization.{name}" for name in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory")),
    "zero_optimization.leaf_module",
    # It starts a process of its own.
    "zero_optimization.zenflow.overlap_step",
}
# Numbers and lists, for which a type alone says no good value; where there are several, each counts.
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "gradient_clipping": (1.0, 0.0),
    "gradient_predivide_factor": (2.0,),
    "fp16.loss_scale": (128,),
    "fp16.initial_scale_power": (8,),
    "fp16.loss_scale_window": (100,),
    "fp16.hysteresis": (3,),
    "fp16.min_loss_scale": (2,),
    "torch_autocast.dtype": ("bf16", "fp16"),
    "torch_autocast.lower_precision_safe_modules": (["torch.nn.Linear"],),
    "data_types.grad_accum_dtype": ("fp32", "fp16", "bf16"),
    "data_types.param_dtype": ("fp32", "fp16", "bf16"),
    "data_types.keep_in_fp32_modules": (["no_such_module"],),
    "communication_data_type": ("fp16", "bf16", "fp32"),
    "activation_checkpointing.number_checkpoints": (1,),
    "zero_optimization.stage": (1, 2, 3),
    "zero_optimization.reduce_bucket_size": (1000,),
    "zero_optimization.allgather_bucket_size": (1000,),
    "zero_optimization.sub_group_size": (1000,),
    "zero_optimization.stage3_prefetch_bucket_size": (1000,),
    "zero_optimization.stage3_param_persistence_threshold": (0,),
    "zero_optimization.stage3_model_persistence_threshold": (0,),
    "zero_optimization.stage3_max_live_parameters": (1000,),
    "zero_optimization.stage3_max_reuse_distance": (1000,),
    "zero_optimization.stage3_module_granularity_threshold": (1000,),
    "zero_optimization.zero_hpz_partition_size": (1,),
    "zero_optimization.offload_optimizer.device": ("cpu",),
    "zero_optimization.offload_optimizer.ratio": (0.5,),
    "zero_optimization.offload_optimizer.buffer_count": (4,),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": (0.5,),
    "zero_optimization.offload_param.device": ("cpu",),
    "zero_optimization.offload_param.buffer_count": (4,),
    "zero_optimization.offload_param.buffer_size": (1000,),
    "zero_optimization.offload_param.max_in_cpu": (1000,),
    "zero_optimization.zenflow.topk_ratio": (0.2,),
    "zero_optimization.zenflow.select_strategy": ("step", "epoch"),
    "zero_optimization.zenflow.select_interval": (4, 1),
    "zero_optimization.zenflow.update_interval": (2,),
    "zero_optimization.zenflow.auto_ratio": (0.5,),
    "zero_optimization.zenflow.full_warm_up_rounds": (1,),
    "zero_optimization.zenflow.pt_reserved_cores_perc": (0.5,),
    "zero_optimization.zenflow.steps_per_epoch": (10,),
}
# What is refused though the engine would train: rules of our own, by what they say.
_OWN_RULES = (
    "unknown key",
    "scheduler.type",
    "DeepSpeed has removed the old stage 1",
    "ZeRO hands the optimizer flat pieces of matrices",
    "DeepSpeed loses Adagrad's sums",
    "DeepSpeed clips Muon's finished update",
)
_OPTIMIZERS = ("Adam", "Lion", "Adagrad", "Lamb", "Muon", "SGD", "RMSprop", "NAdam", "Adafactor")
_ADAM = ("torch_adam", "fused", "foreach", "amsgrad", "adam_w_mode", "bias_correction", "set_grad_none")
_SCHEDULERS: Mapping[str, dict[str, Any]] = {
    "WarmupLR": {"warmup_num_steps": 2},
    "WarmupDecayLR": {"warmup_num_steps": 2, "total_num_steps": 10},
    "WarmupCosineLR": {"warmup_num_steps": 2, "total_num_steps": 10},
    "OneCycle": {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3},
    "LRRangeTest": {},
    "StepLR": {"step_size": 1},
    "OneCycleLR": {"max_lr": 1e-3, "total_steps": 10},
    "CyclicLR": {"base_lr": 1e-4, "max_lr": 1e-3},
}


def factors() -> OrderedDict[str, tuple[Any, ...]]:
    """The keys that are walked, each with its values, UNSAID first. What lifts a refusal stands before it."""
    found: dict[str, tuple[Any, ...]] = {
        "optimizer.type": (UNSAID, *_OPTIMIZERS),
        **{f"optimizer.params.{name}": (UNSAID, True, False) for name in (*_ADAM, "fp32_optimizer_states")},
        "scheduler.type": (UNSAID, *_SCHEDULERS),
        "scheduler.params.cycle_momentum": (UNSAID, False),
    }
    for path, key in table().items():
        is_apart = path.partition(".")[0] in _APART or path in _APART_KEYS or path.startswith("bfloat16")
        if is_apart or path in children() or key.refused or key.alias_of or key.idle:
            continue
        if path in _VALUES:
            found[path] = (UNSAID, *_VALUES[path])
        elif key.type.expected.startswith("true or false"):
            found[path] = (UNSAID, True, False)
    first = (
        "gradient_clipping",
        "zero_allow_untested_optimizer",
        "zero_optimization.stage",
        "zero_optimization.reduce_scatter",
    )
    order = [*first, *(path for path in found if path not in first)]
    return OrderedDict((path, found[path]) for path in order)


def configuration(said: Mapping[str, Any]) -> dict[str, Any]:
    """A DeepSpeed file that says these keys, and no more than a file has to."""
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": MICRO_BATCH, "zero_allow_untested_optimizer": True}
    for path, value in said.items():
        if value is UNSAID:
            continue
        place = config
        *around, name = path.split(".")
        for block in around:
            place = place.setdefault(block, {})
        place[name] = value
    optimizer = config.setdefault("optimizer", {})
    optimizer.setdefault("type", "AdamW")
    optimizer["params"] = {"lr": 1e-3, **optimizer.get("params", {})}
    if "scheduler" in config:
        kind = config["scheduler"].get("type")
        config["scheduler"]["params"] = {**_SCHEDULERS.get(kind, {}), **config["scheduler"].get("params", {})}
    return config


def is_accepted(config: Mapping[str, Any]) -> bool:
    try:
        deepspeed.check(config, source="pairs")
    except UserError:
        return False
    return True


def rows() -> Iterator[dict[str, Any]]:
    """A covering array of all that is accepted: each pair of values that may stand together stands in one of them."""
    names = list(factors())

    def holds(values: list[Any]) -> bool:
        return is_accepted(configuration(dict(zip(names, values, strict=False))))

    left = set(accepted_pairs())
    for values in AllPairs(list(factors().values()), filter_func=holds):
        left -= set(itertools.combinations(zip(names, map(repr, values), strict=True), 2))
        yield {name: value for name, value in zip(names, values, strict=True) if value is not UNSAID}
    yield from _packed(sorted(left))


def accepted_pairs() -> Iterator[_Pair]:
    """Every two values, UNSAID too, that may stand together, each by its key and its text."""
    for (first, values), (second, others) in itertools.combinations(factors().items(), 2):
        for value, other in itertools.product(values, others):
            if is_accepted(configuration({first: value, second: other})):
                yield (first, repr(value)), (second, repr(other))


def _packed(pairs: list[_Pair]) -> Iterator[dict[str, Any]]:
    """Few rows in which all these pairs stand: those that the covering array did not come to, for its way there led
    through what is refused."""
    values = {(name, repr(value)): value for name, some in factors().items() for value in some}
    while pairs:
        row: dict[str, Any] = {}
        left = []
        for pair in pairs:
            more = {one[0]: values[one] for one in pair}
            fits = all(repr(row.get(name, value)) == repr(value) for name, value in more.items())
            if fits and is_accepted(configuration({**row, **more})):
                row.update(more)
            else:
                left.append(pair)
        pairs = left
        yield {name: value for name, value in row.items() if value is not UNSAID}


def refused_pairs() -> Iterator[dict[str, Any]]:
    """Each pair that is refused though either of its values is accepted, and each value that is refused alone."""
    walked = [(path, value) for path, values in factors().items() for value in values if value is not UNSAID]
    alone = [one for one in walked if is_accepted(configuration(dict([one])))]
    yield from (dict([one]) for one in walked if one not in alone)
    for first, second in itertools.combinations(alone, 2):
        if first[0] != second[0] and not is_accepted(configuration(dict([first, second]))):
            yield dict([first, second])


@dataclass(frozen=True)
class Verdict:
    """Of one file: what we say (None: accepted), and what the engine says to what we make of it, or to the file."""

    ours: str | None
    engines: str | None

    @property
    def agree(self) -> bool:
        is_own = self.ours is not None and any(rule in self.ours for rule in _OWN_RULES)
        return is_own or (self.ours is None) == (self.engines is None)


def verdict(config: Mapping[str, Any], folder: Path) -> Verdict:
    ds, run = folder / "ds.json", folder / "minute.yaml"
    ds.write_text(json.dumps(config))
    phase = [{"name": "only", "sequence_length": MODEL["context_length"], "steps": 10}]
    run.write_text(json.dumps({"name": "minute", "deepspeed": "baseline", "model": MODEL, "phases": phase}))
    try:
        resolved = resolve(Request(config=str(run), ds=str(ds)), world_size=1, device=process.device_facts())
    except UserError as error:
        return Verdict(str(error), engines_verdict(config))
    return Verdict(None, _trains(lambda: build_engine(resolved, device_index=0)))


def engines_verdict(config: Mapping[str, Any]) -> str | None:
    """None where DeepSpeed trains with the file as it is, else what it breaks off with."""
    return _trains(lambda: _plain_engine(config))


def _plain_engine(config: Mapping[str, Any]) -> Any:
    """As any program would make it, with nothing of ours but the model."""
    import deepspeed

    torch.manual_seed(0)
    model = GPT(ModelConfig(**MODEL), None)
    engine, *_ = deepspeed.initialize(
        args=SimpleNamespace(device_rank=0),
        model=model,
        model_parameters=model.parameter_groups(),
        config=copy.deepcopy(dict(config)),
    )
    if "compile" in config:
        engine.compile()
    return engine


def _trains(build: Any) -> str | None:
    """Two steps; None, or what the engine broke off with."""
    engine = None
    try:
        engine = build()
        for inputs, targets in itertools.islice(batches(), 2):
            loss = engine(inputs, targets)
            engine.backward(loss)
            engine.step()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the run would end with it
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first[:300]}"
    finally:
        if engine is not None:
            engine.destroy()
        gc.enable()
        gc.collect()
    return None


@contextmanager
def one_engine_after_another() -> Iterator[None]:
    # Muon's own functions take half a minute to compile.
    import_uncompiled_unless_used({})
    with one_rank():
        yield


def _complete(raw: Mapping[str, Any]) -> dict[str, Any]:
    """One of CASES with what every file needs."""
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": MICRO_BATCH, "optimizer": {"type": "AdamW"}, **raw}
    return {**config, "optimizer": {"params": {}, **config["optimizer"]}}


def main() -> int:
    switches = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    switches.add_argument("--skip", type=int, default=0, help="leave out the first so many")
    switches.add_argument("--compile", action="store_true", help="torch.compile at each stage, and nothing else")
    switches.add_argument("--short", action="store_true", help="what is refused for the engine, and the first rows")
    args = switches.parse_args()
    compiled = ({"zero_optimization.stage": stage, "compile.deepcompile": False} for stage in range(4))
    asked = compiled if args.compile else itertools.chain(refused_pairs(), rows())
    count = differing = 0
    with one_engine_after_another(), tempfile.TemporaryDirectory() as folder:
        if args.short:
            # Refused ones first: a ZenFlow that the engine refuses alone trains after others that it took.
            for raw, key, _ in CASES:
                count += 1
                if engines_verdict(_complete(raw)) is None:
                    differing += 1
                    print(f"{json.dumps(raw)}\n  ours:   refused for {key}\n  engine: trains", flush=True)
            asked = itertools.islice(rows(), NUM_SHORT_ROWS)
        for said in itertools.islice(asked, args.skip, None):
            count += 1
            found = verdict(configuration(said), Path(folder))
            if not found.agree:
                differing += 1
                shown = (found.ours or "accepted").replace("\n", " ")
                print(f"{json.dumps(said)}\n  ours:   {shown}\n  engine: {found.engines or 'trains'}", flush=True)
    print(f"{differing} of {count} differ")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
