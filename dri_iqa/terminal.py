"""What the commands share: errors in two lines, progress on stderr, consoles."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SOME_FAILED = 3
"""Exit code: the command ran, but some pictures failed or the data have faults."""

Command = TypeVar("Command", bound=Callable[..., None])
Item = TypeVar("Item")


def friendly(name: str) -> Callable[[Command], Command]:
    """Turn expected errors into two lines and exit code 2; anything else is a bug and is shown.

    Args:
        name: the command as it is typed, for the line that says where help is.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            _run(functools.partial(command, *args, **kwargs), name)

        return wrapper  # type: ignore[return-value]

    return decorate


def _run(command: Callable[[], None], name: str) -> None:
    # The decoder reports such pictures itself.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        command()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            where = f": {error.filename}" if error.filename else ""
            message = f"{error.strerror}{where}"
        else:
            message = str(error) or type(error).__name__
        first, *rest = [line for line in message.splitlines() if line.strip()]
        help_line = f"Try '{name} --help' for help."
        print(f"error: {first}", file=sys.stderr)
        print(" ".join(line.strip() for line in rest) or help_line, file=sys.stderr)
        raise typer.Exit(2) from None


def with_progress(items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, with a bar on stderr while they pass if somebody watches."""
    if total < 2 or not sys.stderr.isatty():
        yield from items
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total)


def console() -> Console:
    """A console on stdout."""
    # Rich would cut lines at 80 columns where there is no terminal to measure, and would read
    # brackets in file names as mark-up.
    width = None if sys.stdout.isatty() else 200
    return Console(markup=False, highlight=False, width=width)


def listed(names: list[str]) -> str:
    """How many, and the first three."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}: {', '.join(names[:3])}{more}" if names else "none"
