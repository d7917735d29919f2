"""Which layers stay in floats: the order, how many of them, and what a network loses."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnc import testing
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.quantize import precision

NET = """net (float[2, 6] x) => (float[2, 4] y) <float[6, 5] V, float[5, 4] W>
{ h = MatMul(x, V) r = Relu(h) y = MatMul(r, W) }"""


def silent(done: int, total: int) -> None:
    pass


def moved(text: str, size: float, *names: str) -> gs.Graph:
    """The network with other weights: those called so are off by a share of themselves."""
    graph = testing.graph(text)
    rng = np.random.default_rng(1)
    noisy = {
        name: values * (1 + size * rng.standard_normal(values.shape)) if name in names else values
        for name, values in testing.weights(graph).items()
    }
    return testing.graph(text, **noisy)


def dataset(tmp_path: Path, graph: gs.Graph, count: int = 31, **labels: np.ndarray) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = {each.name: rng.standard_normal((count, *each.shape[1:]), np.float32) for each in graph.inputs}
    np.savez(tmp_path / "data.npz", **arrays, **labels)
    return Dataset.open(tmp_path / "data.npz", None, graph.inputs)


def computed(graph: gs.Graph, data: Dataset) -> np.ndarray:
    """What NET computes [samples, 4]."""
    values = testing.weights(graph)
    (inputs,) = data.batches(len(data))
    return np.maximum(inputs["x"].astype(np.float64) @ values["V"], 0) @ values["W"]


@given(st.integers(0, 300), st.integers(0, 300))
def test_fewest_is_found_in_few_steps(most: int, needed: int) -> None:
    needed, asked = min(needed, most), []

    def fits(count: int) -> bool:
        asked.append(count)
        assert count < most, "all of them fit"
        return count >= needed

    assert precision.fewest(most, fits) == needed
    assert len(asked) == len(set(asked)) <= 2 + 2 * max(1, needed).bit_length()


def test_the_largest_errors_come_first() -> None:
    errors = {"a": 0.01, "b": np.inf, "c": 0.0, "d": 0.5}
    assert precision.order(errors, {}) == ["b", "d", "a", "c"]


def test_of_equal_errors_the_cheapest_in_floats_comes_first() -> None:
    errors = {"dear": 0.1, "cheap": 0.1001, "free": 0.05, "faster": 0.1}
    extra_ms = {"dear": 2.0, "cheap": 0.3, "faster": -0.1}
    assert precision.order(errors, extra_ms) == ["faster", "cheap", "dear", "free"]


def test_with_labels_the_drop_is_the_share_that_loses_the_right_class(tmp_path: Path) -> None:
    """31 samples in batches of 2."""
    floats, other = testing.graph(NET), moved(NET, 0.5, "V", "W")
    labels = computed(floats, dataset(tmp_path, floats)).argmax(1)
    labels[:7] = (labels[:7] + 1) % 4
    data = dataset(tmp_path, floats, labels=labels)
    right = [computed(graph, data).argmax(1) == labels for graph in (floats, other)]
    lost = np.mean(right[0] & ~right[1])
    assert 0 < lost < 24 / 31
    assert precision.Drop(floats, data).of(other, silent) == lost
    assert precision.Drop(other, data).of(floats, silent) == np.mean(right[1] & ~right[0])
    assert precision.Drop(floats, data).of(floats, silent) == 0


@pytest.mark.parametrize("label", [4, 3])
def test_labels_that_the_network_does_not_know_don_t_count(tmp_path: Path, label: int) -> None:
    """One is none of its classes, and the other is never right: no sample could lose it."""
    floats, other = testing.graph(NET), moved(NET, 0.5, "V", "W")
    data = dataset(tmp_path, floats)
    found = computed(floats, data).argmax(1)
    wrong = dataset(tmp_path, floats, labels=np.where(found == label, (label + 1) % 4, label))
    differ = computed(floats, wrong).argmax(1) != computed(other, wrong).argmax(1)
    assert precision.Drop(floats, wrong).of(other, silent) == differ.mean() > 0


def test_without_labels_it_is_the_share_of_other_classes(tmp_path: Path) -> None:
    floats, other = testing.graph(NET), moved(NET, 0.5, "V", "W")
    data = dataset(tmp_path, floats, 30)
    differ = computed(floats, data).argmax(1) != computed(other, data).argmax(1)
    assert 0 < differ.mean() < 1
    assert precision.Drop(floats, data).of(other, silent) == differ.mean()
    assert precision.Drop(floats, data).of(floats, silent) == 0


def test_without_classes_it_is_the_share_of_noise(tmp_path: Path) -> None:
    text = NET.replace("(float[2, 4] y)", "(float[2, 4] y, float[2, 5] r)")
    floats, other = testing.graph(text), moved(text, 0.1, "W")
    data = dataset(tmp_path, floats, 30)
    before, after = computed(floats, data), computed(other, data)
    noise = np.square(before - after).sum() / np.square(before).sum()
    assert precision.Drop(floats, data).of(other, silent) == pytest.approx(noise / 2, rel=1e-4)  # r is as it was


def test_the_sensitivity_of_a_layer_is_the_error_that_it_alone_makes(tmp_path: Path) -> None:
    text = NET.replace("y = MatMul(r, W)", "z = MatMul(r, W) y = Softmax(z)")
    floats, seen = testing.graph(text), []
    data = dataset(tmp_path, floats, 20)
    weights = {"h": "V", "z": "W"}
    found = precision.sensitivities(
        floats, ["h", "z"], lambda names: moved(text, 0.1, *(weights[name] for name in names)), data, 0,
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    before = computed(floats, data)
    for name, weight in weights.items():
        noise = computed(moved(text, 0.1, weight), data) - before
        assert found[name] == pytest.approx(np.linalg.norm(noise) / np.linalg.norm(before), rel=1e-4)
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_outputs_whose_shape_the_data_decide_don_t_count(tmp_path: Path) -> None:
    text = NET.replace("(float[2, 4] y)", "(int64[2, found] n, float[2, 4] y)").replace("y = M", "n = NonZero(r) y = M")
    floats, other = testing.graph(text), moved(text, 0.5, "V", "W")
    data = dataset(tmp_path, floats, 30, labels=np.arange(30) % 4)
    before, after = computed(floats, data), computed(other, data)
    noise = np.square(before - after).sum() / np.square(before).sum()
    assert precision.Drop(floats, data).of(other, silent) == pytest.approx(noise, rel=1e-4)
    found = precision.sensitivities(floats, ["h"], lambda names: other, data, 0, silent)
    assert found["h"] == pytest.approx(np.sqrt(noise), rel=1e-4)


def test_without_outputs_of_static_shapes_there_is_no_drop(tmp_path: Path) -> None:
    text = NET.replace("(float[2, 4] y)", "(int64[2, found] n)").replace("y = MatMul(r, W)", "n = NonZero(r)")
    graph = testing.graph(text)
    data = dataset(tmp_path, graph)
    with pytest.raises(NncError, match="no output tells a drop: the data decide the shape of each") as raised:
        precision.Drop(graph, data)
    assert raised.value.hint == "leave out 'budget'"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    text = NET.replace("y = MatMul(r, W)", "z = MatMul(r, W) y = Log(z)")
    graph = testing.graph(text)
    data = dataset(tmp_path, graph)
    with pytest.raises(NncError, match="'y' is not finite on the calibration data"):
        precision.sensitivities(graph, ["h"], lambda names: graph, data, 0, silent)
    floats, broken = testing.graph(NET), moved(NET, np.inf, "W")
    found = precision.sensitivities(floats, ["y"], lambda names: broken, dataset(tmp_path, floats), 0, silent)
    assert found == {"y": np.inf}
