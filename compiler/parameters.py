"""The parameters of a pass in TOML's words, for errors and for `nnc passes`: read from the JSON Schema of its model."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]


def schema_of(model: type[BaseModel], path: Sequence[str | int]) -> tuple[int, Schema]:
    """The schema of the value at `path` in a table of `model`, and how many steps of the path lead there.

    They end at a value that may be of several types: what is wrong with it can't be told from one of them alone.
    """
    root = model.model_json_schema()
    schema = root
    for done, step in enumerate(path):
        schema = _resolved(schema, root)
        below = None if "anyOf" in schema else _below(schema, step)
        if below is None:
            return done, _inlined(schema, root)
        schema = below
    return len(path), _inlined(schema, root)


def rows(model: type[BaseModel]) -> list[tuple[str, str, object, str]]:
    """Name, type in words, default (None: required) and description of every field."""
    properties = model.model_json_schema().get("properties", {})
    return [
        (name, words(schema_of(model, [name])[1]), field.get("default"), field.get("description", ""))
        for name, field in properties.items()
    ]


def words(schema: Schema) -> str:
    """{"type": "number", "minimum": 0, "maximum": 1} -> 'a number from 0 to 1'."""
    if "anyOf" in schema:
        options = [words(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "const" in schema:
        return f"'{schema['const']}'"
    if "enum" in schema:
        *most, last = (f"'{value}'" if isinstance(value, str) else str(value) for value in schema["enum"])
        return f"{', '.join(most)} or {last}" if most else last
    match schema.get("type"):
        case "number" | "integer":
            return ("a number" if schema["type"] == "number" else "an integer") + _bounds(schema)
        case "string":
            return "a string" + (f" that matches {schema['pattern']}" if "pattern" in schema else "")
        case "boolean":
            return "true or false"
        case "array":
            return _array(schema)
        case "object":
            return _table(schema)
    return "a value"


def _resolved(schema: Schema, root: Schema) -> Schema:
    """The schema itself, where it is only a reference or the one alternative to null."""
    if "$ref" in schema:
        return _resolved(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    return _resolved(options[0], root) if len(options) == 1 else schema


def _inlined(schema: Schema, root: Schema) -> Schema:
    schema = _resolved(schema, root)
    if "anyOf" in schema:
        return schema | {"anyOf": [_inlined(option, root) for option in schema["anyOf"]]}
    if isinstance(schema.get("items"), dict):
        return schema | {"items": _inlined(schema["items"], root)}
    return schema


def _below(schema: Schema, step: str | int) -> Schema | None:
    if isinstance(step, int):
        prefix = schema.get("prefixItems", [])
        return prefix[step] if step < len(prefix) else schema.get("items")
    free = schema.get("additionalProperties")
    return schema.get("properties", {}).get(step) or (free if isinstance(free, dict) else None)


def _bounds(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    parts = [
        f"above {above:g}" if above is not None else "",
        f"of at least {least:g}" if least is not None else "",
        f"below {below:g}" if below is not None else "",
        f"of at most {most:g}" if most is not None else "",
    ]
    return "".join(f" {part}" if index == 0 else f" and {part}" for index, part in enumerate(filter(None, parts)))


def _array(schema: Schema) -> str:
    fixed = schema.get("prefixItems")
    if fixed:
        return f"an array of {len(fixed)} values"
    items = words(schema["items"]) if schema.get("items") else "a value"
    least = f" of at least {schema['minItems']}" if schema.get("minItems") else ""
    if " or " in items or least:
        return f"an array{least}, each of it {items}"
    return f"an array of {_plural(items)}"


def _plural(item: str) -> str:
    noun, *rest = item.removeprefix("an ").removeprefix("a ").split(" ", 1)
    return " ".join([f"{noun}s", *rest])


def _table(schema: Schema) -> str:
    keys = [f"'{name}'" for name in schema.get("properties", ())]
    return f"a table of {', '.join(keys)}" if keys else "a table"
