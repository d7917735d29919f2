"""Gradients of a loss with respect to activations, computed by an ONNX graph that onnxruntime runs.

Importance scores need no training framework with them. Taylor's (Molchanov et al. 2017, arXiv:1611.06440) is the
product of activation and gradient, summed over a channel; the Fisher information (Theis et al. 2018, arXiv:1801.05787)
is that sum squared. Both need it for each sample: losses are summed over the batch, and a sample's slice of a gradient
is its own.

The gradient is a graph too: a rule per operator writes the nodes that pass it back (Griewank and Walther 2008).
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import verify
from nnc.errors import NncError
from nnc.gradient.backward import Backward
from nnc.gradient.value import Value, Writer, apply, zeros
from nnc.logits import logits
from nnc.measure import numpy_dtype
from nnc.session import Session

__all__ = ["Gradients", "Loss", "gradients"]

Arrays: TypeAlias = Mapping[str, np.ndarray]

#: "cross-entropy": of softmax over the first output, with labels. "outputs": any weighted sum of the outputs.
Loss: TypeAlias = Literal["cross-entropy", "outputs"]


class Gradients:
    """Runs a network forward and backward in onnxruntime.

        runner = Gradients(graph, ["features.3", "features.7"])
        activations, gradients = runner.run({"input": images}, labels)
        taylor = np.abs((activations["features.3"] * gradients["features.3"]).sum(axis=(2, 3))).mean(axis=0)

    The loss is the sum over the batch. The graph's batch size is the batch's.
    """

    def __init__(
        self,
        graph: gs.Graph,
        wanted: Sequence[str],
        loss: Loss = "cross-entropy",
        *,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        """`wanted` names activations, which may be graph inputs; `seed` is for labels that are drawn.

        Raises NncError as `gradients` does.
        """
        self._wanted, self._loss = list(dict.fromkeys(wanted)), loss
        extended = gradients(graph, self._wanted, loss)
        count = len(graph.outputs)
        self._names = [tensor.name for tensor in extended.outputs[count:]]
        self._extra = extended.inputs[len(graph.inputs) :]
        self._outputs = [tensor.name for tensor in graph.outputs if _holds_floats(tensor)]
        self._rng = np.random.default_rng(seed)
        given = {tensor.name for tensor in graph.inputs}
        computed = [name for name in self._wanted if name not in given]
        self._session = Session(extended, outputs=computed, optimized=not verify.rounds(graph), threads=threads)

    def run(
        self, inputs: Arrays, labels: np.ndarray | None = None, *, cotangents: Arrays | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The wanted activations and their gradients by name, float32.

        `labels` [N] are classes; without them each sample's label is drawn from the softmax, anew in every run, so that
        squared gradients average to the Fisher information. `cotangents` are the gradients with respect to the outputs
        by name, for the loss "outputs"; an output that is left out counts 0. Random ones of variance 1 make squared
        gradients average to the Gauss-Newton diagonal of the squared error.
        """
        if self._loss == "cross-entropy" and cotangents is not None:
            raise NncError("cotangents are for the loss 'outputs', not for 'cross-entropy'")
        if self._loss == "outputs" and labels is not None:
            raise NncError("labels are for the loss 'cross-entropy', not for 'outputs'")
        labelled = self._loss == "cross-entropy"
        fed = {self._extra[0].name: self._draw(labels)} if labelled else self._cotangents(cotangents or {})
        results = {**inputs, **self._session.run({**inputs, **fed})}
        activations = {name: results[name].astype(np.float32, copy=False) for name in self._wanted}
        found = zip(self._wanted, self._names, strict=True)
        return activations, {name: results[gradient].astype(np.float32, copy=False) for name, gradient in found}

    def _draw(self, labels: np.ndarray | None) -> np.ndarray:
        """What is added to the logits so that the largest is the label."""
        samples, classes = self._extra[0].shape
        if labels is None:
            return self._rng.gumbel(size=(samples, classes)).astype(self._extra[0].dtype)
        labels = np.asarray(labels)
        if labels.shape != (samples,) or labels.dtype.kind not in "iu":
            raise NncError(f"labels must be {samples} integers, one per sample, not {labels.dtype} {labels.shape}")
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
            raise NncError(f"labels go from 0 to {classes - 1}, not from {labels.min()} to {labels.max()}")
        return np.where(labels[:, None] == np.arange(classes), np.inf, 0.0).astype(self._extra[0].dtype)

    def _cotangents(self, given: Arrays) -> dict[str, np.ndarray]:
        """The extra inputs by name, zeros where an output is left out."""
        extra = dict(zip(self._outputs, self._extra, strict=True))
        for name in given.keys() - extra.keys():
            raise NncError(f"a cotangent for '{name}', which is no output of floats", _nearest(name, extra))
        for name, values in given.items():
            if values.shape != tuple(extra[name].shape):
                raise NncError(f"the cotangent of '{name}' must be {extra[name].shape}, not {list(values.shape)}")
        return {
            tensor.name: np.asarray(given.get(name, np.zeros(tensor.shape)), tensor.dtype)
            for name, tensor in extra.items()
        }


def gradients(graph: gs.Graph, wanted: Sequence[str], loss: Loss = "cross-entropy") -> gs.Graph:
    """A copy of the graph that also outputs the gradient of every wanted tensor, in that order, as '<name>.gradient'.

    The shapes of `graph` are static, its nodes in order of execution. The copy has further inputs:

    - "cross-entropy": '<logits>.draw' [N, classes], which is added to the logits; the class with the largest sum is the
      label. Infinity names a label; Gumbel noise draws one from the softmax (Maddison et al. 2014, arXiv:1411.0030).
      The logits are the first output, or what its Softmax or LogSoftmax reads.
    - "outputs": '<output>.cotangent' for each output of floats, the gradient with respect to it.

    Where an operator is not smooth, its gradient is that of one side: Relu's is 0 at 0, Clip's is 1 at its bounds,
    MaxPool's goes to the first maximum, those of other maxima are shared evenly. Quantization passes it straight
    through in its range. A tensor that no output depends on has the gradient 0.

    Raises NncError for an unknown name, a loss that doesn't fit the outputs, and an operator without a rule.
    """
    extended = graphs.copy(graph)
    tensors = [_activation(extended, name) for name in wanted]
    writer = Writer(extended)
    backward = Backward(writer, tensors)
    for tensor, cotangent in _cross_entropy(writer) if loss == "cross-entropy" else _weighted_outputs(writer):
        backward.add(tensor, cotangent)
    backward.run()
    results = [backward.gradient(tensor) for tensor in tensors]
    for tensor, result in zip(tensors, results, strict=True):
        _add_output(writer, tensor, result)
    return extended


def _activation(graph: gs.Graph, name: str) -> gs.Variable:
    tensors = graph.tensors()
    if name not in tensors:
        raise NncError(f"the graph has no tensor '{name}'", _nearest(name, tensors))
    tensor = tensors[name]
    if isinstance(tensor, gs.Constant):
        raise NncError(f"'{name}' is a constant: gradients are of what the network computes")
    if tensor.shape is None or not _holds_floats(tensor):
        raise NncError(f"'{name}' does not hold floats of a known shape")
    return tensor


def _holds_floats(tensor: gs.Tensor) -> bool:
    return tensor.dtype is not None and numpy_dtype(tensor.dtype).kind == "f"


def _nearest(name: str, known: Mapping[str, object]) -> str | None:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else None


def _cross_entropy(writer: Writer) -> list[tuple[gs.Tensor, Value]]:
    """The gradient of the cross-entropy with respect to the logits z: softmax(z) - one-hot label."""
    tensor = logits(writer.graph.outputs[0])
    samples, classes = _samples_and_classes(tensor)
    z = Value(writer, tensor).reshape([samples, classes])
    draw = writer.variable(f"{tensor.name}.draw", z.dtype, [samples, classes])
    writer.graph.inputs.append(draw)
    label = apply("ArgMax", z + Value(writer, draw), axis=1, keepdims=1)
    one_hot = apply("Equal", label, np.arange(classes)).cast(z.dtype)
    return [(tensor, (apply("Softmax", z, axis=1) - one_hot).reshape(tensor.shape))]


def _samples_and_classes(logits: gs.Tensor) -> tuple[int, int]:
    shape = logits.shape or []
    if len(shape) < 2 or sum(size > 1 for size in shape[1:]) > 1 or not _holds_floats(logits):
        raise NncError(
            f"cross-entropy needs scores [N, classes], and '{logits.name}' is {logits.dtype} {shape}",
            "take the loss 'outputs'",
        )
    return shape[0], int(np.prod(shape[1:]))


def _weighted_outputs(writer: Writer) -> list[tuple[gs.Tensor, Value]]:
    cotangents = []
    for tensor in writer.graph.outputs:
        if _holds_floats(tensor):
            cotangent = writer.variable(f"{tensor.name}.cotangent", tensor.dtype, tensor.shape)
            writer.graph.inputs.append(cotangent)
            cotangents.append((tensor, Value(writer, cotangent)))
    return cotangents


def _add_output(writer: Writer, tensor: gs.Tensor, gradient: Value | None) -> None:
    """Name a gradient and make it an output of the graph."""
    writer.prefix = f"{tensor.name}.gradient"
    if gradient is None:
        gradient = zeros(Value(writer, tensor), tensor.shape)
    elif not gradient.tensor.inputs or any(gradient.tensor is each for each in writer.graph.outputs):
        gradient = apply("Identity", gradient)  # an input, or the gradient of another tensor too
    gradient.tensor.name = writer.variable(f"{tensor.name}.gradient").name
    writer.graph.outputs.append(gradient.tensor)
