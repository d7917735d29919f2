"""Passes of third parties: what a file may hold, and what is said about one that can't be used."""

import sys
from pathlib import Path

import pytest

from nnc import user_passes
from nnc.errors import NncError
from nnc.rewrite import Pass

GOOD = """
from nnc.rewrite import Pass

class First(Pass):
    name = "first"
    effect = "exact"

class _Shared(Pass):
    effect = "approximate"

class Second(_Shared):
    name = "second"
    count: int = 2
"""


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_passes_in_the_order_of_the_file(tmp_path: Path) -> None:
    first, second = user_passes.load(write(tmp_path, GOOD))
    assert [each.name for each in (first, second)] == ["first", "second"]
    assert issubclass(first, Pass)
    assert second(count=3).model_dump() == {"count": 3}  # type: ignore[call-arg]


def test_imported_passes_are_not_the_files_own(tmp_path: Path) -> None:
    text = "from nnc.rewrite import Pass, PatternPass\nfrom test_pass_elsewhere import Other\n"
    write(tmp_path, GOOD.replace("First", "Other"), "test_pass_elsewhere.py")
    path = write(tmp_path, f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{text}{GOOD}")
    assert [each.__name__ for each in user_passes.load(path)] == ["First", "Second"]


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    (a, _), (b, _) = (user_passes.load(write(tmp_path / folder, GOOD)) for folder in ("a", "b"))
    assert a is not b
    assert a.__module__ != b.__module__


def test_nothing_is_written_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    user_passes.load(write(tmp_path, GOOD))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]
    assert sys.dont_write_bytecode is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "mine.py: defines no pass"),
        ("x = = 1\n", "mine.py:1: invalid syntax"),
        ("\nimport nothing_like_this\n", "mine.py:2: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("\n\nraise SystemExit(3)\n", "mine.py:3: SystemExit: 3"),
        ("def f():\n    1 / 0\nf()\n", "mine.py:2: ZeroDivisionError: division by zero"),
        (GOOD.replace('"first"', '"First Pass"'), "mine.py: First: name must be words joined by hyphens"),
        (GOOD.replace('"first"', "3"), "mine.py: First: name must be words joined by hyphens, not 3"),
        (GOOD.replace('"exact"', '"perfect"'), "mine.py: First: effect must be 'exact', 'approximate' or"),
        (GOOD.replace('    effect = "exact"\n', ""), "mine.py: First: effect must be 'exact'"),
    ],
)  # fmt: skip
def test_files_that_can_not_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(NncError) as caught:
        user_passes.load(path)
    assert caught.value.message.startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize("name", ["none.py", "mine.txt", "."])
def test_what_is_no_python_file(tmp_path: Path, name: str) -> None:
    write(tmp_path, GOOD, "mine.txt")
    with pytest.raises(NncError, match="no such Python file"):
        user_passes.load(tmp_path / name)
