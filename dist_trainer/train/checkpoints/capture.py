"""A rank's part of a checkpoint: copied out of the engine into memory that is kept, or read from the engine itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from dist_trainer.checkpoints.data_file import Layout, Part, lay_out
from dist_trainer.checkpoints.index import WEIGHT
from dist_trainer.exchange.reading import DTYPES, memory_of
from dist_trainer.train.checkpoints.holders import Holder, Holders, Span

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Each part begins at a multiple of this in the buffer, whatever its dtype.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Source:
    """Where a part is copied from: `numel` elements of a holder's state, or of its weight, from `offset` on."""

    holder: Holder
    part: Part
    offset: int

    def tensor(self) -> Tensor:
        return self.holder.elements(self.part.state, self.offset, self.part.stop - self.part.start)


def sources_of(holders: Holders, *, rank: int, world_size: int) -> list[Source]:
    """What this rank has to save. Where every rank has everything, each saves an equal part of all elements.

    A holder's sources follow each other, so that what DeepSpeed keeps on NVMe is brought into memory once.
    """
    begin, end = _share(holders, rank, world_size)
    sources = []
    place = 0
    for holder in holders.holders:
        first = place
        with holder.present(False):
            states = {WEIGHT: holder.tensor, **holder.tensor_states()}
        for state, tensor in states.items():
            dtype = _NAMES[tensor.dtype]
            if not holder.has_each_element(state):
                if begin <= first < end:
                    sources.append(_whole(holder, state, dtype))
                continue
            place = first
            for span in holder.spans:
                own = _cut(span, max(0, begin - place), min(span.numel, end - place))
                place += span.numel
                if own is not None:
                    part = Part(own.parameter, state, own.start, own.start + own.numel, dtype)
                    sources.append(Source(holder, part, own.offset))
    return sources


def _whole(holder: Holder, state: str, dtype: str) -> Source:
    (span,) = holder.spans_of(state)
    return Source(holder, Part(span.parameter, state, 0, span.numel, dtype, num_elements=span.numel), span.offset)


def _share(holders: Holders, rank: int, world_size: int) -> tuple[int, int]:
    """The elements, counted over all spans, that this rank saves."""
    total = sum(span.numel for holder in holders.holders for span in holder.spans)
    if not holders.replicated:
        return 0, total
    return total * rank // world_size, total * (rank + 1) // world_size


def _cut(span: Span, begin: int, end: int) -> Span | None:
    if begin >= end:
        return None
    return Span(span.parameter, span.start + begin, end - begin, span.offset + begin)


class Direct:
    """The bytes of a rank's data file as the engine has them, which must not change until they have been written."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.layout: Layout = lay_out([source.part for source in sources])

    def contents(self) -> Iterator[memoryview]:
        """The bytes of each part, in the layout's order."""
        for holder, group in groupby(self._sources, key=lambda source: source.holder):
            with holder.present(False):
                for source in group:
                    yield memory_of(source.tensor().cpu())


class Copy:
    """The bytes of a rank's data file, in memory that the device can write to."""

    def __init__(self, sources: Sequence[Source], *, pinned: bool) -> None:
        self.sources = sources
        self.layout: Layout = lay_out([source.part for source in sources])
        self._offsets: list[int] = []
        end = 0
        for part in self.layout.parts:
            self._offsets.append(end)
            end += -(-part.num_bytes // _ALIGNMENT) * _ALIGNMENT
        self._buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)

    def fits(self, sources: Sequence[Source]) -> bool:
        """Whether these sources are the ones that this memory was made for."""
        return [source.part for source in sources] == [source.part for source in self.sources]

    def take(self) -> None:
        """Copies all parts. On a GPU the copies are in the current stream."""
        with torch.no_grad():
            places = zip(self.sources, self._offsets, strict=True)
            for holder, group in groupby(places, key=lambda place: place[0].holder):
                with ExitStack() as stack:
                    stack.enter_context(holder.present(False))
                    for source, offset in group:
                        self._part(source.part, offset).copy_(source.tensor(), non_blocking=True)

    def contents(self) -> Iterator[memoryview]:
        """The bytes of each part, in the layout's order."""
        for part, offset in zip(self.layout.parts, self._offsets, strict=True):
            yield memory_of(self._buffer.narrow(0, offset, part.num_bytes))

    def _part(self, part: Part, offset: int) -> Tensor:
        return self._buffer.narrow(0, offset, part.num_bytes).view(DTYPES[part.dtype])


Content = Copy | Direct
