from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ranks import run
from small_disks import in_own_mounts
from tokenizers import Tokenizer

from dist_trainer.data.info import DatasetInfo, read_info
from dist_trainer.data.prepare import prepare
from dist_trainer.errors import EXIT_FAILURE, UserError
from dist_trainer.units import parse_bytes

Prepare = Callable[..., DatasetInfo]
Prose = Callable[[int, int], str]
END = "<|endoftext|>"


def texts_of(folder: Path, split: str) -> list[str]:
    info = read_info(folder)
    tokens = np.fromfile(folder / f"{split}.bin", dtype=info.dtype)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    assert text.endswith(END)
    return text.removesuffix(END).split(END)


def test_every_document_is_whole_in_one_of_the_two_splits(tmp_path: Path, prepare_text: Prepare, prose: Prose) -> None:
    documents = [prose(3, seed) for seed in range(200)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    info = prepare_text(tmp_path / "documents.jsonl")
    train, val = texts_of(tmp_path / "out", "train"), texts_of(tmp_path / "out", "val")
    assert sorted(train + val) == sorted(documents)
    assert train == [text for text in documents if text in set(train)]
    assert (info.num_documents, info.train.num_texts, info.val.num_texts) == (200, len(train), len(val))
    assert 0.05 < len(val) / 200 < 0.2


def test_one_long_document_is_held_out_by_stretches(tmp_path: Path, prepare_text: Prepare, prose: Prose) -> None:
    text = prose(8000, 0)
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    info = prepare_text(tmp_path / "book.txt")
    assert info.num_documents == 1
    held_out = texts_of(tmp_path / "out", "val")
    num_held_out = sum(len(stretch) for stretch in held_out)
    assert 2**15 <= num_held_out < 2**15 + 2**13
    # Each stretch lies between two of those that train holds, in the order of the book.
    rest = text
    for stretch in held_out:
        before, found, rest = rest.partition(stretch)
        assert found
        assert stretch.endswith("\n")
        assert not before or before in texts_of(tmp_path / "out", "train")
    assert num_held_out + sum(len(stretch) for stretch in texts_of(tmp_path / "out", "train")) == len(text)


def test_the_description_agrees_with_the_files(prepared: tuple[Path, DatasetInfo], text_folder: Path) -> None:
    folder, info = prepared
    assert read_info(folder) == info
    assert (info.vocab_size, info.dtype, info.end_of_text) == (300, "uint16", 0)
    counts: Counter[int] = Counter()
    for name, split in (("train.bin", info.train), ("val.bin", info.val)):
        data = (folder / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == split.sha256
        tokens = np.frombuffer(data, dtype="<u2")
        assert len(tokens) == split.num_tokens
        assert np.count_nonzero(tokens == 0) == split.num_texts
        assert tokens.max() <= info.max_token < info.vocab_size
        if name == "train.bin":
            counts.update(tokens.tolist())
    shares = [count / counts.total() for count in counts.values()]
    assert info.unigram_entropy_nats == pytest.approx(-sum(share * math.log(share) for share in shares))
    assert hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == info.tokenizer_sha256
    (source,) = info.sources
    sizes = [path.stat().st_size for path in text_folder.rglob("*.txt")]
    assert (source.suffix, source.num_files, source.num_bytes) == (".txt", 20, sum(sizes))


def test_the_same_inputs_give_the_same_bytes_wherever_they_are(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo], text_folder: Path
) -> None:
    moved = tmp_path / "elsewhere" / text_folder.name
    shutil.copytree(text_folder, moved)
    prepare([moved], tmp_path / "again", tokenizer=None, vocab_size=300, progress=False)
    files = sorted(path.name for path in prepared[0].iterdir())
    assert files == ["dataset.json", "tokenizer.json", "train.bin", "val.bin"]
    for name in files:
        assert (prepared[0] / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_given_tokenizer_is_used_and_copied(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo], text_folder: Path, prepare_text: Prepare
) -> None:
    tokenizer = prepared[0] / "tokenizer.json"
    info = prepare_text(text_folder, tokenizer=tokenizer, vocab_size=None)
    assert info == prepared[1]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == tokenizer.read_bytes()


def test_a_vocabulary_beyond_16_bits_is_stored_in_32(tmp_path: Path, prepare_text: Prepare, prose: Prose) -> None:
    tokenizer = Tokenizer.from_file(str(_byte_tokenizer(tmp_path, prose)))
    tokenizer.add_special_tokens([f"<extra-{number}>" for number in range(2**16)])
    tokenizer.save(str(tmp_path / "large.json"))
    (tmp_path / "text.txt").write_text("plain\n" * 1000 + "<extra-65535>" + "\nplain" * 1000)
    info = prepare_text(tmp_path / "text.txt", tokenizer=tmp_path / "large.json", vocab_size=None)
    assert (info.dtype, info.vocab_size, info.max_token) == ("uint32", 257 + 2**16, 256 + 2**16)
    assert (tmp_path / "out" / "train.bin").stat().st_size == 4 * info.train.num_tokens
    assert "<extra-65535>" in "".join(texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "val"))


def test_a_given_tokenizer_must_fit_the_vocabulary(
    prepared: tuple[Path, DatasetInfo], text_folder: Path, prepare_text: Prepare
) -> None:
    with pytest.raises(UserError, match="larger than the one asked for") as raised:
        prepare_text(text_folder, tokenizer=prepared[0] / "tokenizer.json", vocab_size=299)
    assert raised.value.found == 300


def test_a_tokenizer_or_a_vocabulary_size_must_be_given(text_folder: Path, prepare_text: Prepare) -> None:
    with pytest.raises(UserError, match="neither a tokenizer nor"):
        prepare_text(text_folder, vocab_size=None)


def test_too_little_text_to_hold_out_is_an_error_and_leaves_nothing(tmp_path: Path, prepare_text: Prepare) -> None:
    (tmp_path / "text.txt").write_text("one line\n")
    with pytest.raises(UserError, match="too little text"):
        prepare_text(tmp_path / "text.txt")
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(UserError, match="too little text"):
        prepare_text(tmp_path / "text.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_bad_input_is_named_and_leaves_nothing(tmp_path: Path, prepare_text: Prepare, prose: Prose) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text(prose(100, 0), encoding="utf-8")
    (text / "b.txt").write_bytes(b"abc\xff")
    with pytest.raises(UserError, match="not UTF-8") as raised:
        prepare_text(text)
    assert raised.value.where == str(text / "b.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_an_output_that_exists_is_kept(prepared: tuple[Path, DatasetInfo], text_folder: Path) -> None:
    folder, info = prepared
    with pytest.raises(UserError, match="exists already") as raised:
        prepare([text_folder], folder, tokenizer=None, vocab_size=300, progress=False)
    assert raised.value.where == str(folder)
    assert read_info(folder) == info


def test_a_literal_end_of_text_is_the_token(tmp_path: Path, prepare_text: Prepare, prose: Prose) -> None:
    (tmp_path / "stories.txt").write_text(END.join(prose(30, seed) for seed in range(6)), encoding="utf-8")
    info = prepare_text(tmp_path / "stories.txt")
    tokens = np.concatenate([np.fromfile(tmp_path / "out" / f"{name}.bin", dtype="<u2") for name in ("train", "val")])
    assert np.count_nonzero(tokens == info.end_of_text) == 5 + info.train.num_texts + info.val.num_texts


def test_progress_shows_both_passes(tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare([text_folder], tmp_path / "out", tokenizer=None, vocab_size=300, progress=True)
    shown = capsys.readouterr().err
    size = sum(path.stat().st_size for path in text_folder.rglob("*.txt")) / 1000
    for description in ("reading", "encoding"):
        assert re.search(rf"{description}.*{size:.1f}/{size:.1f} kB", shown)


def _byte_tokenizer(tmp_path: Path, prose: Prose) -> Path:
    (tmp_path / "seed.txt").write_text(prose(100, 0), encoding="utf-8")
    prepare([tmp_path / "seed.txt"], tmp_path / "seed", tokenizer=None, vocab_size=257, progress=False)
    return tmp_path / "seed" / "tokenizer.json"


def test_what_is_left_out_is_told_before_anything_is_read(tmp_path: Path, text_folder: Path) -> None:
    told: list[str] = []
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "old.gz").write_bytes(b"")
    with pytest.raises(UserError, match="not UTF-8"):
        prepare(
            [tmp_path, text_folder, text_folder],
            tmp_path / "out",
            tokenizer=None,
            vocab_size=300,
            progress=False,
            tell=told.append,
        )
    assert "1 .gz" in "".join(told) and "read once" in "".join(told)


def test_an_input_named_twice_gives_the_same_bytes_as_once(
    tmp_path: Path, prepared: tuple[Path, DatasetInfo], text_folder: Path
) -> None:
    info = prepare([text_folder, text_folder], tmp_path / "out", tokenizer=None, vocab_size=300, progress=False)
    assert info == prepared[1]


def test_a_full_disk_is_told_with_the_bytes_that_the_tokens_need(tmp_path: Path, prose: Prose) -> None:
    (tmp_path / "book.txt").write_text(prose(30_000, 0), encoding="utf-8")
    command = [sys.executable, "-m", "dist_trainer", "data", "prepare", "--vocab-size", "300", "--input", "book.txt"]
    whole = run([*command, "--output", "whole"], cwd=tmp_path)
    assert whole.status == 0, whole.output
    ended = in_own_mounts(
        'mount -t tmpfs -o size=300k tmpfs /mnt && exec "$@"', [*command, "--output", "/mnt/out"], cwd=tmp_path
    )
    assert ended.status == EXIT_FAILURE
    assert "the output cannot be written: the disk is full" in ended.output
    needed = re.search(r"expected: room for (.*)", ended.output)
    assert needed is not None, ended.output
    num_bytes = sum((tmp_path / "whole" / f"{split}.bin").stat().st_size for split in ("train", "val"))
    assert parse_bytes(needed[1]) == pytest.approx(num_bytes, rel=0.05)
