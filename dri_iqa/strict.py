"""Plain data to frozen dataclasses and back; unknown or ill-typed keys are refused with the nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, what was got and what was expected."""


class StrictConfig:
    """Mix-in: pydantic refuses keys that are not fields."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def from_dict(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """Build a configuration from plain data, checking every key and type.

    Args:
        cls: a dataclass with `StrictConfig` mixed in.
        values: nested plain dicts, lists, numbers, strings.
        where: dotted prefix for messages.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a missing key, or a value of the wrong type.
    """
    try:
        return _adapter(cls).validate_python(values)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(_explain(cls, item, where) for item in error.errors())
        ) from None


def to_dict(config: Any) -> dict[str, Any]:
    """The plain, JSON-ready form of a configuration (tuples become lists)."""
    return _adapter(type(config)).dump_python(config, mode="json")


def known_keys(cls: type, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration type, nested ones included."""
    keys: list[str] = []
    hints = _type_hints(cls)
    for item in dataclasses.fields(cls):
        keys.append(prefix + item.name)
        if dataclasses.is_dataclass(hints[item.name]):
            keys.extend(known_keys(hints[item.name], prefix + item.name + "."))
    return keys


def nearest(word: str, choices: list[str]) -> str:
    """' (did you mean X?)' for the closest valid word, or an empty string."""
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(cls)


def _explain(cls: type, item: Any, where: str) -> str:
    key = ".".join(str(part) for part in (*((where,) if where else ()), *item["loc"]))
    local = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden" or item["type"] == "unexpected_keyword_argument":
        return f"unknown key {key}{nearest(local, known_keys(cls))}"
    return f"{key}: got {item['input']!r}, {item['msg'][0].lower() + item['msg'][1:]}"
