from __future__ import annotations

import pytest

from dist_trainer.errors import UserError
from dist_trainer.memory.gpus import _CARDS, WORKSPACE_BYTES, cublas_workspace_bytes, find_gpu, has_bf16, speeds
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


def test_of_the_table_the_cards_from_ampere_on_have_bf16() -> None:
    without = {"gtx1080ti", "p100-16g", "rtx2080ti", "t4", "titanrtx", "v100-16g", "v100-32g"}
    assert {name for name in _CARDS if not has_bf16(name)} == without


@pytest.mark.parametrize(
    "name",
    [
        *("Tesla K80", "Tesla M40", "Tesla P4", "Tesla P40", "Tesla P100-PCIE-16GB", "NVIDIA GeForce GT 1030"),
        *("GTX 1080 Ti", "NVIDIA GeForce GTX 1660", "Quadro P6000", "NVIDIA TITAN V", "TITAN X (Pascal)"),
        *("Tesla V100-SXM2-16GB", "Quadro GV100", "Tesla T4", "NVIDIA T1000", "NVIDIA GeForce RTX 2060 SUPER"),
        *("Quadro RTX 4000", "Quadro RTX 6000", "Quadro RTX 8000", "TITAN RTX"),
    ],
)
def test_cards_before_ampere_have_no_bf16(name: str) -> None:
    assert not has_bf16(name)


@pytest.mark.parametrize(
    "name",
    [
        *("rtx3090", "NVIDIA GeForce RTX 2050", "NVIDIA RTX A6000", "NVIDIA A2", "NVIDIA A10G", "h100", "l4"),
        *("NVIDIA RTX 2000 Ada Generation", "NVIDIA RTX 4000 SFF Ada Generation", "NVIDIA RTX 6000 Ada Generation"),
        *("rtx4090", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA B200", "mi300x", None),
    ],
)
def test_cards_from_ampere_on_and_those_not_known_have_bf16(name: str | None) -> None:
    assert has_bf16(name)


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        *(("NVIDIA H100 80GB HBM3", 32 * MIB), ("NVIDIA GH200 480GB", 32 * MIB), ("NVIDIA B200", 32 * MIB)),
        *(("NVIDIA GeForce RTX 5090", 32 * MIB), ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 32 * MIB)),
        *(("NVIDIA RTX 5000 Ada Generation", WORKSPACE_BYTES), ("Quadro RTX 5000", WORKSPACE_BYTES)),
        *(("A100-SXM4-40GB", WORKSPACE_BYTES), ("NVIDIA GeForce RTX 4090", WORKSPACE_BYTES), (None, WORKSPACE_BYTES)),
    ],
)
def test_hopper_and_blackwell_have_the_larger_cublas_workspace(name: str | None, num_bytes: int) -> None:
    assert cublas_workspace_bytes(name) == num_bytes
