"""What the author of a pass needs to test it: ONNX text in, operators out, outputs unchanged.

    from nnc import testing

    CHAIN = '''
    net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
    <float[4, 3, 3, 3] W, float[4] scale, float[4] bias, float[4] mean, float[4] var>
    {
        c = Conv<pads = [1, 1, 1, 1]>(x, W)
        y = BatchNormalization(c, scale, bias, mean, var)
    }
    '''

    def test_batchnorm_behind_conv() -> None:
        testing.check(FoldBatchNorm(), CHAIN, ops=["Conv"])

    def test_intermediate_value_is_an_output() -> None:
        twice = CHAIN.replace("8] y)", "8] y, float[1, 4, 8, 8] c)")
        testing.check_unchanged(FoldBatchNorm(depthwise=False), twice, "another reader")

Weights that the text only declares are drawn at random, those of BatchNormalization's variance above 0; others are
given by name: `testing.graph(CHAIN, scale=np.ones(4))`. The text is onnx's own, https://onnx.ai/onnx/repo-docs/Syntax.html;
without a header it is at opset 17.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.parser import parse_graph, parse_model

from nnc import graph as graphs
from nnc import pipeline, target, verify
from nnc.channels import Channels
from nnc.rewrite import Pass


@dataclass(frozen=True)
class Result:
    """What a pass made of a graph."""

    graph: gs.Graph
    changed: int
    skipped: dict[str, str]
    """Why a place was left alone, by the node's name."""

    @property
    def ops(self) -> list[str]:
        """The operators in order of execution."""
        return [node.op for node in self.graph.nodes]


def model(text: str, *, opset: int = graphs.OPSET, seed: int = 0, **values: Any) -> onnx.ModelProto:
    """The model that ONNX text describes; `values` are its weights by name, the others are drawn from `seed`."""
    if text.lstrip().startswith("<"):
        parsed = parse_model(text)
    else:
        parsed = onnx.helper.make_model(
            parse_graph(text), opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
        )
    graph = parsed.graph
    rng = np.random.default_rng(seed)
    produced = {name for node in graph.node for name in node.output}
    variances = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[4:]}
    for info in [info for info in graph.value_info if info.name not in produced]:
        drawn = values[info.name] if info.name in values else _draw(rng, info, positive=info.name in variances)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(drawn, dtype), info.name))
        graph.value_info.remove(info)
    return parsed


def graph(text: str, *, opset: int = graphs.OPSET, seed: int = 0, **values: Any) -> gs.Graph:
    """`model` as the graph that a pass gets."""
    return graphs.from_model(model(text, opset=opset, seed=seed, **values))


def run(pass_: Pass, before: gs.Graph | str, context: pipeline.Context | None = None) -> Result:
    """Apply a pass as the pipeline does; the graph before it stays as it was, that after it is verified against it."""
    before = graph(before) if isinstance(before, str) else before
    context = context or pipeline.Context(target.load("x86"), imported=before)
    after, context.skipped = graphs.copy(before), {}
    changed = pass_.run(after, context)
    verify.check_invariants(after)
    verify.check_interface(after, before)
    assert changed or graphs.to_model(after) == graphs.to_model(before), f"{pass_.name} changed the graph and says 0"
    return Result(after, changed, {entry["node"]: entry["reason"] for entry in context.skipped.values()})


def check(
    pass_: Pass,
    before: gs.Graph | str,
    ops: Sequence[str] | None = None,
    *,
    exact: bool | None = None,
    context: pipeline.Context | None = None,
    seed: int = 0,
) -> Result:
    """Apply a pass and assert a valid graph, the same outputs, and that a second run finds nothing more to do.

    `ops` are the operators afterwards, in order of execution. Outputs must be equal within rounding where `exact`,
    which is by default what the pass says of itself.
    """
    before = graph(before) if isinstance(before, str) else before
    result = run(pass_, before, context)
    if ops is not None:
        assert result.ops == list(ops), f"the operators are {result.ops}, not {list(ops)}"
    if pass_.effect == "exact" if exact is None else exact:
        check_outputs(before, result.graph, seed)
    assert not run(pass_, result.graph, context).changed, f"{pass_.name} changes its own result"
    return result


def check_unchanged(
    pass_: Pass, before: gs.Graph | str, reason: str, context: pipeline.Context | None = None
) -> Result:
    """Assert that a pass leaves a graph alone, and says a reason that the regular expression `reason` finds."""
    result = run(pass_, before, context)
    assert result.changed == 0, f"{pass_.name} changed {result.changed} places"
    found = list(result.skipped.values())
    assert any(re.search(reason, each) for each in found), f"no reason fits {reason!r} among {found}"
    return result


def check_outputs(before: gs.Graph, after: gs.Graph, seed: int = 0) -> None:
    """Assert that two graphs compute the same in onnxruntime on random inputs, within rounding."""
    inputs = verify.probe_inputs(before, seed)
    reference, result = verify.reference(before, inputs), verify.outputs(after, inputs)
    moved = verify.differences(reference, result, before)
    assert max(moved.values(), default=0.0) <= verify.tolerance(before), (
        f"outputs moved, relative to the largest: {moved}"
    )


def zeroed(graph: gs.Graph, channels: Channels, ids: Collection[int]) -> gs.Graph:
    """A copy in which channels are 0 in every tensor: its outputs are those of the graph without them.

    `ids` are some of the channels that `nnc.channels.trace` found. Channels that were not a number are 0 too.
    """
    copy = graphs.copy(graph)
    nodes = []
    for node in copy.nodes:
        nodes.append(node)
        for index, tensor in enumerate(node.outputs):
            place = channels.of(tensor)
            if place is None or tensor.dtype != np.float32:
                continue
            shape = [-1 if axis == place[0] else 1 for axis in range(len(tensor.shape))]
            removed = gs.Constant(f"{tensor.name}.removed", np.isin(place[1], list(ids)).reshape(shape))
            zero = gs.Constant(f"{tensor.name}.zero", np.zeros((), np.float32))
            node.outputs[index] = gs.Variable(f"{tensor.name}.whole", tensor.dtype, list(tensor.shape))
            nodes.append(gs.Node("Where", removed.name, {}, [removed, zero, node.outputs[index]], [tensor]))
    copy.nodes = nodes
    return copy


def weights(graph: gs.Graph) -> Mapping[str, np.ndarray]:
    """The constants of a graph by name."""
    return {tensor.name: tensor.values for tensor in graphs.constants(graph)}


def _draw(rng: np.random.Generator, info: onnx.ValueInfoProto, positive: bool) -> np.ndarray:
    """Random weights of the declared shape."""
    kind = info.type.tensor_type
    if onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).kind != "f":
        raise ValueError(f"give the values of {info.name}: only floats are drawn")
    shape = [dim.dim_value for dim in kind.shape.dim]
    return rng.uniform(0.5, 1.5, shape) if positive else rng.standard_normal(shape)
