"""What is tried next, and what a trial is: the final training in miniature."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from mlflow import MlflowClient

from pipelines.runtime.config import compose
from pipelines.runtime.job import Job
from pipelines.runtime.leftovers import held, left_behind
from pipelines.runtime.search import first_point, search
from pipelines.runtime.suggestions import Suggestions
from pipelines.runtime.trial import trial_config
from pipelines.runtime.trials import TrialLog
from pipelines.search_report import report_search
from tests.pipelines.hill import height, hill


def test_a_trial_runs_the_same_schedule_in_fewer_epochs() -> None:
    job = compose("tune", ["preset=paper", "search=thorough"])
    trial = trial_config(job, {"stage2.optim.lr_scale": 2.0, "stage1.moco.temperature": 0.1})
    assert (trial.stage2.optim.epochs, trial.stage2.optim.t_max) == (30, 45)  # of 200 and 300
    assert (trial.stage1.optim.epochs, trial.stage1.optim.t_max) == (50, None)
    assert trial.stage2.optim.lr_scale == 2.0
    assert trial.stage1.moco.temperature == 0.1
    assert trial.model == job.model


def test_stage_1_of_a_trial_is_the_final_one_where_nothing_shortens_it() -> None:
    job = compose("full", [])
    trial = trial_config(job, {"stage2.lambda_perceptual": 0.02})
    assert trial.stage1 == job.stage1
    assert trial.stage2.max_images == job.search.max_images
    assert job.stage2.probe_images > trial.stage2.probe_images == 0, "trials explain nothing"


def suggestions(first: list[dict[str, Any]], *, seed: int = 0) -> Suggestions:
    return Suggestions(compose("tune", []).search.space, seed=seed, metric="val_srocc", first=first)


def tried(algorithm: Suggestions, count: int) -> list[dict[str, Any]]:
    """Run a search of so many trials one after the other, on a measure with a known optimum."""
    found = []
    for number in range(count):
        values = algorithm.suggest(f"t{number}")
        rate = values["stage2.optim.lr_scale"]
        score = 1 - abs(rate - 0.8) - values["stage1.moco.temperature"]
        algorithm.on_trial_complete(f"t{number}", {"val_srocc": score})
        found.append(values)
    return found


def test_a_search_started_again_tries_what_an_undisturbed_one_does() -> None:
    begin = first_point(compose("full", []))
    undisturbed = tried(suggestions(begin), 16)  # the first ten are random, the others TPE's
    for killed_after in (1, 3, 12):
        assert tried(suggestions(undisturbed[:killed_after]), 16) == undisturbed
    assert len({str(values) for values in undisturbed}) == 16
    assert tried(suggestions(begin, seed=1), 3)[1:] != undisturbed[1:3]


def test_trials_that_had_not_reported_are_tried_again_in_their_places(tmp_path: Path) -> None:
    """A search is killed when its second trial has reported and its first has not."""
    begin, space = first_point(compose("full", [])), compose("tune", []).search.space
    undisturbed = tried(suggestions(begin), 3)
    log = TrialLog(str(tmp_path / "trials.json"))
    killed = Suggestions(space, seed=0, metric="val_srocc", first=begin, told=log.begin)
    second = [killed.suggest(name) for name in ("t0", "t1")][1]
    log.row(second, {"epoch": 1.0, "val_srocc": 0.5})

    again = TrialLog(str(tmp_path / "trials.json"))
    assert tried(suggestions(again.points()), 3) == undisturbed
    assert sorted(len(trial["rows"]) for trial in again.trials.values()) == [0, 1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_suggestions_come_within_a_tenth_of_a_known_optimum(seed: int) -> None:
    job = compose("tune", ["search=thorough"])
    space, first = job.search.space, first_point(job)
    algorithm = Suggestions(space, seed=seed, metric="val_srocc", first=first)
    reached = []
    for number in range(30):
        reached.append(height(space, algorithm.suggest(f"t{number}")))
        algorithm.on_trial_complete(f"t{number}", {"val_srocc": reached[-1]})
    assert max(reached) >= 0.9


@pytest.mark.ray
@pytest.mark.hours
def test_a_search_comes_within_a_tenth_of_a_known_optimum_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    """Thirty processes, one after the other: a minute or two."""
    settings = ["search=thorough", "search.epochs=4", "search.grace_epochs=1", "cluster=local"]
    job = Job(compose("tune", [f"output={tmp_path}", *settings, "search.reduction=2"]))
    with job.connect(), job.console.progress("trials") as meter:
        before = held()
        found = search(
            job.config,
            hill,
            concurrent=1,
            name=job.name,
            tracker=job.tracker,
            key=job.name,
            meter=meter,
        )
        arguments = {"folders": [str(tmp_path / "search" / job.name / "tune")]}
        assert left_behind(before, **arguments, checkpoints=str(tmp_path)) == []
        forgotten: Any = ray.remote(num_cpus=0)(Forgotten).remote()
        ray.get(forgotten.ready.remote())
        (line,) = left_behind(before, **arguments, checkpoints=str(tmp_path), patience_s=0.0)
        assert line.startswith("actor Forgotten")
        ray.data.range(4).map(
            lambda row: row
        ).materialize()  # its first use starts actors of Ray's own
        assert left_behind(before, **arguments, checkpoints=str(tmp_path), patience_s=0.0) == [line]
        report_search(job, found)
    assert found["best"]["val_srocc"] >= 0.9
    assert len(found["trials"]) == 30
    stopped = [trial for trial in found["trials"] if trial["stopped_early"]]
    assert len(stopped) >= 10
    assert found["work_seconds"] == pytest.approx(3.0)

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dri-iqa")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 31
    (parent,) = (run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags)
    files = {item.path for item in client.list_artifacts(parent, "search")}
    names = {"trials.csv", "parallel_coordinates.png", "importance.png"}
    assert files == {f"search/{name}" for name in names}
    with Path(client.download_artifacts(parent, "search/trials.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert len([row for row in rows if row["ended"].startswith("stopped after epoch")]) == len(
        stopped
    )
    (best,) = (row for row in rows if row["best"])
    assert float(best["lr_scale"]) == found["changes"]["stage2.optim.lr_scale"]


class Forgotten:
    """An actor that nobody ends."""

    def ready(self) -> None:
        """Returns when it runs."""
