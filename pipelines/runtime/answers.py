"""What the service asks of a model: many pictures at once, each an answer of its own or a refusal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from dri_iqa.config import to_dict
from dri_iqa.explain import explain
from dri_iqa.explain_page import render
from dri_iqa.maps import heat
from dri_iqa.scoring import NON_FINITE, Scorer
from pipelines.runtime.uploads import Refused, picture_refused


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    name: str
    """What the picture is called."""
    picture: bytes
    """The file, as it came."""
    crops: str | None = None
    """Policy; None is the model's own."""
    maps: bool = False
    """Whether the answer has the maps too."""
    page: bool = False
    """Whether the answer is the page that `dri-iqa explain` writes."""


Answer: TypeAlias = "dict[str, Any] | str | Refused"


def answers(scorer: Scorer, asked: list[Asked]) -> list[Answer]:
    """An answer for each request, in their order.

    Scores are those of `scorer.score`, bit for bit: pictures are decoded side by side, but each goes through the
    network alone (see `dri_iqa.scoring`), so it does not matter who asks at the same time.
    """
    found: dict[int, Answer] = {}
    alike: dict[tuple[str | None, bool], list[int]] = defaultdict(list)
    for place, one in enumerate(asked):
        if one.page:
            found[place] = _page(scorer, one)
        else:
            alike[one.crops, one.maps].append(place)
    for (crops, maps), places in alike.items():
        rows = _rows(scorer, [asked[place] for place in places], crops, maps)
        found.update(zip(places, rows, strict=True))
    return [found[place] for place in range(len(asked))]


def _rows(
    scorer: Scorer, asked: list[Asked], crops: str | None, maps: bool
) -> Iterator[dict[str, Any] | Refused]:
    scale = to_dict(scorer.head.score)
    policy = scorer.head.scoring.crops if crops is None else crops
    pictures = [one.picture for one in asked]
    rows = scorer.iter_rows(pictures, crops=crops, batch_size=len(asked), maps=maps)
    for one, row in zip(asked, rows, strict=True):
        if row["error"] is not None:
            yield _why(row["error"])
            continue
        drawn = {half: row.pop(f"{half}_map") for half in ("degradation", "quality") if maps}
        row |= {"image": one.name, "scale": scale, "crops": str(policy), "model": scorer.name}
        if maps:
            row["maps"] = {
                half: None if map_hw is None else heat(map_hw) for half, map_hw in drawn.items()
            }
        yield row


def _page(scorer: Scorer, one: Asked) -> str | Refused:
    try:
        return render(explain(scorer, one.picture, name=one.name, crops=one.crops))
    except ValueError as error:  # of a picture: settings were checked when it was asked
        return _why(str(error).splitlines()[0].removeprefix(f"{one.name}: "))


def _why(reason: str) -> Refused:
    if reason == NON_FINITE:
        return Refused(500, reason, "model")
    return picture_refused(reason)
