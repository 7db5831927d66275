"""Positives of `deg_positive = cross_content`: two images of a batch under one recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from dri_iqa.config import DegradeConfig
from dri_iqa.data.batches import Source, Stage1Batches
from dri_iqa.data.schedule import Schedule
from tests.stages.golden import Scenes


class Shelf:
    def open(self) -> Any:
        return Scenes()


BATCHES = Stage1Batches(
    clean=cast(Source, Shelf()),
    schedule=Schedule(ids=tuple(range(20)), batch_size=6, epochs=2, remainder="drop"),
    degrade=DegradeConfig(region=64),
    crop=48,
    run_seed=4,
)
SHARED = replace(BATCHES, share_recipes=True)


def test_neighbours_share_the_first_views_recipe_and_nothing_else() -> None:
    for step in range(4):
        alone, shared = BATCHES(step), SHARED(step)
        recipes = shared["recipe_hash_B2"]
        assert np.array_equal(recipes[::2, 0], recipes[1::2, 0])
        assert np.array_equal(shared["type_mask_B2"][::2, 0], shared["type_mask_B2"][1::2, 0])
        assert (recipes[:, 0] != recipes[:, 1]).all()
        assert np.array_equal(shared["image_id_B"], alone["image_id_B"])
        # leaders are as they were, to the last pixel
        assert np.array_equal(shared["crops_B4CHW"][::2], alone["crops_B4CHW"][::2])
        assert np.array_equal(recipes[::2], alone["recipe_hash_B2"][::2])
        assert (recipes[1::2, 0] != alone["recipe_hash_B2"][1::2, 0]).any()


def test_pairs_are_the_same_on_any_number_of_ranks() -> None:
    whole = SHARED(1)
    ranks = [replace(SHARED, rank=rank, world=3)(1) for rank in range(3)]
    for name, rows in whole.items():
        for rank, part in enumerate(ranks):
            assert np.array_equal(part[name], rows[rank::3]), name
