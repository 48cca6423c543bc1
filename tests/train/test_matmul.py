"""In what precision fp32 matrices are multiplied: what was asked, what the device has, and what a person is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ranks
import torch

from dist_trainer.config.adapt import ANY_DEVICE, DeviceFacts
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import ResolvedRun, resolve
from dist_trainer.train.matmul import choose, fast_here, set_in_torch

A_CPU = DeviceFacts(kind="cpu", supports_bf16=True, supports_fp16=False, has_compiler=True, name="CPU")


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., ResolvedRun]:
    config = str(ranks.mini_config(tmp_path))

    def make(matmul: str, precision: str = "fp32") -> ResolvedRun:
        switches = Switches(precision=precision)  # type: ignore[arg-type]
        request = Request(config=config, ds="baseline", settings=(f"matmul={matmul}",), switches=switches)
        return resolve(request, world_size=1, device=ANY_DEVICE)

    return make


@pytest.fixture(autouse=True)
def fp32_again() -> Iterator[None]:
    yield
    set_in_torch("fp32")


@pytest.mark.parametrize(
    ("matmul", "fast", "in_force"),
    [
        ("fp32", "bf32", "fp32"),
        ("bf32", "bf32", "bf32"),
        ("tf32", "tf32", "tf32"),
        ("auto", "tf32", "tf32"),
        ("auto", "bf32", "bf32"),
        ("auto", None, "fp32"),
    ],
)
def test_what_was_asked_runs_where_the_device_has_it(
    matmul: str, fast: str | None, in_force: str, asked: Callable[..., ResolvedRun]
) -> None:
    assert choose(asked(matmul), A_CPU, fast) == (in_force, None)  # type: ignore[arg-type]


def test_what_the_device_has_not_is_said_and_fp32_runs(asked: Callable[..., ResolvedRun]) -> None:
    assert choose(asked("tf32"), A_CPU, "bf32") == (
        "fp32",
        "matmul tf32 is not supported by CPU: fp32 runs instead",
    )


def test_with_16_bit_weights_it_is_said_to_do_nothing(asked: Callable[..., ResolvedRun]) -> None:
    assert choose(asked("bf32", "bf16"), A_CPU, "bf32") == (
        "fp32",
        "matmul bf32 does nothing: weights and activations are bf16, not fp32",
    )
    assert choose(asked("auto", "bf16"), A_CPU, "bf32") == ("fp32", None)


def test_nothing_but_fp32_is_the_default(tmp_path: Path) -> None:
    run = resolve(Request(config=str(ranks.mini_config(tmp_path))), world_size=1, device=ANY_DEVICE).run
    assert run.matmul == "fp32"


def test_bf32_rounds_the_factors_to_bf16_and_sums_in_fp32() -> None:
    if fast_here(A_CPU.kind) != "bf32":
        pytest.skip("this CPU has no bf16 products of its own")
    torch.manual_seed(0)
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    exact = left.double() @ right.double()
    set_in_torch("bf32")
    in_bf32 = left @ right
    set_in_torch("fp32")
    in_fp32 = left @ right
    in_bf16 = (left.bfloat16() @ right.bfloat16()).float()

    def error(product: torch.Tensor) -> float:
        return float((product.double() - exact).norm() / exact.norm())

    assert error(in_fp32) < 1e-5 < error(in_bf32) < error(in_bf16)
