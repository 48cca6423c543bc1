"""Where what torch.compile makes is kept, so that a second run does not make it again.

By default torch keeps it in /tmp, which clusters empty after a job. In a home that hosts share it must not reach a host
whose processor or C library cannot run it: torch compiles for the processor it finds (`-march=native`), and keeps a
graph under a key (`FxGraphHashDetails` in torch/_inductor/codecache.py) that names the GPU and torch, but no processor.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from dist_trainer.cache import cache_dir
from dist_trainer.config.deepspeed.rules import block

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# What /proc/cpuinfo says of a processor that decides which instructions it has: on x86, then on Arm.
_KIND = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")


def keep_compiled(
    config: Mapping[str, Any], environ: MutableMapping[str, str], cpuinfo: Path | None = None
) -> str | None:
    """Names a folder of the program's cache to torch, if this DeepSpeed configuration compiles and the user names none.

    To be called before torch is imported. A notice where that folder cannot be used, and torch's default stays.
    """
    if not _compiles(config) or VARIABLE in environ:
        return None
    folder = cache_dir(environ).absolute() / "inductor" / host_kind(_read(cpuinfo or Path("/proc/cpuinfo")))
    try:
        _try_locks(folder)
    except OSError as error:
        return (
            f"what torch.compile makes cannot be kept in {folder} ({error.strerror}): it lies in torch's temporary "
            f"folder, and is made anew when that was emptied; {VARIABLE} names another one"
        )
    environ[VARIABLE] = str(folder)
    return None


def host_kind(cpuinfo: str) -> str:
    """The name of the folder for hosts that can run each other's code: torch's version, and a digest of the rest."""
    first, *_ = cpuinfo.split("\n\n")
    lines = [line for line in first.splitlines() if line.partition(":")[0].strip() in _KIND]
    facts = [platform.machine(), *platform.libc_ver(), *lines]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return f"torch-{importlib.metadata.version('torch')}-{digest[:12]}"


def _compiles(config: Mapping[str, Any]) -> bool:
    """Whether the model is compiled, or Muon, which DeepSpeed compiles by itself."""
    return "compile" in config or str(block(config, "optimizer").get("type")).lower() == "muon"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _try_locks(folder: Path) -> None:
    """Raises OSError where torch could not lock files, as on a file system without locks: its ranks wait for each other
    by locks, so that one of them compiles a kernel."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
