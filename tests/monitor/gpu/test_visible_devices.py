from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.monitor.gpu.devices import Gpu, MigInstance
from dist_trainer.monitor.gpu.visible import visible_devices

A, B, C = "GPU-aaaa0000-1", "GPU-aabb0000-2", "GPU-cccc0000-3"
MIG_1, MIG_2 = "MIG-11110000-1", "MIG-22220000-2"


def gpu(index: int, uuid: str, name: str = "NVIDIA A100", instances: tuple[MigInstance, ...] = ()) -> Gpu:
    return Gpu(index, uuid, f"00000000:{index:02X}:00.0", name, instances)


ALIKE = (gpu(0, A), gpu(1, B), gpu(2, C))
UNLIKE = (gpu(0, A), gpu(1, B, "NVIDIA T4"), gpu(2, C))
DIVIDED = (gpu(0, A), gpu(1, B, instances=(MigInstance(MIG_1, 1, 0), MigInstance(MIG_2, 2, 0))))


def seen(gpus: tuple[Gpu, ...], **environ: str) -> list[str]:
    return [device.uuid for device in visible_devices(gpus, environ).devices]


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        ("0,1,2", [A, B, C]),
        ("2,0", [C, A]),
        (" 1 , 2 ", [B, C]),
        ("1", [B]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", [A]),
        ("0,3,1", [A]),
        ("3", []),
        ("0,x,1", [A]),
        ("1gpu,2b", [B, C]),
        ("0,0", []),
        ("1,2,1", []),
        (C, [C]),
        (f"{C},{A}", [C, A]),
        ("GPU-c,GPU-aaa", [C, A]),
        ("GPU-CCCC", [C]),
        ("GPU-aa", []),
        (f"{C},GPU-aa,{A}", [C]),
        (f"{C},GPU-nowhere,{A}", [C]),
        (f"{C},{C}", []),
        (f"{C},GPU-c", []),
        (f"{C},0", [C]),
        (f"0,{C}", [A]),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(text: str, uuids: list[str]) -> None:
    assert seen(ALIKE, CUDA_VISIBLE_DEVICES=text) == uuids


def test_without_a_list_all_gpus_are_seen() -> None:
    assert seen(ALIKE) == [A, B, C]
    assert visible_devices(ALIKE, {}).problem is None


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        (MIG_2, [MIG_2]),
        ("MIG-2222", [MIG_2]),
        (f"MIG-{B}/1/0", [MIG_1]),
        (f"MIG-{B}/1/1", []),
        (f"{MIG_2},{MIG_1}", [MIG_2, MIG_1]),
        ("MIG-nowhere", []),
        (f"{MIG_1},{A}", [MIG_1]),
        (B, [MIG_1, MIG_2]),
        ("1", [MIG_1, MIG_2]),
        ("0", [A]),
    ],
)
def test_mig_instances_are_named_by_uuid_or_by_gpu_and_numbers(text: str, uuids: list[str]) -> None:
    assert seen(DIVIDED, CUDA_VISIBLE_DEVICES=text) == uuids


def test_numbers_are_of_pci_order_where_that_is_asked_for() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "2,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    visible = visible_devices(UNLIKE, environ)
    assert ([device.uuid for device in visible.devices], visible.problem) == ([C, B], None)


@pytest.mark.parametrize("environ", [{}, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}], ids=["default", "said"])
def test_numbers_of_gpus_that_differ_are_not_guessed(environ: dict[str, str]) -> None:
    visible = visible_devices(UNLIKE, {"CUDA_VISIBLE_DEVICES": "0", **environ})
    assert [device.uuid for device in visible.devices] == [A, B, C]
    assert visible.problem is not None and "CUDA_DEVICE_ORDER=PCI_BUS_ID" in visible.problem


def test_uuids_are_certain_also_where_the_gpus_differ() -> None:
    visible = visible_devices(UNLIKE, {"CUDA_VISIBLE_DEVICES": f"{C},{B}"})
    assert ([device.uuid for device in visible.devices], visible.problem) == ([C, B], None)


def test_all_gpus_that_differ_are_seen_and_their_order_is_said_to_be_unknown() -> None:
    visible = visible_devices(UNLIKE, {})
    assert [device.uuid for device in visible.devices] == [A, B, C]
    assert visible.problem is not None


def test_a_number_beyond_the_gpus_shows_none_in_any_order() -> None:
    visible = visible_devices(UNLIKE, {"CUDA_VISIBLE_DEVICES": "7"})
    assert (visible.devices, visible.problem) == ((), None)


@given(st.text(alphabet="0123456789,-GPUMIabc/ ", max_size=30))
def test_any_text_gives_devices_of_this_host_each_at_most_once(text: str) -> None:
    uuids = seen(ALIKE, CUDA_VISIBLE_DEVICES=text)
    assert len(set(uuids)) == len(uuids)
    assert set(uuids) <= {A, B, C}
