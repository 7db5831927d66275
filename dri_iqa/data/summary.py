"""What was ingested, for people: a few numbers, and a picture of a few images.

Shape suffixes: H height, W width, C the three RGB channels.
"""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dri_iqa.data.manifest import Manifest, ShardReader
from dri_iqa.images import decode

TILE, CAPTION, COLUMNS, ROWS = 160, 14, 6, 4
CONTACT_SHEET = "contact_sheet.png"


def summary(manifest: Manifest) -> dict[str, str]:
    """Name -> text: images, references, groups, what was set aside and why, scores, sizes, shards."""
    table = manifest.images()
    rows = {name: f"{count}" for name, count in manifest.counts.items() if name != "quarantined"}
    reasons = Counter(
        reason.split(" (")[0].split(" of ")[0]
        for reason in manifest.quarantine()["reason"].to_pylist()
    )
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    rows["set aside"] = f"{manifest.counts['quarantined']}" + (f": {told}" if told else "")
    scores = [score for score in table["score"].to_pylist() if score is not None]
    if scores:
        direction = "higher" if manifest.higher_is_better else "lower"
        rows["scores"] = (
            f"{manifest.score_kind}, {min(scores):.4g} to {max(scores):.4g}, {direction} is better"
        )
    sides = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)
    low, high = sides[sides.prod(axis=1).argmin()], sides[sides.prod(axis=1).argmax()]
    same = (low == high).all()
    rows["pixels"] = f"{low[0]}x{low[1]}" + ("" if same else f" to {high[0]}x{high[1]}")
    volume = sum(info.size for info in manifest.shards) / 1e6
    rows["shards"] = f"{len(manifest.shards)}, {volume:.1f} MB"
    rows["manifest"] = manifest.digest[:12]
    return rows


def contact_sheet(reader: ShardReader) -> bytes:
    """A PNG of up to 24 images, evenly spaced from the lowest score to the highest, with captions.

    Images without scores are evenly spaced by id. The same manifest gives the same picture.
    """
    table = reader.manifest.images()
    ids, scores, names = (table[name].to_pylist() for name in ("image_id", "score", "name"))
    order = sorted(range(len(ids)), key=lambda place: (scores[place] or 0.0, ids[place]))
    count = min(len(order), COLUMNS * ROWS)
    places = [order[round(step * (len(order) - 1) / max(1, count - 1))] for step in range(count)]
    rows = -(-count // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for number, place in enumerate(places):
        left, top = number % COLUMNS * TILE, number // COLUMNS * (TILE + CAPTION)
        picture = Image.fromarray(decode(reader.read(ids[place])["bytes"]))
        picture.thumbnail((TILE - 4, TILE - 4))
        sheet.paste(
            picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2)
        )
        score = "" if scores[place] is None else f"{scores[place]:.4g}  "
        name = names[place].rpartition("/")[2]
        pen.text((left + 3, top + TILE - 2), f"{score}{name}"[:28], fill="black", font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
