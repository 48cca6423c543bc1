"""Whole commands against golden files. When a command is meant to change, the file is edited by hand."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dist_trainer.cluster.hostfile import parse_hostfile
from dist_trainer.cluster.slurm import allocated_topology
from dist_trainer.cluster.topology import Topology
from dist_trainer.errors import UserError
from dist_trainer.launch.environment import without_what_pdsh_shows
from dist_trainer.launch.guards.guarding import guarded, job_for
from dist_trainer.launch.hosts.run_secret import RunSecret
from dist_trainer.launch.launchers.choose import build_plan, choose_launcher
from dist_trainer.launch.plan import HostFacts, LaunchPlan, LaunchRequest, Rendezvous, argument_groups

SECRET = RunSecret(b"what launch and its guards know.", "/tmp/where")
GOLDEN = Path(__file__).parent / "golden"
CPU_HOST = HostFacts("box", "/env/bin/python", num_cores=8, num_gpus=0, is_root=False, environ={})
GPU_HOST = dataclasses.replace(CPU_HOST, num_cores=64, num_gpus=8)
ALLOCATION = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "h[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_CPUS_PER_NODE": "8(x2)",
}
UNEVEN = ALLOCATION | {"SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "2,1", "SLURM_CPUS_PER_TASK": "3"}
TINY = ("train", "--config", "tiny", "--ds", "zero2", "--run-dir", "runs/tiny-zero2-001")
LOCALHOST = parse_hostfile("localhost slots=4", where="hf")
AS_USERS = parse_hostfile("me@node1 slots=8\nnode2 slots=8", where="hf")
TWO_HOSTS = parse_hostfile("node1 slots=8\nnode2 slots=8", where="hf")


def request(
    topology: Topology | None = None,
    facts: HostFacts = CPU_HOST,
    arguments: tuple[str, ...] = TINY,
    hostfile: str | None = None,
    is_filtered: bool = False,
) -> LaunchRequest:
    return LaunchRequest(
        arguments, topology or Topology.of_this_host(2), 23456, facts, hostfile=hostfile, is_filtered=is_filtered
    )


def with_environ(facts: HostFacts, environ: dict[str, str]) -> HostFacts:
    return dataclasses.replace(facts, environ=environ)


def with_hydra(facts: HostFacts) -> HostFacts:
    return dataclasses.replace(facts, mpirun="hydra")


def slurm_request(environ: dict[str, str]) -> LaunchRequest:
    return request(allocated_topology(environ), with_environ(CPU_HOST, environ))


CASES = {
    "torchrun": ("torchrun", request()),
    "torchrun-gpus": ("torchrun", request(Topology.of_this_host(8), GPU_HOST)),
    "torchrun-some-gpus": (
        "torchrun",
        request(LOCALHOST.filter(include="localhost:1,3"), GPU_HOST, hostfile="hf", is_filtered=True),
    ),
    "torchrun-some-visible-gpus": (
        "torchrun",
        request(
            LOCALHOST.filter(include="localhost:1,3"),
            with_environ(
                dataclasses.replace(GPU_HOST, num_gpus=4), {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c,GPU-d"}
            ),
            hostfile="hf",
            is_filtered=True,
        ),
    ),
    "torchrun-quoting": (
        "torchrun",
        request(arguments=("train", "--set", "data.path=a b", "--set", """it's "$HOME"; {"a":1}""", "")),
    ),
    "torchrun-kept-variables": (
        "torchrun",
        request(facts=with_environ(CPU_HOST, {"OMP_NUM_THREADS": "3", "DS_ACCELERATOR": "xpu"})),
    ),
    "torchrun-over-ssh": (
        "torchrun",
        request(parse_hostfile("node1 slots=8\nnode2 slots=4", where="hf"), GPU_HOST, hostfile="hf"),
    ),
    "torchrun-over-ssh-as-a-user": ("torchrun", request(AS_USERS, GPU_HOST, hostfile="hf")),
    "torchrun-by-hand": (
        "torchrun",
        dataclasses.replace(request(), rendezvous=Rendezvous(2, "node1", 29500, "dist_trainer")),
    ),
    "torchrun-named-variables": ("torchrun", dataclasses.replace(request(), env=(("A", "b c"),))),
    "deepspeed": ("deepspeed", request()),
    "deepspeed-localhost": ("deepspeed", request(LOCALHOST, hostfile="hostfiles/localhost")),
    "deepspeed-gpus": ("deepspeed", request(Topology.of_this_host(8), GPU_HOST)),
    "deepspeed-visible-gpus": (
        "deepspeed",
        request(facts=with_environ(GPU_HOST, {"CUDA_VISIBLE_DEVICES": "5,7"})),
    ),
    "deepspeed-some-visible-gpus": (
        "deepspeed",
        request(
            LOCALHOST.filter(include="localhost:1,3"),
            with_environ(dataclasses.replace(GPU_HOST, num_gpus=4), {"CUDA_VISIBLE_DEVICES": "2,5,6,7"}),
            hostfile="hf",
            is_filtered=True,
        ),
    ),
    "deepspeed-visible-gpus-and-a-marked-hostfile": (
        "deepspeed",
        dataclasses.replace(
            request(Topology.of_this_host(2), with_environ(GPU_HOST, {"CUDA_VISIBLE_DEVICES": "5,7"}), hostfile="hf"),
            is_hostfile_marked=True,
        ),
    ),
    "deepspeed-two-hosts": ("deepspeed", request(TWO_HOSTS, GPU_HOST, hostfile="hostfiles/a100")),
    "deepspeed-one-other-host": (
        "deepspeed",
        request(TWO_HOSTS.filter(include="node2:0,1"), GPU_HOST, hostfile="hostfiles/a100", is_filtered=True),
    ),
    "deepspeed-marked-hostfile": (
        "deepspeed",
        dataclasses.replace(request(TWO_HOSTS, GPU_HOST, hostfile="hf"), is_hostfile_marked=True),
    ),
    "deepspeed-from-a-host-without-gpu": ("deepspeed", request(TWO_HOSTS, hostfile="hostfiles/a100")),
    "mpirun": ("mpirun", request()),
    "mpirun-root": ("mpirun", request(facts=dataclasses.replace(CPU_HOST, is_root=True))),
    "mpirun-two-hosts": (
        "mpirun",
        request(
            TWO_HOSTS,
            with_environ(GPU_HOST, {"PATH": "/env/bin:/bin", "LD_LIBRARY_PATH": ""}),
            hostfile="hostfiles/a100",
        ),
    ),
    "mpirun-mpis-hostfile": (
        "mpirun",
        request(parse_hostfile("node1:2\nnode2\nnode2\nnode1", where="hf", forms="mpi"), GPU_HOST, hostfile="hf"),
    ),
    "hydra": ("mpirun", request(facts=with_hydra(CPU_HOST))),
    "hydra-some-gpus": (
        "mpirun",
        request(LOCALHOST.filter(include="localhost:1,3"), with_hydra(GPU_HOST), hostfile="hf", is_filtered=True),
    ),
    "hydra-two-hosts": (
        "mpirun",
        request(
            TWO_HOSTS,
            with_hydra(with_environ(GPU_HOST, {"PATH": "/env/bin:/bin", "LD_LIBRARY_PATH": ""})),
            hostfile="hostfiles/a100",
        ),
    ),
    "hydra-uneven": (
        "mpirun",
        request(TWO_HOSTS.filter(exclude="node2:4,5,6,7"), with_hydra(GPU_HOST), hostfile="hf", is_filtered=True),
    ),
    "srun": ("srun", slurm_request(ALLOCATION)),
    "srun-uneven": ("srun", slurm_request(UNEVEN)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_command(name: str) -> None:
    launcher, asked = CASES[name]
    assert build_plan(launcher, asked).shell() == (GOLDEN / f"{name}.txt").read_text()


def test_every_golden_file_is_used() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_shell_reads_the_text_as_the_plan_says_it(name: str) -> None:
    plan = build_plan(*CASES[name])
    pairs = [f"{key}={value}" for key, value in plan.env]
    assert shlex.split(plan.shell().replace("\\\n", " ")) == [*(["env", *pairs] if pairs else []), *plan.argv]


def test_pasted_into_a_shell_it_works() -> None:
    words = ("a b", "it's", "$HOME", ";", '{"a":1}', "", "*", "new\nline", "back\\slash", "é")
    plan = LaunchPlan("x", (("printf", r"%s\0"), words), (("TOLD", "x y"),), 1)
    answer = subprocess.run(["sh", "-c", plan.shell()], check=True, capture_output=True, text=True)
    assert tuple(answer.stdout.split("\0")[:-1]) == words


# All that an argument can hold: a zero byte ends it.
ARGUMENTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
SWITCHES = st.text(st.sampled_from("-=ab '\"\\$`;&|*?~#!\n\t(){}[]<>%^é"), max_size=12)
WORDS = st.lists(st.one_of(ARGUMENTS, SWITCHES), max_size=8).map(tuple)


@settings(max_examples=40)
@given(st.lists(st.tuples(WORDS, ARGUMENTS), min_size=1, max_size=25))
@example([(("--a", "-", "\\\n", "a\\", "\n", "\r", "~", "#", "", "=", "é\u2028", "\ud7ff"), "a\\\n'")])
def test_any_characters_reach_a_command_literally_through_a_shell(cases: list[tuple[tuple[str, ...], str]]) -> None:
    show = ("sh", "-c", r'printf "%s\0" "$#" "$TOLD" "$@"', "sh")
    plans = [LaunchPlan("x", (show, *argument_groups(words)), (("TOLD", told),), 1) for words, told in cases]
    script = "".join(plan.shell() for plan in plans)
    answer = subprocess.run(["sh", "-c", script], check=True, capture_output=True)
    assert answer.stdout.decode().split("\0")[:-1] == [
        text for words, told in cases for text in (str(len(words)), told, *words)
    ]


@pytest.mark.parametrize(
    ("launcher", "asked", "message"),
    [
        ("mpirun", request(facts=with_environ(CPU_HOST, {"RANK": "0"})), "RANK is set here"),
        (
            "srun",
            dataclasses.replace(slurm_request(ALLOCATION), facts=with_environ(CPU_HOST, {"WORLD_SIZE": "1"})),
            "WORLD_SIZE is set here",
        ),
        (
            "mpirun",
            request(TWO_HOSTS.filter(exclude="node1:0"), GPU_HOST, hostfile="hf", is_filtered=True),
            "cannot choose the slots",
        ),
        (
            "mpirun",
            request(TWO_HOSTS.filter(exclude="node1:0"), with_hydra(GPU_HOST), hostfile="hf", is_filtered=True),
            "cannot choose the slots",
        ),
        ("mpirun", request(AS_USERS, GPU_HOST, hostfile="hf"), "takes no user"),
        ("mpirun", request(AS_USERS, with_hydra(GPU_HOST), hostfile="hf"), "takes no user"),
        (
            "deepspeed",
            request(AS_USERS.filter(include="node1:0@node2:1"), GPU_HOST, hostfile="hf", is_filtered=True),
            "takes '@' for the end",
        ),
        ("mpirun", request(facts=with_hydra(CPU_HOST), arguments=("train", ":")), "begin another program"),
        (
            "deepspeed",
            request(TWO_HOSTS.filter(exclude="node1:0"), GPU_HOST, hostfile="hf", is_filtered=True),
            "different numbers of slots",
        ),
        (
            "deepspeed",
            request(TWO_HOSTS, GPU_HOST, ("train", "--set", "a=$HOME"), hostfile="hf"),
            "would not reach other hosts",
        ),
        (
            "deepspeed",
            request(facts=with_environ(GPU_HOST, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"})),
            "by index only",
        ),
        *(
            (
                launcher,
                request(
                    LOCALHOST.filter(include="localhost:3"),
                    with_environ(dataclasses.replace(GPU_HOST, num_gpus=2), {"CUDA_VISIBLE_DEVICES": "0,1"}),
                    hostfile="hf",
                    is_filtered=True,
                ),
                "no GPU for slot 3",
            )
            for launcher in ("torchrun", "deepspeed")
        ),
    ],
)
def test_what_a_launcher_would_do_wrongly_is_refused(launcher: str, asked: LaunchRequest, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_plan(launcher, asked)


@pytest.mark.parametrize(
    ("launcher", "asked"),
    [
        ("mpirun", request(TWO_HOSTS.filter(exclude="node1:0"), GPU_HOST, hostfile="hf", is_filtered=True)),
        (
            "mpirun",
            request(TWO_HOSTS.filter(exclude="node1:0"), with_hydra(GPU_HOST), ("train", ":"), hostfile="hf"),
        ),
        ("deepspeed", request(TWO_HOSTS.filter(exclude="node1:0"), GPU_HOST, hostfile="hf", is_filtered=True)),
        ("deepspeed", request(TWO_HOSTS, GPU_HOST, ("train", "--set", "a=$HOME"), hostfile="hf")),
    ],
)
def test_guards_bring_what_a_launcher_would_do_wrongly(launcher: str, asked: LaunchRequest, tmp_path: Path) -> None:
    plan = build_plan(launcher, guarded(asked, "10.0.0.1:2000", SECRET))
    job = job_for(launcher, asked, plan, tmp_path, is_port_fixed=False, grace_s=5)
    assert plan.argv[-3:] == ("dist_trainer.launch.guards.rank_guard", "10.0.0.1:2000", SECRET.source)
    assert job.argv[-len(asked.arguments) :] == asked.arguments
    assert job.local_ranks == tuple((i, host.num_slots) for host in asked.topology.hosts for i in range(host.num_slots))
    if launcher == "mpirun":
        assert job.host_env == (("node1", (("CUDA_VISIBLE_DEVICES", "1,2,3,4,5,6,7"),)),)


def test_deepspeeds_runner_is_the_same_with_and_without_guards_but_for_garbage_collection() -> None:
    asked = request(TWO_HOSTS, GPU_HOST, hostfile="hf")
    plain, started = (build_plan("deepspeed", one).argv for one in (asked, guarded(asked, "10.0.0.1:2000", SECRET)))
    cut = plain.index("deepspeed.launcher.runner")
    assert started[cut] == "dist_trainer.launch.launchers.without_gc"
    assert started[cut + 1 : started.index("--")] == plain[cut : plain.index("--")]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "mpirun"])
def test_no_command_line_or_variable_of_a_launcher_over_hosts_has_what_is_secret(launcher: str, tmp_path: Path) -> None:
    asked = dataclasses.replace(request(TWO_HOSTS, GPU_HOST, hostfile="hf"), env=(("HF_TOKEN", "of-the-user"),))
    plan = build_plan(launcher, guarded(asked, "10.0.0.1:2000", SECRET))
    for kept in ("of-the-user", SECRET.value.decode(), SECRET.value.hex()):
        assert kept not in f"{plan.argv}{plan.env}"
    assert ("HF_TOKEN", "of-the-user") in job_for(launcher, asked, plan, tmp_path, is_port_fixed=False, grace_s=5).env


def test_deepspeed_is_not_given_what_it_would_write_into_a_command_line() -> None:
    environ = {"PATH": "/bin", "PYTHONPATH": "/p", "MLFLOW_TRACKING_TOKEN": "of-the-user", "UCX_TLS": "tcp"}
    assert without_what_pdsh_shows(environ) == {"PATH": "/bin", "PYTHONPATH": "/p"}
    asked = request(TWO_HOSTS, dataclasses.replace(GPU_HOST, environ=environ), hostfile="hf")
    plan = build_plan("deepspeed", guarded(asked, "10.0.0.1:2000", SECRET))
    env = dict(job_for("deepspeed", asked, plan, Path("run"), is_port_fixed=False, grace_s=5).env)
    assert (env["MLFLOW_TRACKING_TOKEN"], env["UCX_TLS"]) == ("of-the-user", "tcp")


def test_ranks_on_other_hosts_keep_what_they_compile_where_the_user_said(tmp_path: Path) -> None:
    facts = dataclasses.replace(GPU_HOST, environ={"PATH": "/bin", "TORCHINDUCTOR_CACHE_DIR": "/scratch/inductor"})
    asked = request(TWO_HOSTS, facts, hostfile="hf")
    plan = build_plan("torchrun", guarded(asked, "10.0.0.1:2000", SECRET))
    env = dict(job_for("torchrun", asked, plan, tmp_path, is_port_fixed=False, grace_s=5).env)
    assert env["TORCHINDUCTOR_CACHE_DIR"] == "/scratch/inductor"


def test_an_id_that_is_a_secret_does_not_reach_torchruns_command_line() -> None:
    job_id = "0123456789abcdef" * 4
    asked = dataclasses.replace(request(), rendezvous=Rendezvous(2, "node1", 29500, job_id))
    plan = build_plan("torchrun", guarded(asked, "node1:29501", SECRET))
    assert not any(job_id in word for word in plan.argv)
    named = dataclasses.replace(asked, rendezvous=Rendezvous(2, "node1", 29500, "mine"))
    assert "--rdzv-id=mine" in build_plan("torchrun", guarded(named, "node1:29501", SECRET)).argv


@pytest.mark.parametrize(
    ("environ", "hostfile", "launcher"),
    [
        ({}, None, "torchrun"),
        ({}, "hostfiles/a100", "deepspeed"),
        (ALLOCATION, None, "srun"),
        (ALLOCATION, "hostfiles/a100", "srun"),
    ],
)
def test_the_launcher_when_none_is_named(environ: dict[str, str], hostfile: str | None, launcher: str) -> None:
    assert choose_launcher(environ, hostfile) == launcher
