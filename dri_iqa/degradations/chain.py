"""Drawing recipes: which operators, in which order, at which levels (paper 3.1, Eq. 1).

A chain is a random permutation of the groups of operators. Of its first `n_max` groups each is executed with
probability `p_keep`; an executed group contributes one of its types, at a random level. So a chain never applies one
effect twice, has at most `n_max` operators, and has random order, types, degrees and length, as the paper asks. One
type a group and half-normal levels are ARNIQA's (utils/utils_data.py).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dri_iqa.config import ConfigError, DegradeConfig, nearest
from dri_iqa.degradations.recipe import Recipe, Step
from dri_iqa.degradations.registry import OPERATORS, SETS

_MAX_REDRAWS = 100_000


def draw_recipe(
    rng: np.random.Generator, config: DegradeConfig | None = None, length: int | None = None
) -> Recipe:
    """Draw a recipe.

    Args:
        rng: source of randomness.
        config: set of operators, probabilities, levels; the default configuration if None.
        length: number of operators, if it is given from outside (`n_scope: batch`); then the chain's other
            properties are drawn under the condition that it has this length.

    Raises:
        ConfigError: an unknown group in `p_keep`, a probability outside [0, 1], or lengths that the chain cannot have.
    """
    config = config or DegradeConfig()
    if config.set == "realesrgan":
        return _draw_realesrgan(rng)
    groups = SETS[config.set]
    keep = check_chain(config)
    names = tuple(groups)
    lowest = config.min_ops if length is None else length
    highest = len(names) if length is None else length
    for _ in range(_MAX_REDRAWS):
        order = rng.permutation(len(names))[: config.n_max]
        executed = [
            names[i] for i, u in zip(order, rng.random(len(order)), strict=True) if u < keep[i]
        ]
        if lowest <= len(executed) <= highest:
            return Recipe(tuple(_draw_step(groups[name], config, rng) for name in executed))
    raise ConfigError(
        f"degrade: no chain of {lowest} to {highest} operators in {_MAX_REDRAWS} draws; "
        "raise p_keep or lower min_ops"
    )


def draw_length(rng: np.random.Generator, config: DegradeConfig) -> int:
    """The number of operators of one chain, for `n_scope: batch`, where all chains of a batch share it."""
    return len(draw_recipe(rng, config))


def level_probabilities(config: DegradeConfig) -> tuple[float, ...]:
    """Probability of levels 1..5: proportional to exp(-((level - 1) / level_sigma)^2 / 2), or equal."""
    if config.level_dist == "uniform":
        return (0.2,) * 5
    if not config.level_sigma > 0:
        raise ConfigError(
            f"degrade.level_sigma: got {config.level_sigma}, expected a positive number"
        )
    weights = [math.exp(-0.5 * (step / config.level_sigma) ** 2) for step in range(5)]
    return tuple(weight / sum(weights) for weight in weights)


@lru_cache(maxsize=16)
def _cumulative(distribution: str, sigma: float) -> tuple[float, ...]:
    config = DegradeConfig(level_dist=distribution, level_sigma=sigma)  # pyright: ignore[reportArgumentType]
    return tuple(np.cumsum(level_probabilities(config))[:4].tolist())


def _draw_step(types: tuple[str, ...], config: DegradeConfig, rng: np.random.Generator) -> Step:
    name = types[int(rng.integers(len(types)))]
    u = rng.random()
    level = 1 + sum(u >= bound for bound in _cumulative(config.level_dist, config.level_sigma))
    sign = 1
    if OPERATORS[name].draws_sign(config.levels):
        sign = 1 - 2 * int(rng.integers(2))
    return Step(name, level, sign)


def _draw_realesrgan(rng: np.random.Generator) -> Recipe:
    """Blur, resize, noise, JPEG; the same again; and an ideal low-pass filter before or after the last JPEG.

    The order and all probabilities are Real-ESRGAN's (options/train_realesrnet_x4plus.yml, realesrnet_model.py), so
    that of the configuration only `set` matters.
    """

    def step(name: str, sign: int = 1) -> Step:
        return Step(name, int(rng.integers(1, 6)), sign)

    steps: list[Step] = []
    for suffix, blur, up, down in (("", 1.0, 0.2, 0.7), ("2", 0.8, 0.3, 0.4)):
        if rng.random() < blur:
            steps.append(step(f"esrgan_blur{suffix}"))
        u = rng.random()
        if u < up + down:
            steps.append(step(f"esrgan_resize{suffix}", -1 if u < up else 1))
        noise = "gaussian" if rng.random() < 0.5 else "poisson"
        steps.append(step(f"esrgan_{noise}{suffix}"))
        steps.append(step(f"esrgan_jpeg{suffix}"))
    if rng.random() < 0.8:
        place = len(steps) - int(rng.integers(2))
        steps.insert(place, step("esrgan_sinc"))
    return Recipe(tuple(steps))


def check_chain(config: DegradeConfig) -> list[float]:
    """The keep probability of each group of the set, after checking everything that a chain depends on.

    Raises:
        ConfigError: see `draw_recipe`.
    """
    names = list(SETS[config.set])
    if isinstance(config.p_keep, dict):
        for name in config.p_keep:
            if name not in names:
                raise ConfigError(
                    f"degrade.p_keep: unknown group {name!r}{nearest(name, names)}; expected {', '.join(names)}"
                )
        missing = [name for name in names if name not in config.p_keep]
        if missing:
            raise ConfigError(f"degrade.p_keep: no probability for {', '.join(missing)}")
        keep = [config.p_keep[name] for name in names]
    else:
        keep = [float(config.p_keep)] * len(names)
    if not all(0 <= p <= 1 for p in keep):
        raise ConfigError(
            f"degrade.p_keep: got {config.p_keep}, expected probabilities from 0 to 1"
        )
    longest = min(config.n_max, len(names), sum(p > 0 for p in keep))
    if not 0 <= config.min_ops <= longest:
        raise ConfigError(
            f"degrade.min_ops: got {config.min_ops}, expected 0 to {longest}, the longest chain"
        )
    return keep
