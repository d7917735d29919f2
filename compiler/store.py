"""Where measurements are kept from one pass to the next, and from one compile to the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, TypeVar

Value = TypeVar("Value")


class Store(Protocol):
    """nnc.compiling.output.OutputFolder, or Memory where nothing is written."""

    @property
    def training(self) -> Path | None:
        """The folder where epochs are kept until a compile is complete; None where they are not."""

    def once(self, name: str, key: str, compute: Callable[[], Value]) -> Value: ...


class Kept(Protocol):
    """What earlier compiles measured."""

    def recalled(self, name: str, key: str) -> Any: ...


class Memory:
    """A store in this process alone, for what writes nothing; it can read what earlier compiles `kept`."""

    training = None

    def __init__(self, kept: Kept | None = None) -> None:
        self._kept = kept
        self._values: dict[tuple[str, str], Any] = {}

    def once(self, name: str, key: str, compute: Callable[[], Value]) -> Value:
        """The value of `compute`, or what it was before."""
        if (name, key) not in self._values:
            value = self._kept.recalled(name, key) if self._kept else None
            self._values[name, key] = as_json(compute()) if value is None else value
        return deepcopy(self._values[name, key])


def as_json(value: Value) -> Value:
    """The value as it comes back from a file: tuples as lists, the keys of dicts as strings."""
    return json.loads(json.dumps(value))
