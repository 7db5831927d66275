"""An explanation as one HTML page that is complete in itself: no script, no network.

Shapes: C channels, H x W pixels of the picture, h x w positions of a map.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib import colormaps
from PIL import Image

from dri_iqa.bundle_head import ProbeFacts
from dri_iqa.evaluation import page
from dri_iqa.evaluation.probe import CLEAN
from dri_iqa.explain import Explanation, Seen
from dri_iqa.images import resize
from dri_iqa.maps import unit

SIDE = 900
"""Longest side of a picture on the page, in pixels."""
LISTED = 8
"""Degradations that are shown before the rest is folded away."""
BINS = 12
"""Columns of the histogram of crops."""
SCORES, MAP = "viridis", "magma"
"""Colour maps of crops' scores, and of the magnitude of a half."""

STYLE = """
.picture { position: relative; margin: 0 auto; max-width: 100%; }
.picture img { display: block; width: 100%; height: auto; border-radius: 8px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture rect { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke;
  filter: drop-shadow(0 0 1px #ffffff); }
.legend { display: flex; align-items: center; gap: .6rem; margin: .8rem auto 0; font-size: .86rem;
  color: var(--soft); font-variant-numeric: tabular-nums; max-width: 34rem; }
.legend i { flex: 1; height: .7rem; border-radius: 4px; }
.gauge { position: relative; height: .7rem; margin: 1.4rem .2rem 0; border-radius: 4px;
  background: linear-gradient(90deg, #b0413e, #d9a441, #3f8f5f); }
.gauge i { position: absolute; top: 0; bottom: 0; background: #00000040; }
.gauge u { position: absolute; top: -5px; bottom: -5px; width: 4px; margin-left: -2px;
  border-radius: 2px; background: var(--ink); outline: 2px solid var(--ground); }
.ends { display: flex; justify-content: space-between; margin: .4rem .2rem 0; font-size: .86rem;
  color: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 1.2rem; } .pair figure + figure { margin-top: 0; } .pair img { width: 100%; max-height: 34rem;
  object-fit: contain; background: none; }
.histogram { display: flex; align-items: flex-end; gap: 3px; height: 7rem; max-width: 34rem;
  margin: 0 auto; border-bottom: 1px solid var(--line); }
.histogram i { flex: 1; border-radius: 3px 3px 0 0; }
.seen { display: grid; grid-template-columns: minmax(7rem, 13rem) 1fr 4rem; gap: .3rem .8rem;
  align-items: center; font-size: .95rem; }
.seen b { font-weight: 400; overflow-wrap: anywhere; }
.seen .share { text-align: right; font-variant-numeric: tabular-nums; }
.bar { position: relative; height: .95rem; background: var(--ground); border-radius: 4px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--accent); border-radius: 4px; }
.bar u { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--warn); }
details { margin-top: .8rem; } details .seen { margin-top: .6rem; }
section p { margin: .7rem 0 0; max-width: 90ch; }
section .legend + p, section details + p { margin-top: 1rem; }
header h1 { overflow-wrap: anywhere; }
td.text { overflow-wrap: anywhere; }
@media (max-width: 560px) { .seen { grid-template-columns: 1fr auto; grid-auto-flow: dense; }
  .bar { grid-column: 1 / -1; margin-bottom: .4rem; }
  section { padding: .9rem 1rem 1rem; } }
"""


def render(explanation: Explanation) -> str:
    """The page. Equal explanations give equal bytes."""
    scale = explanation.scale
    tiles = {
        f"score, {scale.lo:.4g} to {scale.hi:.4g}": page.number(explanation.score),
        "spread over the crops": f"± {page.number(explanation.std)}",
        f"crops of {explanation.side} px": str(len(explanation.crops)),
    }
    if explanation.degradations and explanation.probe and not _weak(explanation.probe):
        first = explanation.degradations[0]
        tiles[f"looks most like, {_percent(first.probability)}"] = _kind(first.kind)
    sections = [
        ("Crops", _crops(explanation)),
        ("Spread", _spread(explanation)),
        ("Maps", _maps(explanation)),
        ("Degradations seen", _degradations(explanation)),
        ("Model", page.table(page.pairs(_model(explanation)))),
    ]
    body = "".join(
        f'<div class="tile"><b>{page.text(value)}</b><span>{page.text(name)}</span></div>'
        for name, value in tiles.items()
    )
    body = f'<div class="tiles">{body}</div>{_gauge(explanation)}'
    if scale.kind == "pseudo":
        words = "a full-reference measure computed what the model learned, people did not"
        body += f'<ul class="notes"><li>Scores are pseudo scores: {words}.</li></ul>'
    body += "".join(
        f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content
    )
    direction = "Higher" if scale.higher_is_better else "Lower"
    summary = f"{scale.name}: {scale.lo:.4g} to {scale.hi:.4g}. {direction} is better."
    return page.document(explanation.name, summary, body, style=STYLE)


def _gauge(explanation: Explanation) -> str:
    """The score and its spread on the whole scale, the better end always on the right."""
    scale = explanation.scale
    share, width = scale.normalise(explanation.score), explanation.std / scale.span
    left, middle, right = (
        min(max(place, 0.0), 1.0) for place in (share - width, share, share + width)
    )
    worst, best = (scale.lo, scale.hi) if scale.higher_is_better else (scale.hi, scale.lo)
    return (
        f'<div class="gauge"><i style="left:{100 * left:.1f}%;width:{100 * (right - left):.1f}%">'
        f'</i><u style="left:{100 * middle:.1f}%"></u></div>'
        f'<div class="ends"><span>{worst:.4g}, worst</span><span>{best:.4g}, best</span></div>'
    )


def _crops(explanation: Explanation) -> str:
    height, width = explanation.image_HWC.shape[:2]
    low, high = _range(explanation)
    boxes = "".join(
        f'<rect x="{crop.x}" y="{crop.y}" width="{explanation.side}" height="{explanation.side}" '
        f'stroke="{_colour(SCORES, crop.score, low, high)}">'
        f"<title>{page.text(page.number(crop.score))}</title></rect>"
        for crop in sorted(explanation.crops, key=lambda crop: crop.score, reverse=True)
    )
    source = page.inline_image(explanation.image_HWC, SIDE)
    legend = _legend(SCORES, page.number(low), page.number(high)) if low < high else ""
    note = "Every square is a crop that was scored; its colour is its score."
    return (
        f'<figure><div class="picture" style="width:{_shown_width(width, height):.0f}px">'
        f'<img src="{source}" alt="the picture"><svg viewBox="0 0 {width} {height}">{boxes}</svg>'
        f"</div></figure>{legend}<p>{note}</p>"
    )


def _shown_width(width: int, height: int) -> float:
    """CSS pixels: large pictures fit a screen, small ones are enlarged."""
    largest = min(SIDE / width, 0.7 * SIDE / height)
    return width * min(largest, max(1.0, 280 / max(width, height)))


def _spread(explanation: Explanation) -> str:
    low, high = _range(explanation)
    scores = [crop.score for crop in explanation.crops]
    if low == high:
        return f"<p>Every crop scores {page.text(page.number(low))}.</p>"
    counts, edges = np.histogram(scores, BINS, (low, high))
    columns = "".join(
        f'<i title="{count}" style="height:{100 * count / counts.max():.1f}%;'
        f'background:{_colour(SCORES, middle, low, high)}"></i>'
        for count, middle in zip(counts, (edges[:-1] + edges[1:]) / 2, strict=True)
    )
    scale = explanation.scale
    share = (high - low) / scale.span
    words = (
        f"The score is the mean over {len(scores)} crops, {page.number(explanation.score)}; they "
        f"range from {page.number(low)} to {page.number(high)}, {_percent(share)} of the scale, "
        f"with a standard deviation of {page.number(explanation.std)}. A wide spread says that "
        "parts of the picture differ in quality, or that the model is unsure."
    )
    ends = f"<span>{page.number(low)}</span><i></i><span>{page.number(high)}</span>"
    return (
        f'<div class="histogram">{columns}</div><div class="legend">{ends}</div>'
        f"<p>{page.text(words)}</p>"
    )


def _maps(explanation: Explanation) -> str:
    if explanation.quality_hw is None or explanation.degradation_hw is None:
        return "<p>This model is the MANIQA baseline: it has no extractor, and so no maps.</p>"
    figures = "".join(
        f'<figure><img src="{page.inline_image(laid_over(explanation.image_HWC, map_hw), SIDE)}" '
        f'alt="{half} map"><figcaption>{half.capitalize()} map, mean magnitude '
        f"{page.number(map_hw.min())} to {page.number(map_hw.max())}</figcaption></figure>"
        for half, map_hw in (
            ("quality", explanation.quality_hw),
            ("degradation", explanation.degradation_hw),
        )
    )
    note = (
        "How strongly each half of the extractor's last layer answers to each place of the picture "
        "(the paper's Figure 6). The colours span each map's own range; magnitudes have no unit, "
        "and strong means neither good nor bad."
    )
    return f'<div class="pair">{figures}</div>{_legend(MAP, "weak", "strong")}<p>{note}</p>'


def laid_over(image_HWC: np.ndarray, map_hw: np.ndarray) -> np.ndarray:
    """A map in colours over the grey picture, uint8, at the size the page shows."""
    scale = min(1.0, SIDE / max(image_HWC.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image_HWC.shape[:2])
    grey_HWC = resize(image_HWC, width, height).mean(2, keepdims=True)
    smooth = Image.fromarray(unit(map_hw)).resize((width, height), Image.Resampling.BILINEAR)
    colour_HWC = colormaps[MAP](np.asarray(smooth))[..., :3] * 255
    return np.rint(0.4 * grey_HWC + 0.6 * colour_HWC).astype(np.uint8)


def _degradations(explanation: Explanation) -> str:
    facts, seen = explanation.probe, explanation.degradations
    if facts is None or seen is None:
        if explanation.degradation_hw is None:
            return "<p>Without an extractor there is no degradation half to ask.</p>"
        return (
            "<p>This bundle holds no probe of degradations: it is older than they are, or was "
            "trained with <code>stage2.probe_images=0</code> or from too few photographs.</p>"
        )
    full = max(seen[0].probability, 0.25)
    bar = partial(_bar, full=full, chance=facts.chance)
    rest = "".join(bar(one) for one in seen[LISTED:])
    return (
        f'<div class="seen">{"".join(bar(one) for one in seen[:LISTED])}</div>'
        f"<details><summary>the other {len(seen[LISTED:])}</summary>"
        f'<div class="seen">{rest}</div></details>'
        f"<p>{page.text(accuracy_words(facts))}</p>"
        "<p>The list says which single degradation the crops look most like, on average over all "
        "of them; the mark in each bar is where all kinds would be if the probe knew nothing. A "
        "picture may have several at once, or another kind: what restoration leaves behind is none "
        "of these.</p>"
    )


def accuracy_words(facts: ProbeFacts) -> str:
    """How far to trust the probe, in words."""
    seen = "never trained on" if facts.unseen else "may have trained on"
    words = (
        f"A linear probe of the degradation half is right for {_percent(facts.accuracy)} of "
        f"the views of held-out photographs; guessing would be right for {_percent(facts.chance)}. "
        f"Measured on {facts.tested_on} pictures that it was not fitted on (the extractor {seen} "
        f"them), one crop each under {len(facts.kinds) - 1} degradations and clean."
    )
    if _weak(facts):
        words += " That is little better than guessing: the list is a hint at most."
    return words


def _weak(facts: ProbeFacts) -> bool:
    """Whether the probe is right so seldom that a page must not make a headline of its answer."""
    return facts.accuracy < 3 * facts.chance


def _bar(one: Seen, full: float, chance: float) -> str:
    return (
        f'<b>{page.text(_kind(one.kind))}</b><span class="bar">'
        f'<i style="width:{100 * one.probability / full:.1f}%"></i>'
        f'<u style="left:{100 * chance / full:.1f}%"></u></span>'
        f'<span class="share">{_percent(one.probability)}</span>'
    )


def _model(explanation: Explanation) -> dict[str, str]:
    scale = explanation.scale
    better = "higher" if scale.higher_is_better else "lower"
    return {
        "model": explanation.model,
        "digest (SHA-256)": explanation.digest,
        "scale": f"{scale.name}, {scale.lo:.4g} to {scale.hi:.4g}, {better} is better",
        "labels": "given by people" if scale.kind == "human" else "pseudo scores",
        "crops": f"{explanation.policy}, {explanation.side} x {explanation.side} px",
    }


def _range(explanation: Explanation) -> tuple[float, float]:
    scores = [crop.score for crop in explanation.crops]
    return min(scores), max(scores)


def _legend(colours: str, low: str, high: str) -> str:
    stops = ",".join(_colour(colours, step, 0, 8) for step in range(9))
    bar = f'<i style="background:linear-gradient(90deg,{stops})"></i>'
    return f'<div class="legend"><span>{low}</span>{bar}<span>{high}</span></div>'


def _colour(name: str, value: float, low: float, high: float) -> str:
    unit = (value - low) / (high - low) if high > low else 0.5
    red, green, blue = (round(255 * part) for part in colormaps[name](float(unit))[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _kind(kind: str) -> str:
    return "none (clean)" if kind == CLEAN else kind.replace("_", " ")


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f} %" if percent < 9.95 else f"{percent:.0f} %"
