"""pack-weights: a library that holds its weights entropy-coded."""

from typing import ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import packing
from nnc.display import units
from nnc.measure import macs, params, tensor_bytes
from nnc.rewrite import Context, Effect, Pass, selected


class PackWeights(Pass):
    """Store the weights of the library entropy-coded, to be decoded once when it is loaded.

    weights  ->  zlib streams of their bytes, mostly of Huffman's code alone

    The fewer bits weights were quantized to, the more there is to gain; floats have bits that nothing makes smaller.
    model.onnx keeps its weights, and names in its metadata those that the library packs. Passes behind this one make
    new weights, which are not packed: it belongs at the end. Loading takes longer and the decoded weights are memory
    that processes don't share; inference is as fast as before.

    Exact: every bit comes back. Declines layers that shrink by less than `min_saving`, and all on GPUs, whose programs
    read weights as they are. Biases and other constants of less than a kilobyte stay as they are.

    Reference: Han et al., Deep compression, ICLR 2016; DEFLATE, RFC 1951.
    """

    name: ClassVar[str] = "pack-weights"
    effect: ClassVar[Effect] = "exact"

    min_saving: float = Field(0.05, ge=0, lt=1, description="share of a layer's bytes that must be saved to pack it")
    include: tuple[str, ...] = Field(("*",), description="pack only layers whose name fits one of these globs")
    exclude: tuple[str, ...] = Field((), description="leave layers alone whose name fits one of these globs")

    def run(self, graph: gs.Graph, context: Context) -> int:
        before, names = packing.marked(graph), set()
        layers = list(packing.layers(graph))
        for done, (node, constants) in enumerate(layers):
            context.progress("pack weights", done, len(layers))
            large = [each for each in constants if tensor_bytes(each) >= packing.LEAST_BYTES]
            if large and self._pays(node, large, context):
                names |= {each.name for each in large}
        context.progress("pack weights", len(layers), len(layers))
        packing.mark(graph, names)
        return len(before ^ names)

    def _pays(self, node: gs.Node, constants: list[gs.Constant], context: Context) -> bool:
        """Whether packing a layer saves enough; what is decided is recorded."""
        if not selected(node.name, self.include, self.exclude):
            context.skip(node, "excluded by the recipe")
            return False
        if context.target.unit.kind == "gpu":
            context.skip(node, "the programs of GPUs read weights as they are")
            return False
        stored = sum(map(tensor_bytes, constants))
        share = sum(packing.packed_bytes(each.values) for each in constants) / stored
        if share > 1 - self.min_saving:
            context.skip(node, f"its weights would shrink by less than {units.percent(self.min_saving)}")
            return False
        choice = f"{units.size(stored)} packed to {units.percent(share)}"
        context.decide(node.name, choice, macs=(macs(node),) * 2, params=(params(node),) * 2)
        return True
