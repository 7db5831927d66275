"""Registration: the trained model becomes a version in MLflow's registry, and a new process pulls it by alias."""

from __future__ import annotations

from typing import Any

from dri_iqa import storage
from dri_iqa.data.batches import Source
from pipelines.ingest import ingest
from pipelines.pretrain import pretrain
from pipelines.runtime import registry
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, git_commit, main
from pipelines.testing import evaluate
from pipelines.train import train

CARD = """# dri-iqa: {name}

No-reference image quality model (DRI-IQA, dual-representation image quality assessment with restoration assistance).

| what | value |
|---|---|
| data | {data}, **{kind} scores** |
| test SROCC / PLCC | {srocc:.3f} / {plcc:.3f} on {images} images of {groups} references or scenes never trained on |
| protocol | {crops} random crops per image, positions fixed by its content |
| variant, preset | {variant}, crop {crop} px |
| manifest, split | {manifest}, {split} |
| run, commit | {run}, {commit} |

{notes}

Limits: scores hold for images like those it was trained on; they say nothing about content or taste.
"""


def register(job: Job, inputs: Inputs, trained: Result, tested: Result) -> Result:
    """Register the bundle; the control experiment never becomes the champion."""
    config = job.config
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    example = source.open().read(tested["example"]["image_id"])["bytes"]
    alias = "control" if inputs.shuffle_scores else config.registry.alias
    facts = _facts(job, inputs, tested)
    version = registry.register(
        job.tracker,
        f"{job.name}/register",
        job.name,
        bundle=trained["uri"],
        name=config.registry.name,
        alias=alias,
        example=example,
        card=CARD.format(**facts, notes=source.open().manifest.notes),
        tags={
            name: str(facts[name])
            for name in ("data", "kind", "srocc", "plcc", "manifest", "split", "run", "commit")
        },
    )
    if alias == "champion":
        pointer = {"bundle": trained["uri"], "model": version["uri"], "tracking": job.tracker.uri}
        storage.write_json(storage.join(job.output, "champion.json"), pointer)
    return version


def check(job: Job, inputs: Inputs, tested: Result, version: Result) -> Result:
    """Pull the model by alias in a process that knows nothing of the project, and compare a score.

    Raises:
        RuntimeError: it does not load there, or scores differently.
    """
    example = tested["example"]
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    image = source.open().read(example["image_id"])["bytes"]
    answer = registry.pull_and_score(
        version["uri"], job.tracker.uri, image, job.config.evaluate.crops
    )
    if answer["error"] is not None or abs(answer["score"] - example["score"]) > 1e-4:
        raise RuntimeError(
            f"{version['uri']} scores {answer} where the evaluation gave {example['score']:.6f}"
        )
    job.console.say(
        f"    {version['model']} in a new process: {answer['score']:.4f} +- {answer['std']:.4f} for {example['name']}"
        f" (evaluation {example['score']:.4f}, given {example['given']:.4f})"
    )
    return {"score": answer["score"], "std": answer["std"], "image": example["name"]}


def _facts(job: Job, inputs: Inputs, tested: Result) -> dict[str, Any]:
    config = job.config
    return {
        "name": config.registry.name,
        "data": config.data.name,
        "kind": tested["kind"],
        "srocc": tested["srocc"],
        "plcc": tested["plcc"],
        "images": tested["rows"][0]["images"],
        "groups": tested["rows"][0]["groups"],
        "crops": config.evaluate.crops,
        "variant": config.stage2.variant,
        "crop": config.model.crop,
        "manifest": inputs.scored_digest[:12],
        "split": inputs.split_digest[:12],
        "run": job.name,
        "commit": git_commit()[:12],
    }


def steps(job: Job) -> None:
    """The job: whatever is missing up to the evaluation, then registration and the check."""
    job.console.steps = 6
    with job.connect():
        data = job.step("ingest", "ingest", lambda: ingest(job))
        inputs = Inputs(**data["inputs"])
        first = job.step(
            "stage1", "stage 1: pre-train the extractor", lambda: pretrain(job, inputs)
        )
        second = job.step(
            "stage2", "stage 2: train the predictor", lambda: train(job, inputs, first, {})
        )
        tested = job.step("evaluate", "evaluate", lambda: evaluate(job, inputs, second))
        version = job.step("register", "register", lambda: register(job, inputs, second, tested))
        job.step("check", "pull by alias and score", lambda: check(job, inputs, tested, version))


if __name__ == "__main__":
    main("register", steps)
