"""Weights of other programs are the same here to the bit; a stranger's files run nothing and are refused by name."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpt_checkpoints
import one_rank
import pytest
import ranks
import torch
from one_rank import MODEL, Trained, batches, build

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.verify import every_damage
from dist_trainer.errors import UserError
from dist_trainer.exchange import stranger_pickle, torch_file
from dist_trainer.exchange.foreign import open_foreign
from dist_trainer.exchange.gpt2 import export
from dist_trainer.exchange.importing import write_checkpoint
from dist_trainer.exchange.stranger_pickle import StrangerPickleError
from dist_trainer.exchange.weights import Weights
from dist_trainer.model.gpt import GPT
from dist_trainer.sample.weights import load_model, model_config


def exported(folder: Path, gpt: GPT) -> Path:
    written = gpt_checkpoints.write(folder / "checkpoints", gpt, gpt_checkpoints.states_of(gpt))
    export(Found(written, index.read(written)), folder / "theirs", tokenizer=None)
    return folder / "theirs"


def opened(folder: Path) -> Weights:
    weights = open_foreign(folder)
    assert weights is not None
    return weights


def imported(weights: Weights, output: Path) -> Found:
    folder = write_checkpoint(weights, output)
    found = Found(folder, index.read(folder))
    assert not list(every_damage(found.folder, found.index))
    return found


def test_export_and_import_give_the_same_bits(tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model()
    found = imported(opened(exported(tmp_path, gpt)), tmp_path / "ours")
    model = load_model(found, model_config(found), dtype=torch.float32, device=torch.device("cpu"))
    for name, parameter in gpt.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    assert found.index.position.step == 0
    assert found.index.states == []


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_the_logits_of_a_model_of_transformers_are_its_own_to_the_bit(tmp_path: Path, shard_size: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        n_layer=2, n_embd=48, n_head=4, vocab_size=70, n_positions=32, activation_function="gelu_pytorch_tanh"
    )
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"), max_shard_size=shard_size)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    found = imported(opened(tmp_path / "theirs"), tmp_path / "ours")
    ours = load_model(found, model_config(found), dtype=torch.float32, device=torch.device("cpu"))
    tokens = torch.randint(70, (2, 17))
    with torch.no_grad():
        assert torch.equal(ours(tokens), theirs(tokens).logits)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_masters_of_a_deepspeed_checkpoint_are_found_at_every_stage(tmp_path: Path, stage: int) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with one_rank.one_rank():
        engine = build(Trained(stage=stage, precision="bf16" if stage else "fp32"), tmp_path)
        for inputs, targets in itertools.islice(batches(), 2):
            engine.backward(engine(inputs, targets))
            engine.step()
        engine.save_checkpoint(str(tmp_path / "theirs"))
        expected = {name: tensor.detach().clone() for name, tensor in engine.module.named_parameters()}
        engine.destroy()
    if stage:
        expected = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "theirs"))
    weights = opened(tmp_path / "theirs")
    assert weights.shape.num_heads is None
    assert set(weights.dtypes.values()) == {"F32"}
    for name in weights.dtypes:
        assert torch.equal(weights.read(name), expected[name]), name
    with pytest.raises(UserError, match="number of attention heads is not known"):
        write_checkpoint(weights, tmp_path / "ours")
    imported(weights.with_heads(MODEL["num_heads"]), tmp_path / "ours")


@pytest.mark.parametrize("stage", [2, 3])
def test_the_partitions_of_several_ranks_are_put_together(tmp_path: Path, stage: int) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    script = str(Path(__file__).with_name("saving_rank.py"))
    ended = ranks.run_ranks([script, str(tmp_path), str(stage)], cwd=tmp_path, world_size=2)
    assert ended.status == 0, ended.output
    weights = opened(tmp_path / "theirs")
    assert weights.said == f"a DeepSpeed checkpoint of 2 ranks, ZeRO {stage}, F32"
    expected = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "theirs"))
    for name in weights.dtypes:
        assert torch.equal(weights.read(name), expected[name]), name
    next((tmp_path / "theirs").rglob("*zero_pp_rank_1_*optim_states.pt")).unlink()
    with pytest.raises(UserError, match="is of 2 ranks, and there are 1 such files"):
        open_foreign(tmp_path / "theirs")


class _Attack:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


class _Calling:
    """A pickle that calls this when it is loaded."""

    def __init__(self, *called: Any) -> None:
        self.called = called

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.called[0], self.called[1:]


def deepspeed_files(folder: Path) -> tuple[Path, Path]:
    tag = folder / "theirs" / "global_step2"
    tag.mkdir(parents=True)
    (folder / "theirs" / "latest").write_text("global_step2")
    names = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shapes = [{"token_embedding.weight": torch.Size([4, 2]), "position_embedding.weight": torch.Size([4, 2])}]
    flat = [torch.arange(16.0)]
    state = {"zero_stage": 2, "partition_count": 1, "single_partition_of_fp32_groups": flat}
    torch.save({"module": {}, "param_shapes": shapes}, tag / names[0])
    torch.save({"optimizer_state_dict": state}, tag / names[1])
    return tag / names[0], tag / names[1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_pickle_hidden_in_a_deepspeed_file_is_refused_by_name_and_not_run(tmp_path: Path, number: int) -> None:
    file = deepspeed_files(tmp_path)[number]
    torch.save({**torch.load(file, weights_only=False), "more": _Attack(tmp_path / "mark")}, file)
    with pytest.raises(UserError, match=r"names posix\.mkdir, which is not on the list"):
        open_foreign(tmp_path / "theirs")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("called", "said"),
    [
        ((bytearray, 2**42), r"names \S*bytearray"),
        ((torch.Tensor, 64), r"calls torch\.Tensor"),
        ((torch._tensor._rebuild_from_type_v2, torch.Tensor, torch.Tensor, (64,), {}), r"calls torch\.Tensor"),
        ((torch.Size, torch.Tensor), None),
    ],
    ids=["bytearray", "tensor", "another's hand", "what is not called"],
)
def test_what_torch_would_allow_but_a_checkpoint_does_not_do_is_refused(
    tmp_path: Path, called: tuple[Any, ...], said: str | None
) -> None:
    """What takes as much memory as a number says is not called, however small the number."""
    file = deepspeed_files(tmp_path)[0]
    torch.save({"more": _Calling(*called)}, file)
    with pytest.raises(UserError, match=said or "cannot be loaded"):
        open_foreign(tmp_path / "theirs")


def test_tuples_that_lie_too_deep_in_each_other_are_refused_before_they_are_made() -> None:
    """To hash a deep enough one, as the key of a dict is, ends the process."""
    for depth, is_refused in ((100, False), (101, True)):
        pickled = b"\x80\x02})" + b"\x85" * (depth - 1) + b"Ns."
        try:
            stranger_pickle.check(pickled, names=(), callables=())
        except StrangerPickleError as error:
            assert is_refused, error
        else:
            assert not is_refused


def _compress(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content + b"\0" * 2**20)


def _twice(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(name.upper(), b"")


def _larger_storage(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(b"K\x10", b"J\x00\x00\x00\x40"))


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _link_out(file: Path) -> None:
    other = file.parents[2] / "outside"
    file.rename(other)
    file.symlink_to(other)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_compress, "compressed entry"),
        (_twice, "an entry twice"),
        (_larger_storage, "cannot be loaded"),
        (_fifo, "is not a regular file"),
        (_device, "is not a regular file"),
        (_link_out, "link that leads out"),
        (lambda file: file.write_bytes(pickle.dumps({})), "is not a file of torch.save"),
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "is not a file of torch.save"),
        (lambda file: file.write_bytes(file.read_bytes() + b"more"), "is not a file of torch.save"),
        (lambda file: file.write_bytes(b"more" + file.read_bytes()), "two tables of entries"),
    ],
    ids=["compressed", "twice", "larger", "fifo", "device", "link", "pickle", "cut", "longer", "shifted"],
)
def test_a_deepspeed_file_that_is_not_what_it_says_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    file = deepspeed_files(tmp_path)[1]
    damage(file)
    with pytest.raises(UserError, match=said) as refused:
        open_foreign(tmp_path / "theirs")
    assert refused.value.where == str(file)


@pytest.mark.parametrize("name", ["../theirs/global_step2", "/tmp", "..", ".", "a/b", "\0"])
def test_a_latest_that_names_what_lies_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    deepspeed_files(tmp_path)
    (tmp_path / "theirs" / "latest").write_text(name)
    with pytest.raises(UserError, match="names no folder of this one"):
        open_foreign(tmp_path / "theirs")


def test_an_old_torch_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed_files(tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UserError, match="can be broken out of") as refused:
        open_foreign(tmp_path / "theirs")
    assert refused.value.expected == "2.10 or newer"


def _header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        _header(b"{}", 2**63),
        _header(b"{}", 2**40),
        _header(b"[1]"),
        _header(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        _header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}') + b"\0" * 8,
        _header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}'),
        _header(b'{"a":{},"a":{}}'),
        _header(b"[" * 100_000),
    ],
    ids=["empty", "2^63", "terabyte", "list", "large", "gap", "negative", "twice", "deep"],
)
def test_a_header_that_claims_what_is_not_there_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = exported(tmp_path, gpt_checkpoints.model())
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"not taken: model\.safetensors"):
        open_foreign(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", [_fifo, _device, _link_out])
def test_links_and_devices_in_a_folder_of_transformers_are_refused(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    inner = tmp_path / "inner"
    folder = exported(inner, gpt_checkpoints.model())
    damage(folder / name)
    with pytest.raises(UserError, match=f"not taken: {name} is") as refused:
        open_foreign(folder)
    assert refused.value.where == str(folder / name)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".safetensors", "m.bin"])
def test_a_shard_that_lies_elsewhere_is_refused(tmp_path: Path, shard: str) -> None:
    folder = exported(tmp_path, gpt_checkpoints.model())
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match="names a file that is none of this folder"):
        open_foreign(folder)


def test_a_model_in_a_pickle_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = exported(tmp_path, gpt_checkpoints.model())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle, which can run anything"):
        open_foreign(folder)


def test_the_list_of_names_is_what_torch_is_told() -> None:
    assert {name for _, name in torch_file._STAND_INS} <= torch_file._ALLOWED
    assert not [name for name in torch_file._ALLOWED if name.startswith(("builtins", "os", "_codecs"))]
