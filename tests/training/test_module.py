"""A graph as a torch module computes what onnxruntime does, trains, and goes back into the same graph."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnc import graph as graphs
from nnc import networks, testing, verify
from nnc.errors import NncError
from nnc.session import Session
from nnc.training.module import GraphModule

#: An operator each that networks for images use, as the line that reads x [1, 4, 9, 9] and writes y.
LINES = {
    "asymmetric": ("y = Conv<pads = [0, 1, 2, 1], strides = [2, 2]>(x, W)", "float[6, 4, 3, 3] W", [6, 5, 5]),
    "same-upper": ('y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, W)', "float[6, 4, 4, 4] W", [6, 5, 5]),
    "same-lower": ('y = Conv<auto_pad = "SAME_LOWER">(x, W)', "float[6, 4, 4, 4] W", [6, 9, 9]),
    "dilated": ("y = Conv<dilations = [2, 2], group = 2>(x, W)", "float[6, 2, 3, 3] W", [6, 5, 5]),
    "transposed": ("y = ConvTranspose<strides = [2, 2], pads = [1, 0, 1, 1], output_padding = [1, 0]>(x, W)",
                   "float[4, 3, 3, 3] W", [3, 18, 18]),
    "transposed-to-a-size": ("y = ConvTranspose<strides = [2, 2], output_shape = [18, 17]>(x, W)",
                             "float[4, 3, 3, 3] W", [3, 18, 17]),
    "transposed-same-upper": (
        'y = ConvTranspose<strides = [2, 2], output_shape = [18, 17], auto_pad = "SAME_UPPER">(x, W)',
        "float[4, 3, 3, 3] W", [3, 18, 17],
    ),
    "max": ("y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]>(x)", "", [4, 4, 4]),
    "max-ceil": ("y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", "", [4, 5, 5]),
    "average": ("y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)", "", [4, 5, 5]),
    "average-padded": (
        "y = AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 2], count_include_pad = 1>(x)", "", [4, 9, 9]
    ),
    "average-same": (
        'y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER", count_include_pad = 1>(x)',
        "", [4, 5, 5],
    ),
    "average-same-lower": (
        'y = AveragePool<kernel_shape = [2, 2], auto_pad = "SAME_LOWER", count_include_pad = 1>(x)', "", [4, 9, 9]
    ),
    "average-ceil": ("y = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", "", [4, 5, 5]),
    "batchnorm": ("y = BatchNormalization(x, s, b, m, v)", "float[4] s, float[4] b, float[4] m, float[4] v", [4, 9, 9]),
    "lrn": ("y = LRN<size = 3, alpha = 0.5>(x)", "", [4, 9, 9]),
    "instance": ("y = InstanceNormalization(x, s, b)", "float[4] s, float[4] b", [4, 9, 9]),
    "prelu": ("y = PRelu(x, s)", "float[4, 1, 1] s", [4, 9, 9]),
    "hard-swish": ("y = HardSwish(x)", "", [4, 9, 9]),
    "hard-sigmoid": ("y = HardSigmoid<alpha = 0.3>(x)", "", [4, 9, 9]),
    "mean": ("y = ReduceMean<axes = [2, 3], keepdims = 1>(x)", "", [4, 1, 1]),
    "expand": ("e = Expand(c, t)\n y = Add(x, e)", "float[4, 1, 1] c, int64[4] t = {1, 4, 9, 9}", [4, 9, 9]),
    "concat": ("y = Concat<axis = 1>(x, c)", "float[1, 2, 9, 9] c", [6, 9, 9]),
    "concat-in-front": ("y = Concat<axis = -1>(c, x, c)", "float[1, 4, 9, 1] c", [4, 9, 11]),
    "slice": ("y = Slice(x, s, e, a)", "int64[1] s = {1}, int64[1] e = {-2}, int64[1] a = {-1}", [4, 9, 6]),
    "slice-backwards": ("y = Slice(x, s, e, a, t)", "int64[2] s = {-100, 7}, int64[2] e = {-200, -9}, "
                        "int64[2] a = {2, -1}, int64[2] t = {-1, -3}", [4, 1, 3]),
    "slice-of-the-batch": ("y = Slice(x, s, e)", "int64[2] s = {0, 1}, int64[2] e = {1, 3}", [2, 9, 9]),
    "squeeze": (
        "r = ReduceMax<axes = [2]>(x)\n s = Squeeze(r, a)\n y = Unsqueeze(s, a)", "int64[1] a = {2}", [4, 1, 9]
    ),
    "space-to-depth": ("p = Pad(x, z)\n y = SpaceToDepth<blocksize = 2>(p)", "int64[8] z", [16, 5, 5]),
}  # fmt: skip


def difference(graph: gs.Graph, batch: int = 1) -> float:
    """How far the module is from onnxruntime, relative to the largest output, on a batch of copies."""
    inputs = verify.probe_inputs(graph, 0)
    expected = Session(graph).run(inputs)
    with torch.no_grad():
        found = GraphModule(graph).eval()(
            {name: torch.from_numpy(np.concatenate([x] * batch)) for name, x in inputs.items()}
        )
    return max(
        float(np.abs(found[name].numpy()[: len(values)] - values).max() / (np.abs(values).max() + 1e-30))
        for name, values in expected.items()
    )


@pytest.mark.parametrize("name", LINES)
def test_operators(name: str) -> None:
    line, weights, result = LINES[name]
    text = f"net (float[1, 4, 9, 9] x) => (float{[1, *result]} y) <{weights}> {{ {line} }}"
    given_ = {"z": np.array([0, 0, 0, 0, 0, 0, 1, 1])} if "int64[8] z" in weights else {}
    graph = testing.graph(text if weights else text.replace("<>", ""), **given_)
    assert difference(graph) < 1e-5
    assert difference(graph, batch=3) < 1e-5


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.lists(st.integers(0, 2), min_size=4, max_size=4))
@settings(max_examples=20, deadline=None)
def test_windows_of_any_kind(kernel: int, stride: int, dilation: int, pads: list[int]) -> None:
    sizes = [(8 + pads[axis] + pads[axis + 2] - dilation * (kernel - 1) - 1) // stride + 1 for axis in range(2)]
    attributes = f"strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}], pads = {pads}"
    text = f"""
    net (float[1, 2, 8, 8] x) => (float[1, 4, {sizes[0]}, {sizes[1]}] y) <float[4, 1, {kernel}, {kernel}] W>
    {{ y = Conv<group = 2, {attributes}>(x, W) }}
    """
    assert difference(testing.graph(text)) < 1e-5


RESIZED = """
net (float[1, 2, 5, 6] x) => (float[1, 2, 8, 9] y) <int64[4] sizes, float none>
{ y = Resize<mode = "%s", coordinate_transformation_mode = "%s">(x, , , sizes) }
"""


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
def test_resize(mode: str, coordinates: str) -> None:
    graph = testing.graph((RESIZED % (mode, coordinates)).replace(", float none", ""), sizes=np.array([1, 2, 8, 9]))
    assert difference(graph, batch=2) < 1e-5


#: Sizes at which every operator of a network still has something to do.
SMALL = {"resnet18": 64, "densenet121": 64, "shufflenet_v2": 64, "mobilenet_v3_small": 64, "inception_v3": 96,
         "squeezenet1_1": 64, "efficientnet_b0": 64, "ghostnet": 64, "vgg11_bn": 32, "mobilenet_yolo": 96,
         "deeplabv3_mobilenet_v3_large": 64}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_reference_networks(name: str) -> None:
    if name not in networks.NAMES:
        pytest.skip(f"no network {name}")
    graph = graphs.from_model(networks.build(name, input_size=(SMALL[name],) * 2))
    assert difference(graph, batch=2) < 1e-4


@pytest.mark.data
def test_pretrained_networks(data: Path) -> None:
    """The quantized one rounds, so that a difference of one bit may move a value by a step."""
    for model in sorted((data / "models").glob("*.onnx")):
        assert difference(graphs.load(model)) < (0.1 if "qdq" in model.name else 1e-4), model.name


NET = """
net (float[1, 3, 8, 8] x) => (float[1, 5] y)
<
    float[4, 3, 3, 3] conv.W, float[4] norm.s, float[4] norm.b, float[4] norm.m, float[4] norm.v,
    float low, float high, float[4, 5] W, float[5] B
>
{
    c = Conv<pads = [1, 1, 1, 1]>(x, conv.W)
    n = BatchNormalization<momentum = 0.8>(c, norm.s, norm.b, norm.m, norm.v)
    r = Clip(n, low, high)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm(f, W, B)
}
"""
VALUES = {"low": 0.0, "high": 6.0}


def text() -> str:
    """ONNX text has no dots in names; models that torch exports do."""
    return NET.replace("conv.W", "conv_W").replace("norm.", "norm_")


def test_parameters_are_the_initializers() -> None:
    graph = testing.graph(text(), **VALUES)
    for node in graph.nodes:
        for tensor in node.inputs:
            tensor.name = tensor.name.replace("_", ".")
    parameters = dict(GraphModule(graph).named_parameters())
    assert set(parameters) == {"conv.W", "norm.s", "norm.b", "W", "B"}
    assert set(dict(GraphModule(graph).named_buffers())) == {"norm.m", "norm.v", "low", "high"}


def test_statistics_follow_the_batches_as_onnx_says() -> None:
    graph = testing.graph(text(), **VALUES)
    before = dict(testing.weights(graph))
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    module = GraphModule(graph).train()
    module({"x": torch.from_numpy(x)})
    module.write_back()
    conv = torch.nn.functional.conv2d(torch.from_numpy(x), torch.tensor(before["conv_W"]), padding=1).numpy()
    after = testing.weights(graph)
    np.testing.assert_allclose(
        after["norm_m"], 0.8 * before["norm_m"] + 0.2 * conv.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    unbiased = conv.var((0, 2, 3), ddof=0) * (n := 16 * 64) / (n - 1)
    np.testing.assert_allclose(after["norm_v"], 0.8 * before["norm_v"] + 0.2 * unbiased, rtol=1e-4)


SHARED = """
net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) <float[3] s, float[3] z, float[3] v, float[4, 3, 1, 1] W>
{
    n = BatchNormalization<momentum = 0.5>(x, s, z, z, v)
    m = BatchNormalization<momentum = 0.5>(n, s, z, z, v)
    y = Conv(m, W)
}
"""


def test_statistics_that_were_merged_part() -> None:
    """z is what both normalizations begin with, as mean and as bias; each mean follows its own batches."""
    graph = testing.graph(SHARED, s=np.ones(3), z=np.zeros(3), v=np.full(3, 4.0))
    apart = graphs.copy(graph)
    for node in apart.nodes[:2]:
        for index in (3, 4):
            node.inputs[index] = gs.Constant(f"{node.name}-{index}", node.inputs[index].values)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32) + 3)
    modules = [GraphModule(each).train() for each in (graph, apart)]
    for _ in range(2):
        for module in modules:
            module({"x": x})["y"].square().mean().backward()
    assert [module.write_back() for module in modules] == [4, 4]
    for one, other in zip(graph.nodes[:2], apart.nodes[:2], strict=True):
        for index in range(1, 5):
            np.testing.assert_array_equal(one.inputs[index].values, other.inputs[index].values)
    assert not np.array_equal(graph.nodes[0].inputs[3].values, graph.nodes[1].inputs[3].values)
    verify.check_invariants(graph)
    with torch.no_grad():
        found = [GraphModule(each).eval()({"x": x})["y"] for each in (graph, apart)]
    assert torch.equal(*found)
    assert [GraphModule(graph).write_back(), modules[0].write_back()] == [0, 0]


def test_the_same_graph_comes_back() -> None:
    graph = testing.graph(text(), **VALUES)
    before, weights = graphs.to_model(graph), dict(testing.weights(graph))
    module = GraphModule(graph)
    assert module.write_back() == 0
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert module.write_back() == 5
    after = graphs.to_model(graph)
    assert after.graph.node == before.graph.node
    for name, values in testing.weights(graph).items():
        moved = 0.0 if name in ("norm_m", "norm_v", "low", "high") else 1.0
        np.testing.assert_array_equal(values, (weights[name] + np.float32(moved)).astype(np.float32))


def test_gradients_are_those_of_the_graph() -> None:
    """Against nnc.gradient, which differentiates the ONNX graph itself."""
    from nnc.gradient import Gradients

    graph = testing.graph(text(), **VALUES)
    x = verify.probe_inputs(graph, 0)["x"]
    _, expected = Gradients(graph, ["x", "n"]).run({"x": x}, np.array([3]))
    given_ = torch.from_numpy(x).requires_grad_()
    found = GraphModule(graph).eval()({"x": given_}, ["n"])
    hidden = found["n"]
    hidden.retain_grad()
    torch.nn.functional.cross_entropy(found["y"], torch.tensor([3]), reduction="sum").backward()
    np.testing.assert_allclose(given_.grad.numpy(), expected["x"], atol=1e-5)
    np.testing.assert_allclose(hidden.grad.numpy(), expected["n"], atol=1e-5)


@pytest.mark.parametrize(
    ("line", "weights", "message"),
    [
        ("y = Hardmax(x)", "", "no operator Hardmax can be trained"),
        ("s = Cast<to = 10>(x)\n d = Conv(s, W)\n y = Cast<to = 1>(d)", "float16[4, 4, 1, 1] W", "computes in float16"),
        ('y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, r, s)',
         "float[8] r, float[4] s = {1.0, 1.0, 1.0, 1.0}", "Resize of a crop can't be trained"),
    ],
)  # fmt: skip
def test_refusals(line: str, weights: str, message: str) -> None:
    weights = f"<{weights}>" if weights else ""
    graph = testing.graph(f"net (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y) {weights} {{ {line} }}")
    with pytest.raises(NncError, match=message):
        GraphModule(graph)


#: Attention as torch exports it: the sequence in front of the batch, which shares axes with the heads and with it.
ATTENTION = """
net (float[%d, 5, 8] x) => (float[%d, 3] y)
<float[8, 24] V, float[8, 8] W, float[3, 8] U, int64[4] apart, int64[3] heads, int64[4] pairs, int64[2] flat,
    int64[3] long, int64[1] front = {0}, int64[1] last = {3}, int64 zero = {0}, int64 one = {1}, int64 two = {2}>
{
    t = Transpose<perm = [1, 0, 2]>(x)
    a = MatMul(t, V)
    b = Reshape(a, apart)
    c = Unsqueeze(b, front)
    d = Transpose<perm = [3, 1, 2, 0, 4]>(c)
    e = Squeeze(d, last)
    q0 = Gather(e, zero)
    q1 = Reshape(q0, heads)
    q2 = Transpose<perm = [1, 0, 2]>(q1)
    q = Reshape(q2, pairs)
    k0 = Gather(e, one)
    k1 = Reshape(k0, heads)
    k2 = Transpose<perm = [1, 0, 2]>(k1)
    k3 = Reshape(k2, pairs)
    k = Transpose<perm = [0, 1, 3, 2]>(k3)
    v0 = Gather(e, two)
    v1 = Reshape(v0, heads)
    v2 = Transpose<perm = [1, 0, 2]>(v1)
    v = Reshape(v2, pairs)
    s = MatMul(q, k)
    p = Softmax(s)
    m = MatMul(p, v)
    n = Transpose<perm = [2, 0, 1, 3]>(m)
    f = Reshape(n, flat)
    g = Gemm(f, W)
    h = Reshape(g, long)
    o = Transpose<perm = [1, 0, 2]>(h)
    z = Gather<axis = 1>(o, zero)
    y = Gemm<transB = 1>(z, U)
}
"""


def attention(batch: int) -> gs.Graph:
    shapes = {
        "apart": [5, batch, 3, 8], "heads": [5, 2 * batch, 4], "pairs": [batch, 2, 5, 4], "flat": [5 * batch, 8],
        "long": [5, batch, 8],
    }  # fmt: skip
    return testing.graph(ATTENTION % (batch, batch), **{name: np.array(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("batch", [1, 2])
def test_batches_that_are_not_in_front(batch: int) -> None:
    """Every sample as onnxruntime computes it, with its gradient, in batches that are not the graph's."""
    graph = attention(batch)
    module, session = GraphModule(graph), Session(graph)
    x = np.random.default_rng(0).standard_normal((6, 5, 8)).astype(np.float32)
    expected = np.concatenate([session.run({"x": x[place : place + batch]})["y"] for place in range(0, 6, batch)])
    found = module({"x": torch.from_numpy(x)}, ["y"])["y"]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    found.square().sum().backward()
    gradient = module.constant("V").grad.clone()
    module.constant("V").grad = None
    sum(module({"x": torch.from_numpy(x[place : place + batch])})["y"].square().sum()
        for place in range(0, 6, batch)).backward()  # fmt: skip
    np.testing.assert_allclose(gradient.numpy(), module.constant("V").grad.numpy(), rtol=1e-5, atol=1e-3)


def test_batches_that_are_not_in_front_are_told_where_they_can_not_be_trained() -> None:
    x = {"x": torch.zeros(3, 5, 8)}
    with pytest.raises(NncError, match=r"'b': Reshape of a batch that is not in front .* no multiples of 2"):
        GraphModule(attention(2))(x)
    normalized = (ATTENTION % (1, 1)).replace("(x)", "(w)").replace("<float[8, 24] V", "<float[5] i, float[8, 24] V")
    normalized = normalized.replace("t = Tr", "w = BatchNormalization(x, i, i, i, i)\n    t = Tr", 1)
    shapes = {node.inputs[1].name: node.inputs[1].values for node in attention(1).nodes if node.op == "Reshape"}
    with pytest.raises(NncError, match="together with BatchNormalization 'w'"):
        GraphModule(testing.graph(normalized, **shapes)).train()(x)
