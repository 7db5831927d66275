"""Explanations: a probe that is what was measured, data that are the scorer's, a page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from dri_iqa import Scorer, load_model
from dri_iqa.bundle import BundleError, ScoreScale, load_bundle, save_bundle
from dri_iqa.bundle_head import ProbeFacts
from dri_iqa.cli import app
from dri_iqa.config import DegradeConfig, DREConfig, PredictorConfig
from dri_iqa.crops import crop_positions
from dri_iqa.degradations import OPERATORS, Recipe, Step, apply_recipe, parse_recipe
from dri_iqa.evaluation.probe import CLEAN, TYPES, fit_degradation_probe, make_views
from dri_iqa.explain import Explanation, explain
from dri_iqa.explain_page import accuracy_words, render
from dri_iqa.images import content_digest
from dri_iqa.models import build_model
from dri_iqa.models.dri_iqa import DRIIQA
from dri_iqa.probe import DegradationProbe, LinearProbe
from dri_iqa.seeds import Purpose, generator
from tests.tiny import CROP, tiny_model

# Random BatchNorm layers pass brightness, colour and contrast on, which GroupNorm removes: a probe of them works.
CONFIG = tiny_model(dre=DREConfig(width=8, norm="bn", proj_dim=32))
SCALE = ScoreScale(lo=1.0, hi=5.0, name="MOS", kind="pseudo")
SEED, TESTED = 4, (20, 21, 22)


def scene(number: int, height: int = 96, width: int = 96) -> np.ndarray:
    """Structure at three scales, in colour."""
    rng = np.random.default_rng(number)
    total_HWC = np.zeros((height, width, 3))
    for cells, weight in ((4, 0.5), (12, 0.35), (40, 0.15)):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        resized = layer.resize((width, height), Image.Resampling.BICUBIC)
        total_HWC += weight * np.asarray(resized)
    return np.rint(total_HWC).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> DRIIQA:
    return build_model(CONFIG, backbone_weights=False, seed=1).eval()


@pytest.fixture(scope="module")
def probe(model: DRIIQA) -> DegradationProbe:
    def views(numbers: Any) -> Any:
        images = ((number, scene(number)) for number in numbers)
        config = DegradeConfig(region=80)
        return make_views(images, seed=SEED, crop=CROP, config=config, clean=True)

    assert model.dre is not None
    return fit_degradation_probe(model.dre, views(range(8)), views(TESTED), unseen=True)


@pytest.fixture(scope="module")
def bundle(
    model: DRIIQA, probe: DegradationProbe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("probed") / "bundle"
    save_bundle(model, folder, model_config=CONFIG, score=SCALE, meta={}, probe=probe)
    return folder


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return load_model(bundle, device="cpu")


@pytest.fixture(scope="module")
def explanation(scorer: Scorer) -> Explanation:
    return explain(scorer, scene(50, 90, 130), name="a <b>.png", crops=6)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """The MANIQA baseline: no extractor, no probe."""
    config = tiny_model(predictor=PredictorConfig(embed_dim=48, swin_mlp=48, baseline="maniqa"))
    plain = build_model(config, backbone_weights=False, seed=1)
    folder = tmp_path_factory.mktemp("maniqa") / "bundle"
    save_bundle(plain, folder, model_config=config, score=SCALE, meta={})
    return load_model(folder, device="cpu")


def test_the_probe_comes_back_with_the_bundle_bit_for_bit(
    probe: DegradationProbe, bundle: Path, model: DRIIQA, tmp_path: Path
) -> None:
    loaded = load_bundle(bundle)
    assert loaded.probe is not None
    assert loaded.probe.facts == probe.facts
    for name, tensor in probe.tensors().items():
        assert torch.equal(loaded.probe.tensors()[name], tensor)
    assert json.loads((bundle / "config.json").read_text())["format_version"] == 2
    digest = save_bundle(model, tmp_path / "b", model_config=CONFIG, score=SCALE, meta={})
    assert digest != loaded.digest, "the digest covers the probe"
    assert json.loads((tmp_path / "b" / "config.json").read_text())["format_version"] == 1
    assert load_bundle(tmp_path / "b").probe is None


def forge(
    source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> Path:
    """A copy with changed settings and tensors in which every digest fits again."""
    values = json.loads((source / "config.json").read_text())
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    change(values, tensors)
    target.mkdir()
    safetensors.torch.save_file(tensors, target / "model.safetensors")
    data = (target / "model.safetensors").read_bytes()
    values["tensors"]["sha256"] = hashlib.sha256(data).hexdigest()
    values.pop("sha256")
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (target / "config.json").write_text(json.dumps(values))
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values, tensors: tensors.pop("probe.bias"), "missing tensor probe.bias"),
        (lambda values, tensors: tensors.update({"probe.x": torch.zeros(1)}), "extra tensor probe"),
        (lambda values, tensors: values.pop("probe"), r"extra tensor probe\.bias \(and 3 more\)"),
        (
            lambda values, tensors: tensors.update({"probe.mean": torch.zeros(3).double()}),
            r"tensor probe\.mean: got float64\[3\], expected float64\[64\]",
        ),
        (lambda values, tensors: values["probe"]["kinds"].pop(), r"tensor probe\.\w+: got"),
        (lambda values, tensors: values["probe"].update(sure=1), r"unknown key probe\.sure"),
        (
            lambda values, tensors: values.update(parts=["backbone", "predictor"]),
            "a probe of degradations without an extractor",
        ),
    ],
)
def test_a_probe_that_does_not_fit_is_refused_by_name(
    bundle: Path, tmp_path: Path, change: Any, words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        load_bundle(forge(bundle, tmp_path / "forged", change))


def test_the_accuracy_of_a_probe_cannot_be_polished(bundle: Path, tmp_path: Path) -> None:
    text = (bundle / "config.json").read_text()
    (tmp_path / "config.json").write_text(re.sub(r'"accuracy": [\d.]+', '"accuracy": 0.9', text))
    with pytest.raises(BundleError, match=r"config\.json was changed"):
        load_bundle(tmp_path)


def test_the_stated_accuracy_is_what_a_recomputation_finds(scorer: Scorer) -> None:
    """Views made anew one by one, features without batches, the classifier in numpy."""
    stored = scorer.bundle.probe
    assert stored is not None
    facts, linear = stored.facts, stored.linear
    right = 0
    for number in TESTED:
        rng = generator(SEED, Purpose.PROBE, number, len(TYPES))
        top, left = (int(rng.integers(96 - 80 + 1)) for _ in "yx")
        region_HWC = np.ascontiguousarray(scene(number)[top : top + 80, left : left + 80])
        top, left = (int(rng.integers(80 - CROP + 1)) for _ in "yx")
        for kind, name in enumerate(facts.kinds):
            view_HWC = region_HWC
            if name != CLEAN:
                rng = generator(SEED, Purpose.PROBE, number, kind)
                level = int(rng.integers(1, 6))
                signed = OPERATORS[name].draws_sign("default")
                sign = 1 - 2 * int(rng.integers(2)) if signed else 1
                view_HWC = apply_recipe(region_HWC, Recipe((Step(name, level, sign),)), rng)
            crop = torch.from_numpy(view_HWC[top : top + CROP, left : left + CROP].copy())
            with torch.no_grad():
                last = scorer.bundle.model.dre(crop.permute(2, 0, 1)[None].float() / 255)[-1][0]  # type: ignore
            feature_F = last[: last.shape[0] // 2].mean((1, 2)).double().numpy()
            x_F = (feature_F - linear.mean_F.numpy()) / linear.scale_F.numpy()
            answer = int(np.argmax(linear.weight_KF.numpy() @ x_F + linear.bias_K.numpy()))
            right += facts.kinds[answer] == name
    assert facts.kinds == (*TYPES, "none")
    assert facts.tested_on == len(TESTED)
    assert facts.fitted_on == 8
    assert facts.accuracy == pytest.approx(right / (len(TESTED) * len(facts.kinds)), abs=1e-12)
    assert facts.accuracy > 2 * facts.chance


@pytest.mark.parametrize("kind", ["darken", "brighten", "saturation_lab", "non_linear_contrast"])
def test_a_strong_degradation_is_seen(scorer: Scorer, kind: str) -> None:
    clean_HWC = scene(60)
    recipe = parse_recipe(f"{kind}:5")
    degraded_HWC = apply_recipe(clean_HWC, recipe, generator(0, Purpose.DEGRADE, 0, 0, 0))

    def seen(image_HWC: np.ndarray) -> dict[str, float]:
        found = explain(scorer, image_HWC, crops=4).degradations
        assert found is not None
        assert sum(one.probability for one in found) == pytest.approx(1)
        likely = [one.probability for one in found]
        assert likely == sorted(likely, reverse=True)
        return {one.kind: one.probability for one in found}

    clean, degraded = seen(clean_HWC), seen(degraded_HWC)
    assert degraded[kind] > 3 * clean[kind]
    assert kind in list(degraded)[:3], (
        "near kinds, such as darken and mean_shift, may change places"
    )


def test_the_penalty_is_chosen_for_honest_probabilities(
    model: DRIIQA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that hold nothing: a lightly penalised probe would be sure of its guesses."""
    rng = torch.Generator().manual_seed(0)
    noise = {count: torch.randn(count * (len(TYPES) + 1), 64, generator=rng) for count in (4, 2)}
    monkeypatch.setattr(
        "dri_iqa.evaluation.probe.half_features",
        lambda encoder, crops, device: {"up": noise[len(crops) // (len(TYPES) + 1)]},
    )
    views = [
        make_views(((n, scene(n, 40, 40)) for n in ids), seed=0, crop=32, clean=True)
        for ids in (range(4), range(4, 6))
    ]
    assert model.dre is not None
    found = fit_degradation_probe(model.dre, *views, unseen=False)
    label_N, chance = views[1].type_N, np.log(len(TYPES) + 1)
    assert found.linear.log_loss(noise[2], label_N) < chance + 0.3
    careless = LinearProbe.fit(noise[4], views[0].type_N)
    assert careless.log_loss(noise[2], label_N) > chance + 1


def test_an_explanation_is_the_scorers(scorer: Scorer, explanation: Explanation) -> None:
    image_HWC = scene(50, 90, 130)
    row = scorer.score([image_HWC], crops=6, maps=True).iloc[0]
    assert (explanation.score, explanation.std) == (row["score"], row["std"])
    position_K2 = crop_positions(130, 90, CROP, 6, content_digest(image_HWC))
    assert [[crop.x, crop.y] for crop in explanation.crops] == position_K2.tolist()
    scores = [crop.score for crop in explanation.crops]
    assert np.mean(scores) == pytest.approx(explanation.score)
    for crop in explanation.crops[:2]:
        piece_HWC = image_HWC[crop.y : crop.y + CROP, crop.x : crop.x + CROP]
        alone = scorer.score([piece_HWC], crops="whole").iloc[0]["score"]
        assert crop.score == pytest.approx(alone, abs=1e-4)
    assert np.array_equal(explanation.quality_hw, row["quality_map"])
    assert np.array_equal(explanation.degradation_hw, row["degradation_map"])
    plain = json.loads(json.dumps(explanation.plain(), allow_nan=False))
    assert plain["score"] == row["score"]
    assert len(plain["crops"]["scores"]) == 6
    assert plain["crops"]["policy"] == "random6"
    assert plain["degradations"][0]["kind"] in (*TYPES, CLEAN)
    assert plain["probe"]["chance"] == pytest.approx(1 / 25)
    assert plain["probe"]["accuracy"] == scorer.bundle.probe.facts.accuracy  # type: ignore
    assert np.allclose(plain["quality_map"], explanation.quality_hw, atol=1e-5)


def test_small_pictures_and_every_way_to_name_one(scorer: Scorer, tmp_path: Path) -> None:
    small_HWC = scene(51, 30, 40)
    path = tmp_path / "small.png"
    Image.fromarray(small_HWC).save(path)
    found = explain(scorer, path, crops="uniform4")
    assert found.name == str(path)
    assert found.image_HWC.shape == (64, 85, 3)
    assert found.score == scorer.score([path], crops="uniform4").score.item()
    same = [explain(scorer, other, crops="uniform4") for other in (path.read_bytes(), small_HWC)]
    for other in same:
        assert {**other.plain(), "image": ""} == {**found.plain(), "image": ""}
        assert other.name == "picture"


class Page(HTMLParser):
    """Tags, everything that could be fetched, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.sources += [
            values[key] or "" for key in ("src", "href", "xlink:href") if key in values
        ]
        assert not [key for key in values if key.startswith("on")]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.words += data


def test_the_page_is_complete_in_itself(explanation: Explanation) -> None:
    text = render(explanation)
    found = Page(text)
    assert found.policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(found.sources) == 3
    sizes = []
    for source in found.sources:
        head, data = source.split(",", 1)
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            sizes.append(picture.size)
    assert sizes == [(130, 90)] * 3
    assert found.tags.count("rect") == 6
    assert "a <b>.png" in found.words, "names are escaped"
    for title in ("Crops", "Spread", "Maps", "Degradations seen", "Model"):
        assert title in found.words
    assert explanation.probe is not None
    assert accuracy_words(explanation.probe) in found.words
    assert explanation.digest in found.words
    assert "pseudo scores" in found.words


def test_equal_pixels_give_equal_bytes(bundle: Path, explanation: Explanation) -> None:
    again = explain(load_model(bundle), scene(50, 90, 130), name="a <b>.png", crops=6)
    assert render(again) == render(explanation)


def test_the_accuracy_is_said_in_words() -> None:
    kinds = (*TYPES, CLEAN)
    good = ProbeFacts(kinds=kinds, accuracy=0.58, fitted_on=32, tested_on=16, unseen=True)
    words = accuracy_words(good)
    assert "right for 58 % of the views of held-out photographs" in words
    assert "guessing would be right for 4.0 %" in words
    assert "16 pictures" in words
    assert "never trained on them" in words
    assert "guessing: " not in words
    poor = ProbeFacts(kinds=kinds, accuracy=0.07, fitted_on=32, tested_on=16, unseen=False)
    assert "may have trained on them" in accuracy_words(poor)
    assert "little better than guessing" in accuracy_words(poor)


def test_what_a_model_cannot_show_is_said(baseline: Scorer, model: DRIIQA, tmp_path: Path) -> None:
    found = explain(baseline, scene(3), crops=1)
    plain = found.plain()
    assert (plain["degradations"], plain["probe"], plain["quality_map"]) == (None, None, None)
    words = Page(render(found)).words
    assert "MANIQA baseline: it has no extractor" in words
    assert "there is no degradation half to ask" in words
    assert "Every crop scores" in words
    save_bundle(model, tmp_path / "old", model_config=CONFIG, score=SCALE, meta={})
    old = explain(load_model(tmp_path / "old"), scene(3), crops=2)
    assert old.degradations is None
    assert old.quality_hw is not None
    assert "holds no probe of degradations" in Page(render(old)).words


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


def test_the_command_writes_the_page_or_prints_the_data(
    bundle: Path, scorer: Scorer, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(scene(5)).save(photo)
    out = tmp_path / "new" / "page.html"
    arguments = ("explain", photo, "--model", bundle, "--crops", "3")
    result = run(*arguments, "--out", out)
    assert (result.exit_code, result.stdout.strip()) == (0, str(out)), result.stderr
    assert out.read_text() == render(explain(scorer, photo, name="photo.png", crops=3))
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    result = run(*arguments, "--format", "json")
    assert json.loads(result.stdout) == explain(scorer, photo, name="photo.png", crops=3).plain()
    result = run(*arguments, "--format", "json", "--out", tmp_path / "page.json")
    assert json.loads((tmp_path / "page.json").read_text())["crops"]["side"] == CROP


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.png", "--model", "BUNDLE"], "a page is a file"),
        (["gone.png", "--model", "BUNDLE", "--out", "x.html"], "No such file or directory"),
        (["text.png", "--model", "BUNDLE", "--out", "x.html"], "text.png: not an image"),
        (["photo.png", "--model", "nowhere", "--out", "x.html"], "no model at 'nowhere'"),
        (["photo.png", "--model", "BUNDLE", "--out", "text.png/x.html"], "text.png"),
        (["photo.png", "--model", "BUNDLE", "--out", "folder"], "folder"),
        (["photo.png", "--model", "BUNDLE", "--out", "x.html", "--crops", "2x"], "crops: got '2x'"),
    ],
)
def test_wrong_use_is_two_lines_and_nothing_is_left(
    arguments: list[str],
    words: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene(5)).save("photo.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder").mkdir()
    result = run("explain", *(item.replace("BUNDLE", str(bundle)) for item in arguments))
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "photo.png", "text.png"]
    assert not list((tmp_path / "folder").iterdir())
