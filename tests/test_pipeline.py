"""The pipeline proves what passes claim, records what they did, and starts again where nothing changed."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx.parser import parse_model

from nnc import graph as graphs
from nnc import pipeline, target
from nnc.checkpoint import Checkpoints
from nnc.errors import NncError
from nnc.passes.check_accuracy import CheckAccuracy
from nnc.pattern import Match, NoMatch, const, op, var
from nnc.rewrite import Context, Pass, PatternPass, node

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, 8, 8] x) => (float[1, 16, 8, 8] y)
<float[16, 3, 3, 3] W = {%s}, float k = {2.0}, float one = {1.0}>
{
    c = Conv<pads = [1, 1, 1, 1]>(x, W)
    d = Mul(c, k)
    e = Mul(d, one)
    y = Relu(e)
}
""" % ", ".join(map(str, np.random.default_rng(0).standard_normal(16 * 27).round(3)))


class DropOne(PatternPass):
    """Remove Mul by 1."""

    name = "drop-one"
    effect = "exact"
    pattern = op("Mul", var("x"), const("k"))

    def rewrite(self, match: Match) -> gs.Tensor:
        if match["k"] != 1:
            raise NoMatch(f"the factor is {match['k'].item()}")
        return match.tensors["x"]


class DoubleWeights(PatternPass):
    """Fold Mul into Conv: wrong when `factor` is not the constant."""

    name = "double-weights"
    effect = "exact"
    pattern = op("Mul", op("Conv", var("x"), const("W"), name="conv"), const("k"))
    factor: float = 2.0

    def rewrite(self, match: Match) -> gs.Node:
        return node("Conv", match.tensors["x"], match["W"] * np.float32(self.factor), **match.nodes["conv"].attrs)


class Halve(DoubleWeights):
    """The same, and honest about it."""

    name = "halve"
    effect = "approximate"


class Crash(Pass):
    """Raise."""

    name = "crash"
    effect = "exact"

    def run(self, graph: gs.Graph, context: Context) -> int:
        raise ZeroDivisionError("oops")


class Silent(Pass):
    """Say nothing of what was done."""

    name = "silent"
    effect = "exact"

    def run(self, graph: gs.Graph, context: Context) -> int:
        return None  # type: ignore[return-value]


class Tear(Pass):
    """Leave a graph that reads what nothing produces."""

    name = "tear"
    effect = "exact"

    def run(self, graph: gs.Graph, context: Context) -> int:
        del graph.nodes[0]
        return 1


@pytest.fixture
def net() -> gs.Graph:
    return graphs.from_model(parse_model(NET))


@pytest.fixture
def context() -> pipeline.Context:
    return pipeline.Context(target.load("qcs605"))


def test_exact_passes_are_proved_and_counted(net: gs.Graph, context: pipeline.Context) -> None:
    after, rows = pipeline.run(net, [DropOne(), DoubleWeights()], context)
    assert [node.op for node in after.nodes] == ["Conv", "Relu"]
    assert [(row.name, row.changed, row.proof) for row in rows] == [
        ("drop-one", 1, "outputs equal"),
        ("double-weights", 1, "outputs equal"),
    ]
    assert rows[0].skipped == [{"node": "d", "reason": "the factor is 2.0"}]
    assert [node.op for node in net.nodes] == ["Conv", "Mul", "Mul", "Relu"], "the graph given is left alone"


def test_second_run_changes_nothing(net: gs.Graph, context: pipeline.Context) -> None:
    after, _ = pipeline.run(net, [DropOne(), DoubleWeights()], context)
    _, rows = pipeline.run(after, [DropOne(), DoubleWeights()], context)
    assert [row.changed for row in rows] == [0, 0]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (DoubleWeights(factor=2.1), "it is called exact, but 'd' moved"),
        (Silent(), "TypeError: run must return the number of places changed, not NoneType"),
        (Crash(), r"ZeroDivisionError: oops \(test_pipeline.py:\d+\)$"),
        (Tear(), "before anything produces it"),
    ],
)
def test_a_broken_pass_is_named_among_others(
    net: gs.Graph, context: pipeline.Context, broken: Pass, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(pipeline.PassFailed, match=reason) as caught:
        pipeline.run(net, [DropOne(), broken, DropOne()], context)
    assert broken.name in caught.value.message
    pipeline.save_reproduction(caught.value, tmp_path / "failed")
    assert f'name = "{broken.name}"' in (tmp_path / "failed" / "recipe.toml").read_text()
    assert [node.op for node in graphs.load(tmp_path / "failed" / "before.onnx").nodes] == ["Conv", "Mul", "Relu"]


def test_approximate_pass_reports_its_noise(net: gs.Graph, context: pipeline.Context) -> None:
    _, rows = pipeline.run(net, [DropOne(), Halve(factor=1.98)], context)
    assert rows[1].snr_db == pytest.approx(40.0, abs=0.5)  # 1 % of the amplitude
    assert rows[1].proof == "measured"


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran: list[str] = []
    original = PatternPass.run

    def run(self: PatternPass, graph: gs.Graph, context: Any) -> int:
        ran.append(self.name)
        return original(self, graph, context)

    monkeypatch.setattr(PatternPass, "run", run)
    return ran


def test_missing_data_are_told_before_any_pass_runs(
    net: gs.Graph, context: pipeline.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = _counting(monkeypatch)
    with pytest.raises(NncError, match="pass check-accuracy: needs test data"):
        pipeline.run(net, [DropOne(), CheckAccuracy(max_drop=0.5)], context)
    assert ran == []


def test_unchanged_passes_are_not_run_again(
    context: pipeline.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "net.onnx"
    graphs.save(graphs.from_model(parse_model(NET)), model)
    ran = _counting(monkeypatch)

    def compile_with(*passes: Pass) -> tuple[gs.Graph, list[pipeline.Row]]:
        ran.clear()
        return pipeline.run(graphs.load(model), passes, context, Checkpoints(tmp_path / "c", model, "inputs"))

    first, _ = compile_with(DropOne(), Halve())
    assert ran == ["drop-one", "halve"]
    second, rows = compile_with(DropOne(), Halve())
    assert ran == []
    assert [row.reused for row in rows] == [True, True]
    assert graphs.to_model(first) == graphs.to_model(second)
    compile_with(DropOne(), Halve(factor=1.5))
    assert ran == ["halve"]


@pytest.mark.parametrize("damage", [b"", b"too short", None])
def test_damaged_checkpoint_is_computed_and_written_again(
    context: pipeline.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    model = tmp_path / "net.onnx"
    graphs.save(graphs.from_model(parse_model(NET)), model)
    ran = _counting(monkeypatch)

    def compile_it() -> gs.Graph:
        ran.clear()
        return pipeline.run(graphs.load(model), [Halve()], context, Checkpoints(tmp_path / "c", model, "inputs"))[0]

    expected = graphs.to_model(compile_it())
    (weights,) = (tmp_path / "c").glob("*.weights")
    content = weights.read_bytes() if damage is None else damage
    weights.write_bytes(content[:-1] + b"?" if damage is None else content)
    assert graphs.to_model(compile_it()) == expected
    assert ran == ["halve"]
    compile_it()
    assert ran == []


def test_checkpoints_do_not_copy_untouched_weights(context: pipeline.Context, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    graphs.save(graphs.from_model(parse_model(NET)), model)
    checkpoints = Checkpoints(tmp_path / "c", model, "inputs")
    pipeline.run(graphs.load(model), [DropOne()], context, checkpoints)
    assert not list((tmp_path / "c").glob("*.weights"))


def test_checkpoints_that_a_compile_does_not_use_are_pruned(context: pipeline.Context, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    graphs.save(graphs.from_model(parse_model(NET)), model)
    for factor in (2.0, 1.5):
        checkpoints = Checkpoints(tmp_path / "c", model, "inputs")
        pipeline.run(graphs.load(model), [Halve(factor=factor)], context, checkpoints)
    checkpoints.prune(checkpoints.keys([Halve(factor=1.5)]))
    assert sorted(path.suffix for path in (tmp_path / "c").iterdir()) == [".json", ".onnx", ".weights"]
