from __future__ import annotations

import pytest

from dist_trainer.errors import UserError
from dist_trainer.memory.gpus import _CARDS, find_gpu, has_bf16, speeds
from dist_trainer.units import GB, MIB


@pytest.mark.parametrize("name", ["rtx3090", "RTX 3090", "NVIDIA GeForce RTX 3090", "rtx-3090"])
def test_a_card_is_found_in_any_spelling(name: str) -> None:
    assert find_gpu(name) == ("rtx3090", 24576 * MIB)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100-32g"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA RTX A6000", "a6000"),
        ("h100", "h100-80g"),
        ("RTX_3060", "rtx3060-12g"),
    ],
)
def test_a_card_is_found_as_its_driver_writes_it(name: str, listed: str) -> None:
    assert find_gpu(name).name == listed


@pytest.mark.parametrize(("name", "near"), [("a100", ["a100-40g", "a100-80g"]), ("rtx3080ti", ["rtx3080-10g"])])
def test_an_unknown_card_is_refused_with_its_neighbours(name: str, near: list[str]) -> None:
    with pytest.raises(UserError) as error:
        find_gpu(name)
    assert all(one in str(error.value) for one in near)
    assert "--gpu-memory" in str(error.value)


@pytest.mark.parametrize("name", ["", "NVIDIA", "mi300x"])
def test_what_is_near_nothing_is_refused_with_the_whole_table(name: str) -> None:
    with pytest.raises(UserError) as error:
        find_gpu(name)
    assert "rtx4090" in str(error.value)


def test_every_card_is_plausible() -> None:
    for name in _CARDS:
        card, speed = find_gpu(name), speeds(name)
        assert card.name == name
        assert 10 * GB < card.num_bytes < 200 * GB
        assert speed is not None
        assert speed.half_flops_per_s >= speed.single_flops_per_s > 1e12
        assert 1e11 < speed.memory_bytes_per_s < 1e13


def test_what_is_not_known_of_a_card_stays_unknown() -> None:
    assert speeds(None) is None
    assert speeds("mi300x") is None


@pytest.mark.parametrize("name", ["t4", "Tesla V100-SXM2-16GB", "rtx2080ti", "GTX 1080 Ti"])
def test_cards_before_ampere_have_no_bf16(name: str) -> None:
    assert not has_bf16(name)


@pytest.mark.parametrize("name", ["rtx3090", "h100", "rtx4090", "l4", "a10", None])
def test_cards_from_ampere_on_have_bf16(name: str | None) -> None:
    assert has_bf16(name)
