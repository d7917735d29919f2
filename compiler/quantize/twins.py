"""A network in floats and the same network quantized, run side by side over calibration data.

The quantized one is simulated: its weights are floats on their grid, so that onnxruntime computes it without the
integer kernels that saturate; activations are rounded as they are in the QDQ graph.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from nnc import calibrate
from nnc import graph as graphs
from nnc.calibrate import Flow, shortcut, unbatched
from nnc.errors import NncError
from nnc.layers import Layer
from nnc.quantize import layers
from nnc.rewrite import Context, Driver


def unquantized(context: Context, graph: gs.Graph) -> gs.Graph:
    """The graph before its first quantized layer, which the pipeline keeps; NncError where there is none."""
    kept, quantized = context.unquantized, layers(graph)
    if not quantized:
        raise NncError("no layer is quantized", "insert-qdq must be in front of it, and find layers to quantize")
    if kept is None or not quantized.keys() & {node.name for node in kept.nodes}:
        raise NncError("the floats that were quantized are not known", "put it behind insert-qdq in the same recipe")
    return kept


class Twins:
    """Layers of a quantized graph and their originals, in order of execution.

    `simulated` and `floats` have the layers that the original has in floats and in the same shape, by name. A layer
    whose weights were changed in `graph` is to be put into the simulation with `update`.
    """

    def __init__(self, graph: gs.Graph, original: gs.Graph, samples: Mapping[str, np.ndarray]) -> None:
        self.layers = layers(graph)
        self._originals = {node.name: node for node in original.nodes}
        self._simulated = graphs.copy(graph)
        self._nodes = {node.name: node for node in self._simulated.nodes}
        self._driver = Driver(self._simulated)
        for name in self.layers:
            self.update(name)
        self.simulated: dict[str, Layer] = {}
        self.floats: dict[str, Layer] = {}
        for name in self.layers:
            simulated = Layer.of(self._nodes[name])
            floats = Layer.of(self._originals[name]) if name in self._originals else None
            if simulated is not None and floats is not None and _shape(simulated) == _shape(floats):
                self.simulated[name], self.floats[name] = simulated, floats
        self.now, self.then = Flow(self._simulated, samples), Flow(original, samples)
        self.then.keep(layer.node.outputs[0].name for layer in self.floats.values())

    def unknown(self, name: str) -> str:
        """Why a layer is not simulated beside its original, or nothing."""
        if name in self.simulated:
            return ""
        layer = self.layers[name]
        is_computed = layer.added is not None and layer.bias is None
        return "what it adds is computed" if is_computed else "its weights before quantization are not known"

    def update(self, name: str) -> None:
        """Simulate a layer with the integers that it has."""
        layer, node = self.layers[name], self._nodes[name]
        node.inputs[layer.index] = self._constant(layer.node.inputs[layer.index], layer.weight)
        if (bias := layer.bias) is not None:
            shape = layer.node.inputs[2].shape
            if len(node.inputs) < 3:
                node.inputs.append(gs.Variable.empty())
            node.inputs[2] = self._constant(layer.node.inputs[2], bias.reshape(shape))

    def _constant(self, like: gs.Tensor, values: np.ndarray) -> gs.Constant:
        return self._driver.constant(f"{like.name}/simulated", values.astype(np.float32))

    def read(self, name: str) -> np.ndarray:
        """What a layer reads now, [batches, *shape]."""
        layer = self.simulated[name]
        self.now.run_before(layer.node)
        return self.now.value(layer.node.inputs[0])

    def target(self, name: str) -> Callable[[slice], np.ndarray]:
        """What a layer shall give by samples: the original's output, less the error of what is then added to it."""
        floats = self.floats[name].node
        output = floats.outputs[0]
        self.then.run_through(floats)
        added = shortcut(self._nodes[name], self.now, self._originals, self.then)

        def target(part: slice) -> np.ndarray:
            y = unbatched(self.then.value(output))[part]
            if added is None:
                return y
            return y + unbatched(self.then.value(added[0]))[part] - unbatched(self.now.value(added[1]))[part]

        return target

    def release(self, name: str) -> None:
        """Forget the target of a layer."""
        self.then.release(self.floats[name].node.outputs[0].name)


def _shape(layer: Layer) -> tuple[int, ...]:
    """Of the matrix [g, K / g, D], and of what the layer gives."""
    return layer.groups, layer.outputs, layer.columns, *layer.node.outputs[0].shape


def samples(graph: gs.Graph, context: Context, most: int) -> dict[str, np.ndarray]:
    """Calibration data for both networks."""
    return calibrate.samples(graph, context.calibration, context.seed, most)
