"""Parameters of passes in words."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from nnc import parameters


class Budget(BaseModel):
    macs: float | None = Field(default=None, gt=0, le=1)
    params: float | None = None


class Model(BaseModel):
    share: float = Field(ge=0, le=1, description="share removed")
    rank: int | Literal["vbmf"] = 4
    count: Annotated[int, Field(ge=1)] = 1
    below: float = Field(default=0.5, lt=2)
    between: float = Field(default=0.5, gt=0, lt=2)
    way: Literal["l1", "l2"] = "l1"
    name: str = Field(default="x", pattern="^[a-z]+$")
    on: bool = True
    names: tuple[str, ...] = ("*",)
    sizes: tuple[int, int] | None = None
    budget: Budget | None = None
    either: tuple[int | str, ...] = ()
    some: tuple[int, ...] = Field((1,), min_length=1)
    bits: Literal[4, 8] = 8


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("share", "a number from 0 to 1"),
        ("rank", "an integer or 'vbmf'"),
        ("count", "an integer of at least 1"),
        ("below", "a number below 2"),
        ("between", "a number above 0 and below 2"),
        ("way", "'l1' or 'l2'"),
        ("name", "a string that matches ^[a-z]+$"),
        ("on", "true or false"),
        ("names", "an array of strings"),
        ("sizes", "an array of 2 values"),
        ("budget", "a table of 'macs', 'params'"),
        ("either", "an array, each of it an integer or a string"),
        ("some", "an array of at least 1, each of it an integer"),
        ("bits", "4 or 8"),
    ],
)
def test_types_in_words(field: str, text: str) -> None:
    assert parameters.words(parameters.schema_of(Model, [field])[1]) == text


def test_paths_into_tables_and_arrays() -> None:
    steps, schema = parameters.schema_of(Model, ["budget", "macs"])
    assert (steps, parameters.words(schema)) == (2, "a number above 0 and of at most 1")
    steps, schema = parameters.schema_of(Model, ["sizes", 1])
    assert (steps, parameters.words(schema)) == (2, "an integer")
    steps, schema = parameters.schema_of(Model, ["rank", "int"])  # it ends where several types are possible
    assert (steps, parameters.words(schema)) == (1, "an integer or 'vbmf'")


def test_rows() -> None:
    rows = {name: rest for name, *rest in parameters.rows(Model)}
    assert rows["share"] == ["a number from 0 to 1", None, "share removed"]
    assert rows["names"] == ["an array of strings", ["*"], ""]
    assert list(rows) == list(Model.model_fields)
