"""`plan` as people use it: what it prints, its exit status, what it imports, and the JSON files that it takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nvml_stub
import pytest
from web_configs import FOUND_ON_THE_WEB

from dist_trainer.cli import plan as plan_command
from dist_trainer.cli.main import main
from dist_trainer.launch.plan import HostFacts
from dist_trainer.memory.trace import kept

ROOT = Path(__file__).parents[2]
NO_GPU = HostFacts("box", "python", num_cores=2, num_gpus=0, is_root=False, environ={})
FOUR_GPUS = HostFacts("box", "python", num_cores=2, num_gpus=4, is_root=False, environ={})
TARGETS = 'targets={"baseline_bytes": "2 GB", "target_bytes": "%s"}'


@pytest.fixture(autouse=True)
def folder(planning_folder: Path) -> Path:
    return planning_folder


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["plan", "--config", "tiny", *arguments])
    captured = capsys.readouterr()
    return status, captured.out if status < 2 else captured.err


def one_line(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def test_a_plan_shows_each_figure_and_parts_that_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = plan(capsys, "--nproc-per-node", "4", "--gpu", "a100-40g")
    assert status == 0
    for name in ("allocated", "reserved", "NVML"):
        assert re.search(rf"^  {name} +\d+\.\d{{3}} GB  \d+\.\d{{3}} GB and \d+\.\d{{3}} GB$", text, re.MULTILINE)
    section = text.split("at the peak, in ")[1].split("\n\n")[0].splitlines()[1:]
    figures = [float(line.split()[-2]) for line in section]
    assert round(sum(figures[:-1]), 3) == figures[-1]
    assert section[-1].split()[0] == "total"
    assert {"init", "forward", "backward", "step"} <= set(re.findall(r"^  (\w+) +[\d.]+ GB", text, re.MULTILINE))
    assert one_line(text, "device").startswith("device     fits: ")
    assert "4 ranks, each on a100-40g of 42.95 GB" in text
    assert "CUDA context" in text


def test_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = plan(capsys, "--nproc-per-node", "8", "--rank", "3", "--json")
    values = json.loads(text)
    assert (status, values["world_size"], [rank["rank"] for rank in values["ranks"]]) == (0, 8, [3])


def test_json_has_the_advice_where_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--nproc-per-node", "1", "--gpu-memory", "0.5 GB")
    status, text = plan(capsys, *few, "--json")
    assert (status, plan(capsys, *few)[0]) == (1, 1)
    advice = json.loads(text)["advice"]
    assert any(line.startswith("why ") for line in advice)
    assert any(line.startswith("nearest ") for line in advice)


def test_json_says_what_was_filled_and_what_does_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 2, "stage3_prefetch_bucket_size": 1000, "overlap_comm": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    (folder / "auto.json").write_text(json.dumps(config))
    values = json.loads(plan(capsys, "--ds", "auto.json", "--nproc-per-node", "2", "--json")[1])
    assert values["filled"] == [
        {
            "key": "train_batch_size",
            "value": 4,
            "why": "micro batch x accumulation x world size",
            "is_left_out": False,
        },
        {
            "key": "zero_optimization.overlap_comm",
            "value": None,
            "why": 'DeepSpeed takes its default for "auto" here',
            "is_left_out": True,
        },
    ]
    (notice,) = values["notices"]
    assert notice.startswith("zero_optimization.stage3_prefetch_bucket_size does nothing: ")


def test_without_a_gpu_the_world_that_is_assumed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "world size 2: no GPU here and no --nproc-per-node" in plan(capsys)[1]
    assert "world size" not in plan(capsys, "--nproc-per-node", "2")[1]


@pytest.mark.parametrize(
    ("arguments", "facts", "num_ranks", "num_ranks_a_host"),
    [
        ((), NO_GPU, 2, 2),
        ((), FOUR_GPUS, 4, 4),
        (("--nproc-per-node", "8"), FOUR_GPUS, 8, 8),
        (("--nproc-per-node", "8", "--nnodes", "4"), NO_GPU, 32, 8),
        (("--nnodes", "2"), FOUR_GPUS, 8, 4),
        (("--hostfile", "hosts"), NO_GPU, 12, 8),
        (("--hostfile", "hosts", "--include", "h1:0,1@h2"), NO_GPU, 6, 4),
        (("--hostfile", "hosts", "--nproc-per-node", "2"), NO_GPU, 4, 2),
        (("--hostfile", "mpi-hosts"), NO_GPU, 5, 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_world_is_what_launch_would_start(
    folder: Path, arguments: tuple[str, ...], facts: HostFacts, num_ranks: int, num_ranks_a_host: int
) -> None:
    (folder / "hosts").write_text("h1 slots=8\nh2 slots=4\n")
    (folder / "mpi-hosts").write_text("h1:2\nh2\nh1\nh2\n")
    world = plan_command.find_world(plan_command.build_parser().parse(list(arguments)), facts)
    assert (world.num_ranks, world.num_ranks_a_host) == (num_ranks, num_ranks_a_host)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--gpu-memory", "24 GiB"), 0, "device     fits: "),
        (("--gpu-memory", "800 MB"), 0, "device     fits, but not by the band's upper end: "),
        (("--gpu-memory", "100 MB"), 1, "device     does not fit: "),
        (("--set", TARGETS % "1.9 GB"), 0, "target     met: "),
        (("--set", TARGETS % "0.1 GB"), 1, "target     missed by "),
        (("--set", TARGETS % "1.9 GB"), 0, "reduction  6"),
        (("--device", "cpu"), 0, "host       fits: "),
        (("--device", "cpu", "--host-memory", "10 MB"), 1, "host       does not fit: "),
        (("--ds", "zero2_offload", "--host-memory", "1 MB"), 1, "host       does not fit: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_exit_status_follows_the_verdict(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, said: str
) -> None:
    got, text = plan(capsys, "--nproc-per-node", "2", *arguments)
    assert got == status
    assert any(line.startswith(said) for line in text.splitlines()), text


def test_what_cannot_be_met_is_told_with_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = plan(capsys, "--ds", "zero1", "--nproc-per-node", "2", "--gpu-memory", "1 MB")
    assert status == 1
    assert "16-bit tiny on each of 2 GPUs holds 8 bytes a parameter (2 weights + 4 master / 2 + 8 moments / 2)" in text
    assert "x 1.1M = 0.01 GB before its gradients; the GPU's memory is 0.00 GB, too little for these settings" in text
    assert "ZeRO-1 on 2 ranks can take at most 37.5% off the model states" in text
    assert "nearest    none of the changes tried here is enough" in text


def test_the_nearest_change_can_be_typed_and_holds(capsys: pytest.CaptureFixture[str]) -> None:
    limit = ("--nproc-per-node", "2", "--gpu-memory", "1.1 GB", "--set", "zero_optimization.stage=2")
    bucket = ("--set", "zero_optimization.reduce_bucket_size=5e8")
    status, text = plan(capsys, "--ds", "zero1", *limit, *bucket)
    assert status == 1
    assert "nearest    reduce_bucket_size 5e7 (no cost to speak of)" in text
    typed = re.search(r"GB with: (.+)$", text, re.MULTILINE)
    assert typed is not None
    assert plan(capsys, "--ds", "zero1", *limit, *bucket, *typed.group(1).split())[0] == 0


def test_an_optimised_setting_that_takes_more_than_nothing_at_all_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    dear = ("--nproc-per-node", "1", "--set", "zero_optimization.stage=2", "--micro-batch", "2")
    large_buckets = (
        "--set",
        "zero_optimization.reduce_bucket_size=5e8",
        "--set",
        "zero_optimization.overlap_comm=true",
    )
    text = plan(capsys, *dear, *large_buckets)[1]
    assert "this takes more than doing nothing: " in one_line(text, "baseline")
    assert "baseline  " not in plan(capsys, "--no-optimize", "--nproc-per-node", "1")[1]


@pytest.mark.parametrize("config", FOUND_ON_THE_WEB.values(), ids=list(FOUND_ON_THE_WEB))
def test_a_json_from_elsewhere_is_planned_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str], config: dict[str, object]
) -> None:
    (folder / "theirs.json").write_text(json.dumps(config, indent=4))
    status, text = plan(capsys, "--ds", "theirs.json", "--nproc-per-node", "4")
    assert status == 0, text
    assert text.startswith("tiny with theirs.json\n4 ranks")


def test_what_an_auto_became_and_what_does_nothing_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "web.json"
    file.write_text(json.dumps(FOUND_ON_THE_WEB["hf_zero2"]))
    override = "scheduler.params.warmup_max_lr=0.002"
    status, text = plan(
        *(capsys, "--nproc-per-node", "2", "--gpu", "a100-40g", "--ds", str(file), "--set", override),
        *("--set", "optimizer.params.lr=0.01", "--learning-rate", "0.003"),
    )
    assert status == 0
    filled = text.split('\nfilled for "auto"\n')[1].split("\n\n")[0].splitlines()
    assert "  optimizer.params.betas = [0.9, 0.95] (the default)" in filled
    assert "  scheduler.params.warmup_num_steps = 3 (a hundredth of all steps, at least 1)" in filled
    notices = text.split("\nnotices\n")[1].splitlines()
    assert "  optimizer.params.lr does nothing: scheduler.params.warmup_max_lr says the rate, 0.002" in notices
    assert "  --learning-rate 0.003 does nothing: --set scheduler.params.warmup_max_lr comes after it" in notices


def test_a_key_that_moves_memory_and_is_not_counted_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "train_batch_size": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "zero_quantized_weights": True},
    }
    (folder / "theirs.json").write_text(json.dumps(config))
    text = plan(capsys, "--ds", "theirs.json", "--nproc-per-node", "4")[1]
    assert "\nnot modelled\n  zero_optimization.zero_quantized_weights: " in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ds", "wrong.json"), "wrong.json: zero_optimization.reduce_bucket_sizes"),
        (("--gpu", "a100-41g"), "--gpu"),
        (("--gpu", "a100-40g", "--gpu-memory", "24GiB"), "leave one of --gpu and --gpu-memory out"),
        (("--gpu-memory", "24"), "write one like '2.5 GB' or '24 GiB'"),
        (("--nproc-per-node", "2", "--rank", "2"), "expected: 0 to 1"),
        (("--nnodes", "2", "--hostfile", "hosts"), "the hostfile says how many hosts there are"),
        (("--max-steps", "2"), "unknown switch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_names_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    (folder / "wrong.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_sizes": 5e8}}')
    status, text = plan(capsys, *arguments)
    assert status == 2
    assert said in text


MODULES = (
    "import runpy, sys\ntry:\n    runpy.run_module('dist_trainer', run_name='__main__')\nexcept SystemExit:\n    pass\n"
)
MODULES += "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MODULES, "plan", "--config", "tiny", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_shape_seen_before_is_planned_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    in_process = plan(capsys, "--nproc-per-node", "2")[1]
    done = run("--nproc-per-node", "2")
    assert done.stdout == in_process
    assert not {"torch", "deepspeed", "rich", "numpy"} & set(done.stderr.splitlines()[-1].split())


def test_a_trace_that_cannot_be_kept_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(kept, "load", lambda spec: None)
    assert main(["plan", "--config", "tiny", "--nproc-per-node", "2", "--json"]) == 0


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> nvml_stub.Driver:
    return nvml_stub.build(tmp_path_factory.mktemp("plan-driver"))


def test_on_a_host_with_gpus_their_own_memory_counts(
    driver: nvml_stub.Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", "tiny", "--nproc-per-node", "2", "--json"]) == 0
    script = nvml_stub.Script()
    for _ in range(2):
        script.gpu(total_bytes=40 * 10**9, name="NVIDIA Stand-in")
    environ = {**driver.environ(script), "CUDA_VISIBLE_DEVICES": "0,1"}
    assert "2 ranks, each on NVIDIA Stand-in of 40.00 GB" in run(**environ).stdout
