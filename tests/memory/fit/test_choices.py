from __future__ import annotations

import pytest

from dist_trainer.config.adapt import ANY_DEVICE
from dist_trainer.config.deepspeed import resolve as deepspeed
from dist_trainer.config.request import Request, Switches
from dist_trainer.config.resolve import resolve
from dist_trainer.errors import UserError
from dist_trainer.memory.fit.choices import (
    COARSE_SUMS,
    COARSE_WEIGHTS,
    NEUTRAL,
    Choice,
    choices,
    configure,
    micro_batches,
    neighbours,
)

ANY = Switches()


def base(ds: str = "zero2", *settings: str) -> dict[str, object]:
    return resolve(Request(ds=ds, settings=settings), world_size=2, device=ANY_DEVICE).deepspeed


@pytest.mark.parametrize("ds", ["baseline", "zero2", "zero3_offload", "memory_saver", "fp16", "fast"])
@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_every_choice_is_a_file_that_deepspeed_takes(ds: str, half: str) -> None:
    found = list(choices(base(ds), half, ANY))  # type: ignore[arg-type]
    assert len(found) == len(set(found)) > 30
    for choice in found:
        config = configure(base(ds), choice, accumulation=4, world_size=2)
        deepspeed.check(config, source=str(choice))
        assert config["train_batch_size"] == 8
        assert ("fp16" in config) == (choice.precision == "fp16")


def test_with_steps_for_every_stage_offload_and_precision() -> None:
    found = list(choices(base(), "bf16", ANY))
    assert {choice.stage for choice in found} == {0, 1, 2, 3}
    assert {choice.offload for choice in found} == {"none", "optimizer", "all"}
    assert {choice.precision for choice in found} == {"fp32", "bf16", "bf16 states"}
    assert all(choice.stage == 3 for choice in found if choice.offload == "all")
    assert all(choice.stage >= 1 for choice in found if choice.offload == "optimizer" or choice.sums_in_fp32)


def test_what_the_search_does_not_choose_stays() -> None:
    config = configure(base("fast", "gradient_clipping=0.5"), Choice(2, "optimizer", "bf16", True, False, 2), 4, 2)
    assert config["gradient_clipping"] == 0.5
    assert config["scheduler"] == base("fast")["scheduler"]
    assert "compile" in config
    assert config["optimizer"]["type"] == "AdamW"
    assert "torch_adam" not in config["optimizer"]["params"]
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}


def test_an_optimizer_that_deepspeed_does_not_have_for_the_host_is_not_offloaded() -> None:
    sgd = base("zero1", 'optimizer={"type": "SGD", "params": {"lr": 0.1}}', "zero_allow_untested_optimizer=true")
    assert {choice.offload for choice in choices(sgd, "bf16", ANY)} == {"none"}


def test_what_the_user_fixed_stays_fixed() -> None:
    found = list(choices(base(), "bf16", Switches(precision="fp32", checkpointing=True)))
    assert found
    assert all(choice.precision == "fp32" and choice.checkpointing for choice in found)
    assert not list(choices(base(), "bf16", Switches(precision="fp16")))


def test_micro_batches_divide_the_ranks_share() -> None:
    assert micro_batches(96, 8) == (1, 2, 3, 4, 6, 12)
    assert micro_batches(4096, 2)[-1] == 256
    assert micro_batches(64, 2, wanted=16) == (16,)


@pytest.mark.parametrize(("batch", "wanted", "hint"), [(63, None, "64"), (64, 3, "66")])
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(batch: int, wanted: int | None, hint: str) -> None:
    with pytest.raises(UserError, match="do not divide") as error:
        micro_batches(batch, 2, wanted)
    assert f"--global-batch {hint}" in str(error.value)


def test_neighbours_differ_in_one_thing() -> None:
    found = set(choices(base(), "bf16", ANY))
    choice = Choice(1, "none", "bf16", True, True, 4)
    near = dict(neighbours(choice, found, (1, 2, 4, 8, 16)))
    assert list(near) == [
        *("micro batch 2", "micro batch 8", "no checkpointing", "ZeRO-0", "ZeRO-2"),
        *("optimizer offload", "16-bit gradient sums", "fp32", "bf16 states"),
    ]
    assert near["ZeRO-0"] == Choice(0, "none", "bf16", False, True, 4)
    assert choice not in near.values()


def test_the_risk_of_16_bit_sums_grows_with_their_number() -> None:
    bf16, fp16 = Choice(1, "none", "bf16", False, True, 1), Choice(1, "none", "fp16", False, True, 1)
    assert [bf16.risk(count) for count in (1, 8, 9)] == [NEUTRAL, NEUTRAL, COARSE_SUMS]
    assert [fp16.risk(count) for count in (64, 65)] == [NEUTRAL, COARSE_SUMS]
    assert Choice(2, "none", "bf16", True, True, 1).risk(512) == NEUTRAL
    assert Choice(2, "none", "fp32", False, True, 1).risk(512) == NEUTRAL
    assert Choice(2, "none", "bf16 states", False, True, 1).risk(1) == COARSE_WEIGHTS
