"""Ten small scored images and nine clean ones, ingested, and a run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dri_iqa.config import to_dict
from dri_iqa.data.batches import Source
from dri_iqa.data.cutting import png_bytes
from dri_iqa.data.publishing import publish
from dri_iqa.data.records import DataSet, Record
from dri_iqa.data.shards import plan_shards, write_shard
from dri_iqa.data.splits import Split, save_splits
from pipelines.runtime.fit import Inputs, RunSpec
from tests.tiny import tiny_model, tiny_stage1, tiny_stage2

SIDE = 70
TEST = tuple(range(6, 10))


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return png_bytes(coarse.repeat(SIDE // 7, axis=0).repeat(SIDE // 7, axis=1))


def ingested(folder: Path, dataset: DataSet) -> Source:
    results = [write_shard(plan, str(folder)) for plan in plan_shards(dataset, 50)]
    return Source(uri=str(folder), digest=publish(str(folder), dataset, results).digest)


def spec_of(folder: Path, *, references: bool) -> RunSpec:
    def record(n: int) -> Record:
        reference = f"r{n}" if references else None
        return Record(
            name=f"i{n}", data=picture(n), score=float(n), group=f"g{n}", reference=reference
        )

    scored = DataSet(
        name="toy",
        records=tuple(map(record, range(10))),
        references=tuple(
            Record(name=f"r{n}", data=picture(90 + n), group=f"g{n}") for n in range(10)
        )
        if references
        else (),
    )
    clean = DataSet(
        name="clean",
        records=tuple(Record(name=f"c{n}", data=picture(50 + n), group=f"c{n}") for n in range(9)),
        score_kind="none",
    )
    sources = [ingested(folder / d.name, d) for d in (scored, clean)]
    split = Split(source="test", train=tuple(range(6)), val=(), test=TEST)
    uri = str(folder / "split.json")
    save_splits(uri, [split])
    inputs = Inputs(
        scored_uri=sources[0].uri,
        scored_digest=sources[0].digest,
        split_uri=uri,
        split_digest=split.digest,
        clean_uri=sources[1].uri,
        clean_digest=sources[1].digest,
    )
    config = {
        "seed": 3,
        "model": to_dict(tiny_model()),
        "stage1": to_dict(tiny_stage1()),
        "stage2": to_dict(tiny_stage2()),
    }
    return RunSpec(stage="train", config=config, inputs=inputs, workers=1)
