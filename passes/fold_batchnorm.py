"""fold-batchnorm: BatchNormalization costs nothing in the weights of a layer."""

import math
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import affine
from nnc.affine import Affine
from nnc.measure import has_shape
from nnc.model import proto
from nnc.pattern import Match, NoMatch, Pattern, op, through
from nnc.rewrite import Draft, Effect, PatternPass, node

#: Operators that a map per channel passes: pooling over all of a channel, and views of [N, C, ...].
_CARRIERS = "Flatten|GlobalAveragePool|Reshape|Squeeze"

_BEHIND = "Conv|ConvTranspose|Gemm|MatMul"


class FoldBatchNorm(PatternPass):
    """Fold BatchNormalization into the layer before or behind it.

    BatchNormalization(Conv(x, W, B), gamma, beta, mean, var)
      ->  Conv(x, s * W, s * (B - mean) + beta)     where s = gamma / sqrt(var + epsilon)
    Conv(BatchNormalization(x, ...), W, B)
      ->  Conv(x, s * W, B + sum(W * (beta - s * mean)))
    BatchNormalization(x, ...)  ->  Conv(x, s, beta - s * mean, group=C)     a 1x1 kernel, for each channel by itself

    Exact, for Conv, ConvTranspose, Gemm, MatMul and another BatchNormalization; behind it also through Flatten and
    GlobalAveragePool. Declines where the tensor between has another reader, statistics or weights are not constant, or
    a layer behind pads its input: zeros that were added after the normalization would be normalized, too.

    Reference: Ioffe and Szegedy, Batch Normalization, https://arxiv.org/abs/1502.03167, section 3.1.
    """

    name: ClassVar[str] = "fold-batchnorm"
    effect: ClassVar[Effect] = "exact"
    pattern: ClassVar[Pattern] = (
        op("BatchNormalization", op("|".join(affine.LAYERS), name="layer"), ...)
        | op(_BEHIND, through(_CARRIERS, op("BatchNormalization", name="batchnorm")), ...)
        | op("BatchNormalization")
    )

    depthwise: bool = Field(True, description="make one that no layer takes a depthwise 1x1 convolution")

    def rewrite(self, match: Match) -> gs.Node:
        if "batchnorm" in match.nodes:
            return _into_reader(match)
        map_ = affine.of_batchnorm(match.root)
        try:
            return _into_producer(match.nodes.get("layer"), match.root, map_)
        except NoMatch as reason:
            if _goes_into_reader(match.root, map_):
                raise NoMatch("the layer behind it takes it") from reason
            if not self.depthwise:
                raise
            return _depthwise(match.root, map_)


def _into_producer(layer: gs.Node | None, batchnorm: gs.Node, map_: Affine) -> Draft:
    x = batchnorm.inputs[0]
    if layer is None:
        producer = x.inputs[0].op if x.inputs else "an input of the graph"
        raise NoMatch(f"'{x.name}', which it normalizes, comes from {producer} or has another reader")
    _require_axis_1(layer)
    return affine.after(layer, map_)


def _into_reader(match: Match) -> Draft:
    layer, batchnorm = match.root, match.nodes["batchnorm"]
    _require_axis_1(layer)
    carriers = [inner for inner in match.interior if inner is not batchnorm]
    map_ = affine.of_batchnorm(batchnorm)
    x: gs.Tensor | Draft = batchnorm.inputs[0]
    for carrier in reversed(carriers):
        map_ = _carried(map_, carrier)
        x = node(carrier.op, x, *carrier.inputs[1:], domain=carrier.domain, **carrier.attrs)
    return affine.before(layer, map_, x)


def _goes_into_reader(batchnorm: gs.Node, map_: Affine) -> bool:
    """Whether the layer behind takes it: that one is visited later."""
    tensor = batchnorm.outputs[0]
    try:
        while len(tensor.outputs) == 1:
            (reader,) = tensor.outputs
            if reader.inputs[0] is not tensor:
                return False
            if proto.is_standard(reader, *_BEHIND.split("|")):
                _require_axis_1(reader)
                affine.require_before(reader, map_)
                return True
            map_, tensor = _carried(map_, reader), reader.outputs[0]
    except NoMatch:
        pass
    return False


def _require_axis_1(layer: gs.Node) -> None:
    """Raise NoMatch unless the channels of the layer are those of a BatchNormalization."""
    if layer.op == "MatMul" and len(layer.inputs[0].shape or ()) != 2:
        raise NoMatch("the channels of MatMul are those of its last axis")


def _carried(map_: Affine, carrier: gs.Node) -> Affine:
    """The map per channel behind the node that is the same as `map_` before it."""
    read, written = carrier.inputs[0], carrier.outputs[0]
    if not proto.is_standard(carrier, *_CARRIERS.split("|")) or not has_shape(read, written):
        raise NoMatch(f"{carrier.op} is behind it")
    if read.shape[:2] == written.shape[:2]:
        return map_
    per_channel = math.prod(read.shape[2:])
    if written.shape != [read.shape[0], read.shape[1] * per_channel]:
        raise NoMatch(f"{carrier.op} behind it mixes channels")
    return Affine(np.repeat(map_.scale, per_channel), np.repeat(map_.shift, per_channel))


def _depthwise(batchnorm: gs.Node, map_: Affine) -> Draft:
    x = batchnorm.inputs[0]
    if not has_shape(x) or len(x.shape) < 3:
        raise NoMatch("no layer takes it, and what it normalizes is not [N, C, ...]")
    return affine.depthwise(x, map_, np.dtype(x.dtype))
