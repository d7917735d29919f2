"""check-accuracy: compares with the imported model, and stops a compile that lost too much."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from pydantic import ValidationError

from nnc import accuracy, pipeline, target, testing
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.passes.check_accuracy import CheckAccuracy
from nnc.rewrite import Context, Pass

# The sample is its own scores; the classes are reversed when the factor is negative.
NET = "net (float[1, 4] x) => (float[1, 4] y) <float k = {1.0}> { y = Mul(x, k) }"


class Reverse(Pass):
    """Change the sign of the scores."""

    name = "reverse"
    effect = "approximate"

    def run(self, graph: gs.Graph, context: Context) -> int:
        graph.nodes[0].inputs[1] = gs.Constant("minus", np.array(-1, np.float32))
        return 1


@pytest.fixture
def context(tmp_path: Path) -> pipeline.Context:
    """Ten samples of which the model knows nine, and its reverse one."""
    scores = np.tile(np.arange(4, dtype=np.float32), (10, 1))
    np.savez(tmp_path / "test.npz", x=scores, labels=np.array([3] * 9 + [0]))
    test = Dataset.open(tmp_path / "test.npz", None, [gs.Variable("x", np.float32, [1, 4])])
    return pipeline.Context(target.load("x86"), test=test)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[gs.Graph]:
    """The graphs that were evaluated."""
    graphs: list[gs.Graph] = []
    original = accuracy.evaluate

    def evaluate(graph: gs.Graph, *arguments: Any, **options: Any) -> accuracy.Accuracy:
        graphs.append(graph)
        return original(graph, *arguments, **options)

    monkeypatch.setattr(accuracy, "evaluate", evaluate)
    return graphs


def test_same_accuracy_passes(context: pipeline.Context) -> None:
    graph = testing.graph(NET)
    after, (row,) = pipeline.run(graph, [CheckAccuracy(max_drop=0.0)], context)
    assert after is graph
    assert (row.name, row.effect, row.changed, row.proof) == ("check-accuracy", "exact", 0, "unchanged")


def test_drop_stops_the_compile(context: pipeline.Context) -> None:
    passes = [Reverse(), CheckAccuracy(max_drop=0.01)]
    with pytest.raises(
        NncError, match=r"^pass check-accuracy: .* from 0\.9000 to 0\.1000, by 0\.8000; max_drop is 0\.01$"
    ):
        pipeline.run(testing.graph(NET), passes, context)


def test_a_plan_tells_the_drop_and_goes_on(context: pipeline.Context) -> None:
    context.trains = False
    _, rows = pipeline.run(testing.graph(NET), [Reverse(), CheckAccuracy(max_drop=0.01), Reverse()], context)
    assert [row.accuracy for row in rows] == [pytest.approx(0.1), None, pytest.approx(0.1)]
    (left,) = rows[1].skipped
    assert left["node"] == "y"
    assert left["reason"].startswith("the accuracy dropped from 0.9000 to 0.1000, by 0.8000; max_drop is 0.01: ")


def test_drop_that_is_allowed(context: pipeline.Context) -> None:
    _, rows = pipeline.run(testing.graph(NET), [Reverse(), CheckAccuracy(max_drop=0.8)], context)
    assert rows[0].accuracy == pytest.approx(0.1)


def test_every_graph_is_evaluated_once(context: pipeline.Context, evaluated: list[gs.Graph]) -> None:
    graph = testing.graph(NET)
    context.accuracy(graph)
    check = CheckAccuracy(max_drop=0.8)
    after, _ = pipeline.run(graph, [check, Reverse(), check, check], context)
    assert [each is after for each in evaluated] == [False, True]


def test_a_gain_is_no_drop(context: pipeline.Context) -> None:
    worse = testing.graph(NET, k=-1)
    worse.nodes[0].inputs[1].values = np.array(-1, np.float32)
    context.imported = worse
    pipeline.run(testing.graph(NET), [CheckAccuracy(max_drop=0.0)], context)


def test_without_test_data() -> None:
    context = pipeline.Context(target.load("x86"))
    with pytest.raises(NncError, match="pass check-accuracy: needs test data") as caught:
        pipeline.run(testing.graph(NET), [CheckAccuracy(max_drop=0.5)], context)
    assert caught.value.hint == "give it with --data test=PATH or in the recipe's [data]"


@pytest.mark.parametrize("max_drop", [-0.1, 1.5, None])
def test_max_drop_is_a_share(max_drop: float | None) -> None:
    with pytest.raises(ValidationError):
        CheckAccuracy(max_drop=max_drop)
