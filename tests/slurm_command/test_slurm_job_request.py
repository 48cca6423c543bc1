from __future__ import annotations

import pytest

from dist_trainer.errors import UserError
from dist_trainer.slurm.job_request import GpuRequest, JobRequest, Layout, lay_out
from dist_trainer.slurm.notation import Gpus

TWO_GPUS = GpuRequest("gpus-per-node", "2")


@pytest.mark.parametrize(
    ("request_", "layout"),
    [
        (JobRequest(nodes=4, gpus=GpuRequest("gpus-per-node", "8")), Layout(4, 8, 32, Gpus(((None, 8),)))),
        (JobRequest(gpus=GpuRequest("gres", "gpu:a100:2")), Layout(1, 2, 2, Gpus((("a100", 2),)))),
        (
            JobRequest(nodes=2, gpus=GpuRequest("gpus-per-task", "1"), tasks_per_node=4),
            Layout(2, 4, 8, Gpus(((None, 4),))),
        ),
        (JobRequest(tasks=3, gpus=GpuRequest("gpus-per-task", "1")), Layout(None, None, 3, Gpus(((None, 1),)))),
        (
            JobRequest(launcher="torchrun", nodes=2, gpus=GpuRequest("gpus-per-task", "8")),
            Layout(2, 8, 16, Gpus(((None, 8),))),
        ),
        (JobRequest(nodes=2, tasks_per_node=3, cpus_per_task=2), Layout(2, 3, 6, None, 2)),
        (JobRequest(nodelist="h[1-2],h7", gpus=TWO_GPUS), Layout(3, 2, 6, Gpus(((None, 2),)))),
        (JobRequest(nodelist="h1", nodes=2, gpus=TWO_GPUS), Layout(2, 2, 4, Gpus(((None, 2),)))),
    ],
)
def test_the_ranks_follow_from_what_is_asked_for(request_: JobRequest, layout: Layout) -> None:
    assert lay_out(request_) == layout


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (JobRequest(nodes=2), "Nothing says how many ranks a node has"),
        (JobRequest(gpus=TWO_GPUS, tasks_per_node=4), "4 ranks a node, and 2 GPUs: each rank has one"),
        (JobRequest(gpus=TWO_GPUS, tasks=4), "--ntasks leaves it to SLURM"),
        (JobRequest(gpus=GpuRequest("gpus-per-task", "1")), "add --ntasks-per-node N"),
        (JobRequest(gpus=GpuRequest("gpus-per-task", "2"), tasks_per_node=1), "A rank uses one GPU"),
        (JobRequest(gpus=GpuRequest("gpus-per-task", "2"), tasks=2), "A rank uses one GPU"),
        (JobRequest(launcher="torchrun", tasks=3), "torchrun is started once a node"),
        (
            JobRequest(launcher="torchrun", gpus=GpuRequest("gpus-per-task", "2"), tasks_per_node=2),
            "torchrun is started once a node",
        ),
        (JobRequest(nodelist="h[1-3]", nodes=2, gpus=TWO_GPUS), "names 3 nodes, and the job is for 2"),
        (JobRequest(gpus=GpuRequest("gres", "nvme:1")), "This asks for no GPU"),
        (JobRequest(gpus=GpuRequest("gpus-per-node", "two:")), "not a number of GPUs"),
        (JobRequest(nodes=3, tasks=2), "2 ranks are too few for 3 nodes"),
        (JobRequest(gpus=TWO_GPUS, time="noon"), "is not a time"),
        (JobRequest(gpus=TWO_GPUS, memory="much"), "not an amount of memory"),
        (JobRequest(gpus=TWO_GPUS, nodelist="h[1-"), "where:    --nodelist"),
        (JobRequest(gpus=TWO_GPUS, time="10", signal_s=600), "at most 599 seconds"),
    ],
)
def test_what_contradicts_itself_is_refused(request_: JobRequest, said: str) -> None:
    with pytest.raises(UserError) as caught:
        lay_out(request_)
    assert said in str(caught.value)
