"""A save that the steps hardly feel: copied while the next micro batches run, written by a thread meanwhile.

    saver.begin(position)     after a step: the copying begins
    saver.before_update()     before the optimizer changes what is being copied: waits until it is copied
    saver.finish()            waits until it is written, by all ranks
    saver.save(position)      begins and waits; nothing is copied

What a checkpoint has (masters, moments) changes in the optimizer's step only. Between two steps a thread of each rank
copies it into kept memory, then writes its data file. The ranks tell each other over the store of the process group, so
that no collective of the training is mixed up with theirs. Rank 0 writes the index, and gives the checkpoint its name.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_trainer import blackbox
from dist_trainer.checkpoints import data_file, folder
from dist_trainer.checkpoints.data_file import Layout, Written
from dist_trainer.checkpoints.index import (
    WEIGHT,
    Counters,
    File,
    Index,
    Made,
    Parameter,
    Piece,
    State,
    data_file_name,
    sync_folder,
)
from dist_trainer.checkpoints.position import Position
from dist_trainer.disk import check_room, writing
from dist_trainer.train.checkpoints import optimizer_states
from dist_trainer.train.checkpoints.capture import Content, Copy, Direct, Source, sources_of
from dist_trainer.train.checkpoints.holders import Holders
from dist_trainer.train.checkpoints.loading import random_state
from dist_trainer.train.checkpoints.mailbox import Mailbox, SaveError
from dist_trainer.train.loss_scale import scaler_state


@dataclass(frozen=True)
class Kept:
    """Which checkpoints stay: how many of the newest (0: all), and those of every so many steps (0: none)."""

    newest: int = 0
    every_steps: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a save ended. `folder`: None if it failed, for the reason `problem`. `held_s`: how long steps waited for it;
    `seconds`: from its beginning to its end. `not_deleted`: why an older checkpoint could not be deleted, on rank 0.
    """

    step: int
    folder: Path | None
    problem: str | None
    held_s: float
    seconds: float
    num_bytes: int
    not_deleted: str | None = None


@dataclass(frozen=True)
class _Moment:
    """What is saved beside tensors, as it was when the save began."""

    position: Position
    counters: Counters
    random: dict[str, str]


class Saver:
    """One rank's saves, one at a time. Its methods are called by all ranks in the same order."""

    def __init__(self, engine: Any, holders: Holders, checkpoints_dir: Path, made_by: Made, kept: Kept) -> None:
        self._engine = engine
        self._holders = holders
        self._checkpoints_dir = checkpoints_dir
        self._made_by = made_by
        self._kept = kept
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._mailbox = Mailbox(self._rank, self._world_size)
        is_cuda = engine.device.type == "cuda"
        self._stream = torch.cuda.Stream() if is_cuda else None  # type: ignore[no-untyped-call]
        self._copy: Copy | None = None
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._outcome: Outcome | None = None
        self._held_s = 0.0
        self._not_copied: Exception | None = None
        self._not_deleted: str | None = None

    @property
    def is_begun(self) -> bool:
        """Whether a save was begun that was not finished yet."""
        return self._thread is not None

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way on this rank."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_ended(self) -> bool:
        """Whether a save has ended that was not finished yet."""
        return self._thread is not None and not self._thread.is_alive()

    @property
    def device(self) -> torch.device:
        """The engine's."""
        return torch.device(self._engine.device)

    def begin(self, position: Position) -> None:
        """Begins to save the engine's state, which is that of `position`. The save before must have been finished."""
        began_s = time.perf_counter()
        sources = self._sources()
        if self._copy is None or not self._copy.fits(sources):
            self._copy = Copy(sources, pinned=self._engine.device.type == "cuda")
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        self._copied.clear()
        if any(holder.is_on_nvme for holder in self._holders.holders):
            # DeepSpeed brings it into memory for the steps as well, and only one can.
            self._take(self._copy)
        self._start(self._copy, position, began_s)

    def save(self, position: Position) -> Outcome:
        """Saves the engine's state, which is that of `position`, and waits until it is written, by all ranks. The save
        before must have been finished.
        """
        began_s = time.perf_counter()
        if self._stream is not None:
            torch.cuda.synchronize()
        self._not_copied = None
        self._copied.set()
        self._start(Direct(self._sources()), position, began_s)
        outcome = self.finish()
        assert outcome is not None
        return outcome

    def _sources(self) -> list[Source]:
        return sources_of(self._holders, rank=self._rank, world_size=self._world_size)

    def _start(self, content: Content, position: Position, began_s: float) -> None:
        assert self._thread is None
        moment = _Moment(position, _counters(self._engine, self._holders), random_state())
        self._outcome = None
        self._held_s = time.perf_counter() - began_s
        self._thread = threading.Thread(
            target=self._save, args=(content, moment, began_s), name="checkpoint", daemon=True
        )
        self._thread.start()

    def before_update(self) -> float:
        """Waits until what the optimizer is about to change has been copied; for how long, in seconds."""
        if self._thread is None or self._copied.is_set():
            return 0.0
        blackbox.own().enter("save")
        waiting_s = time.perf_counter()
        self._copied.wait()
        waited_s = time.perf_counter() - waiting_s
        self._held_s += waited_s
        return waited_s

    def finish(self, *, limit_s: float | None = None) -> Outcome | None:
        """Waits for the save under way; how it ended, None if there was none, or it still goes on after `limit_s`."""
        if self._thread is None:
            return None
        blackbox.own().enter("save")
        waiting_s = time.perf_counter()
        self._thread.join(limit_s)
        self._held_s += time.perf_counter() - waiting_s
        if self._thread.is_alive():
            return None
        self._thread = None
        assert self._outcome is not None
        return replace(self._outcome, held_s=self._held_s)

    def _save(self, content: Content, moment: _Moment, began_s: float) -> None:
        published, problem = None, None
        if isinstance(content, Copy) and not self._copied.is_set():
            self._take(content)
        try:
            published = self._write(content, moment)
        except SaveError as error:
            problem = str(error)
        seconds = time.perf_counter() - began_s
        self._outcome = Outcome(
            moment.position.step, published, problem, self._held_s, seconds, content.layout.num_bytes, self._not_deleted
        )

    def _take(self, copied: Copy) -> None:
        """Copies, or keeps why that failed for the ranks' letters: the others wait for this one's answer."""
        self._not_copied = None
        try:
            if self._stream is None:
                copied.take()
            else:
                with torch.cuda.stream(self._stream):
                    copied.take()
                self._stream.synchronize()
        except Exception as error:  # noqa: BLE001 - whatever it is, no rank may wait for it
            self._not_copied = error
        finally:
            self._copied.set()

    def _write(self, content: Content, moment: _Moment) -> Path:
        """The whole checkpoint's folder. Raises SaveError on every rank, whichever of them has failed."""
        self._not_deleted = None
        with self._mailbox.of_next() as mail:
            aside = Path(mail.from_first(lambda: self._begin_folder(moment.position.step, content.layout)))
            try:
                parts = mail.to_first(lambda: self._write_part(aside, content, moment))
                return Path(mail.from_first(lambda: self._publish(aside, moment, [part.open() for part in parts])))
            except SaveError:
                if self._rank == 0:
                    folder.abandon(aside)
                raise

    def _begin_folder(self, step: int, layout: Layout) -> str:
        num_bytes = _bytes_of_all_ranks(layout, self._holders)
        check_room(self._checkpoints_dir, num_bytes, f"the checkpoint of step {step}")
        return str(folder.begin(self._checkpoints_dir, step))

    def _write_part(self, aside: Path, content: Content, moment: _Moment) -> dict[str, Any]:
        if self._not_copied is not None:
            raise self._not_copied
        path = aside / data_file_name(self._rank)
        with writing(path, content.layout.num_bytes):
            written = data_file.write(path, content.layout, content.contents())
            sync_folder(aside)
        return describe(path.name, content.layout, written, moment.random)

    def _publish(self, aside: Path, moment: _Moment, described: Sequence[dict[str, Any]]) -> str:
        index = put_together(described, self._holders.shapes, moment.position, moment.counters, self._made_by)
        published = folder.publish(aside, index)
        try:
            folder.prune(self._checkpoints_dir, newest=self._kept.newest, every_steps=self._kept.every_steps)
        except OSError as error:
            self._not_deleted = str(error)
        return str(published)


def _counters(engine: Any, holders: Holders) -> Counters:
    return Counters(
        steps=engine.global_steps,
        skipped_steps=engine.skipped_steps,
        micro_steps=engine.micro_steps,
        samples=engine.global_samples,
        optimizer=optimizer_states.counts(holders.holders),
        loss_scaler=scaler_state(engine),
    )


def _bytes_of_all_ranks(layout: Layout, holders: Holders) -> int:
    """By this rank's bytes an element, which are those of the others."""
    own = sum(part.stop - part.start for part in layout.parts if part.state == WEIGHT)
    total = sum(math.prod(shape) for shape in holders.shapes.values())
    return layout.num_bytes * total // max(1, own)


def describe(name: str, layout: Layout, written: Written, random: Mapping[str, str]) -> dict[str, Any]:
    """What rank 0 has to know of a rank's data file, for `put_together`."""
    pieces = [
        (part.parameter, part.state, part.dtype, part.num_elements, part.start, part.stop, offset, checksum)
        for part, offset, checksum in zip(layout.parts, layout.offsets, written.parts, strict=True)
    ]
    file = File(name, layout.num_bytes, len(layout.header), written.header)
    return {"file": asdict(file), "pieces": pieces, "random": dict(random)}


def put_together(
    described: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    position: Position,
    counters: Counters,
    made_by: Made,
) -> Index:
    """The index of a checkpoint from what its ranks have described, in their order."""
    states: dict[str, dict[str, tuple[str, int | None, list[Piece]]]] = {name: {} for name in shapes}
    for number, one in enumerate(described):
        for parameter, state, dtype, num_elements, start, stop, offset, checksum in one["pieces"]:
            *_, pieces = states[parameter].setdefault(state, (dtype, num_elements, []))
            pieces.append(Piece(number, start, stop, offset, checksum))
    parameters = {
        name: Parameter(
            shape,
            {
                state: State(
                    dtype,  # type: ignore[arg-type]
                    tuple(sorted(pieces, key=lambda piece: piece.start)),
                    num_elements,
                )
                for state, (dtype, num_elements, pieces) in states[name].items()
            },
        )
        for name, shape in shapes.items()
    }
    return Index(
        position=position,
        made_by=made_by,
        counters=counters,
        files=tuple(File(**one["file"]) for one in described),
        parameters=parameters,
        random=tuple(one["random"] for one in described),
    )
