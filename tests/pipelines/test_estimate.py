"""What a pilot's times say about a whole training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.runtime.estimate import STEPS, companion_images, cost_of, pilot
from tests.pipelines.toy import spec_of

ROWS = [
    {"seconds": 30.0, "validation_seconds": 4.0, "steps_per_second": 0.4},
    {"seconds": 16.0, "validation_seconds": 4.0, "steps_per_second": 0.5},
]


def test_a_pilot_is_start_and_steps_and_validations_and_the_fit_of_a_companion() -> None:
    cost = cost_of(100.0, ROWS, export=20.0, companion=40)
    assert cost.step == pytest.approx(12 / 8)
    assert cost.validation == 4
    assert cost.companion == pytest.approx(0.5)
    # what is left of the wall time: two epochs of 12 s as the last one was, two validations, the companion
    assert cost.start == pytest.approx(100 - 24 - 8 - 20)
    whole = cost.seconds(epochs=3, steps=10, validations=3, companion=100)
    assert whole == pytest.approx(cost.start + 3 * 10 * 1.5 + 3 * 4 + 100 * 0.5)


def test_without_a_companion_writing_the_model_is_part_of_the_start() -> None:
    cost = cost_of(100.0, ROWS, export=20.0, companion=0)
    assert cost.companion == 0
    assert cost.start == pytest.approx(100 - 24 - 8)


def test_a_companion_is_fitted_on_the_images_that_there_are(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, references=False)
    assert companion_images(spec) == 0
    config = spec.config | {"model": spec.config["model"] | {"companion": {"images": 5}}}
    with_one = replace(spec, config=config)
    assert companion_images(with_one) == 5
    assert companion_images(pilot(with_one)) == 5
    config["stage2"]["max_images"] = 3
    assert companion_images(with_one) == 3
    config["model"]["companion"]["images"], config["stage2"]["max_images"] = 50, None
    assert companion_images(with_one) == 6
    assert companion_images(replace(spec, stage="pretrain")) == 0


def test_a_series_of_levels_counts_as_two_images_and_a_pilot_has_few(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, references=False)
    companion = {"images": 5, "order_series": 4000}
    config = spec.config | {"model": spec.config["model"] | {"companion": companion}}
    assert companion_images(replace(spec, config=config)) == 8005
    few = STEPS * config["stage2"]["optim"]["batch_size"]
    assert companion_images(pilot(replace(spec, config=config))) == 5 + 2 * few
    companion["images"] = 0
    assert companion_images(replace(spec, config=config)) == 0
