"""What a search tries next: Optuna's TPE, asked anew for each trial.

A suggestion is a pure function of the seed, the trial's number and the results so far. Ray's own wrapper keeps one
sampler for the whole search: started again, it would draw its first random point once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher

from dri_iqa.config import ConfigError
from dri_iqa.seeds import Purpose, seed_of
from pipelines.runtime.config import Dimension

Values = dict[str, Any]


class Suggestions(Searcher):
    """Tune's search algorithm.

    Args:
        space: the searched keys.
        seed: of the run.
        metric: what is maximised.
        first: values to try first, in order; those of the trials of a search that was killed.
        told: is called with every suggestion, in order. Tune starts trials in whatever order their processes come up.
    """

    def __init__(
        self,
        space: dict[str, Dimension],
        *,
        seed: int,
        metric: str,
        first: list[Values],
        told: Callable[[Values], None] = lambda values: None,
    ) -> None:
        super().__init__(metric=metric, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {item.key: distribution(item) for item in space.values()}
        self._seed, self._name, self._first, self._told = seed, metric, first, told
        self._number: dict[str, int] = {}
        self._tried: list[Values] = []
        self._results: dict[int, float] = {}

    def suggest(self, trial_id: str) -> Values:
        """The values of the next trial."""
        number = len(self._tried)
        values = self._first[number] if number < len(self._first) else self._ask(number)
        self._number[trial_id] = number
        self._tried.append(values)
        self._told(values)
        return dict(values)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Keep what a trial reached, stopped early or not."""
        if result and not error:
            self._results[self._number[trial_id]] = float(result[self._name])

    def _ask(self, number: int) -> Values:
        sampler = optuna.samplers.TPESampler(
            seed=seed_of(self._seed, Purpose.SEARCH, number) % 2**32
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for done in sorted(self._results):
            study.add_trial(
                optuna.trial.create_trial(
                    params=self._tried[done],
                    distributions=self._space,
                    value=self._results[done],
                )
            )
        return study.ask(self._space).params

    def save(self, checkpoint_path: str) -> None:
        """Tune asks for a file; what a restart reads is the log of trials."""
        Path(checkpoint_path).write_text(json.dumps(self._tried))

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a new driver begins with `first`."""
        raise NotImplementedError


def importance(
    space: dict[str, Dimension], tried: list[tuple[Values, float]], *, seed: int
) -> dict[str, float]:
    """How much of the differences between trials each dial explains, by its name: fANOVA over what they reached.

    Args:
        space: the searched keys.
        tried: values and what they reached, stopped early or not.
        seed: of the run.

    Returns:
        Shares that sum to 1; empty where fewer than four trials, or equal results, tell nothing.
    """
    if len(tried) < 4 or len({value for _, value in tried}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    keys = {item.key: distribution(item) for item in space.values()}
    for values, value in tried:
        study.add_trial(optuna.trial.create_trial(params=values, distributions=keys, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(
        seed=seed_of(seed, Purpose.SEARCH, len(tried)) % 2**32
    )
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(found[item.key]) for name, item in space.items() if item.key in found}


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dial's range as Optuna understands it.

    Raises:
        ConfigError: neither a range nor choices.
    """
    if dimension.choices:
        return CategoricalDistribution(list(dimension.choices))
    if dimension.low is None or dimension.high is None:
        raise ConfigError(
            f"{dimension.key} is searched without a range\ngive it low and high, or choices"
        )
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
