"""What is tried next, and what a trial is: the final training in miniature."""

from __future__ import annotations

from typing import Any

from pipelines.runtime.config import compose
from pipelines.runtime.search import first_point, trial_config
from pipelines.runtime.suggestions import Suggestions


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
    assert (job.stage2.probe_images, trial.stage2.probe_images) == (48, 0), "trials explain nothing"


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
