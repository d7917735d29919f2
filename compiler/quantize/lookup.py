"""The integers of a layer in a QDQ graph, for passes that change them."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from nnc.integers import LAYERS
from nnc.measure import has_shape
from nnc.model.proto import is_standard
from nnc.quantize.insertion import MOST_BIAS
from nnc.quantize.placement import made_of_integers
from nnc.quantize.scheme import Scheme, dequantized


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer whose weights are a DequantizeLinear of a constant."""

    graph: gs.Graph
    node: gs.Node
    index: int
    """Which input of the node the weights are."""

    @property
    def dequantize(self) -> gs.Node:
        """The node that makes the weights."""
        return self.node.inputs[self.index].inputs[0]

    @property
    def sharers(self) -> list[gs.Node]:
        """The other nodes that read its weights."""
        return [each for each in self.node.inputs[self.index].outputs if each is not self.node]

    @property
    def integers(self) -> np.ndarray:
        """int8 or uint8, in the layout of the node's weights."""
        return self.dequantize.inputs[0].values

    @property
    def scale(self) -> np.ndarray:
        """float32 [channels] along `axis`, or a single one []."""
        return self.dequantize.inputs[1].values

    @property
    def zero(self) -> np.ndarray:
        """Of the dtype of the integers, in the shape of the scale."""
        inputs = self.dequantize.inputs
        return inputs[2].values if len(inputs) > 2 else np.zeros(self.scale.shape, self.integers.dtype)

    @property
    def axis(self) -> int | None:
        """What scales are along; None for a single one."""
        return self.dequantize.attrs.get("axis", 1) % self.integers.ndim if self.scale.size > 1 else None

    @property
    def scheme(self) -> Scheme:
        """How the weights are quantized: in as few bits as hold their integers, as long as no zero point says more."""
        largest = int(np.abs(self.integers.astype(np.int16)).max(initial=0))
        if self.integers.dtype == np.uint8:
            bits = max(2, largest.bit_length(), int(self.zero.max(initial=0)).bit_length())
            return Scheme("uint8", bool(np.all(self.zero == 2 ** (bits - 1))), self.axis is not None, bits)
        symmetric = not np.any(self.zero)
        bits = min(8, max(2, largest.bit_length() + 1)) if symmetric else 8
        return Scheme("int8", symmetric, self.axis is not None, bits)

    @property
    def weight(self) -> np.ndarray:
        """What the integers stand for, float64, in the layout of the node's weights."""
        return dequantized(self.integers, self.scale, self.zero, self.axis)

    @property
    def input_scale(self) -> float | None:
        """The step of what the layer reads; None where that is not quantized."""
        x = self.node.inputs[1 - self.index]
        return float(x.inputs[0].inputs[1].values.max()) if made_of_integers(x) else None

    @property
    def added(self) -> gs.Tensor | None:
        """What is added to the products, a constant or computed; None where nothing is."""
        inputs = self.node.inputs
        return None if len(inputs) < 3 or inputs[2].is_empty() else inputs[2]

    @property
    def stored_bias(self) -> gs.Node | None:
        """The DequantizeLinear of a bias that is stored in integers; None of any other."""
        if self.added is None or not made_of_integers(self.added):
            return None
        maker = self.added.inputs[0]
        return maker if all(isinstance(each, gs.Constant) or each.is_empty() for each in maker.inputs) else None

    @property
    def bias(self) -> np.ndarray | None:
        """float64 [channels]; None where the layer has none, or one that is computed."""
        if isinstance(self.added, gs.Constant):
            return self.added.values.astype(np.float64).reshape(-1)
        if self.stored_bias is None:
            return None
        integers, scale, *zero = (each.values for each in self.stored_bias.inputs if not each.is_empty())
        axis = self.stored_bias.attrs.get("axis", 1)
        return dequantized(integers, scale, zero[0] if zero else None, axis).reshape(-1)

    def set_integers(self, integers: np.ndarray) -> None:
        """Replace the weights; nodes that share them keep the old ones."""
        maker = self.own(self.index)
        old = maker.inputs[0]
        maker.inputs[0] = gs.Constant(f"{maker.name}/integers", integers.astype(old.values.dtype))

    def set_bias(self, bias: np.ndarray) -> None:
        """Replace the bias, which the layer must have, [channels]; integers stay integers of the same steps."""
        tensor = self.node.inputs[2]
        if isinstance(tensor, gs.Constant):
            self.node.inputs[2] = gs.Constant(f"{self.node.outputs[0].name}/bias", bias.astype(np.float32))
            return
        maker = self.own(2)
        steps = maker.inputs[1].values.astype(np.float64)
        stored = np.clip(np.rint(bias / steps), -MOST_BIAS, MOST_BIAS).astype(np.int32)
        maker.inputs[0] = gs.Constant(f"{maker.name}/integers", stored)

    def own(self, index: int) -> gs.Node:
        """The DequantizeLinear in front of an input, which only this layer reads afterwards."""
        tensor = self.node.inputs[index]
        maker = tensor.inputs[0]
        if len(tensor.outputs) == 1:
            return maker
        name = f"{self.node.outputs[0].name}/{'bias' if index == 2 else 'weights'}"
        copied = gs.Variable(name, tensor.dtype, list(tensor.shape))
        self.node.inputs[index] = copied
        own = gs.Node(maker.op, name, dict(maker.attrs), list(maker.inputs), [copied])
        self.graph.nodes.insert(self.graph.nodes.index(self.node), own)
        return own


def layers(graph: gs.Graph) -> dict[str, QuantizedLayer]:
    """The layers of a graph with stored integers for weights, by name, in order of execution."""
    found = {}
    for node in graph.nodes:
        if is_standard(node, *LAYERS) and has_shape(*node.outputs):
            index = next((index for index in (1, 0) if _is_stored(node.inputs[index])), None)
            if index is not None:
                found[node.name] = QuantizedLayer(graph, node, index)
    return found


def _is_stored(tensor: gs.Tensor) -> bool:
    """Whether a tensor is made of stored 8-bit integers with one scale, or one per channel."""
    if not made_of_integers(tensor):
        return False
    if tensor.inputs[0].attrs.get("block_size", 0):  # no pass changes these
        return False
    inputs = [each for each in tensor.inputs[0].inputs if not each.is_empty()]
    return all(isinstance(each, gs.Constant) for each in inputs) and inputs[0].dtype in (np.int8, np.uint8)
