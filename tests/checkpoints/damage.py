"""Damages each file of a checkpoint in each way, and starts real runs from it: none may train on as if it were whole.

    python tests/checkpoints/damage.py

Prints a table in Markdown: what was done to which file, what the run says of it, and how it goes on where that
checkpoint is named, where `--resume auto` looks for one, and where that finds no other. Status 1 if a start did not
do what it must.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoint_folders import write_content
from ranks import mini_config, run_ranks, train

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.folder import LATEST_FILE
from dist_trainer.checkpoints.index import INDEX_FILE, data_file_name
from dist_trainer.checkpoints.position import Position
from dist_trainer.records import EVENTS_FILE, STEPS_FILE, Event, read_records, read_steps

# Saved by each run; the newest is damaged. The other run has one more, so that its `latest` says another step.
NEWEST, OLDER, OF_OTHER = "step-2", "step-1", "step-3"
NUM_STEPS = 3
DATA_FILES = (data_file_name(0), data_file_name(1))
SETTINGS = ("--set", "checkpoints.every_steps=1", "--set", "evaluation.num_batches=0", "--precision", "fp32")
NAMED, AUTO, ALONE = "named", "auto", "auto, alone"


@dataclass(frozen=True)
class Runs:
    """A run of two ranks and another one with another seed. Only to be copied."""

    mine: Path
    other: Path


@dataclass(frozen=True)
class Damage:
    """`do` damages a copy of `Runs.mine`. `resumed`: what a run takes that goes on by itself; `alone` is the same where
    there is no other checkpoint, None where it is refused.
    """

    file: str
    what: str
    do: Callable[[Path, Runs], None]
    resumed: str = OLDER
    alone: str | None = None

    @property
    def ways(self) -> tuple[str, ...]:
        """How runs are started from it. Where a step-N folder is named, `latest` is not read."""
        if self.file != LATEST_FILE:
            return NAMED, AUTO, ALONE
        # Which other step it names is of no meaning where there is none.
        return (AUTO,) if self.what == "of another step" else (AUTO, ALONE)


@dataclass(frozen=True)
class Outcome:
    """`end`: its status where the start was refused, else what it resumed from. `said`: what it said of the damage.
    `wrong`: what it did and must not have done, or the other way round.
    """

    end: str
    said: str
    wrong: tuple[str, ...]


def place_of(folder: Path, file: str) -> Path:
    return folder / "checkpoints" / (file if file == LATEST_FILE else f"{NEWEST}/{file}")


def deleted(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def flipped(place: Callable[[bytes], int]) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place(content)] ^= 1
        path.write_bytes(content)

    return flip


def edited(change: Callable[[Position], Position], *, with_digest: bool) -> Callable[[Path], None]:
    """An index whose position says something else, with the old digest or with the one that belongs to it."""

    def edit(path: Path) -> None:
        before = path.read_bytes()
        found = index.read(path.parent)
        write_content(path.parent, index._adapter().dump_json(found))
        assert path.read_bytes() == before, "nothing but the position is to change"
        write_content(path.parent, index._adapter().dump_json(replace(found, position=change(found.position))))
        if not with_digest:
            after = path.read_bytes()
            path.write_bytes(after.replace(_digest_in(after), _digest_in(before)))

    return edit


def _digest_in(content: bytes) -> bytes:
    digest: str = json.loads(content)["sha256"]
    return digest.encode()


def step_on(position: Position) -> Position:
    return replace(position, step=position.step + 1)


def phase_on(position: Position) -> Position:
    progress = position.phases["short"]
    return replace(position, phases={"short": replace(progress, steps=progress.steps + 1)})


def place_on(position: Position) -> Position:
    ((order, place),) = position.places.items()
    return replace(position, places={order: replace(place, tokens=place.tokens + place.sequence_length)})


def all_damages() -> list[Damage]:
    found = []
    for file in (*DATA_FILES, INDEX_FILE, LATEST_FILE):

        def on(
            what: str, damage: Callable[[Path], None], file: str = file, resumed: str = OLDER, alone: str | None = None
        ) -> None:
            found.append(Damage(file, what, lambda folder, _: damage(place_of(folder, file)), resumed, alone))

        def swapped(what: str, source: Callable[[Runs], Path], file: str = file, **more: Any) -> None:
            def swap(folder: Path, runs: Runs) -> None:
                shutil.copyfile(source(runs), place_of(folder, file))

            found.append(Damage(file, what, swap, **more))

        # A `latest` that cannot be right costs nothing: the newest checkpoint is whole.
        kept = {"resumed": NEWEST, "alone": NEWEST} if file == LATEST_FILE else {}
        on("deleted", deleted, **kept)
        on("cut", cut, **kept)
        if file in DATA_FILES:
            on("a bit of its header flipped", flipped(lambda content: 20))
        on("a bit flipped", flipped(lambda content: len(content) * 2 // 3 if len(content) > 64 else -1), **kept)
        if file == LATEST_FILE:
            swapped("of another run", lambda runs: runs.other / "checkpoints" / LATEST_FILE, **kept)
            on("of another step", lambda path: path.write_text(OLDER))
        else:
            swapped("of another run", lambda runs, file=file: place_of(runs.other, file))
            swapped("of another step", lambda runs, file=file: runs.mine / "checkpoints" / OLDER / file)
        if file == INDEX_FILE:
            for name, change in (("step", step_on), ("phase", phase_on), ("place", place_on)):
                on(f"its {name} edited", edited(change, with_digest=False))
            for name, change in (("step", step_on), ("phase", phase_on)):
                on(f"its {name} edited, with a new digest", edited(change, with_digest=True))
    return found


def make_runs(folder: Path) -> Runs:
    mine = train(folder, "mine", *SETTINGS, "--max-steps", "2")
    return Runs(mine, train(folder, "other", *SETTINGS, "--max-steps", "3", "--seed", "8"))


def start(damage: Damage, way: str, runs: Runs, folder: Path) -> Outcome:
    """Damages a copy in `folder`, which is empty, and starts a run of one rank from it."""
    run_dir = folder / "run"
    shutil.copytree(runs.mine, run_dir)
    if way == ALONE:
        shutil.rmtree(run_dir / "checkpoints" / OLDER)
    damage.do(run_dir, runs)
    trained = folder / "new" if way == NAMED else run_dir
    words = ["--config", str(mini_config(folder)), "--run-dir", str(trained), "--max-steps", str(NUM_STEPS), *SETTINGS]
    if way == NAMED:
        words += ["--resume", str(run_dir / "checkpoints" / NEWEST)]
    ended = run_ranks(["-m", "dist_trainer", "train", *words], cwd=folder, world_size=1)
    resumed = {NAMED: None, AUTO: damage.resumed, ALONE: damage.alone}[way]
    if resumed is None:
        return _refused(damage, trained, ended.status, ended.output, folder)
    return _went_on(damage, trained, resumed, ended.status, ended.output, folder)


def _names_it(damage: Damage, said: str) -> bool:
    """An index of another run is whole by itself, and it is the data that does not belong to it."""
    names = {damage.file} | ({*DATA_FILES} if (damage.file, damage.what) == (INDEX_FILE, "of another run") else set())
    return any(name in said for name in names)


def _refused(damage: Damage, trained: Path, status: int, output: str, folder: Path) -> Outcome:
    said = next((line for line in output.splitlines() if "dist_trainer: error: " in line), "")
    num_before = 2 if trained.name == "run" else 0
    num_steps = len(read_steps(trained / "records")) if (trained / "records" / STEPS_FILE).exists() else 0
    wrong = {
        f"status {status}": status != 2,
        "no one message": output.count("dist_trainer: error: ") != 1,
        "the file is not named": not _names_it(damage, said),
        "a traceback": "Traceback" in output,
        "it trained": num_steps != num_before,
    }
    return _outcome(f"status {status}", said.partition("cannot be resumed from: ")[2], wrong, folder)


def _went_on(damage: Damage, trained: Path, resumed: str, status: int, output: str, folder: Path) -> Outcome:
    lines = [line.partition("notice     ")[2] for line in output.splitlines() if line.startswith("notice     ")]
    said = next((line for line in lines if _names_it(damage, line)), "")
    events = list(read_records(trained / "records" / EVENTS_FILE, Event))
    noticed = [event.message for event in events if event.kind == "notice"]
    resumes = [Path(event.message).name for event in events if event.kind == "resume"]
    wrong = {
        f"status {status}": status != 0,
        "no word of it": not said,
        "no event of it": not any(_names_it(damage, message) for message in noticed),
        f"resumed from {resumes}": resumes != [resumed],
        "not trained to its end": status == 0 and [one.step for one in read_steps(trained / "records")] != [1, 2, 3],
    }
    return _outcome(resumed, said, wrong, folder)


def _outcome(end: str, said: str, wrong: Mapping[str, bool], folder: Path) -> Outcome:
    """What was said without the checkpoint's folder, and without what follows from it."""
    plain = said.replace(f"{folder}/run/checkpoints/", "").partition(f"; {end}, the newest")[0]
    plain = plain.removeprefix(f"{NEWEST} is not whole: ").removeprefix(f"{NEWEST}/")
    return Outcome(end, plain, tuple(name for name, is_so in wrong.items() if is_so))


def main() -> int:
    num_wrong = num_starts = 0
    print("| file | damage | found, by name | named | `auto` | `auto`, no other |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        runs = make_runs(Path(place))
        for damage in all_damages():
            ends, said = [], []
            for way in (NAMED, AUTO, ALONE):
                if way not in damage.ways:
                    ends.append("")
                    continue
                with tempfile.TemporaryDirectory(dir=place) as folder:
                    outcome = start(damage, way, runs, Path(folder))
                num_starts += 1
                num_wrong += bool(outcome.wrong)
                ends.append(outcome.end + (f" **{', '.join(outcome.wrong)}**" if outcome.wrong else ""))
                said.append(outcome.said)
            words = "; or: ".join(dict.fromkeys(said))
            print(f"| `{damage.file}` | {damage.what} | {words} | {' | '.join(ends)} |", flush=True)
    print(f"\n{num_starts} starts, {num_wrong} of them wrong")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
