"""What a trial is: the final training in miniature."""

from __future__ import annotations

from pipelines.runtime.config import compose
from pipelines.runtime.search import trial_config


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
