"""merge-duplicates: what is computed or stored twice is kept once."""

from collections import defaultdict
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc.model.proto import STANDARD_DOMAINS
from nnc.model.shapes import RANDOM
from nnc.pattern import COMMUTATIVE, NoMatch
from nnc.rewrite import Context, Driver, Effect, Pass, replace_input

#: Random operators, and those that runtimes fuse with the one operator that reads them.
_APART = RANDOM | {"DequantizeLinear", "Dropout", "QuantizeLinear"}

#: Values of a constant that are looked at before two of one shape are compared as a whole.
_SAMPLES = 8


class MergeDuplicates(Pass):
    """Merge nodes that compute the same, and constants that are equal.

    a = Relu(x), b = Relu(x), Add(a, b)  ->  a = Relu(x), Add(a, a)

    Exact. The order of the inputs of Add, Mul, Max, Min and the like does not matter. Declines for random operators,
    QuantizeLinear and DequantizeLinear, for those of other domains, and where both results are outputs of the graph.

    Reference: common subexpression elimination; Cocke, Global common subexpression elimination, 1970.
    """

    name: ClassVar[str] = "merge-duplicates"
    effect: ClassVar[Effect] = "exact"

    def run(self, graph: gs.Graph, context: Context) -> int:
        changed = _merge_constants(graph)
        driver = Driver(graph)
        first: dict[Any, gs.Node] = {}
        for node in list(graph.nodes):
            if node.op in _APART or node.domain not in STANDARD_DOMAINS:
                continue
            kept = first.setdefault(_key(node), node)
            if kept is not node:
                try:
                    _merge(kept, node, driver)
                    changed += 1
                except NoMatch as reason:
                    context.skip(node, str(reason))
        driver.tidy()
        return changed


def _merge_constants(graph: gs.Graph) -> int:
    """Let the readers of equal constants share one; returns how many are left out."""
    groups: dict[Any, list[gs.Constant]] = defaultdict(list)
    merged = 0
    for constant in graphs.constants(graph):
        alike = groups[_sample(constant.values)]
        kept = next((other for other in alike if _equal(other.values, constant.values)), None)
        if kept is None:
            alike.append(constant)
            continue
        merged += 1
        for reader in list(constant.outputs):
            replace_input(reader, constant, kept)
    return merged


def _sample(values: np.ndarray) -> Any:
    """What equal arrays have in common: little of a large one is read."""
    flat = values.reshape(-1)
    samples = flat[:: max(1, flat.size // _SAMPLES)]
    return values.dtype.name, values.shape, samples.tobytes() if values.dtype != object else tuple(samples.tolist())


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one shape and dtype hold the same bits: 0.0 and -0.0 differ, NaN equals itself."""
    if one.dtype == object:
        return bool((one == other).all())
    if one is other or one.ctypes.data == other.ctypes.data:
        return True
    return np.array_equal(_bits(one), _bits(other))


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _key(node: gs.Node) -> Any:
    """Equal for nodes that compute the same from the same tensors."""
    inputs = [0 if tensor.is_empty() else id(tensor) for tensor in node.inputs]
    if node.op in COMMUTATIVE:
        inputs.sort()
    attrs = tuple((key, _attribute(value)) for key, value in sorted(node.attrs.items()))
    return node.op, tuple(inputs), attrs, tuple(tensor.is_empty() for tensor in node.outputs)


def _attribute(value: Any) -> Any:
    """Something hashable that is equal for equal attributes."""
    if isinstance(value, gs.Constant):
        return value.values.dtype.name, value.values.shape, value.values.tobytes()
    return type(value).__name__, tuple(value) if isinstance(value, list) else value


def _merge(kept: gs.Node, other: gs.Node, driver: Driver) -> None:
    """Let the readers of `other` read `kept`."""
    pairs = [(old, new) for old, new in zip(other.outputs, kept.outputs, strict=True) if not old.is_empty()]
    for old, new in pairs:
        if driver.is_output(old) and driver.is_output(new):
            raise NoMatch(f"'{old.name}' and '{new.name}' are both outputs of the graph")
    for old, new in pairs:
        driver.redirect(old, new)
    driver.detach(other)
