"""Recipes: what is read from them, the options that change them, and what is said about wrong ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnc import graph as graphs
from nnc import recipe
from nnc.errors import NncError

PASSES = '''
from typing import Annotated
from pydantic import BaseModel, ConfigDict, Field
from nnc.rewrite import Pass

class Budget(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    macs: float | None = Field(default=None, gt=0, le=1)

class Prune(Pass):
    """Remove channels."""
    name = "prune"
    effect = "approximate"
    sparsity: float = Field(default=0.5, ge=0, le=1, description="share removed")
    include: tuple[str, ...] = ("*",)
    budget: Budget | None = None
    way: str = "l1"

class Fold(Pass):
    """Fold."""
    name = "fold"
    effect = "exact"
'''

RECIPE = """
description = "Fold and prune"
use = ["passes.py"]
[data]
calibration = "images.npz"
[data.preprocess]
mean = [0.5, 0.4, 0.3]
[[pass]]
name = "fold"
[[pass]]
name = "prune"
sparsity = 0.25
budget = { macs = 0.6 }
[[pass]]
name = "prune"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "passes.py").write_text(PASSES)
    (tmp_path / "mine.toml").write_text(RECIPE)
    np.savez(tmp_path / "images.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "test.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0, 1]))
    return tmp_path


def load(folder: Path, *overrides: str, data: tuple[str, ...] = ()) -> recipe.Recipe:
    return recipe.load(folder / "mine.toml", overrides, data)


def parameters(read: recipe.Recipe) -> list[dict[str, Any]]:
    return [{"name": each.name, **each.model_dump(exclude_defaults=True)} for each in read.passes]


def test_what_a_recipe_says(folder: Path) -> None:
    read = load(folder)
    assert (read.name, read.description) == ("mine", "Fold and prune")
    assert parameters(read) == [
        {"name": "fold"},
        {"name": "prune", "sparsity": 0.25, "budget": {"macs": 0.6}},
        {"name": "prune"},
    ]
    assert read.data_paths() == {"calibration": folder / "images.npz"}
    assert read.data.preprocess.mean == (0.5, 0.4, 0.3)
    assert read.used == (folder / "passes.py",)


def test_data_is_opened_for_the_inputs_of_a_graph(project: Path) -> None:
    read = recipe.load(project / "recipe.toml")
    opened = read.open_data(graphs.load(project / "model.onnx"))
    assert {key: len(dataset) for key, dataset in opened.items()} == {"test": 40}


def test_shipped_recipes_are_found_by_name() -> None:
    for name in recipe.names():
        read = recipe.load(name)
        assert read.name == read.called == name
        assert read.description
        assert read.passes


def test_how_a_file_is_called_and_with_what_options(folder: Path) -> None:
    read = load(folder, "prune#2.include=['conv*']")
    assert read.called == read.path.name
    assert read.overrides == ("prune#2.include=['conv*']",)


def test_the_resolved_recipe_says_the_same(folder: Path) -> None:
    read = load(folder, "prune#2.include=['conv*']")
    (folder / "resolved.toml").write_text(f'use = ["passes.py"]\n{read.to_toml()}')
    again = recipe.load(folder / "resolved.toml")
    assert parameters(again) == parameters(read)
    assert again.data.preprocess == read.data.preprocess
    assert str(folder) not in read.to_toml()


def test_the_resolved_recipe_with_paths_stands_alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "r.toml"
    elsewhere.write_text(load(folder).to_toml(paths=True))
    again = recipe.load(elsewhere)
    assert parameters(again) == parameters(load(folder))
    assert again.data == load(folder).data


@pytest.mark.parametrize(
    ("option", "index", "expected"),
    [
        ("prune#1.sparsity=0.75", 1, {"sparsity": 0.75, "budget": {"macs": 0.6}}),
        ("prune#2.sparsity = 1e-1", 2, {"sparsity": 0.1}),
        ("prune#1.budget.macs=1", 1, {"sparsity": 0.25, "budget": {"macs": 1}}),
        ("prune#2.budget={ macs = 0.5 }", 2, {"budget": {"macs": 0.5}}),
        ('prune#2.include=["a", "b"]', 2, {"include": ("a", "b")}),
        ("prune#2.way=l2", 2, {"way": "l2"}),
        ("prune#2.way='l2'", 2, {"way": "l2"}),
    ],
)
def test_parameters_from_the_command_line(folder: Path, option: str, index: int, expected: dict[str, Any]) -> None:
    assert load(folder, option).passes[index].model_dump(exclude_defaults=True) == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("sparsity=1", "--set sparsity=1: not of the form pass.key=value"),
        ("prune.sparsity=1", "--set prune.sparsity=1: {} has 2 passes 'prune'"),
        ("prune#3.sparsity=1", "--set prune#3.sparsity=1: {} has 2 of 'prune', not 3"),
        ("plune.sparsity=1", "--set plune.sparsity=1: {} has no pass 'plune'"),
        (
            "prune#2.sparsity=two",
            "--set prune#2.sparsity=two: 'sparsity' must be a number from 0 to 1, not the string 'two'",
        ),
        ("prune#2.sparsity=[", "--set prune#2.sparsity=[: '[' is not a value of TOML"),
        ("prune#1.sparsity.x=1", "--set prune#1.sparsity.x=1: 'sparsity' is 0.25 in the recipe, not a table"),
        ("fold.sparsity=1", "--set fold.sparsity=1: unknown key 'sparsity'"),
    ],
)
def test_wrong_options(folder: Path, option: str, message: str) -> None:
    with pytest.raises(NncError) as caught:
        load(folder, option)
    assert caught.value.message == message.format(folder / "mine.toml")


def test_data_from_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    read = load(folder, data=("test=test.npz", "calibration=test.npz"))
    assert read.data_paths() == dict.fromkeys(("calibration", "test"), folder / "test.npz")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("test", "--data test: not of the form KEY=PATH"),
        ("tests=test.npz", "--data tests=test.npz: there is no data 'tests'"),
        ("test=none.npz", "--data test=none.npz: 'test': no such file or folder: none.npz"),
    ],
)
def test_wrong_data(folder: Path, option: str, message: str) -> None:
    with pytest.raises(NncError) as caught:
        load(folder, data=(option,))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        (
            "sparsity = 0.25",
            "sparsity = '0.4'",
            "pass 2 (prune): 'sparsity' must be a number from 0 to 1, not the string '0.4'",
            "write sparsity = 0.4",
        ),
        (
            "sparsity = 0.25",
            "sparsity = 40",
            "pass 2 (prune): 'sparsity' must be a number from 0 to 1, not 40",
            "it is a share: write sparsity = 0.4",
        ),
        ("sparsity = 0.25", "sparsty = 0.4", "pass 2 (prune): unknown key 'sparsty'", "did you mean 'sparsity'?"),
        (
            "macs = 0.6",
            "macs = 0",
            "pass 2 (prune): 'budget.macs' must be a number above 0 and of at most 1, not 0",
            None,
        ),
        (
            "sparsity = 0.25",
            "include = 'conv1'",
            "pass 2 (prune): 'include' must be an array of strings, not the string 'conv1'",
            'write include = ["conv1"]',
        ),
        ('"fold"', '"flod"', "pass 1: no pass is called 'flod'", "did you mean 'fold'?"),
        ('name = "fold"', "", "pass 1: 'name' is missing", "nnc passes lists the names"),
        (
            "images.npz",
            "none.npz",
            "data: 'calibration': no such file or folder: {folder}/none.npz",
            "--data calibration=PATH gives another",
        ),
        ("[0.5, 0.4, 0.3]", '["a"]', "item 1 of 'data.preprocess.mean' must be a number, not the string 'a'", None),
        ("description", "descripton", "unknown key 'descripton'", "did you mean 'description'?"),
    ],
)
def test_wrong_recipes(folder: Path, old: str, new: str, message: str, hint: str | None) -> None:
    path = folder / "mine.toml"
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(NncError) as caught:
        load(folder)
    assert caught.value.message == f"{path}: {message.format(folder=folder)}"
    assert caught.value.hint == hint


def test_a_model_is_no_recipe() -> None:
    for name in ("model.onnx", "models/model.onnx"):
        with pytest.raises(NncError, match="a model, not a recipe"):
            recipe.load(name)


def test_a_name_that_is_taken(folder: Path) -> None:
    (folder / "more.py").write_text(PASSES)
    (folder / "mine.toml").write_text(RECIPE.replace('["passes.py"]', '["passes.py", "more.py"]'))
    with pytest.raises(NncError, match=r"more\.py: there is a pass 'prune' already"):
        load(folder)


def test_the_schema_describes_every_pass(folder: Path) -> None:
    schema = recipe.schema([folder / "passes.py"])
    json.dumps(schema)
    prune = schema["$defs"]["Prune"]
    assert prune["properties"]["name"] == {"const": "prune"}
    assert prune["properties"]["sparsity"]["description"] == "share removed"
    assert (prune["required"], prune["additionalProperties"]) == (["name"], False)
    listed = [entry["$ref"] for entry in schema["properties"]["pass"]["items"]["oneOf"]]
    assert "#/$defs/Prune" in listed
    assert schema["required"] == ["pass"]
