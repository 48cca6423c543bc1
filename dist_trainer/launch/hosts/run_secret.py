"""The secret shared by a launching process and its guards, and how it reaches them: never on a command line.

Guards that inherit this process's environment (all ranks on this host, srun, torchrun by hand) get it in a variable,
which a guard removes before its rank starts. To hosts reached over ssh it travels over ssh, into a file that only the
user can read. Runs that are started by hand on each host share a file of the user's instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dist_trainer.errors import UserError

FROM_ENVIRONMENT = "environment"
VARIABLE = "DIST_TRAINER_RUN_SECRET"
_NUM_BYTES = 32
_MAX_FILE_BYTES = 4096
# Long enough that nobody can guess it, and nothing that a person would choose as a name.
_ID_IS_SECRET = re.compile(r"[0-9a-fA-F]{32,}")
# Not TMPDIR, which a shell's start files may set differently on other hosts.
_FOLDER = "/tmp"


@dataclass(frozen=True)
class RunSecret:
    """`source`: where a guard finds it, FROM_ENVIRONMENT or a file's path; it is on command lines that all can read."""

    value: bytes = field(repr=False)
    source: str = FROM_ENVIRONMENT

    @property
    def is_file(self) -> bool:
        return self.source != FROM_ENVIRONMENT

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables to add to the launcher's environment so that the guards get the secret."""
        if self.is_file:
            return {}
        found = {VARIABLE: self.value.hex()}
        asked = environ.get("SLURM_EXPORT_ENV")
        if asked:
            # `sbatch --export=NONE` leaves this set in the job: srun then passes only the variables named in it.
            found["SLURM_EXPORT_ENV"] = VARIABLE if asked in ("NONE", "NIL") else f"{asked},{VARIABLE}"
        return found


def new_secret(*, in_file: bool) -> RunSecret:
    """A random secret for this run. `in_file`: the hosts do not inherit this process's environment."""
    source = f"{_FOLDER}/dist_trainer-{os.urandom(16).hex()}" if in_file else FROM_ENVIRONMENT
    return RunSecret(os.urandom(_NUM_BYTES), source)


def secret_by_hand(job_id: str, environ: Mapping[str, str]) -> RunSecret:
    """The secret of a run that is started by hand on each host: one that all hosts know without having communicated.

    A job id of 32 or more hexadecimal digits is taken as the secret itself; otherwise the user's own secret file is
    used, and made if missing. Raises UserError if that file cannot be read or written, or if others can read it.
    """
    import hmac

    run = job_id.encode(errors="surrogateescape")
    key = run if is_secret_id(job_id) else _user_secret(environ)
    return RunSecret(hmac.digest(key, b"dist_trainer run " + run, "sha256"))


def is_secret_id(job_id: str) -> bool:
    return _ID_IS_SECRET.fullmatch(job_id) is not None


def public_id(job_id: str) -> str:
    """What the launcher's command line may show of the id."""
    import hashlib

    return hashlib.sha256(job_id.encode()).hexdigest() if is_secret_id(job_id) else job_id


def user_secret_path(environ: Mapping[str, str]) -> Path:
    """$XDG_CONFIG_HOME/dist_trainer/secret, or ~/.config/dist_trainer/secret."""
    home = environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "dist_trainer" / "secret"


def take_secret(source: str, environ: MutableMapping[str, str]) -> RunSecret:
    """For a guard: reads the secret, and removes it from the environment. Raises UserError if there is none."""
    text = environ.pop(VARIABLE, "")
    if source == FROM_ENVIRONMENT:
        where = f"the environment on {socket.gethostname()}"
    else:
        where = f"{source} on {socket.gethostname()}"
        try:
            text = read_private(Path(source))
        except OSError as error:
            raise UserError(
                "the run's secret cannot be read", where=where, found=error.strerror or str(error)
            ) from error
    try:
        return RunSecret(_parse(text), source)
    except ValueError as error:
        raise UserError("the run's secret did not arrive", where=where, key=VARIABLE) from error


def write_private(path: Path, secret: bytes) -> None:
    """Makes a file that only this user can read. Raises OSError if it exists."""
    # Mode 0600 whatever the umask; with O_EXCL open does not follow a link.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret.hex() + "\n")


def read_private(path: Path) -> str:
    """Raises OSError unless it is a regular file owned by this user that nobody else can read or write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a plain file")
        if found.st_uid != os.geteuid():
            raise OSError(f"it belongs to user {found.st_uid}, not to user {os.geteuid()}")
        if found.st_mode & 0o077:
            raise OSError(f"others may use it: its mode is {found.st_mode & 0o777:04o}, and 0600 is right")
        return file.read(_MAX_FILE_BYTES).decode("ascii", errors="replace")


def _user_secret(environ: Mapping[str, str]) -> bytes:
    path = user_secret_path(environ)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), _new_beside(path) as made:
            # link() is atomic: the file appears whole, and the first writer wins, also in a folder shared by hosts.
            os.link(made, path)
        return _parse(read_private(path))
    except (OSError, ValueError) as error:
        raise UserError(
            "A run started by hand on each host needs a secret that all of them know.",
            where=str(path),
            found=getattr(error, "strerror", None) or str(error),
            expected="a file of mode 0600, the same on every host",
            hint='mend it, or give every host the same --rdzv-id "$(openssl rand -hex 32)"',
        ) from error


@contextmanager
def _new_beside(path: Path) -> Iterator[Path]:
    if path.exists():
        raise FileExistsError
    made = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    write_private(made, os.urandom(_NUM_BYTES))
    try:
        yield made
    finally:
        made.unlink()


def _parse(text: str) -> bytes:
    secret = bytes.fromhex(text.strip())
    if len(secret) < _NUM_BYTES:
        raise ValueError(f"{_NUM_BYTES} bytes as hexadecimal digits were expected")
    return secret
