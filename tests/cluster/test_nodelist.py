from __future__ import annotations

import os
import shutil
import subprocess
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.cluster.nodelist import expand_nodelist, expand_tasks_per_node, fold_nodelist
from dist_trainer.errors import UserError

WORDS = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
NUM_HOSTS = 1000


@st.composite
def ranges(draw: st.DrawFn) -> str:
    """'[01-03,7]', with and without zeros in front."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        width, first = draw(st.integers(1, 5)), draw(st.integers(0, 1200))
        last = first + draw(st.integers(0, 12))
        parts.append(f"{first:0{width}d}" + draw(st.sampled_from(["", f"-{last}", f"-{last:0{width}d}"])))
    return f"[{','.join(parts)}]"


# Behind a bracket SLURM takes another name part only in front of another bracket.
NODES = st.one_of(
    WORDS,
    st.tuples(WORDS, ranges()).map("".join),
    st.tuples(WORDS, ranges(), st.one_of(st.just(""), WORDS), ranges()).map("".join),
)
NODE_LISTS = st.lists(NODES, min_size=1, max_size=25).map(",".join)
TASKS = st.lists(st.tuples(st.integers(0, 999), st.integers(1, 40)), min_size=1, max_size=60)


class Scontrol:
    """SLURM's own reading and writing of node lists, which need neither a daemon nor a real host."""

    def __init__(self, folder: Path) -> None:
        config = folder / "slurm.conf"
        config.write_text("ClusterName=x\nSlurmctldHost=localhost\n")
        self._environ = os.environ | {"SLURM_CONF": str(config)}

    def names(self, nodelist: str) -> tuple[str, ...]:
        return tuple(self._show("hostnames", nodelist).splitlines())

    def nodelist(self, names: list[str]) -> str:
        return self._show("hostlist", ",".join(names)).strip()

    def _show(self, what: str, value: str) -> str:
        command = ["scontrol", "show", what, value]
        return subprocess.run(command, env=self._environ, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def scontrol(tmp_path_factory: pytest.TempPathFactory) -> Scontrol:
    if shutil.which("scontrol") is None:
        pytest.skip("no scontrol here (Debian: slurm-client)")
    return Scontrol(tmp_path_factory.mktemp("scontrol"))


@given(text=NODE_LISTS)
def test_a_node_list_means_what_slurm_says_it_means(scontrol: Scontrol, text: str) -> None:
    assert expand_nodelist(text) == scontrol.names(text)


@given(
    st.sets(st.tuples(st.integers(0, 30), st.integers(0, 400)), min_size=1, max_size=NUM_HOSTS),
    st.sampled_from(["rack{0}n{1:03d}", "n{1}", "gpu{1:04d}", "r{0:02d}-{1}", "h{0}x{1:05d}"]),
    st.booleans(),
)
def test_what_slurm_writes_for_some_hosts_is_read_as_those_hosts(
    scontrol: Scontrol, numbers: set[tuple[int, int]], form: str, is_sorted: bool
) -> None:
    names = list(dict.fromkeys(form.format(*pair) for pair in (sorted(numbers) if is_sorted else numbers)))
    assert list(expand_nodelist(scontrol.nodelist(names))) == names


def test_a_thousand_hosts_in_slurms_own_form(scontrol: Scontrol) -> None:
    names = [f"rack{number // 40:02d}-node{7 * number % 1009:04d}" for number in range(NUM_HOSTS)]
    assert list(expand_nodelist(scontrol.nodelist(names))) == names
    assert list(expand_nodelist(",".join(names))) == names


@pytest.mark.parametrize("text", ["n[3-1]", "n[]", "n[a]", "n[1-65537]"])
def test_slurm_refuses_it_too(scontrol: Scontrol, text: str) -> None:
    # With a word on stderr and status 0.
    assert scontrol.names(text) == ()
    with pytest.raises(UserError):
        expand_nodelist(text)


@given(TASKS)
def test_numbers_per_node_are_read_as_slurm_shortens_them(runs: list[tuple[int, int]]) -> None:
    counts = [count for count, times in runs for _ in range(times)]
    stretches = [(count, len(list(same))) for count, same in groupby(counts)]
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in stretches)
    assert list(expand_tasks_per_node(text)) == counts


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


@pytest.mark.parametrize(
    "text", ["", "n[1-", "n1]", "n[]", "n[3-1]", "n[a]", "a,,b", "a b", "n[1,[2]]", "(null)x[", "n[\u0661]"]
)
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


@pytest.mark.parametrize(
    "text", ["a[0-65535][0-65535]", "a[0-9]" + "[0-9]" * 12, "a[0-60000],b[0-60000]", "a[0-60000,0-60000]"]
)
def test_a_list_that_would_fill_the_memory_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a SLURM node list"):
        expand_nodelist(text)


@pytest.mark.parametrize("text", ["1(x99999)", ",".join(["1(x60000)"] * 2)])
def test_so_are_numbers_of_so_many_nodes(text: str) -> None:
    with pytest.raises(UserError, match="numbers per node"):
        expand_tasks_per_node(text)
