"""The batch script, whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dist_trainer.slurm.job_request import GpuRequest, JobRequest, Launcher, Layout, lay_out
from dist_trainer.slurm.lint import lint
from dist_trainer.slurm.script import Training, output_pattern, render

ON_GPUS = JobRequest(nodes=4, gpus=GpuRequest("gpus-per-node", "8"), time="12:00:00")
TRAINING = Training(
    name="large-zero2",
    interpreter="/home/me/.venv/bin/python",
    work_dir=Path("/home/me/work"),
    run_dir=Path("runs/large-zero2-001"),
    arguments=("--resume", "auto", "--config", "large", "--ds", "zero2"),
)

WHOLE = """\
#!/bin/bash
#SBATCH --job-name=large-zero2
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@1920
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir=/home/me/work
#SBATCH --output=runs/large-zero2-001/logs/slurm-%j.out

# 32 ranks. Written by `dist_trainer slurm submit`; sbatch takes it as it stands.
set -u

python=/home/me/.venv/bin/python
run_dir=runs/large-zero2-001

if [ ! -x "$python" ]; then
    echo "$SLURMD_NODENAME has no $python: it must be in a folder that every node sees" >&2
    exit 2
fi

# SLURM sends USR1 1920 s before the time is over. The run saves and ends, and the job goes back into the queue,
# to go on from there. Without a new checkpoint since it began it would repeat itself for ever, and is left to end.
newest() { cat "$run_dir/checkpoints/latest" 2>/dev/null; }
# A signal interrupts `wait`.
await_end() {
    while kill -0 "$launch" 2>/dev/null; do wait "$launch"; done
    wait "$launch"
}
at_start=$(newest)
# $1: how many times a job without a new checkpoint may go back all the same.
go_back() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge 100 ]; then
        echo "The job is not requeued: it was 100 times (--max-requeues)." >&2
    elif [ "$(newest)" = "$at_start" ] && [ "${SLURM_RESTART_COUNT:-0}" -ge "$1" ]; then
        echo "The job is not requeued: it has written no checkpoint since it began." >&2
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
}
requeue() {
    kill -TERM "$launch" 2>/dev/null || return
    await_end
    if [ $? -gt 128 ]; then go_back 0; fi
}

"$python" -m dist_trainer launch --launcher srun \\
    --run-dir "$run_dir" \\
    --resume auto \\
    --config large \\
    --ds zero2 &
launch=$!
trap requeue USR1
# The job's status is that of the launch.
await_end
if [ $? -eq 4 ]; then go_back 3; fi
await_end
"""

WITHOUT_REQUEUE = """\
#!/bin/bash
#SBATCH --job-name=large-zero2
#SBATCH --partition=debug
#SBATCH --account=physics
#SBATCH --ntasks=3
#SBATCH --mem=64G
#SBATCH --time=30
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --chdir="/home/it's \\"me\\""
#SBATCH --output="runs/50%% a/logs/slurm-%j.out"
#SBATCH --qos=long
#SBATCH --exclusive

# 3 ranks. Written by `dist_trainer slurm submit`; sbatch takes it as it stands.
set -u

python=/home/me/.venv/bin/python
run_dir='runs/50% a'

if [ ! -x "$python" ]; then
    echo "$SLURMD_NODENAME has no $python: it must be in a folder that every node sees" >&2
    exit 2
fi

exec "$python" -m dist_trainer launch --launcher srun \\
    --run-dir "$run_dir" \\
    --resume auto \\
    --set 'data.source=a b;$HOME'
"""

AGENTS = """\
# The agents meet on the first node, at a port that follows from the job's number.
first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
export OMP_NUM_THREADS=12

exec srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \\
    "$python" -m dist_trainer.launch.launchers.elastic \\
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=8 \\
    --rdzv-backend=c10d --rdzv-endpoint="$first_host:$port" --rdzv-id="$SLURM_JOB_ID" \\
    -m -- dist_trainer train \\
    --run-dir "$run_dir" \\
    --resume auto \\
    --config large \\
    --ds zero2
"""


def filled(request: JobRequest) -> Layout:
    return replace(lay_out(request), cpus_per_rank=12, has_whole_nodes=True)


def test_a_script_for_many_nodes() -> None:
    assert render(ON_GPUS, filled(ON_GPUS), TRAINING, signal_s=1_920) == WHOLE


def test_a_script_that_is_not_requeued_and_words_that_need_quoting() -> None:
    request = JobRequest(
        tasks=3,
        partition="debug",
        account="physics",
        memory="64G",
        time="30",
        requeues=False,
        options=("qos=long", "exclusive"),
    )
    training = replace(
        TRAINING,
        work_dir=Path('/home/it\'s "me"'),
        run_dir=Path("runs/50% a"),
        arguments=("--resume", "auto", "--set", "data.source=a b;$HOME"),
    )
    assert render(request, lay_out(request), training, signal_s=None) == WITHOUT_REQUEUE


def test_a_script_of_one_agent_a_node() -> None:
    request = replace(ON_GPUS, launcher="torchrun")
    text = render(request, filled(request), TRAINING, signal_s=None)
    assert "#SBATCH --ntasks-per-node=1\n" in text
    # The agent has the CPUs of all its ranks.
    assert "#SBATCH --cpus-per-task=96\n" in text
    assert text.endswith(AGENTS)


def test_each_task_of_an_array_has_a_folder_and_is_requeued_alone() -> None:
    request = replace(ON_GPUS, array="0-3%2")
    training = replace(TRAINING, arguments=("--seed", "%a", "--set", "data.source=part-%a of 4"))
    text = render(request, lay_out(request), training, signal_s=120)
    assert "#SBATCH --array=0-3%2\n" in text
    assert "#SBATCH --output=runs/large-zero2-001/logs/slurm-%A_%a.out\n" in text
    assert "\nrun_dir=runs/large-zero2-001/task-$SLURM_ARRAY_TASK_ID\n" in text
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in text
    words = text.partition("--run-dir")[2].partition(" &\n")[0].replace("\\\n", "")
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' --run-dir{words}"],
        env={"SLURM_ARRAY_TASK_ID": "2", "run_dir": "R"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.splitlines() == ["--run-dir", "R", "--seed", "2", "--set", "data.source=part-2 of 4"]


def test_without_an_array_a_percent_sign_is_itself() -> None:
    training = replace(TRAINING, arguments=("--set", "name=%a"))
    assert "--set name=%a" in render(ON_GPUS, lay_out(ON_GPUS), training, signal_s=None)


def test_a_job_that_began_elsewhere_goes_on_from_its_own_checkpoint() -> None:
    training = replace(TRAINING, arguments=("--resume", "runs/old"), resumes_elsewhere=True)
    text = render(ON_GPUS, lay_out(ON_GPUS), training, signal_s=120)
    assert "    --resume runs/old \\\n    ${at_start:+--resume auto} &\n" in text
    assert "at_start:+" not in render(ON_GPUS, lay_out(ON_GPUS), training, signal_s=None)


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
@pytest.mark.parametrize("signal_s", [None, 1_920])
@pytest.mark.parametrize("array", [None, "0-3"])
def test_what_is_written_is_clean(launcher: str, signal_s: int | None, array: str | None) -> None:
    request = replace(ON_GPUS, launcher=launcher, array=array)
    text = render(request, filled(request), TRAINING, signal_s=signal_s)
    assert lint(text, "job") == []
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if shellcheck.exists():
        checked = subprocess.run([shellcheck, "-"], input=text, capture_output=True, text=True, check=False)
        assert checked.stdout == ""


def test_where_the_output_goes() -> None:
    assert output_pattern(ON_GPUS, Path("a%b")) == "a%%b/logs/slurm-%j.out"


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_named_variables_are_there_literally_before_the_ranks_are_started(launcher: Launcher) -> None:
    training = replace(TRAINING, env=(("NCCL_DEBUG", "INFO"), ("NOTE", "it's $HOME")))
    request = replace(ON_GPUS, launcher=launcher)
    text = render(request, lay_out(request), training, signal_s=None)
    exports = [line for line in text.splitlines() if line.startswith("export N")]
    assert text.index(exports[0]) < text.index("-m dist_trainer")
    said = subprocess.run(
        ["sh", "-c", "\n".join([*exports, 'printf %s "$NCCL_DEBUG|$NOTE"'])], check=True, capture_output=True, text=True
    )
    assert said.stdout == "INFO|it's $HOME"
