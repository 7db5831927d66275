"""What the trials of a search report: a JSON log that survives the driver, nested MLflow runs, progress."""

from __future__ import annotations

from typing import Any

from ray import tune

from dri_iqa import storage
from pipelines.runtime.config import JobConfig, digest
from pipelines.runtime.console import Meter
from pipelines.runtime.fit import Result
from pipelines.runtime.tracking import Tracker

METRIC = "val_srocc"
KEPT = ("epoch", METRIC, "val_plcc", "loss")


class TrialLog:
    """What every trial has reported so far, by the digest of its values."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.trials: dict[str, Any] = storage.read_json(uri) if storage.exists(uri) else {}

    def begin(self, changes: dict[str, float]) -> None:
        """The trial was suggested: a restart tries it in this place, whether it has reported anything or not."""
        self._of(changes)
        storage.write_json(self._uri, self.trials)

    def row(self, changes: dict[str, float], row: dict[str, float]) -> None:
        """Keep one report of a trial; an epoch that is reported again after a restart counts once."""
        trial = self._of(changes)
        if not trial["rows"] or row["epoch"] > trial["rows"][-1]["epoch"]:
            trial["rows"].append(row)
            storage.write_json(self._uri, self.trials)

    def end(self, changes: dict[str, float], error: str | None = None) -> None:
        """The trial ran to its end, was stopped, or failed; failed ones are tried again after a restart."""
        self._of(changes).update(ended=error is None, error=error)
        storage.write_json(self._uri, self.trials)

    def points(self) -> list[dict[str, float]]:
        """The values of all trials so far, in the order in which they were suggested."""
        return [trial["changes"] for trial in self._in_order()]

    def replay(self) -> dict[str, dict[str, Any]]:
        """What each trial has reported, and whether it needs no more training."""
        return {
            name: {key: trial[key] for key in ("rows", "ended")}
            for name, trial in self.trials.items()
        }

    def _in_order(self) -> list[dict[str, Any]]:
        return sorted(self.trials.values(), key=lambda trial: trial["number"])

    def _of(self, changes: dict[str, float]) -> dict[str, Any]:
        empty = {
            "number": len(self.trials),
            "changes": changes,
            "rows": [],
            "ended": False,
            "error": None,
        }
        return self.trials.setdefault(digest(changes), empty)


class TrialReport(tune.Callback):
    """Tune's callback on the driver: the log, a nested MLflow run a trial, progress over all of them."""

    def __init__(
        self, log: TrialLog, tracker: Tracker, key: str, meter: Meter, config: JobConfig
    ) -> None:
        self._log, self._tracker, self._key, self._meter = log, tracker, key, meter
        self._search = config.search
        self._epochs: dict[str, int] = {}
        self.ended = 0
        """Trials that are over, for whatever reason."""
        self._work: dict[str, float] = {}

    @property
    def work_seconds(self) -> float:
        """Time that the trials of this process have worked; what was replayed has cost nothing."""
        return sum(self._work.values())

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores its set-up beside the search; a new driver brings a report of its own

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
    ) -> None:
        """A trial finished an epoch."""
        name = self._run(trial)
        row = {key: value for key, value in result.items() if key in KEPT}
        epoch = int(row["epoch"])
        self._log.row(trial.config, row)
        self._tracker.epoch(trial_key(self._key, trial.config), epoch, row)
        self._epochs[name] = epoch
        self._work[name] = max(self._work.get(name, 0.0), float(result.get("seconds", 0.0)))
        self._show(f"trial {name} epoch {epoch}: {METRIC} {row[METRIC]:.3f}")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial reached its budget or was stopped."""
        self.ended += 1
        name = self._run(trial)
        reached = self._epochs.get(name, 0)
        key = trial_key(self._key, trial.config)
        self._log.end(trial.config)
        self._tracker.tags(key, {"stopped_early": str(reached < self._search.epochs).lower()})
        self._tracker.end(key)
        self._epochs[name] = self._search.epochs
        self._show(f"trial {name} ended after {reached} epoch(s)")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        self.ended += 1
        self._run(trial)
        lines = str(trial.get_error()).strip().splitlines()
        self._log.end(trial.config, error=lines[-1] if lines else "unknown")
        self._tracker.end(trial_key(self._key, trial.config), "FAILED")

    def _run(self, trial: Any) -> str:
        name = digest(trial.config)[:6]
        self._tracker.run(
            trial_key(self._key, trial.config),
            f"trial {name}",
            parent=self._key,
            params=trial.config,
        )
        return name

    def _show(self, note: str) -> None:
        self._meter.update(
            sum(self._epochs.values()), self._search.trials * self._search.epochs, note
        )


def trial_key(key: str, changes: dict[str, float]) -> str:
    """A trial's key in journal and MLflow; the same after a restart, which Tune's own ids are not."""
    return f"{key}/search/{digest(changes)}"


def summary(name: str, trial: dict[str, Any], budget: int) -> Result:
    """One row of the table of trials."""
    last = trial["rows"][-1] if trial["rows"] else {}
    epochs = int(last.get("epoch", 0))
    return {
        "trial": name[:6],
        "changes": trial["changes"],
        "epochs": epochs,
        METRIC: last.get(METRIC),
        "stopped_early": epochs < budget,
        "error": trial["error"],
    }
