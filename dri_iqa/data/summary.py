"""What was ingested, for people: a few numbers, and a picture of a few images.

Shape suffixes: H height, W width, C the three RGB channels.
"""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from dri_iqa.data.manifest import Manifest, ShardReader
from dri_iqa.images import decode

TILE, CAPTION, COLUMNS, ROWS = 160, 14, 6, 4
CONTACT_SHEET = "contact_sheet.png"


def summary(manifest: Manifest) -> dict[str, str]:
    """Name -> text: images, references, groups, what was set aside and why, scores, sizes, shards."""
    rows = {name: f"{count}" for name, count in manifest.counts.items() if name != "quarantined"}
    reasons = Counter(
        reason.split(" (")[0].split(" of ")[0]
        for reason in manifest.quarantine()["reason"].to_pylist()
    )
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    rows["set aside"] = f"{manifest.counts['quarantined']}" + (f": {told}" if told else "")
    found = [_extremes(page) for page in manifest.pages()]
    scores = [score for scores, _ in found for score in scores]
    if scores and manifest.score_kind != "none":
        direction = "higher" if manifest.higher_is_better else "lower"
        rows["scores"] = (
            f"{manifest.score_kind}, {min(scores):.4g} to {max(scores):.4g}, {direction} is better"
        )
    sides = sorted(
        {side for _, sides in found for side in sides}, key=lambda side: side[0] * side[1]
    )
    low, high = sides[0], sides[-1]
    rows["pixels"] = f"{low[0]}x{low[1]}" + ("" if low == high else f" to {high[0]}x{high[1]}")
    volume = sum(info.size for info in manifest.shards) / 1e6
    rows["shards"] = f"{len(manifest.shards)}, {volume:.1f} MB"
    rows["manifest"] = manifest.digest[:12]
    return rows


def _extremes(page: pa.Table) -> tuple[list[float], list[tuple[int, int]]]:
    """Lowest and highest score of a page's images, and their smallest and largest (width, height)."""
    images = page.filter(pc.equal(page["role"], "image"))  # pyright: ignore[reportAttributeAccessIssue]
    if not images.num_rows:
        return [], []
    scores = images["score"].drop_null().to_numpy()
    width_N, height_N = images["width"].to_numpy(), images["height"].to_numpy()
    area_N = width_N * height_N
    sides = [(int(width_N[at]), int(height_N[at])) for at in (area_N.argmin(), area_N.argmax())]
    return [float(scores.min()), float(scores.max())] if len(scores) else [], sides


def contact_sheet(reader: ShardReader) -> bytes:
    """A PNG of up to 24 images, evenly spaced from the lowest score to the highest, with captions.

    Images without scores are evenly spaced by id. The same manifest gives the same picture.
    """
    images = reader.manifest.counts["images"]
    count = min(images, COLUMNS * ROWS)
    places = np.array([round(step * (images - 1) / max(1, count - 1)) for step in range(count)])
    if reader.manifest.score_kind != "none":
        score_N = reader.manifest.images()["score"].to_numpy()
        places = np.argsort(score_N, kind="stable")[places]
    rows = -(-count // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for number, image_id in enumerate(reader.ids_at(places)):
        row = reader.read(image_id)
        left, top = number % COLUMNS * TILE, number // COLUMNS * (TILE + CAPTION)
        picture = Image.fromarray(decode(row["bytes"]))
        picture.thumbnail((TILE - 4, TILE - 4))
        sheet.paste(
            picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2)
        )
        score = "" if row["score"] is None else f"{row['score']:.4g}  "
        name = row["name"].rpartition("/")[2]
        pen.text((left + 3, top + TILE - 2), f"{score}{name}"[:28], fill="black", font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
