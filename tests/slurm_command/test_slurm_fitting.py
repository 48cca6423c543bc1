from __future__ import annotations

import pytest
from shown import NODES, PARTITIONS

from dist_trainer.errors import UserError
from dist_trainer.slurm.facts import Cluster, parse_cluster
from dist_trainer.slurm.fitting import Checked, check
from dist_trainer.slurm.job_request import GpuRequest, JobRequest, lay_out

CLUSTER = parse_cluster(PARTITIONS, NODES)
TWO_GPUS = GpuRequest("gpus-per-node", "2")


def checked(request: JobRequest, cluster: Cluster | None = CLUSTER) -> Checked:
    return check(request, lay_out(request), cluster)


def refused(request: JobRequest, cluster: Cluster | None = CLUSTER) -> str:
    with pytest.raises(UserError) as caught:
        checked(request, cluster)
    return str(caught.value)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (JobRequest(nodes=3, gpus=TWO_GPUS), "The job is for 3 nodes, and 2 fit"),
        (JobRequest(gpus=GpuRequest("gpus-per-node", "3")), "2 with 2 x a100, 4 CPUs"),
        (JobRequest(gpus=GpuRequest("gpus-per-node", "h100:1")), "nodes with 1 x h100; there are: 2 with 2 x a100"),
        (JobRequest(gpus=TWO_GPUS, cpus_per_task=3), "2 x GPU, 6 CPUs"),
        (JobRequest(gpus=TWO_GPUS, memory="5G"), "--mem 5G"),
        (JobRequest(gpus=TWO_GPUS, nodelist="h9"), "of h9"),
        (JobRequest(gpus=GpuRequest("gpus-per-task", "1"), tasks=5), "more than the GPUs of all nodes that fit"),
        (JobRequest(gpus=TWO_GPUS, partition="shrot"), "did you mean short?"),
        (JobRequest(gpus=TWO_GPUS, partition="short", time="2-0"), "at most 36 h"),
        (JobRequest(gpus=TWO_GPUS, partition="short", nodes=2), "gives no job so many nodes"),
    ],
)
def test_what_could_never_start_is_refused(request_: JobRequest, said: str) -> None:
    assert said in refused(request_)


def test_a_cluster_without_a_default_partition_needs_one_named() -> None:
    without = parse_cluster(PARTITIONS.replace("Default=YES", "Default=NO"), NODES)
    assert "--partition" in refused(JobRequest(gpus=TWO_GPUS), without)


def test_a_rank_gets_its_gpus_share_of_the_cpus_and_a_whole_node_its_memory() -> None:
    layout = checked(JobRequest(nodes=2, gpus=TWO_GPUS, time="60")).layout
    assert (layout.cpus_per_rank, layout.has_whole_nodes) == (2, True)
    layout = checked(JobRequest(nodes=2, gpus=GpuRequest("gpus-per-node", "1"), time="60")).layout
    assert (layout.cpus_per_rank, layout.has_whole_nodes) == (2, False)
    layout = checked(JobRequest(gpus=TWO_GPUS, cpus_per_task=1, time="60", partition="short")).layout
    assert (layout.cpus_per_rank, layout.has_whole_nodes) == (1, False)


def test_what_makes_a_job_wait_is_said() -> None:
    found = checked(JobRequest(nodes=2, gpus=TWO_GPUS, time="60"))
    assert found.notices == ("1 of the nodes that fit is up, and the job needs 2: it waits for others",)
    found = checked(JobRequest(gpus=TWO_GPUS, partition="short"))
    assert found.time_s == 1_800
    assert found.notices == (
        "partition short is not up: the job waits until it is",
        "no --time: the limit of partition short holds, 30 min",
    )


def test_without_a_cluster_nothing_is_filled_in() -> None:
    request = JobRequest(nodes=2, gpus=TWO_GPUS, time="1:00:00")
    assert check(request, lay_out(request), None) == Checked(lay_out(request), 3_600, ())
