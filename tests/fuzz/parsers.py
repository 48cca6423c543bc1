"""Every parser of something that comes from outside: its inputs, and a use of it that goes as far as a command does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hjson
import plans
import run_folders
from mutations import Form

from dist_trainer.benchmark.scaling import sweep
from dist_trainer.cluster.environments import READERS
from dist_trainer.cluster.folder_lock import FolderLock
from dist_trainer.cluster.hostfile import read_hostfile, render_openmpi_hostfile
from dist_trainer.cluster.slurm import allocated_topology, cpus_per_rank
from dist_trainer.config import optimisations, run
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed import file as deepspeed
from dist_trainer.config.files import shipped_folder
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import names, resolve
from dist_trainer.errors import UserError

ROOT = Path(__file__).parents[2]
Parse = Callable[[], None]


@dataclass(frozen=True)
class Parser:
    """`open` makes what the parser needs in a folder, and gives the file that is mutated, what it may hold, and the
    use, which is called for each case. It ends or raises UserError; where `is_fatal` is False it may not even do that.
    """

    name: str
    form: Form
    open: Callable[[Path], tuple[Path, list[bytes], Parse]]
    is_fatal: bool = True


def run_file(folder: Path) -> tuple[Path, list[bytes], Parse]:
    path = folder / "run.yaml"

    def use() -> None:
        config = run.check(run.read(path), source=str(path))
        again = folder / "again.yaml"
        again.write_text(run.dump(config), encoding="utf-8")
        assert run.check(run.read(again), source=str(again)) == config, "what was read is not what was written"
        again.unlink()
        request = Request(config=str(path), ds="zero2")
        resolve(request, world_size=2, device=ANY_DEVICE)
        names(request)

    return path, [one.read_bytes() for one in sorted(shipped_folder("configs").glob("*.yaml"))], use


def deepspeed_json(folder: Path) -> tuple[Path, list[bytes], Parse]:
    return _deepspeed(folder, [one.read_bytes() for one in sorted(shipped_folder("ds_configs").glob("*.json"))])


def deepspeed_hjson(folder: Path) -> tuple[Path, list[bytes], Parse]:
    shipped = [deepspeed.read(one) for one in sorted(shipped_folder("ds_configs").glob("*.json"))]
    remarks = "# one\n// two\n/* three\n*/ _note:\n'''\n  four\n'''\n"
    seeds = [*(hjson.dumps(one) for one in shipped), *(remarks + hjson.dumps(one)[1:-1] for one in shipped)]
    return _deepspeed(folder, [one.encode() for one in seeds])


def _deepspeed(folder: Path, seeds: list[bytes]) -> tuple[Path, list[bytes], Parse]:
    path = folder / "ds.json"
    switches = (
        Switches(),
        Switches(micro_batch=2, accumulation=3, precision="fp16", checkpointing=True, fused=True, compile=True),
        Switches(precision="bf16", checkpointing=False, fused=False, compile=False),
    )

    def use() -> None:
        refused = None
        for one in switches:
            try:
                resolved = resolve(Request(ds=str(path), switches=one), world_size=2, device=ANY_DEVICE)
            except UserError as error:
                refused = error
                continue
            optimisations.describe(resolved.deepspeed)
            assert json.loads(json.dumps(resolved.deepspeed, allow_nan=False)) == resolved.deepspeed
        if refused is not None:
            raise refused

    return path, seeds, use


def settings(folder: Path) -> tuple[Path, list[bytes], Parse]:
    path = folder / "set"

    def use() -> None:
        # As a shell passes it on: no NUL, and bytes that are no UTF-8 as surrogates.
        words = os.fsdecode(path.read_bytes().replace(b"\0", b"")).split("\n")
        resolved = resolve(Request(settings=tuple(words)), world_size=2, device=ANY_DEVICE)
        path_of_run = folder / "run.yaml"
        path_of_run.write_text(run.dump(resolved.run), encoding="utf-8")
        assert run.check(run.read(path_of_run), source="run.yaml") == resolved.run
        path_of_run.unlink()
        json.dumps(resolved.deepspeed, allow_nan=False)

    return (
        path,
        [
            b"optimizer.params.lr=1e-2",
            b"model.num_layers=3\nzero_optimization.stage=1",
            b"phases.0.steps=5\nname=mine",
            b"checkpoints.every_minutes=0.5\ntargets.target_bytes=2.5 GB\ntargets.baseline_bytes=4 GB",
            b'optimizer={"type": "AdamW", "params": {"lr": 0.1, "betas": [0.9, 0.95]}}\ndata.source=stdlib',
        ],
        use,
    )


def command_line(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.cli import launch, train
    from dist_trainer.launch.environment import named_env
    from dist_trainer.launch.hosts.placement import parse_ranks_per_host, read_rendezvous

    path = folder / "words"

    def use() -> None:
        words = os.fsdecode(path.read_bytes().replace(b"\0", b"")).split("\n")
        parser = launch.build_parser()
        with mock.patch.object(argparse.ArgumentParser, "exit", _no_help):
            args, rest = parser.parse_known_args(words)
            asked = train.build_parser().parse(rest, also_known=parser.option_strings())
        parse_ranks_per_host(args.nproc_per_node)
        read_rendezvous(args.nnodes, args.rdzv_endpoint, args.rdzv_id, launcher="torchrun")
        named_env(args.env, {})
        resolve(train.request_from(asked), world_size=2, device=ANY_DEVICE)

    return (
        path,
        [
            b"--config\nsmall\n--ds\nzero1\n--max-steps\n5\n--seed\n3\n--micro-batch\n2\n--accumulation\n4",
            b"--nproc-per-node\n4\n--nnodes\n2\n--rdzv-endpoint\nhost:29500\n--rdzv-id\nx\n--phase\n1\n--precision\nbf16",
            b"--env\nA=1\n--set\nmodel.num_layers=2\n--run-dir\nruns/x\n--resume\nauto\n--strict\n--start-limit\n30",
        ],
        use,
    )


def _no_help(*_: object) -> None:
    raise UserError("--help")


def sweep_switch(folder: Path) -> tuple[Path, list[bytes], Parse]:
    path = folder / "switch"

    def use() -> None:
        worlds = sweep.parse(os.fsdecode(path.read_bytes().replace(b"\0", b"")))
        assert sweep.parse(sweep.in_words(worlds)) == worlds

    return path, [b"world=1,2,4", b"world=8, 16", b"world=2,2"], use


def report_of(name: str) -> Callable[[Path], tuple[Path, list[bytes], Parse]]:
    """The report of a run with one file of its folder mutated."""

    def open_folder(folder: Path) -> tuple[Path, list[bytes], Parse]:
        from dist_trainer.memory.plan import PLAN_ON_GPU_FILE, write_plan
        from dist_trainer.report.charts.curves import Compared
        from dist_trainer.report.page import make_page, render_html, render_markdown
        from dist_trainer.report.reading.findings import read_findings
        from dist_trainer.report.summary import rows, summary_of
        from dist_trainer.slurm.status import lines, one_line, status_of

        plan = plans.make_plan(allocated=1_500_000_000, reserved=1_700_000_000, used=2_200_000_000)
        many = 2 if "host-" in name else None
        run_dir = run_folders.make_gpu_run(
            folder / "run", (2_610_000_000, 2_200_000_000), plan=plan, num_samples=12, num_gpus_a_host=many
        )
        (run_dir / "resolved" / "launch.json").write_text(LAUNCH_JSON)
        write_plan(plan, run_dir, PLAN_ON_GPU_FILE)
        run_folders.append(run_dir / "records" / "events.jsonl", MORE_EVENTS)
        for rank in range(2):
            run_folders.write_start(run_dir, rank)
        path = run_dir / name

        def use() -> None:
            findings = read_findings(run_dir, now_s=run_folders.START_S + 100)
            summary = summary_of(findings)
            json.dumps(dataclasses.asdict(summary))
            rows(summary)
            page = make_page(Compared("a", findings, summary), [Compared("b", findings, summary)])
            render_html(page).encode()
            render_markdown(page).encode()
            status = status_of(
                None, findings, job_id="1", run_dir="r", output="o", silence=None, now_s=run_folders.START_S + 100
            )
            list(lines(status))
            one_line(status)

        return path, [path.read_bytes()], use

    return open_folder


def benchmark_of(name: str) -> Callable[[Path], tuple[Path, list[bytes], Parse]]:
    """The tables of a benchmark, and two side by side, with one file of the folder mutated."""

    def open_folder(folder: Path) -> tuple[Path, list[bytes], Parse]:
        from dist_trainer.benchmark.worth import compare
        from dist_trainer.benchmark.worth.folder import Folder
        from dist_trainer.benchmark.worth.measurement import Measurement
        from dist_trainer.benchmark.worth.measuring import Wanted, prepare
        from dist_trainer.benchmark.worth.page import make_page, render_html, render_markdown
        from dist_trainer.benchmark.worth.results import read_results
        from dist_trainer.benchmark.worth.telling import RATES_FILE, results_of, tell

        (folder / RATES_FILE).write_text('{"measured": {"fp32": 2e11}, "data_sheet": {}}')
        bench = prepare(Wanted("tiny", only=("bf16",), results=folder), hardware="cpu")
        for number in range(6):
            for cell in ("baseline", "bf16", "other-seeds"):
                made = Measurement(cell, number, 0, 5.0, 2.0, None, 64, (0.2,), (0.1, 0.1 + number / 100), (0.0, 0.0))
                bench.folder.add(made)
        tell(bench)
        path = folder / name

        def use() -> None:
            Folder(folder).settings()
            compare.text(compare.compare_folders(folder, folder))
            page = make_page(results_of(bench) if name == "measurements.jsonl" else read_results(folder))
            render_html(page)
            render_markdown(page)

        return path, [path.read_bytes()], use

    return open_folder


def sweep_measurements(folder: Path) -> tuple[Path, list[bytes], Parse]:
    """The tables of a sweep with its measurements mutated; its other files are those of `benchmark_of`."""
    from dist_trainer.benchmark.scaling.measuring import prepare
    from dist_trainer.benchmark.scaling.page import make_page, render_html, render_markdown
    from dist_trainer.benchmark.scaling.telling import results_of
    from dist_trainer.benchmark.worth.measurement import Measurement
    from dist_trainer.benchmark.worth.measuring import Wanted
    from dist_trainer.benchmark.worth.results import csv_of, json_text

    bench = prepare(Wanted("tiny", results=folder), (1, 2), ds=None, hardware="cpu", num_gpus=0)
    for number in range(6):
        for cell in bench.cells:
            step_s = (0.1, 0.1 + number / 100)
            bench.folder.add(Measurement(cell.name, number, 0, 5.0, 2.0, None, 64, (0.2,), step_s, (0.0, 0.0)))
    path = folder / "measurements.jsonl"

    def use() -> None:
        results = results_of(bench, num_gpus=0)
        json_text(results)
        csv_of(results.points, estimates=("speed_up",))
        page = make_page(results)
        render_html(page)
        render_markdown(page)

    return path, [path.read_bytes()], use


LAUNCH_JSON = json.dumps(
    {
        "launcher": "torchrun",
        "argv": ["python", "-m", "dist_trainer", "train", "--ds", "zero2"],
        "env": {"OMP_NUM_THREADS": "4"},
        "num_ranks": 2,
        "hosts": "localhost:0,1",
        "host": "h1",
        "start_time_s": run_folders.START_S,
    }
)
MORE_EVENTS = "".join(
    json.dumps(one) + "\n"
    for one in (
        run_folders.event("checkpoint", "run/checkpoints/step-6", 17.0, step=6, seconds=0.25),
        run_folders.event(
            "monitor", "no reading", 18.0, unknown=["used_bytes"], source="rank-1", diagnostic="GPU is lost"
        ),
        run_folders.event("error", "rank 1: lost", 19.0, rank=1, type="RunError"),
        run_folders.event("end", "status 3", 20.0, status=3, seconds=20.0, step=12),
    )
)


def checkpoint_of(name: str) -> Callable[[Path], tuple[Path, list[bytes], Parse]]:
    """Resuming where one file of the checkpoints is mutated, and none but the other checkpoint may be taken for it."""

    def open_folder(folder: Path) -> tuple[Path, list[bytes], Parse]:
        import checkpoint_folders

        from dist_trainer.checkpoints.find import find

        run_dir = folder / "run"
        for step in (4, 8):
            checkpoint_folders.checkpoint(run_dir / "checkpoints", step)
        path = run_dir / "checkpoints" / name

        def use() -> None:
            for resume in ("auto", str(run_dir), str(run_dir / "checkpoints" / "step-8")):
                found = find(resume, run_dir).found
                assert found is not None and found.index.position in map(checkpoint_folders.position, (4, 8))

        return path, [path.read_bytes()], use

    return open_folder


def index_content(folder: Path) -> tuple[Path, list[bytes], Parse]:
    """A stranger's checkpoint, whose index has the right digest whatever it says, as far as its files are verified."""
    import checkpoint_folders

    from dist_trainer.checkpoints.changed import differences, refuse_another_kind
    from dist_trainer.checkpoints.find import find
    from dist_trainer.checkpoints.index import INDEX_FILE
    from dist_trainer.checkpoints.verify import damages

    checkpoint = checkpoint_folders.checkpoint(folder / "checkpoints", 8)
    good = (checkpoint / INDEX_FILE).read_bytes()
    path = folder / "content"

    def use() -> None:
        try:
            checkpoint_folders.write_content(checkpoint, path.read_bytes())
            found = find(str(checkpoint), None).found
            assert found is not None
            list(damages(checkpoint, found.index))
            for line in differences(found, checkpoint_folders.made()):
                assert len(line) < 5000
            refuse_another_kind(found, checkpoint_folders.made())
        finally:
            (checkpoint / INDEX_FILE).write_bytes(good)

    return path, [json.dumps(checkpoint_folders.content_of(checkpoint)).encode()], use


def slurm_json(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.slurm.status import read_statuses
    from dist_trainer.slurm.submit import read_submitted, record_path

    path = record_path(folder)
    path.parent.mkdir()
    values = {
        "job_id": "17",
        "script": "run/resolved/job.sbatch",
        "output": "run/logs/slurm-17_%a.out",
        "tasks": [0, 1],
        "num_ranks": 8,
        "asked": {"nodes": 2, "time": "12:00:00"},
        "arguments": ["--resume", "auto"],
        "submit_time_s": run_folders.START_S,
    }

    def use() -> None:
        read_submitted(folder)
        with mock.patch("dist_trainer.slurm.job_state.is_here", lambda: False):
            read_statuses(folder, {})

    return path, [json.dumps(values, indent=2).encode()], use


def trace_cache(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.memory.trace import kept
    from dist_trainer.memory.trace.record import Trace, TracedParameter, TraceSpec

    spec = TraceSpec(2, 32, 2, 2048, 64, 0.0, "full", 1, 64, "bf16", None, False, None, False, True)
    trace = Trace((TracedParameter("w", 64, 0),), ((0,),), ((0, 1, 64, 0), (7, 0, 0, 0), (2, 0, 1, 0), (1, 1, 0, 0)), 8)
    path = folder / "trace.json"

    def use() -> None:
        with mock.patch.object(kept, "_path", lambda spec: path):
            assert kept.load(spec) in (None, trace), "a damaged trace is not a trace"

    with mock.patch.object(kept, "_path", lambda spec: path):
        kept.save(spec, trace)
        assert kept.load(spec) == trace
    return path, [path.read_bytes()], use


def measurement_cache(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.benchmark import kept
    from dist_trainer.benchmark.measure import Measurement, Spec

    spec, result = Spec(Request(), 0, 2, 32), Measurement({"init": 1, "step": 7}, 7, 1, 2, 3, 0.5)
    path = folder / "measurement.json"
    resolved: Any = None

    def use() -> None:
        with mock.patch.object(kept, "_path", lambda *_: path):
            assert kept.find(spec, resolved) in (None, result), "a damaged measurement is not one"

    with mock.patch.object(kept, "_path", lambda *_: path), mock.patch.object(kept, "measure_apart", lambda _: result):
        kept.measure(spec, resolved)
        assert kept.find(spec, resolved) == result
    return path, [path.read_bytes()], use


DATASET = {
    "format_version": 1,
    "vocab_size": 300,
    "dtype": "uint16",
    "end_of_text": 256,
    "max_token": 280,
    "unigram_entropy_nats": 4.5,
    "num_documents": 3,
    "train": {"num_tokens": 64, "num_texts": 2, "sha256": "ab"},
    "val": {"num_tokens": 32, "num_texts": 1, "sha256": "cd"},
    "tokenizer_sha256": "ef",
    "sources": [{"suffix": ".txt", "num_files": 1, "num_bytes": 100}],
}


def dataset_json(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.data.tokens import open_tokens

    path = folder / "dataset.json"
    for split, count in (("train", 64), ("val", 32)):
        (folder / f"{split}.bin").write_bytes(struct.pack(f"<{count}H", *range(count)))

    def use() -> None:
        for split in ("train", "val"):
            file = open_tokens(folder, split, 300)
            assert len(file.read(0, file.num_tokens)) == file.num_tokens
            f"{file.unigram_entropy_nats:.4f}"

    return path, [json.dumps(DATASET, indent=2).encode()], use


def token_file(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.data.tokens import open_tokens

    path = folder / "x_train.bin"
    header = struct.pack("<256i", 20240520, 1, 64, *[0] * 253)
    newer = struct.pack("<256i", 20240801, 7, 64, *[0] * 253)

    def use() -> None:
        file = open_tokens(path, "train", 300)
        assert len(file.read(0, file.num_tokens)) == file.num_tokens

    tokens = struct.pack("<64H", *range(64))
    return path, [header + tokens, newer + struct.pack("<64I", *range(64)), tokens], use


def tokenizer_json(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.data.vocabulary import encode, end_of_text_id, load_vocabulary, num_token_ids, train_vocabulary

    path = folder / "tokenizer.json"
    made = train_vocabulary(["the cat sat on the mat, the cat"] * 3, 262).to_str(pretty=False).encode()
    word_level = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            | {"special": True}
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1, "b": 2}, "unk_token": "a"},
    }

    def use() -> None:
        vocabulary = load_vocabulary(path)
        num_ids = num_token_ids(vocabulary)
        end = end_of_text_id(vocabulary, str(path))
        for ids in encode(vocabulary, ["the cat", "a b \U0001f600"], str(path)):
            assert max([end, *ids]) < num_ids <= 2**24

    return path, [made, json.dumps(word_level).encode()], use


def texts(suffix: str) -> Callable[[Path], tuple[Path, list[bytes], Parse]]:
    def open_folder(folder: Path) -> tuple[Path, list[bytes], Parse]:
        from dist_trainer.data.pieces import read_pieces
        from dist_trainer.data.sources import find_sources

        path = folder / f"text{suffix}"

        def use() -> None:
            for piece in read_pieces(find_sources([path]).sources, 1024):
                piece.text.encode()

        lines = [{"text": "one two\nthree", "meta": {"url": "x", "score": 0.5}}, {"text": "é" * 700, "id": 3}]
        return path, ["".join(json.dumps(one) + "\n" for one in lines).encode(), "a\nb é\n".encode() * 300], use

    return open_folder


def transformers_folder(name: str) -> Callable[[Path], tuple[Path, list[bytes], Parse]]:
    """Somebody else's GPT-2, of which one file is mutated."""

    def open_folder(folder: Path) -> tuple[Path, list[bytes], Parse]:
        import gpt_checkpoints

        from dist_trainer.checkpoints import index
        from dist_trainer.checkpoints.find import Found
        from dist_trainer.exchange.gpt2 import export

        gpt = gpt_checkpoints.model(num_layers=1, hidden_size=8, num_heads=2, vocab_size=9, context_length=8)
        made = gpt_checkpoints.write(folder / "checkpoints", gpt, gpt_checkpoints.states_of(gpt))
        export(Found(made, index.read(made)), folder / "theirs", tokenizer=None)
        path = folder / "theirs" / name
        return path, [path.read_bytes()], lambda: _read_weights(folder / "theirs")

    return open_folder


def deepspeed_pickle(folder: Path) -> tuple[Path, list[bytes], Parse]:
    """The pickle in a file of torch.save, in a zip that is sound."""
    import gpt_checkpoints
    import torch

    gpt = gpt_checkpoints.model(num_layers=1, hidden_size=8, num_heads=2, vocab_size=9, context_length=8)
    whole = folder / "theirs" / "mp_rank_00_model_states.pt"
    whole.parent.mkdir()
    torch.save({"module": dict(gpt.state_dict())}, whole)
    with zipfile.ZipFile(whole) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    path = folder / "data.pkl"
    good = whole.read_bytes()

    def use() -> None:
        try:
            with zipfile.ZipFile(whole, "w") as archive:
                for entry, content in (entries | {name: path.read_bytes()}).items():
                    archive.writestr(entry, content)
            _read_weights(whole.parent)
        finally:
            whole.write_bytes(good)

    return path, [entries[name]], use


def _read_weights(folder: Path) -> None:
    from dist_trainer.exchange.foreign import open_foreign

    weights = open_foreign(folder)
    assert weights is not None
    for name in weights.dtypes:
        weights.read(name)


def hostfile(folder: Path) -> tuple[Path, list[bytes], Parse]:
    path = folder / "hostfile"

    def use() -> None:
        text, _, spec = path.read_bytes().partition(b"\n\n")
        path_of_hosts = folder / "hosts"
        path_of_hosts.write_bytes(text)
        try:
            topology = read_hostfile(path_of_hosts, "mpi")
        finally:
            path_of_hosts.unlink()
        render_openmpi_hostfile(topology)
        topology.filter(include=os.fsdecode(spec))

    return (
        path,
        [
            b"# ours\nnode1 slots=8\nnode2 slots=4 # half\n\nnode1:0,1@node2",
            b"node1\nme@node2:4\nnode1\nnode3 slots=2 max-slots=2\n\nnode2:0",
            b"localhost slots=2\n\nlocalhost:1",
        ],
        use,
    )


def environment(folder: Path) -> tuple[Path, list[bytes], Parse]:
    """What launchers and SLURM say in variables."""
    path = folder / "environ"

    def use() -> None:
        lines = os.fsdecode(path.read_bytes().replace(b"\0", b"")).split("\n")
        environ = dict(line.split("=", 1) for line in lines if "=" in line)
        refused = None
        for read in READERS:
            try:
                read(environ)
            except UserError as error:
                refused = error
        cpus_per_rank(environ, allocated_topology(environ))
        if refused is not None:
            raise refused

    slurm = (
        b"SLURM_JOB_ID=7\nSLURM_STEP_ID=0\nSLURM_PROCID=3\nSLURM_NTASKS=8\nSLURM_TASKS_PER_NODE=4(x2)\nSLURM_NODEID=0\n"
        b"SLURM_JOB_NODELIST=gpu[01-02]\nSLURM_LOCALID=3\nSLURM_JOB_CPUS_PER_NODE=16(x2)\nSLURM_CPUS_PER_TASK=4"
    )
    other = b"SLURM_JOB_ID=7\nSLURM_NODELIST=a[1-3,7]b,c\nSLURM_GPUS_ON_NODE=8\nRANK=1\nWORLD_SIZE=2\nLOCAL_RANK=1"
    mpi = b"OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=2\nOMPI_COMM_WORLD_LOCAL_RANK=0\nOMPI_COMM_WORLD_LOCAL_SIZE=2"
    return path, [slurm, other, mpi + b"\nPMI_RANK=0\nPMI_SIZE=2\nMPI_LOCALRANKID=0\nMPI_LOCALNRANKS=2"], use


def batch_script(folder: Path) -> tuple[Path, list[bytes], Parse]:
    from dist_trainer.slurm.lint import lint_file

    path = folder / "job.sbatch"

    def use() -> None:
        for finding in lint_file(path):
            str(finding)

    return path, [one.read_bytes() for one in sorted((ROOT / "slurm").glob("*.sbatch"))], use


def job_request(folder: Path) -> tuple[Path, list[bytes], Parse]:
    """The switches of `slurm submit`, in SLURM's own notation."""
    from dist_trainer.cli import slurm
    from dist_trainer.slurm.job_request import lay_out

    path = folder / "words"

    def use() -> None:
        words = os.fsdecode(path.read_bytes().replace(b"\0", b"")).split("\n")
        with mock.patch.object(argparse.ArgumentParser, "exit", _no_help):
            args, _ = slurm.build_submit_parser().parse_known_args(words)
        request = slurm._request_from(args)
        slurm._tasks(request)
        lay_out(request)

    return (
        path,
        [
            b"--nodes\n2\n--gpus-per-node\na100:8\n--time\n2-12:00:00\n--mem\n64G\n--array\n0-15:4%2",
            b"--nodelist\ngpu[01-02]\n--gres\ngpu:a100:4(S:0-1),nvme:1\n--time\n90\n--signal\n120\n--sbatch\nqos=long",
            b"--ntasks\n16\n--gpus-per-task\n1\n--time\n12:00:00\n--cpus-per-task\n8\n--array\n1,3,5",
        ],
        use,
    )


def slurms_answers(folder: Path) -> tuple[Path, list[bytes], Parse]:
    """What scontrol and sacct print."""
    from slurm_command import shown

    from dist_trainer.slurm.facts import parse_cluster
    from dist_trainer.slurm.job_state import parse_accounting, parse_controller

    path = folder / "answer"
    controller = (
        "JobId=7 ArrayJobId=5 ArrayTaskId=0-3%2 JobName=x JobState=PENDING Reason=Priority Restarts=0 ExitCode=0:0 "
        "TimeLimit=12:00:00 StartTime=2026-11-24T18:15:00 EndTime=Unknown NodeList=(null)\n"
    )
    accounting = "7|COMPLETED|0:0|2026-11-24T18:15:00|2026-11-24T18:16:00|h1|None\n5_1|FAILED|1:0|Unknown|Unknown||\n"

    def use() -> None:
        text = path.read_bytes().decode(errors="replace")
        parse_cluster(text, text)
        parse_controller(text)
        parse_accounting(text)

    return path, [one.encode() for one in (shown.PARTITIONS, shown.NODES, controller, accounting)], use


def lock(folder: Path) -> tuple[Path, list[bytes], Parse]:
    FolderLock(folder, "ranks").release()
    path = folder / "lock" / "ranks.json"
    with FolderLock(folder, "ranks"):
        values = json.loads(path.read_bytes())
    values |= {"boot_id": "another", "host": "node7"}
    (folder / "run").mkdir()

    def use() -> None:
        data = path.read_bytes()
        try:
            with mock.patch("dist_trainer.cluster.folder_lock.WATCH_S", 0.0):
                FolderLock(folder, "ranks").release()
        finally:
            path.write_bytes(data)

    return path, [json.dumps(values, indent=2).encode()], use


PARSERS: tuple[Parser, ...] = (
    Parser("run-file", "text", run_file),
    Parser("deepspeed-json", "json", deepspeed_json),
    Parser("deepspeed-hjson", "text", deepspeed_hjson),
    Parser("set", "text", settings),
    Parser("command-line", "text", command_line),
    *(
        Parser(f"report:{name.rpartition('/')[2]}", form, report_of(name), is_fatal=False)
        for name, form in (
            ("records/steps.jsonl", "jsonl"),
            ("records/events.jsonl", "jsonl"),
            ("records/memory-rank-0.jsonl", "jsonl"),
            ("records/memory-samples-rank-0.jsonl", "jsonl"),
            ("records/start-rank-0.jsonl", "jsonl"),
            ("records/memory-host-0.jsonl", "jsonl"),
            ("records/memory-samples-host-0.jsonl", "jsonl"),
            ("resolved/run.yaml", "text"),
            ("resolved/ds_config.json", "json"),
            ("resolved/launch.json", "json"),
            ("resolved/plan.json", "json"),
            ("resolved/plan-gpu.json", "json"),
        )
    ),
    Parser("sweep:measurements.jsonl", "jsonl", sweep_measurements, is_fatal=False),
    Parser("sweep:switch", "text", sweep_switch),
    *(
        Parser(f"benchmark:{name}", form, benchmark_of(name), is_fatal=name != "measurements.jsonl")
        for name, form in (("settings.json", "json"), ("measurements.jsonl", "jsonl"), ("results.json", "json"))
    ),
    Parser("index.json", "json", checkpoint_of("step-8/index.json")),
    Parser("index-content", "json", index_content),
    Parser("latest", "text", checkpoint_of("latest")),
    Parser("slurm.json", "json", slurm_json),
    Parser("trace-cache", "json", trace_cache, is_fatal=False),
    Parser("measurement-cache", "json", measurement_cache, is_fatal=False),
    Parser("dataset.json", "json", dataset_json),
    Parser("token-file", "bytes", token_file),
    Parser("tokenizer.json", "json", tokenizer_json),
    Parser("jsonl", "jsonl", texts(".jsonl")),
    Parser("txt", "text", texts(".txt")),
    Parser("config.json", "json", transformers_folder("config.json")),
    Parser("safetensors", "bytes", transformers_folder("model.safetensors")),
    Parser("deepspeed-pickle", "bytes", deepspeed_pickle),
    Parser("hostfile", "text", hostfile),
    Parser("environment", "text", environment),
    Parser("batch-script", "text", batch_script),
    Parser("slurm-switches", "text", job_request),
    Parser("slurms-answers", "text", slurms_answers),
    Parser("lock", "json", lock),
)
