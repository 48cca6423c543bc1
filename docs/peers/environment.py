"""The peers' own environment: a virtual environment that sees the packages of this one, with the peers on top."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parent.parent / ".venv-peers"
REQUIREMENTS = HERE / "requirements.txt"
# What the peers must not bring another version of: they are to run with the same as ours.
SHARED = ("torch", "deepspeed", "numpy")


def peers_python() -> str:
    """The environment's Python. Makes the environment first, unless it is there with these requirements."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "made-of.txt"
    made_of = _made_of()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_of:
        print(f"making {ENVIRONMENT.name} (once)", flush=True)
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        _see(python, sysconfig.get_path("purelib"))
        constraints = ENVIRONMENT / "constraints.txt"
        constraints.write_text("\n".join(_shared_versions()) + "\n", encoding="utf-8")
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([python, *install, "-c", constraints, "-r", REQUIREMENTS], check=True)
        stamp.write_text(made_of, encoding="utf-8")
    return str(python)


def _see(python: Path, packages: str) -> None:
    """Adds a folder of packages behind the environment's own, with the .pth files in it."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    line = f"import site; site.addsitedir({packages!r})\n"
    (Path(own) / "of_dist_trainer.pth").write_text(line, encoding="utf-8")


def _shared_versions() -> list[str]:
    return [f"{name}=={importlib.metadata.version(name)}" for name in SHARED]


def _made_of() -> str:
    requirements = REQUIREMENTS.read_text(encoding="utf-8")
    return "\n".join([sys.version, sysconfig.get_path("purelib"), *_shared_versions(), requirements])
