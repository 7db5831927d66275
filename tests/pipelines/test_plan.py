from __future__ import annotations

from dataclasses import fields

import pytest

from pipelines.runtime.capacity import check_parts, parts
from pipelines.runtime.cluster import ClusterError, connect, plan_resources
from pipelines.runtime.config import ClusterConfig, compose
from pipelines.runtime.fit import Inputs, pretrain_spec
from pipelines.runtime.training import store_advice


def test_the_smallest_machine_runs_one_trial_at_a_time() -> None:
    plan = plan_resources(ClusterConfig(), {"CPU": 1.0}, trials=4)
    assert plan.concurrent_trials == 1


def test_trials_fill_the_cluster_and_no_more() -> None:
    config = ClusterConfig(workers=2, cpus_per_worker=1.0, cpus_per_data_task=1.0)
    for cpus in range(4, 40):
        plan = plan_resources(config, {"CPU": float(cpus)}, trials=100)
        per_trial = 2 * 1.0 + 1.0 + 0.01
        assert plan.concurrent_trials * per_trial <= cpus < (plan.concurrent_trials + 1) * per_trial


def test_no_more_trials_at_a_time_than_there_are() -> None:
    assert plan_resources(ClusterConfig(), {"CPU": 64.0}, trials=3).concurrent_trials == 3


def test_accelerators_limit_trials_too() -> None:
    config = ClusterConfig(gpus_per_worker=1.0)
    assert plan_resources(config, {"CPU": 64.0, "GPU": 2.0}, trials=9).concurrent_trials == 2


def test_fewer_workers_than_wanted_are_enough_to_start() -> None:
    few = ClusterConfig(workers=4, min_workers=1, cpus_per_worker=1.0)
    plan = plan_resources(few, {"CPU": 2.0}, trials=1)
    assert (plan.min_workers, plan.workers, plan.concurrent_trials) == (1, 4, 1)
    assert "1 to 4 training worker(s)" in str(plan)
    assert parts(few) == [{"CPU": 1.0}, {"CPU": 0.4}]
    check_parts(few, [{"CPU": 1.0}])
    with pytest.raises(ClusterError, match="not enough CPUs: 1 worker"):
        plan_resources(few, {"CPU": 1.0})
    for wrong in (0, 5):
        with pytest.raises(ClusterError, match=rf"cluster\.min_workers={wrong}"):
            plan_resources(ClusterConfig(workers=4, min_workers=wrong), {"CPU": 64.0})


def test_workers_share_the_places_that_degradation_may_take() -> None:
    totals = {"CPU": 100.0, "degrade": 20.0}
    shared = ClusterConfig(workers=3, degrade_resource=2.0)
    assert plan_resources(shared, totals).data_processes == 3, "3 x 3 x 2 of 20"
    later = ClusterConfig(workers=3, degrade_resource=2.0, data_processes=64)
    assert plan_resources(later, totals).data_processes == 64, "nodes that come later help"
    assert plan_resources(ClusterConfig(workers=3), totals).data_processes == 97


def test_an_object_store_that_holds_no_two_tasks_of_batches_is_told() -> None:
    inputs = Inputs(**{field.name: "" for field in fields(Inputs) if field.type == "str"})

    def advice(preset: str, store: float) -> str | None:
        plan = plan_resources(ClusterConfig(), {"CPU": 2.0, "object_store_memory": store})
        return store_advice(pretrain_spec(compose("full", [f"preset={preset}"]), inputs, 1), plan)

    # 8 batches of 64 images, 4 views of 3 x 224 x 224
    assert "takes 308 MB" in (advice("paper", 500e6) or "")
    assert "object_store_mb=2466" in (advice("paper", 500e6) or "")
    assert advice("paper", 4e9) is None
    assert advice("tiny", 500e6) is None
    assert advice("paper", 0.0) is None, "there is none without a cluster"


@pytest.mark.parametrize(
    ("config", "totals", "words"),
    [
        (
            ClusterConfig(workers=8),
            {"CPU": 2.0},
            ["not enough CPUs", "8 worker(s) x 0.5", "has 2", "cluster.workers"],
        ),
        (
            ClusterConfig(gpus_per_worker=1.0),
            {"CPU": 2.0},
            ["not enough GPUs", "gpus_per_worker=0"],
        ),
        (ClusterConfig(degrade_resource=1.0), {"CPU": 2.0}, ["'degrade'", "--resources"]),
    ],
)
def test_what_does_not_fit_says_what_is_missing(
    config: ClusterConfig, totals: dict[str, float], words: list[str]
) -> None:
    with pytest.raises(ClusterError) as caught:
        plan_resources(config, totals)
    assert str(caught.value).count("\n") == 1
    for word in words:
        assert word in str(caught.value)


def test_without_a_cluster_there_is_one_worker() -> None:
    with connect(ClusterConfig(kind="none", num_cpus=3)) as totals:
        assert totals["CPU"] == 3
    with (
        pytest.raises(ClusterError, match=r"2 workers were asked for\nset cluster\.workers=1"),
        connect(ClusterConfig(kind="none", workers=2)),
    ):
        pass
