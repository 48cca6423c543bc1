"""Each rule on a script that breaks it and nothing else, and on scripts that are as they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.cli import main
from dist_trainer.errors import UserError
from dist_trainer.slurm.lint import RULES, lint, lint_file

ROOT = Path(__file__).parents[2]

GOOD = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    python train.py &
wait
"""

TORCHRUN = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1
#SBATCH --gres=gpu:a100:4 # all of them
#SBATCH -t 1-0
#SBATCH --no-requeue
echo "srun starts srun torchrun"
# srun torchrun --nproc-per-node 8
srun -K bash -c '
    torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=$FIRST:$PORT train.py'
"""

# (rule, what is replaced in GOOD, by what, the line of the finding)
BROKEN = [
    ("no-interpreter", "#!/bin/bash\n", "\n", 1),
    ("byte-order-mark", "#!", "\ufeff#!", 1),
    ("carriage-return", "#SBATCH --requeue\n", "#SBATCH --requeue\r\n", 8),
    ("mac-line-ends", "#SBATCH --requeue\n", "#SBATCH --requeue\r", 8),
    ("late-directive", "wait\n", "wait\n#SBATCH --exclusive\n", 16),
    ("blank-in-directive", "#SBATCH --requeue", "#SBATCH --requeue\n# SBATCH --exclusive", 9),
    ("tasks-and-gpus", "--ntasks-per-node=4", "--ntasks-per-node=2", 4),
    ("tasks-and-gpus", "#SBATCH --ntasks-per-node=4\n", "", 3),
    ("tasks-and-gpus", "--ntasks-per-node=4", "--ntasks=4", 4),
    ("tasks-and-gpus", "--gpus-per-node=4", "--gpus=4", 4),
    ("tasks-and-gpus", "srun --kill", "srun -n 2 --kill", 4),
    ("gpus-per-task", "--gpus-per-node=4", "--gpus-per-task=2", 4),
    ("torchrun-per-task", "python train.py", "torchrun train.py", 13),
    ("torchrun-per-task", "python train.py", "python -m torch.distributed.run train.py", 13),
    ("torchrun-ranks", "python train.py", "--ntasks-per-node=1 torchrun --nproc_per_node 8 train.py", 13),
    ("first-node-only", 'srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\\n    python', "python", 2),
    ("visible-devices", "wait\n", "wait\nexport CUDA_VISIBLE_DEVICES=$SLURM_LOCALID\n", 16),
    ("cpus-per-task", ' --cpus-per-task="$SLURM_CPUS_PER_TASK"', "", 13),
    ("lost-rank", " --kill-on-bad-exit=1", "", 13),
    ("local-master", '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "localhost", 10),
    ("local-master", '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', '"127.0.0.1"', 10),
    ("local-master", '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "$SLURM_LAUNCH_NODE_IPADDR", 10),
    ("fixed-port", "$((20000 + SLURM_JOB_ID % 10000))", "29500", 11),
    ("no-time", "#SBATCH --time=12:00:00\n", "", 8),
    ("no-signal", "#SBATCH --signal=B:USR1@120\n", "", 8),
    ("signal-unheard", "trap 'scontrol requeue \"$SLURM_JOB_ID\"' USR1\n", "", 7),
    ("signal-waits", "train.py &", "train.py", 13),
    ("signal-waits", "srun --kill", "exec srun --kill", 13),
    ("requeue-refused", "#SBATCH --requeue\n", "", 11),
    ("requeue-refused", "--requeue", "--no-requeue", 12),
    ("requeue-whole-array", "#SBATCH --requeue", "#SBATCH --requeue\n#SBATCH --array=0-3", 13),
    ("output-lost", "#SBATCH --open-mode=append\n", "", 8),
    ("time-and-checkpoints", "--time=12:00:00", "--time=noon", 6),
]


def rules(text: str) -> list[tuple[str, int]]:
    return [(finding.rule, finding.line) for finding in lint(text, "job.sbatch")]


@pytest.mark.parametrize("text", [GOOD, TORCHRUN], ids=["a rank a task", "torchrun"])
def test_a_good_script_has_no_findings(text: str) -> None:
    assert lint(text, "job.sbatch") == []


@pytest.mark.parametrize(("rule", "old", "new", "line"), BROKEN)
def test_a_rule_finds_its_mistake_alone(rule: str, old: str, new: str, line: int) -> None:
    assert old in GOOD
    assert rules(GOOD.replace(old, new, 1)) == [(rule, line)]


def test_every_rule_is_tried() -> None:
    assert {rule for rule, *_ in BROKEN} == set(RULES)


def test_the_docs_have_every_rule() -> None:
    rows = [
        line.split("`")[1] for line in (ROOT / "docs" / "slurm.md").read_text().splitlines() if line.startswith("| `")
    ]
    assert [row for row in rows if row in RULES] == list(RULES)


def test_several_nodes_are_never_one_host() -> None:
    one = GOOD.replace("--nodes=2", "--nodes=1").replace(
        '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "localhost"
    )
    assert rules(one) == []
    assert rules(one.replace("--nodes=1", "--nodes=1-2")) == [("local-master", 10)]
    assert rules(one.replace("--nodes=1", "--nodelist=h[1-3]")) == [("local-master", 10)]


def test_a_signal_to_the_ranks_ends_ours_and_may_be_heard_by_others() -> None:
    others = GOOD.replace("B:USR1@120", "USR1@120")
    assert rules(others) == []
    assert rules(others.replace("train.py", "-m dist_trainer train")) == [("signal-unheard", 7)]
    assert ("signal-unheard", 7) in rules(others.replace("python train.py", "--ntasks-per-node=1 torchrun train.py"))


def test_launch_starts_a_task_a_gpu_by_itself() -> None:
    srun = 'srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\\n    python train.py'
    launch = GOOD.replace(srun, "./launch.sh --launcher srun --config tiny")
    assert rules(launch) == []
    assert rules(launch.replace("#SBATCH --ntasks-per-node=4\n", "")) == []
    assert rules(launch.replace("--ntasks-per-node=4", "--ntasks-per-node=2")) == [("tasks-and-gpus", 4)]
    assert rules(launch.replace("tiny &", "tiny")) == [("signal-waits", 13)]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--config large", [("time-and-checkpoints", 6)]),
        ("--config large --set checkpoints.every_minutes=1", []),
        ("--config tiny --set checkpoints.every_steps=0", [("time-and-checkpoints", 6)]),
        ("--config tiny", []),
        ('"$@"', []),
        ("--config nowhere/else.yaml", []),
    ],
)
def test_the_time_is_held_against_the_checkpoints_of_the_run_file(arguments: str, found: list[tuple[str, int]]) -> None:
    text = GOOD.replace("train.py", f"-m dist_trainer train {arguments}").replace("12:00:00", "30")
    assert rules(text) == found


def test_of_a_heterogeneous_job_the_first_part_is_looked_at() -> None:
    parts = "#SBATCH --open-mode=append\n#SBATCH hetjob\n#SBATCH --nodes=1 --gpus-per-node=8\n"
    assert rules(GOOD.replace("#SBATCH --open-mode=append\n", parts)) == []


def test_the_shipped_scripts_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = sorted(str(path) for path in (ROOT / "slurm").iterdir())
    assert len(scripts) == 3
    assert main(["slurm", "lint", *scripts]) == 0
    assert capsys.readouterr().out == ""


def test_findings_name_the_line_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(GOOD.replace("$((20000 + SLURM_JOB_ID % 10000))", "29500"))
    assert main(["slurm", "lint", str(script)]) == 1
    assert capsys.readouterr().out == (
        f"{script}:11: two jobs on one node would both use port 29500 [fixed-port]\n"
        "    do: derive it from the job: $((20000 + SLURM_JOB_ID % 10000))\n"
    )


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_what_cannot_be_read_is_the_users_mistake(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "job.sbatch"
    if content is not None:
        script.write_bytes(content)
    assert main(["slurm", "lint", str(script)]) == 2
    assert str(script) in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#!/bin/bash",
        "srun 'never closed\nmore",
        'x=$(a $(b) c)\n"',
        "cat <<EOF\nsrun python x.py\n",
        "if then &&\n;;",
    ],
)
def test_what_is_no_script_is_no_crash(text: str) -> None:
    lint(text, "job.sbatch")


def test_a_script_with_the_line_ends_of_dos_is_read_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert [(finding.rule, finding.line) for finding in lint_file(script)] == [("carriage-return", 1)]


def test_a_script_with_the_line_ends_of_an_old_mac_is_read_all_the_same(tmp_path: Path) -> None:
    # For sbatch and bash this is one line, a comment.
    script = tmp_path / "job.sbatch"
    script.write_bytes(GOOD.replace("\n", "\r").encode())
    assert [(finding.rule, finding.line) for finding in lint_file(script)] == [("mac-line-ends", 1)]
    script.write_bytes(GOOD.replace("train.py &\n", "train.py &\r").encode())
    assert [(finding.rule, finding.line) for finding in lint_file(script)] == [("mac-line-ends", 14)]


def test_a_script_behind_a_byte_order_mark_is_read_all_the_same(tmp_path: Path) -> None:
    # The kernel and sbatch look for #! in the first two bytes.
    script = tmp_path / "job.sbatch"
    script.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    findings = [(finding.rule, finding.line) for finding in lint_file(script)]
    assert findings == [("byte-order-mark", 1), ("carriage-return", 1)]


def test_a_time_of_hundreds_of_digits_is_a_finding() -> None:
    assert rules(GOOD.replace("12:00:00", "9" * 320)) == [("time-and-checkpoints", 6)]


def test_a_script_that_no_person_wrote_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(GOOD + "x" * 300_000)
    with pytest.raises(UserError, match="too long"):
        lint_file(script)
