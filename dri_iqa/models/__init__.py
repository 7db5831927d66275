"""The networks: extractor, predictor, restoration, and the whole inference model."""

from __future__ import annotations

from dri_iqa.models import quick_start  # noqa: F401  (before whatever imports timm)
from dri_iqa.models.dre import DRE, DREEncoder, DREOutput
from dri_iqa.models.dri_iqa import DRIIQA, build_model
from dri_iqa.models.nafnet import NAFNet
from dri_iqa.models.packed import PackedModel, can_pack
from dri_iqa.models.table import Row, format_table, model_table

__all__ = [
    "DRE",
    "DRIIQA",
    "DREEncoder",
    "DREOutput",
    "NAFNet",
    "PackedModel",
    "Row",
    "build_model",
    "can_pack",
    "format_table",
    "model_table",
]
