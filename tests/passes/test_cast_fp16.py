"""cast-fp16: outputs within half precision of float32, and float32 where that is not enough."""

import os
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import networks, pipeline, target, testing
from nnc.data import Dataset, Preprocess
from nnc.passes.cast_fp16 import CastFp16
from nnc.session import Session

DATA = Path(os.environ.get("NNC_DATA") or Path(__file__).parents[3] / "shared" / "data")

NET = """
net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[4, 3, 3, 3] V, float[4] B, float[4, 4, 1, 1] W>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, V, B)
    b = Relu(a)
    y = Conv(b, W)
}
"""


def cast(graph: gs.Graph, data: Dataset | None = None, **options: object) -> tuple[gs.Graph, dict[str, str], int]:
    """The graph in float16, why nodes were left alone, and how many were not."""
    context = pipeline.Context(target.load("x86"), imported=graph, calibration=data)
    pass_ = CastFp16.model_validate(options)
    context.start(pass_)
    after = graphs.copy(graph)
    changed = pass_.run(after, context)
    return after, {each["node"]: each["reason"] for each in context.skipped.values()}, changed


def outputs(graph: gs.Graph, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    given = {each.name: rng.standard_normal(each.shape).astype(each.dtype) for each in graph.inputs}
    return dict(Session(graph).run(given))


def difference(before: gs.Graph, after: gs.Graph) -> float:
    expected, found = outputs(before), outputs(after)
    assert {name: each.dtype for name, each in found.items()} == {name: each.dtype for name, each in expected.items()}
    return max(float(np.abs(found[n] - each).max() / np.abs(each).max()) for n, each in expected.items())


def halves(graph: gs.Graph) -> list[str]:
    """The names of the nodes that write float16 and are no Cast."""
    return [node.name for node in graph.nodes if node.op != "Cast" and node.outputs[0].dtype == np.float16]


def dataset(folder: Path, graph: gs.Graph, scale: float = 1.0) -> Dataset:
    values = np.random.default_rng(0).standard_normal((8, *graph.inputs[0].shape[1:])).astype(np.float32) * scale
    np.savez(folder / "data.npz", **{graph.inputs[0].name: values})
    return Dataset.open(folder / "data.npz", Preprocess(), graph.inputs)


def test_casts_are_only_at_the_ends() -> None:
    graph = testing.graph(NET)
    after, skipped, changed = cast(graph)
    assert ([node.op for node in after.nodes], skipped, changed) == (["Cast", "Conv", "Relu", "Conv", "Cast"], {}, 3)
    assert all(tensor.dtype == np.float16 for node in after.nodes for tensor in node.inputs[1:])
    assert 0 < difference(graph, after) < 1e-2


def test_a_tensor_is_cast_once_for_all_its_readers() -> None:
    text = NET.replace("y = Conv(b, W)", "c = Softmax<axis = 1>(b)\n d = Exp(b)\n e = Conv(b, W)\n f = Add(c, d)\n"
                       " g = Conv(f, W)\n y = Add(e, g)")  # fmt: skip
    graph = testing.graph(text)
    after, skipped, _ = cast(graph)
    assert sorted(skipped) == ["c", "d"]
    reads = [node.inputs[0].name for node in after.nodes if node.op == "Cast"]
    assert len(reads) == len(set(reads)) == 5  # x, b, c, d, and y back
    assert difference(graph, after) < 1e-2


def test_an_output_that_is_also_read() -> None:
    graph = testing.graph(NET.replace("8, 8] y)", "8, 8] y, float[1, 4, 8, 8] b)"))
    after, _, _ = cast(graph)
    assert [tensor.name for tensor in after.outputs] == ["y", "b"]
    assert difference(graph, after) < 1e-2


def test_an_input_that_is_an_output_of_types_that_are_fixed() -> None:
    text = """
    net (float[1, 2, 4, 4] x) => (float y, int64[4] s) <float[4] scales = {1.0, 1.0, 2.0, 2.0}>
    {
        r = Resize<mode = "nearest">(x, , scales)
        s = Shape(r)
        y = Relu(r)
    }
    """
    graph = testing.graph(text)
    after, _, changed = cast(graph)
    resize = next(node for node in after.nodes if node.op == "Resize")
    assert (resize.inputs[0].dtype, resize.inputs[2].dtype, changed) == (np.float16, np.float32, 3)
    assert difference(graph, after) < 1e-3


@pytest.mark.parametrize(("weights", "reason"), [(1e5, "can't hold"), (1e-8, "too small")])
def test_weights_out_of_range(weights: float, reason: str) -> None:
    graph = testing.graph(NET, W=np.full((4, 4, 1, 1), weights, np.float32))
    after, skipped, _ = cast(graph)
    assert list(skipped) == ["y"]
    assert reason in skipped["y"]
    assert halves(after) == ["a", "b"]


def test_evidence_keeps_what_would_overflow(tmp_path: Path) -> None:
    graph = testing.graph(NET, V=np.full((4, 3, 3, 3), 900.0, np.float32), W=np.full((4, 4, 1, 1), 1e-4, np.float32))
    small, _, _ = cast(graph, dataset(tmp_path, graph, 0.1))
    assert halves(small) == ["a", "b", "y"]
    after, skipped, _ = cast(graph, dataset(tmp_path, graph, 30.0))
    assert set(skipped) == {"a", "b", "y"}
    assert "calibration data" in skipped["a"]
    assert not halves(after)


def test_sums_count_what_they_add_up(tmp_path: Path) -> None:
    graph = testing.graph("net (float[1, 2, 64, 64] x) => (float y) { a = Relu(x) y = GlobalAveragePool(a) }")
    _, skipped, _ = cast(graph, dataset(tmp_path, graph, 2.0))
    assert list(skipped) == ["y"]
    assert "a sum over 'a'" in skipped["y"]


def test_quantized_layers_stay() -> None:
    text = """
    net (float[1, 3, 8, 8] x) => (float y) <float s = {0.1}, int8 z = {0}, int8[4, 3, 1, 1] W, float[4, 4, 1, 1] V>
    {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        w = DequantizeLinear(W, s, z)
        a = Conv(d, w)
        b = Relu(a)
        y = Conv(b, V)
    }
    """
    W = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1), np.int8)
    graph = testing.graph(text, W=W)
    after, skipped, _ = cast(graph)
    assert skipped["a"] == "it is quantized"
    assert halves(after) == ["b", "y"]
    assert difference(graph, after) < 1e-2


def test_what_the_recipe_excludes_stays() -> None:
    after, skipped, _ = cast(testing.graph(NET), exclude=("b",))
    assert skipped == {"b": "excluded by the recipe"}
    assert halves(after) == ["a", "y"]


def test_another_domain_stays() -> None:
    graph = testing.graph(NET)
    graph.nodes[1].domain = "com.acme"
    assert cast(graph)[1] == {"b": "there is no float16 for it in the ONNX standard"}


def test_twice_changes_nothing_more() -> None:
    after, _, _ = cast(testing.graph(NET))
    again, _, _ = cast(after)
    assert difference(after, again) == 0.0
    assert halves(again) == halves(after)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2", "efficientnet_b0", "densenet121"])
def test_reference_networks(name: str) -> None:
    graph = graphs.from_model(networks.build(name, input_size=32, width=0.25, classes=10))
    after, _, changed = cast(graph)
    assert changed > 0.8 * sum(node.outputs[0].dtype == np.float32 for node in graph.nodes)
    assert difference(graph, after) < 2e-2


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no data")
def test_top1_stays(tmp_path: Path) -> None:
    graph = graphs.load(DATA / "models" / "cifar10_resnet20.onnx", {})
    after, _, _ = cast(graph)
    expected, found = outputs(graph), outputs(after)
    assert all(np.array_equal(each.argmax(-1), found[n].argmax(-1)) for n, each in expected.items())


def test_an_epsilon_that_would_vanish() -> None:
    text = """
    net (float[1, 4, 8, 8] x) => (float y) <float[4] s, float[4] b>
    { y = InstanceNormalization<epsilon = 1e-9>(x, s, b) }
    """
    assert cast(testing.graph(text))[1] == {"y": "its epsilon of 1e-09 is 0 in float16"}
