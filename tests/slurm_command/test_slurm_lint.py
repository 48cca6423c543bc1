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
    ("variable-in-directive", "#SBATCH --requeue", "#SBATCH --requeue\n#SBATCH --output=$HOME/%j.out", 9),
    ("variable-in-directive", "#SBATCH --requeue", "#SBATCH --requeue\n#SBATCH -J `whoami` # mine", 9),
    ("variable-in-directive", "#SBATCH --requeue", "#SBATCH --requeue\n#SBATCH --mem ${MEM}G", 9),
    ("tasks-and-gpus", "--ntasks-per-node=4", "--ntasks-per-node=2", 4),
    ("tasks-and-gpus", "--ntasks-per-node=4", "--ntasks-per-node 2", 4),
    ("tasks-and-gpus", "#SBATCH --ntasks-per-node=4\n", "", 3),
    ("tasks-and-gpus", "--ntasks-per-node=4", "--ntasks=4", 4),
    ("tasks-and-gpus", "--gpus-per-node=4", "--gpus=4", 4),
    ("tasks-and-gpus", "srun --kill", "srun -n 2 --kill", 4),
    ("tasks-and-gpus", "srun --kill", "srun 2> log -n 2 > out --kill", 4),
    ("gpus-per-task", "--gpus-per-node=4", "--gpus-per-task=2", 4),
    ("torchrun-per-task", "python train.py", "torchrun train.py", 13),
    ("torchrun-per-task", "python train.py", "python -m torch.distributed.run train.py", 13),
    ("torchrun-per-task", "python train.py", "accelerate launch train.py", 13),
    ("torchrun-per-task", "python train.py", "deepspeed train.py --deepspeed ds.json", 13),
    ("torchrun-per-task", "python train.py", "bash -c 'exec /env/bin/deepspeed train.py'", 13),
    ("torchrun-ranks", "python train.py", "--ntasks-per-node=1 deepspeed --num_gpus 8 train.py", 13),
    ("torchrun-ranks", "python train.py", "--ntasks-per-node=1 torchrun --nproc_per_node 8 train.py", 13),
    ("first-node-only", 'srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\\n    python', "python", 2),
    ("early-variable", "python train.py", 'bash -c "python train.py --rank $SLURM_PROCID"', 13),
    ("early-variable", "python train.py", "python train.py --node=${SLURM_NODEID:-0}", 13),
    ("visible-devices", "wait\n", "wait\nexport CUDA_VISIBLE_DEVICES=$SLURM_LOCALID\n", 16),
    ("cpus-per-task", ' --cpus-per-task="$SLURM_CPUS_PER_TASK"', "", 13),
    ("lost-rank", " --kill-on-bad-exit=1", "", 13),
    ("local-master", '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "localhost", 10),
    ("local-master", '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', '"127.0.0.1"', 10),
    ("local-master", '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "$SLURM_LAUNCH_NODE_IPADDR", 10),
    ("local-master", "python train.py", "--ntasks-per-node=1 accelerate launch --main_process_ip localhost x.py", 13),
    ("no-rendezvous", "python train.py", "--ntasks-per-node=1 torchrun --nnodes=2 train.py", 13),
    ("no-rendezvous", "python train.py", "--ntasks-per-node=1 torchrun --nnodes $SLURM_NNODES train.py", 13),
    (
        "no-rendezvous",
        "python train.py",
        "--ntasks-per-node=1 bash -c 'torchrun --nnodes=1:2 --nproc-per-node=4 x.py'",
        13,
    ),
    ("fixed-port", "python train.py", "--ntasks-per-node=1 accelerate launch --main_process_port=29500 x.py", 13),
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


def with_step(step: str, *before: str) -> str:
    """GOOD with other words for what srun starts, and lines in front of it."""
    lines = "".join(f"{line}\n" for line in before)
    return GOOD.replace("python train.py", step).replace("srun ", f"{lines}srun ", 1)


def test_of_two_directives_the_last_counts() -> None:
    time = "#SBATCH --time=12:00:00\n"
    assert rules(GOOD.replace(time, f"#SBATCH --time=noon\n{time}")) == []
    assert rules(GOOD.replace(time, f"{time}#SBATCH --time=noon\n")) == [("time-and-checkpoints", 7)]


def test_arguments_in_an_array_are_followed_to_a_missing_rendezvous() -> None:
    step = '--ntasks-per-node=1 torchrun "${ARGS[@]}" train.py'
    assert rules(with_step(step, "ARGS=(--nnodes=2", "--nproc-per-node=4)")) == [("no-rendezvous", 15)]
    assert rules(with_step(step, "ARGS=(--nnodes=2)", 'ARGS+=(--rdzv_endpoint "$A:$B")')) == []


@pytest.mark.parametrize(
    ("before", "arguments"),
    [
        ([], "--nnodes=1"),
        ([], "--nnodes=2 --master_addr $MASTER_ADDR"),
        ([], "--nnodes=2 $MORE"),
        ([], '--nnodes=2 "$@"'),
        (["export PET_RDZV_ENDPOINT=$MASTER_ADDR:$MASTER_PORT"], "--nnodes=2"),
    ],
    ids=str,
)
def test_a_rendezvous_that_is_there_or_may_be_is_none_missing(before: list[str], arguments: str) -> None:
    assert rules(with_step(f"--ntasks-per-node=1 torchrun {arguments} train.py", *before)) == []


def test_the_trap_is_on_the_signal_that_comes() -> None:
    trap = "trap 'scontrol requeue \"$SLURM_JOB_ID\"' "
    for heard in ("SIGUSR1", "TERM USR1", "usr1"):
        assert rules(GOOD.replace(f"{trap}USR1", trap + heard)) == []
    for other in ("TERM", "USR2", "EXIT"):
        assert rules(GOOD.replace(f"{trap}USR1", trap + other)) == [("signal-unheard", 7)]


@pytest.mark.parametrize(
    ("before", "step"),
    [
        (['LAUNCHER="torchrun --nnodes 2 --rdzv-endpoint=$A:$B"'], "$LAUNCHER train.py"),
        (["LAUNCHER=torchrun", 'CMD="$LAUNCHER train.py"'], "$CMD"),
        (["export LAUNCHER=torchrun"], "bash -c '$LAUNCHER train.py'"),
        (['LAUNCHER="python -m torch.distributed.run"'], 'bash -c "${LAUNCHER} train.py"'),
        (["CMD=(torchrun # the launcher", "  --nnodes 2 --master-addr=$A", ")", "CMD+=(train.py)"], '"${CMD[@]}"'),
        (["CMD=torchrun", 'CMD+=" --rdzv-endpoint=$A:$B"'], "$CMD train.py"),
        (["A=python; LAUNCHER='torchrun'"], "$LAUNCHER train.py"),
        # Of a value neither quotation marks nor what ends a command mean that.
        (['CMD="torchrun it\'s; python x.py"'], "$CMD"),
        (["EOF", "cat <<EOF"], "torchrun train.py"),
        ([], "${LAUNCHER:-torchrun} train.py"),
    ],
    ids=str,
)
def test_a_launcher_in_a_variable_is_followed(before: list[str], step: str) -> None:
    line = 13 + len(before)
    assert rules(with_step(step, *before)) == [("torchrun-per-task", line)]


@pytest.mark.parametrize(
    "before",
    [
        ["LAUNCHER=torchrun", "LAUNCHER=python"],
        ["LAUNCHER=python", "LAUNCHER=torchrun true"],
        ['ARGS=(torchrun "a b")', "LAUNCHER=python"],
        ["echo LAUNCHER=torchrun", "LAUNCHER=python"],
    ],
    ids=str,
)
def test_a_variable_has_its_last_value(before: list[str]) -> None:
    assert rules(with_step("$LAUNCHER train.py", *before)) == []


def test_a_launcher_in_a_variable_is_blamed_where_it_is_started() -> None:
    text = with_step("--ntasks-per-node=1 $LAUNCHER x.py", 'export LAUNCHER="torchrun --nproc_per_node 8"')
    assert rules(text) == [("torchrun-ranks", 14)]


def test_a_value_that_is_computed_leaves_the_variables_name() -> None:
    text = with_step('"$python" -m mine', "python=$(command -v python)")
    assert rules(text) == []
    assert rules(text.replace(" --kill-on-bad-exit=1", "")) == [("lost-rank", 14)]


def test_variables_that_grow_without_end_are_let_go() -> None:
    lines = ["A=torchrun", *['A="$A $A"'] * 60]
    assert rules(with_step("$A train.py", *lines)) == []
    # Else this takes minutes, and gigabytes.
    text = f"#!/bin/bash\nA={'x' * 8000}\n" + "srun $A$A$A$A $A$A$A$A\n" * 3000
    assert lint(text + "sbatch <<E\n#!/bin/sh\n" + "srun $A$A$A$A\n" * 3000, "job") == []


@pytest.mark.parametrize(
    ("before", "step"),
    [
        # The shell of each task expands what the script's own leaves alone.
        ([], "bash -c 'python train.py --rank $SLURM_PROCID'"),
        ([], 'bash -c "python train.py --rank \\$SLURM_PROCID"'),
        (["CMD='python train.py --rank $SLURM_PROCID'"], 'bash -c "$CMD"'),
        (["export CMD='python train.py --rank $SLURM_PROCID'"], "bash -c '$CMD'"),
        (["echo $SLURM_PROCID"], "python train.py"),
    ],
)
def test_a_variable_that_each_task_expands_is_no_finding(before: list[str], step: str) -> None:
    assert rules(with_step(step, *before)) == []


def test_a_tasks_variable_is_early_by_way_of_another_too() -> None:
    assert rules(with_step("python x.py --node=$NODE", "NODE=$SLURM_NODEID")) == [("early-variable", 14)]
    assert rules(with_step("bash -c 'python x.py $NODE'", "export NODE=$SLURM_NODEID")) == [("early-variable", 14)]


def test_single_quotes_inside_double_ones_keep_nothing_from_the_scripts_shell() -> None:
    step = "bash -c \"echo '$SLURM_PROCID'; python x.py\""
    assert rules(with_step(step)) == [("early-variable", 13)]


def test_what_differs_between_no_tasks_is_not_early() -> None:
    one_node = with_step("python train.py --node=$SLURM_NODEID").replace("--nodes=2", "--nodes=1")
    assert rules(one_node) == []
    assert rules(one_node.replace("$SLURM_NODEID", "$SLURM_PROCID")) == [("early-variable", 13)]
    assert rules(with_step("-N1 python train.py --node=$SLURM_NODEID")) == []
    assert rules(TORCHRUN + "srun --ntasks=1 python prepare.py $SLURM_PROCID\n") == []


def test_a_step_of_one_task_is_not_blamed() -> None:
    assert rules(TORCHRUN + "srun --ntasks=1 python prepare.py\n") == []
    assert rules(TORCHRUN + "srun --overlap -N1 -n 1 python prepare.py\n") == []
    assert rules(TORCHRUN + "srun -n 2 python prepare.py\n") == [("tasks-and-gpus", 3), ("lost-rank", 10)]
    alone = "#!/bin/bash\n#SBATCH --gres=gpu:1 --time=30 --no-requeue\nsrun python train.py\n"
    assert rules(alone) == []
    assert rules(alone.replace("--gres", "--nodes=2 --gres")) == [("lost-rank", 3)]
    # GPUs by the task say how many tasks there are.
    assert rules(alone.replace("--gres=gpu:1", "--gpus=4 --gpus-per-task=1")) == [("lost-rank", 3)]


def test_a_shell_script_may_start_anything_and_is_lost_all_the_same() -> None:
    wrapped = TORCHRUN.replace("srun -K", "srun").partition("srun bash")[0] + "srun -l ./run.sh\n"
    assert rules(wrapped) == [("lost-rank", 8)]


def test_deepspeed_as_a_word_of_a_program_is_not_its_launcher() -> None:
    for step in (
        "python train.py deepspeed",
        "python train.py --deepspeed ds.json",
        "python -m lightning --strategy deepspeed",
        "mine --strategy deepspeed python",
        "python -m mine deepspeed",
        "bash -c 'python train.py deepspeed'",
    ):
        assert rules(with_step(step)) == []
    assert rules(with_step("-A me --label deepspeed x.py")) == [("torchrun-per-task", 13)]
    assert rules(with_step("-A me --ntasks-per-node=1 deepspeed x.py")) == []
    assert rules(with_step("python -m deepspeed.launcher.runner x")) == [("torchrun-per-task", 13)]


def test_a_port_in_figures_is_free_on_nodes_of_its_own() -> None:
    fixed = GOOD.replace("$((20000 + SLURM_JOB_ID % 10000))", "29500")
    assert rules(fixed.replace("--requeue", "--requeue --exclusive")) == []
    assert rules(fixed.replace("--requeue", "--requeue --exclusive=user")) == [("fixed-port", 11)]


def test_a_script_without_directives_has_its_options_elsewhere() -> None:
    text = "#!/bin/bash\nsrun --gres=gpu:8 --ntasks=8 --time=1:00:00 --kill-on-bad-exit=1 python -u train.py\n"
    assert rules(text) == []
    late = [("no-time", 1), ("no-signal", 1), ("late-directive", 3)]
    assert sorted(rules("#!/bin/bash\nhostname\n#SBATCH -n 2\n")) == sorted(late)
    assert rules(text.replace("\n", "\n#SBATCH --nodes=1\n", 1)) == [("no-time", 2), ("no-signal", 2)]


@pytest.mark.parametrize(("time", "found"), [("10", []), ("00:01:00", []), ("11", [("no-signal", 8)])])
def test_a_job_of_minutes_need_not_go_on(time: str, found: list[tuple[str, int]]) -> None:
    assert rules(GOOD.replace("#SBATCH --signal=B:USR1@120\n", "").replace("12:00:00", time)) == found


def in_heredoc(text: str, submit: str = "sbatch <<'EOF'") -> str:
    return f"#!/bin/bash\nmkdir -p out\n{submit}\n{text}EOF\necho done\n"


@pytest.mark.parametrize(("rule", "old", "new", "line"), BROKEN)
def test_a_script_in_a_heredoc_is_read_as_one_of_its_own(rule: str, old: str, new: str, line: int) -> None:
    assert rules(in_heredoc(GOOD)) == []
    broken = GOOD.replace(old, new, 1)
    assert rules(in_heredoc(broken)) == [(rule, line + 3)]
    escaped = broken.replace("\\", "\\\\").replace("$", "\\$").replace("`", "\\`")
    assert rules(in_heredoc(escaped, "JOB=$(sbatch --parsable <<EOF")) == [(rule, line + 3)]


@pytest.mark.parametrize(
    "submit",
    [
        'sbatch <<"EOF"',
        "sbatch <<\\EOF",
        "sbatch --parsable <<-'EOF' >> jobs",
        "cat <<'EOF' | sbatch",
        "cat > job.sbatch <<'EOF'",
        "for i in 1 2; do sbatch <<'EOF'",
    ],
)
def test_however_a_heredoc_comes_to_sbatch(submit: str) -> None:
    text = GOOD.replace(" --kill-on-bad-exit=1", "")
    assert rules(in_heredoc(text, submit)) == [("lost-rank", 16)]


def test_a_script_that_only_submits_is_no_batch_script_and_one_that_runs_too_is() -> None:
    assert rules(in_heredoc(GOOD).replace("#!/bin/bash\nmkdir", "N=1\nmkdir", 1)) == []
    assert rules(GOOD.replace(" --kill-on-bad-exit=1", "") + in_heredoc(GOOD)) == [("lost-rank", 13)]


def test_a_heredoc_of_another_kind_is_no_script() -> None:
    assert rules(GOOD + "cat > run.sh <<'EOF'\nsrun torchrun train.py\nEOF\n") == []
    assert rules(GOOD + "cat <<EOF\n#SBATCH\nEOF\nsrun -c1 -K torchrun train.py &\n")[-1] == ("torchrun-per-task", 19)


def test_neither_a_word_for_stdin_nor_a_shift_begins_a_heredoc() -> None:
    # Though lines follow that would be its end.
    for line in ("cat <<< EOF", "x=$((1 << N))", "(( y = 1 << 4 ))", "a '1 << N'", "a \"b << 'N'\""):
        text = with_step("torchrun train.py", line) + "EOF\nN\n4\n"
        assert rules(text) == [("torchrun-per-task", 14)]
    assert rules(with_step("torchrun train.py", "cat <<EOF")) == [("torchrun-per-task", 14)]


def test_what_sbatch_is_told_beside_the_heredoc_counts_more() -> None:
    text = GOOD.replace("#SBATCH --time=12:00:00\n", "")
    assert rules(in_heredoc(text, "sbatch --time=1:00:00 <<'EOF'")) == []
    assert rules(in_heredoc(GOOD, "sbatch --ntasks-per-node 2 <<'EOF'")) == [("tasks-and-gpus", 7)]
    assert rules(in_heredoc("#!/bin/bash\nsrun -K python train.py\n", "sbatch -t 5 --gpus-per-node=2 -n2 <<EOF")) == []
    assert rules(in_heredoc("#!/bin/bash\nsrun python train.py\n", "sbatch -t 5 -n2 <<EOF")) == [("lost-rank", 5)]


def test_the_submitting_shell_expands_a_heredoc_and_what_slurm_sets_is_not_there_yet() -> None:
    header = "#!/bin/bash\n#SBATCH --nodes=$NODES --time=${TIME} --no-requeue\n#SBATCH --output=`date`.$X\n"
    assert rules(in_heredoc(header, "sbatch <<EOF")) == []
    assert rules(in_heredoc(header)) == [("variable-in-directive", line) for line in (5, 5, 6)]
    assert rules(in_heredoc(header + "python x.py ${SLURM_JOB_ID:-0}\n", "sbatch <<EOF")) == []
    body = header + "srun -K -n 2 python train.py $SLURM_JOB_ID\n"
    assert rules(in_heredoc(body, "sbatch <<EOF")) == [("early-variable", 7)]
    # Inside a job there are SLURM's variables.
    assert rules(GOOD + "sbatch <<EOF\n" + body + "EOF\n") == []
    known = in_heredoc("#!/bin/bash\n#SBATCH -N 2 -t 5\nsrun -K --ntasks-per-node=2 $RUN\n", "sbatch <<EOF")
    known = known.replace("mkdir -p out", 'RUN="torchrun train.py"')
    assert rules(known) == [("torchrun-per-task", 6)]
    # A quoted heredoc is passed on as it stands, and the job has no such variable.
    assert rules(known.replace("<<EOF", "<<'EOF'")) == []


def test_several_nodes_are_never_one_host() -> None:
    one = GOOD.replace("--nodes=2", "--nodes=1").replace(
        '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "localhost"
    )
    assert rules(one) == []
    assert rules(one.replace("--nodes=1", "--nodes=1-2")) == [("local-master", 10)]
    assert rules(one.replace("--nodes=1", "--nodelist=h[1-3]")) == [("local-master", 10)]


def test_a_signal_to_the_ranks_may_be_one_that_ends_them_unsaved() -> None:
    others = GOOD.replace("B:USR1@120", "USR1@120")
    assert rules(others) == []
    ours = others.replace("train.py", "-m dist_trainer train")
    assert rules(ours) == [], "the run saves and ends"
    assert rules(ours.replace("USR1", "USR2")) == [("signal-unheard", 7)]
    with_torchrun = others.replace("python train.py", "--ntasks-per-node=1 torchrun train.py")
    assert ("signal-unheard", 7) in rules(with_torchrun)
    assert ("signal-unheard", 7) not in rules(with_torchrun.replace("USR1", "TERM"))


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
        ("--config large", []),
        ("--config large --set checkpoints.stop_within_s=300", [("time-and-checkpoints", 6)]),
        ("--config tiny --set checkpoints.every_steps=0 --set checkpoints.at_end=false", [("time-and-checkpoints", 6)]),
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


WRITTEN = "cat > ./run.sh {end}\nexport RANK={name}\nEOF\n"


@pytest.mark.parametrize(
    ("end", "name", "run", "found"),
    [
        ("<<EOF", "$SLURM_PROCID", "bash run.sh", [("early-variable", 14)]),
        ("<<EOF", "${SLURM_NODEID}", "./run.sh", [("early-variable", 14)]),
        ("<<'EOF'", "$SLURM_PROCID", "bash run.sh", []),
        ("<<EOF", "\\$SLURM_PROCID", "bash run.sh", []),
        ("<<EOF", "$SLURM_JOB_ID", "bash run.sh", []),
        ("<<EOF", "$SLURM_PROCID", "bash other.sh", []),
    ],
    ids=["bare", "braces", "quoted end", "escaped", "the same for all tasks", "not run by srun"],
)
def test_a_script_that_is_written_and_then_run_has_the_variables_of_its_writer(
    end: str, name: str, run: str, found: list[tuple[str, int]]
) -> None:
    script = GOOD.replace("srun --kill", WRITTEN.format(end=end, name=name) + "srun --kill").replace(
        "python train.py", run
    )
    assert rules(script.replace("python train.py", run)) == found
