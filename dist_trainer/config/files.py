"""Finding run files and DeepSpeed files: a path as it is, or the name of one that travels with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from dist_trainer.errors import UserError

PACKAGE_DIR = Path(__file__).resolve().parent.parent


def shipped_folder(kind: str) -> Path:
    """The folder `configs` or `ds_configs`: inside an installed package, or beside it in a source tree."""
    inside = PACKAGE_DIR / kind
    return inside if inside.is_dir() else PACKAGE_DIR.parent / kind


def find_file(name: str, *, kind: str, suffixes: tuple[str, ...], switch: str) -> Path:
    """'zero2' -> the shipped ds_configs/zero2.json; anything with a folder or a suffix is a path.

    Raises UserError, naming the switch, when there is no such file.
    """
    path = Path(name)
    if path.suffix in suffixes or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError("no such file", where=switch, found=name, hint="check the path, or use a name without a suffix")
    folder = shipped_folder(kind)
    shipped = {entry.stem: entry for entry in sorted(folder.iterdir()) if entry.suffix in suffixes}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    raise UserError(
        f"no {kind} file of this name",
        where=switch,
        found=name,
        expected=f"a path, or one of {', '.join(shipped)}",
        hint=f"did you mean {near[0]!r}?" if near else None,
    )
