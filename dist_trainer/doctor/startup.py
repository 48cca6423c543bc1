"""Why a probe did not start on a host that can be reached: a second look there, with a plain shell."""

from __future__ import annotations

import os
from dataclasses import replace

from dist_trainer.doctor.examination import Examination, Startup, Task
from dist_trainer.doctor.ways import search_path
from dist_trainer.launch.hosts import remote

_LIMIT_S = 15.0
# $1 is the interpreter, $2 the folder. Prints what of the probe's requirements is there.
_STARTUP_SCRIPT = """\
cd "$2" 2>/dev/null && echo folder
[ -x "$1" ] && echo interpreter
"$1" -c 'import sys; print("python", sys.version.split()[0])' 2>/dev/null
"$1" -c 'import dist_trainer.doctor.host' 2>&1 | tail -n 1 | sed 's/^/error /'
"""


def look_again(task: Task, found: Examination) -> Examination:
    """The examination completed by what was found on such hosts, if there are any."""
    dumb = [report.name for report in found.hosts if report.unreachable and report.unreachable_kind is None]
    if not dumb or task.how == "srun":
        return found
    argv = ("sh", "-c", _STARTUP_SCRIPT, "sh", task.interpreter, task.cwd)
    logins = {host.name: host.login for host in task.topology.hosts}
    names = {logins.get(name, name): name for name in dumb}
    results = remote.run_on_hosts(names, argv, timeout_s=_LIMIT_S, env=search_path(os.environ))
    startups = {
        names[login]: read_startup(result.stdout) for login, result in results.items() if result.status is not None
    }
    return replace(found, hosts=tuple(replace(report, startup=startups.get(report.name)) for report in found.hosts))


def read_startup(text: str) -> Startup:
    lines = text.splitlines()
    said = {word: rest for word, _, rest in (line.partition(" ") for line in lines)}
    return Startup(
        has_folder="folder" in lines,
        has_interpreter="interpreter" in lines,
        python=said.get("python"),
        import_error=said.get("error"),
    )
