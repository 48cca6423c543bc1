"""`checkpoint` says what is in checkpoints and changes nothing in them; its statuses are diff's, and 2 for mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gpt_checkpoints
import pytest
from checkpoint_folders import CONTENT_FILE, WORLD_SIZE, checkpoint, content_of, write_content

from dist_trainer.checkpoints import folder, index
from dist_trainer.checkpoints.changed import made_by
from dist_trainer.cli import checkpoint as command
from dist_trainer.cli.main import main
from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.request import Request
from dist_trainer.config.resolve import resolve

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _alone(planning_folder: Path) -> None:
    """No batch system and no GPU around."""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of the run file `tiny`, with checkpoints after steps 8 and 12 by two ranks."""
    resolved = resolve(Request(config="tiny", ds="zero2"), world_size=WORLD_SIZE, device=ANY_DEVICE)
    made = made_by(resolved, world_size=WORLD_SIZE, data={})
    for step in (8, 12):
        checkpoint(tmp_path / "run" / "checkpoints", step, made_by=made)
    return tmp_path / "run"


def said(capsys: Capture, *words: object, status: int = 0) -> str:
    assert main(["checkpoint", *map(str, words)]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: Capture, *words: object) -> str:
    assert main(["checkpoint", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("dist_trainer: error: ") == 1
    return captured.err


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def listed(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_list_shows_whole_damaged_and_cut_off_ones_and_changes_nothing(capsys: Capture, run_dir: Path) -> None:
    checkpoints_dir = run_dir / "checkpoints"
    (checkpoints_dir / "step-12" / CONTENT_FILE).write_bytes(b"short")
    folder.begin(checkpoints_dir, 16)
    before = listed(run_dir)
    lines = said(capsys, "list", run_dir).splitlines()
    assert lines[0] == str(checkpoints_dir)
    assert lines[2].split() == ["checkpoint", "tokens", "size", "ranks", "ZeRO", "precision", "made", "standing"]
    assert lines[3].startswith("step-12")
    assert lines[3].endswith("damaged, named by latest")
    assert lines[4] == f"  {CONTENT_FILE} has 5 bytes and was written with 496"
    assert lines[5].split()[:6] == ["step-8", "512", "0.0", "MB", "2", "2"]
    assert lines[5].endswith("whole, resumed from")
    assert ".step-16.saving: a save of step-16 that goes on, or was cut off; the next start removes it" in lines[7]
    assert lines[8:10] == ["latest     step-12", "resume     --resume auto takes step-8"]
    assert lines[10].startswith("notice     ")
    assert listed(run_dir) == before


def test_list_as_json_has_every_fact(capsys: Capture, run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step-8" / CONTENT_FILE).unlink()
    found: dict[str, Any] = json.loads(said(capsys, "list", run_dir, "--json"))
    assert (found["latest"], found["resumed"], found["leftovers"]) == ("step-12", "step-12", [])
    newest, oldest = found["checkpoints"]
    assert (newest["step"], newest["tokens"], newest["ranks"], newest["stage"]) == (12, 768, 2, 2)
    assert newest["damages"] == []
    assert oldest["damages"][0]["problem"] == "is missing"


def test_inspect_says_what_is_there(capsys: Capture, run_dir: Path) -> None:
    out = said(capsys, "inspect", run_dir)
    assert f"checkpoint {run_dir / 'checkpoints' / 'step-12'}" in out
    assert "2 ranks, ZeRO 2, bf16, AdamW" in out
    assert "model      num_layers 4, hidden_size 128, num_heads 4, vocab_size 2048, context_length 256" in out
    assert "parameters 85 (85) in 3 tensors" in out
    assert "state      exp_avg: F32" in out
    assert "position   step 12, of which 1 skipped, 768 tokens" in out
    assert "phase      short: 12 steps, 768 tokens" in out
    assert "resume" not in out


def test_inspect_with_a_runs_switches_says_what_would_change_and_be_read(capsys: Capture, run_dir: Path) -> None:
    switches = ("--config", "tiny", "--ds", "zero3", "--nproc-per-node", "4", "--set", "gradient_clipping=0.5")
    out = said(capsys, "inspect", run_dir, *switches)
    assert "resume     tiny with zero3 on 4 ranks: yes" in out
    assert "changed    the run has 4 ranks, and had 2" in out
    assert "changed    gradient_clipping is 0.5, and was 1.0" in out
    assert "changed    zero_optimization.stage is 3, and was 2" in out
    found = json.loads(said(capsys, "inspect", run_dir, *switches, "--json"))
    # 85 elements of 4 bytes, in 2 states, shared by 4 ranks.
    assert found["resuming"]["states_bytes"] == 170
    whole = json.loads(said(capsys, "inspect", run_dir, "--ds", "baseline", "--nproc-per-node", "4", "--json"))
    assert whole["resuming"]["states_bytes"] == 680


def test_inspect_names_the_key_that_refuses_a_run(capsys: Capture, run_dir: Path) -> None:
    out = said(capsys, "inspect", run_dir, "--set", "model.num_heads=8", "--nproc-per-node", "2", status=1)
    assert "resume     tiny with zero2 on 2 ranks: refused" in out
    assert "refused    model.num_heads is 8; expected 4" in out


def test_verify_names_every_damage_by_file_parameter_and_state(capsys: Capture, run_dir: Path) -> None:
    newest = run_dir / "checkpoints" / "step-12"
    assert said(capsys, "verify", run_dir).count("whole") == 2
    file = newest / CONTENT_FILE
    flip(file, file.stat().st_size - 1)
    flip(file, file.stat().st_size // 2)
    lines = said(capsys, "verify", run_dir, status=2).splitlines()
    owners = {
        f"  {file.name} is not as it was written: the checksum of {parameter}'s {state}"
        for parameter, state, piece, num_bytes in index.read(newest).pieces()
        if piece.file == 0
        and any(
            piece.offset <= place < piece.offset + num_bytes
            for place in (file.stat().st_size - 1, file.stat().st_size // 2)
        )
    }
    assert len(owners) == 2
    assert lines[0] == f"{newest}: damaged"
    assert set(lines[1:3]) == owners
    assert lines[3].startswith(f"{run_dir / 'checkpoints' / 'step-8'}: whole")


def test_verify_of_one_without_an_index_says_so(capsys: Capture, run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step-12" / index.INDEX_FILE).unlink()
    out = said(capsys, "verify", run_dir / "checkpoints" / "step-12", status=2)
    assert "index.json is missing" in out


def test_diff_ends_as_diff_does(capsys: Capture, run_dir: Path) -> None:
    first, second = (run_dir / "checkpoints" / f"step-{step}" for step in (8, 12))
    same = said(capsys, "diff", first, first)
    assert same.splitlines()[-1] == "same       6 states of parameters agree"
    other = said(capsys, "diff", first, second, status=1)
    assert "differs    wte.weight's weight: 72 of 72 elements, by 4e+04 at most" in other
    assert "position   step is 8 in A, and 12 in B" in other
    assert other.splitlines()[-1] == "not same   0 states of parameters agree, 6 differ"


def test_diff_tells_settings_and_does_not_count_them(capsys: Capture, tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model(num_layers=1)
    states = gpt_checkpoints.states_of(gpt)
    paths = [
        gpt_checkpoints.write(tmp_path / str(stage), gpt, states, stage=stage, num_ranks=stage) for stage in (1, 3)
    ]
    out = said(capsys, "diff", *paths)
    assert "setting    B: the run has 3 ranks, and had 1" in out
    assert "setting    B: zero_optimization.stage is 3, and was 1" in out


def test_export_makes_the_folder_and_says_how_to_have_the_tokenizer(capsys: Capture, tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model(num_layers=1)
    path = gpt_checkpoints.write(tmp_path / "checkpoints", gpt, gpt_checkpoints.states_of(gpt))
    out = said(capsys, "export", path, "--to", "hf", tmp_path / "out")
    assert f"{tmp_path / 'out'}: the weights of {path}" in out
    assert "--tokenizer a/tokenizer.json" in out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_layer"] == 1
    assert "exists already" in refused(capsys, "export", path, "--to", "hf", tmp_path / "out")


def test_export_refuses_weights_that_are_not_as_they_were_written(capsys: Capture, tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model(num_layers=1)
    path = gpt_checkpoints.write(tmp_path / "checkpoints", gpt, gpt_checkpoints.states_of(gpt))
    piece = next(piece for _, state, piece, _ in index.read(path).pieces() if state == "weight")
    flip(path / index.data_file_name(piece.file), piece.offset)
    assert "token_embedding.weight's weight" in refused(capsys, "export", path, "--to", "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_import_makes_a_checkpoint_and_says_how_to_begin_from_it(capsys: Capture, tmp_path: Path) -> None:
    gpt = gpt_checkpoints.model(num_layers=1)
    path = gpt_checkpoints.write(tmp_path / "checkpoints", gpt, gpt_checkpoints.states_of(gpt))
    said(capsys, "export", path, "--to", "hf", tmp_path / "theirs")
    out = said(capsys, "import", tmp_path / "theirs", "--to", tmp_path / "ours")
    assert f"{tmp_path / 'ours' / 'step-0'}: the weights of {tmp_path / 'theirs'}, a GPT-2 of transformers, F32" in out
    assert f"--init-from {tmp_path / 'ours'}" in out and "--set model.num_layers=1" in out
    assert "whole" in said(capsys, "verify", tmp_path / "ours")
    assert "exists already" in refused(capsys, "import", tmp_path / "theirs", "--to", tmp_path / "ours")


def test_import_refuses_what_is_no_other_programs(capsys: Capture, run_dir: Path, tmp_path: Path) -> None:
    assert "needs no import" in refused(capsys, "import", run_dir, "--to", tmp_path / "ours")
    assert "there are no weights" in refused(capsys, "import", tmp_path / "nothing", "--to", tmp_path / "ours")


def test_another_form_is_refused(capsys: Capture, run_dir: Path, tmp_path: Path) -> None:
    assert "hf" in refused(capsys, "export", run_dir, "--to", "onnx", tmp_path / "out")


@pytest.mark.parametrize("verb", ["list", "inspect", "verify"])
def test_where_nothing_is_there_one_message_says_so(capsys: Capture, tmp_path: Path, verb: str) -> None:
    assert "there is no checkpoint" in refused(capsys, verb, tmp_path / "nothing")


@pytest.mark.parametrize("verb", ["inspect", "diff", "export"])
def test_a_damaged_index_is_one_message_that_names_it(
    capsys: Capture, run_dir: Path, tmp_path: Path, verb: str
) -> None:
    path = run_dir / "checkpoints" / "step-12"
    (path / index.INDEX_FILE).write_text("{}")
    more = {"inspect": [], "diff": [path], "export": ["--to", "hf", tmp_path / "out"]}[verb]
    assert str(path / index.INDEX_FILE) in refused(capsys, verb, path, *more)


def test_settings_of_a_strangers_checkpoint_are_shown_without_their_control_characters(
    capsys: Capture, run_dir: Path
) -> None:
    path = run_dir / "checkpoints" / "step-12"
    content = content_of(path)
    content["made_by"]["run"]["model"] = {"num_layers": "\x1b[2J\nresume     yes"}
    content["made_by"]["deepspeed"]["zero_optimization"] = {"stage": [9]}
    content["made_by"]["versions"] = {"torch": "\x1b]0;title\x07"}
    write_content(path, json.dumps(content).encode())
    for out in (said(capsys, "inspect", path), said(capsys, "list", run_dir)):
        assert "\x1b" not in out
        assert "\x07" not in out
    assert "\nresume     yes" not in said(capsys, "inspect", path)
    said(capsys, "inspect", path, "--ds", "zero1", "--nproc-per-node", "1", status=1)


def test_every_verb_has_its_help(capsys: Capture) -> None:
    for verb in ("list", "inspect", "verify", "diff", "export"):
        with pytest.raises(SystemExit):
            main(["checkpoint", verb, "--help"])
        assert f"dist_trainer checkpoint {verb}" in capsys.readouterr().out


def test_progress_is_shown_on_a_terminal_alone(capsys: Capture, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_LARGE_BYTES", 0)
    assert "whole" in said(capsys, "verify", run_dir)
