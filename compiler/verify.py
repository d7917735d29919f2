"""What must hold after every pass: the graph is valid, and an exact pass has not moved the outputs.

Outputs are compared on probe inputs in onnxruntime with every optimization off.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.measure import has_shape
from nnc.session import Session

#: Largest difference relative to the largest value of a tensor that counts as float rounding.
TOLERANCE = 1e-4

# The same where values are rounded more coarsely on the way, by the dtype that does it.
_COARSE = {"float16": 1e-2, "bfloat16": 5e-2}

# The same where activations are quantized: a difference of float rounding can become a whole step.
_QUANTIZED = 5e-2

# What says how large a tensor is, and nothing of what is in it.
_SIZES = ("Shape", "Size")

# What rounds floats to integers, besides Cast and the operators QLinear...
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")

Arrays = Mapping[str, np.ndarray]

# What makes other views or types of indices, in the same order.
_VIEWS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")

#: What floats have to do with integers: they were rounded to them, or compared, which gives indices, classes and masks.
Origin = Literal["rounded", "compared"]


class BrokenGraph(Exception):
    """A pass left a graph that is not valid, or that computes something else; the message says what."""


def check_invariants(graph: gs.Graph) -> None:
    """Raise BrokenGraph unless the graph is well formed and keeps the standard."""
    check_structure(graph)
    check_standard(graph)


def check_structure(graph: gs.Graph) -> None:
    """Raise BrokenGraph unless names are unique and every tensor that is read is produced before."""
    _check_names(graph)
    _check_order(graph)


def check_standard(graph: gs.Graph) -> None:
    """Raise BrokenGraph unless every node keeps the ONNX standard and its outputs have the shapes that are noted."""
    model = graphs.skeleton_with_inputs(graph)
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BrokenGraph(graphs.first_reason(error)) from error


def check_interface(graph: gs.Graph, given: gs.Graph) -> None:
    """Raise BrokenGraph unless the graph reads and writes what `given` does: names, dtypes and, where known, shapes."""
    for kind, before, after in (("input", given.inputs, graph.inputs), ("output", given.outputs, graph.outputs)):
        for old, new in zip_longest(before, after):
            if old is None:
                raise BrokenGraph(f"it added the {kind} '{new.name}'")
            if new is None or not _is_alike(old, new):
                raise BrokenGraph(f"it changed the {kind} '{old.name}'")


def _is_alike(old: gs.Tensor, new: gs.Tensor) -> bool:
    """Whether two tensors are the same to whoever runs the graph; what is not known of `old` may be known of `new`."""
    if old.name != new.name or (old.dtype is not None and old.dtype != new.dtype):
        return False
    if old.shape is None or new.shape is None:
        return old.shape is None
    return len(old.shape) == len(new.shape) and all(
        size == other for size, other in zip(old.shape, new.shape, strict=True) if isinstance(size, int)
    )


def _check_names(graph: gs.Graph) -> None:
    named: dict[str, gs.Tensor] = {}
    for tensor in _tensors(graph):
        if named.setdefault(tensor.name, tensor) is not tensor:
            raise BrokenGraph(f"two tensors are called '{tensor.name}'")
    seen: set[str] = set()
    for node in graph.nodes:
        if node.name in seen:
            raise BrokenGraph(f"two nodes are called '{node.name}'")
        seen.add(node.name)


def _check_order(graph: gs.Graph) -> None:
    known = {id(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) and not tensor.is_empty() and id(tensor) not in known:
                raise BrokenGraph(f"node '{node.name}' reads '{tensor.name}' before anything produces it")
        known.update(id(tensor) for tensor in node.outputs)
    for tensor in graph.outputs:
        if id(tensor) not in known and not isinstance(tensor, gs.Constant):
            raise BrokenGraph(f"nothing produces the output '{tensor.name}'")


def _tensors(graph: gs.Graph) -> Iterable[gs.Tensor]:
    yield from graph.inputs
    yield from graph.outputs
    for node in graph.nodes:
        yield from (tensor for tensor in (*node.inputs, *node.outputs) if not tensor.is_empty())


def probe_inputs(graph: gs.Graph, seed: int) -> dict[str, np.ndarray]:
    """Random inputs: standard normal floats, integers from 0 to 9, booleans."""
    rng = np.random.default_rng(seed)
    return {tensor.name: probe(rng, np.dtype(tensor.dtype), tensor.shape) for tensor in graph.inputs}


def probe(rng: np.random.Generator, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """One random input of `probe_inputs`."""
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return rng.integers(0, 2 if dtype.kind == "b" else 10, shape).astype(dtype)


def outputs(graph: gs.Graph, inputs: Arrays) -> dict[str, np.ndarray]:
    """The graph's outputs in the reference arithmetic; NncError where onnxruntime can't run it."""
    return Session(graph).run(inputs)


def of_static_shape(graph: gs.Graph, outputs: Arrays) -> dict[str, np.ndarray]:
    """Those of the graph's outputs whose shape is known; of others, such as boxes found, no value has a counterpart."""
    return {tensor.name: outputs[tensor.name] for tensor in graph.outputs if has_shape(tensor)}


def reference(graph: gs.Graph, inputs: Arrays) -> dict[str, np.ndarray]:
    """`outputs`, and the scores by which indices among them were chosen: what `differences` compares with."""
    return Session(graph, outputs=list(dict.fromkeys(scores for scores, _ in _choices(graph).values()))).run(inputs)


def has_finite(values: np.ndarray) -> bool:
    """Whether any of the values is a number."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).any())


def difference(reference: np.ndarray, result: np.ndarray, origin: Origin | None = None) -> float:
    """How far a result is from the reference, to be compared with a `tolerance`; infinite when shapes differ.

    Of floats, the largest absolute difference over the largest reference value. Where the reference is not finite it
    says nothing: what overflows depends on the order of operations.

    Integers that no float has a part in are equal or infinitely different. Where they were "rounded", a float's last
    bit can become a whole step: what counts is the mean difference, or what the largest is beyond a step, over the
    range of the reference. Where they, or truths, come of floats that were "compared", it is the share of elements that
    differ: none may where there are few.
    """
    if reference.shape != result.shape:
        return np.inf
    if not reference.size:
        return 0.0
    if origin == "compared":
        return float(np.mean(reference != result))
    if _is_float(reference.dtype):
        return _of_floats(reference, result)
    if origin == "rounded":
        return _in_steps(*(values.astype(np.int64) for values in (reference, result)))
    return 0.0 if np.array_equal(reference, result) else np.inf


def _of_floats(reference: np.ndarray, result: np.ndarray) -> float:
    finite = np.isfinite(reference)
    if not np.isfinite(result[finite]).all():
        return np.inf
    expected = reference[finite].astype(np.float64)
    moved = np.abs(expected - result[finite].astype(np.float64)).max(initial=0.0)
    largest = np.abs(expected).max(initial=0.0)
    return float(moved / largest) if largest else (0.0 if moved == 0 else np.inf)


def _in_steps(reference: np.ndarray, result: np.ndarray) -> float:
    moved = np.abs(reference - result)
    return float(max(moved.max() - 1, moved.mean()) / max(np.ptp(reference), 1))


def _is_float(dtype: Any) -> bool:
    """Whether a dtype is one of floats; those of ml_dtypes, such as bfloat16, are no kind of numpy's."""
    return dtype is not None and "float" in np.dtype(dtype).name


def _origins(graph: gs.Graph) -> dict[str, Origin]:
    """By name, what floats have to do with the integers and truths of a graph, and with casts of those compared."""
    origins: dict[str, Origin] = {}
    for node in graph.nodes:
        if node.op in _SIZES:
            continue
        read = [tensor for tensor in node.inputs if tensor.name in origins or _is_float(tensor.dtype)]
        rounded = [tensor.dtype for tensor in read if origins.get(tensor.name) == "rounded"]
        for tensor in node.outputs:
            if _is_float(tensor.dtype):
                if node.op == "Cast" and origins.get(node.inputs[0].name) == "compared":
                    origins[tensor.name] = "compared"
            elif tensor.dtype in rounded or _quantizes(node, tensor, origins):
                origins[tensor.name] = "rounded"
            elif read:
                origins[tensor.name] = "compared"
    return origins


def _quantizes(node: gs.Node, output: gs.Tensor, origins: Mapping[str, Origin]) -> bool:
    """Whether a node rounds floats to the integers of `output`, or calculates with such."""
    if node.op == "Cast":
        (x,) = node.inputs
        return _is_float(x.dtype) and x.name not in origins and output.dtype != np.bool_
    return node.op in _QUANTIZERS or node.op.startswith("QLinear")


def rounds(graph: gs.Graph) -> bool:
    """Whether activations are quantized: then the last bit of a float can be a whole step."""
    return any(node.op in _QUANTIZERS for node in graph.nodes)


def tolerance(graph: gs.Graph) -> float:
    """The largest difference that counts as rounding in this graph."""
    if rounds(graph):
        return _QUANTIZED
    dtypes = {np.dtype(tensor.dtype).name for tensor in _tensors(graph) if tensor.dtype is not None}
    return max((_COARSE.get(name, TOLERANCE) for name in dtypes), default=TOLERANCE)


def differences(reference: Arrays, result: Arrays, graph: gs.Graph | None = None) -> dict[str, float]:
    """`difference` by output; infinite where one is missing.

    `graph`, which computed the reference, tells where integers are from. Where `reference` has the scores by which
    indices were chosen, what counts is how far the scores of others are from theirs: of two that are as good, rounding
    may take either.
    """
    names = reference.keys() if graph is None else {tensor.name for tensor in graph.outputs}
    if names != result.keys():
        return dict.fromkeys(names | result.keys(), np.inf)
    origins, choices = (_origins(graph), _choices(graph)) if graph is not None else ({}, {})
    moved = {}
    for name, values in result.items():
        scores, axis = choices.get(name, ("", 0))
        if scores in reference:
            moved[name] = _of_choices(reference[scores], axis, reference[name], values)
        else:
            moved[name] = difference(reference[name], values, origins.get(name))
    return moved


def largest_difference(reference: Arrays, result: Arrays, graph: gs.Graph | None = None) -> float:
    """The largest of `differences`."""
    return max(differences(reference, result, graph).values(), default=0.0)


def _choices(graph: gs.Graph) -> dict[str, tuple[str, int]]:
    """By output of indices, the tensor of scores, and the axis of it, that ArgMax, ArgMin or TopK took them along."""
    choices = {}
    for output in graph.outputs:
        tensor = output
        while (node := tensor.inputs[0] if tensor.inputs else None) and node.op in _VIEWS:
            tensor = node.inputs[0]
        if node and (node.op in ("ArgMax", "ArgMin") or (node.op == "TopK" and tensor is node.outputs[1])):
            scores = node.inputs[0]
            dtype = None if scores.dtype is None else np.dtype(scores.dtype)
            if scores.inputs and has_shape(scores) and dtype is not None and dtype.kind in "fiu":
                choices[output.name] = scores.name, node.attrs.get("axis", -1 if node.op == "TopK" else 0)
    return choices


def _of_choices(scores: np.ndarray, axis: int, reference: np.ndarray, result: np.ndarray) -> float:
    if reference.shape != result.shape or not result.size:
        return difference(reference, result)
    if not 0 <= result.min(initial=0) <= result.max(initial=0) < scores.shape[axis]:
        return np.inf
    shape = list(scores.shape)
    shape[axis] = -1
    indices = (values.reshape(shape).astype(np.int64) for values in (reference, result))
    expected, found = (np.append(scores, np.take_along_axis(scores, each, axis)) for each in indices)
    return difference(expected, found)  # relative to the largest of all scores


def snr_db(reference: Arrays, result: Arrays) -> float:
    """Signal-to-noise ratio over all float outputs, in dB: 10 log10(sum of squares / sum of squared differences).

    Where the reference is not finite it says nothing, as in `difference`; a result that isn't finite elsewhere is all
    noise, -inf, and so is one of another shape. Without an output in floats, every element is signal, and those that
    differ are noise.
    """
    if any(values.shape != result[name].shape for name, values in reference.items()):
        return -np.inf
    floats = [name for name, values in reference.items() if values.dtype.kind == "f"]
    if floats:
        energies = [_energies(reference[name], result[name]) for name in floats]
    else:
        energies = [(float(values.size), float(np.sum(values != result[name]))) for name, values in reference.items()]
    signal, noise = (float(sum(each)) for each in zip(*energies, strict=True))
    if noise == 0.0:
        return np.inf
    return float(10 * np.log10(signal / noise)) if signal and np.isfinite(noise) else -np.inf


def _energies(reference: np.ndarray, result: np.ndarray) -> tuple[float, float]:
    """Sums of squares of the reference and of the differences from it, where the reference is finite."""
    finite = np.isfinite(reference)
    expected, found = reference[finite].astype(np.float64), result[finite]
    if not np.isfinite(found).all():
        return float(np.square(expected).sum()), np.inf
    return float(np.square(expected).sum()), float(np.square(expected - found).sum())


def first_moved(before: gs.Graph, after: gs.Graph, inputs: Arrays) -> str | None:
    """The first tensor, in the order of execution, that both graphs hold and that differs between them."""
    shared = _float_tensors(after) & _float_tensors(before)
    names = [tensor.name for node in after.nodes for tensor in node.outputs if tensor.name in shared]
    reference, result = Session(before, outputs=names).run(inputs), Session(after, outputs=names).run(inputs)
    limit = tolerance(before)
    return next((name for name in names if difference(reference[name], result[name]) > limit), None)


def _float_tensors(graph: gs.Graph) -> set[str]:
    tensors = (tensor for node in graph.nodes for tensor in node.outputs)
    return {tensor.name for tensor in tensors if tensor.dtype == np.float32 and tensor.shape is not None}
