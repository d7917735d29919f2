"""prune-gradually: budgets are reached along the curve, zeros stay zeros, and a killed run ends as any other."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from pydantic import ValidationError

from nnc import graph as graphs
from nnc import packing, pipeline, target, testing
from nnc.compiling.output import OutputFolder
from nnc.compression.budget import Budget
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.measure import measure
from nnc.passes.pack_weights import PackWeights
from nnc.passes.prune_channels import PruneChannels
from nnc.passes.prune_gradually import PruneGradually
from nnc.training.options import Augment, Distill

torch = pytest.importorskip("torch")
loop = pytest.importorskip("nnc.training.loop")

NET = """
net (float[1, 3, 8, 8] x) => (float[1, 4] y)
<
    float[16, 3, 3, 3] W1, float[16] s1, float[16] b1, float[16] m1, float[16] v1,
    float[24, 16, 3, 3] W2, float[24] B2, float[24, 4] W3, float[4] B3
>
{
    c1 = Conv<pads = [1, 1, 1, 1]>(x, W1)
    n1 = BatchNormalization(c1, s1, b1, m1, v1)
    r1 = Relu(n1)
    c2 = Conv<strides = [2, 2]>(r1, W2, B2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm(f, W3, B3)
}
"""
WEIGHTS, LAYERS = ("W1", "W2", "W3"), ("c1", "c2", "y")


def network(seed: int = 0) -> gs.Graph:
    rng = np.random.default_rng(seed)
    shapes = {"W1": (16, 3, 3, 3), "W2": (24, 16, 3, 3), "W3": (24, 4)}
    scaled = {name: 0.2 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return testing.graph(NET, s1=np.ones(16), b1=np.zeros(16), m1=np.zeros(16), v1=np.ones(16), **scaled)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests that run at once would wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def context(tmp_path: Path) -> pipeline.Context:
    """Four colours as training and test data."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 4
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])[labels]
    images = (colours[:, None, None] + rng.integers(-40, 40, (96, 8, 8, 3))).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    graph = network()
    data = Dataset.open(tmp_path / "images.npz", Preprocess(mean=(0.5,), std=(0.25,)), graph.inputs)
    return pipeline.Context(target.load("x86"), train=data, test=data, imported=graph)


def gradually(**options: Any) -> PruneGradually:
    given: dict[str, Any] = {"epochs": 8, "batch": 16, "learning_rate": 0.05, "augment": Augment(crop=1)}
    if options.get("granularity") != "weights":
        given |= {"budget": Budget(macs=0.4), "round_to": 1}
    return PruneGradually(**given | options)


def zeros(graph: gs.Graph) -> float:
    """The share of zeros in the weights of layers."""
    arrays = [testing.weights(graph)[name] for name in WEIGHTS]
    return float(1 - sum(map(np.count_nonzero, arrays)) / sum(each.size for each in arrays))


def test_the_budget_is_reached_and_the_accuracy_too(context: pipeline.Context) -> None:
    graph = network()
    after, (row,) = pipeline.run(graph, [gradually()], context)
    assert (row.effect, row.proof) == ("trained", "measured")
    assert 0.34 <= row.macs / measure(graph).macs <= 0.4
    assert row.accuracy is not None
    assert row.accuracy > 0.9
    assert [node.op for node in after.nodes] == [node.op for node in graph.nodes]
    assert {each["layer"] for each in row.decisions if "channels" in each["choice"]} == {"c1", "c2"}


def test_training_follows_every_step_of_the_curve(context: pipeline.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(module: Any, plan: Any, span: Any) -> None:
        seen.append((measure(module.graph).macs / whole, span.first, span.last))

    monkeypatch.setattr(loop, "train", recorded)
    whole = measure(network()).macs
    testing.run(gradually(ramp=0.5, steps=4), network(), context)
    left, first, last = zip(*seen, strict=True)
    assert (first, last) == ((0, 1, 2, 3), (1, 2, 3, 8))
    wanted = [1 - 0.6 * (1 - (1 - step / 4) ** 3) for step in range(1, 5)]
    assert all(share - 0.06 <= found <= share for found, share in zip(left, wanted, strict=True)), (left, wanted)


def test_sparsity_is_of_all_channels(context: pipeline.Context) -> None:
    result = testing.run(gradually(budget=None, sparsity=0.5, epochs=2, ramp=1.0), network(), context)
    widths = [node.outputs[0].shape[1] for node in result.graph.nodes if node.op == "Conv"]
    assert sum(widths) == 20


def test_without_epochs_it_is_prune_channels(context: pipeline.Context) -> None:
    calibrated = replace(context, calibration=context.train)
    expected = testing.run(PruneChannels(budget=Budget(macs=0.4), round_to=1), network(), calibrated).graph
    assert graphs.to_model(testing.run(gradually(epochs=0), network(), context).graph) == graphs.to_model(expected)


def test_a_plan_prunes_and_does_not_train(context: pipeline.Context) -> None:
    expected = testing.run(gradually(epochs=0), network(), context).graph
    context.trains = False
    result = testing.run(gradually(), network(), context)
    assert "only nnc compile trains" in result.skipped.values()
    assert graphs.to_model(result.graph) == graphs.to_model(expected)
    testing.check_unchanged(
        gradually(granularity="weights", sparsity=0.5), network(), "only nnc compile trains", context
    )


@pytest.mark.parametrize("ranking", ["global", "per-layer"])
def test_weights_become_zeros(context: pipeline.Context, ranking: str) -> None:
    graph = network()
    after, (row,) = pipeline.run(graph, [gradually(granularity="weights", sparsity=0.7, ranking=ranking)], context)
    assert zeros(after) == pytest.approx(0.7, abs=0.005)
    assert row.accuracy is not None
    assert row.accuracy > 0.9
    assert {each["layer"]: "weights zero" in each["choice"] for each in row.decisions} == dict.fromkeys(LAYERS, True)


def test_layers_left_out_keep_their_weights(context: pipeline.Context) -> None:
    options = {"granularity": "weights", "sparsity": 0.5, "exclude": ("c1",), "epochs": 0}
    result = testing.run(gradually(**options), network(), context)
    assert result.skipped == {"c1": "excluded by the recipe"}
    assert np.count_nonzero(testing.weights(result.graph)["W1"]) == 16 * 27
    with pytest.raises(NncError, match="no weights are left to prune"):
        testing.run(gradually(**options | {"exclude": ("*",)}), network(), context)


PARTS = """
net (float[1, 3, 8, 8] x) => (float[1, 4] y)
<
    int8[16, 3, 3, 3] Q, float step, float[16] B1, float[16, 1, 1, 1] k, float[16] B2, float[16, 16, 1, 1] V,
    float[16] B3, float[24, 16, 3, 3] W2, float[24] B4, float[24, 4] W3, float[1, 4] B5
>
{
    W1 = DequantizeLinear(Q, step)
    quantized = Conv(x, W1, B1)
    scaled = Conv<group = 16>(quantized, k, B2)
    U = Sigmoid(V)
    computed = Conv(scaled, U, B3)
    c2 = Conv(computed, W2, B4)
    p = GlobalAveragePool(c2)
    f = Flatten(p)
    y = Gemm(f, W3, B5)
}
"""


def test_layers_without_weights_of_their_own_are_left_alone(context: pipeline.Context) -> None:
    rng = np.random.default_rng(0)
    given = {"Q": rng.integers(-9, 9, (16, 3, 3, 3)), "step": 0.02, "B5": [[0.1, 0.2, 0.3, 0.4]]}
    graph = testing.graph(PARTS, **given)
    result = testing.run(gradually(granularity="weights", sparsity=0.5, epochs=0), graph, context)
    assert result.skipped == {
        "quantized": "its weights are quantized",
        "scaled": "its weights are one value per channel",
        "computed": "its weights are computed",
    }
    found = testing.weights(result.graph)
    assert {name for name, each in found.items() if not each.all()} - {"Q"} == {"W2", "W3"}
    assert context.explanation.decisions.keys() == {"c2", "y"}


def test_patience_needs_epochs_behind_the_ramp() -> None:
    """There is nothing to judge while weights go: samples would be held back for nothing."""
    for options in ({"ramp": 1.0}, {"ramp": 0.95, "epochs": 10}):
        with pytest.raises(ValidationError, match="'patience' judges the epochs behind the ramp, and there are none"):
            gradually(granularity="weights", sparsity=0.5, patience=2, **options)
    gradually(granularity="weights", sparsity=0.5, patience=2, ramp=0.5)
    gradually(patience=2, ramp=1.0)


def test_zeros_are_packed(context: pipeline.Context) -> None:
    dense = testing.weights(network())["W2"]
    assert packing.packed_bytes(dense) > 0.8 * dense.nbytes
    passes = [gradually(granularity="weights", sparsity=0.9, epochs=1), PackWeights()]
    after, (_, row) = pipeline.run(network(), passes, context)
    assert packing.packed_bytes(testing.weights(after)["W2"]) < 0.3 * dense.nbytes
    assert any(each["choice"].startswith("13.8 kB packed to ") for each in row.decisions), "the report says so"
    assert (packing.weight_bytes(after) or 0) < 0.4 * measure(network()).weight_bytes


@pytest.mark.parametrize("options", [{}, {"granularity": "weights", "sparsity": 0.7}])
def test_early_stop_judges_what_is_pruned_to_the_end(context: pipeline.Context, options: dict[str, Any]) -> None:
    """Best is a network before the first zero: it isn't taken."""
    after = testing.run(gradually(patience=1, holdout=0.25, epochs=6, **options), network(), context).graph
    if options:
        assert zeros(after) == pytest.approx(0.7, abs=0.005)
    else:
        assert measure(after).macs <= 0.4 * measure(network()).macs


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("options", "epoch"),
    [({}, 2), ({}, 7), ({"granularity": "weights", "sparsity": 0.7}, 3), ({"patience": 8}, 6)],
)
def test_killed_in_the_middle_of_an_epoch(
    context: pipeline.Context, tmp_path: Path, options: dict[str, Any], epoch: int
) -> None:
    expected = graphs.to_model(testing.run(gradually(**options), network(), context).graph)

    def kill(step: str, done: int, total: int) -> None:
        if f"epoch {epoch} of 8" in step and done % 6 == 3:
            raise Killed

    seen = set()

    def see(step: str, done: int, total: int) -> None:
        seen.add(step.split(",")[1] if ", epoch" in step else "")

    store = OutputFolder(tmp_path / "out")
    with pytest.raises(Killed):
        testing.run(gradually(**options), network(), replace(context, store=store, progress=kill))
    found = testing.run(gradually(**options), network(), replace(context, store=store, progress=see)).graph
    assert graphs.to_model(found) == expected
    assert seen - {""} == {f" epoch {number} of 8" for number in range(epoch, 9)}, "what is done is not done again"


def test_it_learns_from_a_teacher_that_is_wider(context: pipeline.Context, tmp_path: Path) -> None:
    trained, _ = pipeline.run(network(), [gradually(granularity="weights", sparsity=0.0)], context)
    with np.load(tmp_path / "images.npz") as data:
        np.savez(tmp_path / "unlabelled.npz", images=data["images"])
    context.train = Dataset.open(tmp_path / "unlabelled.npz", Preprocess(mean=(0.5,), std=(0.25,)), trained.inputs)
    context.imported = trained
    taught = gradually(distill=Distill(activation_boundary=0.5), epochs=6)
    assert taught.data_needed() == ("train",)
    _, (row,) = pipeline.run(trained, [taught], context)
    assert row.accuracy is not None
    assert row.accuracy > 0.9


# fmt: off
@pytest.mark.parametrize(("options", "message"), [
    ({}, "give either 'sparsity' or 'budget'"),
    ({"sparsity": 0.5, "budget": {"macs": 0.5}}, "give either 'sparsity' or 'budget'"),
    ({"granularity": "weights", "budget": {"params": 0.5}}, "'budget' is for channels: for weights give 'sparsity'"),
    ({"granularity": "weights", "sparsity": 0.5, "round_to": 4}, "'round_to' is for channels"),
    ({"granularity": "weights", "sparsity": 0.5, "importance": "l1"}, "'importance' is for channels"),
    ({"granularity": "filters", "sparsity": 0.5}, "'channels' or 'weights'"),
    ({"sparsity": 0.5, "ramp": 0.0}, "greater than 0"),
    ({"sparsity": 0.5, "steps": 0}, "greater than or equal to 1"),
])
def test_wrong_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneGradually.model_validate(options)
# fmt: on


def test_a_budget_out_of_reach_is_told_before_training(
    context: pipeline.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("it trained"))
    with pytest.raises(NncError, match="can't be reached"):
        testing.run(gradually(budget=Budget(macs=0.01)), network(), context)
