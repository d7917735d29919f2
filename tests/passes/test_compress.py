"""compress: one plan of widths and ranks that keeps within the budget, and tells the truth about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import accuracy, measure, pipeline, target, testing
from nnc import graph as graphs
from nnc.compression import reconstruct
from nnc.compression.budget import Budget, Budgets
from nnc.compression.sensitivity import roots, scaled
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.passes.compress import Compress
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.passes.prune_channels import PruneChannels
from nnc.session import Session


@pytest.fixture(scope="module")
def network(written_example: Path) -> tuple[gs.Graph, Dataset, Dataset]:
    """The trained example, folded, with its calibration and test data."""
    graph = graphs.load(written_example / "model.onnx")
    preprocess = Preprocess(mean=(0.5,), std=(0.25,))
    data = [Dataset.open(written_example / f"{name}.npz", preprocess, graph.inputs) for name in ("calibration", "test")]
    graph, _ = pipeline.run(graph, [FoldBatchNorm()], pipeline.Context(target.load("x86")))
    return graph, data[0].subset(0, 200), data[1]


def run(pass_: Any, network: Any, board: str = "x86", store: Any = None) -> tuple[gs.Graph, pipeline.Row]:
    graph, calibration, _ = network
    context = pipeline.Context(target.load(board), calibration=calibration, data_key="example")
    if store is not None:
        context.store = store
    after, (row,) = pipeline.run(graph, [pass_], context)
    return after, row


@pytest.mark.parametrize(
    ("board", "metric", "share"),
    [("x86", "macs", 0.6), ("qcs605", "params", 0.6), ("qcs605", "latency", 0.8)],
)
def test_budgets_are_kept_and_used_up(network: Any, board: str, metric: str, share: float) -> None:
    pass_ = Compress(budget=Budget(**{metric: share}), round_to=1, methods=("prune", "svd", "spatial"))
    after, row = run(pass_, network, board)
    figure = "latency_ms" if metric == "latency" else metric
    context = pipeline.Context(target.load(board))

    def cost(graph: gs.Graph) -> float:
        return context.predict(graph).latency_ms if metric == "latency" else getattr(measure.measure(graph), metric)

    reached = cost(after) / cost(network[0])
    assert share - 0.02 <= reached <= share
    assert row.predicted is not None
    assert row.predicted[figure]["predicted"] == pytest.approx(row.predicted[figure]["reached"])


def test_all_figures_of_a_budget_are_kept(network: Any) -> None:
    before = measure.measure(network[0])

    def left(budget: Budgets) -> tuple[float, float, pipeline.Row]:
        after, row = run(Compress(budget=budget, round_to=1, methods=("prune", "svd")), network)
        figures = measure.measure(after)
        return figures.macs / before.macs, figures.params / before.params, row

    macs, params, alone = left(Budgets(macs=0.6))
    assert (macs, params) == left(Budget(macs=0.6))[:2]
    assert left(Budgets(macs=0.6, params=min(1.0, params + 0.01)))[:2] == (macs, params), "only one figure binds"
    both = left(Budgets(macs=0.6, params=params - 0.1))
    assert both[0] <= 0.6
    assert params - 0.15 <= both[1] <= params - 0.1
    assert alone.predicted is not None
    assert both[2].predicted is not None
    assert both[2].predicted["error"]["predicted"] > alone.predicted["error"]["predicted"]


def test_layers_too_wide_for_moments_are_split_by_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruct, "MOST_COLUMNS", 20)
    rng = np.random.default_rng(0)
    W = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 30))
    graph = testing.graph("net (float[1, 40] x) => (float y) <float[40, 30] W> { y = MatMul(x, W) }", W=W)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 40)).astype(np.float32))
    calibration = Dataset.open(tmp_path / "x.npz", None, graph.inputs)
    context = pipeline.Context(target.load("x86"), imported=graph, calibration=calibration, data_key="drawn")
    after = testing.run(Compress(budget=Budget(params=0.2), round_to=1), graph, context).graph
    assert [list(node.inputs[1].shape) for node in after.nodes] == [[3, 40], [30, 3]]


@pytest.mark.parametrize("metric", ["macs", "params", "latency"])
def test_latencies_of_choices_are_predicted_only_for_budgets_of_latency(network: Any, metric: str) -> None:
    graph, calibration, _ = network
    steps: set[str] = set()
    context = pipeline.Context(
        target.load("qcs605"), calibration=calibration, progress=lambda step, done, total: steps.add(step)
    )
    pipeline.run(graph, [Compress(budget=Budget(**{metric: 0.9}), round_to=1, methods=("prune", "svd"))], context)
    assert ("predict ranks" in steps) == (metric == "latency")


def test_half_of_the_macs_cost_little_accuracy(network: Any) -> None:
    graph, _, test = network
    after, row = run(Compress(budget=Budget(macs=0.5), round_to=1), network)
    plain, _ = pipeline.run(
        graph,
        [PruneChannels(budget=Budget(macs=0.5), importance="l2", round_to=1)],
        pipeline.Context(target.load("x86")),
    )
    before, found, magnitude = (accuracy.evaluate(each, test).top1 for each in (graph, after, plain))
    assert found >= before - 0.02
    assert found > magnitude
    assert row.curve is not None
    errors = [point["error"] for point in row.curve["points"]]
    assert errors == sorted(errors, reverse=True)
    assert sum(point["chosen"] for point in row.curve["points"]) == 1


def test_decisions_add_up_to_what_the_graph_is(network: Any) -> None:
    after, row = run(Compress(budget=Budget(macs=0.5), round_to=1), network)
    assert sum(each["macs"][1] for each in row.decisions) == measure.measure(after).macs
    assert sum(each["macs"][0] for each in row.decisions) == measure.measure(network[0]).macs
    changed = [each for each in row.decisions if each["choice"] != "keep"]
    assert len(changed) >= row.changed > 0


class Keeping(dict):
    """A store that keeps what is computed."""

    def once(self, name: str, key: str, compute: Any) -> Any:
        if (name, key) not in self:
            self[name, key] = json.loads(json.dumps(compute()))
        return self[name, key]


def measured(store: Keeping) -> int:
    """How often a network was measured."""
    return sum(name == "compress" for name, _ in store)


def test_other_budgets_use_the_measurements_again(network: Any) -> None:
    store = Keeping()
    first, _ = run(Compress(budget=Budget(macs=0.7), round_to=1), network, store=store)
    again, _ = run(Compress(budget=Budget(macs=0.5), round_to=1), network, store=store)
    assert measured(store) == 1
    fresh, _ = run(Compress(budget=Budget(macs=0.5), round_to=1), network)
    assert graphs.to_model(again).SerializeToString() == graphs.to_model(fresh).SerializeToString()
    assert measure.measure(again).macs < measure.measure(first).macs
    run(Compress(budget=Budget(macs=0.5), methods=("spatial",), round_to=1), network, store=store)
    assert measured(store) == 2


COLOURS = """
net (float[1, 3, 32, 32] x) => (float[1, 3] y)
<float[12, 3, 3, 3] W, float[12, 12, 3, 3] U, float[3, 12] V>
{
    c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, W)
    r = Relu(c)
    d = Conv<pads = [1, 1, 1, 1]>(r, U)
    s = Relu(d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm<transB = 1>(f, V)
}
"""


def colours(folder: Path, labels: bool | Callable[[np.ndarray], np.ndarray]) -> tuple[gs.Graph, Dataset, None]:
    """A network that tells the colours of images that have one colour each: no pixel but one is needed."""
    graph = testing.graph(COLOURS)
    images = np.random.default_rng(0).standard_normal((48, 3, 1, 1)).astype(np.float32) * np.ones((32, 32), np.float32)
    scores = np.concatenate([Session(graph).run({"x": each[None]})["y"] for each in images])
    told = {"labels": labels(scores) if callable(labels) else scores.argmax(1)} if labels else {}
    arrays = {"x": images} | told
    np.savez(folder / "colours.npz", **arrays)
    return graph, Dataset.open(folder / "colours.npz", None, graph.inputs), None


def test_images_become_smaller_where_labels_tell_that_less_is_lost(tmp_path: Path) -> None:
    network = colours(tmp_path, labels=True)
    after, row = run(Compress(budget=Budget(macs=0.5), round_to=1), network)
    assert next(node for node in after.nodes if node.op == "Resize").outputs[0].shape[2] < 32
    assert measure.measure(after).macs <= 0.5 * measure.measure(network[0]).macs
    assert any(" x " in each["choice"] for each in row.decisions)
    assert sum(each["macs"][1] for each in row.decisions) == measure.measure(after).macs
    assert row.predicted["macs"]["predicted"] == row.predicted["macs"]["reached"]


UNTOLD = "without labels of its classes the calibration data don't tell what smaller images lose"


@pytest.mark.parametrize(
    ("labels", "fields", "reason"),
    [
        (False, {}, UNTOLD),
        (lambda scores: np.full(len(scores), 7), {}, UNTOLD),
        (lambda scores: scores.argmin(1), {}, UNTOLD),
        (True, {"exclude": ("nothing",)}, "smaller images would change the layers that the recipe excludes"),
        (True, {"methods": ("prune",)}, None),
    ],
)
def test_images_keep_their_size(tmp_path: Path, labels: Any, fields: dict, reason: str | None) -> None:
    after, row = run(Compress(budget=Budget(macs=0.5), round_to=1, **fields), colours(tmp_path, labels))
    assert all(node.op != "Resize" for node in after.nodes)
    assert [each["reason"] for each in row.skipped if "smaller images" in each["reason"]] == (
        [reason] if reason else []
    )


def left_out(row: pipeline.Row) -> list[str]:
    """The layers of branches that were left out."""
    return [layer["layer"] for layer in row.decisions if layer["choice"] == "left out"]


@pytest.mark.parametrize(("methods", "share"), [(("drop",), 0.8), (("prune", "svd", "drop"), 0.65)])
def test_branches_are_left_out(network: Any, methods: tuple[Any, ...], share: float) -> None:
    graph, _, test = network
    context = pipeline.Context(target.load("x86"))
    after, row = run(Compress(budget=Budget(latency=share), methods=methods), network)
    gone = left_out(row)
    assert gone
    assert all(layer["macs"][1] == layer["params"][1] == 0 for layer in row.decisions if layer["layer"] in gone)
    assert not set(gone) & {node.name for node in after.nodes}
    assert sum(layer["macs"][1] for layer in row.decisions) == measure.measure(after).macs
    assert context.predict(after).latency_ms <= share * context.predict(graph).latency_ms
    top1 = [accuracy.evaluate(each, test).top1 for each in (graph, after)]
    assert top1[1] > top1[0] - 0.25


def test_branches_with_excluded_layers_stay(network: Any) -> None:
    _, row = run(Compress(budget=Budget(latency=0.9), methods=("drop",)), network)
    first, *_ = left_out(row)
    _, row = run(Compress(budget=Budget(latency=0.9), methods=("drop",), exclude=(first,)), network)
    assert left_out(row)
    assert first not in left_out(row)
    assert "the recipe excludes a layer of the branch" in [each["reason"] for each in row.skipped]


@pytest.mark.parametrize("methods", [("prune",), ("svd",), ("tucker",), ("cp",)])
def test_methods_are_the_only_ones(network: Any, methods: tuple[Any, ...]) -> None:
    after, row = run(Compress(budget=Budget(macs=0.8), methods=methods, round_to=1), network)
    choices = " ".join(each["choice"] for each in row.decisions)
    assert row.changed > 0
    assert ("channels" in choices) == ("prune" in methods) or "prune" in methods
    assert len(after.nodes) == len(network[0].nodes) or methods != ("prune",)


def test_products_of_tokens_have_no_height_and_width(tmp_path: Path) -> None:
    graph = testing.graph(
        """net (float[1, 9, 6] x) => (float y) <float[6, 16] V, float[16, 5] W>
        { a = MatMul(x, V) r = Relu(a) y = MatMul(r, W) }"""
    )
    np.savez(tmp_path / "tokens.npz", x=np.random.default_rng(0).standard_normal((40, 9, 6), np.float32))
    data = Dataset.open(tmp_path / "tokens.npz", None, graph.inputs)
    _, row = run(Compress(budget=Budgets(macs=0.5), round_to=1, methods=("prune",)), (graph, data, None))
    assert [each["choice"] for each in row.decisions] == ["16 -> 8 channels", "reads fewer channels"]


def test_excluded_layers_stay(network: Any) -> None:
    after, row = run(Compress(budget=Budget(macs=0.8), exclude=("stage2*", "classifier*"), round_to=1), network)
    before = {node.name: node.inputs[1].shape for node in network[0].nodes if node.op in ("Conv", "Gemm")}
    for node in after.nodes:
        if node.name in before and node.name.startswith("stage2"):
            assert node.outputs[0].shape[1] == before[node.name][0]
    assert any(entry["reason"] == "excluded by the recipe" for entry in row.skipped)


def test_a_budget_out_of_reach_is_refused(network: Any) -> None:
    with pytest.raises(NncError, match=r"pass compress: the budget of 0.001 can't be reached: .* is left"):
        run(Compress(budget=Budget(macs=0.001), include=("stage1*",)), network)


def test_calibration_data_is_needed() -> None:
    graph = testing.graph("net (float[1, 4, 8, 8] x) => (float y) <float[8, 4, 3, 3] W> { y = Conv(x, W) }")
    with pytest.raises(NncError, match="pass compress: needs calibration data"):
        pipeline.run(graph, [Compress(budget=Budget(macs=0.5))], pipeline.Context(target.load("x86")))


def test_outputs_that_matter_are_kept_best() -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((6, 10, 3, 3))
    factors = roots(np.array([1.0, 0.0, 4.0, 1.0, 1.0, 1.0]))
    assert factors[2] == 2.0
    assert 0 < factors[1] < 0.2
    assert np.allclose(scaled(scaled(W, factors), 1 / factors), W)
