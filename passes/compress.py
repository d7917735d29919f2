"""compress: one budget for pruning and splitting together."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_graphsurgeon as gs
from pydantic import Field

from nnc import calibrate, channels, splitting
from nnc import graph as graphs
from nnc.channels import Channels, Group
from nnc.compression import branches, pricing, pruning, resolution
from nnc.compression.branches import Branch
from nnc.compression.budget import Budget, Budgets, Solution
from nnc.compression.measured import Places
from nnc.compression.network import Network
from nnc.layers import Layer
from nnc.measure import macs, measure, params
from nnc.model.proto import is_standard
from nnc.passes.split_conv_cp import SplitConvCp
from nnc.passes.split_conv_spatial import SplitConvSpatial
from nnc.passes.split_conv_svd import SplitConvSvd
from nnc.passes.split_conv_tucker import SplitConvTucker
from nnc.passes.split_gemm_svd import SplitGemmSvd
from nnc.pattern import NoMatch
from nnc.rewrite import Context, Effect, Pass, selected
from nnc.splitting import Split

Method = Literal["prune", "svd", "spatial", "tucker", "cp", "drop", "resolution"]

_SPLITS: dict[str, tuple[type[Split], ...]] = {
    "svd": (SplitConvSvd, SplitGemmSvd),
    "spatial": (SplitConvSpatial,),
    "tucker": (SplitConvTucker,),
    "cp": (SplitConvCp,),
}

#: A share of the cost that nothing needs to be taken from.
_NEARLY_ALL = 0.99


class Compress(Pass):
    """Prune channels and split layers within one budget for the whole network.

    Conv(Relu(Conv(x, U [64, C, 3, 3])), V [K, 64, 3, 3])
      ->  Conv(Conv(Relu(Conv(x, U [40, C, 3, 3])), V' [24, 40, 3, 1]), V" [K, 24, 1, 3])

    For every group of channels a width is chosen, for every layer whether to keep it or how to split it, and for every
    residual branch whether it is left out.

    Add(x, Conv(Relu(Conv(x))))  ->  x

    Where the calibration data have labels that the network knows, it may also compute on smaller images, as
    reduce-resolution does, when less is lost in that way.

    Approximate. What each choice costs the outputs is measured once on calibration data and kept in the output folder,
    so that other budgets only solve the allocation anew; the errors of the choices are taken to add up, and the least
    sum is taken that keeps within the budget in every figure that it names. Then the layers are fitted one after the
    other by least squares. `nnc plan` shows the choices, and the trade-off where one figure binds. Declines what
    prune-channels and the split passes decline.

    Reference: the choices, see prune-channels and split-conv-spatial; the allocation, Everett, Generalized Lagrange
    multiplier method for solving problems of optimum allocation of resources, 1963.
    """

    name: ClassVar[str] = "compress"
    effect: ClassVar[Effect] = "approximate"
    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    budget: Budgets = Field(description="what to keep of the network, by one figure or several")
    methods: tuple[Method, ...] = Field(
        ("prune", "svd", "spatial", "tucker", "drop", "resolution"), min_length=1, description="the ways to choose from"
    )
    round_to: int | None = Field(
        None, ge=1, description="widths and ranks are multiples of it; without it, of the target's"
    )
    include: tuple[str, ...] = Field(("*",), description="change only layers whose name fits a glob")
    exclude: tuple[str, ...] = Field((), description="change no layers whose name fits a glob")

    def run(self, graph: gs.Graph, context: Context) -> int:
        before = graphs.copy(graph)
        plan = self._compress(graph, self.budget, context)
        option = self._smaller(before, graph, plan, context)
        if option is None or plan.budget is None:
            return _explain(before, graph, plan, context)
        graphs.restore(graph, resolution.resized(before, option.size))
        rest = plan.budget.within(option.share)
        if rest.share < _NEARLY_ALL:
            return _explain(before, graph, self._compress(graph, rest, context), context)
        self._announce(graph, context)
        return _explain(before, graph, None, context)

    def _compress(self, graph: gs.Graph, budget: Budgets, context: Context) -> "_Plan":
        """Prune and split within the budget."""
        samples = calibrate.samples(graph, context.calibration, context.seed)
        traced = channels.trace(graph)
        multiple = self.round_to or context.target.unit.channel_multiple
        groups = self._groups(graph, traced, multiple) if "prune" in self.methods else []
        one = {"budget": budget.each[0]}
        methods = [split.model_validate(one) for name in self.methods for split in _SPLITS.get(name, ())]
        layers = self._layers(graph, methods, context)
        droppable = self._branches(graph, context) if "drop" in self.methods else []
        by_name = {method.name: method for method in methods}
        places = Places(graph, traced, groups, layers, droppable, by_name, multiple)
        size: Literal["macs", "params"] = "params" if list(budget.shares) == ["params"] else "macs"
        network = Network(places, size, samples, context)
        solution, bound = pricing.solve(network, budget)
        self._announce(network.hollow(solution.state), context, solution, bound)
        return _Plan(network, solution, bound, network.compress(solution.state))

    def _smaller(
        self, before: gs.Graph, compressed: gs.Graph, plan: "_Plan", context: Context
    ) -> resolution.Option | None:
        """The size to compute on where smaller images lose less than `compressed` does."""
        if "resolution" not in self.methods or "params" in self.budget.shares:
            return None
        try:
            if (self.include, self.exclude) != (("*",), ()):
                raise NoMatch("smaller images would change the layers that the recipe excludes")
            if plan.budget is None or len(self.budget.shares) > 1:
                raise NoMatch("smaller images are compared within budgets of one figure")
            return resolution.instead(before, compressed, plan.solution, plan.budget, context)
        except NoMatch as reason:
            context.skip(before.nodes[0], str(reason))
            return None

    def _groups(self, graph: gs.Graph, traced: Channels, multiple: int) -> list[Group]:
        """The groups that may become narrower."""
        return [
            group
            for group in traced.groups
            if group.consumers
            and len(pruning.widths(group, multiple)) > 1
            and all(selected(use.node.name, self.include, self.exclude) for use in group.producers)
        ]

    def _branches(self, graph: gs.Graph, context: Context) -> list[Branch]:
        """The residual branches that may be left out."""
        chosen, nodes = [], {node.name: node for node in graph.nodes}
        for branch in branches.find(graph):
            layers = [name for name in branch.nodes if macs(nodes[name])]
            if all(selected(name, self.include, self.exclude) for name in layers):
                chosen.append(branch)
            else:
                context.skip(nodes[branch.add], "the recipe excludes a layer of the branch")
        return chosen

    def _layers(self, graph: gs.Graph, methods: list[Split], context: Context) -> list[Layer]:
        """The layers that some method may split; of the others the reasons are told."""
        chosen = []
        for node in graph.nodes:
            able = [method for method in methods if is_standard(node, *method.ops)]
            if not able:
                continue
            layer = Layer.of(node)
            if not selected(node.name, self.include, self.exclude):
                context.skip(node, "excluded by the recipe")
            elif layer is None or (reason := splitting.unfit(layer)):
                context.skip(node, splitting.no_layer(node) if layer is None else reason)
            elif all(reasons := [method.refusal(layer) for method in able]):
                context.skip(node, reasons[0])
            else:
                chosen.append(layer)
        return chosen

    def _announce(
        self, after: gs.Graph, context: Context, solution: Solution | None = None, bound: Budget | None = None
    ) -> None:
        """Tell what the network will be like, and the trade-off by the figure that binds."""
        figures, latency = measure(after), context.predict(after).latency_ms
        error = math.sqrt(solution.error) if solution else None
        context.predicted(macs=figures.macs, params=figures.params, latency_ms=latency, error=error)
        points = solution.points if solution else []
        figure = (bound or self.budget.each[0]).figure
        context.curve(figure, [{**each, "error": math.sqrt(each["error"])} for each in points])


@dataclass(frozen=True)
class _Plan:
    """What was pruned and split."""

    network: Network
    solution: Solution
    budget: Budget | None
    """Of the figure that binds; None where several do."""
    errors: dict[str, float]
    """By layer, the share of its output's energy that is lost."""

    def spelled(self, old: gs.Node) -> str:
        """The chain in place of a layer."""
        choice, layer = self.network.split(self.solution.state)[old.name], Layer(old)
        return self.network.methods[choice.method].spelled(splitting.group_shape(layer), choice.rank)


def _explain(before: gs.Graph, after: gs.Graph, plan: _Plan | None, context: Context) -> int:
    """Tell what became of every layer; returns how many changed."""
    last, changed = {node.outputs[0].name: node for node in after.nodes}, 0
    known = graphs.tensor_names(before)  # what a layer read may have gone with a branch
    dropped = [branch.nodes for branch in plan.network.left_out(plan.solution.state)] if plan else []
    left_out: frozenset[str] = frozenset().union(*dropped)
    for old in before.nodes:
        new = last.get(old.outputs[0].name)
        if macs(old) and old.name in left_out:
            context.decide(old.name, "left out", macs=(macs(old), 0), params=(params(old), 0))
            changed += 1
            continue
        if not macs(old) or new is None:
            continue
        chain = [each for each in splitting.chain_nodes(new, known) if macs(each)]
        choices = [_narrowed(old, new), plan.spelled(old) if plan and len(chain) > 1 else "", _resized(old, new)]
        sizes = (sum(map(macs, chain)), sum(map(params, chain)))
        changed += sizes != (macs(old), params(old))
        context.decide(
            old.name,
            ", ".join(filter(None, choices)) or ("keep" if sizes[0] == macs(old) else "reads fewer channels"),
            macs=(macs(old), sizes[0]),
            params=(params(old), sizes[1]),
            error=math.sqrt(plan.errors[old.name]) if plan and old.name in plan.errors else None,
        )
    return changed


def _narrowed(old: gs.Node, new: gs.Node) -> str:
    """The channels that are left of a layer's output, or nothing where all are."""
    axis = 1 if old.op in ("Conv", "ConvTranspose") else -1
    wide, narrow = (node.outputs[0].shape[axis] for node in (old, new))
    return f"{wide} -> {narrow} channels" if wide != narrow else ""


def _resized(old: gs.Node, new: gs.Node) -> str:
    """The height and width of a convolution's output, or nothing where they are as they were."""
    if old.op not in ("Conv", "ConvTranspose"):
        return ""
    large, small = (node.outputs[0].shape[2:] for node in (old, new))
    return " x ".join(map(str, small)) if large != small else ""
