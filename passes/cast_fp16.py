"""cast-fp16: half the bits for every number, where they suffice."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import halving, quantize
from nnc.digests import digest, graph_digest
from nnc.measure import has_shape
from nnc.quantize import Scheme
from nnc.rewrite import Context, Effect, Pass, selected


class CastFp16(Pass):
    """Compute in float16, between inputs and outputs that stay float32.

    y = Conv(x, W)  ->  y = Cast(Conv(Cast(x), W16))

    model.onnx is half as large, and faster in runtimes that compute in float16. So are libraries for processors that do
    (AArch64 since ARMv8.2), with half the memory for activations; those for other units compute in float32.

    Approximate. Declines where float16 does not suffice: operators that easily leave its range (Exp, Pow, Softmax and
    the like), weights that are too large or too small for it, what is quantized, and with calibration data the nodes
    that read, add up or write values near its largest number, 65504. Fold BatchNormalization before.

    Reference: Micikevicius et al., Mixed precision training, ICLR 2018.
    """

    name: ClassVar[str] = "cast-fp16"
    effect: ClassVar[Effect] = "approximate"

    samples: int = Field(128, ge=1, description="calibration samples that are looked at, where there are any")
    include: tuple[str, ...] = Field(("*",), description="cast only nodes whose name fits one of these globs")
    exclude: tuple[str, ...] = Field((), description="leave nodes in float32 whose name fits one of these globs")

    def run(self, graph: gs.Graph, context: Context) -> int:
        largest = self._largest(graph, context) if context.calibration is not None else {}
        kept = set()
        for node in graph.nodes:
            reason = halving.refusal(node, graph.opset, largest)
            if not selected(node.name, self.include, self.exclude):
                reason = "excluded by the recipe"
            if reason:
                kept.add(id(node))
                if any(tensor.dtype == np.float32 for tensor in node.inputs):
                    context.skip(node, reason)
        return halving.cast(graph, kept)

    def _largest(self, graph: gs.Graph, context: Context) -> dict[str, float]:
        """The largest magnitude of every tensor on calibration data, infinite where one is not finite."""
        written = (tensor for node in graph.nodes for tensor in node.outputs)
        tensors = [each for each in (*graph.inputs, *written) if each.dtype == np.float32 and has_shape(each)]
        data = context.calibration.subset(context.seed, self.samples)
        key = digest(graph_digest(graph), context.data_key, repr((self.samples, context.seed)))

        def compute() -> dict[str, float | None]:
            found = quantize.ranges(
                graph, tensors, data, lambda tensor: Scheme("int8", symmetric=True), "min-max",
                progress=lambda done, total: context.progress("calibration", done, total),
            )  # fmt: skip
            return {name: None if ends is None else max(map(abs, ends)) for name, ends in found.items()}

        known = context.once("magnitudes", key, compute)
        return {name: np.inf if reached is None else reached for name, reached in known.items()}
