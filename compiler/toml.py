"""TOML files that people write: read, checked against a pydantic model, and every mistake told in TOML's words."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from nnc.errors import NncError


class Table(BaseModel):
    """A table of a file: no unknown keys, no conversions, no changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def read(path: Path) -> str:
    """The text of a file; NncError where there is none."""
    try:
        return path.read_text("utf-8-sig")  # editors of Windows put a byte order mark in front
    except UnicodeDecodeError:
        raise NncError(f"{path}: not a text file", "TOML is text in UTF-8") from None
    except OSError as error:
        raise NncError(f"{path}: {_lower(error.strerror or 'cannot be read')}") from None


def parse(text: str, place: str) -> dict[str, Any]:
    """The table that `text` holds; `place` begins every error message."""
    try:
        return _loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NncError(f"{place}: not valid TOML: {_lower(str(error))}") from None


def value(content: object) -> str:
    """A value as TOML writes it: true, "text", [1, 2], { macs = 0.6 }; tables leave out what is None."""
    match content:
        case bool():
            return str(content).lower()
        case str():
            return json.dumps(content, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(value, content))}]"
        case dict():
            entries = [f"{_key(name)} = {value(entry)}" for name, entry in content.items() if entry is not None]
            return f"{{ {', '.join(entries)} }}" if entries else "{}"
    return str(content)


def literal(text: str) -> Any:
    """The value that `text` is in TOML; raises TOMLDecodeError."""
    table = _loads(f"value = {text}")
    if len(table) > 1:  # a line break, and another key after it
        raise tomllib.TOMLDecodeError("more than one value")
    return table["value"]


def _loads(text: str) -> dict[str, Any]:
    """`tomllib.loads`, which has other errors besides TOMLDecodeError for files that no hand writes."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # int() of thousands of digits
        raise tomllib.TOMLDecodeError("an integer has too many digits") from None
    except RecursionError:
        raise tomllib.TOMLDecodeError("too many arrays or tables are inside each other") from None


def explained(error: ValidationError, table: dict[str, Any], place: str, models: Iterable[type[BaseModel]]) -> NncError:
    """The first mistake that pydantic found in `table`; `models` say which keys there are."""
    first = first_of(error)
    *path, key = first["loc"] or ("",)
    if key == "[key]":  # a wrong key of a free table
        *path, key = path
    elif isinstance(key, int) or first["type"] == "value_error":  # an array's item, or a table as a whole
        path, key = [*path, key], ""
    where = ": ".join([place, *_places(path, table)])
    match first["type"]:
        case "extra_forbidden":
            keys = {field.alias or name for model in models for name, field in model.model_fields.items()}
            return NncError(f"{where}: unknown key '{key}'", nearest(str(key), keys))
        case "missing":
            return NncError(f"{where}: '{key}' is missing")
        case "value_error":
            return NncError(f"{where}: {first['ctx']['error']}")
    wanted = _in_toml_words(first["msg"])
    if not key:
        return NncError(f"{where} {wanted}, not {described(first['input'])}")
    return NncError(f"{where}: '{key}' {wanted}, not {described(first['input'])}")


def first_of(error: ValidationError) -> ErrorDetails:
    """The mistake to tell: a misspelt key before the right one, which is missing then."""
    found = error.errors(include_url=False)
    return next((each for each in found if each["type"] == "extra_forbidden"), found[0])


def nearest(word: str, known: Iterable[str]) -> str | None:
    """A hint with the known word that `word` resembles most."""
    spelled = {each.lower(): each for each in sorted(known)}
    close = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.5)
    return f"did you mean '{spelled[close[0]]}'?" if close else None


def _places(path: list[str | int], table: Any) -> list[str]:
    """['unit', 0, 'dram'] -> ['unit 1 (cpu)', 'dram']."""
    places: list[str] = []
    for step in path:
        try:
            table = table[step]
        except (KeyError, IndexError, TypeError):
            table = None
        if isinstance(step, int):
            name = table.get("name") if isinstance(table, dict) else None
            places[-1] += f" {step + 1}" + (f" ({name})" if isinstance(name, str) else "")
        elif step:
            places.append(step)
    return places


def _in_toml_words(message: str) -> str:
    """'Input should be a valid tuple' -> 'must be an array'."""
    message = message.removeprefix("Input ").removeprefix("String ").replace("should", "must", 1)
    message = re.sub(r"a valid (dictionary.*)$", "a table", message)
    message = re.sub(r"^\w+ (must have at least \d+ items?) after validation.*$", r"\1", message)
    return message.replace("a valid tuple", "an array").replace("a valid ", "a ").replace("a integer", "an integer")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else value(name)


def described(content: Any) -> str:
    """A value as a sentence names it: "the string '0.4'", "an array"."""
    match content:
        case bool():
            return str(content).lower()
        case str():
            return f"the string '{content}'"
        case int() if abs(content) >= 10**20:
            return "a number of more than 20 digits"
        case int() | float():
            return str(content)
        case list():
            return "an array" if content else "an empty array"
        case dict():
            return "a table"
    return "a date"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
