"""HTML and Markdown pieces of a report: escaping, tables, numbers, inlined pictures, style.

Everything that comes from data is escaped here, in one place.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

THUMBNAIL = 260
"""Longest side of an inlined photograph, in pixels."""

SHARPNESS = 1.4
"""Pixels of a figure for each CSS pixel."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5f6b76; --line: #e1e5ea; --card: #ffffff;
  --ground: #f5f7f9; --accent: #0072b2; --warn: #9a4a00; --warnback: #fff3e2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #333b44;
  --card: #1d2228; --ground: #14181c; --accent: #62b5e5; --warn: #ffbf7a; --warnback: #33261a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
header h1 { margin: 0 0 .3rem; font-size: 1.75rem; line-height: 1.25; letter-spacing: -.01em; }
header p { margin: 0; color: var(--soft); max-width: 70ch; white-space: pre-line; }
nav { margin: 1.1rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
section { margin-top: 1.5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; padding: 1.1rem 1.3rem 1.3rem; }
h2 { margin: 0 0 .7rem; font-size: 1.12rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
  margin-top: 1.4rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.45rem; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .42rem .7rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
td.text { overflow-wrap: break-word; }
ul.notes { margin: 1.2rem 0 0; padding: .8rem 1rem .8rem 2rem; border-radius: 12px;
  background: var(--warnback); color: var(--warn); }
section > p { margin: 0 0 .9rem; color: var(--soft); max-width: 80ch; }
figure { margin: 0; } figure + figure { margin-top: 1.6rem; }
figure + .scroll, figure + details { margin-top: 1.2rem; } details .scroll { margin-top: .8rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 8px;
  background: #ffffff; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .9rem; }
figure .scroll img { margin: 0 auto; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1rem; }
.gallery img { width: 100%; border-radius: 8px; }
.gallery figure + figure { margin-top: 0; }
.gallery figcaption { overflow-wrap: anywhere; font-size: .84rem; }
details summary { cursor: pointer; color: var(--accent); }
pre { margin: .8rem 0 0; padding: 1rem; overflow-x: auto; font-size: .84rem; line-height: 1.45;
  background: var(--ground); border-radius: 8px; }
footer { margin-top: 2rem; color: var(--soft); font-size: .86rem; }
@media (max-width: 640px) { figure img.wide { width: 680px; max-width: none; }
  section { padding: .9rem 1rem 1.1rem; } table { font-size: .86rem; } .tile b { font-size: 1.2rem; }
  th, td { padding: .38rem .5rem; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""


def document(
    title: str, summary: str, body: str, *, style: str = "", legend: str = "", script: str = ""
) -> str:
    """A whole page; its content policy forbids everything that is not in it.

    Args:
        title: plain text.
        summary: plain text under it.
        body: HTML.
        style: CSS besides `STYLE`.
        legend: plain text for the foot of the page.
        script: JavaScript, the only one that the policy then allows; it may talk to the page's own
            server and to nobody else.
    """
    alone = "" if script else "This page is complete in itself."
    foot = " ".join(filter(None, ("Made by dri-iqa.", legend, alone)))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'; connect-src 'self'; form-action 'self'"
        script = f"<script>{script}</script>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        f'content="{policy}">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head><body><main>"
        f"<header><h1>{text(title)}</h1><p>{text(summary)}</p></header>{body}"
        f"<footer>{text(foot)}</footer></main>{script}</body></html>\n"
    )


def text(value: Any) -> str:
    """Plain text as HTML."""
    return html.escape(str(value), quote=True)


def number(value: Any) -> str:
    """A cell as people read it: integers whole, other numbers with four significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        value = float(value)
        if math.isnan(value):
            return "undefined"
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        if (value and abs(value) < 1e-3) or abs(value) >= 1e6:
            return f"{value:.3e}"
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys in order of first appearance; columns that are empty everywhere are left out."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if any(row.get(key) not in (None, "") for row in rows)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table; columns of numbers are aligned to the right."""
    numeric = _numeric_columns(rows)
    rows = with_intervals(rows)
    columns = columns_of(rows)
    kind = {key: "number" if key in numeric else "text" for key in columns}
    head = "".join(f'<th class="{kind[key]}">{text(_title(key))}</th>' for key in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind[key]}">{text(number(row.get(key)))}</td>' for key in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def with_intervals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which x, x_low and x_high are one cell, as in "0.912 [0.880, 0.930]"."""
    joined = []
    for row in rows:
        cells = dict(row)
        for key in row:
            low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
            if low is None or high is None:
                continue
            del cells[f"{key}_low"], cells[f"{key}_high"]
            if math.isfinite(low) and math.isfinite(high):
                cells[key] = f"{number(row[key])} [{number(low)}, {number(high)}]"
        joined.append(cells)
    return joined


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    rows = with_intervals(rows)
    columns = columns_of(rows)
    if not columns:
        return ""
    lines = ["| " + " | ".join(markdown(_title(key)) for key in columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += [
        "| " + " | ".join(markdown(number(row.get(key))) for key in columns) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def markdown(value: Any) -> str:
    """Plain text on one line of Markdown, with what would be read as mark-up escaped."""
    escaped = " ".join(str(value).split())
    for mark in "\\`*_[]<>|#":
        escaped = escaped.replace(mark, "\\" + mark)
    return escaped


def pairs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A flat mapping as the rows of a two-column table."""
    return [{"name": key, "value": _plain(value)} for key, value in values.items()]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def inline_file(path: str | Path) -> str:
    """A PNG or JPEG file as a data URI."""
    data = Path(path).read_bytes()
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def size_attributes(path: str | Path) -> str:
    """Width in CSS pixels of a figure file, fewer than its own so that it stays sharp, and whether
    it is `wide`: scrolled on a small screen rather than shrunk.
    """
    with Image.open(path) as image:
        width = round(image.width / SHARPNESS)
    return f'width="{width}"' + (' class="wide"' if width > 680 else "")


def inline_image(image_HWC: np.ndarray, side: int = THUMBNAIL) -> str:
    """A uint8 picture as the data URI of a JPEG, shrunk where it is larger than `side`."""
    image = Image.fromarray(image_HWC)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _numeric_columns(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    kinds: dict[str, bool] = {}
    for row in rows:
        for key, value in row.items():
            plain = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            kinds[key] = kinds.get(key, True) and (value is None or plain)
    return {key for key, plain in kinds.items() if plain}


def _title(key: str) -> str:
    known = {"srocc", "plcc", "krocc", "rmse"}
    words = key.replace("_", " ").split(" ")
    return " ".join(word.upper() if word in known else word for word in words)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return number(value) if isinstance(value, float | np.floating | bool) else str(value)
