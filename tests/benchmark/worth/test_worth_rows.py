from __future__ import annotations

from dataclasses import replace

import pytest
from worth_runs import CELLS, ENVIRONMENT, rounds

from dist_trainer.benchmark.worth.cells import AGAIN, BASELINE, OTHER_SEEDS
from dist_trainer.benchmark.worth.measurement import Measurement
from dist_trainer.benchmark.worth.rows import MatmulRates, Row, make_rows
from dist_trainer.benchmark.worth.tables import numbered
from dist_trainer.config.run import ModelConfig
from dist_trainer.model.size import num_flops_per_token


def rows(measurements: list[Measurement], rates: MatmulRates = ENVIRONMENT.rates) -> dict[str, Row]:
    made = make_rows(CELLS, measurements, commands={BASELINE: "launch it"}, rates=rates)
    assert [row.cell for row in made] == [cell.name for cell in CELLS]
    return {row.cell: row for row in made}


def test_a_row_has_every_column() -> None:
    found = rows(rounds(noise=0.0, energy_j=50.0))
    base, bf16 = found[BASELINE], found["bf16"]
    assert (base.command, bf16.command) == ("launch it", "")
    assert base.judgement == "" and base.ratio is None and base.loss_is_spoiled is None
    assert (base.tokens_per_s, base.step_p50_s) == (pytest.approx(1000), pytest.approx(0.5))
    assert base.step_p95_s == pytest.approx(1.0)
    assert bf16.judgement == "faster" and bf16.ratio is not None and bf16.speed is not None
    assert (bf16.ratio.value, bf16.speed.value) == (pytest.approx(1.5), pytest.approx(1500))
    assert (bf16.first_step_s, bf16.energy_j, bf16.loss) == (4.0, 50.0, 6.0)
    assert bf16.compile_s == pytest.approx(2 * 500 / 1500)
    assert (bf16.peak_bytes, bf16.planned_bytes, bf16.reduction) == (750_000_000, 760_000_000, 0.25)
    assert base.reduction == 0.0
    assert bf16.data_wait_share == pytest.approx(0.1 / 11)
    assert (bf16.num_rounds, bf16.num_failed_rounds, bf16.num_busy_rounds) == (7, 0, 1)


def test_the_share_of_the_matrix_products_rate_is_of_the_cells_dtype() -> None:
    run = CELLS[0].run
    flops = num_flops_per_token(ModelConfig(**run["model"]), run["phases"][0]["sequence_length"])
    rates = MatmulRates(measured={"fp32": 1e12, "bf16": 4e12}, data_sheet={"bf16": 8e12})
    found = rows(rounds(noise=0.0), rates)
    assert found[BASELINE].mfu == pytest.approx(1000 * flops / 1e12)
    assert found["bf16"].mfu == pytest.approx(1500 * flops / 4e12)
    assert found["bf16"].mfu_of_data_sheet == pytest.approx(1500 * flops / 8e12)
    assert found[BASELINE].mfu_of_data_sheet is None


def test_a_cell_whose_precision_the_hardware_lacks_says_in_which_it_ran() -> None:
    run = CELLS[0].run
    flops = num_flops_per_token(ModelConfig(**run["model"]), run["phases"][0]["sequence_length"])
    rates = MatmulRates(measured={"fp32": 1e12, "bf16": 4e12}, data_sheet={})
    assert {row.ran_in for row in rows(rounds(noise=0.0), rates).values()} == {None}
    bf16 = rows(rounds(noise=0.0, precision="fp32"), rates)["bf16"]
    assert bf16.ran_in == "fp32"
    assert bf16.mfu == pytest.approx(1500 * flops / 1e12)
    assert numbered(5, bf16) == "5. bf16 (ran in fp32)"


@pytest.mark.parametrize(
    ("fast", "dtype"), [({"bf32": 2e12}, "bf32"), ({"tf32": 5e12}, "tf32"), ({}, "fp32")], ids=["cpu", "gpu", "neither"]
)
def test_fp32_matrices_multiplied_in_less_are_held_against_the_rate_of_that(fast: dict[str, float], dtype: str) -> None:
    rates = MatmulRates(measured={"fp32": 1e12, **fast}, data_sheet={})
    found = rows(rounds(noise=0.0), rates)
    base = found[BASELINE].mfu
    assert base is not None
    assert found["matmul"].mfu == pytest.approx(base * 1e12 / rates.measured[dtype])


def test_flops_a_token_are_those_of_the_matrix_products() -> None:
    config = ModelConfig(num_layers=12, hidden_size=768, num_heads=12, vocab_size=50257, context_length=1024)
    # GPT-2 small: 85M weights in blocks, 38.6M in the head, 113M for attention over 1024 tokens.
    assert num_flops_per_token(config, 1024) == 6 * (84_934_656 + 38_597_376) + 113_246_208


def test_what_was_not_measured_stays_unknown() -> None:
    found = rows(
        rounds(peak_bytes=None, planned_bytes=None, first_step_s=None, loss=None, data_wait_s=(), warm_up_s=()),
        MatmulRates({}, {}),
    )
    row = found["bf16"]
    assert row.judgement == "faster"
    unknown = ("peak_bytes", "planned_bytes", "reduction", "first_step_s", "loss", "loss_is_spoiled", "mfu", "energy_j")
    assert [getattr(row, name) for name in (*unknown, "data_wait_share", "compile_s")] == [None] * 10


def test_a_cell_that_failed_keeps_its_row_with_the_reason() -> None:
    row = rows(rounds())["fp16"]
    assert row.judgement == "failed" and row.failure == "this processor has no fp16 arithmetic"
    assert (row.num_rounds, row.num_failed_rounds, row.tokens_per_s, row.ratio) == (0, 7, None, None)


def test_a_cell_that_failed_in_some_rounds_has_figures_and_the_latest_reason() -> None:
    row = rows(rounds(num_rounds=10, failed_rounds=[("bf16", 1), ("bf16", 6)]))["bf16"]
    assert (row.judgement, row.num_rounds, row.num_failed_rounds) == ("faster", 8, 2)
    assert row.failure == "out of memory in round 6"


def test_without_measurements_every_cell_has_a_row() -> None:
    found = rows([])
    assert {row.judgement for row in found.values()} == {"not measured"}
    assert {row.failure for row in found.values()} == {None}


def test_without_a_baseline_nothing_is_compared() -> None:
    row = rows(rounds(failures={BASELINE: "out of memory"}))["bf16"]
    assert (row.judgement, row.ratio, row.reduction, row.loss_is_spoiled) == ("no baseline", None, None, None)
    assert row.tokens_per_s == pytest.approx(1500, rel=0.02)


def test_a_cell_as_fast_as_the_baseline_is_no_winner() -> None:
    assert rows(rounds(noise=0.02))[AGAIN].judgement == "no difference shown"


def test_a_loss_beyond_the_seeds_spread_is_flagged_and_its_speed_not_praised() -> None:
    # The seeds' losses go from 6.0, the baseline's own, to 6.6.
    speeds = dict.fromkeys(("fast", "bf16", "zero1", "zero2"), 2.0)
    losses = {"fast": 6.61, "bf16": 6.59, "zero1": 5.0, "zero2": float("nan")}
    found = rows(rounds(speeds=speeds, losses=losses))
    assert {name: found[name].judgement for name in losses} == {
        "fast": "spoils the loss",
        "bf16": "faster",
        "zero1": "faster",
        "zero2": "spoils the loss",
    }
    assert found["fast"].ratio is not None and found["fast"].ratio.verdict == "faster"
    assert found["zero2"].loss is None
    assert found[OTHER_SEEDS].loss_is_spoiled is None


def test_the_spread_counts_from_the_baselines_loss_wherever_that_lies_among_the_seeds() -> None:
    # The baseline's seed is the unluckiest of all: what is a hair above it is not spoiled.
    found = rows(rounds(losses={BASELINE: 7.0, "bf16": 7.1, "zero1": 7.99, "fast": 8.01}))
    assert [found[name].loss_is_spoiled for name in ("bf16", "zero1", "fast")] == [False, False, True]


def test_with_too_few_seeds_nothing_is_said_about_a_loss() -> None:
    found = rows(rounds(num_rounds=2, losses={"bf16": 20.0}))
    assert found["bf16"].loss_is_spoiled is None and found["bf16"].judgement == "too few rounds"


def test_of_a_round_measured_twice_the_later_counts() -> None:
    measurements = rounds()
    again = replace(next(one for one in measurements if one.cell == "bf16" and one.round == 3), loss=60.0)
    found = rows([*measurements, *(replace(again, round=number) for number in range(7))])
    assert found["bf16"].loss == 60.0 and found["bf16"].num_rounds == 7
