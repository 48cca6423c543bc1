from __future__ import annotations

from typing import Any

from examinations import NO_GPUS, PACKAGES, host

from dist_trainer.doctor.examination import HostReport
from dist_trainer.doctor.facts import Connection, Connections, Listening
from dist_trainer.doctor.trial import MOST_TRIAL_RANKS, trial_of


def ready(name: str, **changes: Any) -> HostReport:
    return host(name, **{"neighbours": ["other"], "listening": Listening(1, 2), **changes})


def test_all_ranks_of_all_hosts_take_part_on_their_gpus() -> None:
    trial = trial_of([ready("a"), ready("b", num_slots=4)])
    assert (trial.hosts, trial.device) == ({"a": (0, 1), "b": (0, 1, 2, 3)}, "cuda")


def test_one_host_that_cannot_use_its_gpus_has_all_reduce_on_the_cpu() -> None:
    assert trial_of([ready("a"), ready("b", gpus=NO_GPUS)]).device == "cpu"
    assert trial_of([ready("a"), ready("b", facts={"torch_cuda": None})]).device == "cpu"


def test_hosts_that_cannot_run_torch_or_fell_silent_are_left_out() -> None:
    without_torch = ready("b", facts={"packages": {**PACKAGES, "torch": None}})
    assert list(trial_of([ready("a"), without_torch, ready("c", listening=None)]).hosts) == ["a"]
    assert trial_of([without_torch]).why_not == "no host can run torch"


def test_nothing_is_tried_where_it_would_wait_for_ever() -> None:
    blocked = Connections((Connection("a", "10.0.0.1", error="No route to host"),))
    assert trial_of([ready("a"), ready("b", connections=blocked)]).why_not == "not every host reaches the others"
    assert trial_of([ready("a"), ready("b", connections=None)]).why_not == "not every host reaches the others"


def test_one_rank_has_nobody_to_reduce_with() -> None:
    assert trial_of([ready("a", num_slots=1, gpus=NO_GPUS)]).why_not == "there is one rank only"


def test_one_gpu_alone_is_tried() -> None:
    assert trial_of([ready("a", num_slots=1)]).hosts == {"a": (0,)}


def test_of_very_many_ranks_one_of_each_host_takes_part() -> None:
    hosts = [ready(f"n{number}", num_slots=8) for number in range(MOST_TRIAL_RANKS // 8 + 1)]
    assert set(trial_of(hosts).hosts.values()) == {(0,)}
