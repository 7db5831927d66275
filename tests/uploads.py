"""What people send to a server: pictures in many formats, things that are no pictures, and a model to judge them."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.config import DegradeConfig, DREConfig
from dri_iqa.evaluation.probe import fit_degradation_probe, make_views
from dri_iqa.models import build_model
from pipelines.runtime import registry
from pipelines.runtime.config import TrackingConfig
from pipelines.runtime.tracking import Tracker
from tests.test_explain import scene
from tests.test_images import png_header
from tests.tiny import CROP, tiny_model

SCALE = ScoreScale(lo=1.0, hi=5.0, name="MOS", kind="human")


def encoded(form: str, mode: str = "RGB", number: int = 50, height: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(scene(number, height, 130)).convert(mode)
    picture.save(buffer, form, quality=90)
    return buffer.getvalue()


def _sixteen_bits() -> bytes:
    wide_HWC = scene(53, 90, 130).astype(np.uint16) * 256 + 77
    return cv2.imencode(".png", wide_HWC)[1].tobytes()


GOOD = {
    "JPEG": encoded("JPEG"),
    "PNG": encoded("PNG", number=51),
    "WebP": encoded("WEBP", number=52),
    "16-bit PNG": _sixteen_bits(),
    "CMYK JPEG": encoded("JPEG", "CMYK", number=54),
    "smaller than a crop": encoded("PNG", number=55, height=40),
}
BAD = {
    "nothing": (b"", "empty"),
    "text": (b"I am not a picture, sorry", "not an image"),
    "a truncated JPEG": (GOOD["JPEG"][:-700], "truncated"),
    "a truncated PNG": (GOOD["PNG"][:-700], "truncated"),
    "50,000 x 50,000": (png_header(50_000, 50_000), "decompression bomb (2500 megapixels"),
}
"""Bytes, and how the reason begins."""


def untrained(folder: Path, *, probed: bool = True) -> str:
    """A bundle of a tiny model that was never trained, with a probe that was fitted to a few views."""
    # Random BatchNorm layers pass brightness and colour on, which GroupNorm removes: a probe of them works.
    config = tiny_model(dre=DREConfig(width=8, norm="bn", proj_dim=32))
    model = build_model(config, backbone_weights=False, seed=1).eval()
    assert model.dre is not None
    probe = None
    if probed:
        rule = DegradeConfig(region=80)
        fitted, tested = (
            make_views(((n, scene(n)) for n in numbers), seed=4, crop=CROP, config=rule, clean=True)
            for numbers in (range(4), (20, 21))
        )
        probe = fit_degradation_probe(model.dre, fitted, tested, unseen=True)
    save_bundle(model, folder, model_config=config, score=SCALE, meta={}, probe=probe)
    return str(folder)


def registered(bundle: str, output: Path, config: TrackingConfig) -> Tracker:
    """A tracker of a registry in which version 1 of dri-iqa is that bundle."""
    tracker = Tracker(config, str(output), output / "spool", print)
    tracker.run("job", "job")
    version = registry.register(
        tracker,
        "job/register",
        "job",
        bundle=bundle,
        name="dri-iqa",
        example=GOOD["JPEG"],
        card="# never trained",
        tags={},
    )
    assert version == "1"
    return tracker
