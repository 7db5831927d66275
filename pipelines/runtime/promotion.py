"""Which version is the champion: a contest for every candidate, one at a time whoever else registers, and the way back.

Aliases of a registered model: `champion` serves, `previous` served before it, `candidate` is the version that last
failed to become champion, `control` a control experiment. Every version's tags say what was decided about it and why.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS, CANDIDATE, CONTROL = "champion", "previous", "candidate", "control"
DECISION, REASON, REPLACES, FORCED, ROLLED_BACK = (
    "decision",
    "comparison",
    "replaces",
    "forced",
    "rolled_back",
)
FLAG = "dri_iqa.deciding."
PATIENCE_S = 300.0
"""How long a decision may take before it counts as abandoned by a process that died: it is some fifteen requests, each
of which may be repeated for a minute where the server is slow."""
PAUSE_S, QUIET_S = 0.1, 5.0
"""Between two looks at whether others are deciding, and how long that goes unmentioned."""

Tags = dict[str, str]


class RegistryError(ValueError):
    """The registry is not as the user thinks; the message says what is there and what to do."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a contest of a candidate against the champion found."""

    better: bool
    text: str
    """For people, one clause."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Kept as tags of the candidate."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What has become of a version."""

    alias: str | None
    """The alias that it has."""
    text: str


def settle(
    client: MlflowClient,
    name: str,
    version: str,
    contest: Callable[[str, Tags], Comparison],
    *,
    follow: Callable[[str, Tags], None],
    say: Callable[[str], None],
    force: bool = False,
) -> Decision:
    """Decide once whether a version becomes the champion.

    A version about which a decision stands keeps it, unless forced: a job that was killed in the middle comes here
    again. Where another job changed the champion during the contest, the contest is held again.

    Args:
        client: of the registry.
        name: registered model.
        version: the candidate.
        contest: compares it with the champion, which is given by version and tags; may take its time.
        follow: told the new champion's version and tags while nobody else can change it.
        say: tells the person whom this waits for.
        force: make it the champion whatever the contest says; the overruled result is recorded.
    """
    while not _decided(client, name, version, force):
        champion = _holder(client, name, CHAMPION)
        if champion is None:
            found = Comparison(better=True, text=f"the first of {name}")
        elif champion == version:  # crowned by a process that died before it had finished
            found = None
        else:
            found = contest(champion, _tags(client, name, champion))
        with alone(client, name, say):
            if _holder(client, name, CHAMPION) != champion or _decided(
                client, name, version, force
            ):
                continue
            if found is not None:
                _record(client, name, version, champion, found, force)
            if found is None or found.better or force:
                _crown(client, name, version)
                follow(version, _tags(client, name, version))
                _tag(client, name, version, {DECISION: CHAMPION})
            else:
                client.set_registered_model_alias(name, CANDIDATE, version)
                _tag(client, name, version, {DECISION: CANDIDATE})
    return _told(client, name, version)


def rollback(
    client: MlflowClient,
    name: str,
    *,
    follow: Callable[[str, Tags], None],
    say: Callable[[str], None],
) -> str:
    """Make the previous champion the champion again, and the one that it had replaced the previous one.

    Returns:
        What was done, for people.

    Raises:
        RegistryError: no such model, or no previous champion.
    """
    if not client.search_registered_models(f"name = '{name}'"):
        raise RegistryError(
            f"the registry holds no model {name}\ncheck registry.name, output and tracking.uri"
        )
    with alone(client, name, say):
        champion, previous = (_holder(client, name, alias) for alias in (CHAMPION, PREVIOUS))
        if previous is None:
            raise RegistryError(
                f"{name} has no previous champion to go back to (champion: version {champion})\n"
                "registry.force=true with the command that made a version makes that the champion"
            )
        tags = _tags(client, name, previous)
        if champion is not None and champion != previous:
            _tag(client, name, champion, {ROLLED_BACK: f"to version {previous}"})
        client.set_registered_model_alias(name, CHAMPION, previous)
        _set_previous(client, name, tags.get(REPLACES))
        follow(previous, tags)
        before = _holder(client, name, PREVIOUS)
    return f"version {previous} is the champion again, in place of version {champion}; " + (
        f"previous is version {before} now" if before else "there is no previous one now"
    )


@contextlib.contextmanager
def alone(client: MlflowClient, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Nobody else is inside a block of this registered model, on whatever machine.

    MLflow has neither locks nor compare-and-set, so this is Burns and Lamport's one-bit algorithm on tags of the
    registered model: everybody raises a flag of their own and only reads those of others; of two that see each other,
    the greater name steps back. It needs no more than that a tag that was written is seen by whoever reads later. A
    flag that is seen for longer than `PATIENCE_S` belongs to a process that has died, and is removed.
    """
    mine = FLAG + uuid.uuid4().hex
    since: dict[str, float] = {}
    mention = time.monotonic() + QUIET_S

    def wait() -> None:
        nonlocal mention
        if time.monotonic() > mention:
            mention = float("inf")
            say(
                f"    waiting for another job's decision about {name}; "
                f"if it has died, for {PATIENCE_S / 60:.0f} minutes"
            )
        time.sleep(PAUSE_S)

    def others() -> set[str]:
        nonlocal since
        tags, now = client.get_registered_model(name).tags, time.monotonic()
        flags = {tag for tag in tags if tag.startswith(FLAG)} - {mine}
        since = {
            flag: since.get(flag, now) for flag in flags
        }  # one that was taken back is forgotten
        for flag in [flag for flag in flags if now - since[flag] > PATIENCE_S]:
            client.delete_registered_model_tag(name, flag)
            flags.discard(flag)
        return flags

    def lower() -> bool:
        return any(flag < mine for flag in others())

    def greater() -> bool:
        return any(flag > mine for flag in others())

    try:
        while True:
            client.set_registered_model_tag(name, mine, "")
            if not lower():
                break
            client.delete_registered_model_tag(name, mine)
            while lower():
                wait()
        # A lower flag that is raised now waits for this one; waiting for that as well would never end.
        while greater():
            wait()
        yield
    finally:
        client.delete_registered_model_tag(name, mine)


def _record(
    client: MlflowClient,
    name: str,
    version: str,
    champion: str | None,
    found: Comparison,
    force: bool,
) -> None:
    """What the contest found and what follows, before any alias moves: whoever finishes it reads it there."""
    facts: dict[str, Any] = {REASON: found.text, **found.numbers}
    if found.better or force:
        facts[REPLACES] = champion or ""
    if force and not found.better:
        facts[FORCED] = "by registry.force=true"
    _tag(client, name, version, facts)


def _crown(client: MlflowClient, name: str, version: str) -> None:
    """Move the aliases; doing it again changes nothing."""
    client.set_registered_model_alias(name, CHAMPION, version)
    tags = _tags(client, name, version)
    _set_previous(client, name, tags.get(REPLACES))
    if _holder(client, name, CANDIDATE) == version:
        client.delete_registered_model_alias(name, CANDIDATE)
    if ROLLED_BACK in tags:
        client.delete_model_version_tag(name, version, ROLLED_BACK)


def _set_previous(client: MlflowClient, name: str, version: str | None) -> None:
    """Give the alias to a version; to none where there was none, or it has been deleted since."""
    there = {str(one.version) for one in client.search_model_versions(f"name = '{name}'")}
    if version in there:
        client.set_registered_model_alias(name, PREVIOUS, version)
    elif _holder(client, name, PREVIOUS) is not None:
        client.delete_registered_model_alias(name, PREVIOUS)


def _decided(client: MlflowClient, name: str, version: str, force: bool) -> bool:
    if DECISION not in _tags(client, name, version):
        return False
    return not force or _holder(client, name, CHAMPION) == version


def _told(client: MlflowClient, name: str, version: str) -> Decision:
    """The decision about a version as its tags have it, and whether it still holds."""
    here = client.get_model_version(name, version)
    tags, alias = here.tags, next(iter(here.aliases), None)
    reason = tags[REASON]
    if tags[DECISION] == CANDIDATE:
        return Decision(alias=alias, text=f"candidate version {version} stays candidate: {reason}")
    verb = "is the champion" if alias == CHAMPION else "became the champion"
    text = f"version {version} {verb}: "
    text += f"{tags[FORCED]}, although {reason}" if FORCED in tags else reason
    if tags[REPLACES]:
        text += f"; it replaced version {tags[REPLACES]}"
    if ROLLED_BACK in tags:
        text += f"; it was rolled back {tags[ROLLED_BACK]}"
    return Decision(alias=alias, text=text)


def _holder(client: MlflowClient, name: str, alias: str) -> str | None:
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else str(version)


def _tags(client: MlflowClient, name: str, version: str) -> Tags:
    return dict(client.get_model_version(name, version).tags)


def _tag(client: MlflowClient, name: str, version: str, tags: dict[str, Any]) -> None:
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, str(value))
