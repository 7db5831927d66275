"""The registered model, as code: MLflow runs this file where the model is loaded, nothing is unpickled.

Input: a table with the column `image` (encoded bytes, base64 text, or a path). Output: one row per image with
`image, score, std, error`; a bad image is a row with an error and without numbers (None), never an exception. With the
parameter `maps` there are two columns more, `degradation_map` and `quality_map`: base64 text of an 8-bit grey PNG (see
`dri_iqa.maps.heat`), or None where there is no map, so that `mlflow models serve` can send them as JSON.
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
        """Score each image; `params` may hold `crops` (how many random ones; 0 takes the model's own policy),
        `policy` instead (`uniform25`, `whole`, …), `batch_size` (pictures decoded ahead) and `maps`.
        """
        from dri_iqa.maps import heat

        params = params or {}
        table = self._model.score(
            [_image(value) for value in model_input["image"]],
            crops=str(params.get("policy") or "") or int(params.get("crops", 0)) or None,
            batch_size=int(params.get("batch_size", 64)),
            maps=bool(params.get("maps", False)),
        )
        table["image"] = table["image"].astype(str)
        if any(reason is not None for reason in table["error"]):
            # NaN is no JSON: most clients of a server could not read the answer.
            numbers = table[["score", "std"]].astype(object)
            table[["score", "std"]] = numbers.where(numbers.notna(), None)
        for column in table.columns.intersection(["degradation_map", "quality_map"]):
            drawn = [None if map_hw is None else heat(map_hw) for map_hw in table[column]]
            table[column] = pd.Series(drawn, dtype=object)
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
