"""Which nodes become one kernel, and what is alive between kernels."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph, networks
from nnc.simulation.kernels import kernels, peak_bytes

SHAPE = (1, 4, 8, 8)
SIZE = 1024  # bytes of one float32 tensor of that shape


class Draft:
    """A graph under construction, of 1x1 convolutions and elementwise nodes on one shape."""

    def __init__(self) -> None:
        self.input = gs.Variable("x", np.float32, SHAPE)
        self.nodes: list[gs.Node] = []

    def add(
        self, op: str, *inputs: gs.Tensor, dtype: type = np.float32, shape: tuple[int, ...] = SHAPE, **attrs: object
    ) -> gs.Variable:
        output = gs.Variable(f"t{len(self.nodes)}", dtype, shape)
        self.nodes.append(gs.Node(op, inputs=list(inputs), outputs=[output], attrs=attrs))
        return output

    def conv(self, x: gs.Tensor) -> gs.Variable:
        return self.add("Conv", x, gs.Constant(f"w{len(self.nodes)}", np.ones((4, 4, 1, 1), np.float32)))

    def finish(self, *outputs: gs.Variable) -> gs.Graph:
        return gs.Graph(self.nodes, [self.input], list(outputs))


def fused(built: gs.Graph) -> list[str]:
    return ["+".join(node.op for node in kernel.nodes) for kernel in kernels(built)]


def test_elementwise_nodes_join_the_layer_before_them() -> None:
    draft = Draft()
    x = draft.add("Relu", draft.conv(draft.input))
    y = draft.add("Sigmoid", draft.conv(x))
    assert fused(draft.finish(y)) == ["Conv+Relu", "Conv+Sigmoid"]


def test_an_engine_that_does_not_fuse_runs_every_node_by_itself() -> None:
    draft = Draft()
    built = draft.finish(draft.add("Swish", draft.conv(draft.input)))
    assert fused(built) == ["Conv+Swish"]
    assert [len(kernel.nodes) for kernel in kernels(built, fused=False)] == [1, 1]


def test_an_output_with_a_second_reader_is_written() -> None:
    draft = Draft()
    x = draft.conv(draft.input)
    y = draft.add("Relu", x)
    z = draft.add("Tanh", x)
    assert fused(draft.finish(draft.add("MaxPool", y), draft.add("MaxPool", z))) == [
        "Conv", "Relu", "Tanh", "MaxPool", "MaxPool",
    ]  # fmt: skip


def test_an_output_of_the_graph_is_written() -> None:
    draft = Draft()
    x = draft.conv(draft.input)
    assert fused(draft.finish(x, draft.add("Relu", x))) == ["Conv", "Relu"]


def test_a_residual_joins_the_later_of_its_branches() -> None:
    draft = Draft()
    left = draft.conv(draft.input)
    right = draft.conv(draft.input)
    built = draft.finish(draft.add("Relu", draft.add("Add", right, left)))
    assert fused(built) == ["Conv", "Conv+Add+Relu"]
    # The second kernel reads the graph's input and what the first one left.
    assert [tensor.name for tensor in kernels(built)[1].activations] == ["x", "t0"]


def test_a_gate_is_not_computed_per_value_that_it_scales() -> None:
    draft = Draft()
    x = draft.conv(draft.input)
    gate = draft.add("Sigmoid", draft.add("GlobalAveragePool", x, shape=(1, 4, 1, 1)), shape=(1, 4, 1, 1))
    assert fused(draft.finish(draft.add("Mul", x, gate))) == ["Conv", "GlobalAveragePool+Sigmoid", "Mul"]


def test_quantized_layers_read_and_write_integers() -> None:
    draft = Draft()
    scale, zero = gs.Constant("s", np.array(0.1, np.float32)), gs.Constant("z", np.array(0, np.int8))
    q = draft.add("QuantizeLinear", draft.input, scale, zero, dtype=np.int8)
    weight = gs.Constant("w", np.ones((4, 4, 1, 1), np.int8))
    w = draft.add("DequantizeLinear", weight, scale, zero, shape=(4, 4, 1, 1))
    y = draft.add("Relu", draft.add("Conv", draft.add("DequantizeLinear", q, scale, zero), w))
    out = draft.add("QuantizeLinear", y, scale, zero, dtype=np.int8)
    built = draft.finish(draft.add("DequantizeLinear", out, scale, zero))
    first, second = kernels(built)
    assert fused(built) == ["QuantizeLinear", "Conv+Relu+QuantizeLinear"]
    assert (first.dtype, second.dtype) == ("int8", "int8")
    assert second.activations == [q]
    assert weight in second.weights
    # Alive at most: the float input and its int8 copy.
    assert peak_bytes(built, [first, second]) == SIZE + SIZE // 4


def test_constant_nodes_are_computed_at_compile_time() -> None:
    draft = Draft()
    constant = draft.add("Neg", gs.Constant("c", np.ones(SHAPE, np.float32)))
    assert fused(draft.finish(draft.add("Add", draft.input, constant))) == ["Add"]


def test_memory_of_a_chain_is_two_tensors() -> None:
    draft = Draft()
    x = draft.input
    for _ in range(5):
        x = draft.conv(x)
    built = draft.finish(x)
    assert peak_bytes(built, kernels(built)) == 2 * SIZE


def test_memory_of_a_shortcut_is_one_tensor_more() -> None:
    draft = Draft()
    x = draft.conv(draft.input)
    y = draft.conv(draft.conv(x))
    built = draft.finish(draft.add("Add", y, x))
    assert peak_bytes(built, kernels(built)) == 3 * SIZE


def test_outputs_and_unread_inputs_count() -> None:
    draft = Draft()
    first = draft.conv(draft.input)
    second = draft.conv(draft.conv(first))
    built = draft.finish(first, second)
    built.inputs.append(gs.Variable("unread", np.float32, SHAPE))
    # The unread input is dropped after the first kernel: input, unread and first output; then first, t1 and second.
    assert peak_bytes(built, kernels(built)) == 3 * SIZE


def test_an_operator_without_a_shape_takes_no_memory() -> None:
    draft = Draft()
    mystery = gs.Variable("m", None, None)
    draft.nodes.append(gs.Node("Mystery", inputs=[draft.input], outputs=[mystery]))
    built = draft.finish(mystery)
    assert fused(built) == ["Mystery"]
    assert peak_bytes(built, kernels(built)) == SIZE


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "resnet18"])
def test_bounds_of_real_networks(name: str) -> None:
    built = graph.from_model(networks.build(name))
    executed = kernels(built)
    tensors = {id(tensor): tensor for kernel in executed for tensor in [*kernel.activations, *kernel.outputs]}
    together = sum(int(np.prod(tensor.shape)) * 4 for tensor in tensors.values())
    largest = max(
        sum(int(np.prod(tensor.shape)) * 4 for tensor in [*kernel.activations, *kernel.outputs]) for kernel in executed
    )
    assert largest <= peak_bytes(built, executed) < together
    assert sum(kernel.macs for kernel in executed) > 0
    assert sum(node.op == "Conv" for node in built.nodes) == sum(kernel.anchor.op == "Conv" for kernel in executed)
