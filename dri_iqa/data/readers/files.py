"""The files below a data set's root: listed once, found without regard to letter case."""

from __future__ import annotations

import difflib
import io
from typing import Any

import pandas as pd

from dri_iqa import storage
from dri_iqa.data.records import DataError, Record
from dri_iqa.images import EXTENSIONS


class Files:
    """All files below a root, local or in a bucket.

    Archives differ in the case of their names between versions and file systems, so a name that is
    not there exactly is looked up without regard to case.

    Args:
        root: directory or URI.
        name: the data set's name, for messages.

    Raises:
        DataError: the root does not exist or holds no files.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name = root, name
        if not storage.exists(root):
            raise DataError(f"{name}: {root} does not exist\nSet data.root to the data's folder.")
        prefix = len(storage.join(root, "x")) - 1
        self.stats = {item.uri[prefix:]: item for item in storage.stat_files(root)}
        if not self.stats:
            raise DataError(f"{name}: {root} holds no files\nSet data.root to the data's folder.")
        self._lower: dict[str, str] = {}
        for path in sorted(self.stats, reverse=True):  # the first in order wins
            self._lower[path.lower()] = path

    def find(self, path: str) -> str | None:
        """The real path of a file below the root, or None where it is missing.

        Raises:
            DataError: the path leaves the root.
        """
        inside = self.inside(path)
        return inside if inside in self.stats else self._lower.get(inside.lower())

    def inside(self, path: str) -> str:
        """A relative path in its plain form.

        Raises:
            DataError: it is absolute, names another place, or climbs out of the root.
        """
        pieces: list[str] = []
        text = path.replace("\\", "/")
        outside = text.startswith("/") or "://" in text or text[1:2] == ":" or "\0" in text
        for piece in text.split("/"):
            if piece == ".." and pieces:
                pieces.pop()
            elif piece == "..":
                outside = True
            elif piece not in ("", "."):
                pieces.append(piece)
        if outside or not pieces:
            raise DataError(
                f"{self.name}: the path {path!r} leaves {self.root}\n"
                "Write paths relative to data.root, below it."
            )
        return "/".join(pieces)

    def first(self, *candidates: str, base: str = "") -> str:
        """The first of several possible files that is there.

        Raises:
            DataError: none of them is.
        """
        for candidate in candidates:
            found = self.find(f"{base}/{candidate}" if base else candidate)
            if found:
                return found
        raise DataError(
            f"{self.name}: {self.root} has no {' or '.join(candidates)}\n"
            f"Set data.root to the folder that holds it{self._hint(candidates)}."
        )

    def base(self, *markers: str) -> str:
        """The directory (often the archive's own top folder) in which one of the markers lies."""
        for marker in markers:
            if self.find(marker):
                return ""
            tail = "/" + marker.lower()
            for lower, real in sorted(self._lower.items(), key=lambda item: len(item[0])):
                if lower.endswith(tail):
                    return real[: -len(tail)]
        return ""

    def images(self, below: str = "") -> list[str]:
        """Paths of all files with an image's extension, sorted."""
        start = below.strip("/").lower()
        return sorted(
            path
            for path in self.stats
            if path.lower().endswith(EXTENSIONS)
            and (not start or path.lower().startswith(start + "/"))
            and not any(piece.startswith(".") for piece in path.split("/"))
        )

    def read(self, path: str) -> bytes:
        """The bytes of a listed file."""
        return storage.read_bytes(storage.join(self.root, path))

    def table(self, path: str, **options: Any) -> pd.DataFrame:
        """A CSV file with its column names stripped; wholly empty columns are dropped."""
        try:
            frame = pd.read_csv(io.BytesIO(self.read(path)), encoding_errors="replace", **options)
        except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
            raise DataError(
                f"{self.name}: {path} cannot be read: {error}\nIt must be a CSV file with a header."
            ) from None
        frame.columns = [str(column).strip() for column in frame.columns]
        return frame if frame.empty else frame.dropna(axis="columns", how="all")

    def record(self, path: str, *, shown: str | None = None, **fields: Any) -> Record:
        """A record of a file by its path, with the real path and what the listing says.

        A file that is missing keeps its row: ingest sets it aside with that reason.
        """
        real = self.find(path)
        stat = self.stats[real] if real else None
        real = real or self.inside(path)
        values = {"name": shown or real, "group": shown or real, **fields}
        if stat:
            values |= {"size": stat.size, "modified_ns": stat.modified_ns}
        return Record(path=real, **values)

    def _hint(self, candidates: tuple[str, ...]) -> str:
        wanted = candidates[0].rsplit("/", 1)[-1].lower()
        names = {path.rsplit("/", 1)[-1].lower(): path for path in self.stats}
        close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
        return f" (there is {names[close[0]]})" if close else ""


def column(frame: pd.DataFrame, wanted: tuple[str, ...], what: str, where: str) -> str:
    """The column that carries one of the wanted names, in any letter case.

    Raises:
        DataError: none does; the message lists the columns found.
    """
    lower = {str(name).lower(): str(name) for name in reversed(list(frame.columns))}
    for name in wanted:
        if name.lower() in lower:
            return lower[name.lower()]
    raise DataError(
        f"{where}: no {what} column ({' or '.join(wanted)}); found {', '.join(frame.columns)}\n"
        f"Rename the column, or name it in the data set's options."
    )
