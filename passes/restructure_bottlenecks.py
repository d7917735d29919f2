"""restructure-bottlenecks: inverted residual blocks of other widths, and fewer of them."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import onnx_graphsurgeon as gs
from pydantic import Field, model_validator

from nnc import bottlenecks, calibrate, channels
from nnc.bottlenecks import Before, Block, Change, Choice, Method, surgery
from nnc.bottlenecks.places import Places
from nnc.compression.budget import Budget, Solution, unreachable
from nnc.measure import measure
from nnc.rewrite import Context, Effect, Pass


class RestructureBottlenecks(Pass):
    """Give inverted residual blocks other expansions and widths, or leave them out.

    Add(x, project(depthwise(expand(x, W [144, 24]), [144, 3, 3]), V [24, 144]))
      ->  Add(x, project(depthwise(expand(x, W [96, 24]), [96, 3, 3]), V [24, 96]))

    `blocks` says what becomes of which block, or a `budget` chooses among narrower blocks and none by what each costs
    the outputs. `nnc plan` shows the blocks: "stage2.3" is the third of the second stage, as tables of MobileNets count
    them. What becomes wider computes the same: channels are copied, and their readers share them out. What becomes
    narrower loses the channels that matter least; with calibration data the layers behind are refitted.

    Approximate, and exact where blocks only become wider; fine-tune behind it trains what is left. Declines depthwise
    convolutions that are in no such block, expansions of blocks that don't expand, and leaving out a block without a
    shortcut.

    Reference: Lee, Lee, Ho, 2020, MobileNetV2 restructured; Sandler et al., MobileNetV2: inverted residuals and linear
    bottlenecks, CVPR 2018; Chen, Goodfellow, Shlens, Net2Net: accelerating learning via knowledge transfer, ICLR 2016.
    """

    name: ClassVar[str] = "restructure-bottlenecks"
    effect: ClassVar[Effect] = "approximate"

    blocks: dict[str, Change] | None = Field(
        None, min_length=1, description="by globs of blocks, or of their convolutions, what shall become of them: "
        "{ expansion = 4 }, { width = 48 } or { drop = true }"
    )  # fmt: skip
    budget: Budget | None = Field(None, description="what to keep of the network; this or 'blocks'")
    methods: tuple[Method, ...] = Field(
        ("expansion", "width", "drop"), min_length=1, description="what a budget may change"
    )
    round_to: int | None = Field(
        None, ge=1, description="within a budget, widths are multiples of it; without it, of the target's"
    )
    refit: bool = Field(True, description="fit the layers behind to the calibration data, where there is some")
    include: tuple[str, ...] = Field(("*",), description="change only blocks of which a glob fits")
    exclude: tuple[str, ...] = Field((), description="change no blocks of which a glob fits")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.blocks is None) == (self.budget is None):
            raise ValueError("give either 'blocks' or 'budget'")
        return self

    def run(self, graph: gs.Graph, context: Context) -> int:
        blocks = self._selected(bottlenecks.find(graph, context.skip), context)
        before = Before.of(graph, blocks, context)
        if self.blocks is not None:
            asked = bottlenecks.wanted(blocks, self.blocks)
            Places(blocks, channels.trace(graph)).tell(asked, graph, context)
            surgery.widen(graph, blocks, asked, context)
            surgery.narrow(graph, blocks, asked, context, self.refit)
        else:
            self._choose(graph, blocks, context)
        return before.explain(graph, context)

    def _selected(self, blocks: Sequence[Block], context: Context) -> list[Block]:
        """The blocks that may change; of the others the reason is told."""
        chosen = []
        for block in blocks:
            if any(map(block.fits, self.include)) and not any(map(block.fits, self.exclude)):
                chosen.append(block)
            else:
                context.skip(block.depthwise, "excluded by the recipe")
        return chosen

    def _choose(self, graph: gs.Graph, blocks: Sequence[Block], context: Context) -> None:
        """Narrow the blocks within the budget, and leave some out."""
        assert self.budget is not None
        samples = calibrate.samples(graph, context.calibration, context.seed) if context.calibration else None
        multiple = self.round_to or context.target.unit.channel_multiple
        plan = Choice.of(graph, blocks, self.methods, multiple, samples, context)
        if not plan.groups:
            if self.budget.share < 1:
                raise unreachable(self.budget.share, 1.0)
            return
        solution = plan.within(self.budget.metric, self.budget.share)
        self._predict(plan, solution, samples is not None)
        ids, dropped = plan.removed(solution.state), plan.dropped(solution.state)
        surgery.take_out(graph, plan.traced, ids, dropped, samples, context, self.refit)

    def _predict(self, plan: Choice, solution: Solution, measured: bool) -> None:
        """Say what is expected; only measured errors are those of the outputs."""
        assert self.budget is not None
        hollow, context = plan.hollow(solution.state), plan.context
        figures = measure(hollow)
        error = math.sqrt(solution.error) if measured else None
        latency = context.predict(hollow).latency_ms
        context.predicted(macs=figures.macs, params=figures.params, latency_ms=latency, error=error)
        if measured:
            points = ({**point, "error": math.sqrt(point["error"])} for point in solution.points)
            context.curve(self.budget.figure, points)
