"""The inference part as a program of its own, for runtimes that have PyTorch but not this package.

Shapes: B crops, C the three RGB channels, H = W = the model's crop.
"""

from __future__ import annotations

import io
import json

import torch
from torch.export import Dim, ExportedProgram

from dri_iqa import storage
from dri_iqa.bundle import Bundle
from dri_iqa.config import to_dict
from dri_iqa.models.dri_iqa import evaluating

ABOUT = "dri_iqa.json"
"""Extra file of the program: side of the crops, scale of the scores, digest of the bundle."""
MAX_BATCH = 1024


def export_program(bundle: Bundle) -> ExportedProgram:
    """`image_BCHW` (float32 RGB in [0, 1]) -> normalised scores (B,), for 1 to `MAX_BATCH` crops.

    Graph and weights of the inference model alone: no training part, no Python of this package.
    Scores are normalised; the bundle's scale turns them into those of its data set.
    """
    side = bundle.config.crop
    # An example of one crop would fix the batch at one.
    example_BCHW = torch.zeros(2, 3, side, side, device=next(bundle.model.parameters()).device)
    batch = Dim("batch", min=1, max=MAX_BATCH)
    with evaluating(bundle.model), torch.no_grad():
        return torch.export.export(
            bundle.model, (example_BCHW,), dynamic_shapes={"image_BCHW": {0: batch}}
        )


def save_program(bundle: Bundle, uri: str) -> None:
    """Write the program for `torch.export.load`, whole or not at all.

    Args:
        bundle: what is exported.
        uri: the file, by custom `.pt2`; local or `s3://`.
    """
    about = {
        "crop": bundle.config.crop,
        "input": "RGB crops (B, 3, crop, crop), float32 in [0, 1]",
        "output": "normalised scores (B,); score = lo + (hi - lo) x, lo and hi swapped where lower is better",
        "score": to_dict(bundle.score),
        "bundle": bundle.digest,
    }
    target = io.BytesIO()
    torch.export.save(export_program(bundle), target, extra_files={ABOUT: json.dumps(about)})
    storage.write_bytes(uri, target.getvalue())
