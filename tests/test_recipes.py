"""The recipes that nnc ships: what each makes of a network with something for every pass, kept in tests/golden."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nnc import passes, pipeline, recipe, target, testing, toml
from nnc.session import Session

Golden = Callable[[str, str], None]

NETWORK = """
net (float[1, 3, 16, 16] image) => (float[1, 4] scores, float[1, 8, 16, 16] depth)
<
    float[8, 3, 3, 3] stem_W, float[8] stem_scale, float[8] stem_bias, float[8] stem_mean, float[8] stem_var,
    float[8, 1, 3, 3] depth_W, float[8] depth_scale, float[8] depth_bias, float[8] depth_mean, float[8] depth_var,
    float[8, 8, 1, 1] left_W, float[8, 8, 1, 1] right_W, float[8] norm_scale, float[8] norm_bias, float[8] norm_mean,
    float[8] norm_var, float[1, 8, 1, 1] gain, float[8, 4] head_W, float[4] head_B
>
{
    border = Constant<value_ints: ints = [0, 0, 1, 1, 0, 0, 1, 1]>()
    padded = Pad(image, border)
    stem = Conv(padded, stem_W)
    stem_bn = BatchNormalization(stem, stem_scale, stem_bias, stem_mean, stem_var)
    stem_dropped = Dropout(stem_bn)
    gate = Sigmoid(stem_dropped)
    swish = Mul(stem_dropped, gate)
    depth = Conv<group = 8, pads = [1, 1, 1, 1]>(swish, depth_W)
    depth_bn = BatchNormalization(depth, depth_scale, depth_bias, depth_mean, depth_var)
    depth_relu = Relu(depth_bn)
    zero = Constant<value_float: float = 0.0>()
    six = Constant<value_float: float = 6.0>()
    depth_clip = Clip(depth_relu, zero, six)
    three = Constant<value_float: float = 3.0>()
    moved = Add(depth_clip, three)
    clipped = Clip(moved, zero, six)
    sixth = Constant<value_float: float = 6.0>()
    bounded = Div(clipped, sixth)
    hard = Mul(depth_clip, bounded)
    left = Conv(hard, left_W)
    twin = Conv(hard, left_W)
    right = Conv(hard, right_W)
    sum = Add(left, twin)
    scaled = Mul(sum, gain)
    both = Add(scaled, right)
    both_bn = BatchNormalization(both, norm_scale, norm_bias, norm_mean, norm_var)
    unused = Exp(both)
    pool = GlobalAveragePool(both_bn)
    shape = Shape(pool)
    first = Constant<value_int: int = 0>()
    batch = Gather(shape, first)
    axis = Constant<value_ints: ints = [0]>()
    batch_1d = Unsqueeze(batch, axis)
    rest = Constant<value_ints: ints = [-1]>()
    sizes = Concat<axis = 0>(batch_1d, rest)
    flat = Reshape(pool, sizes)
    product = MatMul(flat, head_W)
    scores = Add(product, head_B)
}
"""


#: What the network can't do: most of its channels lead to an output.
SET = {
    "prune": ("prune-channels.budget.macs=0.85",),
    "compress": ("compress.budget.macs=0.85", "compress.round_to=2"),
    "gradual-quantized-distilled": ("prune-gradually.budget.macs=0.85",),
    "low-rank-then-prune": ("compress.budget.latency=0.85",),
    "prune-and-decompose": ("compress.budget.latency=0.9", "compress.round_to=2"),
    "restructure-mobilenet": ("restructure-bottlenecks.budget.macs=1.0",),
}


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    """--data, with labels that are what the network says."""
    graph = testing.graph(NETWORK)
    images = np.random.default_rng(1).standard_normal((6, 3, 16, 16), np.float32)
    session = Session(graph)
    labels = np.array([session.run({"image": image[None]})["scores"].argmax() for image in images])
    np.savez(tmp_path / "test.npz", image=images, labels=labels)
    return tuple(f"{key}={tmp_path / 'test.npz'}" for key in ("calibration", "test", "train"))


@pytest.mark.parametrize("name", recipe.names())
def test_plan(name: str, golden: Golden, options: tuple[str, ...]) -> None:
    graph = testing.graph(NETWORK)
    needed = {key for pass_ in recipe.load(name, data=options).passes for key in pass_.data_needed()} | {"test"}
    loaded = recipe.load(name, SET.get(name, ()), data=[each for each in options if each.split("=")[0] in needed])
    context = pipeline.Context(target.load("qcs605"), **loaded.open_data(graph), imported=graph, trains=False)
    after, rows = pipeline.run(graph, loaded.passes, context)
    lines = []
    for row in rows:
        lines.append(f"{row.name}: {row.changed} changed, {row.proof}")
        lines += [f"  {skip['node']} left alone: {skip['reason']}" for skip in row.skipped]
    nodes = [f"{node.op} {node.name}" for node in after.nodes]
    golden(f"recipes/{name}.txt", "\n".join([*lines, "", *nodes]) + "\n")
    assert {row.proof for row in rows if row.effect == "exact"} <= {"outputs equal", "unchanged"}
    assert {row.proof for row in rows if row.effect != "exact"} <= {"measured", "unchanged"}


def test_names_and_descriptions() -> None:
    assert {"fold", "simplify", "simplify-checked"} <= set(recipe.names())
    for name in recipe.names():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        text = toml.read(Path(recipe.__file__).parents[1] / "recipes" / f"{name}.toml")
        assert f"nnc compile {name} model.onnx --target" in text, "the comment says how to use it"
        assert 20 < len(toml.parse(text, name)["description"]) <= 100


def test_simplify_is_every_graph_pass() -> None:
    graph_passes = [each.name for each in passes.GRAPH_PASSES]
    assert [each.name for each in recipe.load("simplify").passes] == graph_passes
    checked = [each.name for each in recipe.load("simplify-checked").passes]
    assert checked == [*graph_passes, "check-accuracy"]
