"""The example behind `nnc example`: it is written as promised, its network is trained, its gradients are right."""

from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import pytest

from nnc import accuracy, data, example, toml
from nnc import graph as graphs
from nnc.errors import NncError
from nnc.example import drawing, training
from nnc.model import wire


def test_the_network_knows_the_shapes(written_example: Path) -> None:
    graph = graphs.load(written_example / "model.onnx")
    recipe = toml.parse(toml.read(written_example / "recipe.toml"), "recipe.toml")
    preprocess = data.Preprocess.model_validate(recipe["data"]["preprocess"])
    test = data.Dataset.open(written_example / recipe["data"]["test"], preprocess, graph.inputs)
    assert accuracy.evaluate(graph, test).top1 > 0.95


def test_what_is_written(written_example: Path) -> None:
    assert {file.name for file in written_example.iterdir()} == set(example.FILES)
    for name, count in (("calibration.npz", 1000), ("test.npz", 1000)):
        with np.load(written_example / name) as arrays:
            assert (arrays["images"].shape, arrays["images"].dtype) == ((count, 32, 32, 3), np.uint8)
            assert Counter(arrays["labels"].tolist()).keys() == set(range(10))
    model = onnx.load(written_example / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert Counter(node.op_type for node in model.graph.node)["BatchNormalization"] == 7


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "recipe.toml"
    mine.write_text("mine")
    with pytest.raises(NncError, match="there is such a file already"):
        example.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.toml"]
    with pytest.raises(NncError, match="a file, not a folder"):
        example.write(mine)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("name", example.FILES)
def test_a_half_of_an_example_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], name: str
) -> None:
    original = wire.replacing

    def replacing(path: Path) -> AbstractContextManager[IO[bytes]]:
        if path.name == name:
            raise error
        return original(path)

    monkeypatch.setattr(example, "_STEPS", 1)
    monkeypatch.setattr(example, "_TRAINING_IMAGES", 100)
    monkeypatch.setattr(wire, "replacing", replacing)
    with pytest.raises(error):
        example.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then make, which looks for it, never takes a half of an example for one."""
    written = []
    original = wire.replacing

    def replacing(path: Path) -> AbstractContextManager[IO[bytes]]:
        written.append(path.name)
        return original(path)

    monkeypatch.setattr(example, "_STEPS", 1)
    monkeypatch.setattr(example, "_TRAINING_IMAGES", 100)
    monkeypatch.setattr(wire, "replacing", replacing)
    example.write(tmp_path)
    assert written[-1] == "model.onnx"


def test_a_seed_decides_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "_STEPS", 5)
    monkeypatch.setattr(example, "_TRAINING_IMAGES", 1000)
    first, again, other = (example.write(tmp_path / name, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    changed = [
        file.name for file, differs in zip(first, other, strict=True) if file.read_bytes() != differs.read_bytes()
    ]
    assert changed == ["model.onnx", "calibration.npz", "test.npz"]


def test_images_differ_and_show_what_their_label_says() -> None:
    images, labels = drawing.draw(200, np.random.default_rng(0))
    assert len(np.unique(images.reshape(200, -1), axis=0)) == 200
    # A shape is lighter than its ground: a disc has more light pixels than a bar.
    light = [np.mean(images[labels == drawing.CLASSES.index(name)] > 128) for name in ("disc", "bar")]
    assert light[0] > light[1]


def test_gradients_are_the_slopes_of_the_loss() -> None:
    """Every weight of the network, moved a little along its gradient, changes the loss by what the gradient says."""
    rng = np.random.default_rng(0)
    graph = example.network().graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}
    x, labels = rng.standard_normal((3, 32, 32, 4)), np.array([1, 5, 5, 9])
    gradients = training._gradients(graph, weights, x, labels)
    trained = {name for name in weights if not name.endswith(("running_mean", "running_var"))}
    assert gradients.keys() == trained
    for name, gradient in gradients.items():
        step = 1e-5 * gradient / np.linalg.norm(gradient)
        ahead, behind = (loss(graph, weights | {name: weights[name] + sign * step}, x, labels) for sign in (1, -1))
        assert (ahead - behind) / 2e-5 == pytest.approx(np.linalg.norm(gradient), rel=1e-3), name


def loss(graph: onnx.GraphProto, weights: training.Arrays, x: np.ndarray, labels: np.ndarray) -> float:
    logits = training._forward(graph, weights, x)[0]
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    return -float(np.mean(np.log(shares[labels, np.arange(len(labels))])))
