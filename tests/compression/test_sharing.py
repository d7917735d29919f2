"""Layers that share their weights are pruned and fitted together, and share them still."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import channels, pipeline, target, testing
from nnc import graph as graphs
from nnc.calibrate import Flow
from nnc.compression import costs, reconstruct, sharing
from nnc.compression.budget import Budget, Budgets
from nnc.compression.reconstruct import Kept
from nnc.data import Dataset
from nnc.measure import measure
from nnc.passes.compress import Compress
from nnc.passes.prune_channels import PruneChannels

SCALES = range(5)
LEVEL = "p{0} = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(p{1})"
HEAD = """
    h{0} = Conv<pads = [1, 1, 1, 1]>(l{0}, W, B) r{0} = Relu(h{0})
    y{0} = Conv<pads = [1, 1, 1, 1]>(r{0}, V, C)"""
#: A detector's head at five scales, as exporters write it: the whole head at one scale after the other.
HEADS = f"""
net (float[1, 3, 32, 32] x) => ({", ".join(f"float y{each}" for each in SCALES)})
<float[12, 3, 3, 3] U, float[12] A, float[8, 8, 3, 3] W, float[8] B, float[4, 8, 3, 3] V, float[4] C,
 {", ".join(f"float[8, 12, 1, 1] L{each}, float[8] M{each}" for each in SCALES)}>
{{
    a = Conv<pads = [1, 1, 1, 1]>(x, U, A)
    p0 = Relu(a)
    {" ".join(LEVEL.format(each, each - 1) for each in SCALES[1:])}
    {" ".join(f"l{each} = Conv(p{each}, L{each}, M{each})" for each in SCALES)}
    {" ".join(HEAD.format(each) for each in SCALES)}
}}
"""
SIAMESE = """
net (float[1, 3, 8, 8] left, float[1, 3, 8, 8] right) => (float y)
<float[8, 3, 3, 3] U, float[8] A, float[6, 8, 3, 3] W, float[6] B, float[5, 6] V, float[5] C>
{
    a = Conv(left, U, A) b = Relu(a) c = Conv(b, W, B) d = GlobalAveragePool(c) e = Flatten(d)
    f = Gemm<transB = 1, alpha = 2.0, beta = 0.5>(e, V, C)
    g = Conv(right, U, A) h = Relu(g) i = Conv(h, W, B) j = GlobalAveragePool(i) k = Flatten(j)
    l = Gemm<transB = 1, alpha = 2.0, beta = 0.5>(k, V, C)
    y = Sub(f, l)
}
"""
#: The same layer twice, one behind the other.
REPEATED = """
net (float[1, 8, 8, 8] x) => (float y) <float[8, 8, 3, 3] U, float[8, 8, 3, 3] W, float[5, 8, 3, 3] V> {
    a = Conv<pads = [1, 1, 1, 1]>(x, U) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, W) d = Relu(c)
    e = Conv<pads = [1, 1, 1, 1]>(d, W) f = Relu(e)
    y = Conv<pads = [1, 1, 1, 1]>(f, V)
}
"""
NETWORKS = {"heads": HEADS, "siamese": SIAMESE, "repeated": REPEATED}


def drawn(graph: gs.Graph, batches: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {each.name: rng.standard_normal((batches, *each.shape), np.float32) for each in graph.inputs}


def context(graph: gs.Graph, folder: Path | None = None) -> pipeline.Context:
    calibration = None
    if folder is not None:
        np.savez(folder / "images.npz", **{name: values[:, 0] for name, values in drawn(graph).items()})
        calibration = Dataset.open(folder / "images.npz", None, graph.inputs)
    return pipeline.Context(target.load("x86"), imported=graph, calibration=calibration)


def errors(before: gs.Graph, after: gs.Graph) -> np.ndarray:
    """For every output, the sums of the squared errors and of the squares about the mean, [outputs, 2]."""
    expected, found = (Flow(graph, drawn(graph)).outputs() for graph in (before, after))
    pairs = [(found[name].astype(np.float64), values.astype(np.float64)) for name, values in expected.items()]
    return np.array([[np.square(one - other).sum(), np.square(other - other.mean()).sum()] for one, other in pairs])


def weights(graph: gs.Graph) -> dict[int, list[str]]:
    """The layers by their weights."""
    found: dict[int, list[str]] = {}
    for node in graph.nodes:
        if node.op in ("Conv", "Gemm"):
            found.setdefault(id(node.inputs[1]), []).append(node.name)
    return found


def without(graph: gs.Graph, layer: str, lost: int, **options: Any) -> tuple[gs.Graph, pipeline.Context]:
    """The graph without a channel of a layer, refitted."""
    traced, after, made = channels.trace(graph), graphs.copy(graph), context(graph)
    ids = [int(traced.written(next(node for node in graph.nodes if node.name == layer))[lost])]
    channels.remove(after, traced, ids)
    readers = {name for name, (read, _) in traced.layers.items() if np.isin(read, ids).any()}
    kept = Kept(traced, frozenset(ids))
    reconstruct.fit(graph, after, drawn(graph), made, kept=kept, changed=readers, **options)
    return after, made


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_of_shared_weights_go_together(name: str) -> None:
    graph = testing.graph(NETWORKS[name])
    traced = channels.trace(graph)
    for group in traced.groups:
        after = graphs.copy(graph)
        channels.remove(after, traced, group.ids[:1].tolist())
        assert list(weights(after).values()) == list(weights(graph).values())
        testing.check_outputs(testing.zeroed(graph, traced, group.ids[:1].tolist()), after)


def test_shared_weights_cost_once() -> None:
    graph = testing.graph(HEADS)
    traced = channels.trace(graph)
    layers = costs.layers(graph, traced, traced.groups, "params")
    sizes = {id(node.inputs[1]): node.inputs[1].values.size for node in graph.nodes if node.op == "Conv"}
    widths = np.array([len(group.ids) for group in traced.groups])
    assert layers.total(widths, layers.dense) == pytest.approx(sum(sizes.values()))


def test_what_stays_of_one_layer_stays_of_those_that_share_its_weights() -> None:
    text = SIAMESE.replace("(float y)", "(float y, float c)")
    fixed = channels.trace(testing.graph(text)).fixed
    assert fixed["c"] == fixed["i"] == "'c' is an output of the graph"
    fixed = channels.trace(testing.graph(REPEATED.replace("Conv<pads = [1, 1, 1, 1]>(x, U)", "Identity(x)"))).fixed
    assert fixed["c"] == "Conv 'c' and Conv 'e' share weights, and channels of one of them stay"


@pytest.mark.parametrize(("name", "layer"), [("heads", "l0"), ("heads", "h0"), ("siamese", "a"), ("siamese", "c")])
def test_refitted_weights_are_still_shared(name: str, layer: str) -> None:
    graph = testing.graph(NETWORKS[name])
    (after, made), (plain, _) = without(graph, layer, 2), without(graph, layer, 2, layers=False)
    assert list(weights(after).values()) == list(weights(graph).values())
    assert measure(after) == measure(plain)
    assert [node.name for node in after.nodes] == [node.name for node in graph.nodes]
    assert not made.skipped
    assert errors(graph, after)[:, 0].sum() < errors(graph, plain)[:, 0].sum()


def test_one_fit_makes_up_for_all_readers() -> None:
    """A channel is the same combination of others at all scales: the weights that they share take over."""
    values = {name: each.copy() for name, each in testing.weights(testing.graph(HEADS)).items()}
    for each in SCALES:
        for one in (values[f"L{each}"], values[f"M{each}"]):
            one[-1] = 2 * one[0] - 0.5 * one[1]
    graph = testing.graph(HEADS, **values)
    after, _ = without(graph, "l0", -1)
    plain, _ = without(graph, "l0", -1, layers=False)
    missed, left = (lost / whole for lost, whole in (errors(graph, each).T for each in (plain, after)))
    assert min(missed) > 1e-2, "it is missed without"
    assert max(left) < 1e-4


def test_layers_that_wait_for_each_other_are_left_alone() -> None:
    graph = testing.graph(REPEATED)
    after, made = without(graph, "a", 2)
    assert weights(after).keys() != weights(graph).keys()
    assert list(weights(after).values()) == [["a"], ["c", "e"], ["y"]]
    assert dict(made.skipped.keys()) == {
        name: f"its weights are shared with '{other}': not refitted" for name, other in ("ce", "ec")
    }


def test_a_node_that_is_no_layer_may_read_the_weights() -> None:
    graph = testing.graph(
        """net (float[1, 3, 8, 8] x, float s) => (float y, float z)
        <float[6, 3, 3, 3] U, float[6, 6, 1, 1] V, float[5, 6, 3, 3] W>
        { a = Conv(x, U) b = Conv(a, V) y = Conv(b, W) z = Mul(W, s) }"""
    )
    after, made = without(graph, "a", 2)
    assert ("y", "its weights are shared with 'z': not refitted") in made.skipped
    assert after.nodes[2].inputs[1] is after.nodes[3].inputs[0]


@pytest.mark.parametrize(
    "text",
    [
        SIAMESE.replace("i = Conv(h, W, B)", "i = Conv(h, W, D)").replace("float[5] C", "float[5] C, float[6] D"),
        SIAMESE.replace("i = Conv(h, W, B)", "i = Conv(h, W)"),
    ],
    ids=["another bias", "no bias"],
)
def test_layers_of_other_biases_are_left_alone(text: str) -> None:
    graph = testing.graph(text)
    assert [[node.name for node in unit] for unit in sharing.units(graph) if len(unit) > 1] == [["a", "g"], ["f", "l"]]
    _, made = without(graph, "a", 2)
    assert {name for name, _ in made.skipped} == {"c", "i"}


def test_pairs_that_read_each_other_crosswise() -> None:
    """Either pair can be fitted together, but not both."""
    graph = testing.graph(
        """net (float[1, 4, 8, 8] x) => (float y, float z) <float[4, 4, 1, 1] U, float[4, 4, 1, 1] V>
        { a = Conv(x, U) y = Conv(a, V) b = Conv(x, V) z = Conv(b, U) }"""
    )
    units = [[node.name for node in unit] for unit in sharing.units(graph)]
    assert sorted(map(len, units)) == [1, 1, 1, 1] or sorted(map(len, units)) == [1, 1, 2]


@pytest.mark.parametrize("exclude", [(), ("h*", "y*")])
def test_budgets_of_parameters_are_kept_in_the_file(exclude: tuple[str, ...], tmp_path: Path) -> None:
    graph = testing.graph(HEADS)
    pass_ = PruneChannels(budget=Budget(params=0.7), round_to=1, exclude=exclude)
    result = testing.run(pass_, graph, context(graph, tmp_path))
    path = tmp_path / "model.onnx"
    graphs.save(result.graph, path)
    assert 0.6 < measure(graphs.load(path)).params / measure(graph).params <= 0.7
    assert list(weights(result.graph).values()) == list(weights(graph).values())


def test_compress_splits_no_shared_weights(tmp_path: Path) -> None:
    graph = testing.graph(HEADS)
    pass_ = Compress(budget=Budgets(params=0.7), round_to=1, methods=("prune", "svd", "spatial"))
    result = testing.run(pass_, graph, context(graph, tmp_path))
    assert measure(result.graph).params / measure(graph).params <= 0.7
    assert result.skipped["h0"] == "its weights are shared with 'h1'"
    assert [f"h{each}" for each in SCALES] in weights(result.graph).values()
