"""What the restoration network's picture is drawn from: test images where there are references, else clean ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from dri_iqa.stages import TrainStage
from pipelines.runtime import restoring
from tests.pipelines.toy import SIDE, TEST, picture, spec_of
from tests.tiny import tiny_model, tiny_stage1, tiny_stage2


def stage_of(variant: str, *, references: bool) -> TrainStage:
    return TrainStage(
        tiny_model(),
        tiny_stage1(),
        tiny_stage2(variant=variant),
        seed=3,
        has_references=references,
        global_batch=8,
        pretrained=None,
    )


@pytest.mark.parametrize("references", [True, False])
def test_a_picture_of_what_was_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, references: bool
) -> None:
    spec = spec_of(tmp_path, references=references)
    drawn = []

    def strip(rows, path: Path) -> Path:
        drawn.extend(rows)
        return restoration_strip(rows, path)

    restoration_strip = restoring.restoration_strip
    monkeypatch.setattr(restoring, "restoration_strip", strip)
    stage = stage_of("proposed", references=references)
    training = stage.training
    gain = restoring.show_restoration(stage, spec, str(tmp_path / "target"))
    assert stage.training is training
    (file,) = (tmp_path / "target").rglob("*.png")
    assert file.name == restoring.RESTORATION
    assert min(Image.open(file).size) > 100

    def known(numbers: range | tuple[int, ...]) -> list[bytes]:
        files = (Image.open(io.BytesIO(picture(number))) for number in numbers)
        return [np.asarray(file).tobytes() for file in files]

    shown = [row.reference_HWC.tobytes() for row in drawn]
    if references:
        assert sorted(shown) == sorted(known(tuple(90 + n for n in TEST)))
        assert sorted(row.degraded_HWC.tobytes() for row in drawn) == sorted(known(TEST))
    else:
        assert set(shown) <= set(known(range(50, 59)))
        assert any(row.degraded_HWC.tobytes() not in shown for row in drawn)
    assert all(row.restored_HWC.shape == (SIDE, SIDE, 3) for row in drawn)
    rows = [row for row in drawn if (row.degraded_HWC != row.reference_HWC).any()]
    assert gain["images"] == len(rows)
    # pictures are rounded to 8 bits, the figures are not
    for name, images in (
        ("psnr_input", [row.degraded_HWC for row in rows]),
        ("psnr_restored", [row.restored_HWC for row in rows]),
    ):
        pairs = zip([row.reference_HWC for row in rows], images, strict=True)
        expected = np.mean([peak_signal_noise_ratio(*pair) for pair in pairs])
        assert gain[name] == pytest.approx(expected, abs=0.05)


def test_a_variant_without_restoration_draws_nothing(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, references=True)
    stage, target = stage_of("v2", references=True), tmp_path / "target"
    assert restoring.show_restoration(stage, spec, str(target)) == {}
    assert not (tmp_path / "target").exists()
