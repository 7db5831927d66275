"""Which model commands use when none is named, and the one that comes along."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dri_iqa.default_model import SHIPPED, default_model


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where runs are looked for: the folder one is in, the checkout, the home; the newest first."""
    here, checkout, home = (tmp_path / name for name in ("here", "checkout", "home"))
    monkeypatch.delenv("DRI_IQA_MODEL", raising=False)
    module = checkout / "dri_iqa" / "default_model.py"
    monkeypatch.setattr("dri_iqa.default_model.__file__", str(module))
    monkeypatch.setattr(Path, "home", lambda: home)
    places = [here / "runs", checkout / "runs", home / "dri-iqa" / "runs"]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.chdir(here)
    return places


def point(place: Path, age: int, **pointer: str) -> None:
    file = place / "champion.json"
    file.write_text(json.dumps(pointer))
    os.utime(file, (age, age))


def ship(tmp_path: Path) -> str:
    folder = tmp_path / "checkout" / "dri_iqa" / "shipped" / SHIPPED
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_the_newest_champion(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for age, place in enumerate(reversed(places)):
        point(place, 1000 + age, bundle="full/bundle")
        assert default_model() == str(place / "full" / "bundle")
    point(places[1], 5000, bundle="full/bundle")
    assert default_model() == str(places[1] / "full" / "bundle")
    for absolute in ("s3://bucket/model", "/models/a", "models:/dri-iqa@champion"):
        point(places[1], 6000, bundle=absolute)
        assert default_model() == absolute
    point(places[1], 6000)
    with pytest.raises(ValueError, match="does not name a bundle"):
        default_model()
    monkeypatch.setenv("DRI_IQA_MODEL", "elsewhere")
    assert default_model() == "elsewhere"


def test_human_scores_before_what_comes_along_before_pseudo_scores(
    places: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no model: neither --model nor DRI_IQA_MODEL is given"):
        default_model()
    point(places[0], 2000, bundle="sample", scores="pseudo")
    assert default_model() == str(places[0] / "sample")
    shipped = ship(tmp_path)
    assert default_model() == shipped
    point(places[2], 1000, bundle="mine", scores="human")
    assert default_model() == str(places[2] / "mine")
    point(places[1], 3000, bundle="earlier")  # written before pointers said what the scores are
    assert default_model() == str(places[1] / "earlier")
