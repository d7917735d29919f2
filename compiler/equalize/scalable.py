"""Which channels can be scaled without moving the outputs.

They are found by the walk of nnc.channels, with rules for what is positively homogeneous: channels that a sum adds go
together, but what a depthwise convolution writes is scaled apart from what it reads.
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc import affine
from nnc.affine import Affine
from nnc.channels import elementwise, layers, movement
from nnc.channels.labels import varied
from nnc.channels.walk import Layer, Rule, Stays, Walk, is_constant, run, title
from nnc.pattern import NoMatch


@dataclass(frozen=True)
class Scalable:
    """The channels of a graph that can be scaled. Id 0 is everything that can't."""

    count: int
    axes: dict[str, tuple[int, np.ndarray]]
    """Where channels lie, by the tensor's name: the axis, and the id of every index along it, int64."""
    layers: dict[str, tuple[np.ndarray, np.ndarray]]
    """The ids that a layer reads and writes, by the node's name."""
    fixed: dict[str, str]
    """Why output channels of a layer stay, by the node's name."""

    def along(self, tensor: gs.Tensor, factors: np.ndarray) -> np.ndarray | None:
        """The factors of a tensor's channels, shaped so that they broadcast; None where it has none."""
        if tensor.name not in self.axes:
            return None
        axis, ids = self.axes[tensor.name]
        return factors[ids].reshape([-1] + [1] * (len(tensor.shape) - axis - 1))


def trace(graph: gs.Graph, *, bounds: bool = True) -> Scalable:
    """Find the channels that can be scaled; with `bounds` also through Clip, whose bounds then differ by channel."""
    walk = run(graph, _RULES if bounds else {**_RULES, "Clip": _not_homogeneous})
    roots, axes = walk.labels.roots(), {}
    for name, array in walk.arrays.items():
        if places := varied(roots[array]):
            (axis,) = places
            axes[name] = axis, np.moveaxis(roots[array], axis, 0).reshape(walk.tensors[name].shape[axis], -1)[:, 0]
    found = {name: (roots[each.read], roots[each.written]) for name, each in walk.layers.items()}
    reasons = walk.labels.reasons() | {0: "what it reads stays"}
    fixed = {
        name: reasons[int(each.written[roots[each.written] == 0][0])]
        for name, each in walk.layers.items()
        if not roots[each.written].all()
    }
    return Scalable(len(roots), axes, found, fixed)


def _layer(walk: Walk, each: gs.Node) -> None:
    """Conv, ConvTranspose, Gemm, MatMul: what they write is scaled apart from what they read."""
    x, y = each.inputs[0], each.outputs[0]
    if not all(isinstance(tensor, gs.Constant) for tensor in each.inputs[1:] if not tensor.is_empty()):
        raise Stays(f"the weights of {title(each)} are no constants of floats")
    try:
        affine.require_before(each, Affine(np.ones(1), np.zeros(1)))
    except NoMatch as reason:
        raise Stays(f"{title(each)}: {reason}") from reason
    axis = len(x.shape) - 1 if each.op == "MatMul" else 1
    read, written = walk.along(x, axis), walk.fresh(each, y.shape[axis])
    walk.layers[each.name] = Layer(read, written)
    if len(each.inputs[1].outputs) > 1:
        walk.labels.fix(np.concatenate([read, written]), f"{title(each)} shares its weights")
    walk.put(y, written.reshape([-1 if place == axis else 1 for place in range(len(y.shape))]))


def _sum(walk: Walk, each: gs.Node) -> None:
    """Operators that are homogeneous in all of their inputs together."""
    for tensor in each.inputs:
        if is_constant(tensor) and not isinstance(tensor, gs.Constant):
            raise Stays(f"'{tensor.name}', which {title(each)} reads, is quantized")
    elementwise.RULES[each.op](walk, each)


def _product(walk: Walk, each: gs.Node) -> None:
    """Mul and Div are homogeneous in one of their inputs, if the others don't change."""
    y = each.outputs[0]
    scaled = [tensor for tensor in each.inputs if walk[tensor].any()]
    if not scaled:
        return
    x = scaled[0]
    if len(scaled) > 1 or (each.op == "Div" and x is not each.inputs[0]):
        raise Stays(f"{title(each)} is not proportional to what it reads")
    labels = walk[x].reshape((1,) * (len(y.shape) - len(x.shape)) + walk[x].shape)
    if any(labels.shape[axis] not in (1, y.shape[axis]) for axis in range(labels.ndim)):
        raise Stays(f"{title(each)} broadcasts '{x.name}' along other channels")
    walk.put(y, labels)


def _bounded(walk: Walk, each: gs.Node) -> None:
    if not all(isinstance(bound, gs.Constant) for bound in each.inputs[1:] if not bound.is_empty()):
        raise Stays(f"the bounds of {title(each)} are computed at run time")
    walk.put(each.outputs[0], walk[each.inputs[0]])


def _concat(walk: Walk, each: gs.Node) -> None:
    axis = each.attrs["axis"] % len(each.outputs[0].shape)
    apart = any(set(varied(walk[x])) - {axis} for x in each.inputs)
    if apart and any(is_constant(x) for x in each.inputs):
        raise Stays(f"{title(each)} joins it with a constant")
    movement.RULES["Concat"](walk, each)


def _pad(walk: Walk, each: gs.Node) -> None:
    filled = len(each.inputs) > 2 and not each.inputs[2].is_empty()
    if filled and not (isinstance(each.inputs[2], gs.Constant) and not each.inputs[2].values.any()):
        raise Stays(f"{title(each)} pads with a value that is not 0")
    movement.RULES["Pad"](walk, each)


def _resize(walk: Walk, each: gs.Node) -> None:
    if each.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Stays(f"{title(each)} fills with a value of its own")
    movement.RULES["Resize"](walk, each)


def _cast(walk: Walk, each: gs.Node) -> None:
    if np.dtype(each.outputs[0].dtype).kind != "f":
        raise Stays(f"{title(each)} rounds to integers")
    movement.RULES["Cast"](walk, each)


def _not_homogeneous(walk: Walk, each: gs.Node) -> None:
    raise Stays(f"{title(each)} is not proportional to what it reads")


_POSITIVELY_HOMOGENEOUS = ("Abs", "Dropout", "LeakyRelu", "Neg", "PRelu", "Relu")
SUMS = ("Add", "Max", "Mean", "Min", "Sub", "Sum")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_KNOWN: dict[str, Rule] = {**movement.RULES, **elementwise.RULES, **layers.RULES}

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_KNOWN, _not_homogeneous),
    **movement.RULES,
    **{op: _KNOWN[op] for op in (*_POSITIVELY_HOMOGENEOUS, *_POOLS, *_REDUCTIONS)},
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys(_LAYERS, _layer),
    "Mul": _product, "Div": _product, "Clip": _bounded, "Concat": _concat, "Pad": _pad, "Resize": _resize,
    "Cast": _cast, "CastLike": _not_homogeneous, "Shape": _not_homogeneous, "Size": _not_homogeneous,
}  # fmt: skip
