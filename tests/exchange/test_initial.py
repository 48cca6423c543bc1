"""What a new run begins from: found, compared with the run's model, or left unread because the run goes on."""

from __future__ import annotations

from pathlib import Path

import gpt_checkpoints
import pytest

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.before_start import check_before_start
from dist_trainer.checkpoints.changed import made_by, refuse_another_kind
from dist_trainer.checkpoints.find import Found, Resume, find
from dist_trainer.checkpoints.standing import list_checkpoints
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import ResolvedRun
from dist_trainer.errors import UserError
from dist_trainer.exchange.foreign import open_foreign
from dist_trainer.exchange.gpt2 import export
from dist_trainer.exchange.importing import write_checkpoint
from dist_trainer.exchange.initial import check_initial, not_read

SHAPE = {"num_layers": 2, "hidden_size": 48, "num_heads": 4, "vocab_size": 70, "context_length": 32}


def resolved(**changes: int) -> ResolvedRun:
    settings = tuple(f"model.{key}={value}" for key, value in {**SHAPE, **changes}.items())
    phases = 'phases=[{"name": "only", "sequence_length": 16, "steps": 4}]'
    request = Request(config="tiny", settings=(*settings, phases))
    return check_before_start(request, world_size=2, resume="never", run_dir=None)[1]


@pytest.fixture
def ours(tmp_path: Path) -> Found:
    gpt = gpt_checkpoints.model()
    folder = gpt_checkpoints.write(tmp_path / "run" / "checkpoints", gpt, gpt_checkpoints.states_of(gpt))
    return Found(folder, index.read(folder))


@pytest.fixture
def theirs(tmp_path: Path, ours: Found) -> Path:
    export(ours, tmp_path / "theirs", tokenizer=None)
    return tmp_path / "theirs"


def test_a_run_begins_from_a_checkpoint_of_this_program_or_a_folder_of_another(ours: Found, theirs: Path) -> None:
    for path in (ours.folder, ours.folder.parent, ours.folder.parents[1]):
        initial = check_initial(path, Resume(), resolved())
        assert initial is not None
        assert initial.found is not None
        assert initial.found.folder == ours.folder
        assert "after step 8" in initial.said
    initial = check_initial(theirs, Resume(), resolved())
    assert initial is not None
    assert initial.found is None
    assert "a GPT-2 of transformers, F32" in initial.said


@pytest.mark.parametrize("key", ["num_layers", "hidden_size", "num_heads", "vocab_size", "context_length"])
def test_another_model_is_refused_with_the_key_and_what_to_set(ours: Found, theirs: Path, key: str) -> None:
    other = resolved(**{key: SHAPE[key] * 2})
    for path in (ours.folder, theirs):
        with pytest.raises(UserError, match="another one than that whose weights") as refused:
            check_initial(path, Resume(), other)
        assert refused.value.key == f"model.{key}"
        assert refused.value.hint == f"set the run's model to it: --set model.{key}={SHAPE[key]}"


def test_a_run_with_checkpoints_goes_on_from_them_and_says_so(ours: Found) -> None:
    resume = find("auto", ours.folder.parents[1])
    assert check_initial(Path("not/there"), resume, resolved()) is None
    (line,) = not_read(Path("not/there"), resume)
    assert line == "--init-from not/there is not read: it was for the first start, and the run goes on from step 8"
    assert not_read(None, resume) == not_read(Path("not/there"), Resume()) == ()


def test_two_beginnings_are_refused(ours: Found, theirs: Path) -> None:
    with pytest.raises(UserError, match="two beginnings"):
        check_initial(theirs, Resume(ours), resolved(), asked_resume=str(ours.folder))


def test_where_nothing_is_the_switch_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="no checkpoint to begin from") as refused:
            check_initial(path, Resume(), resolved())
        assert refused.value.where == "--init-from"


def test_a_damaged_checkpoint_is_refused_or_an_older_one_taken(ours: Found) -> None:
    damaged = {ours.folder.resolve(): "rank-00000.safetensors is not as it was written"}
    with pytest.raises(UserError, match="cannot be begun from"):
        check_initial(ours.folder, Resume(), resolved(), damaged=damaged)


def test_imported_weights_are_begun_from_but_not_resumed_from(tmp_path: Path, theirs: Path) -> None:
    weights = open_foreign(theirs)
    assert weights is not None
    folder = write_checkpoint(weights, tmp_path / "imported")
    initial = check_initial(tmp_path / "imported", Resume(), resolved())
    assert initial is not None
    assert initial.found is not None
    with pytest.raises(UserError, match="weights alone") as refused:
        refuse_another_kind(Found(folder, index.read(folder)), made_by(resolved(), world_size=2, data={}))
    assert refused.value.hint == f"begin a run from it with --init-from {folder}"
    assert isinstance(list_checkpoints(tmp_path / "imported").resumed, UserError)


def test_an_import_leaves_what_is_there_as_it_is(tmp_path: Path, theirs: Path) -> None:
    weights = open_foreign(theirs)
    assert weights is not None
    with pytest.raises(UserError, match="exists already"):
        write_checkpoint(weights, theirs)
