"""The report of a search as MLflow artifacts: which values led where, which dials matter, what was stopped when."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

from dri_iqa.evaluation.search_figures import Dial, Trial, importance_bars, parallel_coordinates
from pipelines.runtime.config import Dimension
from pipelines.runtime.job import Job, Result
from pipelines.runtime.suggestions import importance
from pipelines.runtime.trials import METRIC

FOLDER = "search"


def report_search(job: Job, result: Result) -> None:
    """`search.json`, and below `search/` the table of trials and the figures."""
    job.tracker.json(job.name, result, "search.json")
    job.tracker.text(job.name, trial_table(job, result), f"{FOLDER}/trials.csv")
    space = job.config.search.space
    reached = [one for one in result["trials"] if one[METRIC] is not None]
    dials = [_dial(name, item) for name, item in space.items()]
    keys = [item.key for item in space.values()]
    trials = [
        Trial(
            values=tuple(one["changes"][key] for key in keys),
            reached=one[METRIC],
            stopped=one["stopped_early"],
        )
        for one in reached
    ]
    shares = importance(
        space, [(one["changes"], one[METRIC]) for one in reached], seed=job.config.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder) / "parallel_coordinates.png"
        parallel_coordinates(dials, trials, figure, metric=METRIC, title=job.name)
        job.tracker.file(job.name, str(figure), FOLDER)
        if shares:
            figure = importance_bars(shares, Path(folder) / "importance.png", title=job.name)
            job.tracker.file(job.name, str(figure), FOLDER)


def trial_table(job: Job, result: Result) -> str:
    """The trials as CSV, in the order in which they began."""
    space = job.config.search.space
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trial", *space, "epochs", METRIC, "ended", "error", "best"])
    for trial in result["trials"]:
        budget = job.config.search.epochs
        ended = f"stopped after epoch {trial['epochs']} of {budget}"
        if trial["error"]:
            ended = "failed"
        elif not trial["stopped_early"]:
            ended = "finished"
        writer.writerow(
            [
                trial["trial"],
                *[trial["changes"][item.key] for item in space.values()],
                trial["epochs"],
                trial[METRIC],
                ended,
                trial["error"] or "",
                "best" if trial == result["best"] else "",
            ]
        )
    return stream.getvalue()


def _dial(name: str, item: Dimension) -> Dial:
    ends = item.choices or tuple(end for end in (item.low, item.high) if end is not None)
    return Dial(name=name, low=min(ends), high=max(ends), log=item.log)
