"""One source of randomness: every draw is a pure function of (run seed, purpose, indices).

Nothing in this project touches `random`, `numpy.random.*` functions or torch's global generator for data;
the few places where torch insists on its global generator (dropout) are reseeded per step from here.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for. Values are part of the reproducibility contract: never renumber."""

    DEGRADE = 1  # one view's recipe and operator noise: (epoch, image_index, view)
    CROP = 2  # one crop's position and flip: (epoch, image_index, view, crop)
    REGION = 3  # the region of a clean image that is degraded: (epoch, image_index)
    SCHEDULE = 4  # the permutation of one epoch: (epoch,)
    SPLIT = 5  # which groups train, validate and test: (split,)
    INIT = 6  # initial weights: (module,)
    DROPOUT = 7  # torch's global generator at one optimisation step: (epoch, step, rank)
    SCORE_CROP = 8  # test-time crop positions: (content digest words..., k)
    SAMPLE = 9  # the built-in sample: (part,) for recipes, (3, photograph, row, column, version) for noise
    SHUFFLE_BN = 10  # permutation of the key batch: (step,)
    SIBLING = 11  # the sibling of a distorted image: (epoch, image_index)
    SHUFFLE_SCORES = 12  # the control experiment with permuted training scores: ()
    SEARCH = 13  # the search algorithm: ()
    PROBE = 14  # linear probes: (epoch,)
    BOOTSTRAP = 15  # resamples of confidence intervals: (name,)
    AUXILIARY = 16  # order of the auxiliary clean stream: (epoch,)
    SHARDS = 17  # order of pristine images over shards: ()
    LIMIT = 18  # which groups a limited data set keeps: (stratum,)
    HELD_OUT = 19  # which clean photographs are held out: ()
    ORDER = (
        20  # pairs of neighbouring levels: (epoch, image_index, 0) for the draw, 1 for the noise
    )
    ORDER_STREAM = 21  # order of the clean images of those pairs: (epoch,)
    TURN = 22  # quarter turns and exchanged channels of a clean image: (epoch, image_index)
    SERIES = 23  # a companion's series of levels: as ORDER, without an epoch; (0, 2) for the photographs' turns


def generator(run_seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """A fresh PCG64 generator for one draw, the same on every machine, worker count and order (paper 3.1).

    Args:
        run_seed: seed of the run, >= 0.
        purpose: which stream; streams with different purposes are independent.
        indices: non-negative integers that name the draw, e.g. (epoch, image_index, view).
    """
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence((run_seed, int(purpose), *indices)))
    )


def seed_of(run_seed: int, purpose: Purpose, *indices: int) -> int:
    """A 63-bit integer seed for libraries that want one (torch, optuna), from the same streams."""
    state = np.random.SeedSequence((run_seed, int(purpose), *indices)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
