"""A job's configuration: Hydra composes the YAML groups of `conf/`, frozen dataclasses give it types.

`compose("full", ["preset=tiny", "stage1.optim.lr=1e-3"])` -> `JobConfig`. Nothing is evaluated: data only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dri_iqa.config import (
    ConfigError,
    ModelConfig,
    Stage1Config,
    Stage2Config,
    StrictConfig,
    from_dict,
    known_keys,
    nearest,
    to_dict,
)
from pipelines.runtime.serve_config import ServeConfig

CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True, kw_only=True)
class CleanConfig(StrictConfig):
    """Clean photographs for stage 1 and for the auxiliary stream of stage 2."""

    name: str = "sample"
    """Reader: `sample`, `folder`, `div2k`, `flickr2k`, `df2k` (both)."""
    root: str | None = None
    """Folder or URI of the images; None for the built-in sample."""
    limit: int | None = None
    """At most this many images."""
    exclude: str | None = None
    """Text file with images to leave out, one a line, e.g. those that a test set's references come from."""


@dataclass(frozen=True, kw_only=True)
class SetRules(StrictConfig):
    """What a protocol takes for granted about a data set; ingest refuses one that is otherwise."""

    split_by: Literal["reference", "scene", "image"] | None = None
    """What never lies on both sides of a split; None leaves it to the data."""
    higher_is_better: bool | None = None
    """The direction of the scores as distributed."""
    size: tuple[int, int] | None = None
    """Width and height of every image; None takes them as they are."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(StrictConfig):
    """The scored data set, its clean companion, and how they are split and ingested."""

    name: str = "sample"
    """Reader: `sample`, `csv`, `biq2021`, `koniq10k`, `kadid10k`, …"""
    root: str | None = None
    """Folder of the data set as distributed; None for the built-in sample."""
    limit: int | None = None
    """At most this many scored images; whole scenes are kept."""
    options: dict[str, str | bool | int | float | None] = field(default_factory=dict)
    """Reader options, e.g. {image_column: file, score_column: mos} for `csv`."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    rows_per_shard: int = 512
    """Images per Parquet shard."""
    max_bad: float = 0.01
    """Largest share of unusable images before ingest stops."""
    sub_image: int = 480
    """Clean images larger than this are cut once into sub-images of this side; 0 keeps them whole."""
    split: Literal["auto", "official", "random"] = "auto"
    """The data set's own split where it has one (auto), only that, or a random one by reference or scene."""
    test_fraction: float = 0.2
    """Share of references or scenes held out for the test."""
    val_fraction: float = 0.1
    """Share of references or scenes held out for validation, out of the training part."""
    split_seed: int = 0
    """Which of the random splits."""
    shuffle_scores: bool = False
    """Control experiment: permute the scores of training and validation images."""
    rules: SetRules = field(default_factory=SetRules)
    """What every protocol expects of this data set."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(StrictConfig):
    """Where the job runs and what each part of it takes."""

    kind: Literal["auto", "local", "attached", "none"] = "auto"
    """Start a Ray on this machine, attach to a running cluster, or debug in one process without Ray (none); auto
    attaches where RAY_ADDRESS is set."""
    num_cpus: int | None = None
    """CPUs of the local Ray; None takes the cores of the machine."""
    object_store_mb: int | None = None
    """Shared memory of the local Ray, in which batches wait for the trainer; None takes 500 MB, and a fifth of the
    machine's memory where it has an accelerator (whose batches are larger: a paper-scale task makes 300 MB)."""
    workers: int = 1
    """Training workers (ranks)."""
    min_workers: int | None = None
    """Fewest of them to train on while nodes are missing: the batch stays, its shares grow. None waits for all."""
    resize_s: float = 60.0
    """With min_workers: seconds between looks whether nodes have come that more workers fit on."""
    cpus_per_worker: float = 0.5
    """CPUs reserved per training worker."""
    gpus_per_worker: float = 0.0
    """GPUs per training worker; 0 trains on CPU."""
    cpus_per_data_task: float = 0.4
    """CPUs reserved per decoding-and-degrading task."""
    degrade_resource: float = 0.0
    """Amount of the custom resource `degrade` per such task, to pin them to nodes that offer it."""
    data_processes: int | None = None
    """Most such tasks at a time for each training worker; None shares out what the cluster has when the job starts.
    More than that lets nodes that come later help, and asks an autoscaler for them."""
    threads: int | None = None
    """torch threads per training worker; None gives half of the cores to the workers, half to the chains."""
    wait_s: float = 0.0
    """Seconds to wait for nodes that the cluster's autoscaler has yet to bring; 0 takes the cluster as it is."""
    max_failures: int = 3
    """Restarts of a training run after a lost worker."""
    max_preemptions: int = -1
    """Restarts of a training run after nodes that were taken away with notice, counted apart; -1 for any number."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(StrictConfig):
    """Where runs, metrics and models are recorded."""

    kind: Literal["embedded", "server"] = "embedded"
    """SQLite and files under `output`, or a running MLflow server."""
    uri: str | None = None
    """The server's address, http(s)://host:port."""
    experiment: str = "dri-iqa"
    """MLflow experiment."""


@dataclass(frozen=True, kw_only=True)
class Dimension(StrictConfig):
    """One searched dial: a range, or a list of choices."""

    key: str
    """The dotted configuration key it sets."""
    low: float | None = None
    """Lower end of the range."""
    high: float | None = None
    """Upper end of the range."""
    log: bool = True
    """Uniform in the logarithm."""
    choices: tuple[float, ...] | None = None
    """Discrete values instead of a range."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(StrictConfig):
    """Search over lambda, learning rate and temperature."""

    trials: int = 4
    """Trials in all; 0 skips the search."""
    epochs: int = 10
    """Stage-2 epochs of a trial that is never stopped."""
    stage1_epochs: int | None = None
    """Stage-1 epochs of a trial; None takes the full budget, shared with the final training."""
    max_images: int | None = None
    """Training images of a trial; None takes all."""
    grace_epochs: int = 2
    """Epochs before a trial may be stopped."""
    reduction: int = 2
    """ASHA's reduction factor: the share 1/reduction of the trials goes on at each rung."""
    concurrent: int | None = None
    """Trials at a time; None plans it from the cluster."""
    space: dict[str, Dimension] = field(
        default_factory=lambda: {
            "lambda": Dimension(key="stage2.lambda_perceptual", low=1e-3, high=1e-1),
            "lr_scale": Dimension(key="stage2.optim.lr_scale", low=0.3, high=3.0),
            "temperature": Dimension(key="stage1.moco.temperature", low=0.05, high=0.3),
        }
    )
    """Name -> dimension."""


Variant = Literal["maniqa", "v1", "v2", "v3", "proposed"]


@dataclass(frozen=True, kw_only=True)
class CrossSet(StrictConfig):
    """A data set that a protocol also tests on."""

    name: str
    """Reader, as in `data.name`."""
    root: str | None = None
    """Folder of the data set as distributed."""
    limit: int | None = None
    """At most this many images."""
    options: dict[str, str | bool | int | float | None] = field(default_factory=dict)
    """Reader options."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StrictConfig):
    """How the trained model is tested."""

    crops: int | str = 25
    """Crops per image: N or randomN (positions fixed by the image's content), uniformN (a grid) or whole."""
    bootstrap: int = 1000
    """Resamples of references for confidence intervals."""
    yardstick: bool = False
    """Also fit a regression on the frozen backbone's pooled features, on the same split: the mark to beat."""
    yardstick_size: int = 448
    """Side in pixels to which whole images are resized for it."""


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig(StrictConfig):
    """What a table of results is made of (paper 4.2); read by `evaluate`."""

    name: str = "single"
    """Printed on every report."""
    splits: int = 1
    """Random splits, numbered from 0; a data set with a split of its own has that one only."""
    seeds: tuple[int, ...] = (0,)
    """Added to the job's seed: one training for each on every split."""
    crop_seeds: tuple[int, ...] = (0,)
    """Of random test crops: every trained model is tested once with each."""
    variants: tuple[Variant, ...] = ("proposed",)
    """What is compared, the simplest first."""
    estimate: bool = True
    """Measure short pilots and print what the whole will cost before it starts."""
    attempts: int = 2
    """Times that a failing training is tried before it is listed as failed."""
    cross: dict[str, CrossSet] = field(default_factory=dict)
    """Further data sets by a name of yours: every model of split 0 is tested on the whole of each."""
    cross_train: bool = False
    """Train the last variant on each of these too, for the whole matrix."""


@dataclass(frozen=True, kw_only=True)
class RegistryConfig(StrictConfig):
    """Where the model goes."""

    name: str = "dri-iqa"
    """Registered model."""
    force: bool = False
    """Make this job's version the champion whatever the comparison with the current one says; recorded as a tag."""
    rollback: bool = False
    """`register` only: make the previous champion the champion again, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(StrictConfig):
    """Batch scoring of a folder or a bucket."""

    input: str | None = None
    """Folder or URI with images."""
    output: str | None = None
    """Folder or URI for the Parquet tables."""
    model: str | None = None
    """Bundle or `models:/` URI; None takes the registry's champion."""
    images_per_table: int = 256
    """Images that one task scores and one Parquet table holds; what a kill can cost."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network; bf16 is faster, its last digits differ."""
    compile: bool = False
    """Compile the network in every worker with torch.compile: for many thousands of images."""


@dataclass(frozen=True, kw_only=True)
class JobConfig(StrictConfig):
    """Everything a job needs to know."""

    job: str = "full"
    """Which job this is; decides nothing but names."""
    seed: int = 0
    """Run seed: every random draw is a pure function of it."""
    output: str = "runs"
    """Folder or URI for data, checkpoints, models and (embedded) tracking."""
    run: str | None = None
    """Name of the run; None derives it from the configuration, so the same command resumes."""
    verbose: bool = False
    """Show Ray's own logs."""
    dry_run: bool = False
    """`evaluate` only: measure what the protocol will cost, print it, and train nothing else."""
    model: ModelConfig = field(default_factory=ModelConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)


def compose(job: str, overrides: list[str]) -> JobConfig:
    """Compose `conf/<job>.yaml` with overrides from the command line.

    Raises:
        ConfigError: unknown group option, unknown key (with the nearest valid one), or ill-typed value.
    """
    schema = to_dict(JobConfig())
    ConfigStore.instance().store(name="schema", node=schema)
    overrides = [_checked(override) for override in overrides]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = hydra_compose(config_name=job, overrides=overrides)
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(" ".join(lines[:2])) from None
    assert isinstance(values, dict)
    return from_dict(JobConfig, {str(key): value for key, value in values.items()})


def groups() -> dict[str, list[str]]:
    """The configuration groups and their options, as they lie in `conf/`."""
    return {
        folder.name: sorted(option.stem for option in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def digest(values: Any) -> str:
    """Twelve hex digits that name plain data: equal data, equal name, on every machine."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def replace_keys(config: JobConfig, changes: dict[str, Any]) -> JobConfig:
    """A copy with dotted keys replaced, checked like any other configuration."""
    values = to_dict(config)
    for key, value in changes.items():
        node = values
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        if last not in node:
            raise ConfigError(f"unknown key {key}{nearest(key, valid_keys())}")
        node[last] = value
    return from_dict(JobConfig, values)


@lru_cache(maxsize=1)
def valid_keys() -> list[str]:
    """All dotted keys a job accepts."""
    return known_keys(JobConfig)


OPEN_ENDED = (
    "data.options",
    "protocol.cross",
    "search.space",
    "model.backbone.kwargs",
    "stage1.degrade.p_keep",
)


def _checked(override: str) -> str:
    """The override as Hydra takes it, after checking its key against the dataclasses."""
    key, separator, value = override.partition("=")
    removes = key.startswith("~")
    key = key.lstrip("+~")
    if not separator and not removes:
        raise ConfigError(
            f"override {override!r} has no '='; write group=option or dotted.key=value"
        )
    options = groups()
    if key in options:
        if value not in options[key]:
            raise ConfigError(
                f"{key}={value}: no such option{nearest(value, options[key])}; "
                f"{key} is one of {', '.join(options[key])}"
            )
        return override
    known = valid_keys()
    open_ended = any(key == name or key.startswith(name + ".") for name in OPEN_ENDED)
    if key not in known and not open_ended:
        raise ConfigError(f"unknown key {key}{nearest(key, known + list(options))}")
    # Mappings with names of the user's own take new names; everything else must exist.
    return f"++{override.lstrip('+')}" if open_ended and not removes else override


def to_yaml(config: JobConfig) -> str:
    """The resolved configuration as YAML, for a run's artifacts."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
