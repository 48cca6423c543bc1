from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.cluster.nodelist import expand_nodelist, expand_tasks_per_node, fold_nodelist
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


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["n1"], "n1"),
        (["n1", "n2", "n3"], "n[1-3]"),
        (["node01", "node02", "node03", "node7", "gpu1"], "node[01-03,7],gpu1"),
        (["n09", "n10", "n011"], "n[09-10,011]"),
        (["n9", "n10"], "n[9,10]"),
        (["n2", "n1"], "n[2,1]"),
        (["a1b", "a2b", "a3c", "login"], "a[1-2]b,a3c,login"),
        ([], ""),
    ],
)
def test_the_short_form_of_names(names: list[str], text: str) -> None:
    assert fold_nodelist(names) == text


@given(st.lists(st.from_regex(r"[a-z][a-z0-9.-]{0,4}", fullmatch=True), min_size=1, max_size=12))
def test_the_short_form_is_written_out_as_it_was(names: list[str]) -> None:
    assert list(expand_nodelist(fold_nodelist(names))) == names


def test_tasks_per_node() -> None:
    assert expand_tasks_per_node("2(x3),1") == (2, 2, 2, 1)
    assert expand_tasks_per_node("4") == (4,)


@pytest.mark.parametrize("text", ["", "2(x3", "a", "2,,1", "-1"])
def test_what_is_no_number_per_node_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="numbers per node"):
        expand_tasks_per_node(text)
