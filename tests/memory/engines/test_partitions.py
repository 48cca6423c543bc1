from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.memory.engines.partitions import ALIGNMENT, flat_group

NUMELS = st.lists(st.integers(1, 10_000), min_size=1, max_size=20)


@given(NUMELS, st.integers(1, 64), st.booleans())
def test_the_slices_of_a_group_are_its_parameters_and_no_partition_holds_more_than_its_size(
    numels: list[int], world_size: int, round_robin: bool
) -> None:
    group = flat_group(range(len(numels)), numels, world_size, round_robin=round_robin)
    assert group.flat_numel == world_size * group.partition_numel
    assert 0 <= group.flat_numel - sum(numels) < ALIGNMENT * world_size
    for parameter, numel in enumerate(numels):
        assert sum(part.numel for part in group.slices[parameter]) == numel
    for rank in range(world_size):
        assert sum(group.numel_of(parameter, rank) for parameter in group.order) <= group.partition_numel


def test_a_parameter_across_a_boundary_is_owned_by_both_sides() -> None:
    group = flat_group([0, 1, 2], [4, 8, 4], 2, round_robin=False)
    assert group.owned(0) == (0, 1)
    assert group.owned(1) == (1, 2)


def test_round_robin_deals_the_parameters_out() -> None:
    assert flat_group([0, 1, 2, 3, 4], [1] * 5, 2, round_robin=True).order == (0, 2, 4, 1, 3)


def test_a_flat_group_is_padded_to_two_elements_a_rank() -> None:
    """NCCL's buffers begin at multiples of 4 bytes, which is two elements of 16 bits."""
    assert flat_group([0], [5], 2, round_robin=False).flat_numel == 8
    assert flat_group([0], [9], 4, round_robin=False).partition_numel == 4
    assert flat_group([0], [8], 4, round_robin=False).partition_numel == 2
