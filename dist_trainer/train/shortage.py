"""Lack of memory or disk space, turned into plain words wherever it is noticed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dist_trainer import disk
from dist_trainer.errors import RunError
from dist_trainer.units import format_bytes, parse_bytes

# The text of the error: "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."
_CPU = re.compile(r"DefaultCPUAllocator: .*?you tried to allocate (\d+) bytes", re.DOTALL)
# The text of the error: "CUDA out of memory. Tried to allocate 2.00 GiB."
_CUDA = re.compile(r"Tried to allocate (\d+(?:\.\d+)? [KMGT]?i?B)\b")
# The text of numpy's error: "Unable to allocate 7.45 GiB for an array", or "909. TiB".
_NUMPY = re.compile(r"Unable to allocate (\d+(?:\.\d*)? [KMGT]?i?B)\b")


@contextmanager
def said_plainly(run_dir: Path) -> Iterator[None]:
    """Turns a lack of memory or disk space in the block into an error with the amount asked for, and what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = out_of_memory(error)
        if short is None:
            raise
        raise short from error
    except OSError as error:
        told = disk.explained(error, run_dir)
        if told is None:
            raise
        raise told from error


def out_of_memory(error: BaseException) -> RunError | None:
    """The error in the form for users; None if it is not about memory."""
    text = str(error)
    is_gpu = isinstance(error, torch.OutOfMemoryError)
    is_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "std::bad_alloc" in text
    if not is_gpu and not is_host:
        return None
    asked_bytes = _asked_bytes(text)
    return RunError(
        f"{'the GPU' if is_gpu else 'the host'} is out of memory",
        found=text.strip().partition("\n")[0][:300] if is_gpu else None,
        expected=None if asked_bytes is None else f"{format_bytes(asked_bytes)} more, in one piece",
        hint="a smaller --micro-batch with a larger --accumulation holds less, and so do --checkpointing, "
        "a higher ZeRO stage or more ranks"
        + ("" if is_gpu else "; fewer ranks on this host, or a higher limit (ulimit -v, the job's --mem)")
        + "; what each of them comes to says: python -m dist_trainer plan, with the same switches",
    )


def _asked_bytes(text: str) -> int | None:
    counted = _CPU.search(text)
    if counted is not None:
        return int(counted.group(1))
    written = _CUDA.search(text) or _NUMPY.search(text)
    try:
        return None if written is None else parse_bytes(written.group(1).replace(". ", " "))
    except ValueError:
        return None
