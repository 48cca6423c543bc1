"""The runs' folder: the same on all hosts, writable, fast enough, and with room for the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

from dist_trainer.doctor.examination import Examination
from dist_trainer.doctor.facts import Folder
from dist_trainer.doctor.findings import Finding, all_well, grouped
from dist_trainer.doctor.needs import Needs
from dist_trainer.units import format_bytes, format_duration

# A host that writes at less than this fraction of the median is slow; so is any storage below the absolute figure.
WARN_SHARE = 0.25
LEAST_BYTES_PER_S = 50e6


def check(exam: Examination) -> Iterator[Finding]:
    folders = {host.name: host.folder for host in exam.hosts if host.folder is not None}
    yield from _errors(exam, folders)
    well = {name: folder for name, folder in folders.items() if folder.error is None}
    if not well:
        return
    yield from _is_one(exam, well)
    yield from _speed(well, exam.needs)
    yield from _room(well, exam.needs)


def _errors(exam: Examination, folders: Mapping[str, Folder]) -> Iterator[Finding]:
    missing = {name: f"there is no {folder.path}" for name, folder in folders.items() if folder.is_missing}
    yield from grouped("fail", "runs folder", missing, "mount it there too, or name a shared one with --run-dir")
    errors = {
        name: f"nothing can be written to {folder.path}: {folder.error}{_free_text(folder)}"
        for name, folder in folders.items()
        if folder.error and not folder.is_missing
    }
    yield from grouped("fail", "runs folder", errors, "make room or give write access, or name another with --run-dir")


def _is_one(exam: Examination, well: Mapping[str, Folder]) -> Iterator[Finding]:
    apart = {
        host.name: f"does not see what {', '.join(host.seen.missing)} wrote to {exam.folder} ({_kind(well[host.name])})"
        for host in exam.hosts
        if host.name in well and host.seen and host.seen.missing
    }
    yield from grouped("fail", "runs folder", apart, "share it between the hosts, or name a shared one with --run-dir")
    if exam.asker.sees_folder is False:
        found = (
            f"does not see what the hosts write to {exam.folder}: `launch` here would make the run's folder elsewhere"
        )
        yield Finding("warn", "runs folder", found, (exam.asker.hostname,), "launch from a host that shares it")
    if not apart:
        kinds = ", ".join(sorted({_kind(folder) for folder in well.values()}))
        same = f", the same on {len(well)} hosts" if len(well) > 1 else ""
        hosts = tuple(well) if len(well) < len(exam.hosts) else ()
        yield Finding("ok", "runs folder", f"{exam.folder} ({kinds}){same}", hosts)


def _speed(well: Mapping[str, Folder], needs: Needs) -> Iterator[Finding]:
    speeds = {name: folder.write_bytes / folder.write_s for name, folder in well.items() if folder.write_s > 0}
    if not speeds:
        yield Finding("skip", "write speed", "not measured")
        return
    common = median(speeds.values())
    slow = {
        name: f"writes {_per_s(speed)}, where {_per_s(common)} is usual"
        for name, speed in speeds.items()
        if speed < WARN_SHARE * common and len(speeds) > 1
    }
    yield from grouped(
        "warn", "write speed", slow, "look at how the folder is mounted there, and at that host's network"
    )
    together = min(speeds.values()) * len(speeds)
    size, seconds = format_bytes(needs.checkpoint_bytes), needs.checkpoint_bytes / together
    time = "less than a second" if seconds < 1 else f"{format_duration(seconds)} or more"
    found = f"{_per_s(min(speeds.values()))} a host while all write: a checkpoint of {size} takes {time}"
    if common < LEAST_BYTES_PER_S:
        yield Finding("warn", "write speed", found, do="use faster storage for --run-dir")
    elif not slow:
        yield from all_well("write speed", found, speeds, well)


def _room(well: Mapping[str, Folder], needs: Needs) -> Iterator[Finding]:
    """All ranks write checkpoints to one folder. If each host has a folder of its own, each is judged as that one."""
    free = {name: folder.free_bytes for name, folder in well.items() if folder.free_bytes is not None}
    if not free:
        yield Finding("skip", "room", "the file system does not say how much is free")
        return
    one, count = needs.checkpoint_bytes, needs.num_checkpoints
    wanted = f"a checkpoint of {needs.name} takes {format_bytes(one)}"
    do = "make room, or name another folder with --run-dir"
    short = {name: f"{format_bytes(room)} free, and {wanted}" for name, room in free.items() if room < one}
    yield from grouped("fail", "room", short, do)
    tight = {
        name: f"{format_bytes(room)} free; {wanted}, and the run writes {count}: {format_bytes(count * one)}"
        for name, room in free.items()
        if one <= room < count * one
    }
    yield from grouped("warn", "room", tight, f"{do}; or write fewer: --set checkpoints.every_steps=N")
    if not short and not tight:
        many = f"{count} of them {format_bytes(count * one)}" if count > 1 else ""
        text = f"{format_bytes(min(free.values()))} free; {wanted}{', ' if many else ''}{many}"
        yield from all_well("room", text, free, well)


def _free_text(folder: Folder) -> str:
    return "" if folder.free_bytes is None else f" ({format_bytes(folder.free_bytes)} free)"


def _kind(folder: Folder) -> str:
    return " ".join(filter(None, (folder.kind or "a file system that is not known", folder.source)))


def _per_s(bytes_per_s: float) -> str:
    return f"{format_bytes(bytes_per_s)}/s"
