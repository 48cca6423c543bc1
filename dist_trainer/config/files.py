"""Finding run files and DeepSpeed files: by path, or by the name of one that is shipped with the package."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.errors import UserError

PACKAGE_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Kind:
    """A kind of file: the folder it is shipped in, its suffixes, the switch that takes it, and what to call it."""

    folder: str
    suffixes: tuple[str, ...]
    switch: str
    says: str

    def shipped(self) -> dict[str, Path]:
        return {
            entry.stem: entry
            for entry in sorted(shipped_folder(self.folder).iterdir())
            if entry.suffix in self.suffixes
        }


RUN_FILE = Kind("configs", (".yaml", ".yml"), "--config", "a run file")
DEEPSPEED_FILE = Kind("ds_configs", (".json", ".hjson"), "--ds", "a DeepSpeed file")


def shipped_folder(name: str) -> Path:
    """The folder `configs` or `ds_configs`: inside an installed package, or beside the package in a source tree."""
    inside = PACKAGE_DIR / name
    return inside if inside.is_dir() else PACKAGE_DIR.parent / name


def find_file(name: str, kind: Kind) -> Path:
    """'zero2' -> the shipped ds_configs/zero2.json; anything with a folder or a suffix is taken as a path.

    Raises UserError, naming the switch, if there is no such file, and for a file of the other kind if its suffix shows
    that (a run file is YAML; JSON contents would parse as YAML too).
    """
    path = Path(name)
    other = RUN_FILE if kind is DEEPSPEED_FILE else DEEPSPEED_FILE
    if kind is DEEPSPEED_FILE and path.suffix in other.suffixes:
        raise _of_the_other_kind(name, kind, other)
    if path.suffix in kind.suffixes or len(path.parts) > 1:
        if path.is_file():
            return path
        hint = "check the path, or use a name without a suffix"
        raise UserError("no such file", where=kind.switch, found=name, hint=hint)
    shipped = kind.shipped()
    if name in shipped:
        return shipped[name]
    if path.suffix in other.suffixes and path.is_file():
        return path
    if path.suffix in other.suffixes or name in other.shipped():
        raise _of_the_other_kind(name, kind, other)
    near = difflib.get_close_matches(name, shipped, n=1)
    raise UserError(
        f"no {kind.folder} file of this name",
        where=kind.switch,
        found=name,
        expected=f"a path, or one of {', '.join(shipped)}",
        hint=f"did you mean {near[0]!r}?" if near else None,
    )


def check_kind(name: str, kind: Kind, keys: Collection[str], *, own: Collection[str], others: Collection[str]) -> None:
    """Raises UserError for a file of the other kind: some of its top-level `keys` are in `others`, and none is in
    `own`, the keys that a file of this kind may have."""
    if set(keys) & set(others) and not set(keys) & set(own):
        raise _of_the_other_kind(name, kind, RUN_FILE if kind is DEEPSPEED_FILE else DEEPSPEED_FILE)


def _of_the_other_kind(name: str, kind: Kind, other: Kind) -> UserError:
    return UserError(
        f"this is {other.says}, and {kind.switch} takes {kind.says}",
        where=kind.switch,
        found=name,
        hint=f"write {other.switch} {name}",
    )
