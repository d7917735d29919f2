"""Accuracy: ranks on hand-made scores, and the published accuracies of real networks."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import testing
from nnc.accuracy import Accuracy, evaluate, runtime
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError

DATA = Path(os.environ.get("NNC_DATA") or Path(__file__).parents[2] / "shared" / "data")
SCORES = np.array([[9, 8, 7, 6, 5, 4, 3], [0, 1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1, 1]], np.float32)


def dataset(folder: Path, labels: list[int] | None, scores: np.ndarray = SCORES) -> Dataset:
    """Samples that are their own scores."""
    np.savez(folder / "data.npz", x=scores, **({} if labels is None else {"labels": np.array(labels)}))
    return Dataset.open(folder / "data.npz", None, [gs.Variable("x", np.float32, [1, scores.shape[1]])])


def identity(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def identity_model(batch: int | str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        identity (float[{batch}, 7] x) => (float[{batch}, 7] y) {{ y = Identity(x) }}""")


@pytest.mark.parametrize(
    ("labels", "top1", "top5"),
    [
        ([0, 6, 0], 1, 1),  # of equal scores the first counts, as in argmax
        ([4, 2, 4], 0, 1),
        ([5, 1, 5], 0, 0),
        ([0, 0, 1], 1 / 3, 2 / 3),
    ],
)
def test_ranks(tmp_path: Path, labels: list[int], top1: float, top5: float) -> None:
    accuracy = evaluate(identity, dataset(tmp_path, labels))
    assert accuracy == Accuracy(pytest.approx(top1), pytest.approx(top5), 3)


def test_nan_scores_are_wrong(tmp_path: Path) -> None:
    def broken(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.where(inputs["x"] == 9, np.nan, inputs["x"])}

    assert evaluate(identity, dataset(tmp_path, [0, 6, 0])) == Accuracy(1.0, 1.0, 3)
    assert evaluate(broken, dataset(tmp_path, [0, 6, 0])) == Accuracy(pytest.approx(2 / 3), pytest.approx(2 / 3), 3)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_callables_always_get_whole_batches(tmp_path: Path, batch: int) -> None:
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert inputs["x"].shape == (batch, 7)
        return identity(inputs)

    assert evaluate(run, dataset(tmp_path, [0, 0, 1]), batch=batch).top1 == pytest.approx(1 / 3)


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_models_run_with_their_own_batch(tmp_path: Path, batch: int | str) -> None:
    data = dataset(tmp_path, [0, 0, 1])
    model = identity_model(batch)
    expected = Accuracy(pytest.approx(1 / 3), pytest.approx(2 / 3), 3)
    assert evaluate(model, data, batch=2) == expected
    assert evaluate(graphs.from_model(model), data) == expected


def test_progress_is_reported_per_batch(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(identity, dataset(tmp_path, [0, 0, 1]), batch=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]


def test_a_subset_is_compared_with_its_own_labels(tmp_path: Path) -> None:
    subset = dataset(tmp_path, [0, 6, 0]).subset(seed=0, count=2)
    assert evaluate(identity, subset) == Accuracy(1.0, 1.0, 2)


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="has no labels"):
        evaluate(identity, dataset(tmp_path, None))


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="label 7 is out of range: the model has 7 classes"):
        evaluate(identity, dataset(tmp_path, [0, 7, 0]))


PUBLISHED = {
    "cifar10_resnet20": 0.910,
    "cifar10_resnet44": 0.930,
    "cifar10_resnet56": 0.940,
    "cifar10_distiller_resnet20": 0.916,
    "cifar10_distiller_resnet20_chpruned": 0.916,
    "cifar10_mlperf_resnet8": 0.890,
    "imagenet_mobilenet_v2_1.0_224": 0.872,
    "imagenet_mobilenet_v1_0.75_192": 0.768,
    "imagenet_mobilenet_v1_0.25_128": 0.438,
    "imagenet_squeezenet1.0_deepcompression": 0.622,
    "imagenet_mobilenet_v2_1.0_224_qdq": 0.876,
}
QUICK = {"cifar10_resnet20", "cifar10_distiller_resnet20_chpruned", "imagenet_mobilenet_v1_0.25_128"}


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="the shared data folder is absent (NNC_DATA)")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_published_accuracies_are_reproduced(name: str) -> None:
    facts = json.loads((DATA / "models" / "models.json").read_text())[f"{name}.onnx"]
    preprocess = Preprocess(
        size=(facts["size"], facts["size"]), crop=facts.get("crop"), mean=facts["mean"], std=facts["std"]
    )
    graph = graphs.load(DATA / "models" / f"{name}.onnx")
    folder = {"cifar10": "cifar10/test.npz", "imagenet": "imagenet_sample"}[facts["dataset"]]
    accuracy = evaluate(graph, Dataset.open(DATA / folder, preprocess, graph.inputs))
    assert accuracy.count == 500
    assert accuracy.top1 == pytest.approx(PUBLISHED[name], abs=0.0021)  # one image: rounding differs between machines


def test_the_arithmetic_is_told() -> None:
    graph = testing.graph(
        "net (float[1, 2] x) => (float[1, 2] y) <float s = {0.5}, uint8 z = {3}>"
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    )
    assert runtime(graph).startswith("onnxruntime, its optimizations off")
    assert runtime(testing.graph("net (float[1, 2] x) => (float[1, 2] y) { y = Relu(x) }")) == "onnxruntime"


@pytest.mark.parametrize("probabilities", [False, True])
def test_loss_is_cross_entropy_of_scores_and_of_probabilities(tmp_path: Path, probabilities: bool) -> None:
    scores = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32)) + np.float32(3)
    given = np.exp(scores - 3) if probabilities else scores

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": given[[int(inputs["x"].flat[0] > 0)]]}

    np.savez(tmp_path / "two.npz", x=np.array([[0], [1]], np.float32), labels=np.array([0, 1]))
    data = Dataset.open(tmp_path / "two.npz", None, [gs.Variable("x", np.dtype(np.float32), [1, 1])])
    assert evaluate(run, data).loss == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 2, rel=1e-4)
