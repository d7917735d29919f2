"""Verification: what counts as a broken graph, as a moved output, and as rounding."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import testing, verify

TEXT = "net (float[2, 3] x) => (float y) <float[3] c> { a = Relu(x) b = Add(a, c) y = Neg(b) }"


def _rename_tensor(graph: gs.Graph) -> None:
    graph.nodes[0].outputs[0].name = "b"


def _rename_node(graph: gs.Graph) -> None:
    graph.nodes[0].name = graph.nodes[1].name


def _reverse(graph: gs.Graph) -> None:
    graph.nodes.reverse()


def _lose_node(graph: gs.Graph) -> None:
    del graph.nodes[1]


def _lose_output(graph: gs.Graph) -> None:
    del graph.nodes[2]


def _wrong_shape(graph: gs.Graph) -> None:
    graph.nodes[0].outputs[0].shape = [2, 4]


def _wrong_type(graph: gs.Graph) -> None:
    graph.nodes[1].inputs[1] = gs.Constant("d", np.zeros(3, np.float64))


def _wrong_operator(graph: gs.Graph) -> None:
    graph.nodes[0].op = "Softmaxx"


def _wrong_attribute(graph: gs.Graph) -> None:
    graph.nodes[0].attrs["alpha"] = 1.0


def _wrong_inputs(graph: gs.Graph) -> None:
    graph.nodes[0].inputs.append(graph.inputs[0])


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (_rename_tensor, "two tensors are called 'b'"),
        (_rename_node, "two nodes are called 'b'"),
        (_reverse, "node 'y' reads 'b' before anything produces it"),
        (_lose_node, "node 'y' reads 'b' before anything produces it"),
        (_lose_output, "nothing produces the output 'y'"),
        (_wrong_shape, r"differ in dimension 1: \(3\) vs \(4\)"),
        (_wrong_type, "inconsistent type"),
        (_wrong_attribute, "nrecognized attribute: alpha"),
        (_wrong_inputs, "input size 2 not in range"),
    ],
)
def test_broken_graphs(break_it: Callable[[gs.Graph], None], reason: str) -> None:
    graph = testing.graph(TEXT)
    verify.check_invariants(graph)
    break_it(graph)
    with pytest.raises(verify.BrokenGraph, match=reason) as caught:
        verify.check_invariants(graph)
    assert "\n" not in str(caught.value)


def test_operator_nobody_knows_is_no_breach() -> None:
    graph = testing.graph(TEXT)
    _wrong_operator(graph)
    verify.check_invariants(graph)


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("reference", "result", "expected"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-9], INF),
        ([1.0, 2.0], [1.0], INF),
        ([1.0, NAN], [1.0, NAN], 0.0),
        ([1.0, INF], [1.0, 3.0], 0.0),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, 2.0], [1.0, INF], INF),
        ([], [], 0.0),
    ],
)
def test_difference(reference: list[float], result: list[float], expected: float) -> None:
    assert verify.difference(np.array(reference, np.float32), np.array(result, np.float32)) == expected


def test_integers_are_equal_or_not() -> None:
    assert verify.difference(np.array([1, 2]), np.array([1, 2])) == 0
    assert verify.difference(np.array([1, 2]), np.array([1, 3])) == INF
    assert verify.largest_difference({"y": np.array([1])}, {"z": np.array([1])}) == INF


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_floats_of_any_type_are_compared_as_numbers(dtype: str) -> None:
    reference = np.array([1.0, -4.0], np.float32).astype(np.dtype(dtype))
    assert verify.difference(reference, (reference.astype(np.float32) + 0.5).astype(reference.dtype)) == 0.125


def moved(text: str, change: Callable[[np.ndarray], np.ndarray], dtype: str = "float") -> bool:
    """Whether another output y than what the graph computes is more than rounding."""
    graph = testing.graph(text.replace("float", dtype))
    found = verify.reference(graph, verify.probe_inputs(graph, 0))
    return verify.largest_difference(found, {"y": change(found["y"])}, graph) > verify.tolerance(graph)


def one_of(step: int) -> Callable[[np.ndarray], np.ndarray]:
    """Every so many elements are one more."""

    def change(values: np.ndarray) -> np.ndarray:
        other = values.copy()
        other.reshape(-1)[::step] += np.ones((), values.dtype)
        return other

    return change


CLASSES = "net (float[1, 9, 120, 120] x) => (int64 y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"
FEW = "net (float[1, 9, 3] x) => (int64 y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"
CAST = "net (float[1, 9, 120, 120] x) => (float y) { k = ArgMax<axis = 1>(x) y = Cast<to = 1>(k) }"
MASK = """net (float[120, 120] x) => (uint8 y)
{ p = Relu(x) k = Greater(x, p) n = Not(k) f = Cast<to = 1>(n) y = Cast<to = 2>(f) }"""
LEVELS = "net (float[30, 30] x) => (uint8 y) <float s = {0.05}, uint8 z = {128}> { y = QuantizeLinear(x, s, z) }"
FLATTENED = LEVELS.replace("y =", "q =").replace("}>", "}, int64[1] w = {900}>").replace(") }", ") y = Reshape(q, w) }")
PIXELS = "net (float[30, 30] x) => (uint8 y) <float s = {60.0}> { a = Abs(x) b = Mul(a, s) y = Cast<to = 2>(b) }"
WHOLE = "net (int64[900] x) => (int64 y) <int64 s = {3}> { y = Mul(x, s) }"
SIZES = "net (float[2, 3, 4] x) => (int64 y) { y = Shape(x) }"


@pytest.mark.parametrize(
    ("text", "step", "dtype", "expected"),
    [
        (CLASSES, 14_400, "float", False),  # one of 14,400 pixels, where two classes are as likely
        (CLASSES, 1_000, "float", True),
        (CLASSES, 1_000, "float16", False),
        (CLASSES, 1, "float16", True),
        (FEW, 3, "float16", True),  # one of three
        (CAST, 14_400, "float", False),
        (CAST, 1, "float", True),
        (MASK, 14_400, "float", False),
        (MASK, 1, "float16", True),
        (LEVELS, 1, "float", False),  # a step of what are 256
        (FLATTENED, 1, "float", False),
        (PIXELS, 900, "float", False),
        (PIXELS, 1, "float", True),
        (WHOLE, 900, "float", True),
        (SIZES, 3, "float16", True),
    ],
)
def test_integers_move_as_far_as_floats_have_a_part_in_them(text: str, step: int, dtype: str, expected: bool) -> None:
    assert not moved(text, lambda values: values, dtype)
    assert moved(text, one_of(step), dtype) == expected


@pytest.mark.parametrize("text", [LEVELS, FLATTENED, PIXELS])
def test_levels_that_are_far_off_have_moved(text: str) -> None:
    assert moved(text, lambda values: values[::-1].copy())
    assert moved(text, lambda values: np.where(np.indices(values.shape).sum(0) == 7, values ^ 128, values))


def choices(text: str, scores: list[float]) -> tuple[gs.Graph, dict[str, np.ndarray]]:
    graph = testing.graph(text)
    return graph, verify.reference(graph, {"x": -np.array([scores], graph.inputs[0].dtype)})


TOP = "net (float[1, 3] x) => (int64 y) <int64[1] k = {2}> { s = Neg(x) v, y = TopK(s, k) }"
BEST = """net (float[1, 3] x) => (int32 y) <int64[1] one = {1}>
{ s = Neg(x) k = ArgMax<axis = -1, keepdims = 0>(s) i = Cast<to = 6>(k) y = Unsqueeze(i, one) }"""


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_of_scores_that_are_as_good_rounding_may_choose_either(dtype: str) -> None:
    graph, found = choices(TOP.replace("float", dtype), [5, 4.0001, 4])
    assert found["y"].tolist() == [[0, 1]]
    for other, much in (([0, 2], False), ([1, 0], True), ([0, 0], True), ([0, 3], True), ([0, -1], True)):
        moved = verify.largest_difference(found, {"y": np.array([other])}, graph)
        assert (moved > verify.tolerance(graph)) == much, other
    graph, found = choices(BEST.replace("float", dtype), [3, 5, 5.0001])
    for best, much in ((0, True), (1, False), (2, False), (3, True)):
        moved = verify.largest_difference(found, {"y": np.array([[best]], np.int32)}, graph)
        assert (moved > verify.tolerance(graph)) == much, best


def test_few_levels_are_compared_by_how_many_differ() -> None:
    levels = np.array([0, 1, 1])
    assert verify.difference(levels, np.array([0, 1, 0]), "rounded") == pytest.approx(1 / 3)
    assert verify.difference(levels, 1 - levels, "rounded") == 1


def test_snr() -> None:
    signal = {"y": np.ones(4, np.float32), "k": np.array([3])}
    assert verify.snr_db(signal, signal) == INF
    assert verify.snr_db(signal, {"y": np.full(4, 0.9, np.float32), "k": np.array([4])}) == pytest.approx(20, abs=1e-3)
    assert verify.snr_db({"y": np.zeros(4, np.float32)}, {"y": np.ones(4, np.float32)}) == -INF


@pytest.mark.parametrize(
    ("reference", "result", "expected"),
    [
        ([1, INF, -INF], [1, INF, -INF], INF),
        ([1, -INF, 1], [1, 7, 1], INF),
        ([1, np.nan], [0.9, 1], 20),
        ([1, 1], [1, np.nan], -INF),
        ([1, 1], [1, INF], -INF),
    ],
)
def test_snr_where_values_are_not_finite(reference: list[float], result: list[float], expected: float) -> None:
    arrays = ({"y": np.array(each, np.float32)} for each in (reference, result))
    assert verify.snr_db(*arrays) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_what_has_another_shape_is_all_noise(dtype: type) -> None:
    assert verify.snr_db({"y": np.ones(3, dtype)}, {"y": np.ones(2, dtype)}) == -np.inf


def test_snr_of_integers_counts_those_that_differ() -> None:
    classes = {"y": np.arange(100)}
    assert verify.snr_db(classes, classes) == INF
    assert verify.snr_db(classes, {"y": np.r_[7, 1:100]}) == pytest.approx(20)
    assert verify.snr_db(classes, {"y": np.arange(100) + 1}) == 0


def _rename_output(graph: gs.Graph) -> None:
    graph.outputs[0].name = "z"


def _drop_output(graph: gs.Graph) -> None:
    del graph.outputs[1]


def _add_output(graph: gs.Graph) -> None:
    graph.outputs.append(graph.nodes[0].outputs[0])


def _swap_outputs(graph: gs.Graph) -> None:
    graph.outputs.reverse()


def _widen_output(graph: gs.Graph) -> None:
    graph.outputs[0].shape = [1, 3]


def _cast_input(graph: gs.Graph) -> None:
    graph.inputs[0].dtype = np.dtype(np.float16)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_rename_output, "it changed the output 'y'"),
        (_drop_output, "it changed the output 'k'"),
        (_add_output, "it added the output 'a'"),
        (_swap_outputs, "it changed the output 'y'"),
        (_widen_output, "it changed the output 'y'"),
        (_cast_input, "it changed the input 'x'"),
    ],
)
def test_inputs_and_outputs_stay(change: Callable[[gs.Graph], None], reason: str) -> None:
    text = "net (float[1, 8] x) => (float[1, 8] y, int64[1, 1] k) { a = Abs(x) y = Neg(a) k = ArgMax<axis = 1>(a) }"
    given, graph = testing.graph(text), testing.graph(text)
    verify.check_interface(graph, given)
    change(graph)
    with pytest.raises(verify.BrokenGraph, match=reason):
        verify.check_interface(graph, given)


def test_what_was_open_may_become_known() -> None:
    given, graph = (testing.graph("net (float[2, 3] x) => (float y) { y = Neg(x) }") for _ in range(2))
    given.outputs[0].shape = ["rows", 3]
    verify.check_interface(graph, given)
    given.outputs[0].shape = None
    verify.check_interface(graph, given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, 1e-4),
        (TEXT.replace("float", "float16"), 1e-2),
        (
            "net (float[3] x) => (float y) <float s = {0.5}> { a = QuantizeLinear(x, s) y = DequantizeLinear(a, s) }",
            5e-2,
        ),
        ("net (int64[3] x) => (int64 y) { y = Neg(x) }", 1e-4),
    ],
)
def test_tolerance_is_that_of_the_coarsest_rounding(text: str, expected: float) -> None:
    assert verify.tolerance(testing.graph(text)) == expected


def test_first_tensor_that_moved() -> None:
    before, after = testing.graph(TEXT), testing.graph(TEXT)
    after.nodes[1].inputs[1].values = after.nodes[1].inputs[1].values + 1
    inputs = verify.probe_inputs(before, 0)
    assert verify.first_moved(before, after, inputs) == "b"
    assert verify.first_moved(before, before, inputs) is None


def test_probes_fit_every_input() -> None:
    text = "net (float16[2, 3] f, int64[4] i, bool[5] b, float s) => (float16 y) { y = Neg(f) }"
    graph = testing.graph(text)
    probes = verify.probe_inputs(graph, 3)
    assert {name: (array.dtype.name, array.shape) for name, array in probes.items()} == {
        "f": ("float16", (2, 3)), "i": ("int64", (4,)), "b": ("bool", (5,)), "s": ("float32", ()),
    }  # fmt: skip
    np.testing.assert_array_equal(probes["f"], verify.probe_inputs(graph, 3)["f"])
