"""Registration: the trained model becomes a version in MLflow's registry, and the champion if it beats the champion.

`registry.rollback=true` makes the previous champion the champion again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dri_iqa import storage
from dri_iqa.data.batches import Source
from dri_iqa.data.manifest import Manifest
from pipelines.contest import against_champion
from pipelines.ingest import ingest
from pipelines.pretrain import pretrain
from pipelines.runtime import registry
from pipelines.runtime.fit import Inputs
from pipelines.runtime.job import Job, Result, git_commit, main
from pipelines.runtime.mlflow_server import RETRIES, check_server, connect, tracking_uri
from pipelines.runtime.promotion import CONTROL, Comparison, RegistryError, Tags, rollback, settle
from pipelines.testing import evaluate, interval
from pipelines.train import train

CARD = """# dri-iqa: {name}

No-reference image quality model (DRI-IQA, dual-representation image quality assessment with restoration assistance).

| what | value |
|---|---|
| data | {data}, **{kind} scores** |
| licence of the data | {licence} |
| test SROCC | {srocc_interval} |
| test PLCC | {plcc_interval} |
| tested on | {images} images of {groups} references or scenes never trained on |
| protocol | crops per image: {crops} (a number: random, fixed by content); 95 % intervals over references or scenes |
| variant, preset | {variant}, crop {crop} px |
| manifest, split | {manifest}, {split} |
| run, commit | {run}, {commit} |
| bundle sha256 | {bundle_sha256} |

{notes}

Limits: scores hold for images like those it was trained on; they say nothing about content or taste.
"""
TAGGED = (
    *("data", "kind", "srocc", "plcc", "manifest", "split", "run", "commit"),
    *("bundle", "bundle_sha256"),
)


def register(job: Job, inputs: Inputs, trained: Result, tested: Result) -> Result:
    """Register the bundle and settle who is the champion; the control experiment never is.

    Returns:
        `version`, `uri` (by version), `model` (by alias, where it has one) and `decision` (a sentence).
    """
    settings, client = job.config.registry, job.tracker.client
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    facts = _facts(job, inputs, trained, tested, source.open().manifest)
    tags = {name: str(facts[name]) for name in TAGGED}
    card = CARD.format(**facts)
    version = registry.register(
        job.tracker,
        f"{job.name}/register",
        job.name,
        bundle=trained["uri"],
        name=settings.name,
        example=source.open().read(tested["example"]["image_id"])["bytes"],
        card=card,
        tags=tags,
    )
    if inputs.shuffle_scores:
        client.set_registered_model_alias(settings.name, CONTROL, version)
        alias, text = CONTROL, f"version {version} is a control experiment, never the champion"
    else:

        def contest(champion: str, theirs: Tags) -> Comparison:
            return against_champion(job, source, tested, tags, champion, theirs)

        decision = settle(
            client,
            settings.name,
            version,
            contest,
            follow=lambda champion, theirs: point(job, champion, theirs),
            say=job.console.say,
            force=settings.force,
        )
        alias, text = decision.alias, decision.text
    client.update_model_version(
        settings.name, version, description=f"{card}\nWhen it was registered: {text}.\n"
    )
    job.console.say(f"    {text}")
    uri = f"models:/{settings.name}/{version}"
    model = f"models:/{settings.name}@{alias}" if alias else uri
    return {"version": version, "uri": uri, "model": model, "decision": text}


def point(job: Job, champion: str, tags: Tags) -> None:
    """Let `champion.json` name the champion, for commands that are given no model."""
    uri = f"models:/{job.config.registry.name}/{champion}"
    registry = tracking_uri(job.config.tracking, job.output)
    pointer = {"bundle": tags.get("bundle", uri), "model": uri, "tracking": registry}
    pointer["scores"] = tags.get(
        "kind", "human"
    )  # pseudo scores do not stand before the model that comes along
    storage.write_json(storage.join(job.output, "champion.json"), pointer)


def go_back(job: Job) -> None:
    """`registry.rollback=true`.

    Raises:
        RegistryError: nothing was registered there, or there is nothing to go back to.
    """
    check_server(job.config.tracking)
    place = tracking_uri(job.config.tracking, job.output)
    if place.startswith("sqlite:///") and not Path(place.removeprefix("sqlite:///")).exists():
        raise RegistryError(f"nothing was registered at {place}\ncheck output and tracking.uri")
    os.environ.setdefault(RETRIES, "3")
    text = rollback(
        connect(job.config.tracking, job.output).client,
        job.config.registry.name,
        follow=lambda champion, tags: point(job, champion, tags),
        say=job.console.say,
    )
    job.console.say(f"{job.config.registry.name}: {text}")


def check(job: Job, inputs: Inputs, tested: Result, version: Result) -> Result:
    """Pull the version in a process that knows nothing of the project, and compare a score.

    Raises:
        RuntimeError: it does not load there, or scores differently.
    """
    example = tested["example"]
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    image = source.open().read(example["image_id"])["bytes"]
    with job.tracker.needed("pulling the model"):
        answer = registry.pull_and_score(
            version["uri"], job.tracker.uri, image, job.config.evaluate.crops
        )
    if answer["error"] is not None or abs(answer["score"] - example["score"]) > 1e-4:
        raise RuntimeError(
            f"{version['uri']} scores {answer} where the evaluation gave {example['score']:.6f}"
        )
    job.console.say(
        f"    {version['uri']} in a new process: {answer['score']:.4f} +- {answer['std']:.4f} for {example['name']}"
        f" (evaluation {example['score']:.4f}, given {example['given']:.4f})"
    )
    return {"score": answer["score"], "std": answer["std"], "image": example["name"]}


def _facts(
    job: Job, inputs: Inputs, trained: Result, tested: Result, manifest: Manifest
) -> dict[str, Any]:
    config, row = job.config, tested["rows"][0]
    return {
        "name": config.registry.name,
        "data": config.data.name,
        "kind": tested["kind"],
        "licence": manifest.licence,
        "notes": manifest.notes,
        "srocc": tested["srocc"],
        "plcc": tested["plcc"],
        "srocc_interval": interval(row, "srocc"),
        "plcc_interval": interval(row, "plcc"),
        "images": row["images"],
        "groups": row["groups"],
        "crops": config.evaluate.crops,
        "variant": config.stage2.variant,
        "crop": config.model.crop,
        "manifest": inputs.scored_digest[:12],
        "split": inputs.split_digest[:12],
        "run": job.name,
        "commit": git_commit()[:12],
        "bundle": trained["uri"],
        "bundle_sha256": trained["sha256"],
    }


def steps(job: Job) -> None:
    """The job: whatever is missing up to the evaluation, then registration and the check."""
    if job.config.registry.rollback:
        go_back(job)
        return
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
        version = register_step(job, inputs, second, tested)
        job.step(
            "check",
            "pull it from the registry and score",
            lambda: check(job, inputs, tested, version),
        )


def register_step(job: Job, inputs: Inputs, trained: Result, tested: Result) -> Result:
    """`register` as a step, which is done again where it is forced now and was not before."""

    def work() -> Result:
        with job.tracker.needed("registering the model"):
            return register(job, inputs, trained, tested)

    forced = job.config.registry.force or None
    return job.step("register", "register the model", work, forced)


if __name__ == "__main__":
    main("register", steps)
