"""Every loader of somebody else's file x every attack on one: refused by name with status 2; nothing is run, nothing
outside the folder is opened, and no more memory is taken than a folder of this size needs.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpt_checkpoints
import numpy as np
import pytest
import torch
from checkpoint_folders import content_of, write_content
from safetensors.torch import load_file, save_file

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import DataFacts
from dist_trainer.cli.main import main
from dist_trainer.data.prepare import prepare
from dist_trainer.exchange.gpt2 import export
from dist_trainer.units import GIB

Capture = pytest.CaptureFixture[str]
SHAPE = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 300, "context_length": 32}
RUN = (
    *("--config", "tiny", "--ds", "zero2", "--nproc-per-node", "1"),
    *(word for key, value in SHAPE.items() for word in ("--set", f"model.{key}={value}")),
    *("--set", 'phases=[{"name": "short", "sequence_length": 16, "steps": 9}]'),
)
# More than any of these loaders needs of address space, and less than what a file may claim.
SPARE_BYTES = GIB
# A loader that waits for a FIFO's writer would wait without end.
LIMIT_S = 300

STEP = "run/checkpoints/step-8"
INDEX, RANK = f"{STEP}/index.json", f"{STEP}/rank-00001.safetensors"
CONFIG, WEIGHTS = "theirs/config.json", "theirs/model.safetensors"
SHARDS = "shards/model.safetensors.index.json"
LATEST, STATES = "deepspeed/latest", "deepspeed/global_step2/mp_rank_00_model_states.pt"
PARTITION = "deepspeed/global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt"
INFO, TOKENS, TOKENIZER = "data/dataset.json", "data/train.bin", "data/tokenizer.json"
RAW = "raw/train.bin"
# Of the data that the index names.
BESIDE = "trained-on/tokenizer.json"

FROM = ("launch", "--dry-run", *RUN, "--run-dir", "new", "--init-from")
# Loader -> the command, in a folder with all of the above, and which files it reads.
LOADERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "resume": (("launch", "--dry-run", *RUN, "--run-dir", "new", "--resume", STEP), (INDEX, RANK)),
    "init-from": ((*FROM, "run"), (INDEX, RANK)),
    "init-from hf": ((*FROM, "theirs"), (CONFIG, WEIGHTS)),
    "init-from deepspeed": ((*FROM, "deepspeed"), (LATEST, STATES, PARTITION)),
    "import hf": (("checkpoint", "import", "theirs", "--to", "new"), (CONFIG, WEIGHTS)),
    "import shards": (("checkpoint", "import", "shards", "--to", "new"), (SHARDS,)),
    "import deepspeed": (
        ("checkpoint", "import", "deepspeed", "--to", "new"),
        (LATEST, STATES, PARTITION, "deepspeed/config.json"),
    ),
    "export": (("checkpoint", "export", STEP, "--to", "hf", "new"), (INDEX, RANK)),
    "export tokenizer": (("checkpoint", "export", STEP, "--to", "hf", "new", "--tokenizer", "data"), (TOKENIZER,)),
    "inspect": (("checkpoint", "inspect", STEP), (INDEX,)),
    "verify": (("checkpoint", "verify", STEP), (INDEX, RANK)),
    "diff": (("checkpoint", "diff", STEP, STEP), (INDEX, RANK)),
    "sample": (("sample", STEP, "--tokens", "1", "--max-tokens", "1"), (INDEX, RANK)),
    "sample tokenizer": (("sample", STEP, "--tokenizer", TOKENIZER, "--max-tokens", "1"), (TOKENIZER,)),
    "sample text": (("sample", STEP, "--prompt", "a", "--max-tokens", "1"), (INDEX, RANK, BESIDE)),
    "prepare": (
        ("data", "prepare", "--input", "text.txt", "--output", "new", "--tokenizer", TOKENIZER),
        (TOKENIZER,),
    ),
    "data": (("checkpoint", "inspect", STEP, *RUN, "--set", "data.source=data"), (INFO, TOKENS)),
    "raw data": (("checkpoint", "inspect", STEP, *RUN, "--set", "data.source=raw"), (RAW,)),
}

# What the user has named by hand: links are followed.
_NAMED_BY_HAND = (INFO, TOKENS, TOKENIZER, RAW)


class _Running:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def _pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps([_Running(Path("mark").absolute()), "even"], protocol=2))


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _link_out(file: Path) -> None:
    file.rename(Path("secret") / file.name)
    file.symlink_to((Path("secret") / file.name).absolute())


def _terabyte(file: Path) -> None:
    os.truncate(file, 2**40)


def _content(**changes: Any) -> Callable[[Path], None]:
    """An index that says this, with the digest that belongs to it. Keys have __ between their parts."""

    def change(file: Path) -> None:
        content = content_of(file.parent)
        for key, value in changes.items():
            *before, last = key.split("__")
            place = content
            for part in before:
                place = place[int(part) if isinstance(place, list) else part]
            place[last] = value
        text = json.dumps(content).replace('"DEEP"', "[" * 50_000 + "]" * 50_000)
        write_content(file.parent, text.replace('"DIGITS"', "9" * 100_000).encode())

    return change


def _json(text: str) -> Callable[[Path], None]:
    return lambda file: _unlinked(file).write_text(text)


def _unlinked(file: Path) -> Path:
    file.unlink()
    return file


def _key(key: str, value: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        said = json.loads(file.read_text())
        said[key] = value
        file.write_text(json.dumps(said).replace('"DIGITS"', "9" * 100_000))

    return change


def _header(content: bytes, length: int | None = None) -> Callable[[Path], None]:
    text = struct.pack("<Q", len(content) if length is None else length) + content
    return lambda file: _unlinked(file).write_bytes(text)  # type: ignore[func-returns-value]


def _pickled(pickled: bytes) -> Callable[[Path], None]:
    """A file of torch.save with this pickle."""

    def change(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, pickled if name.endswith("data.pkl") else content)

    return change


def _running_within(file: Path) -> None:
    torch.save({**torch.load(file, weights_only=False), "more": _Running(Path("mark").absolute())}, file)


def _shapes(sizes: tuple[int, ...]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        loaded = torch.load(file, weights_only=False)
        name = next(iter(loaded["param_shapes"][0]))
        loaded["param_shapes"][0][name] = torch.Size(sizes)
        torch.save(loaded, file)

    return change


def _llm_c(file: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 2**31 - 1
    file.write_bytes(header.tobytes() + b"\0" * 8)


_NUMBER = b"\x8a\x06" + (2**33).to_bytes(6, "little") + b"\x85"
_CONFIGS = (CONFIG, "deepspeed/config.json")
_JSONS = (*_CONFIGS, SHARDS, INFO, TOKENIZER, BESIDE)
_TORCH = (STATES, PARTITION)
ANY = (INDEX, RANK, *_JSONS, WEIGHTS, LATEST, *_TORCH, TOKENS, RAW)
# Attack -> what it does to a file, and to which.
ATTACKS: Mapping[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "a pickle that runs": (_pickle, ANY),
    "a FIFO": (_fifo, ANY),
    "a device": (_device, ANY),
    "a link out": (_link_out, tuple(file for file in ANY if file not in _NAMED_BY_HAND)),
    # Zeros are tokens where no header says how many there are.
    "a terabyte": (_terabyte, tuple(file for file in ANY if file != RAW)),
    "deep": (_json("[" * 100_000 + "]" * 100_000), (INDEX, *_JSONS)),
    "deep objects": (_json('{"a":' * 100_000 + "1" + "}" * 100_000), (INDEX, *_JSONS)),
    "a number of digits": (_json('{"version": ' + "9" * 100_000 + "}"), (INDEX, *_JSONS)),
    "deep in the index": (_content(made_by__run="DEEP"), (INDEX,)),
    "digits in the index": (_content(counters__steps="DIGITS"), (INDEX,)),
    "a step beyond all": (_content(counters__steps=10**30), (INDEX,)),
    "a file above": (_content(files__1__name="../../../secret/rank-00001.safetensors"), (INDEX,)),
    "an absolute file": (_content(files__1__name="/etc/passwd"), (INDEX,)),
    "a file of terabytes": (_content(files__1__num_bytes=2**42), (INDEX,)),
    "a parameter of terabytes": (_content(**{"parameters__position_embedding.weight__shape": [2**40, 16]}), (INDEX,)),
    "a shape of terabytes": (_content(**{"parameters__position_embedding.weight__shape": [2**59] * 64}), (INDEX,)),
    "digits in the config": (_key("n_layer", "DIGITS"), _CONFIGS),
    "more layers than any": (_key("n_layer", 10**9), _CONFIGS),
    "a width of terabytes": (_key("n_embd", 2**40), _CONFIGS),
    "a shard above": (_key("weight_map", {"transformer.wte.weight": "../theirs/model.safetensors"}), (SHARDS,)),
    "an absolute shard": (_key("weight_map", {"transformer.wte.weight": "/etc/passwd"}), (SHARDS,)),
    "a vocabulary of terabytes": (_key("max_token", 2**62), (INFO,)),
    "splits of terabytes": (_key("train", {"num_tokens": 2**62, "num_texts": 1, "sha256": "0"}), (INFO,)),
    "tokens beyond all": (
        _json('{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}'),
        (TOKENIZER, BESIDE),
    ),
    "a header of exabytes": (_header(b"{}", 2**63), (WEIGHTS,)),
    "a header of terabytes": (_header(b"{}", 2**40), (WEIGHTS,)),
    "a deep header": (_header(b"[" * 100_000), (WEIGHTS,)),
    "a tensor of terabytes": (
        _header(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        (WEIGHTS,),
    ),
    "tokens that are not there": (_llm_c, (RAW,)),
    "a folder above": (_json("../theirs"), (LATEST,)),
    "an absolute folder": (_json("/etc"), (LATEST,)),
    "a pickle that runs within": (_running_within, _TORCH),
    "tuples in tuples": (_pickled(b"\x80\x02})" + b"\x85" * 2_000_000 + b"Ns."), _TORCH),
    "lists in lists": (_pickled(b"\x80\x02]" * 1 + b"]" * 500_000 + b"a" * 500_000 + b"."), _TORCH),
    "a tensor by number": (_pickled(b"\x80\x02ctorch\nTensor\n" + _NUMBER + b"R."), _TORCH),
    "a new tensor by number": (_pickled(b"\x80\x02ctorch\nTensor\n" + _NUMBER + b"\x81."), _TORCH),
    "a tensor by another's hand": (
        _pickled(
            b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nTensor\nctorch\nTensor\n" + _NUMBER + b"}tR."
        ),
        _TORCH,
    ),
    "parameters of terabytes": (_shapes((2**40, 4)), (STATES,)),
    "parameters beyond all": (_shapes((2**50, 2**50, 2**50)), (STATES,)),
}


@dataclass(frozen=True)
class Case:
    loader: str
    file: str
    attack: str


CASES = [
    Case(loader, file, attack)
    for loader, (_, files) in LOADERS.items()
    for file in files
    for attack, (_, attacked) in ATTACKS.items()
    if file in attacked
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is loaded, as it should be."""
    home = tmp_path_factory.mktemp("sound")
    gpt = gpt_checkpoints.model(**SHAPE)
    (home / "text.txt").write_text("the gradient and the loss of a rank and of a step\n" * 200)
    info = prepare([home / "text.txt"], home / "data", tokenizer=None, vocab_size=300, progress=False)
    shutil.copytree(home / "data", home / "trained-on")
    data = {"short": DataFacts("trained-on/train.bin", info.train.num_tokens, "f00", info.tokenizer_sha256)}
    step = gpt_checkpoints.write(home / "run" / "checkpoints", gpt, gpt_checkpoints.states_of(gpt), data=data)
    export(Found(step, index.read(step)), home / "theirs", tokenizer=None)
    weights = load_file(home / "theirs" / "model.safetensors")
    (home / "shards").mkdir()
    shutil.copy(home / CONFIG, home / "shards")
    names = sorted(weights)
    placed = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, home / "shards" / f"part-{number}.safetensors")
        placed.update(dict.fromkeys(part, f"part-{number}.safetensors"))
    (home / SHARDS).write_text(json.dumps({"weight_map": placed}))
    (home / STATES).parent.mkdir(parents=True)
    (home / LATEST).write_text("global_step2")
    shutil.copy(home / CONFIG, home / "deepspeed")
    torch.save({"module": {}, "param_shapes": [{name: weights[name].shape for name in names}]}, home / STATES)
    flat = torch.cat([weights[name].reshape(-1) for name in names])
    state = {"zero_stage": 2, "partition_count": 1, "single_partition_of_fp32_groups": [flat]}
    torch.save({"optimizer_state_dict": state}, home / PARTITION)
    (home / "raw").mkdir()
    for split in ("train.bin", "val.bin"):
        shutil.copy(home / "data" / split, home / "raw")
    (home / "secret").mkdir()
    return home


@pytest.fixture
def home(sound: Path, planning_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(sound, planning_folder, dirs_exist_ok=True)
    shutil.copy(planning_folder / RANK, planning_folder / "secret")
    return planning_folder


_opened: list[str] | None = None


def _note_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.path.realpath(os.fsdecode(arguments[0])))


# For ever: there is no way to take it out again.
sys.addaudithook(_note_opening)


@contextmanager
def watched() -> Iterator[list[str]]:
    """The files that are opened, links resolved, while little memory can be had and nothing is waited for."""
    global _opened
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, _waits)
    signal.alarm(LIMIT_S)
    resource.setrlimit(resource.RLIMIT_AS, (taken_bytes + SPARE_BYTES, before[1]))
    _opened = opened = []
    try:
        yield opened
    finally:
        _opened = None
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def _waits(*_: object) -> None:
    raise AssertionError("a loader waits without end")


@pytest.mark.parametrize("loader", list(LOADERS))
def test_what_is_as_it_should_be_is_loaded(home: Path, capsys: Capture, loader: str) -> None:
    # The trace of a plan is made here, which takes more memory than to load.
    assert main(list(LOADERS[loader][0])) == 0, capsys.readouterr()


@pytest.mark.parametrize("path", ["\0/train.bin", "a" * 5000 + "/train.bin", "/dev/zero/train.bin", ""])
def test_data_that_the_index_places_where_none_can_be_is_missing_by_name(
    home: Path, capsys: Capture, path: str
) -> None:
    _content(made_by__data__short__path=path)(home / INDEX)
    assert main(list(LOADERS["sample text"][0])) == 2
    assert "the tokenizer of the run's data" in capsys.readouterr().err


def test_what_a_file_sets_on_a_tensor_does_not_take_the_place_of_its_methods(home: Path) -> None:
    loaded = torch.load(home / PARTITION, weights_only=False)
    (flat,) = loaded["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    flat.is_contiguous = flat.dim = flat.detach = flat.numel = flat.reshape = "mine"
    torch.save(loaded, home / PARTITION)
    assert main(list(LOADERS["import deepspeed"][0])) == 0
    assert main(["checkpoint", "verify", "new"]) == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.loader}-{Path(case.file).name}-{case.attack}")
def test_an_attack_is_refused_by_name_and_does_nothing(home: Path, capsys: Capture, case: Case) -> None:
    ATTACKS[case.attack][0](home / case.file)
    with watched() as opened:
        status = main(list(LOADERS[case.loader][0]))
    said = capsys.readouterr()
    assert status == 2, said
    # `verify` tells of all files, as its answer.
    if case.loader != "verify":
        assert said.err.count("dist_trainer: error: ") == 1
        assert said.out == ""
    assert Path(case.file).name in said.out + said.err
    assert "Traceback" not in said.err and len(said.out + said.err) < 5000
    assert not (home / "mark").exists()
    assert not (home / "new").exists()
    assert not [path for path in opened if path.startswith((str((home / "secret").resolve()), "/dev/zero", "/etc/"))]
