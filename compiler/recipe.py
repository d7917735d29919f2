"""Recipes: which passes to apply, in what order, with what parameters and data, read from one TOML file.

`load` reports every mistake before any work starts, in one line that says the place first.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import onnx_graphsurgeon as gs
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

from nnc import parameters, passes, toml, user_passes
from nnc.data import Dataset, Preprocess
from nnc.data.preprocess import replaced
from nnc.errors import NncError
from nnc.rewrite import Pass

Passes = dict[str, type[Pass]]

#: The extras of nnc that bring a package along.
_EXTRAS = {"torch": "train"}


class Data(BaseModel):
    """The table [data]: an .npz file or a folder of images each, and how an image becomes the model's input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Path | None = Field(
        default=None, description="samples for ranges and statistics; relative to the recipe"
    )
    test: Path | None = Field(
        default=None, description="labelled samples that accuracy is measured on; relative to the recipe"
    )
    train: Path | None = Field(default=None, description="samples that networks are trained on; relative to the recipe")
    teacher: Path | None = Field(
        default=None, description="an ONNX model for 'distill' to learn from; without it the model that is compiled"
    )
    preprocess: Preprocess = Preprocess()


class _File(BaseModel):
    """A recipe of nnc: passes that are applied to a model in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="nnc recipe")

    description: str = Field("", description="one line, shown by nnc recipes")
    use: tuple[str, ...] = Field((), description="Python files with passes of your own, relative to the recipe")
    data: Data = Data()
    passes: Annotated[tuple[dict[str, Any], ...], Field(alias="pass", min_length=1)]


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked."""

    name: str
    path: Path
    description: str
    data: Data
    """Its paths are absolute, and there is something at each."""
    passes: tuple[Pass, ...]
    used: tuple[Path, ...]
    """The Python files of third-party passes."""
    overrides: tuple[str, ...] = ()
    """The options --set that it was read with."""
    preprocess: Mapping[str, str | int] = field(default_factory=dict)
    """The options for [data.preprocess] that it was read with, by key."""

    @property
    def called(self) -> str:
        """What a command line calls it: the name of a recipe that nnc ships, else that of the file."""
        return self.name if self.path.parent == Path(str(resources.files("nnc.recipes"))) else self.path.name

    @property
    def prepares(self) -> bool:
        """Whether it has [data.preprocess], or options in its place: else images are given as they are."""
        return "preprocess" in self.data.model_fields_set

    def data_paths(self) -> dict[str, Path]:
        """Where the data is, by the key of [data]."""
        return {key: path for key in _KINDS if (path := getattr(self.data, key)) is not None}

    def open_data(self, graph: gs.Graph) -> dict[str, Dataset]:
        """The data for the inputs of `graph`, by the key of [data]."""
        paths = [(key, path) for key, path in self.data_paths().items() if key != "teacher"]
        return {key: Dataset.open(path, self.data.preprocess, graph.inputs) for key, path in paths}

    def require_packages(self) -> None:
        """Raise NncError for the first pass whose package is not installed; such a recipe can be read, but not run."""
        for index, each in enumerate(self.passes, 1):
            if each.package is not None and find_spec(each.package) is None:
                extra = _EXTRAS.get(each.package)
                hint = f"pip install '{f'nnc[{extra}]' if extra else each.package}'"
                where = f"{self.called}: pass {index} ({each.name})"
                raise NncError(f"{where}: needs {each.package}, which is not installed", hint)

    def to_toml(self, paths: bool = False) -> str:
        """The recipe with every parameter of every pass spelled out.

        `paths` adds where its data and Python files are; without them the text says the same on every machine.
        """
        lines = [f"description = {toml.value(self.description)}"]
        if paths and self.used:
            lines += [f"use = {toml.value([str(path.resolve()) for path in self.used])}"]
        if paths and self.data_paths():
            lines += ["", "[data]", *_entries({key: str(path) for key, path in self.data_paths().items()})]
        preprocess = self.data.preprocess.model_dump(mode="json", exclude_none=True)
        lines += ["", "[data.preprocess]", *_entries(preprocess)]
        for each in self.passes:
            table = each.model_dump(mode="json", exclude_none=True)
            lines += ["", "[[pass]]", f"name = {toml.value(each.name)}", *_entries(table)]
        return "\n".join(lines) + "\n"


def names() -> list[str]:
    """The recipes that nnc ships, in alphabetical order."""
    shipped = (file.name for file in resources.files("nnc.recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in shipped if name.endswith(".toml"))


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    data: Sequence[str] = (),
    preprocess: Mapping[str, str | int | None] = {},
) -> Recipe:
    """Read the recipe that nnc ships under the name `source`, or the file at that path.

    `overrides` are the options --set, 'pass.key=value' with a value in TOML, 'pass#2.key=value' for the second pass of
    that name; `data` are the options --data, 'test=PATH', and `preprocess` those by key of [data.preprocess]. Raises
    NncError for the first mistake.
    """
    path, place = _find(str(source))
    table = toml.parse(toml.read(path), place)
    written = _validated(_File, _checked_shape(table, place), place)
    used = tuple(path.parent / name for name in written.use)
    known = known_passes(used)
    tables, origins = _overridden(written.passes, overrides, place)
    made = [_pass(table, index, known, place, origins) for index, table in enumerate(tables, 1)]
    given = {key: text for key, text in preprocess.items() if text is not None}
    opened = _data(written.data, path, place, data)
    if given:
        opened = opened.model_copy(update={"preprocess": replaced(opened.preprocess, given)})
    return Recipe(path.stem, path, written.description, opened, tuple(made), used, tuple(overrides), given)


def schema(use: Iterable[Path] = ()) -> dict[str, Any]:
    """JSON Schema of a recipe, for editors; with the passes of the Python files `use`."""
    known = known_passes(use)
    models: list[Any] = [(model, "validation") for model in (_File, *known.values())]
    refs, definitions = models_json_schema(models)
    defs, keys = definitions["$defs"], {model: ref["$ref"].rpartition("/")[2] for (model, _), ref in refs.items()}
    for name, model in known.items():
        entry = defs[keys[model]]
        entry["properties"] = {"name": {"const": name}, **entry.get("properties", {})}
        entry["required"] = ["name", *entry.get("required", [])]
    root = defs.pop(keys[_File])
    root["properties"]["pass"]["items"] = {"oneOf": [refs[model, "validation"] for model in known.values()]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": defs}


def _find(source: str) -> tuple[Path, str]:
    """Where the recipe is, and how errors call it."""
    if source.endswith(".onnx"):
        raise NncError(f"{source}: a model, not a recipe", "the recipe comes before the model")
    if "/" in source or source.endswith(".toml"):
        return Path(source), source
    if source in names():
        return Path(str(resources.files("nnc.recipes") / f"{source}.toml")), f"recipes/{source}.toml"
    hint = f"nnc ships {', '.join(names())}; a file of your own is given by its path, such as ./my.toml"
    raise NncError(f"no recipe '{source}'", toml.nearest(source, names()) or hint)


def _checked_shape(table: dict[str, Any], place: str) -> dict[str, Any]:
    """The table, whose passes are an array of tables."""
    if not table.get("pass"):
        raise NncError(f"{place}: no pass", 'write [[pass]] and below it name = "simplify-shapes", for example')
    if not isinstance(table["pass"], list):
        given = toml.described(table["pass"])
        raise NncError(f"{place}: 'pass' must be an array of tables, not {given}", "write [[pass]], not [pass]")
    return table


Model = TypeVar("Model", bound=BaseModel)


def _validated(model: type[Model], table: dict[str, Any], place: str) -> Model:
    """The model of a TOML table; arrays of TOML are arrays of JSON, and nothing is converted."""
    try:
        return model.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise _explained(error, model, table, place) from None


def _explained(error: ValidationError, model: type[BaseModel], table: dict[str, Any], place: str) -> NncError:
    """The first mistake, with what is wanted read from the bounds of the field."""
    first = toml.first_of(error)
    location = first["loc"]
    if first["type"] == "missing" and isinstance(location[-1], int):  # an array is too short
        location = location[:-1]
    elif first["type"] in ("extra_forbidden", "missing", "value_error"):
        return toml.explained(error, table, place, _models(model))
    steps, wanted = parameters.schema_of(model, location)
    path = location[:steps]
    given: Any = table
    for step in path:
        given = given[step]
    found = toml.value(given) if isinstance(given, list) else toml.described(given)
    message = f"{place}: {_named(path)} must be {parameters.words(wanted)}, not {found}"
    return NncError(message, _mended(path[-1], wanted, given) if path else None)


def _named(path: Sequence[str | int]) -> str:
    """('budget', 'macs') -> "'budget.macs'", ('size', 0) -> "item 1 of 'size'"."""
    names = ".".join(step for step in path if isinstance(step, str))
    items = [step for step in path if isinstance(step, int)]
    return f"item {items[-1] + 1} of '{names}'" if path and isinstance(path[-1], int) else f"'{names}'"


def _mended(key: str | int, wanted: parameters.Schema, given: object) -> str | None:
    """A hint that spells out what was probably meant."""
    if "anyOf" in wanted:
        return next(filter(None, (_mended(key, each, given) for each in wanted["anyOf"])), None)
    match wanted.get("type"):
        case _ if isinstance(key, int):
            pass
        case "number" | "integer" | "boolean" if isinstance(given, str):
            try:
                meant = toml.literal(given.strip().lower())
            except tomllib.TOMLDecodeError:
                return None
            return f"write {key} = {toml.value(meant)}" if isinstance(meant, bool | int | float) else None
        case "number" if isinstance(given, int | float) and given > 1 and _is_share(wanted, given / 100):
            return f"it is a share: write {key} = {given / 100:g}"
        case "array" if not isinstance(given, list | dict):
            return f"write {key} = {toml.value([given] * wanted.get('minItems', 1))}"
        case "object" if wanted.get("properties") and isinstance(given, int | float):
            return f"write {key} = {toml.value({next(iter(wanted['properties'])): given})}"
    words = wanted.get("enum", [wanted["const"]] if "const" in wanted else [])
    return toml.nearest(given, words) if isinstance(given, str) else None


def _is_share(wanted: parameters.Schema, number: float) -> bool:
    """Whether a number is one of those that are allowed, and these end at 1."""
    return number <= wanted.get("maximum", 0) == 1 or number < wanted.get("exclusiveMaximum", 0) == 1


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and those of the tables in it."""
    types = [kind for field in model.model_fields.values() for kind in (field.annotation, *get_args(field.annotation))]
    tables = [kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(each for table in tables for each in _models(table))]


def known_passes(use: Iterable[Path]) -> Passes:
    """The passes of nnc and of the Python files `use`, by name."""
    known: Passes = {each.name: each for each in passes.PASSES}
    for path in use:
        for each in user_passes.load(path):
            if each.name in known:
                raise NncError(f"{path}: there is a pass '{each.name}' already", "give yours another name")
            known[each.name] = each
    return known


def _pass(table: dict[str, Any], index: int, known: Passes, place: str, origins: dict[tuple[int, str], str]) -> Pass:
    """The pass that one [[pass]] describes; `origins` says which of its keys come from the option --set."""
    name, parameters_ = table.get("name"), {key: value for key, value in table.items() if key != "name"}
    where = f"{place}: pass {index}"
    if name is None:
        raise NncError(f"{where}: 'name' is missing", "nnc passes lists the names")
    if not isinstance(name, str):
        raise NncError(f"{where}: 'name' must be a string, not {toml.described(name)}")
    if name not in known:
        raise NncError(
            f"{where}: no pass is called '{name}'", toml.nearest(name, known) or "nnc passes lists the names"
        )
    try:
        return known[name].model_validate_json(json.dumps(parameters_, default=str), strict=True)
    except ValidationError as error:
        first = toml.first_of(error)["loc"]
        where = origins.get((index, str(first[0])) if first else (index, ""), f"{where} ({name})")
        raise _explained(error, known[name], parameters_, where) from None


def _overridden(
    tables: Iterable[dict[str, Any]], overrides: Iterable[str], place: str
) -> tuple[list[dict[str, Any]], dict[tuple[int, str], str]]:
    """The passes' tables with the options --set in them, and from which option (pass number, key) comes."""
    changed = [dict(table) for table in tables]
    origins = {}
    for text in overrides:
        name, number, keys, content = _parsed(text)
        index = _position(changed, name, number, text, place)
        changed[index - 1] = _with(changed[index - 1], keys, content, text)
        origins[index, keys[0]] = f"--set {text}"
    return changed, origins


def _parsed(text: str) -> tuple[str, int | None, list[str], Any]:
    """'prune-channels#2.budget.macs=0.6' -> ('prune-channels', 2, ['budget', 'macs'], 0.6)."""
    found = re.fullmatch(r"([\w-]+)(?:#(\d+))?\.([\w.-]*\w)\s*=\s*(.*)", text, re.DOTALL)
    if found is None:
        raise NncError(f"--set {text}: not of the form pass.key=value", "such as --set check-accuracy.max_drop=0.02")
    name, number, keys, content = found.groups()
    value: Any
    try:
        value = toml.literal(content)
    except tomllib.TOMLDecodeError:
        if not re.fullmatch(r"[A-Za-z][\w.*-]*", content):  # a word needs no quotes: shells remove them
            hint = "numbers and true are written as they are, strings and arrays as in --set 'pass.include=[\"conv*\"]'"
            raise NncError(f"--set {text}: '{content}' is not a value of TOML", hint) from None
        value = content
    return name, int(number) if number else None, keys.split("."), value


def _position(tables: list[dict[str, Any]], name: str, number: int | None, text: str, place: str) -> int:
    """The number, from 1, of the pass that an option --set is for."""
    found = [index for index, table in enumerate(tables, 1) if table.get("name") == name]
    if not found:
        known = [table["name"] for table in tables if isinstance(table.get("name"), str)]
        raise NncError(f"--set {text}: {place} has no pass '{name}'", toml.nearest(name, known))
    if number is None and len(found) > 1:
        raise NncError(
            f"--set {text}: {place} has {len(found)} passes '{name}'",
            f"write {name}#1 for the first, {name}#2 for the second",
        )
    if number is not None and not 1 <= number <= len(found):
        raise NncError(f"--set {text}: {place} has {len(found)} of '{name}', not {number}")
    return found[(number or 1) - 1]


def _with(table: dict[str, Any], keys: list[str], content: Any, text: str) -> dict[str, Any]:
    """The table with another value at the path `keys`."""
    key, *below = keys
    if not below:
        return table | {key: content}
    inner = table.get(key, {})
    if not isinstance(inner, dict):
        raise NncError(f"--set {text}: '{key}' is {toml.described(inner)} in the recipe, not a table")
    return table | {key: _with(inner, below, content, text)}


def _data(written: Data, recipe: Path, place: str, options: Iterable[str]) -> Data:
    """The data with absolute paths, those of the options --data instead of the recipe's."""
    folder = recipe.parent
    paths = {key: (f"{place}: data", folder / path) for key in _KINDS if (path := getattr(written, key)) is not None}
    for option in options:
        key, equals, path = option.partition("=")
        if not equals or key not in _KINDS or not path:
            if equals and path:
                raise NncError(f"--data {option}: there is no data '{key}'", toml.nearest(key, _KINDS))
            raise NncError(f"--data {option}: not of the form KEY=PATH", "such as --data test=test.npz")
        paths[key] = (f"--data {option}", Path(path))
    for key, (origin, path) in paths.items():
        if not path.exists():
            raise NncError(f"{origin}: '{key}': no such file or folder: {path}", f"--data {key}=PATH gives another")
    return written.model_copy(update={key: path.resolve() for key, (_, path) in paths.items()})


_KINDS = tuple(name for name, field in Data.model_fields.items() if field.annotation == Path | None)


def _entries(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {toml.value(content)}" for key, content in table.items()]
