"""The built-in corpus 'stdlib': the source of the running Python's standard library, prepared once per machine."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dist_trainer.cache import cache_dir
from dist_trainer.data.atomic_folder import remove_abandoned
from dist_trainer.data.info import FORMAT_VERSION, INFO_FILE
from dist_trainer.data.sources import SourceFile, source_file
from dist_trainer.disk import cannot_write
from dist_trainer.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER_ERROR, RunError, UserError

STANDARD_LIBRARY = "stdlib"

_LEFT_OUT_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})
# This module holds paths of the machine that built this Python, so the corpus would differ between machines.
_LEFT_OUT_PREFIX = "_sysconfigdata"
_OTHER_CACHE = "set XDG_CACHE_HOME to a folder that has room and may be written, or name a prepared dataset"
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


def standard_library_dataset(vocab_size: int, *, folder: Path | None = None, progress: bool = False) -> Path:
    """The prepared folder of the corpus 'stdlib', in `folder` or by default in the cache; the first call prepares it,
    which takes seconds.

    Any number of processes may call this at once: one prepares, the others wait. The vocabulary has at most
    `vocab_size` tokens. Raises UserError.
    """
    prepared = (folder or cache_dir(os.environ)).resolve() / standard_library_name(vocab_size)
    if not _is_prepared(prepared):
        _prepare_in_child(prepared, vocab_size, progress)
    return prepared


def standard_library_name(vocab_size: int) -> str:
    """The name of the prepared folder, which is another for every version of Python: so is its text."""
    return f"{STANDARD_LIBRARY}-{platform.python_version()}-{vocab_size}-{FORMAT_VERSION}"


def standard_library_sources() -> list[SourceFile]:
    """The library's modules in sorted order, without tests and without files that are not UTF-8.

    Raises UserError if this Python has no source files, as when it is packed into a zip file.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not _LEFT_OUT_FOLDERS.intersection(parts) and not path.name.startswith(_LEFT_OUT_PREFIX) and _is_utf8(path):
            sources.append(source_file(path, path.relative_to(root).as_posix()))
    if not sources:
        raise UserError(
            "this Python has no source of its standard library",
            where=str(root),
            hint="prepare a dataset of your own: python -m dist_trainer data prepare",
        )
    return sources


def main(arguments: Sequence[str]) -> int:
    """The child process of `standard_library_dataset`: prints a UserError as JSON to stdout, progress to stderr."""
    parser = argparse.ArgumentParser(prog="dist_trainer.data.corpus")
    parser.add_argument("folder", type=Path)
    parser.add_argument("vocab_size", type=int)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(arguments)
    try:
        _prepare_once(options.folder, options.vocab_size, options.progress)
    except UserError as error:
        print(json.dumps(vars(error)))
        return error.exit_status
    return EXIT_OK


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_prepared(folder: Path) -> bool:
    return (folder / INFO_FILE).exists()


def _prepare_in_child(folder: Path, vocab_size: int, progress: bool) -> None:
    # In a child process: after the tokenizer has used threads, each fork of a loader worker would print a warning, and
    # the memory of the preparation would count in the rank's own figures.
    command = [sys.executable, "-m", "dist_trainer.data.corpus", str(folder), str(vocab_size)]
    command += ["--progress"] if progress else []
    package_parent = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=package_parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        answer = child.stdout.read()
        status = child.wait()
    if status in (EXIT_USER_ERROR, EXIT_FAILURE) and answer:
        fields = json.loads(answer)
        kind = UserError if status == EXIT_USER_ERROR else RunError
        raise kind(fields.pop("problem"), **fields)
    if status != EXIT_OK:
        raise UserError(
            "the standard library's corpus could not be prepared",
            where=str(folder),
            found=f"exit status {status}",
            hint="see the messages above",
        )


def _exit_with_parent() -> None:
    # The parent holds the other end of stdin and never writes, so end of file means that it has ended. Not sys.stdin:
    # a daemon thread that holds its lock breaks the interpreter's exit.
    os.read(0, 1)
    os._exit(1)


def _prepare_once(folder: Path, vocab_size: int, progress: bool) -> None:
    from dist_trainer.data.prepare import prepare_sources

    with _locked(folder) as is_alone:
        if _is_prepared(folder):
            return
        if is_alone:
            remove_abandoned(folder)
        try:
            prepare_sources(
                standard_library_sources(),
                folder,
                tokenizer=None,
                vocab_size=vocab_size,
                progress=progress,
                hint_if_unwritable=_OTHER_CACHE,
            )
        except UserError:
            # Without locks another process may have been faster; its result is the same.
            if not _is_prepared(folder):
                raise


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock; yields False if the file system has no locks."""
    lock = folder.with_name(f"{folder.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    except OSError as error:
        raise cannot_write("the cache folder cannot be written", error, folder.parent, hint=_OTHER_CACHE) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
            yield False
            return
        yield True


if __name__ == "__main__":
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
