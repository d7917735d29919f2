"""What there is to choose from: passes, targets and recipes, each described by a JSON object."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnc import parameters, recipe, toml
from nnc import target as chips
from nnc.display import units
from nnc.errors import NncError
from nnc.rewrite import Pass

Entry = dict[str, Any]


def passes(use: Iterable[Path] = ()) -> dict[str, Entry]:
    """By name: {"name", "effect", "description", "documentation", "parameters"}; with those of the files `use`."""
    return {name: _pass(each) for name, each in sorted(recipe.known_passes(use).items())}


def _pass(pass_: type[Pass]) -> Entry:
    documentation = inspect.cleandoc(pass_.__doc__ or "")
    return {
        "name": pass_.name,
        "effect": pass_.effect,
        "description": _first_line(documentation),
        "documentation": documentation,
        "parameters": [
            {"name": name, "type": kind, "default": default, "description": text}
            for name, kind, default, text in parameters.rows(pass_)
        ],
    }


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rstrip(".")


def recipes() -> dict[str, Entry]:
    """By name: {"name", "description", "passes", "toml"}."""
    return {name: _recipe(name) for name in recipe.names()}


def _recipe(name: str) -> Entry:
    read = recipe.load(name)
    return {
        "name": name,
        "description": read.description,
        "passes": [each.name for each in read.passes],
        "toml": read.path.read_text("utf-8"),
    }


def targets() -> dict[str, Entry]:
    """By name: {"name", "description", "units", "modes"}."""
    return {name: _target(chips.load(name)) for name in chips.names()}


def _target(chip: chips.Target) -> Entry:
    return {
        "name": chip.name,
        "description": chip.description,
        "units": [unit.name for unit in chip.units],
        "modes": list(chip.modes),
    }


def target(spec: str) -> Entry:
    """All figures of a target, in the unit and mode that `spec` selects."""
    chip = chips.load(spec)
    return _target(chip) | {
        "mode": chip.mode,
        "unit": chip.unit.name,
        "dram": chip.dram.model_dump(mode="json"),
        "idle_watts": chip.idle_watts,
        "figures": [unit.model_dump(mode="json", by_alias=True) for unit in chip.units],
    }


def find(kind: str, name: str, entries: Mapping[str, Entry]) -> Entry:
    """The entry called `name`; NncError where there is none. `kind` is "pass" or "recipe"."""
    if name not in entries:
        hint = toml.nearest(name, entries) or f"nnc {units.plural_form(kind)} lists them"
        raise NncError(f"no {kind} is called '{name}'", hint)
    return entries[name]
