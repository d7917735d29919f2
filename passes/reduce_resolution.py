"""reduce-resolution: the network computes on smaller images than it reads."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Self

import onnx_graphsurgeon as gs
from pydantic import Field, PositiveInt, model_validator

from nnc import evidence
from nnc.compression import resolution
from nnc.compression.budget import Budget, unreachable
from nnc.compression.resolution import Size
from nnc.errors import NncError
from nnc.measure import measure
from nnc.pattern import NoMatch
from nnc.rewrite import Context, Effect, Pass

#: Sizes that are tried on calibration data: the largest within the budget, and so many below it.
_TRIED = 12

#: How far above the size that the budget asks for the search starts: costs don't follow the area exactly.
_MARGIN = 1.2


class ReduceResolution(Pass):
    """Compute on smaller images than the model reads.

    Conv(x [1, 3, 224, 224])  ->  Conv(Resize(x) [1, 3, 196, 196])

    What the model reads and writes keeps its shape: a bilinear Resize stands behind its input, and pools over the whole
    image become global ones.

    Approximate. Within a budget, the size is the largest one; with calibration data, that of those just below it which
    loses least on labels, or without labels changes the outputs least: where strides don't divide a size, borders move.
    Declines where an output or a layer depends on the size, as the first fully connected one of VGG does.

    Reference: Howard et al., MobileNets: efficient convolutional neural networks for mobile vision applications, 2017,
    section 3.4 (resolution multiplier).
    """

    name: ClassVar[str] = "reduce-resolution"
    effect: ClassVar[Effect] = "approximate"

    size: tuple[PositiveInt, PositiveInt] | None = Field(None, description="[height, width] to compute on")
    budget: Budget | None = Field(None, description="what to keep of the network; or 'size'")

    @model_validator(mode="after")
    def _says_how_small(self) -> Self:
        if (self.size is None) == (self.budget is None):
            raise ValueError("give one of 'size' and 'budget'")
        if self.budget is not None and self.budget.metric == "params":
            raise ValueError("smaller images leave the parameters as they are: give 'budget' in macs or latency")
        return self

    def run(self, graph: gs.Graph, context: Context) -> int:
        try:
            size = self._size(graph, context)
            resized = resolution.resized(graph, size)
        except NoMatch as reason:
            context.skip(graph.nodes[0], str(reason))
            return 0
        context.predicted(macs=measure(resized).macs, latency_ms=context.predict(resized).latency_ms)
        resolution.insert_resize(graph, size)
        return 1

    def _size(self, graph: gs.Graph, context: Context) -> Size:
        """What the recipe says, or the best within the budget."""
        if self.size is None:
            return self._within_budget(graph, context)
        whole, least = resolution.size(graph), resolution.smallest(graph)
        if self.size == whole:
            raise NoMatch("the image has this size")
        if any(not low <= each <= high for low, each, high in zip(least, self.size, whole, strict=True)):
            raise NncError(f"'size' must be from {list(least)} to {list(whole)}, not {list(self.size)}")
        return self.size

    def _within_budget(self, graph: gs.Graph, context: Context) -> Size:
        """The largest size within the budget, or of those near it the one that calibration data tells is best."""
        assert self.budget is not None
        within = list(islice(self._within(graph, self.budget, context), _TRIED if context.calibration else 1))
        if context.calibration is None:
            return within[0][0]
        points, labelled = [], resolution.has_labels(graph, context)
        for index, (size, share) in enumerate(within):
            context.progress("compare sizes", index, len(within))
            resized = resolution.resized(graph, size)
            error = evidence.output_error(graph, resized, context)
            points.append({"budget": share, "error": math.inf if error is None else error})
            if labelled:
                points[-1]["loss"] = resolution.loss(resized, context)
        best = min(range(len(points)), key=lambda index: points[index].get("loss", points[index]["error"]))
        context.curve(self.budget.figure, [{**point, "chosen": index == best} for index, point in enumerate(points)])
        return within[best][0]

    def _within(self, graph: gs.Graph, budget: Budget, context: Context) -> Iterator[tuple[Size, float]]:
        """Sizes that keep within the budget, in falling order, and the shares of the cost that are left with them."""
        least, start = 1.0, max(0.5, math.sqrt(budget.share) * _MARGIN)  # half, to tell how much is left with it
        for size, share in resolution.costs(graph, budget.metric, start, context):
            if share <= budget.share:
                yield size, share
            least = min(least, share)
        if least > budget.share:
            raise unreachable(budget.share, least)
