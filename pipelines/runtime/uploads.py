"""A request's picture, as bytes within a limit, and what a request that cannot be answered is told."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive

from dri_iqa.crops import parse_crops

NAMELESS = "picture"
"""What a picture is called that comes without a file name."""


@dataclass
class Refused(Exception):
    """A request that gets no score."""

    status: int
    """Of HTTP."""
    reason: str
    """For people."""
    kind: str
    """Of few: metrics count by it."""


def picture_refused(reason: str) -> Refused:
    """What is wrong with the picture, in the decoder's words; `kind` is their beginning, without numbers."""
    return Refused(400, reason, reason.partition(" (")[0])


async def refused(request: Request, error: Exception) -> JSONResponse:
    """Every refusal, ours and the framework's, as the same JSON: `{"error": reason}`."""
    if isinstance(error, Refused):
        return JSONResponse({"error": error.reason}, error.status)
    if isinstance(error, RequestValidationError):
        words = [f"{item['loc'][-1]}: {item['msg']}" for item in error.errors()]
        return JSONResponse({"error": "; ".join(words)}, 422)
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def read_picture(request: Request, limit: int) -> tuple[str, bytes]:
    """Name and bytes of a request's picture: its body, or the first file of a form.

    Args:
        limit: bytes; a body that says that it is larger is not read, one that turns out to be is read no further.

    Raises:
        Refused: too large, or a form without a file.
        HTTPException: not the form that it says it is.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise _too_large(limit)
    request = Request(request.scope, _limited(request.receive, limit))
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return NAMELESS, await request.body()
    async with request.form(max_files=1, max_fields=8) as form:
        for value in form.values():
            if isinstance(value, UploadFile):
                name = (value.filename or NAMELESS).replace("\\", "/").rpartition("/")[2]
                return name, await value.read()
    raise Refused(400, "the form has no file; send one, as in curl -F image=@photo.jpg", "form")


def read_crops(crops: str | None, most: int) -> str | None:
    """The crop policy that a request asks for; None is the model's own.

    Raises:
        Refused: unknown, or more work than `most` crops.
    """
    if crops is None:
        return None
    crops = f"random{crops}" if crops.isdecimal() else crops
    try:
        policy = parse_crops(crops)
    except ValueError as error:
        raise Refused(400, str(error), "crops") from None
    if policy.kind == "whole":
        words = "crops=whole is not served, its work grows with the picture; use `dri-iqa score`"
        raise Refused(400, words, "crops")
    if policy.number > most:
        raise Refused(400, f"crops: got {policy.number}, expected at most {most} here", "crops")
    return crops


def _limited(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body is larger than {limit / 1e6:g} MB", "too large")
