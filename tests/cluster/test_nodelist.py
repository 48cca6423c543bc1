from __future__ import annotations

import pytest

from dist_trainer.cluster.nodelist import expand_nodelist, expand_tasks_per_node
from dist_trainer.errors import UserError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ("n1",)),
        ("node[01-03,7],gpu1", ("node01", "node02", "node03", "node7", "gpu1")),
        ("n[009-011]", ("n009", "n010", "n011")),
        ("rack[1-2]n[3-4]", ("rack1n3", "rack1n4", "rack2n3", "rack2n4")),
        ("b,a", ("b", "a")),
    ],
)
def test_node_lists(text: str, names: tuple[str, ...]) -> None:
    assert expand_nodelist(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n1]", "n[]", "n[3-1]", "n[a]", "a,,b", "a b", "n[1,[2]]", "(null)x["])
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a SLURM node list") as caught:
        expand_nodelist(text, where="SLURM_STEP_NODELIST")
    assert "SLURM_STEP_NODELIST" in str(caught.value)


def test_tasks_per_node() -> None:
    assert expand_tasks_per_node("2(x3),1") == (2, 2, 2, 1)
    assert expand_tasks_per_node("4") == (4,)


@pytest.mark.parametrize("text", ["", "2(x3", "a", "2,,1", "-1"])
def test_what_is_no_number_per_node_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="numbers per node"):
        expand_tasks_per_node(text)
