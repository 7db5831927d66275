"""Label files that are neither CSV nor text: MATLAB variables and spreadsheets."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd

from dri_iqa.data.readers.files import Files
from dri_iqa.data.records import DataError


def mat_values(files: Files, path: str, *names: str) -> list[Any]:
    """The first of several variables of a MATLAB file as a flat list of numbers or strings.

    MATLAB's cells arrive nested in arrays of one element; they are unwrapped.

    Raises:
        DataError: not a MATLAB file (before 7.3), or none of the variables is in it.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        variables = loadmat(io.BytesIO(files.read(path)))
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise DataError(
            f"{files.name}: {path} is not a readable MATLAB file: {str(error)[:120]}\n"
            "Use the file as it came with the data set."
        ) from None
    for name in names:
        if name in variables:
            return [_unwrap(item) for item in np.asarray(variables[name]).ravel()]
    found = ", ".join(sorted(key for key in variables if not key.startswith("__")))
    raise DataError(
        f"{files.name}: {path} has no variable {' or '.join(names)}; found {found}\n"
        "Use the file as it came with the data set."
    )


def sheet(files: Files, path: str, header: str, name: str | int = 0) -> pd.DataFrame:
    """A sheet of a workbook; the header is the first row that has a cell `header`.

    Raises:
        DataError: openpyxl is not installed, the sheet is missing, or there is no such row.
    """
    try:
        frame = pd.read_excel(io.BytesIO(files.read(path)), sheet_name=name, header=None)
    except ImportError:
        raise DataError(
            f"{files.name}: {path} is a spreadsheet, and openpyxl is not installed\n"
            "Install it: pip install 'dri-iqa[xlsx]'."
        ) from None
    except (ValueError, KeyError, OSError) as error:
        raise DataError(
            f"{files.name}: {path} cannot be read: {str(error)[:120]}\n"
            "Use the file as it came with the data set."
        ) from None
    for place, row in enumerate(frame.itertuples(index=False)):
        cells = ["" if pd.isna(cell) else str(cell).strip() for cell in row]
        if header.lower() in (cell.lower() for cell in cells):
            body = frame.iloc[place + 1 :].copy()
            body.columns = cells
            body = body.loc[:, [cell for cell in cells if cell]]
            return body.dropna(how="all").reset_index(drop=True)
    raise DataError(
        f"{files.name}: {path} has no column {header}\nUse the file as it came with the data set."
    )


def _unwrap(value: Any) -> Any:
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return value.item() if isinstance(value, np.generic) else value
