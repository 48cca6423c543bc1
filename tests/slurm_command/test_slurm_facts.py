from __future__ import annotations

import math
from dataclasses import replace

import pytest
from shown import NODES, PARTITIONS

from dist_trainer.slurm.facts import Node, Partition, parse_cluster
from dist_trainer.slurm.notation import Gpus

CLUSTER = parse_cluster(PARTITIONS, NODES)


def test_the_partitions() -> None:
    assert CLUSTER.partitions == (
        Partition("main", True, True, math.inf, None, None, limits_memory=False),
        Partition("short", False, False, 129_600.0, 1_800.0, 1, limits_memory=True),
    )
    assert CLUSTER.default_partition == CLUSTER.partition("main")
    assert CLUSTER.partition("long") is None


def test_the_nodes() -> None:
    gpus = Gpus((("a100", 2),))
    assert CLUSTER.nodes == (
        Node("h1", ("main", "short"), 4, 4000 * 2**20, gpus, "IDLE"),
        Node("h2", ("main", "short"), 4, 4000 * 2**20, gpus, "IDLE+DRAIN"),
    )


@pytest.mark.parametrize(
    ("state", "is_up"),
    [
        ("IDLE", True),
        ("MIXED", True),
        ("ALLOCATED+COMPLETING", True),
        ("IDLE+CLOUD+POWERED_DOWN", True),
        ("IDLE+DRAIN", False),
        ("DOWN*", False),
        ("IDLE*", False),
        ("DOWN+NOT_RESPONDING", False),
        ("MAINT", False),
    ],
)
def test_whether_a_node_is_up(state: str, is_up: bool) -> None:
    assert replace(CLUSTER.nodes[0], state=state).is_up is is_up


def test_an_empty_cluster() -> None:
    assert parse_cluster("No partitions in the system\n", "No nodes in the system\n") == parse_cluster("", "")
