"""The main job: ingest, stage 1, search, stage 2 with the winner, evaluation, registration, check, report."""

from __future__ import annotations

import math
from typing import Any

from dri_iqa import storage
from pipelines.ingest import ingest
from pipelines.pretrain import pretrain
from pipelines.register import check, register_step
from pipelines.report import NO_ORDER, RESTORED, make_report
from pipelines.runtime.config import replace_keys
from pipelines.runtime.console import duration
from pipelines.runtime.fit import Inputs, pretrain_spec
from pipelines.runtime.job import Job, main
from pipelines.runtime.training import run_stage
from pipelines.testing import evaluate, evaluate_untrained, show
from pipelines.train import train
from pipelines.tune import show_trials, tune
from pipelines.yardstick import show_yardstick, yardstick


def steps(job: Job) -> None:
    """The table of contents."""
    job.console.say(f"job       {job.name}\noutput    {job.directory}")
    if storage.exists(job.summary_uri) and not job.config.registry.force:
        job.console.say(
            "finished before: nothing is trained again (another run=NAME or seed=N starts anew)"
        )
        report(job, storage.read_json(job.summary_uri))
        job.catch_up()
        return
    searched = job.config.search.trials > 0
    job.console.steps = 8 + 2 * searched + job.config.evaluate.yardstick
    with job.connect():
        data = job.step("ingest", "ingest the photographs", lambda: ingest(job))
        inputs = Inputs(**data["inputs"])
        first = job.step(
            "stage1", "stage 1: pre-train the extractor", lambda: pretrain(job, inputs)
        )
        found: dict[str, Any] = {"changes": {}}
        if searched:
            found = job.step(
                "search", "search lambda, learning rate, temperature", lambda: tune(job, inputs)
            )
            first = winner_stage1(job, inputs, found["changes"])
        changes = found["changes"]
        second = job.step(
            "stage2", "stage 2: train with the winner", lambda: train(job, inputs, first, changes)
        )
        tested = job.step(
            "evaluate",
            "evaluate on what was never trained on",
            lambda: evaluate(job, inputs, second),
        )
        before = job.step(
            "untrained",
            "the same without training",
            lambda: evaluate_untrained(job, inputs, second, tested["example"]),
        )
        mark: dict[str, Any] | None = None
        if job.config.evaluate.yardstick:
            mark = job.step("yardstick", "the mark to beat", lambda: yardstick(job, inputs))
        version = register_step(job, inputs, second, tested)
        checked = job.step(
            "check",
            "pull it from the registry elsewhere",
            lambda: check(job, inputs, tested, version),
        )
        made = {
            "stage1": first,
            "stage2": second,
            "test": tested,
            "untrained": before,
            "yardstick": mark,
            "search": found,
        }
        pages = job.step("report", "write the report", lambda: make_report(job, inputs, made))
        summary = {
            "stage1": first["sha256"],
            "stage2": second["sha256"],
            "bundle": second["uri"],
            "restoration": second.get("restoration"),
            "search": found,
            "test": tested,
            "untrained": before,
            "yardstick": mark,
            "version": version,
            "check": checked,
            "report": pages["html"],
            "tracking": job.tracker.uri,
            "seconds": job.seconds(),
        }
        storage.write_json(job.summary_uri, summary)
        job.tracker.json(job.name, summary, "summary.json")
    report(job, summary)


def winner_stage1(job: Job, inputs: Inputs, changes: dict[str, float]) -> dict[str, Any]:
    """Stage 1 at the winner's temperature and full budget; found trained where the search shared it."""
    config = replace_keys(job.config, changes)
    spec = pretrain_spec(config, inputs, job.plan.workers)
    return job.step(
        "stage1-winner",
        "stage 1 at the winner's temperature",
        lambda: run_stage(job, spec, "stage1-winner"),
        spec.identity,
    )


def report(job: Job, summary: dict[str, Any]) -> None:
    """What was made, how good it is, where it lies, and what to do next."""
    if summary["search"].get("trials"):
        show_trials(job, summary["search"])
    show(job, summary["test"])
    if summary.get("yardstick"):
        show_yardstick(job, summary["yardstick"])
    example, before = summary["test"]["example"], summary["untrained"]
    rows = [
        [
            "test SROCC",
            NO_ORDER if math.isnan(before["srocc"]) else f"{before['srocc']:.3f}",
            f"{summary['test']['srocc']:.3f}",
            "1",
        ],
        [
            f"score of {example['name']}",
            f"{before['example']:.3f}",
            f"{example['score']:.3f}",
            f"{example['given']:.3f}",
        ],
    ]
    if gain := summary.get("restoration"):
        decibels = (f"{gain[name]:.2f}" for name in ("psnr_input", "psnr_restored"))
        rows.append([RESTORED.format(**gain), *decibels, ""])
    job.console.table("Before and after training", ["what", "before", "after", "given"], rows)
    seconds = summary["seconds"]
    rows = [
        [
            "registered model",
            f"{summary['version']['model']} (version {summary['version']['version']})",
        ],
        ["decision", summary["version"]["decision"]],
        ["bundle", summary["bundle"]],
        ["stage-1 weights sha256", summary["stage1"]],
        ["bundle sha256", summary["stage2"]],
        ["predictions", summary["test"]["predictions"]],
        ["time", ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())],
    ]
    job.console.table("Made", ["what", "where"], rows)
    job.console.say("next")
    job.console.say(f"  open the report   {summary['report']}")
    job.console.say(f"  score a picture   dri-iqa score photo.jpg --model {summary['bundle']}")
    if summary["tracking"].startswith("sqlite"):
        job.console.say(f"  see the runs      mlflow ui --backend-store-uri {summary['tracking']}")
    else:
        job.console.say(f"  see the runs      {summary['tracking']}")
    job.console.say(
        "  your own images   python pipelines/full.py data=csv data.root=FOLDER  (labels.csv: image,score)"
    )


if __name__ == "__main__":
    main("full", steps)
