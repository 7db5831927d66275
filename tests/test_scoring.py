"""Scores follow from pixels and settings only; a bad picture is a row, not an exception."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from dri_iqa import running
from dri_iqa.bundle import Bundle, ScoreScale, ScoringPolicy
from dri_iqa.config import (
    BackboneConfig,
    DREConfig,
    ModelConfig,
    PredictorConfig,
)
from dri_iqa.crops import crop_positions, parse_crops
from dri_iqa.images import content_digest
from dri_iqa.models import build_model
from dri_iqa.scoring import Scorer, score_images

CROP = 32
TINY = ModelConfig(
    crop=CROP,
    dre=DREConfig(width=4, norm="gn", proj_dim=8),
    backbone=BackboneConfig(
        name="vit_tiny_patch16_224",
        weights="none",
        blocks=(0, 1),
        kwargs={"embed_dim": 12, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": CROP},
    ),
    predictor=PredictorConfig(
        embed_dim=16, num_tgb=1, swin_depths=(1, 1), swin_heads=(2, 2), swin_mlp=16
    ),
)


def picture(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3))
    return np.kron(noise, np.ones((5, 5, 1)))[:height, :width].astype(np.uint8)


def encoded(image_HWC: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    model = build_model(TINY, backbone_weights=False).eval()
    return Scorer(
        Bundle(
            config=TINY,
            model=model,
            score=ScoreScale(lo=0.0, hi=100.0, higher_is_better=True, name="MOS"),
            scoring=ScoringPolicy(),
            parts=("dre", "backbone", "predictor"),
            versions={},
            meta={},
            digest="0123456789abcdef",
            uri="memory",
        )
    )


def test_random_positions_reach_the_last_row_and_column_and_nothing_beyond() -> None:
    digest = content_digest(picture(0))
    position_K2 = crop_positions(34, 33, 32, 2000, digest)
    assert set(position_K2[:, 0].tolist()) == {0, 1, 2}
    assert set(position_K2[:, 1].tolist()) == {0, 1}
    counts = np.bincount(position_K2[:, 0])
    assert counts.min() > 2000 / 3 * 0.85  # uniform: the edges are not rarer


def test_random_positions_follow_from_the_pixels_only() -> None:
    a, b = content_digest(picture(1)), content_digest(picture(2))
    first = crop_positions(70, 50, 32, "random25", a)
    assert np.array_equal(first, crop_positions(70, 50, 32, 25, a))
    assert np.array_equal(first[:5], crop_positions(70, 50, 32, 5, a))
    assert not np.array_equal(first, crop_positions(70, 50, 32, 25, b))


def test_digest_tells_shapes_apart() -> None:
    flat = np.zeros((4, 6, 3), np.uint8)
    assert content_digest(flat) != content_digest(flat.reshape(6, 4, 3))


def test_uniform_grid_goes_from_edge_to_edge() -> None:
    position_K2 = crop_positions(72, 52, 32, "uniform25")
    expected = list(itertools.product([0, 5, 10, 15, 20], [0, 10, 20, 30, 40]))
    assert sorted((y, x) for x, y in position_K2.tolist()) == expected
    assert crop_positions(72, 52, 32, "uniform1").tolist() == [[20, 10]]


@pytest.mark.parametrize(("width", "height"), [(32, 32), (33, 64), (100, 65)])
def test_whole_covers_every_pixel_with_the_fewest_crops(width: int, height: int) -> None:
    seen_HW = np.zeros((height, width), int)
    position_K2 = crop_positions(width, height, 32, "whole")
    for x, y in position_K2:
        seen_HW[y : y + 32, x : x + 32] += 1
    assert seen_HW.min() >= 1
    assert len(position_K2) == -(-width // 32) * -(-height // 32)


@pytest.mark.parametrize("crops", [0, -1, "uniform24", "random", "all", True, "random999999"])
def test_unknown_crop_policies_are_refused(crops: str | int) -> None:
    with pytest.raises(ValueError, match="crops"):
        parse_crops(crops)


def test_positions_refuse_a_picture_below_the_crop() -> None:
    with pytest.raises(ValueError, match="31x40 picture has no 32x32 crop"):
        crop_positions(31, 40, 32, "uniform25")


@pytest.mark.parametrize(
    ("crops", "precision"),
    [(7, "fp32"), ("uniform25", "fp32"), ("whole", "fp32"), (30, "fp32"), (30, "bf16")],
)
def test_bit_identical_whatever_order_neighbours_and_batch(
    scorer: Scorer, crops, precision: str
) -> None:
    one = Scorer(scorer.bundle, precision=precision)
    images = [picture(seed, 40 + 3 * seed, 90 - 4 * seed) for seed in range(7)]
    alone = [one.score([image], crops=crops).score.item() for image in images]
    assert len(set(alone)) == len(alone)
    for batch_size, order in [(1, range(7)), (3, [6, 2, 0, 1, 5, 4, 3]), (16, range(7))]:
        table = one.score([images[i] for i in order], crops=crops, batch_size=batch_size)
        assert table.score.tolist() == [alone[i] for i in order]


@pytest.mark.parametrize("packed", [False, True])
def test_bf16_scores_alike_and_leaves_the_model_as_it_is(
    scorer: Scorer, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors with and without bf16 products."""
    if not packed:
        monkeypatch.setattr(running, "can_pack", lambda: False)
    pictures = [picture(seed) for seed in range(4)]
    expected = scorer.score(pictures)
    found = Scorer(scorer.bundle, precision="bf16").score(pictures, maps=True)
    assert found.score.tolist() != expected.score.tolist()
    np.testing.assert_allclose(found["score"], expected["score"], atol=0.3)
    assert found.quality_map[0].dtype == np.float32
    assert scorer.score(pictures).score.tolist() == expected.score.tolist()


def test_same_score_from_path_bytes_and_array(scorer: Scorer, tmp_path) -> None:
    image_HWC = picture(3)
    (tmp_path / "a.png").write_bytes(encoded(image_HWC))
    sources = [str(tmp_path / "a.png"), tmp_path / "a.png", encoded(image_HWC), image_HWC]
    sources += [encoded(image_HWC, "BMP"), np.asfortranarray(image_HWC)]
    table = scorer.score(sources)
    assert table.columns.tolist() == ["image", "score", "std", "error"]
    assert len(set(table["score"])) == 1
    assert len(set(table["std"])) == 1
    assert table["image"].tolist() == [str(tmp_path / "a.png")] * 2 + ["2", "3", "4", "5"]
    assert table.error.tolist() == [None] * 6


def test_score_is_the_mean_over_crops_on_the_label_scale(scorer: Scorer) -> None:
    image_HWC = picture(4)
    position_K2 = crop_positions(70, 50, CROP, 25, content_digest(image_HWC))
    crop_KHWC = np.stack([image_HWC[y : y + CROP, x : x + CROP] for x, y in position_K2])
    pixel_KCHW = torch.tensor(crop_KHWC).permute(0, 3, 1, 2) / 255
    model = scorer.bundle.model
    with torch.no_grad():
        expected_K = model(pixel_KCHW).double().numpy()
    row = scorer.score([image_HWC]).iloc[0]
    assert float(row["score"]) == pytest.approx(100 * expected_K.mean(), rel=1e-5)
    assert float(row["std"]) == pytest.approx(100 * expected_K.std(), rel=1e-3)


def test_inverted_scale(scorer: Scorer) -> None:
    bundle = scorer.bundle
    scale = ScoreScale(lo=10.0, hi=50.0, higher_is_better=False, name="DMOS")
    values = {name: getattr(bundle, name) for name in bundle.__dataclass_fields__}
    other = Scorer(Bundle(**{**values, "score": scale}))
    plain, inverted = scorer.score([picture(5)]), other.score([picture(5)])
    assert inverted.score.item() == pytest.approx(50 - 0.4 * plain.score.item())
    assert inverted["std"].item() == pytest.approx(0.4 * plain["std"].item())


def test_one_bad_picture_is_a_row_with_a_reason(scorer: Scorer, tmp_path) -> None:
    good = picture(6)
    sources = [
        good,
        b"",
        b"<html>not found</html>",
        encoded(good, "JPEG")[:400],
        str(tmp_path / "missing.png"),
        tmp_path,
        good.astype(np.float32),
        good[:, :, 0],
        3,
        np.zeros((1, 40_000_000, 3), np.uint8),
        good,
    ]
    table = scorer.score(sources, crops=4)  # type: ignore[arg-type]
    assert table.error.tolist() == [
        None,
        "empty",
        "not an image",
        "truncated",
        "no such file or directory",
        "is a directory",
        "not an image array: got float32 (50, 70, 3), expected uint8 (height, width, 3)",
        "not an image array: got uint8 (50, 70), expected uint8 (height, width, 3)",
        "not an image: got int, expected path, bytes or array",
        "too narrow (40000000x1)",
        None,
    ]
    assert table.score.isna().tolist() == [error is not None for error in table.error]
    assert table.score.iloc[0] == table.score.iloc[-1]


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (31, 33), (32, 32), (200, 40)])
def test_odd_sizes_and_flat_pictures_give_finite_scores(scorer: Scorer, shape, value) -> None:
    table = scorer.score([np.full((*shape, 3), value, np.uint8)], crops=3)
    assert np.isfinite(table.score.item())
    assert table.error.item() is None


def test_non_finite_predictions_are_an_error_not_a_score() -> None:
    class Broken:
        def predict(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            return image_BCHW.mean((1, 2, 3)) * float("nan")

        def maps(self, image_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raise NotImplementedError

    (row,) = score_images(Broken(), [picture(0)], crop=CROP)
    assert row.score_K is None
    assert row.error == "the model gave a non-finite score"


def test_memory_shortage_halves_the_micro_batch_and_says_so() -> None:
    class Small:
        sizes: list[int] = []  # noqa: RUF012

        def predict(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(image_BCHW))
            if len(image_BCHW) > 6:
                raise torch.OutOfMemoryError("no memory")
            return image_BCHW.mean((1, 2, 3))

        def maps(self, image_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raise NotImplementedError

    model, image_HWC = Small(), picture(0)
    with pytest.warns(RuntimeWarning, match="crops at a time"):
        (row,) = score_images(model, [image_HWC], crop=CROP)
    assert model.sizes == [25, 12, 6, 6, 6, 6, 1]
    position_K2 = crop_positions(70, 50, CROP, 25, content_digest(image_HWC))
    means = [image_HWC[y : y + CROP, x : x + CROP].mean() / 255 for x, y in position_K2]
    assert row.score_K == pytest.approx(means, rel=1e-5)


def test_memory_stays_flat_because_pictures_are_read_as_needed(scorer: Scorer) -> None:
    asked: list[int] = []

    def endless():
        for index in itertools.count():
            asked.append(index)
            yield picture(index % 3)

    rows = scorer.iter_scored(endless(), crops=1, batch_size=4)
    assert [next(rows).name, next(rows).name] == ["0", "1"]
    rows.close()  # type: ignore[attr-defined]
    assert len(asked) <= 6


def test_maps_of_the_whole_picture(scorer: Scorer) -> None:
    table = scorer.score([picture(1, 64, 96), b"junk"], crops=1, maps=True)
    assert table.columns.tolist()[-2:] == ["degradation_map", "quality_map"]
    assert table.degradation_map[0].shape == table.quality_map[0].shape == (4, 6)
    assert table.quality_map[0].dtype == np.float32
    assert table.quality_map[1] is None


def test_compiled_it_scores_alike(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture(seed) for seed in range(3)]
    model = build_model(TINY, backbone_weights=False).eval()
    model.load_state_dict(scorer.bundle.model.state_dict())
    compiled = Scorer(replace(scorer.bundle, model=model), compile=True)
    counters.clear()
    found = compiled.score(pictures, crops=4)
    assert counters["stats"]["unique_graphs"], "it was compiled"
    assert not counters["graph_break"]
    expected = scorer.score(pictures, crops=4)
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-3)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"C\+\+ compiler"):
        Scorer(scorer.bundle, compile=True)


def test_settings_are_checked_and_the_model_must_be_in_evaluation_mode(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="single picture"):
        scorer.score("a.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        scorer.score([picture(0)], batch_size=0)
    with pytest.raises(ValueError, match="precision"):
        list(score_images(scorer.bundle.model, [], crop=CROP, precision="int8"))  # type: ignore
    training = build_model(TINY, backbone_weights=False).train()
    with pytest.raises(ValueError, match="training mode"):
        list(score_images(training, [picture(0)], crop=CROP))


def test_empty_input_gives_an_empty_typed_table(scorer: Scorer) -> None:
    table = scorer.score([])
    assert len(table) == 0
    assert table.columns.tolist() == ["image", "score", "std", "error"]
    assert table.score.dtype == float
    assert table.attrs["model"] == "MOS@0123456789ab"
