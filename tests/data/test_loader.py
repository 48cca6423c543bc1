from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest
import torch
from small_disks import in_own_mounts

from dist_trainer.data import loader as loader_module
from dist_trainer.data.info import DatasetInfo
from dist_trainer.data.loader import Batch, BatchLoader, _Rows, build_loader
from dist_trainer.data.sampler import BatchPlan, Order, num_windows
from dist_trainer.data.tokens import TokenFile, open_tokens
from dist_trainer.errors import RunError, UserError

LENGTH = 16


@pytest.fixture
def tokens(prepared: tuple[Path, DatasetInfo]) -> TokenFile:
    return open_tokens(prepared[0], "train", 300)


def plan_of(
    tokens: TokenFile, *, micro_batch: int = 2, accumulation: int = 2, world_size: int = 1, first_sample: int = 0
) -> BatchPlan:
    return BatchPlan(Order(tokens.num_tokens, LENGTH, LENGTH, 5), micro_batch, accumulation, world_size, first_sample)


def loader_of(
    tokens: TokenFile, *, rank: int = 0, num_steps: int = 10, num_workers: int = 0, **of_the_plan: int
) -> BatchLoader:
    plan = plan_of(tokens, **of_the_plan)
    return build_loader(
        tokens, plan, rank=rank, num_steps=num_steps, num_workers=num_workers, prefetch_factor=2, pin_memory=False
    )


def inputs_of(loader: BatchLoader) -> list[list[list[int]]]:
    with loader:
        return [batch.inputs.tolist() for batch in loader]


def test_a_batch_is_the_windows_of_the_plan_and_each_target_the_next_token(tokens: TokenFile) -> None:
    array = np.fromfile(tokens.path, dtype="<u2").astype(np.int64)
    plan = plan_of(tokens, world_size=2)
    with loader_of(tokens, rank=1, world_size=2) as loader:
        batches = list(loader)
    assert len(batches) == len(loader_of(tokens)) == 20
    for number, batch in enumerate(batches):
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert batch.inputs.shape == batch.targets.shape == (2, LENGTH)
        assert batch.inputs.is_contiguous()
        assert batch.targets.is_contiguous()
        starts = [window * LENGTH for window in plan.windows(number // 2, number % 2, 1)]
        assert batch.inputs.tolist() == [array[start : start + LENGTH].tolist() for start in starts]
        assert batch.targets.tolist() == [array[start + 1 : start + LENGTH + 1].tolist() for start in starts]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_give_the_same_batches_in_the_same_order(tokens: TokenFile, num_workers: int) -> None:
    assert inputs_of(loader_of(tokens, num_workers=num_workers)) == inputs_of(loader_of(tokens))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_rank_reads_what_a_plain_loop_over_single_windows_reads(
    tokens: TokenFile, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """From any sample on, for any lengths and ranks, also where the windows computed ahead end."""
    array = np.fromfile(tokens.path, dtype="<u2").astype(np.int64)
    random = Random(num_workers)
    for _ in range(4 if num_workers else 30):
        monkeypatch.setattr(loader_module, "_WINDOWS_AHEAD", random.choice([1, 5, 8192]))
        length = random.choice([1, 3, 4, 16, 64])
        order = Order(tokens.num_tokens, length, random.choice([length, 64]), random.randrange(2**31))
        micro_batch, accumulation, world_size = (random.randint(1, 4) for _ in range(3))
        first_sample = random.randrange(3 * order.num_windows)
        plan = BatchPlan(order, micro_batch, accumulation, world_size, first_sample)
        loaders = [
            build_loader(
                tokens, plan, rank=rank, num_steps=4, num_workers=num_workers, prefetch_factor=2, pin_memory=False
            )
            for rank in range(world_size)
        ]
        batches = [list(loader) for loader in loaders]
        for loader in loaders:
            loader.close()
        sample = first_sample
        for number in range(4 * accumulation):
            for rank in range(world_size):
                for inputs, targets in zip(*batches[rank][number], strict=True):
                    start = int(order.windows(np.array([sample]))[0]) * length
                    assert inputs.tolist() == array[start : start + length].tolist()
                    assert targets.tolist() == array[start + 1 : start + 1 + length].tolist()
                    sample += 1
        assert sample == first_sample + 4 * plan.global_batch


def test_two_ranks_read_what_one_would(tokens: TokenFile) -> None:
    alone = inputs_of(loader_of(tokens, micro_batch=4, accumulation=1))
    both = [inputs_of(loader_of(tokens, accumulation=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*both, strict=True)] == alone


def test_a_resumed_loader_goes_on_where_the_other_stopped(tokens: TokenFile) -> None:
    whole = inputs_of(loader_of(tokens, num_workers=1))
    before, after = loader_of(tokens, num_steps=4), loader_of(tokens, num_steps=6, first_sample=4 * 4)
    assert inputs_of(before) + inputs_of(after) == whole
    assert inputs_of(loader_of(tokens, num_steps=0)) == []


def test_it_goes_on_from_one_epoch_to_the_next(tokens: TokenFile) -> None:
    num_epoch = num_windows(tokens.num_tokens, LENGTH)
    batches = inputs_of(loader_of(tokens, micro_batch=1, accumulation=1, num_steps=2 * num_epoch))
    assert sorted(batches[:num_epoch]) == sorted(batches[num_epoch:])
    assert batches[:num_epoch] != batches[num_epoch:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_iteration_starts_over_also_after_a_break(tokens: TokenFile, num_workers: int) -> None:
    with loader_of(tokens, num_workers=num_workers) as loader:
        first = [batch.inputs.tolist() for batch in loader]
        workers = {child.pid for child in multiprocessing.active_children()}
        assert len(workers) == num_workers
        for number, _ in enumerate(loader):
            if number == 3:
                break
        assert [batch.inputs.tolist() for batch in loader] == first
        assert {child.pid for child in multiprocessing.active_children()} == workers


def test_no_worker_stays_after_close_or_when_the_loader_is_dropped(tokens: TokenFile) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with loader_of(tokens, num_workers=2) as loader:
        batches = iter(loader)
        next(batches)
        assert len(psutil.Process().children(recursive=True)) == len(before) + 2
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before
    assert list(batches) == []
    loader.close()

    dropped = loader_of(tokens, num_workers=2)
    next(iter(dropped))
    del dropped
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_token_beyond_the_model_is_named_from_the_worker_too(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo], num_workers: int
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared[0], folder)
    tokens = open_tokens(folder, "train", 300)
    array = np.fromfile(tokens.path, dtype="<u2")
    plan = plan_of(tokens)
    position = plan.windows(3, 1, 0)[1] * LENGTH + 7
    array[position] = 301
    array.tofile(tokens.path)

    num_read = 0
    with loader_of(tokens, num_workers=num_workers) as loader:
        with pytest.raises(UserError) as raised:
            for _ in loader:
                num_read += 1
        assert num_read == 7
    error = raised.value
    assert type(error) is UserError
    assert error.problem == "a token is beyond the model's vocabulary"
    assert (error.where, error.found) == (f"{tokens.path}, token {position}", 301)
    assert "Traceback" not in str(error)
    assert multiprocessing.active_children() == []


def test_the_loader_draws_nothing_from_the_generator_that_the_model_uses(tokens: TokenFile) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    inputs_of(loader_of(tokens, num_workers=1, num_steps=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_shrinks_under_the_run_is_named(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo], num_workers: int
) -> None:
    """A memory map would have killed the rank, or its worker, with SIGBUS."""
    folder = tmp_path / "copy"
    shutil.copytree(prepared[0], folder)
    tokens = open_tokens(folder, "train", 300)
    with (
        pytest.raises(RunError, match="become shorter") as raised,
        loader_of(tokens, num_workers=num_workers) as loader,
    ):
        for number, _ in enumerate(loader):
            if number == 3:
                os.truncate(tokens.path, 100)
    assert (raised.value.where, raised.value.found) == (str(tokens.path), "100 bytes")
    assert multiprocessing.active_children() == []


def test_what_workers_hand_over_is_never_in_shared_memory(tokens: TokenFile) -> None:
    batches = list(loader_of(tokens, num_workers=2))
    assert not any(batch.inputs.is_shared() or batch.targets.is_shared() for batch in batches)


def test_the_pinning_thread_is_given_what_it_can_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 100)
    batch = pin_memory(_Rows(np.array([[1, 2, 3]], dtype="<u2")))
    assert isinstance(batch, Batch)
    assert (batch.inputs.tolist(), batch.targets.tolist()) == ([[101, 102]], [[102, 103]])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_worker_that_is_killed_is_said_wherever_the_rank_just_is(tokens: TokenFile, number: signal.Signals) -> None:
    with pytest.raises(RunError, match="has died") as raised, loader_of(tokens, num_workers=2, num_steps=999) as loader:
        next(iter(loader))
        os.kill(multiprocessing.active_children()[0].pid or 0, number)
        for _ in range(600):
            time.sleep(0.1)
    error = raised.value
    assert (error.where, error.key) == (str(tokens.path), "data.num_workers")
    assert number.name in str(error.found)
    assert multiprocessing.active_children() == []


def test_workers_that_are_stuck_are_named_and_do_not_keep_the_rank(
    tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_LOOK_EVERY_S", 1)
    monkeypatch.setattr(loader_module, "_STUCK_AFTER_S", 2)
    with pytest.raises(RunError, match="nothing for 2 s") as raised, loader_of(tokens, num_workers=1) as loader:
        batches = iter(loader)
        next(batches)
        worker = multiprocessing.active_children()[0]
        os.kill(worker.pid or 0, signal.SIGSTOP)
        for _ in batches:
            pass
    error = raised.value
    assert (error.where, error.key) == (str(tokens.path), "data.num_workers")
    assert error.found == f"process {worker.pid}: stopped"
    assert multiprocessing.active_children() == []


IN_SMALL_SHARED_MEMORY = """
import sys, multiprocessing
from pathlib import Path
from dist_trainer.data.loader import build_loader
from dist_trainer.data.sampler import BatchPlan, Order
from dist_trainer.data.tokens import open_tokens
from dist_trainer.errors import UserError

tokens = open_tokens(Path(sys.argv[1]), "train", 300)
plan = BatchPlan(Order(tokens.num_tokens, 128, 128, 5), 64, 1, 1, 0)
try:
    with build_loader(
        tokens, plan, rank=0, num_steps=40, num_workers=2, prefetch_factor=8, pin_memory=False
    ) as loader:
        print(sum(1 for batch in loader), "batches")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(("free_bytes", "reads"), [(64 * 2**10, True), (0, False)])
def test_workers_need_next_to_no_shared_memory_and_say_so_where_there_is_none(
    prepared: tuple[Path, DatasetInfo], free_bytes: int, reads: bool
) -> None:
    """40 batches of 64 x 128 tokens, 16 of them ahead: in torch's shared memory 2 MB at a time."""
    full = 2**20 - free_bytes
    script = f'mount -t tmpfs -o size=1m tmpfs /dev/shm && head -c {full} /dev/zero > /dev/shm/full && exec "$@"'
    ended = in_own_mounts(script, [sys.executable, "-c", IN_SMALL_SHARED_MEMORY, str(prepared[0])])
    if reads:
        assert ended.output == "40 batches\n"
    else:
        assert "/dev/shm has 0.0 MB free of 1.0 MB" in ended.output
        assert "data.num_workers=0" in ended.output
        assert "Traceback" not in ended.output and "Exception" not in ended.output
