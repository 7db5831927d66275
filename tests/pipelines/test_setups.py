"""What a stage is given: images that are held out stay out, and batches that cannot be dealt are named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dri_iqa.config import ConfigError, OptimConfig, ProbeConfig, Stage1Config
from dri_iqa.data.batches import Source
from dri_iqa.models.checks import check_model, check_restoration
from pipelines.runtime.config import compose
from pipelines.runtime.probing import clean_parts
from pipelines.runtime.setups import check_batch


@pytest.mark.parametrize(
    ("batch", "world", "accumulate"), [(16, 3, 1), (2, 4, 1), (16, 2, 3), (15, 2, 1)]
)
def test_a_batch_that_cannot_be_dealt_evenly_names_the_numbers(
    batch: int, world: int, accumulate: int
) -> None:
    optim = OptimConfig(batch_size=64, accumulate=accumulate)
    words = rf"batch of {batch} images \(stage1\.optim\.batch_size=64\).*{world} worker.*{accumulate} micro"
    with pytest.raises(ConfigError, match=words):
        check_batch(optim, batch, world, "stage1")


def source(photographs: int, pieces: int) -> Source:
    ids = range(photographs * pieces)
    table = {"image_id": list(ids), "group": [f"photo{i // pieces}" for i in ids]}
    images = SimpleNamespace(to_pydict=lambda: table)
    manifest = SimpleNamespace(images=lambda: images)
    return cast(Source, SimpleNamespace(open=lambda: SimpleNamespace(manifest=manifest)))


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_parts_are_divided_by_photograph(held_out: float) -> None:
    stage1 = Stage1Config(held_out=held_out, n_clean=None, probe=ProbeConfig(images=12))
    parts = clean_parts(source(12, 4), stage1, seed=0)

    def photographs(ids: Any) -> set[int]:
        return {image_id // 4 for image_id in ids}

    assert (len(parts.fit), len(parts.test)) == (8, 4)
    assert not photographs(parts.fit) & photographs(parts.test)
    assert photographs(parts.fit) <= photographs(parts.train)
    if held_out:
        assert not photographs(parts.test) & photographs(parts.train)
        assert len(parts.train) == 9 * 4
    else:
        assert len(parts.train) == 48


@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
def test_presets_keep_the_relations_between_sizes(preset: str) -> None:
    model = compose("full", [f"preset={preset}"]).model
    check_model(model)
    check_restoration(model)
    assert model.ram.width * 2 == model.dre.width
