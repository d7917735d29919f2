"""Where the inverted residual blocks of a graph are: found by what they compute, whatever they are called.

A block is x -> expand 1x1 -> depthwise -> project 1x1, and x is added to what it gives where both have one shape.
Between the convolutions are BatchNormalization, activations, padding, and a squeeze-and-excitation that scales the
channels; the last one is linear. The first block of a network often doesn't expand.

Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, CVPR 2018.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile

import onnx_graphsurgeon as gs

from nnc.compression.branches import Branch
from nnc.layers import Layer
from nnc.measure import has_shape
from nnc.model.proto import is_standard
from nnc.pattern import NoMatch

_ACTIVATIONS = (
    "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Sigmoid", "Swish",
)  # fmt: skip
_LINEAR = ("BatchNormalization", "Dropout", "Identity", "Pad")
_POOLS = ("GlobalAveragePool", "ReduceMean")


@dataclass(frozen=True, eq=False)
class Block:
    """An inverted residual block of a graph, whose nodes and tensors these are."""

    expand: gs.Node | None
    depthwise: gs.Node
    project: gs.Node
    x: gs.Tensor
    """What the block reads."""
    y: gs.Tensor
    """What it gives, before x is added."""
    add: gs.Node | None
    """What adds x to it."""
    name: str = ""
    """"stage2.3" is the third block of the second stage: shortcuts join the blocks of a stage, which are one width."""

    @property
    def stage(self) -> str:
        return self.name.partition(".")[0]

    @property
    def convolutions(self) -> list[gs.Node]:
        """Expand, depthwise, project."""
        return [node for node in (self.expand, self.depthwise, self.project) if node]

    @property
    def nodes(self) -> list[gs.Node]:
        """All that lies between x and y, a squeeze-and-excitation included; the last one first."""
        found, stack = {id(self.project): self.project}, list(self.project.inputs)
        while stack:
            tensor = stack.pop()
            if tensor is not self.x and tensor.inputs and id(tensor.inputs[0]) not in found:
                found[id(tensor.inputs[0])] = tensor.inputs[0]
                stack += tensor.inputs[0].inputs
        return list(found.values())

    @property
    def branch(self) -> Branch:
        """The block as a residual branch; only where it has a shortcut."""
        assert self.add is not None
        side = next(index for index, each in enumerate(self.add.inputs) if each is self.x)
        return Branch(self.add.name, side, frozenset(node.name for node in self.nodes))

    @property
    def given(self) -> gs.Tensor:
        """What the next block reads."""
        return self.add.outputs[0] if self.add else self.y

    @property
    def inputs(self) -> int:
        """Channels of x."""
        return int(self.x.shape[1])

    @property
    def hidden(self) -> int:
        """Channels of the depthwise convolution."""
        return int(self.depthwise.outputs[0].shape[1])

    @property
    def width(self) -> int:
        """Channels of y."""
        return int(self.y.shape[1])

    @property
    def title(self) -> str:
        """Its name, and what the names of its convolutions begin with."""
        mark = "/" if "/" in self.depthwise.name else "."
        parts = zip(*(node.name.split(mark) for node in self.convolutions), strict=False)
        shared = mark.join(same[0] for same in takewhile(lambda each: len(set(each)) == 1, parts))
        return f"{self.name} ({shared.strip(mark) or self.depthwise.name})"

    def fits(self, glob: str) -> bool:
        """Whether a glob names the block or one of its convolutions."""
        return any(fnmatchcase(name, glob) for name in (self.name, *(node.name for node in self.convolutions)))


def find(graph: gs.Graph, refuse: Callable[[gs.Node, str], None] = lambda node, reason: None) -> list[Block]:
    """The blocks in the order of execution; `refuse` is told of depthwise convolutions that are in none, and why."""
    found: list[Block] = []
    stage = place = 0
    for node in graph.nodes:
        if not _is_depthwise(node):
            continue
        try:
            block = _around(node)
        except NoMatch as reason:
            refuse(node, str(reason))
            continue
        joined = bool(found) and block.add is not None and block.x is found[-1].given
        stage, place = (stage, place + 1) if joined else (stage + 1, 1)
        found.append(replace(block, name=f"stage{stage}.{place}"))
    return found


def _is_depthwise(node: gs.Node) -> bool:
    """Whether every channel is convolved by itself."""
    groups = node.attrs.get("group", 1) if is_standard(node, "Conv") and has_shape(*node.inputs[:2]) else 1
    return bool(1 < groups == node.inputs[0].shape[1])


def _around(depthwise: gs.Node) -> Block:
    """The block around a depthwise convolution; NoMatch where there is none."""
    layer = Layer.of(depthwise)
    if layer is None:
        raise NoMatch("no inverted residual: its weights are quantized or computed")
    if layer.outputs != layer.inputs:
        raise NoMatch("no inverted residual: it gives several channels for one")
    project = _project(depthwise)
    y = _end(project)
    expand = _expand(depthwise)
    x = expand.inputs[0] if expand else _unpadded(depthwise.inputs[0])
    return Block(expand, depthwise, project, x, y, _shortcut(x, y))


def _project(depthwise: gs.Node) -> gs.Node:
    """The 1x1 convolution that reads what a depthwise one gives, perhaps scaled by a gate."""
    found: list[gs.Node] = []
    stack, seen, activated = [depthwise.outputs[0]], set(), False
    while stack:
        tensor = stack.pop()
        if not tensor.outputs:
            raise NoMatch(f"no inverted residual: '{tensor.name}' is an output of the graph")
        for reader in tensor.outputs:
            if id(reader) in seen or is_standard(reader, *_POOLS):  # what is pooled makes the gate
                continue
            seen.add(id(reader))
            if is_standard(reader, "Conv"):
                found.append(reader)
            elif _per_channel(reader):
                activated |= is_standard(reader, *_ACTIVATIONS)
                stack.append(reader.outputs[0])
            else:
                raise NoMatch(f"no inverted residual: {reader.op} '{reader.name}' reads what it gives")
    if len(found) != 1 or not _is_pointwise(found[0]):
        raise NoMatch("no inverted residual: no 1x1 convolution alone reads what it gives")
    if not activated:
        raise NoMatch("no inverted residual: what it gives is not activated")
    return found[0]


def _end(project: gs.Node) -> gs.Tensor:
    """What a projection gives, normalized; NoMatch where it is activated."""
    y = project.outputs[0]
    while len(y.outputs) == 1 and is_standard(y.outputs[0], *_LINEAR):
        y = y.outputs[0].outputs[0]
    if any(is_standard(reader, *_ACTIVATIONS) for reader in y.outputs):
        raise NoMatch("no inverted residual: what the 1x1 convolution behind it gives is activated")
    return y


def _expand(depthwise: gs.Node) -> gs.Node | None:
    """The 1x1 convolution whose activated outputs a depthwise one reads."""
    found: list[gs.Node] = []
    stack, seen, activated = [depthwise.inputs[0]], set(), False
    while stack:
        tensor = stack.pop()
        maker = tensor.inputs[0] if tensor.inputs else None
        if isinstance(tensor, gs.Constant) or (maker is not None and id(maker) in seen):
            continue
        if maker is None or not (is_standard(maker, "Conv") or _per_channel(maker)):
            return None
        seen.add(id(maker))
        if is_standard(maker, "Conv"):
            found.append(maker)
        else:
            activated |= is_standard(maker, *_ACTIVATIONS)
            stack += [each for each in maker.inputs if not each.is_empty()]
    return found[0] if activated and len(found) == 1 and _is_pointwise(found[0]) else None


def _per_channel(node: gs.Node) -> bool:
    """Whether a node normalizes, activates or scales; activations may be written out: x * min(max(x + 3, 0), 6) / 6."""
    if is_standard(node, "Add", "Div"):
        return any(isinstance(tensor, gs.Constant) for tensor in node.inputs)
    return is_standard(node, *_ACTIVATIONS, *_LINEAR, "Mul")


def _is_pointwise(node: gs.Node) -> bool:
    layer = Layer.of(node)
    return (
        layer is not None
        and layer.groups == 1
        and set(layer.kernel) == {1}
        and set(node.attrs.get("strides") or [1]) == {1}
        and not any(node.attrs.get("pads") or [0])
    )


def _unpadded(x: gs.Tensor) -> gs.Tensor:
    return x.inputs[0].inputs[0] if x.inputs and is_standard(x.inputs[0], "Pad") else x


def _shortcut(x: gs.Tensor, y: gs.Tensor) -> gs.Node | None:
    """What adds x and y, and alone reads y."""
    if len(y.outputs) != 1 or not is_standard(y.outputs[0], "Add", "Sum"):
        return None
    inputs = y.outputs[0].inputs
    return y.outputs[0] if len(inputs) == 2 and any(each is x for each in inputs) else None
