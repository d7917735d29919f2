"""Fixtures of all tests: the shared data folder, and small models."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx.parser import parse_model

from nnc import example
from nnc import graph as graphs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what is compared with tests/golden instead")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the file of that name in tests/golden; --update-golden writes the file."""

    def compare(name: str, text: str) -> None:
        file = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        assert file.is_file(), "write it with pytest --update-golden, and read it"
        assert text == file.read_text("utf-8"), "if this is right, pytest --update-golden"

    return compare


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images and pretrained networks; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("NNC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no data folder {folder} (set NNC_DATA)")
    return folder


@pytest.fixture(scope="session")
def written_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `nnc example` writes, for all tests: copy it before you change anything."""
    folder = tmp_path_factory.mktemp("example") / "demo"
    assert example.write(folder) == [folder / name for name in example.FILES]
    return folder


_NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N, 3, 8, 8] image) => (float[N, 10] scores)
<float[16, 3, 3, 3] W = {%s}, float[10, 16] V = {%s}, float one = {1.0}>
{
    features = Conv<pads = [1, 1, 1, 1]>(image, W)
    same = Mul(features, one)
    positive = Relu(same)
    mean = GlobalAveragePool(positive)
    flat = Flatten(mean)
    scores = Gemm<transB = 1>(flat, V)
}
"""

_PASSES = '''
import numpy as np
from pydantic import Field

from nnc.pattern import NoMatch, const, op, var
from nnc.rewrite import PatternPass, node


class DropOne(PatternPass):
    """Remove Mul by 1."""

    name = "drop-one"
    effect = "exact"
    pattern = op("Mul", var("x"), const("k"))

    def rewrite(self, match):
        if match["k"] != 1:
            raise NoMatch("the factor is not 1")
        return match.tensors["x"]


class RoundWeights(PatternPass):
    """Round the weights of Conv to multiples of a step.

    Approximate. Declines where they are.
    """

    name = "round-weights"
    effect = "approximate"
    pattern = op("Conv", var("x"), const("W"), name="conv")
    step: float = Field(default=1.0, gt=0, le=10, description="distance of the values that are left")

    def rewrite(self, match):
        rounded = (np.round(match["W"] / self.step) * self.step).astype(np.float32)
        if np.array_equal(rounded, match["W"]):
            raise NoMatch("the weights are multiples already")
        return node("Conv", match.tensors["x"], rounded, **match.nodes["conv"].attrs)
'''

_RECIPE = """
description = "Remove and round"
use = ["passes.py"]

[data]
test = "test.npz"

[data.preprocess]
mean = [0.5]

[[pass]]
name = "drop-one"

[[pass]]
name = "round-weights"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with model.onnx (image -> scores of 10 classes), passes.py, recipe.toml and labelled test.npz.

    The model's accuracy on the data is 1.0: the labels are what it says.
    """
    rng = np.random.default_rng(0)
    weights = [", ".join(map(str, rng.standard_normal(count).round(3))) for count in (16 * 27, 160)]
    model = parse_model(_NETWORK % tuple(weights))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "passes.py").write_text(_PASSES)
    (tmp_path / "recipe.toml").write_text(_RECIPE)
    colours, noise = rng.integers(0, 256, (40, 1, 1, 3)), rng.integers(-40, 40, (40, 8, 8, 3))
    images = np.clip(colours + noise, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=_labels(graphs.from_model(model), images))
    return tmp_path


def _labels(graph: gs.Graph, images: np.ndarray) -> np.ndarray:
    """The class that the model gives each image, which is prepared as the recipe says."""
    from nnc.session import Session

    session = Session(graph)
    inputs = (images / np.float32(255) - np.float32(0.5)).transpose(0, 3, 1, 2)
    return np.array([int(session.run({"image": each[None]})["scores"].argmax()) for each in inputs])
