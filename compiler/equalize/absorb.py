"""Moves what a channel always exceeds through Relu into the biases of the layers behind it.

Relu(y) = Relu(y - c) + c wherever y >= c >= 0; what a layer makes of the constant c goes into its bias.

Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, section 4.1.3.
"""

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from nnc import affine
from nnc.affine import LAYERS, Affine
from nnc.calibrate import extremes
from nnc.data import Dataset
from nnc.model.proto import is_standard
from nnc.pattern import NoMatch
from nnc.rewrite import Driver

#: How many standard deviations a normal channel is above c: 99.87 % of its values are.
_DEVIATIONS = 3.0

#: An excess of a smaller share of a channel's range is not worth moving.
_WORTH = 0.02


def excess(graph: gs.Graph, dataset: Dataset | None, imported: gs.Graph | None) -> dict[str, np.ndarray]:
    """c by channel, float64, of the layers in front of Relu, by name; those without any are left out.

    The least value on the dataset; without data mean - 3 sigma of the BatchNormalization that wrote the same tensor in
    the imported model.
    """
    pairs = [(layer, relu) for layer in graph.nodes if (relu := _relu_behind(graph, layer)) is not None]
    low: Mapping[str, tuple[np.ndarray, np.ndarray]] = _normal(imported) if dataset is None else {}
    if dataset is not None and pairs:
        found = extremes.measured(graph, {layer.outputs[0].name: 1 for layer, _ in pairs}, dataset)
        low = {name: (each.low, each.high) for name, each in found.items()}
    result = {}
    for layer, _ in pairs:
        least, largest = low.get(layer.outputs[0].name, (np.zeros(1), np.ones(1)))
        worth = least > _WORTH * largest
        if worth.any() and least.size == layer.outputs[0].shape[1]:
            result[layer.name] = np.where(worth, least, 0.0)
    return result


def _normal(imported: gs.Graph | None) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """mean -+ 3 sigma of what every BatchNormalization writes."""
    found = {}
    for each in imported.nodes if imported is not None else ():
        if is_standard(each, "BatchNormalization") and all(isinstance(t, gs.Constant) for t in each.inputs[1:3]):
            gamma, beta = (tensor.values.astype(np.float64) for tensor in each.inputs[1:3])
            reach = _DEVIATIONS * np.abs(gamma)
            found[each.outputs[0].name] = beta - reach, beta + reach
    return found


def absorb(graph: gs.Graph, excess: Mapping[str, np.ndarray]) -> int:
    """Move c of each layer, by name, into the layers behind it, where these take it; returns how many layers gave."""
    driver, given = Driver(graph), 0
    for name, c in excess.items():
        layer = next(each for each in graph.nodes if each.name == name)
        relu = _relu_behind(graph, layer)
        if relu is None or not all(_takes(reader, c) for reader in relu.outputs[0].outputs):
            continue
        for reader in list(relu.outputs[0].outputs):
            driver.replace(reader, affine.before(reader, _shift(c), relu.outputs[0]))
        driver.replace(layer, affine.after(layer, _shift(-c)))
        driver.tidy()
        given += 1
    return given


def _shift(c: np.ndarray) -> Affine:
    return Affine(np.ones(1), c)


def _relu_behind(graph: gs.Graph, layer: gs.Node) -> gs.Node | None:
    """The Relu that alone reads a layer, and isn't what the graph gives."""
    if not is_standard(layer, *LAYERS) or layer.op == "BatchNormalization" or len(layer.outputs[0].shape or ()) < 2:
        return None
    readers, ends = layer.outputs[0].outputs, {id(tensor) for tensor in graph.outputs}
    if len(readers) != 1 or not is_standard(readers[0], "Relu") or id(layer.outputs[0]) in ends:
        return None
    return None if id(readers[0].outputs[0]) in ends or layer.op == "MatMul" else readers[0]


def _takes(reader: gs.Node, c: np.ndarray) -> bool:
    if not is_standard(reader, *LAYERS):
        return False
    try:
        affine.require_before(reader, _shift(c))
    except NoMatch:
        return False
    return all(isinstance(tensor, gs.Constant) for tensor in reader.inputs[1:] if not tensor.is_empty())
