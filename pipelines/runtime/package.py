"""How large a working directory `ray job submit --working-dir .` sends: `python -m pipelines.runtime.package`.

Ray's own packing is used, so that .gitignore, .rayignore and compression count as they will.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import zipfile
from pathlib import Path

from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
from ray._private.runtime_env.packaging import create_package

LIMIT_BYTES = 20 * 2**20
"""What goes through the head's memory to every node, for each new version of the code."""
SHOWN = 5
"""How many of the largest files a refusal names."""


class PackageError(ValueError):
    """The working directory is too large to be sent; two lines: how large, and what to do."""


def check_package(folder: Path, limit: int = LIMIT_BYTES) -> str:
    """Pack a folder as Ray would.

    Returns:
        One line: files and size.

    Raises:
        PackageError: larger than the limit; names the largest files.
    """
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "package.zip"
        gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
        quiet = logging.getLogger(__name__)
        quiet.setLevel(logging.ERROR)
        create_package(str(folder), target, include_gitignore=gitignore, logger=quiet)
        size = target.stat().st_size
        with zipfile.ZipFile(target) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
    told = f"{len(files)} files, {size / 2**20:.1f} MiB of at most {limit / 2**20:.0f}"
    if size <= limit:
        return told
    largest = sorted(files, key=lambda info: info.compress_size, reverse=True)[:SHOWN]
    names = ", ".join(f"{info.filename} ({info.compress_size / 2**20:.1f} MiB)" for info in largest)
    raise PackageError(
        f"the working directory is too large to submit: {told}\n"
        f"move data out of it, or list it in .rayignore; the largest: {names}"
    )


if __name__ == "__main__":
    try:
        print(f"working directory: {check_package(Path.cwd())}")
    except PackageError as problem:
        head, _, rest = str(problem).partition("\n")
        sys.exit(f"error: {head}\nnext: {rest}")
