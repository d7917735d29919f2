"""reduce-resolution: what follows the Resize is the network at a smaller size, and the interface stays."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from nnc import graph as graphs
from nnc import measure, networks, pipeline, target, testing, verify
from nnc.compression.budget import Budget
from nnc.errors import NncError
from nnc.passes.reduce_resolution import ReduceResolution
from nnc.session import Session

NET = """
net (float[1, 3, 32, 48] x) => (float[1, 10] y)
<float[8, 3, 3, 3] W, float[10, 8] V>
{
    c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, W)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm<transB = 1>(f, V)
}
"""
LAST_POOL = NET.replace("GlobalAveragePool(r)", "AveragePool<kernel_shape = [16, 24]>(r)")
CHANNELS_LAST = (
    NET.replace("[1, 3, 32, 48] x", "[1, 32, 48, 3] x")
    .replace("c = Conv", "t = Transpose<perm = [0, 3, 1, 2]>(x)\n    c = Conv")
    .replace("(x, W)", "(t, W)")
)


def half(text: str = NET) -> testing.Result:
    return testing.run(ReduceResolution(size=(16, 24)), testing.graph(text))


@pytest.mark.parametrize(("text", "shape"), [(NET, (16, 24)), (LAST_POOL, (16, 24)), (CHANNELS_LAST, (16, 24))])
def test_computes_what_the_network_does_at_the_smaller_size(text: str, shape: tuple[int, int]) -> None:
    """A constant image is the same at every size, and its Resize exact."""
    result = half(text)
    assert result.changed == 1
    assert result.graph.inputs[0].shape == testing.graph(text).inputs[0].shape
    small = testing.graph(NET.replace("32, 48", "16, 24"))
    picture = np.broadcast_to(np.array([1.0, -2.0, 0.5], np.float32)[:, None, None], (1, 3, 32, 48))
    read = picture.transpose(0, 2, 3, 1) if text is CHANNELS_LAST else picture
    expected = Session(small).run({"x": np.ascontiguousarray(picture[:, :, :16, :24])})
    found = Session(result.graph).run({"x": np.ascontiguousarray(read)})
    assert verify.largest_difference(expected, found) < 1e-6


def test_pool_over_the_whole_image_covers_it_at_any_size() -> None:
    assert "GlobalAveragePool" in half(LAST_POOL).ops


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (NET.replace("p = GlobalAveragePool(r)", "").replace("Flatten(p)", "Flatten(r)").replace("[10, 8]", "[10, 3072]"), "of another size"),  # noqa: E501
        (NET.replace("p = GlobalAveragePool(r)", "").replace("Flatten(p)", "Reshape(r, s)").replace("[10, 8] V", "[10, 3072] V, int64[2] s = {1, 3072}"), "Reshape 'f' is told a size"),  # noqa: E501
        (NET.replace("(float[1, 10] y)", "(float[1, 8, 16, 24] r)"), "the shape of the output 'r' depends"),
        (NET.replace("[1, 3, 32, 48] x)", "[1, 3, 32, 48] x, float[1, 10] z)").replace("y = Gemm", "g = Gemm").replace("(f, V)", "(f, V)\n y = Add(g, z)"), "one image"),  # noqa: E501
        ("net (float[1, 8] x) => (float[1, 4] y) <float[8, 4] W> { y = MatMul(x, W) }", "one image"),
        ("net (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { y = Relu(x) }", "no convolution tells"),
    ],
)  # fmt: skip
def test_leaves_networks_alone_that_depend_on_the_size(text: str, reason: str) -> None:
    pass_ = ReduceResolution(size=(16, 24))
    result = testing.run(pass_, testing.graph(text))
    assert result.changed == 0
    assert reason in next(iter(result.skipped.values()))


EVEN = """
net (float[1, 3, 32, 32] x) => (float[1, 8, 1, 1] y)
<float[8, 3, 2, 2] W, float[8, 8, 2, 2] V>
{
    c = Conv<strides = [2, 2]>(x, W)
    up = ConvTranspose<strides = [2, 2]>(c, V)
    d = Conv<kernel_shape = [1, 1]>(x, K)
    s = Add(up, d)
    y = GlobalAveragePool(s)
}
""".replace("float[8, 8, 2, 2] V", "float[8, 8, 2, 2] V, float[8, 3, 1, 1] K")


def test_sizes_that_do_not_fit_are_left_out() -> None:
    """Up and down again is the same for even sizes only."""
    result = testing.run(ReduceResolution(budget=Budget(macs=0.95)), testing.graph(EVEN)).graph
    assert next(node for node in result.nodes if node.op == "Resize").outputs[0].shape[2] == 30


def test_images_of_one_line_stay() -> None:
    result = testing.run(ReduceResolution(budget=Budget(macs=0.5)), testing.graph(NET.replace("32, 48]", "1, 48]")))
    assert list(result.skipped.values()) == ["its images can't be smaller"]


def test_branches_without_convolutions_are_looked_at_once() -> None:
    lines = "\n".join(f"a{i + 1} = Add(a{i}, a{i})\n b{i + 1} = Relu(a{i + 1})\n" for i in range(60))
    lines = re.sub(r"Add\((a\d+), a(\d+)\)", r"Add(\1, b\2)", lines)
    text = f"net (float[1, 3, 8, 8] a0) => (float[1, 3, 8, 8] a60) {{ b0 = Relu(a0)\n {lines} }}"
    assert testing.run(ReduceResolution(size=(4, 4)), testing.graph(text)).changed == 0


def test_own_size_changes_nothing() -> None:
    assert testing.run(ReduceResolution(size=(32, 48)), testing.graph(NET)).changed == 0


@pytest.mark.parametrize("size", [(15, 24), (33, 48), (16, 49)])
def test_sizes_out_of_range_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(NncError, match=r"'size' must be from \[16, 24\] to \[32, 48\]"):
        testing.run(ReduceResolution(size=size), testing.graph(NET))


@pytest.mark.parametrize("share", [0.9, 0.75, 0.5])
def test_budget_takes_the_largest_size_within_it(share: float) -> None:
    graph = graphs.from_model(networks.build("mobilenet_v2", seed=0))
    result = testing.run(ReduceResolution(budget=Budget(macs=share)), graph).graph
    left = measure.measure(result).macs / measure.measure(graph).macs
    height = next(node for node in result.nodes if node.op == "Resize").outputs[0].shape[2]
    larger = testing.run(ReduceResolution(size=(height + 1, height + 1)), graph).graph
    assert left <= share < measure.measure(larger).macs / measure.measure(graph).macs


def test_budget_out_of_reach() -> None:
    with pytest.raises(NncError, match=r"the budget of 0\.1 can't be reached"):
        testing.run(ReduceResolution(budget=Budget(macs=0.1)), testing.graph(NET))


@pytest.mark.parametrize("fields", [{}, {"size": (8, 8), "budget": Budget(macs=0.5)}, {"budget": Budget(params=0.5)}])
def test_says_how_small_in_one_way(fields: dict) -> None:
    with pytest.raises(ValidationError):
        ReduceResolution(**fields)


def test_data_choose_among_sizes_near_the_budget(written_example) -> None:
    """The size that is taken has the least error of those on the curve, which all keep within the budget."""
    from nnc.data import Dataset, Preprocess

    graph = graphs.load(written_example / "model.onnx")
    data = Dataset.open(written_example / "calibration.npz", Preprocess(mean=(0.5,), std=(0.25,)), graph.inputs)
    context = pipeline.Context(target.load("x86"), calibration=data.subset(0, 64), data_key="example")
    _, (row,) = pipeline.run(graph, [ReduceResolution(budget=Budget(macs=0.8))], context)
    points = row.curve["points"]
    chosen = next(point for point in points if point["chosen"])
    assert len(points) > 1
    assert all(point["budget"] <= 0.8 for point in points)
    assert chosen["error"] == min(point["error"] for point in points)
