"""The report of a finished job: one page with its numbers, its pictures and what they were made from.

Everything comes from what the job's steps left; only references are scored anew, and maps computed, by a Ray task.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dri_iqa import storage
from dri_iqa.config import to_dict
from dri_iqa.data.batches import Source
from dri_iqa.data.manifest import ShardReader
from dri_iqa.data.splits import load_splits
from dri_iqa.data.summary import summary
from dri_iqa.evaluation.assembly import Evidence, assemble
from dri_iqa.evaluation.choosing import Image, Strip, choose_mapped, choose_strips, worst
from dri_iqa.evaluation.report import environment, write_report
from dri_iqa.evaluation.showing import (
    Looked,
    judged_strip,
    look,
    mapped_row,
    outlier,
    small_chains,
    small_gallery,
)
from pipelines.runtime.console import duration
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, git_commit, versions
from pipelines.runtime.tasks import run_tasks
from pipelines.runtime.tracking import RESTORATION
from pipelines.runtime.training import fetch_pictures
from pipelines.runtime.trials import METRIC

FOLDER = "report"
"""Below the job's folder, and in MLflow."""
RESTORED = "PSNR of {images} unseen images in dB, restored"
"""A row of what training changed."""
NO_ORDER = "none: equal scores"
"""The rank correlation of an untrained linear readout, which gives every image the same score."""
Made = Mapping[str, Any]
"""Results of a job's steps: `stage2` and `test`; where there are, `stage1`, `untrained`, `yardstick`, `search`."""


def make_report(job: Job, inputs: Inputs, made: Made) -> Result:
    """The report of one trained model, see `publish`."""
    with tempfile.TemporaryDirectory() as folder:
        return publish(job, gather(job, inputs, made, Path(folder)), Path(folder))


def publish(job: Job, evidence: Evidence, folder: Path) -> Result:
    """Write report.html, report.md and tables as CSV into the job's folder and into MLflow.

    Args:
        job: connected.
        evidence: what was found.
        folder: a local folder to write to first.

    Returns:
        `html` and `markdown`, their URIs.
    """
    written = write_report(assemble(evidence, folder), folder / FOLDER)
    uri = storage.join(job.directory, FOLDER)
    storage.upload_directory(folder / FOLDER, uri)
    job.tracker.folder(job.name, str(folder / FOLDER), FOLDER)
    return {
        "html": storage.join(uri, written.html.name),
        "markdown": storage.join(uri, written.markdown.name),
    }


def gather(job: Job, inputs: Inputs, made: Made, folder: Path) -> Evidence:
    """What the report of one trained model is made of; pictures that workers drew are copied into `folder`."""
    config, trained, tested = job.config, made["stage2"], made["test"]
    pretrained = made.get("stage1")
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    reader = source.open()
    images = _tested(reader, tested["predictions"])
    higher = reader.manifest.higher_is_better
    strips = choose_strips(images, higher_is_better=higher)
    mapped: list[Image] = []
    if config.stage2.variant != "maniqa":  # the baseline has no extractor
        mapped = choose_mapped(images, strips[0], higher_is_better=higher)
    looked = _look(job, trained["uri"], source, strips, mapped)
    drawn = {path.name: path for path in fetch_pictures(trained, folder)}
    halves = fetch_pictures(pretrained, folder) if pretrained else []
    example = reader.read(strips[0].images[0]["image_id"])
    if strips[0].reference is not None:
        example = reader.read_reference(strips[0].reference)
    return Evidence(
        title=f"DRI-IQA on {reader.manifest.name}",
        summary=f"Job {job.name}, variant {config.stage2.variant}, tested on "
        f"{tested['rows'][0]['images']} images of {tested['rows'][0]['groups']} references or "
        f"scenes that it was never trained on, crops: {config.evaluate.crops}.",
        data=config.data.name,
        kind=tested["kind"],
        facts=_facts(job, made),
        notes=_notes(job, inputs, reader.manifest.notes, tested),
        results=_results(job, made),
        tables={"Before and after training": _before_and_after(made)},
        subsets=tested["rows"],
        images=images,
        worst=[outlier(reader, image) for image in worst(images)],
        strips=[judged_strip(reader, strip, looked) for strip in strips],
        maps=[mapped_row(reader, image, looked) for image in mapped],
        stage1=pretrained["history"] if pretrained else (),
        stage2=trained["history"],
        restoration=drawn.get(RESTORATION),
        halves=halves[-1] if halves else None,
        gallery_HWC=small_gallery(example, config.stage1.degrade),
        chains_HWC=small_chains(example, config.stage1.degrade),
        trials=_trials(job, made),
        protocol=_protocol(job, inputs, made, reader),
        configuration=to_dict(config) | {"tracking": config.tracking.kind},
        environment=environment() | versions() | {"cluster": str(job.plan)},
    )


def _tested(reader: ShardReader, uri: str) -> list[dict[str, Any]]:
    """The test images with their scores and what the manifest knows of them, as rows."""
    frame = pd.read_csv(
        io.BytesIO(storage.read_bytes(uri)),
        dtype={
            "name": "str",
            "group": "str",
            "type": "str",
            "subset": "str",
        },  # some sets number them
        keep_default_na=False,
        na_values=[""],
    )
    frame = frame.dropna(subset=["score"])
    table = reader.manifest.images().select(["image_id", "reference", "recipe"]).to_pandas()
    frame = frame.merge(table, on="image_id").astype(object)
    rows = frame.where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _look(
    job: Job, bundle: str, source: Source, strips: Sequence[Strip], mapped: Sequence[Image]
) -> Looked:
    references = [strip.reference for strip in strips if strip.reference is not None]
    call = (
        bundle,
        source,
        references,
        [image["image_id"] for image in mapped],
        job.config.evaluate.crops,
    )
    (looked,) = run_tasks(look, [call], cpus=min(1.0, job.plan.total_cpus))
    return looked


def _facts(job: Job, made: Made) -> dict[str, Any]:
    """The tiles at the top."""
    tested = made["test"]
    facts = {"test SROCC": tested["srocc"], "test PLCC": tested["plcc"]}
    if made.get("untrained"):
        facts["SROCC before training"] = made["untrained"]["srocc"]
    if made.get("yardstick"):
        facts["SROCC of the yardstick"] = made["yardstick"]["srocc"]
    return facts | {
        "scores": tested["kind"],
        "time of all steps": duration(sum(job.seconds().values())),
    }


def _notes(job: Job, inputs: Inputs, data: str, tested: Result) -> list[str]:
    """What a reader must know before believing a number."""
    notes = [data] if data else []
    if inputs.shuffle_scores:
        notes.append(
            "Control experiment: training scores were permuted, nothing could be learnt from them."
        )
    if tested["failed"]:
        notes.append(f"{tested['failed']} test images could not be scored and are left out.")
    perceptual = job.config.stage2.perceptual
    if perceptual.weights == "random" and perceptual.backbone != "none":
        notes.append(
            f"The perceptual loss uses {perceptual.backbone} with random weights: a projection, not a perceptual "
            "measure."
        )
    return notes


def _results(job: Job, made: Made) -> list[dict[str, Any]]:
    """The models that this job measured, on one test part."""
    measured = {job.config.stage2.variant: made["test"]}
    if made.get("yardstick"):
        measured["yardstick: regression on pooled features"] = made["yardstick"]
    columns = ("srocc", "srocc_low", "srocc_high", "plcc", "plcc_low", "plcc_high")
    return [
        {"model": model, "data": f"{job.config.data.name}, {result['kind']} scores"}
        | {name: result["rows"][0][name] for name in columns}
        for model, result in measured.items()
    ]


def _before_and_after(made: Made) -> list[dict[str, Any]]:
    before, tested = made.get("untrained"), made["test"]
    if not before:
        return []
    example, gain = tested["example"], made["stage2"].get("restoration")
    rows = [
        {
            "what": "test SROCC",
            "before": NO_ORDER if math.isnan(before["srocc"]) else before["srocc"],
            "after": tested["srocc"],
        },
        {
            "what": f"score of {example['name']}",
            "before": before["example"],
            "after": example["score"],
            "given": example["given"],
        },
    ]
    if gain:
        decibels = {"before": gain["psnr_input"], "after": gain["psnr_restored"]}
        rows.append({"what": RESTORED.format(**gain), **decibels})
    return rows


def _trials(job: Job, made: Made) -> list[dict[str, Any]]:
    search, dials = made.get("search") or {}, job.config.search.space.items()
    return [
        {
            "trial": trial["trial"],
            **{name: trial["changes"].get(dial.key) for name, dial in dials},
            "epochs": trial["epochs"],
            METRIC: trial[METRIC],
            "stopped early": trial["stopped_early"],
            "error": trial["error"],
            "best": "best" if trial == search["best"] else "",
        }
        for trial in search.get("trials", [])
    ]


def _protocol(job: Job, inputs: Inputs, made: Made, reader: ShardReader) -> dict[str, Any]:
    """What was measured how, and the digests that name every byte of it."""
    config, split = job.config, load_splits(inputs.split_uri)[0]
    about, seconds = summary(reader.manifest), job.seconds()
    sizes = {part: len(getattr(split, part)) for part in ("train", "val", "test")}
    return {
        "data set": reader.manifest.name,
        "licence": reader.manifest.licence,
        **{name: text for name, text in about.items() if name not in ("shards", "manifest")},
        "split": f"{split.source}: " + ", ".join(f"{n} {part}" for part, n in sizes.items()),
        "protocol": config.protocol.name,
        "test crops": f"{config.evaluate.crops} of {config.model.crop} px; drawn positions are fixed by content",
        "epoch": {"last": "the last one", "val": "the best on validation"}[config.stage2.select],
        "intervals": f"95 %, {config.evaluate.bootstrap} resamples of references or scenes",
        "seeds": f"run {config.seed}, split {config.data.split_seed}",
        "scored manifest sha256": inputs.scored_digest,
        "clean manifest sha256": inputs.clean_digest,
        "split sha256": inputs.split_digest,
        "stage-1 weights sha256": made["stage1"]["sha256"] if made.get("stage1") else "none",
        "bundle sha256": made["stage2"]["sha256"],
        "commit": git_commit(),
        "predictions": made["test"]["predictions"],
        "time of each step": ", ".join(
            f"{name} {duration(value)}" for name, value in seconds.items()
        ),
    }
