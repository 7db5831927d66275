"""A protocol's trainings and tests: splits x seeds x variants, each trained once, tested with every set of crops."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dri_iqa import storage
from dri_iqa.config import ConfigError
from dri_iqa.crops import parse_crops
from dri_iqa.data.batches import Source
from dri_iqa.data.manifest import Manifest
from dri_iqa.data.splits import load_splits
from dri_iqa.evaluation.protocols import (
    Outcome,
    Row,
    cross_rows,
    difference_rows,
    run_rows,
    subset_rows,
    variant_rows,
)
from pipelines.ingest import ingest_scored, make_split, store_split
from pipelines.runtime.config import CrossSet, DataConfig, JobConfig, compose, replace_keys
from pipelines.runtime.fit import Inputs, RunSpec, pretrain_spec, train_spec
from pipelines.runtime.job import Job, Result, brief
from pipelines.runtime.training import Failure, Run, run_stages
from pipelines.testing import score_ids


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a protocol."""

    trained_on: str
    variant: str
    split: int
    seed: int

    @property
    def name(self) -> str:
        """Of its nested run, e.g. `live/proposed/split 3/seed 0`."""
        return f"{self.trained_on}/{self.variant}/split {self.split}/seed {self.seed}"

    @property
    def file(self) -> str:
        """The name as part of a file's."""
        return self.name.replace("/", "-").replace(" ", "")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Everything a protocol trains, and on what."""

    config: JobConfig
    workers: int
    sets: dict[str, Inputs]
    """The job's own data set first, then those of `protocol.cross`."""
    splits: dict[str, list[tuple[str, str]]]
    """(URI, digest) of the splits of each set that is trained on."""

    @property
    def main(self) -> str:
        """The data set that the job is about."""
        return next(iter(self.sets))

    def cells(self) -> list[Cell]:
        """All trainings; variants of a split lie next to each other, so that an interrupted protocol has pairs."""
        protocol = self.config.protocol
        last = protocol.variants[-1:]
        return [
            Cell(trained_on=name, variant=variant, split=split, seed=seed)
            for name, splits in self.splits.items()
            for split in range(len(splits))
            for seed in protocol.seeds
            for variant in (protocol.variants if name == self.main else last)
        ]

    def cell_config(self, cell: Cell) -> JobConfig:
        """The job's configuration with the cell's seed and variant."""
        changes: dict[str, Any] = {
            "seed": self.config.seed + cell.seed,
            "stage2.variant": cell.variant,
        }
        if cell.variant == "v1":  # the paper's V1 has one representation from the start
            changes["stage1.halves"] = "quality"
        return replace_keys(self.config, changes)

    def inputs(self, cell: Cell) -> Inputs:
        """The cell's data under its split."""
        uri, digest = self.splits[cell.trained_on][cell.split]
        return replace(self.sets[cell.trained_on], split_uri=uri, split_digest=digest)

    def stage1(self, cell: Cell) -> RunSpec | None:
        """The stage 1 that the cell starts from, shared with all that differ in nothing it sees."""
        if cell.variant == "maniqa":
            return None
        return pretrain_spec(self.cell_config(cell), self.inputs(cell), self.workers)

    def stage2(self, cell: Cell, pretrained: Result | None) -> RunSpec:
        """The cell's stage 2."""
        return train_spec(self.cell_config(cell), self.inputs(cell), self.workers, pretrained)


def check_protocol(config: JobConfig) -> None:
    """Whether a protocol makes sense, before anything is done for it.

    Raises:
        ConfigError: crop seeds for crops that are not random, or nothing to train.
    """
    protocol = config.protocol
    if len(protocol.crop_seeds) > 1 and parse_crops(config.evaluate.crops).kind != "random":
        raise ConfigError(
            f"protocol.crop_seeds={list(protocol.crop_seeds)} with evaluate.crops="
            f"{config.evaluate.crops}, whose crops are not drawn\nset protocol.crop_seeds=[0]"
        )
    for name in ("splits", "seeds", "crop_seeds", "variants"):
        if not getattr(protocol, name):
            raise ConfigError(f"protocol.{name} is empty, nothing would be trained or tested")


def make_grid(job: Job, data: Result) -> Grid:
    """The grid over ingested data; further data sets are ingested here."""
    protocol, main = job.config.protocol, job.config.data.name
    sets = {main: Inputs(**data["inputs"])}
    for name, other in protocol.cross.items():
        manifest = ingest_scored(job, _data_config(other))
        sets[name] = replace(
            sets[main], scored_uri=manifest.directory, scored_digest=manifest.digest
        )
    splits: dict[str, list[tuple[str, str]]] = {}
    for name, inputs in sets.items():
        if name != main and not protocol.cross_train:
            continue
        manifest = Manifest.load(inputs.scored_uri)
        count = protocol.splits if name == main else 1
        made = [make_split(job, manifest, index) for index in range(count)]
        splits[name] = [(store_split(manifest, split), split.digest) for split in made]
    return Grid(config=job.config, workers=job.plan.workers, sets=sets, splits=splits)


def _data_config(other: CrossSet) -> DataConfig:
    """A further set's configuration, with the rules of its own group."""
    root = [f"data.root={other.root}"] if other.root else []
    base = compose("ingest", [f"data={other.name}", *root]).data
    return replace(base, limit=other.limit, options={**base.options, **other.options})


def train_all(job: Job, grid: Grid) -> tuple[dict[Cell, Result], dict[str, Failure]]:
    """Both stages of every cell; returns results by cell, and failures by the name of a run."""
    attempts = job.config.protocol.attempts
    cells = grid.cells()
    specs = {spec.name: spec for cell in cells if (spec := grid.stage1(cell))}
    job.console.headline(f"stage 1: {len(specs)} extractor(s)")
    runs = [Run(spec=spec, name=name) for name, spec in specs.items()]
    outcomes = dict(zip(specs, run_stages(job, runs, "stage 1", attempts=attempts), strict=True))
    failures = {name: found for name, found in outcomes.items() if isinstance(found, Failure)}
    ready: dict[Cell, Run] = {}
    for cell in cells:
        first = grid.stage1(cell)
        found = outcomes[first.name] if first else None
        if not isinstance(found, Failure):
            ready[cell] = Run(spec=grid.stage2(cell, found), name=cell.name)
    job.console.headline(f"stage 2: {len(ready)} training(s)")
    trained: dict[Cell, Result] = {}
    second = run_stages(job, list(ready.values()), "stage 2", attempts=attempts)
    for cell, outcome in zip(ready, second, strict=True):
        if isinstance(outcome, Failure):
            failures[cell.name] = outcome
        else:
            trained[cell] = outcome
    return trained, failures


def score_all(job: Job, grid: Grid, trained: dict[Cell, Result]) -> list[Outcome]:
    """Every model on its own test part, those of split 0 on the whole of every other set as well."""
    tests = [
        (cell, name, policy, seed)
        for cell in trained
        for name in grid.sets
        if name == cell.trained_on or cell.split == 0
        for seed, policy in policies(grid.config).items()
    ]
    job.console.headline(f"test: {len(tests)} times")
    outcomes = []
    with job.console.progress("tests") as meter:
        for number, (cell, name, policy, seed) in enumerate(tests):
            frame, manifest = predictions(job, grid, cell, name, policy, trained[cell])
            split = load_splits(grid.splits[cell.trained_on][cell.split][0])[0]
            seen = len(split.train) + len(split.val)
            outcomes.append(outcome_of(cell, name, seed, frame, manifest, seen))
            meter.update(number + 1, len(tests), f"{cell.name} on {name}, {policy}")
    return outcomes


def policies(config: JobConfig) -> dict[int, str]:
    """The crop policy of every crop seed."""
    policy = parse_crops(config.evaluate.crops)
    if policy.kind != "random":
        return {0: str(config.evaluate.crops)}
    return {seed: f"random{policy.number}@{seed}" for seed in config.protocol.crop_seeds}


def predictions(
    job: Job, grid: Grid, cell: Cell, name: str, policy: str, trained: Result
) -> tuple[pd.DataFrame, Manifest]:
    """Predictions of one model on one set, made once and kept as a table; and the set's manifest."""
    inputs = grid.sets[name]
    source = Source(uri=inputs.scored_uri, digest=inputs.scored_digest)
    manifest = source.open().manifest
    uri = predictions_uri(grid, cell, name, policy, trained)
    if storage.exists(uri):
        text = io.BytesIO(storage.read_bytes(uri))
        names: Any = dict.fromkeys(("name", "group", "type", "subset"), "str")  # some are numbers
        frame = pd.read_csv(text, index_col="image_id", dtype=names, float_precision="round_trip")
        return frame, manifest
    table = manifest.images().to_pandas().set_index("image_id")
    ids: Sequence[int] = table.index.tolist()
    if name == cell.trained_on:
        ids = load_splits(grid.splits[name][cell.split][0])[0].test
    frame = score_ids(job, trained["uri"], source, ids, crops=policy)
    frame = frame.join(
        table[["name", "group", "type", "level", "subset", "score"]].rename(
            columns={"score": "given"}
        )
    )
    storage.write_bytes(uri, frame.reset_index().to_csv(index=False).encode())
    return frame, manifest


def predictions_uri(grid: Grid, cell: Cell, name: str, policy: str, trained: Result) -> str:
    """Beside the model, for every protocol that tests it; the name says with which weights on which images."""
    folder = trained["uri"].rpartition("/")[0]
    images = grid.splits[name][cell.split][1] if name == cell.trained_on else "all"
    data, weights = grid.sets[name].scored_digest[:8], trained["sha256"][:8]
    file = f"{weights}-on-{name}-{data}-{images[:8]}-{policy}.csv"
    return storage.join(folder, "predictions", file)


def outcome_of(
    cell: Cell, name: str, seed: int, frame: pd.DataFrame, manifest: Manifest, trained_images: int
) -> Outcome:
    """A test as the tables take it: higher is better, in the order of the images."""
    # an image without a prediction stays: left out, it would flatter the variant that failed on it
    frame = frame.dropna(subset=["given"])
    sign = 1.0 if manifest.higher_is_better else -1.0
    return Outcome(
        variant=cell.variant,
        trained_on=cell.trained_on,
        tested_on=name,
        split=cell.split,
        seed=cell.seed,
        crop_seed=seed,
        predicted_N=sign * frame["score"].to_numpy(np.float64),
        given_N=sign * frame["given"].to_numpy(np.float64),
        group_N=frame["group"].to_numpy(),
        subset_N=frame["subset"].fillna(frame["type"]).fillna("all").astype(str).to_numpy(),
        trained_images=trained_images,
    )


def tables(job: Job, grid: Grid, outcomes: Sequence[Outcome]) -> dict[str, list[Row]]:
    """All tables of a protocol, as plain rows."""
    config = job.config
    own = [one for one in outcomes if one.trained_on == one.tested_on == grid.main]
    rows = run_rows(outcomes)
    mine = [row for row in rows if row["trained_on"] == row["tested_on"] == grid.main]
    found = {
        "variants": variant_rows(mine),
        "differences": difference_rows(own, seed=config.seed, n=config.evaluate.bootstrap),
        "subsets": subset_rows(own),
        "runs": rows,
    }
    if len(grid.sets) > 1:
        last = config.protocol.variants[-1]
        pure = [row for row in rows if row["variant"] == last and row["split"] == 0]
        found["cross"] = cross_rows(pure)
    return found


def facts(grid: Grid) -> list[Row]:
    """What every report of the protocol prints: its settings, and digests of data and splits."""
    protocol = asdict(grid.config.protocol)
    rows = [{"what": f"protocol.{name}", "value": protocol[name]} for name in SHOWN]
    stage2, data = grid.config.stage2, grid.config.data
    kept = {"last": "of the last epoch", "val": "of the epoch that validation likes best"}
    cosine = f"{stage2.optim.epochs}, {stage2.optim.t_max or stage2.optim.epochs}"
    shares = f"{data.test_fraction:g}, {data.val_fraction:g} of the rest"
    rows += [
        {"what": "crops", "value": ", ".join(policies(grid.config).values())},
        {"what": "weights", "value": kept[stage2.select]},
        {"what": "epochs, cosine until epoch", "value": cosine},
        {"what": "test, validation share", "value": shares},
    ]
    for name, inputs in grid.sets.items():
        rows.append({"what": f"manifest {name}", "value": inputs.scored_digest[:12]})
        for number, (_, digest) in enumerate(grid.splits.get(name, [])):
            rows.append({"what": f"split {number} of {name}", "value": digest[:12]})
    rows.append({"what": "clean images", "value": grid.sets[grid.main].clean_digest[:12]})
    return rows


SHOWN = ("name", "splits", "seeds", "variants")


def failure_rows(failures: dict[str, Failure]) -> list[Row]:
    """What failed, for the report."""
    return [
        {"run": name, "attempts": failure.attempts, "error": brief(failure.error)}
        for name, failure in failures.items()
    ]
