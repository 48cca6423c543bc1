from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpt_checkpoints import states_of, write

from dist_trainer.checkpoints.index import DataFacts
from dist_trainer.cli.main import main
from dist_trainer.model.gpt import GPT
from dist_trainer.sample.show import LiveText
from dist_trainer.sample.tokenizer import of_checkpoint
from dist_trainer.sample.weights import find_whole

PROMPT = "the loss"


@pytest.fixture
def run_dir(tmp_path: Path, trained: GPT, data: dict[str, DataFacts]) -> Path:
    write(tmp_path / "run" / "checkpoints", trained, states_of(trained), step=3, data=data)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `one_thread`, where the command itself sets them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def sampled(capsys: pytest.CaptureFixture[str], run_dir: Path, *switches: str) -> tuple[str, str]:
    assert main(["sample", str(run_dir), "--max-tokens", "9", *switches]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["sample", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("dist_trainer: error: ")
    return captured.err


def test_the_text_is_on_stdout_and_the_speed_on_stderr(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = sampled(capsys, run_dir, "--prompt", PROMPT)
    assert out.startswith(PROMPT) and out.endswith("\n")
    assert err.startswith("step-3: ") and " token" in err and err.endswith(" tokens/s\n") and err.count("\n") == 1


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = ("--seed", "5", "--json")
    alone, other_seed, together = (
        json.loads(sampled(capsys, run_dir, *switches)[0])["samples"]
        for switches in (
            ("--prompt", PROMPT, *seed),
            ("--prompt", PROMPT, "--seed", "6", "--json"),
            ("--prompt", "a step", "--prompt", PROMPT, "--prompt", "", *seed),
        )
    )
    assert [one["prompt"] for one in together] == ["a step", PROMPT, ""]
    assert alone[0] == together[1] != other_seed[0]
    assert len(alone[0]["tokens"]) == 9 and not alone[0]["has_ended"]


def test_several_prompts_are_numbered_and_a_file_has_one_a_line(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").write_text("a step\nünder\n", encoding="utf-8")
    out, _ = sampled(capsys, run_dir, "--prompt", PROMPT, "--prompts", str(tmp_path / "prompts"), "--temperature", "0")
    for number, prompt in enumerate((PROMPT, "a step", "ünder"), start=1):
        assert f"--- prompt {number}\n{prompt}" in out


def test_ids_in_are_ids_out_and_need_no_tokenizer(
    tmp_path: Path, trained: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, trained, states_of(trained), step=3, data={})
    out, _ = sampled(capsys, folder, "--tokens", "1 2 3", "--tokens", "299,7", "--temperature", "0")
    assert [len(line.split()) for line in out.splitlines()] == [9, 9]
    with torch.no_grad():
        likeliest = int(trained(torch.tensor([[1, 2, 3]]))[0, -1].argmax())
    assert int(out.split()[0]) == likeliest
    assert "not a token of the model" in refused(capsys, str(folder), "--tokens", "1 300")
    assert "there is no token" in refused(capsys, str(folder), "--tokens", " ")
    assert "--tokenizer FILE" in refused(capsys, str(folder))


def test_a_prompt_longer_than_the_context_is_told_and_its_last_tokens_are_read(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [str(number) for number in range(20)]
    out, err = sampled(capsys, run_dir, "--tokens", " ".join(tokens), "--seed", "1")
    assert "notice     prompt 1 has 20 tokens, and the model's context 16: the last 16 are read\n" in err
    assert sampled(capsys, run_dir, "--tokens", " ".join(tokens[4:]), "--seed", "1")[0] == out


def test_without_a_prompt_it_is_a_text_from_its_beginning(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sampled(capsys, run_dir)[0] == sampled(capsys, run_dir, "--prompt", "")[0]


def test_mistakes_are_one_message_with_status_2(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(run_dir)
    assert "no checkpoint to sample from" in refused(capsys, str(tmp_path / "nowhere"))
    assert "the prompts cannot be read" in refused(capsys, run, "--prompts", str(tmp_path / "none"))
    (tmp_path / "empty").touch()
    assert "there is no prompt" in refused(capsys, run, "--prompts", str(tmp_path / "empty"))
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    assert "are not UTF-8" in refused(capsys, run, "--prompts", str(tmp_path / "bytes"))
    assert "a prompt is not UTF-8" in refused(capsys, run, "--prompt", "a\udcff")
    assert "text or ids" in refused(capsys, run, "--prompt", "a", "--tokens", "1")
    assert "from 0 up" in refused(capsys, run, "--temperature", "-1")
    assert "from 0 up" in refused(capsys, run, "--temperature", "nan")
    assert "above 0" in refused(capsys, run, "--top-k", "0")
    if not torch.cuda.is_available():
        assert "no GPU" in refused(capsys, run, "--device", "cuda")


def test_a_damaged_checkpoint_is_refused_by_name(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run_dir / "checkpoints" / "step-3" / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 128
    file.write_bytes(content)
    for path in (run_dir, run_dir / "checkpoints" / "step-3"):
        error = refused(capsys, str(path))
        assert "cannot be sampled from" in error and file.name in error and "checksum" in error


def test_what_a_model_says_is_shown_and_not_obeyed_by_the_terminal(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = sampled(capsys, run_dir, "--prompt", "\x1b[2J", "--temperature", "9", "--max-tokens", "200")
    assert out.startswith("\\x1b[2J") and not any(ord(character) < 9 or ord(character) == 27 for character in out)


def test_a_text_is_printed_as_it_comes_with_whole_characters(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = of_checkpoint(find_whole(run_dir)[0], vocab_size=300)
    tokens = vocabulary.encode("数🙂ü!")
    before = vocabulary.encode(PROMPT)
    live = LiveText(vocabulary, PROMPT, before)
    shown = [capsys.readouterr().out]
    for token in tokens:
        live.add(token)
        shown.append(capsys.readouterr().out)
    assert "".join(shown) == f"{PROMPT}数🙂ü!" and shown[1:3] == ["", ""] and "数" in shown
    live.add(vocabulary.encode("数")[0])
    live.end()
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}\n"


def test_on_a_terminal_it_is_the_same_text(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    switches = ["--max-tokens", "9", "--prompt", PROMPT, "--seed", "4"]
    out, _ = sampled(capsys, run_dir, *switches)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dist_trainer", "sample", str(run_dir), *switches]
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    # A pseudo terminal of no columns is taken for Open MPI's.
    subprocess.run(["stty", "cols", "200", "rows", "24", "-onlcr"], stdin=theirs, check=True)
    answer = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=environ, timeout=300, check=True)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass
    os.close(ours)
    assert shown.decode() == out
    assert answer.stderr.startswith(b"step-3: ")
