"""What every reader of a data set produces: plain records, before any image is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ScoreKind = Literal["human", "pseudo", "none"]


class DataError(ValueError):
    """Data that cannot be used; two lines: what was got, what to do next."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image as a data set lists it."""

    name: str
    """Unique in its data set; usually the path below the root."""
    path: str | None = None
    """Where the file lies, relative to the data set's root; None where `data` holds it."""
    data: bytes | None = None
    """The encoded image itself (the built-in sample)."""
    score: float | None = None
    """The label on the data set's own scale; None for clean images and references."""
    group: str = ""
    """Reference or scene; splits are made by group, never across it."""
    reference: str | None = None
    """Name of the reference's record where the set has one."""
    type: str | None = None
    """Distortion type; an operator's name where the same operator exists here."""
    level: int | None = None
    """Distortion level, 1 (weakest) to 5."""
    recipe: str | None = None
    """The chain of operators in the form that `parse_recipe` reads, where it is known."""
    subset: str | None = None
    """Part of the data set that is reported by itself."""
    split: str | None = None
    """The official split, or the sample's own: train, val or test."""
    size: int | None = None
    """Bytes, as listed."""
    modified_ns: int | None = None
    """Modification time, as listed; never stored, only compared when an ingest is resumed."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set as distributed: its records, its references and what its scores mean."""

    name: str
    records: tuple[Record, ...]
    """Images in a fixed order."""
    references: tuple[Record, ...] = ()
    """Reference images, without scores; empty where the set has none."""
    score_kind: ScoreKind = "human"
    """`human` opinion, `pseudo` (computed by a full-reference measure) or `none`."""
    higher_is_better: bool = True
    """Direction of the scores."""
    root: str | None = None
    """Directory or URI that paths are relative to."""
    short_side: int | None = None
    """Shrink larger images to this short side at ingest, where the set's protocol says so."""
    licence: str = ""
    """Terms of use, as far as the data set states them."""
    notes: str = ""
    """What a user of the scores must know."""
    whole: tuple[int, ...] = ()
    """Numbers of images that a complete copy has (its parts may be optional); empty where unknown."""
    whole_references: tuple[int, ...] = ()
    """The same for references."""
    scale: tuple[float, float] | None = None
    """Range in which every score of the set lies."""
    left_out: tuple[str, ...] = ()
    """Images of the archive that are not used on purpose, by their path below the root."""

    def __post_init__(self) -> None:
        names = {record.name for record in self.references}
        if len(names) != len(self.references):
            raise DataError(f"{self.name}: two references share a name\nMake the names unique.")
        seen: set[str] = set()
        for record in self.records:
            if record.name in seen:
                raise DataError(
                    f"{self.name}: {record.name} is listed twice\nKeep one row for each image."
                )
            seen.add(record.name)
            if record.reference is not None and record.reference not in names:
                raise DataError(
                    f"{self.name}: {record.name} names the reference {record.reference},"
                    " which is not there\nAdd the reference image or correct the label file."
                )
