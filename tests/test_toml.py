"""TOML read, written, and explained."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnc import toml
from nnc.errors import NncError

KEYS = st.text(min_size=1, max_size=8)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_values_are_read_back_as_they_were(content: Any) -> None:
    assert toml.literal(toml.value(content)) == content


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (True, "true"),
        (0.25, "0.25"),
        ("a\"b", '"a\\"b"'),
        ([1, 2], "[1, 2]"),
        ((0.5, 0.25), "[0.5, 0.25]"),
        ({"macs": 0.6, "left out": None}, "{ macs = 0.6 }"),
        ({"a b": 1}, '{ "a b" = 1 }'),
        ({}, "{}"),
    ],
)  # fmt: skip
def test_text_of_values(content: object, text: str) -> None:
    assert toml.value(content) == text


@pytest.mark.parametrize("text", ["", "1\nother = 2", "a b", "[1", "= 1", "1" * 5000])
def test_literals_hold_one_value(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        toml.literal(text)


def test_files_of_other_editors(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes("\ufeffkey = 'ä'\r\n".encode())
    assert toml.parse(toml.read(tmp_path / "a.toml"), "a.toml") == {"key": "ä"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "a.toml: not a text file"),
        (b"key = ", "a.toml: not valid TOML: invalid value (at end of document)"),
        (b"a = 1\na = 2", "a.toml: not valid TOML: cannot overwrite a value"),
        (b"a = " + b"1" * 5000, "a.toml: not valid TOML: an integer has too many digits"),
        (b"a = " + b"[" * 5000, "a.toml: not valid TOML: too many arrays or tables are inside each other"),
    ],
)
def test_files_that_are_no_toml(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(NncError) as caught:
        toml.parse(toml.read(tmp_path / "a.toml"), "a.toml")
    assert caught.value.message.removeprefix(f"{tmp_path}/").startswith(message)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(NncError, match=r"none\.toml: no such file or directory"):
        toml.read(tmp_path / "none.toml")
    with pytest.raises(NncError, match="is a directory"):
        toml.read(tmp_path)


def test_the_nearest_word() -> None:
    assert toml.nearest("sparsty", ["rank", "sparsity"]) == "did you mean 'sparsity'?"
    assert toml.nearest("zzz", ["rank", "sparsity"]) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (False, "false"),
        ("x", "the string 'x'"),
        (3, "3"),
        ([1], "an array"),
        ([], "an empty array"),
        ({}, "a table"),
        (tomllib.loads("d = 2020-01-01")["d"], "a date"),
    ],
)
def test_values_in_sentences(content: object, text: str) -> None:
    assert toml.described(content) == text
