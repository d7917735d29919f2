"""The pipeline proves what passes claim, records what they did, and starts again where nothing changed."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx.parser import parse_model

from nnc import graph as graphs
from nnc import pipeline, report, target, testing
from nnc.checkpoint import Checkpoints
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.passes.check_accuracy import CheckAccuracy
from nnc.passes.fold_batchnorm import FoldBatchNorm
from nnc.pattern import Match, NoMatch, const, op, var
from nnc.rewrite import Context, Pass, PatternPass, node
from nnc.session import Session

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


class Full(Pass):
    """Write what the machine has no place for."""

    name = "full"
    effect = "exact"
    error: Any

    def run(self, graph: gs.Graph, context: Context) -> int:
        raise self.error


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


class Rename(Pass):
    """Call an output something else."""

    name = "rename"
    effect = "approximate"

    def run(self, graph: gs.Graph, context: Context) -> int:
        graph.outputs[0].name = "z"
        return 1


class Deny(Pass):
    """Say that nothing was changed."""

    name = "deny"
    effect = "exact"
    edit: Any

    def run(self, graph: gs.Graph, context: Context) -> int:
        self.edit(graph)
        return 0


@pytest.fixture
def net() -> gs.Graph:
    return graphs.from_model(parse_model(NET))


@pytest.fixture
def context() -> pipeline.Context:
    return pipeline.Context(target.load("qcs605"))


def test_a_row_has_the_tolerance_of_its_proof(context: pipeline.Context) -> None:
    text = """net (float[1, 4] x) => (float[1, 4] y) <float one = {1.0}, float s = {0.1}, uint8 z = {128}>
    { a = Mul(x, one) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }"""
    _, rows = pipeline.run(testing.graph(text), [DropOne(), DropOne()], context)
    assert [(row.proof, row.tolerance) for row in rows] == [("outputs equal", 0.05), ("unchanged", None)]


def test_exact_passes_are_proved_and_counted(net: gs.Graph, context: pipeline.Context) -> None:
    after, rows = pipeline.run(net, [DropOne(), DoubleWeights()], context)
    assert [node.op for node in after.nodes] == ["Conv", "Relu"]
    assert [(row.name, row.changed, row.proof, row.tolerance) for row in rows] == [
        ("drop-one", 1, "outputs equal", 1e-4),
        ("double-weights", 1, "outputs equal", 1e-4),
    ]
    assert rows[0].skipped == [{"node": "d", "reason": "the factor is 2.0"}]
    assert [node.op for node in net.nodes] == ["Conv", "Mul", "Mul", "Relu"], "the graph given is left alone"


def test_classes_that_are_as_likely_may_change_places(context: pipeline.Context) -> None:
    rng = np.random.default_rng(0)
    halves = {"W": rng.standard_normal((3, 4, 3, 3)), "mean": rng.standard_normal(3), "scale": np.ones(3)}
    thirds = {
        "W": halves["W"] / 3,
        "mean": halves["mean"] / 3,
        "scale": 3 * halves["scale"],
    }  # the same when normalized
    values = {name: np.concatenate([halves[name], thirds[name]]).astype(np.float32) for name in halves}
    values |= {"bias": np.zeros(6, np.float32), "var": np.ones(6, np.float32)}
    text = """net (float[1, 4, 16, 16] x) => (int64 y)
    <float[6, 4, 3, 3] W, float[6] scale, float[6] bias, float[6] mean, float[6] var>
    { a = Conv(x, W) b = BatchNormalization(a, scale, bias, mean, var) y = ArgMax<axis = 1>(b) }"""
    before = testing.graph(text, **values)
    after, (row,) = pipeline.run(before, [FoldBatchNorm()], context)
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 4, 16, 16), np.float32)}
    classes = [Session(graph).run(inputs)["y"] for graph in (before, after)]
    assert np.mean(classes[0] != classes[1]) > 0.1
    assert (row.changed, row.proof) == (1, "outputs equal")


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
        (Rename(), "the graph after it is not valid: it changed the output 'y'"),
    ],
)
def test_a_broken_pass_is_named_among_others(
    net: gs.Graph, context: pipeline.Context, broken: Pass, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(pipeline.PassFailed, match=reason) as caught:
        pipeline.run(net, [DropOne(), broken, DropOne()], context)
    assert broken.name in caught.value.message
    pipeline.save_reproduction(caught.value.before, tmp_path / "failed", "a recipe")
    assert (tmp_path / "failed" / "recipe.toml").read_text() == "a recipe"
    assert [node.op for node in graphs.load(tmp_path / "failed" / "before.onnx").nodes] == ["Conv", "Mul", "Relu"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda graph: graph.nodes[0].attrs.update(pads=[2, 1, 0, 1]),
        lambda graph: graph.nodes[0].attrs["pads"].reverse(),
        lambda graph: setattr(graph.nodes[3], "op", "Sigmoid"),
        lambda graph: graph.outputs.append(graph.nodes[0].outputs[0]),
        lambda graph: graph.nodes.pop(),
    ],
)
def test_what_a_pass_denies_is_not_blamed_on_the_next(net: gs.Graph, context: pipeline.Context, edit: Any) -> None:
    net.nodes[0].attrs["pads"] = [0, 1, 2, 1]
    with pytest.raises(pipeline.PassFailed, match=r"pass deny: .* changed it and returned 0$"):
        pipeline.run(net, [Deny(edit=edit), DropOne()], context)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device", "run.pt"), OSError(errno.EDQUOT, ""), MemoryError()]
)
def test_a_machine_that_is_full_is_no_bug_of_the_pass(
    net: gs.Graph, context: pipeline.Context, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught:
        pipeline.run(net, [Full(error=error)], context)
    assert caught.value is error
    with pytest.raises(pipeline.PassFailed, match="FileNotFoundError: gone"):
        pipeline.run(net, [Full(error=FileNotFoundError("gone"))], context)


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


class Choosy(Halve):
    """The same, for models of one input that is called x."""

    name = "choosy"
    effect = "approximate"

    def check(self, context: Context) -> None:
        assert context.imported is not None
        raise NncError(f"'{context.imported.inputs[0].name}' doesn't fit", "give another")


def test_what_a_pass_checks_is_told_before_any_runs(
    net: gs.Graph, context: pipeline.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = _counting(monkeypatch)
    with pytest.raises(NncError, match=r"^pass choosy: 'x' doesn't fit$") as error:
        pipeline.run(net, [DropOne(), Choosy()], context)
    assert error.value.hint == "give another"
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


# What passes explain and measure


class Explain(Halve):
    """The same, with everything that a pass can say of it."""

    name = "explain"
    effect = "approximate"
    error: float = 0.01

    def run(self, graph: gs.Graph, context: Context) -> int:
        changed = super().run(graph, context)
        context.decide("c", "a first thought", macs=(1, 1), params=(1, 1))
        context.decide("k", "keep", macs=(64, 64), params=(0, 0))
        macs, latency_ms = (np.int64(27648), np.float32(13824.0)), (np.float64(2.0), 1)
        context.decide("c", "halve", macs=macs, params=(432, 432), latency_ms=latency_ms, error=np.float32(0.5))
        context.curve("macs", [{"budget": 1, "error": 0, "chosen": False}, {"budget": np.float64(0.5), "error": 0.25}])
        context.predicted(macs=np.int64(20000), error=self.error, accuracy=None)
        return changed


DECISIONS = [
    {
        "layer": "c",
        "choice": "halve",
        "macs": [27648, 13824],
        "params": [432, 432],
        "latency_ms": [2.0, 1.0],
        "error": 0.5,
    },
    {"layer": "k", "choice": "keep", "macs": [64, 64], "params": [0, 0]},
]
CURVE = {
    "metric": "macs",
    "points": [
        {"budget": 0.5, "error": 0.25, "accuracy": None, "chosen": False},
        {"budget": 1.0, "error": 0.0, "accuracy": None, "chosen": False},
    ],
}


def test_a_pass_explains_itself_and_the_next_starts_anew(net: gs.Graph, context: pipeline.Context) -> None:
    _, (explained, silent) = pipeline.run(net, [Explain(factor=1.98), DropOne()], context)
    assert (explained.decisions, explained.curve) == (DECISIONS, CURVE)
    assert json.loads(json.dumps(explained.decisions)) == DECISIONS
    assert explained.predicted is not None
    assert explained.predicted["macs"] == {"before": 27648, "predicted": 20000.0, "reached": 27648}
    assert (silent.decisions, silent.curve, silent.predicted) == ([], None, None)


def test_the_predicted_error_is_measured(net: gs.Graph, context: pipeline.Context) -> None:
    _, (_, row) = pipeline.run(net, [DropOne(), Explain(factor=1.98)], context)
    assert row.predicted is not None
    assert row.predicted["error"] == {"before": 0.0, "predicted": 0.01, "reached": pytest.approx(0.01, abs=1e-4)}
    assert row.snr_db == pytest.approx(-20 * np.log10(row.predicted["error"]["reached"]), abs=0.01)


#: What is above one half, as many values as there are.
FOUND = NET.replace("float one = {1.0}", "float one = {1.0}, float half = {0.5}").replace(
    "y = Relu(e)", "y = Relu(e) g = Greater(y, half) p = Compress(y, g)"
)


@pytest.mark.parametrize("calibrated", [False, True])
def test_outputs_whose_shape_the_data_decide_are_not_compared(calibrated: bool, tmp_path: Path) -> None:
    alone, beside = (
        graphs.from_model(parse_model(FOUND.replace("(float[1, 16, 8, 8] y)", outputs)))
        for outputs in ("(float[found] p)", "(float[found] p, float[1, 16, 8, 8] y)")
    )
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32))
    data = Dataset.open(tmp_path / "data.npz", None, alone.inputs) if calibrated else None
    context = pipeline.Context(target.load("qcs605"), calibration=data)
    _, (_, row) = pipeline.run(alone, [DropOne(), Explain(factor=1.98)], context)
    assert (row.proof, row.snr_db) == ("not compared: the data decide the shape of every output", None)
    assert (row.predicted or {})["error"]["reached"] is None
    _, (_, row) = pipeline.run(beside, [DropOne(), Explain(factor=1.98)], context)
    assert (row.proof, row.snr_db) == ("measured", pytest.approx(40.0, abs=0.5))
    assert (row.predicted or {})["error"]["reached"] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize("batch", [1, 4])
def test_with_calibration_data_the_error_is_that_on_it(tmp_path: Path, batch: int) -> None:
    graph = graphs.from_model(parse_model(NET.replace("[1,", "[%d," % batch)))
    quiet = np.zeros((3, 3, 8, 8), np.float32)  # fewer samples than a batch of 4
    np.savez(tmp_path / "quiet.npz", x=quiet + np.arange(3, dtype=np.float32)[:, None, None, None] / 64)
    calibration = Dataset.open(tmp_path / "quiet.npz", None, graph.inputs)
    context = pipeline.Context(target.load("qcs605"), calibration=calibration)
    _, (row,) = pipeline.run(graph, [Bend()], context)
    assert row.predicted is not None
    assert row.snr_db < 20  # on random inputs, which are larger
    assert row.predicted["error"]["reached"] == 0.0


class Bend(Pass):
    """Cap the outputs at 1, which only large inputs reach."""

    name = "bend"
    effect = "approximate"

    def run(self, graph: gs.Graph, context: Context) -> int:
        relu = graph.nodes[-1]
        relu.op, relu.inputs = "Clip", [*relu.inputs, *(gs.Constant(f"m{m}", np.array(m, np.float32)) for m in (0, 1))]
        context.predicted(error=0.0)
        return 1


def test_a_pass_that_changed_nothing_reached_no_error(net: gs.Graph, context: pipeline.Context) -> None:
    after, _ = pipeline.run(net, [Halve()], context)
    _, (row,) = pipeline.run(after, [Explain()], context)
    assert row.predicted is not None
    assert (row.changed, row.predicted["error"]["reached"]) == (0, 0.0)


def test_explanations_survive_in_checkpoints(context: pipeline.Context, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    graphs.save(graphs.from_model(parse_model(NET)), model)
    (first,), (second,) = (
        pipeline.run(graphs.load(model), [Explain()], context, Checkpoints(tmp_path / "c", model, "inputs"))[1]
        for _ in range(2)
    )
    assert second.reused
    assert second == replace(first, reused=True)


class Say(Pass):
    """Call `method` of the context, and change nothing."""

    name = "say"
    effect = "exact"
    method: str
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any]

    def run(self, graph: gs.Graph, context: Context) -> int:
        getattr(context, self.method)(*self.arguments, **self.named)
        return 0


def say(method: str, *arguments: Any, **named: Any) -> Say:
    return Say(method=method, arguments=arguments, named=named)


@pytest.mark.parametrize(
    ("misuse", "reason"),
    [
        (say("predicted", mac=1), "ValueError: no figure is called mac, only macs, params"),
        (say("decide", "c", "keep"), "TypeError: .* missing 2 required .*'macs' and 'params'"),
        (say("decide", "c", "", macs=[1, float("nan")], params=[1, 1]), "ValueError: cannot convert float NaN"),
        (say("curve", "macs", [{"error": 1.0}]), "KeyError: 'budget'"),
        (say("curve", "macs", [{"budget": float("inf"), "error": 1}]), "the budget .* must be a number, not inf"),
        (say("once", "name", "key", lambda: np.zeros(3)), "TypeError: .*ndarray is not JSON"),
    ],
)
def test_wrong_explanations_name_the_line_of_the_pass(
    net: gs.Graph, context: pipeline.Context, misuse: Pass, reason: str
) -> None:
    with pytest.raises(pipeline.PassFailed, match=reason + r".* \(test_pipeline.py:\d+\)"):
        pipeline.run(net, [misuse], context)


def test_an_empty_curve_is_none(net: gs.Graph, context: pipeline.Context) -> None:
    _, (row,) = pipeline.run(net, [say("curve", "macs", [])], context)
    assert row.curve is None


def test_errors_that_are_not_known_stay_so(net: gs.Graph, context: pipeline.Context) -> None:
    points = [{"budget": 0.5, "error": float("nan"), "chosen": True}]
    _, (row,) = pipeline.run(net, [say("curve", "macs", points)], context)
    assert report.strict(row.curve)["points"][0]["error"] is None


def test_measurements_are_made_once_per_source_of_the_pass(context: pipeline.Context) -> None:
    measured: list[int] = []

    def measure() -> list[int]:
        measured.append(1)
        return [len(measured)]

    context.start(DropOne())
    assert [context.once("n", "key", measure) for _ in range(2)] == [[1], [1]]
    context.start(CheckAccuracy(max_drop=0.5))
    assert context.once("n", "key", measure) == [2]
    context.start(Halve())
    assert context.once("n", "key", measure) == [1]
