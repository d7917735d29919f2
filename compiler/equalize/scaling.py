"""A graph whose channels are scaled: weights, constants that are added, and bounds."""

import math

import numpy as np
import onnx_graphsurgeon as gs

from nnc import affine
from nnc.affine import Affine
from nnc.attributes import bounds
from nnc.equalize.scalable import SUMS, Scalable
from nnc.rewrite import Draft, Driver, node


def scale(graph: gs.Graph, traced: Scalable, factors: np.ndarray) -> None:
    """Divide channels by their factors [ids] where they are written, and multiply by them where they are read."""
    driver = Driver(graph)
    for each in list(graph.nodes):
        if each.name in traced.layers:
            read = factors[traced.layers[each.name][0]]
            if (read != 1).any():
                driver.replace(each, affine.before(each, Affine(read, np.zeros(1)), each.inputs[0]))
        elif each.op in SUMS:
            _scale_constants(each, traced.along(each.outputs[0], factors), driver)
        elif each.op == "Clip":
            _scale_bounds(each, traced.along(each.outputs[0], factors), driver)
    driver.tidy()
    for each in list(graph.nodes):
        if each.name in traced.layers:
            written = factors[traced.layers[each.name][1]]
            if (written != 1).any():
                driver.replace(each, affine.after(each, Affine(1 / written, np.zeros(1))))
    driver.tidy()


def _scale_constants(each: gs.Node, along: np.ndarray | None, driver: Driver) -> None:
    """Give a sum constants that are scaled like what they are added to."""
    for index, tensor in enumerate(each.inputs):
        if along is not None and (along != 1).any() and isinstance(tensor, gs.Constant):
            values = (tensor.values / along).astype(tensor.values.dtype)
            each.inputs[index] = driver.constant(f"{each.outputs[0].name}.{index}", values)


def _scale_bounds(clip: gs.Node, along: np.ndarray | None, driver: Driver) -> None:
    """Clip(x, 0, b)  ->  Min(Relu(x), b / s): a bound for every channel."""
    if along is None or (along == 1).all():
        return
    low, high = bounds(clip)
    dtype = clip.outputs[0].dtype
    bounded: gs.Tensor | Draft = clip.inputs[0]
    if math.isfinite(low):
        bounded = node("Max", bounded, (low / along).astype(dtype)) if low else node("Relu", bounded)
    if math.isfinite(high):
        bounded = node("Min", bounded, (high / along).astype(dtype))
    driver.replace(clip, bounded)
