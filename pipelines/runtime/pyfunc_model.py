"""The registered model, as code: MLflow runs this file where the model is loaded, nothing is unpickled.

Input: a table with the column `image` (encoded bytes, base64 text, or a path). Output: one row per image with
`image, score, std, error`; a bad image is a row with an error, never an exception.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class RegisteredModel(PythonModel):
    """A bundle behind MLflow's pyfunc interface."""

    def load_context(self, context: Any) -> None:
        """Load the bundle that lies among the model's artifacts."""
        from dri_iqa import load_model

        self._model = load_model(context.artifacts["bundle"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score each image; `params` may hold `crops` (how many random ones), `policy` instead (`uniform25`,
        `whole`, …) and `batch_size` (pictures decoded ahead).
        """
        params = params or {}
        table = self._model.score(
            [_image(value) for value in model_input["image"]],
            crops=str(params.get("policy") or "") or int(params.get("crops", 25)),
            batch_size=int(params.get("batch_size", 64)),
        )
        table["image"] = table["image"].astype(str)
        return table


def _image(value: Any) -> Any:
    """Bytes as they are; text is a path where such a file exists, else base64, else whatever scoring makes of it."""
    if not isinstance(value, str) or os.path.exists(value):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return value


set_model(RegisteredModel())
