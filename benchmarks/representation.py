"""What the two halves of the extractor learn from clean photographs, without a cluster and on one core.

    python benchmarks/representation.py --images FOLDER --out OUT --view 192               # the paper's positives
    python benchmarks/representation.py --images FOLDER --out OUT2 --view 192 stage1.moco.deg_positive=cross_content
    python benchmarks/representation.py --publish same_image=OUT cross_content=OUT2        # curve, figure, table

Trains stage 1 (preset `halves` unless another is given; any dotted key may follow) with the pipelines' own loop, then
fits linear probes on the frozen halves, on those of a random extractor of the same shape, and on pixel statistics, all
of views of the same side. A fifth of the photographs is never trained on; probes are tested on those. The same command
resumes a killed run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dri_iqa.data.batches import Source
from dri_iqa.data.datasets import read_dataset
from dri_iqa.data.manifest import Manifest
from dri_iqa.data.order import IdSet
from dri_iqa.data.publishing import publish
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.evaluation.probe import (
    Views,
    half_features,
    make_views,
    pixel_statistics,
    probe_errors,
)
from dri_iqa.images import decode
from dri_iqa.models.dre import DREEncoder
from dri_iqa.models.weights import seeded
from dri_iqa.stages import PretrainStage
from dri_iqa.stages.base import to_float
from pipelines.runtime.config import JobConfig, compose
from pipelines.runtime.feeds import Feed, clean_parts, pretrain_batches
from pipelines.runtime.fit import Inputs, RunSpec, pretrain_spec
from pipelines.runtime.host import LocalHost
from pipelines.runtime.loop import train
from pipelines.runtime.setups import setup_pretrain

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIT_IMAGES = 250
"""Photographs of the training part that the final probes are fitted on, each under every type."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", help="folder of clean photographs")
    parser.add_argument("--out", help="folder for data, checkpoints and results of one run")
    parser.add_argument("--view", type=int, help="side in pixels of what the last probes see")
    parser.add_argument(
        "--publish", nargs="+", metavar="NAME=OUT", help="write the finished runs' curve and figure"
    )
    parser.add_argument("overrides", nargs="*", help="dotted.key=value")
    given = parser.parse_args()
    if given.publish:
        write_results(dict(item.split("=", 1) for item in given.publish))
    elif given.images and given.out:
        run(given.images, Path(given.out).absolute(), given.view, given.overrides)
    else:
        parser.error("give --images and --out, or --publish")


def run(images: str, out: Path, view: int | None, overrides: list[str]) -> None:
    """Ingest, train (or resume), probe; leaves `result.json` in the folder."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    preset = [] if any(item.startswith("preset=") for item in overrides) else ["preset=halves"]
    config = compose("pretrain", [*preset, *overrides])
    manifest = ingest(images, str(out / "data"))
    inputs = Inputs(
        scored_uri="",
        scored_digest="",
        split_uri="",
        split_digest="",
        clean_uri=manifest.directory,
        clean_digest=manifest.digest,
    )
    spec = pretrain_spec(config, inputs, workers=1)
    stage, seconds = pretrain(spec, out)
    result = {
        "overrides": overrides,
        "config": spec.config,
        "manifest": manifest.digest,
        "cpu_seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "curve": [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()],
        "view": view or config.model.crop,
        "errors": final_probes(config, manifest, stage, view or config.model.crop),
    }
    (out / "result.json").write_text(json.dumps(result, indent=1))
    for name, errors in result["errors"].items():
        print(name, {key: round(value, 3) for key, value in errors.items()}, flush=True)


def ingest(root: str, directory: str) -> Manifest:
    """The folder as shards, written once."""
    if (Path(directory) / "manifest.json").exists():
        return Manifest.load(directory)
    dataset = read_dataset("folder", root)
    plans = plan_shards(dataset, 128, cut=None, seed=0)
    return publish(directory, dataset, [write_shard(plan, directory) for plan in plans])


def pretrain(spec: RunSpec, out: Path) -> tuple[PretrainStage, float]:
    """The trained stage, and the CPU seconds it took in all (kept over restarts)."""
    settings: dict[str, Any] = {
        "target": str(out),
        "cpus_per_data_task": 1,
        "data_processes": 1,
        "degrade_resource": 0.0,
    }
    batches = pretrain_batches(spec, 0, 1)
    training, _ = setup_pretrain(spec, settings, batches, Feed(batches, settings))

    def stream(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        return (batches(step) for step in range(start, stop))

    cpu_file = out / "cpu_seconds"
    before = float(cpu_file.read_text()) if cpu_file.exists() else 0.0
    validate = training.validate
    assert validate is not None

    def show(stage: Any, epoch: int) -> dict[str, float]:
        row = validate(stage, epoch)
        used = before + time.process_time()
        cpu_file.write_text(f"{used:.1f}")
        print(f"epoch {epoch}  {used:.0f} s CPU  {row or ''}", flush=True)
        return row

    with LocalHost(out / "checkpoints") as host:
        history = train(replace(training, stream=stream, validate=show), host)
    (out / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    assert isinstance(training.stage, PretrainStage)
    return training.stage, float(cpu_file.read_text())


def final_probes(
    config: JobConfig, manifest: Manifest, stage: PretrainStage, view: int
) -> dict[str, Any]:
    """Errors by kind of features; all probes see the same views of this side."""
    source = Source(uri=manifest.directory, digest=manifest.digest)
    reader, seed = source.open(), config.seed
    parts = clean_parts(source, config.stage1, seed)
    held = IdSet.rest(manifest.counts["images"], parts.train)

    def views(places: IdSet, count: int) -> Views:
        ids = reader.ids_at(places.take(np.arange(min(count, len(places)))))
        images = ((image_id, decode(reader.read(image_id)["bytes"])) for image_id in ids)
        return make_views(images, seed=seed, crop=view, config=config.stage1.degrade)

    fit, test = views(parts.train, FIT_IMAGES), views(held, len(held))
    untrained = random_encoder(config, fit)
    features = {"pixel statistics": tuple(map(statistics, (fit, test)))}
    for name, encoder in (("random", untrained), ("trained", stage.query.encoder)):
        known, asked = (half_features(encoder, each.crops_NCHW) for each in (fit, test))
        features |= {f"{name} {half}": (known[half], asked[half]) for half in known}
    return {
        name: probe_errors(fit, known, test, asked) for name, (known, asked) in features.items()
    }


def statistics(views: Views) -> torch.Tensor:
    """Pixel statistics, part by part: large views as floats would take gigabytes."""
    return torch.cat([pixel_statistics(part_NCHW) for part_NCHW in views.crops_NCHW.split(256)])


def random_encoder(config: JobConfig, views: Views) -> DREEncoder:
    """The same shape with random weights; BatchNorm's statistics are those of real views, as a
    trained extractor's are.
    """
    with seeded(config.seed + 1, 0):
        encoder = DREEncoder(config.model.dre)
    encoder.train()
    with torch.no_grad():
        for start in range(100):
            encoder(to_float(views.crops_NCHW[start::101][:64]))
    return encoder.eval()


def write_results(runs: dict[str, str]) -> None:
    """`representation.csv` (the curves), `representation_probes.csv`, and the figure for the documentation."""
    from dri_iqa.evaluation.figures import COLOURS, _figure, _save, _style

    found = {
        name: json.loads((Path(out) / "result.json").read_text()) for name, out in runs.items()
    }
    columns = ["loss_deg", "loss_qual", "top1_deg", "top1_qual", "negatives_deg", "negatives_qual"]
    columns += ["alignment_deg", "uniformity_deg", "alignment_qual", "uniformity_qual"]
    columns += [
        f"probe_{what}_{half}" for what in ("type", "level", "content") for half in ("up", "low")
    ]
    with (RESULTS / "representation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "epoch", *columns])
        for name, result in found.items():
            for row in result["curve"]:
                values = [f"{row[column]:.5g}" if column in row else "" for column in columns]
                writer.writerow([name, int(row["epoch"]), *values])
    with (RESULTS / "representation_probes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "features", "type_error", "level_error", "content_error"])
        for name, result in found.items():
            for kind, errors in result["errors"].items():
                writer.writerow(
                    [name, kind, *(f"{errors[what]:.4f}" for what in ("type", "level", "content"))]
                )
    figure = _figure(9, 3.4)
    with _style():
        left, right = figure.subplots(1, 2)
        for colour, (name, result) in zip(COLOURS[::2], found.items(), strict=False):
            curve = result["curve"]
            epochs = [row["epoch"] for row in curve]
            for half, dash in (("deg", "-"), ("qual", "--")):
                left.plot(
                    epochs,
                    [row[f"loss_{half}"] for row in curve],
                    dash,
                    color=colour,
                    lw=1.2,
                    label=f"{name} L_{half}",
                )
            chance = [np.log(1 + row["negatives_deg"]) for row in curve]
            left.plot(epochs, chance, ":", color="#888888", lw=1)
            probed = [row for row in curve if "probe_type_up" in row]
            for half, dash in (("up", "-"), ("low", "--")):
                right.plot(
                    [row["epoch"] for row in probed],
                    [row[f"probe_type_{half}"] for row in probed],
                    dash,
                    color=colour,
                    marker="o",
                    ms=3,
                    lw=1.2,
                    label=f"{name} {half}",
                )
        left.set(
            xlabel="epoch", ylabel="loss", title="losses; dotted: log of the number of negatives"
        )
        right.set(
            xlabel="epoch",
            ylabel="error",
            title="type of a single degradation, held-out photographs",
        )
        for axes in (left, right):
            axes.legend(fontsize=7)
        _save(figure, ROOT / "docs" / "representation.png")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
