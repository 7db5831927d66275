"""The command line as people use it: real bundle, real files, exit codes, two-line errors."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dri_iqa import load_model
from dri_iqa.bundle import ScoreScale, save_bundle
from dri_iqa.cli import app
from dri_iqa.degradations import apply_recipe, parse_recipe
from dri_iqa.models import build_model
from dri_iqa.seeds import Purpose, generator
from tests.tiny import tiny_model


def run(*arguments: str | Path | int, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments], input=stdin)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "champion"
    config = tiny_model()
    save_bundle(
        build_model(config, backbone_weights=False),
        folder,
        model_config=config,
        score=ScoreScale(lo=0, hi=10, name="MOS", kind="pseudo"),
        meta={},
    )
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for index, name in enumerate(["b.png", "a[1].JPG", "sub/c.webp", ".hidden/d.png"]):
        noise_HWC = np.random.default_rng(index).integers(0, 256, (8, 9, 3)).astype(np.uint8)
        Image.fromarray(noise_HWC).resize((90, 80)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def lines_of_error(result: Result) -> list[str]:
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines


def test_csv_of_a_folder_equals_the_python_interface(bundle: Path, photos: Path) -> None:
    result = run("score", photos, "--model", bundle, "--crops", "3", "--format", "csv")
    assert result.exit_code == 0, result.stderr
    table = pd.read_csv(io.StringIO(result.stdout))
    names = [str(photos / name) for name in ("a[1].JPG", "b.png", "sub/c.webp")]
    assert table["image"].tolist() == names
    expected = load_model(bundle).score(names, crops=3)
    assert table["score"].tolist() == expected["score"].tolist()
    assert table["std"].tolist() == expected["std"].tolist()
    assert set(table["model"]) == {expected.attrs["model"]}


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_files_are_written_in_the_format_of_their_ending(
    bundle: Path, photos: Path, tmp_path: Path, form: str
) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    out = tmp_path / f"scores.{form}"
    result = run("score", photos, "--model", bundle, "--crops", "1", "--out", out)
    assert result.exit_code == 3, result.stderr
    assert result.stdout == ""
    assert "4 pictures, 1 failed" in result.stderr
    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[form]
    table = read(out)
    assert table.columns.tolist() == ["image", "score", "std", "error", "model"]
    row = table[table["image"].str.endswith("bad.png")].iloc[0]
    assert row["error"] == "not an image"
    assert np.isnan(row["score"])
    assert table["error"].isna().sum() == 3


def test_plain_table_is_never_cut(bundle: Path, photos: Path) -> None:
    deep = photos / ("long-" * 30) / "x.png"
    deep.parent.mkdir()
    (photos / "b.png").rename(deep)
    result = run("score", deep, photos / "missing-no.txt", "--model", bundle)
    assert "no such file or folder" in lines_of_error(result)[0]
    result = run("score", deep, "--model", bundle, "--crops", "uniform4")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{deep}  ")
    assert "±" in result.stdout
    assert "MOS (pseudo scores, 0 to 10, higher is better)" in result.stderr
    assert "crops uniform4" in result.stderr


def test_patterns_lists_and_repeated_paths(bundle: Path, photos: Path) -> None:
    options = ("--model", bundle, "--crops", "1", "--format", "json")
    pattern = run("score", photos / "**" / "*.webp", photos / "a[1].JPG", *options)
    listed = run("score", "-", *options, stdin=f"{photos}/sub/c.webp\n\n{photos}/a[1].JPG\n")
    twice = run("score", photos / "sub", photos / "sub" / "c.webp", photos / "a[1].JPG", *options)
    rows = json.loads(pattern.stdout)
    assert [Path(row["image"]).name for row in rows] == ["c.webp", "a[1].JPG"]
    assert rows == json.loads(listed.stdout) == json.loads(twice.stdout)


def test_a_listed_file_that_is_missing_is_a_row(bundle: Path, photos: Path) -> None:
    options = ("--model", bundle, "--crops", "1", "--format", "json")
    result = run("score", "-", *options, stdin=f"{photos}/gone.png\n{photos}/b.png\n")
    assert result.exit_code == 3
    rows = json.loads(result.stdout)
    assert [row["error"] for row in rows] == ["no such file or directory", None]
    assert rows[0]["score"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "nowhere.png"], "no such file or folder: nowhere.png"),
        (["score", "empty"], "no pictures in empty"),
        (["score", "*.nothing"], "no pictures in *.nothing"),
        (["score", "photo.png", "--crops", "abc"], "crops: got 'abc'"),
        (["score", "photo.png", "--crops", "0"], "crops: got 'random0'"),
        (["score", "photo.png", "--format", "parquet"], "parquet is a binary format"),
        (["score", "photo.png", "--model", "none"], "no model at 'none'"),
        (["score", "photo.png", "--model", "zoo:/x"], "nothing installed reads zoo: URIs"),
        (["score", "photo.png"], "no model: neither --model nor DRI_IQA_MODEL is given"),
        (["degrade", "photo.png", "--recipe", "jpg:3", "--out", "x.png"], "jpg"),
        (["degrade", "photo.png", "--recipe", "jpeg:9", "--out", "x.png"], "9"),
        (["degrade", "photo.png", "--recipe", "jpeg:3", "--out", "x.abc"], "unknown ending"),
        (["degrade", "gone.png", "--recipe", "jpeg:3", "--out", "x.png"], "No such file"),
        (["degrade", "text.png", "--recipe", "jpeg:3", "--out", "x.png"], "text.png: not an image"),
        (["gallery", "text.png", "--out", "x.png"], "text.png: not an image"),
        (["data", "check", "koniq", "."], "unknown data set koniq (did you mean koniq10k?)"),
        (["data", "check", "koniq10k", "missing"], "koniq10k"),
    ],
)
def test_wrong_use_is_two_lines_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DRI_IQA_MODEL", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("dri_iqa.default_model.__file__", str(tmp_path / "dri_iqa" / "cli.py"))
    Image.new("RGB", (80, 80)).save("photo.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    assert words in lines_of_error(run(*arguments))[0]


def test_default_model_is_used(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRI_IQA_MODEL", str(bundle))
    result = run("score", photos / "b.png", "--format", "json")
    (row,) = json.loads(result.stdout)
    assert row["score"] == load_model(bundle).score([photos / "b.png"]).score.item()


def test_degrade_is_reproducible_and_exact(photos: Path, tmp_path: Path) -> None:
    recipe = "jpeg:3 white_noise:2"
    outs = [tmp_path / f"{index}.png" for index in range(3)]
    for out, seed in zip(outs, (5, 5, 6), strict=True):
        result = run("degrade", photos / "b.png", "--recipe", recipe, "--out", out, "--seed", seed)
        assert result.exit_code == 0, result.stderr
    a, b, c = (np.asarray(Image.open(out)) for out in outs)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    source_HWC = np.asarray(Image.open(photos / "b.png").convert("RGB"))
    rng = generator(5, Purpose.DEGRADE, 0, 0, 0)
    assert np.array_equal(a, apply_recipe(source_HWC, parse_recipe(recipe), rng))
    # Level 3 of KADIS's mean shift is the identity.
    out = tmp_path / "new" / "same.png"
    options = ("--recipe", "mean_shift:3", "--levels", "kadis", "--out", out)
    assert run("degrade", photos / "b.png", *options).exit_code == 0
    assert np.array_equal(np.asarray(Image.open(out)), source_HWC)
    assert [file.name for file in out.parent.iterdir()] == ["same.png"]


def test_gallery_is_a_picture(photos: Path, tmp_path: Path) -> None:
    result = run("gallery", photos / "b.png", "--out", tmp_path / "g.png")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "g.png") as image:
        assert image.width > 6 * 80
        assert image.height > 26 * 80
    options = ("--chains", "3", "--columns", "3", "--tile", "64", "--out", tmp_path / "c.png")
    assert run("gallery", photos / "b.png", *options).exit_code == 0
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 3 * 64 > image.height - 64


def write_csv_set(root: Path, photos: Path) -> None:
    root.mkdir()
    for name in ("a.png", "copy.png", "b.png"):
        source = photos / ("b.png" if name != "b.png" else "a[1].JPG")
        (root / name).write_bytes(source.read_bytes())


def test_data_check_finds_faults(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_csv_set(root, photos)
    (root / "labels.csv").write_text("image,score\na.png,1\nb.png,4.5\n")
    clean = run("data", "check", "csv", root)
    assert clean.exit_code == 0, clean.stderr
    assert "1 to 4.5" in clean.stdout
    (root / "labels.csv").write_text("image,score\na.png,1\nb.png,4.5\ncopy.png,2\ngone.png,3\n")
    faulty = run("data", "check", "csv", root)
    assert faulty.exit_code == 3, faulty.output
    assert "1: gone.png" in faulty.stdout
    assert "a.png = copy.png" in faulty.stdout


def test_a_fresh_process_prints_no_traceback_and_survives_a_closed_pipe(
    bundle: Path, photos: Path
) -> None:
    command = [sys.executable, "-m", "dri_iqa.cli"]
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "DRI_IQA_MODEL": str(bundle)}
    bad = subprocess.run([*command, "score", "gone"], capture_output=True, text=True, env=env)
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 2
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, env=env)
    assert version.stdout.startswith("dri-iqa ")
    with subprocess.Popen(
        [*command, "score", str(photos), "--crops", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
