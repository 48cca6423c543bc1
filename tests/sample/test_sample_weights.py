from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpt_checkpoints import states_of, write

from dist_trainer.checkpoints.find import Found
from dist_trainer.checkpoints.index import DataFacts
from dist_trainer.errors import UserError
from dist_trainer.model.gpt import GPT
from dist_trainer.sample.weights import find_whole, load_model, model_config

CPU = torch.device("cpu")


def load(found: Found, dtype: torch.dtype = torch.float32) -> GPT:
    return load_model(found, model_config(found), dtype=dtype, device=CPU)


def spoil(folder: Path) -> None:
    """One byte of the last tensor."""
    file = folder / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_model_is_the_one_that_was_saved(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts], dtype: torch.dtype
) -> None:
    folder = write(tmp_path / "checkpoints", trained, states_of(trained), step=3, data=data)
    for path in (tmp_path, tmp_path / "checkpoints", folder):
        found, notices = find_whole(path)
        assert found.folder == folder and notices == ()
    loaded = load(found, dtype)
    assert not loaded.training
    for (name, ours), (their_name, theirs) in zip(loaded.named_parameters(), trained.named_parameters(), strict=True):
        assert name == their_name and torch.equal(ours, theirs.to(dtype))


def test_a_padded_vocabulary_is_no_part_of_a_checkpoint_and_needs_none(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts]
) -> None:
    found, _ = find_whole(write(tmp_path, trained, states_of(trained), step=3, data=data, pad_vocab=True))
    assert torch.equal(load(found).token_embedding.weight, trained.token_embedding.weight)


def test_a_run_whose_newest_checkpoint_was_changed_is_sampled_from_the_one_before(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts]
) -> None:
    whole = write(tmp_path / "checkpoints", trained, states_of(trained), step=3, data=data)
    spoil(write(tmp_path / "checkpoints", trained, states_of(trained), step=6, data=data))
    found, (notice,) = find_whole(tmp_path)
    assert found.folder == whole
    assert "rank-00001.safetensors" in notice and notice.endswith("step-3, the newest that is whole, is sampled from")


def test_a_named_checkpoint_that_was_changed_is_refused_with_one_that_is_whole(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts]
) -> None:
    whole = write(tmp_path, trained, states_of(trained), step=3, data=data)
    newest = write(tmp_path, trained, states_of(trained), step=6, data=data)
    spoil(newest)
    with pytest.raises(UserError) as caught:
        find_whole(newest)
    assert "cannot be sampled from" in str(caught.value) and "rank-00001.safetensors" in str(caught.value)
    assert caught.value.hint == f"step-3 beside it is whole: name it: {whole}"


def test_where_no_checkpoint_is_whole_that_is_an_error(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts]
) -> None:
    with pytest.raises(UserError, match="no checkpoint to sample from"):
        find_whole(tmp_path)
    spoil(write(tmp_path, trained, states_of(trained), step=3, data=data))
    with pytest.raises(UserError, match="cannot be sampled from"):
        find_whole(tmp_path)


def test_folders_named_auto_and_never_are_folders(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("auto", "never"):
        write(tmp_path / name, trained, states_of(trained), step=3, data=data)
        assert find_whole(Path(name))[0].folder == tmp_path / name / "step-3"


def test_a_data_file_that_leads_out_of_the_folder_is_refused(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts]
) -> None:
    folder = write(tmp_path / "checkpoints", trained, states_of(trained), step=3, data=data)
    file = folder / "rank-00000.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leads out of the checkpoint's folder"):
        find_whole(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 33), ("num_layers", "2"), ("vocab_size", 2**40), ("num_heads", 0), ("more", 1)],
    ids=lambda value: str(value),
)
def test_what_is_no_model_is_refused_by_its_key(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts], key: str, value: object
) -> None:
    found, _ = find_whole(write(tmp_path, trained, states_of(trained), step=3, data=data, **{key: value}))
    with pytest.raises(UserError, match="does not say what model it is of") as caught:
        model_config(found)
    assert str(caught.value.key).startswith("model")


@pytest.mark.parametrize(
    ("key", "value", "parameter"),
    [
        ("num_layers", 3, "blocks.2.attention_norm.weight"),
        ("num_layers", 1, "blocks.1.attention_norm.weight"),
        ("context_length", 2**27, "position_embedding.weight"),
        ("vocab_size", 2**24, "token_embedding.weight"),
        ("hidden_size", 2**20, "token_embedding.weight"),
    ],
)
def test_a_model_of_another_size_than_the_weights_is_refused_before_memory_is_taken(
    tmp_path: Path, trained: GPT, data: dict[str, DataFacts], key: str, value: int, parameter: str
) -> None:
    found, _ = find_whole(write(tmp_path, trained, states_of(trained), step=3, data=data, **{key: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="weights are not those of the model") as caught:
        load(found)
    assert caught.value.key == parameter
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_neither_an_engine_nor_the_training_is_imported() -> None:
    script = "import sys, dist_trainer.sample.run; print([name for name in sys.modules if name in %r])"
    heavy = ("deepspeed", "dist_trainer.train")
    command = [sys.executable, "-c", script % (heavy,)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout == "[]\n"
