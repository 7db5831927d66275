"""The command line: score pictures, explain or degrade one, draw every operator, check a data set.

Exit codes: 0 all done, 2 wrong usage (bad option, missing file or model), 3 some pictures could not
be scored or a data set has faults. Errors are two lines on stderr, results go to stdout; torch is
only imported by the commands that need it.
"""

from __future__ import annotations

import glob
import io
import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dri_iqa
from dri_iqa import cli_data
from dri_iqa.cli_rows import Format, caption, format_of, write_falls, write_rows
from dri_iqa.default_model import MODEL_VARIABLE, default_model
from dri_iqa.terminal import SOME_FAILED, friendly, with_progress

if TYPE_CHECKING:
    import numpy as np

    from dri_iqa.explain import Explanation
    from dri_iqa.scoring import Scorer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="No-reference image quality that also holds for restored pictures.",
)
app.add_typer(cli_data.app, name="data")


def _version(value: bool) -> None:
    if value:
        print(f"dri-iqa {dri_iqa.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """No-reference image quality that also holds for restored pictures."""


@app.command()
@friendly("dri-iqa score")
def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files, folders (searched recursively), glob patterns, s3:// URIs, "
            "or - for a list of paths on standard input.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Bundle folder, s3:// or models:/ URI. Default: ${MODEL_VARIABLE}, "
            "then the champion of the newest run on human scores, then the model that comes along."
        ),
    ] = None,
    crops: Annotated[
        str | None,
        typer.Option(
            help="Number of random crops, uniform25 (a grid), or whole (cover all). "
            "Default: the model's own, usually 25."
        ),
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="Default: by the ending of --out, else table.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Write here (file or s3:// URI) instead of to stdout.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 (faster).")] = "fp32",
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the network first: for thousands of pictures."),
    ] = False,
) -> None:
    """Score pictures: one row each with score, spread over the crops, and error."""
    policy = _policy(crops)
    form = format or format_of(out)
    if form is Format.parquet and out is None:
        raise ValueError("parquet is a binary format\nGive --out FILE.parquet")
    found = list(dict.fromkeys(_expand(paths)))
    scorer = _scorer(model, precision=precision, compile=compile)
    rows = []
    for row in with_progress(scorer.iter_rows(found, crops=policy), len(found)):
        rows.append({**row, "model": scorer.name})
    failed = sum(row["error"] is not None for row in rows)
    write_rows(rows, form, out)
    if form is Format.table or out is not None:
        print(caption(scorer, len(rows), failed, crops, out), file=sys.stderr)
    if failed:
        raise typer.Exit(SOME_FAILED)


class Explained(StrEnum):
    """Output formats of `explain`."""

    html = "html"
    json = "json"


@app.command()
@friendly("dri-iqa explain")
def explain(
    image: Annotated[str, typer.Argument(help="The picture: a file or an s3:// URI.")],
    out: Annotated[
        str | None, typer.Option(help="File to write, e.g. page.html (or an s3:// URI).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Bundle folder, s3:// or models:/ URI. Default: as for `score`."),
    ] = None,
    crops: Annotated[str | None, typer.Option(help="As for `score`.")] = None,
    format: Annotated[
        Explained, typer.Option(help="A page, or plain data (without --out on stdout).")
    ] = Explained.html,
) -> None:
    """Show what a picture's score comes from: crops, maps, and the degradations that are seen."""
    from dri_iqa import storage

    if format is Explained.html and out is None:
        raise ValueError("a page is a file\nGive --out FILE.html, or --format json.")
    policy = _policy(crops)
    scorer = _scorer(model)
    found = _explained(scorer, image, policy)
    if format is Explained.json:
        data = json.dumps(found.plain(), allow_nan=False) + "\n"
    else:
        from dri_iqa.explain_page import render

        data = render(found)
    if out is None:
        sys.stdout.write(data)
        return
    storage.write_bytes(out, data.encode())
    print(out)


class Levels(StrEnum):
    """Tables of the operators' parameters."""

    default = "default"
    kadis = "kadis"
    arniqa = "arniqa"


@app.command()
@friendly("dri-iqa degrade")
def degrade(
    image: Annotated[Path, typer.Argument(help="The picture to degrade.")],
    recipe: Annotated[
        str, typer.Option(help='Operators with levels 1..5, e.g. "jpeg:3 gaussian_blur:2".')
    ],
    out: Annotated[Path, typer.Option(help="File to write; a lossless PNG keeps every pixel.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the operators' noise.")] = 0,
    levels: Annotated[Levels, typer.Option(help="Table of parameters.")] = Levels.default,
) -> None:
    """Apply a degradation recipe to a picture."""
    from dri_iqa.config import DegradeConfig
    from dri_iqa.degradations import apply_recipe, parse_recipe
    from dri_iqa.seeds import Purpose, generator

    steps = parse_recipe(recipe)
    source_HWC = _decode(image)
    rng = generator(seed, Purpose.DEGRADE, 0, 0, 0)
    _save(apply_recipe(source_HWC, steps, rng, DegradeConfig(levels=levels.value)), out, quality=95)
    print(f"{out}: {steps}")


@app.command()
@friendly("dri-iqa gallery")
def gallery(
    image: Annotated[Path, typer.Argument(help="The picture to degrade.")],
    out: Annotated[Path, typer.Option(help="File to write, e.g. gallery.png.")],
    levels: Annotated[Levels, typer.Option(help="Table of parameters.")] = Levels.default,
    tile: Annotated[int, typer.Option(min=32, help="Side of a shown piece, pixels.")] = 128,
    columns: Annotated[int, typer.Option(min=1, help="Operators or chains side by side.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of chains and noise.")] = 0,
    chains: Annotated[int, typer.Option(min=0, help="Draw so many random chains instead.")] = 0,
) -> None:
    """Draw every degradation operator at its five levels, or random chains of them."""
    from dri_iqa.config import DegradeConfig
    from dri_iqa.degradations.gallery import chain_gallery
    from dri_iqa.degradations.gallery import gallery as draw

    image_HWC = _decode(image)
    if chains:
        config = DegradeConfig(levels=levels.value)
        picture_HWC = chain_gallery(
            image_HWC, config, chains=chains, tile=tile, columns=columns, seed=seed
        )
    else:
        picture_HWC = draw(image_HWC, levels=levels.value, tile=tile, columns=columns, seed=seed)
    _save(picture_HWC, out, quality=82)
    print(out)


@app.command()
@friendly("dri-iqa monotonicity")
def monotonicity(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Good pictures, as for `score`.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Bundle folder, s3:// or models:/ URI. Default: as for `score`."),
    ] = None,
    crops: Annotated[str, typer.Option(help="As for `score`; on a grid by default.")] = "uniform9",
    levels: Annotated[Levels, typer.Option(help="Table of parameters.")] = Levels.default,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the operators' noise.")] = 0,
    out: Annotated[str | None, typer.Option(help="A CSV file (or s3:// URI) as well.")] = None,
) -> None:
    """Degrade good pictures in steps, by every operator, and count how often the score falls."""
    from dri_iqa.evaluation.monotonicity import score_levels, summarise

    found = list(dict.fromkeys(_expand(paths)))
    policy = _policy(crops)
    assert policy is not None
    scorer = _scorer(model)
    tables = score_levels(scorer, found, crops=policy, levels=levels.value, seed=seed)
    results = list(with_progress(tables, len(found)))
    failed = {path: why for path, why in zip(found, results, strict=True) if isinstance(why, str)}
    good = [table for table in results if not isinstance(table, str)]
    higher = scorer.head.score.higher_is_better
    write_falls(summarise(good, higher_is_better=higher, levels=levels.value), out)
    for path, why in failed.items():
        print(f"{path}: {why}", file=sys.stderr)
    print(caption(scorer, len(found), len(failed), crops, out), file=sys.stderr)
    if failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
@friendly("dri-iqa export")
def export(
    out: Annotated[
        str,
        typer.Option(
            help="File to write, model.pt2 for torch.export or model.onnx (or an s3:// URI)."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Bundle folder, s3:// or models:/ URI. Default: as for `score`."),
    ] = None,
) -> None:
    """Write the inference part as a torch.export program or as ONNX, for runtimes without this package."""
    from dri_iqa.bundle import load_bundle
    from dri_iqa.export import ABOUT, save_onnx, save_program

    bundle = load_bundle(model or default_model())
    save = save_onnx if out.lower().endswith(".onnx") else save_program
    save(bundle, out)
    side = bundle.config.crop
    print(f"{out}: crops (B, 3, {side}, {side}) -> normalised scores (B,); see {ABOUT} inside")


@app.command()
@friendly("dri-iqa repack")
def repack(
    model: Annotated[str, typer.Argument(help="Bundle folder, s3:// or models:/ URI.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URI of the new bundle.")],
    crops: Annotated[
        str | None, typer.Option(help="Crop policy from then on, as for `score`.")
    ] = None,
    graph: Annotated[
        bool | None,
        typer.Option(
            "--graph/--no-graph",
            help="With the network as ONNX, by which a CPU scores without torch: a second instead of "
            "several for one picture. Default: as the old one.",
        ),
    ] = None,
) -> None:
    """Write a bundle to pass on: with another crop policy, a graph, without paths of this machine."""
    from dri_iqa.bundle import load_bundle
    from dri_iqa.repack import repack as write

    policy = f"random{crops}" if crops is not None and crops.isdecimal() else crops
    digest = write(load_bundle(model), out, crops=policy, graph=graph)
    print(f"{out}: {digest}")


def _scorer(model: str | None, **options: Any) -> Scorer:
    from dri_iqa.processor import keep_memory
    from dri_iqa.scoring import load_model

    keep_memory()
    return load_model(model or default_model(), **options)


def _policy(crops: str | None) -> str | int | None:
    from dri_iqa.crops import parse_crops

    policy = int(crops) if crops is not None and crops.isdecimal() else crops
    if policy is not None:
        parse_crops(policy)
    return policy


def _explained(scorer: Scorer, image: str, policy: str | int | None) -> Explanation:
    from dri_iqa.explain import explain
    from dri_iqa.images import ImageError

    try:
        return explain(scorer, image, name=image.rpartition("/")[2], crops=policy)
    except ImageError as error:
        raise _unreadable(image, error) from None


def _expand(paths: Iterable[str]) -> Iterator[str]:
    """Pictures behind files, folders, patterns, URIs and standard input, in a stable order."""
    from dri_iqa.images import EXTENSIONS

    for path in paths:
        place = Path(path).expanduser()
        if path == "-":
            yield from (line.strip() for line in sys.stdin if line.strip())
        elif path.startswith("s3://"):
            from dri_iqa import storage

            single = path.lower().endswith(EXTENSIONS)
            listed = [path] if single else storage.list_files(path)
            yield from _some((p for p in listed if p.lower().endswith(EXTENSIONS)), path)
        elif place.is_dir():
            inside = (
                str(file)
                for file in sorted(place.rglob("*"))
                if file.suffix.lower() in EXTENSIONS
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(place).parts)
            )
            yield from _some(inside, path)
        elif place.exists():
            yield str(place)
        elif glob.has_magic(path):
            matches = sorted(glob.glob(str(place), recursive=True))
            yield from _some((match for match in matches if Path(match).is_file()), path)
        else:
            raise ValueError(f"no such file or folder: {path}\nCheck the path.")


def _some(found: Iterable[str], path: str) -> list[str]:
    listed = list(found)
    if not listed:
        raise ValueError(f"no pictures in {path}\nGive files, folders with pictures, or a pattern.")
    return listed


def _decode(path: Path) -> np.ndarray:
    from dri_iqa.images import ImageError, decode

    try:
        return decode(path.expanduser().read_bytes())
    except ImageError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: object, error: Exception) -> ValueError:
    return ValueError(f"{path}: {error}\nGive a JPEG, PNG, WebP, BMP or TIFF picture.")


def _save(image_HWC: np.ndarray, out: Path, *, quality: int) -> None:
    from PIL import Image

    from dri_iqa import storage

    form = Image.registered_extensions().get(out.suffix.lower())
    if form not in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        raise ValueError(f"{out}: unknown ending\nUse .png, .jpg, .webp, .bmp or .tif.")
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, form, quality=quality)
    storage.write_bytes(str(out), buffer.getvalue())


if __name__ == "__main__":
    app()
