"""What an index must say even if its digest is right, and what reading one may cost."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import checkpoint, content_of, made, position, write_content, write_ranks_files

from dist_trainer.checkpoints import index
from dist_trainer.checkpoints.damage import DamageError
from dist_trainer.checkpoints.index import INDEX_FILE, WEIGHT
from dist_trainer.errors import RunError

FIRST_PIECE = "parameters/wte.weight/states/weight/pieces/0"
SECOND_PIECE = "parameters/wte.weight/states/weight/pieces/1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path, 8)


def rewrite(folder: Path, path: str, value: Any) -> None:
    """One value of the index changed (for ... removed), and the digest that belongs to it."""
    content: Any = content_of(folder)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    inner = content
    for name in parents:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    write_content(folder, json.dumps(content).encode())


def refusal(folder: Path) -> str:
    with pytest.raises(DamageError) as caught:
        index.read(folder)
    assert caught.value.file == folder / INDEX_FILE
    return caught.value.problem


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_ranks_files(tmp_path, 8)
    index.write(tmp_path, written)
    found = index.read(tmp_path)
    assert found == written
    assert (found.position, found.made_by) == (position(8), made())
    assert found.states == ["exp_avg"]
    assert found.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_it_is_json_that_any_tool_can_read(folder: Path) -> None:
    whole = json.loads((folder / INDEX_FILE).read_text())
    assert list(whole) == ["content", "sha256"]
    assert whole["content"]["position"]["step"] == 8


def test_data_may_lie_where_the_name_is_no_utf8(tmp_path: Path) -> None:
    data = dataclasses.replace(made().data["short"], path="a\udcff/train.bin")
    folder = checkpoint(tmp_path, 8, made_by=made(data={"short": data}))
    assert index.read(folder).made_by.data["short"] == dataclasses.replace(data, path="a\\xff/train.bin")


def test_any_byte_that_is_changed_is_found(folder: Path) -> None:
    file = folder / INDEX_FILE
    good = file.read_bytes()
    for place in (*range(0, len(good), 11), *range(len(good) - 80, len(good))):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        refusal(folder)


def test_anything_cut_off_or_added_is_found(folder: Path) -> None:
    file = folder / INDEX_FILE
    good = file.read_bytes()
    for length in (*range(90), *range(90, len(good), 17), len(good) - 2, len(good) - 1):
        file.write_bytes(good[:length])
        refusal(folder)
    for added in (b"\n", b"{}", good):
        file.write_bytes(good + added)
        refusal(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("position/step", -8),
        ("position/step", 9),
        ("position/step", float("nan")),
        ("position/step", "8"),
        ("position/step", True),
        ("position/step", 8.0),
        ("position/step", 10**4000),
        ("position/phases/short/tokens", -1),
        ("position/phases/short/tokens", 2**60),
        ("position/phases/short/steps", None),
        ("position/phases", {}),
        ("position/places/f00", {"epoch": 0, "tokens": 0, "sequence_length": 0}),
        ("position/places/f00", {"epoch": 0, "tokens": 0, "sequence_length": 2**70}),
        ("position/places/f00", {"epoch": -1, "tokens": 0, "sequence_length": 8}),
    ],
)
def test_a_position_that_cannot_be_is_refused(folder: Path, path: str, value: Any) -> None:
    rewrite(folder, path, value)
    assert "position" in refusal(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("made_by", []),
        ("made_by/world_size", None),
        ("made_by/world_size", -1),
        ("made_by/run", []),
        ("made_by/deepspeed", "zero2"),
        ("made_by/data/short/num_tokens", "many"),
        ("counters", None),
        ("counters/steps", -1),
        ("counters/samples", 2**60),
        ("counters/optimizer/step", float("nan")),
        ("counters/optimizer/step", float("inf")),
        ("counters/loss_scaler/cur_scale", float("-inf")),
        ("counters/loss_scaler/cur_scale", "65536"),
        ("counters/skipped_steps", ...),
        ("random", {}),
        ("random/0", "AAEC"),
        ("random/0/cpu", 7),
        ("files/0/num_bytes", -1),
        ("files/0/num_bytes", 1e3),
        ("files/0/header_bytes", 2**64),
        ("files/0/header_checksum", None),
        ("files", {"0": 1}),
        ("parameters", []),
        ("parameters/wte.weight/shape", [-9, -8]),
        ("parameters/wte.weight/shape", [9.0, 8]),
        ("parameters/wte.weight/shape", [1] * 65),
        ("parameters/wte.weight/states/weight/dtype", "F8_E4M3"),
        ("parameters/wte.weight/states/weight/dtype", "object"),
        ("parameters/wte.weight/states/weight/dtype", None),
        (f"{FIRST_PIECE}/offset", -160),
        (f"{FIRST_PIECE}/offset", 2**60),
        (f"{FIRST_PIECE}/file", -1),
        (f"{FIRST_PIECE}/start", -1),
        (f"{FIRST_PIECE}/stop", ...),
        (f"{FIRST_PIECE}/checksum", 0),
    ],
)
def test_what_is_of_another_kind_is_refused_by_its_key(folder: Path, path: str, value: Any) -> None:
    rewrite(folder, path, value)
    assert "is not a checkpoint's index: " + ".".join(path.split("/")) in refusal(folder)


def test_more_steps_skipped_than_taken_are_refused(folder: Path) -> None:
    rewrite(folder, "counters/skipped_steps", 9)
    assert "has a position that cannot be" in refusal(folder)


@pytest.mark.parametrize(
    "states", [{}, {"cuda": "AAEC"}, {"cpu": ""}, {"cpu": "!!"}, {"cpu": "AAEC", "cuda": "AAE\u00e9"}]
)
def test_a_random_state_that_is_none_is_refused(folder: Path, states: dict[str, str]) -> None:
    rewrite(folder, "random/1", states)
    assert "random state of rank 1" in refusal(folder)


@pytest.mark.parametrize("version", [0, 2, 2**80, "1", None, [], "\x1b[31m"])
def test_another_version_is_told_even_where_all_else_is_another(folder: Path, version: Any) -> None:
    write_content(folder, json.dumps({"version": version, "position": "elsewhere"}).encode())
    problem = refusal(folder)
    assert "this dist_trainer reads version 1" in problem and problem.isprintable()
    if isinstance(version, int):
        checkpoint(folder.parent, 8)
        rewrite(folder, "version", version)
        assert f"version {version}" in refusal(folder) or "index: version" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../latest",
        "/etc/hostname",
        "",
        ".",
        "index.json",
        "no\0name",
        "x" * 300,
        "rank-0.safetensors",
        "rank-00000.safetensors\n",
        "sub/rank-00000.safetensors",
        "rank-0000\u0661.safetensors",
    ],
)
def test_a_file_that_is_none_of_a_checkpoint_is_refused(folder: Path, name: str) -> None:
    rewrite(folder, "files/0/name", name)
    problem = refusal(folder)
    assert "names a file that is none of a checkpoint" in problem
    assert len(problem) < 200 and problem.isprintable()


def test_one_file_twice_or_none_is_refused(folder: Path) -> None:
    rewrite(folder, "files/1/name", "rank-00000.safetensors")
    assert "names one file twice" in refusal(folder)
    rewrite(folder, "files", [])
    assert "names no file" in refusal(folder)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        # Of the elements of a parameter.
        (f"{FIRST_PIECE}/start", 1, "wte.weight's weight lies, from element 0 on"),
        (f"{FIRST_PIECE}/stop", 41, "wte.weight's weight lies, from element 41 on"),
        (f"{FIRST_PIECE}/stop", 43, "wte.weight's weight lies, from element 43 on"),
        (f"{FIRST_PIECE}/stop", 0, "wte.weight's weight lies, from element 0 on"),
        (f"{SECOND_PIECE}/stop", 73, "wte.weight's weight lies, from element 73 on"),
        (SECOND_PIECE, ..., "wte.weight's weight lies, from element 42 on"),
        ("parameters/wte.weight/states/exp_avg/pieces", [], "wte.weight's exp_avg lies, from element 0 on"),
        ("parameters/wte.weight/shape", [9, 9], "wte.weight's weight lies, from element 72 on"),
        ("parameters/wte.weight/shape", [2**59, 2**59], "wte.weight's weight lies, from element 72 on"),
        ("parameters/wte.weight/states/weight", ..., "has no weight of wte.weight"),
        ("parameters/wte.weight/states", {}, "has no weight of wte.weight"),
        # Of the bytes of a file.
        (f"{FIRST_PIECE}/file", 2, "places wte.weight's weight where no file is"),
        (f"{FIRST_PIECE}/file", 2**59, "places wte.weight's weight where no file is"),
        (f"{FIRST_PIECE}/offset", 0, "what lies in rank-00000.safetensors, from byte 0 on"),
        (f"{FIRST_PIECE}/offset", 164, "what lies in rank-00000.safetensors, from byte 160 on"),
        (f"{FIRST_PIECE}/offset", 328, "what lies in rank-00000.safetensors, from byte 160 on"),
        (f"{FIRST_PIECE}/offset", 2**59, "what lies in rank-00000.safetensors, from byte 160 on"),
        ("parameters/wte.weight/states/weight/dtype", "F64", "what lies in rank-00000.safetensors, from byte 328 on"),
        ("parameters/wte.weight/states/weight/dtype", "BF16", "what lies in rank-00000.safetensors, from byte 244 on"),
        ("parameters/head.bias", ..., "what lies in rank-00001.safetensors, from byte 616 on"),
        ("files/0/header_bytes", 152, "what lies in rank-00000.safetensors, from byte 152 on"),
        ("files/0/header_bytes", 168, "what lies in rank-00000.safetensors, from byte 160 on"),
        ("files/0/num_bytes", 500, "places 496 bytes in rank-00000.safetensors, which has 500"),
        ("files/0/num_bytes", 492, "places 496 bytes in rank-00000.safetensors, which has 492"),
    ],
)
def test_every_element_and_every_byte_lies_in_one_place(folder: Path, path: str, value: Any, said: str) -> None:
    rewrite(folder, path, value)
    assert said in refusal(folder)


def test_two_parameters_cannot_share_their_bytes(folder: Path) -> None:
    weight = content_of(folder)["parameters"]["ln.weight"]["states"][WEIGHT]
    rewrite(folder, "parameters/ln.weight/states/exp_avg", weight)
    assert "what lies in rank-00001.safetensors, from byte 584 on" in refusal(folder)


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nnotice     all is well", "", "x" * 501, "\u202etxt"])
@pytest.mark.parametrize("where", ["parameters", "parameters/ln.weight/states"])
def test_a_name_that_a_terminal_would_obey_is_refused_and_not_shown(folder: Path, name: str, where: str) -> None:
    rewrite(folder, f"{where}/{'ln.weight' if where == 'parameters' else 'exp_avg'}", ...)
    rewrite(folder, f"{where}/{name}", {})
    problem = refusal(folder)
    assert "\x1b" not in problem and "\u202e" not in problem and len(problem) < 1200


def test_what_is_said_last_holds_of_a_key_that_is_there_twice(folder: Path) -> None:
    content = json.dumps(content_of(folder))
    write_content(folder, content.replace('"position": {', '"position": {"step": 7, ', 1).encode())
    assert index.read(folder).position.step == 8
    write_content(folder, content.replace('"step": 8, ', '"step": 8, "step": 7, ', 1).encode())
    assert "position" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"NaN",
        b"1",
        b"9" * 100_000,
        b"1e999999",
        b'"content"',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"made_by": {"run": ' + b'{"a":' * 5000 + b"1" + b"}" * 5002,
        b"\xff\xfe",
        b'{"version": "\\ud800"}',
    ],
    ids=range(15),
)
def test_what_is_no_index_is_refused(folder: Path, content: bytes) -> None:
    write_content(folder, content)
    assert "is not a checkpoint's index" in refusal(folder) or "version" in refusal(folder)
    (folder / INDEX_FILE).write_bytes(content)
    assert refusal(folder) == "is not a checkpoint's index"


def test_values_of_a_run_that_are_nested_without_end_are_refused(folder: Path) -> None:
    content = json.dumps(content_of(folder)).replace('"seed": 1', '"seed": ' + "[" * 3000 + "]" * 3000)
    write_content(folder, content.encode())
    refusal(folder)


def many_pieces(content: dict[str, Any]) -> None:
    content["parameters"]["ln.weight"]["states"]["weight"]["pieces"] = [[]] * 30_000


def piece_after_piece(content: dict[str, Any]) -> None:
    piece = {"file": 0, "stop": 0, "offset": 160, "checksum": ""}
    pieces = [{**piece, "start": element, "stop": element + 1} for element in range(5_000)]
    content["parameters"]["ln.weight"]["states"]["weight"]["pieces"] = pieces


def many_dimensions(content: dict[str, Any]) -> None:
    content["parameters"]["ln.weight"]["shape"] = [2**59] * 30_000


def many_parameters(content: dict[str, Any]) -> None:
    content["parameters"] |= {f"p{number}": 0 for number in range(20_000)}


def long_key(content: dict[str, Any]) -> None:
    content["parameters"]["p" * 1_000_000] = 0


def many_files(content: dict[str, Any]) -> None:
    content["files"] = [0] * 100_000


@pytest.mark.parametrize(
    "damage", [many_pieces, piece_after_piece, many_dimensions, many_parameters, long_key, many_files]
)
def test_a_large_one_that_is_wrong_takes_memory_by_its_size_and_a_short_message(
    folder: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    content = content_of(folder)
    damage(content)
    write_content(folder, json.dumps(content).encode())
    del content
    num_bytes = (folder / INDEX_FILE).stat().st_size
    index.read(checkpoint(folder.parent, 4))
    tracemalloc.start()
    try:
        problem = refusal(folder)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(problem) < 1200
    assert peak_bytes < 30 * num_bytes


def test_one_that_would_fill_the_memory_is_not_read(folder: Path) -> None:
    with (folder / INDEX_FILE).open("ab") as file:
        file.truncate(2**40)
    assert refusal(folder) == "is too large"


def linked_out(file: Path) -> None:
    file.rename(file.parents[1] / "elsewhere")
    file.symlink_to(file.parents[1] / "elsewhere")


def linked_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def as_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def as_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "is missing"),
        (linked_out, "is a link that leads out"),
        (linked_to_itself, "cannot be read"),
        (as_fifo, "is not a regular file"),
        (as_device, "is not a regular file"),
        (as_folder, "is not a regular file"),
    ],
)
def test_only_a_regular_file_of_the_folder_is_read(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder / INDEX_FILE)
    assert said in refusal(folder)


def test_an_index_may_be_a_link_within_its_folder(folder: Path) -> None:
    (folder / INDEX_FILE).rename(folder / "kept")
    (folder / INDEX_FILE).symlink_to("kept")
    assert index.read(folder).position == position(8)


def test_no_mutation_with_its_own_digest_is_anything_but_read_or_refused(folder: Path) -> None:
    good = json.dumps(content_of(folder)).encode()
    chance = random.Random(1)
    num_read = 0
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            start = chance.randint(0, len(bad))
            bad[start : start + chance.randint(0, 4)] = chance.choice(
                (b"9", b"-", b"null", b"[]", b"{}", b'"', b"", b"1e9", b"\xc3", b"NaN")
            )
        write_content(folder, bytes(bad))
        try:
            index.read(folder)
            num_read += 1
        except DamageError as damage:
            assert len(str(damage)) < 2000
    assert num_read < 400


def test_an_index_that_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path, 8)
    whole = index.read(folder)
    (folder / INDEX_FILE).unlink()
    monkeypatch.setattr(index, "_MAX_BYTES", 100)
    with pytest.raises(RunError, match="too large to be read again"):
        index.write(folder, whole)
    assert not (folder / INDEX_FILE).exists()
