"""A second look, with a plain shell, at hosts that can be reached but on which the probe did not start."""

from __future__ import annotations

import os
from dataclasses import replace

from dist_trainer.doctor.examination import Examination, Startup, Task
from dist_trainer.doctor.ways import search_path
from dist_trainer.launch.hosts import remote

_LIMIT_S = 15.0
# With the interpreter and the folder as $1 and $2: what stands in the way of a probe that did not start.
_STARTUP_SCRIPT = """\
cd "$2" 2>/dev/null && echo folder
[ -x "$1" ] && echo interpreter
"$1" -c 'import sys; print("python", sys.version.split()[0])' 2>/dev/null
"$1" -c 'import dist_trainer.doctor.host' 2>&1 | tail -n 1 | sed 's/^/error /'
"""


def look_again(task: Task, found: Examination) -> Examination:
    """The examination with what was found on those hosts, where there are any."""
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
