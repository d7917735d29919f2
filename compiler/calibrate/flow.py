"""A network that runs over calibration data stretch by stretch, so that what lies ahead can change."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from nnc.data import Dataset
from nnc.measure import has_shape, tensor_bytes
from nnc.session import Session

Arrays = Mapping[str, np.ndarray]

#: What the tensors that are alive at once may take, in bytes, for all samples of one flow.
FLOW_BYTES = 3 << 30

#: Samples that are used of the calibration data: layers are fitted at many positions of each.
MOST_SAMPLES = 1024


def samples(graph: gs.Graph, dataset: Dataset, seed: int, most: int = MOST_SAMPLES) -> dict[str, np.ndarray]:
    """Calibration data as arrays [batches, *shape of the input] by input name, as many as `FLOW_BYTES` leaves room for.

    The graph's own batch size is kept, so that a last batch which is not full is left out; where there are fewer
    samples than one batch holds, they are repeated.
    """
    batch = graph.inputs[0].shape[0]
    room = max(1, FLOW_BYTES // max(1, _peak_bytes(graph))) * batch
    count = min(len(dataset), room, most)
    chosen = dataset if count == len(dataset) else dataset.subset(seed, count)
    batches = [inputs for inputs, _ in chosen.full_batches(batch)]
    full = batches[: max(1, count // batch)]
    return {name: np.stack([each[name] for each in full]) for name in full[0]}


def unbatched(values: np.ndarray) -> np.ndarray:
    """[batches, N, ...] -> [batches N, ...], by samples."""
    return values.reshape(-1, *values.shape[2:])


def _peak_bytes(graph: gs.Graph) -> int:
    """The most bytes of tensors that are alive at once, for one batch."""
    last = {id(tensor): index for index, node in enumerate(graph.nodes) for tensor in node.inputs}
    last |= {id(tensor): len(graph.nodes) for tensor in graph.outputs}
    alive = {id(tensor): _bytes(tensor) for tensor in graph.inputs}
    peak = sum(alive.values())
    for index, node in enumerate(graph.nodes):
        alive |= {id(tensor): _bytes(tensor) for tensor in node.outputs}
        peak = max(peak, sum(alive.values()))
        alive = {key: size for key, size in alive.items() if last.get(key, -1) > index}
    return peak


def _bytes(tensor: gs.Tensor) -> int:
    return tensor_bytes(tensor) if tensor.dtype is not None and has_shape(tensor) else 0


class Flow:
    """A network that runs over all samples at once, one stretch of nodes after the other.

    Nodes that did not run yet may be edited and replaced. Values are arrays [batches, *shape of the tensor], or
    [batches] of arrays where the data decide the shape.
    """

    def __init__(self, graph: gs.Graph, given: Arrays) -> None:
        self._graph = graph
        self._values: dict[str, np.ndarray] = dict(given)
        self._done: set[int] = set()
        self._kept: set[str] = set()
        self.batches = len(next(iter(given.values())))

    def value(self, tensor: gs.Tensor) -> np.ndarray:
        """The value of a tensor that later nodes read or that is kept, for all samples."""
        return self._values[tensor.name]

    def holds(self, tensor: gs.Tensor) -> bool:
        """Whether the value of a tensor is at hand."""
        return tensor.name in self._values

    def keep(self, names: Iterable[str]) -> None:
        """Hold these tensors until `release`, even when nothing is left that reads them."""
        self._kept.update(names)

    def release(self, *names: str) -> None:
        """Hold these tensors no longer than nodes read them."""
        self._kept.difference_update(names)
        self._drop_dead()

    def run_before(self, node: gs.Node | None) -> None:
        """Run every node in front of `node`; all of them for None."""
        stretch = []
        for each in self._graph.nodes:
            if each is node:
                break
            if id(each) not in self._done:
                stretch.append(each)
        self._run(stretch)

    def run_through(self, node: gs.Node) -> None:
        """Run every node up to `node`, unless it ran already."""
        if id(node) not in self._done:
            self.run_before(node)
            self._run([node])

    def outputs(self, from_here: Arrays = {}) -> dict[str, np.ndarray]:  # noqa: B006  # never changed
        """The outputs of the graph if the rest ran now, with some tensors replaced; the flow stays where it is.

        Outputs whose shape the data decide are left out: nothing says which of their values belong together.
        """
        pending = [node for node in self._graph.nodes if id(node) not in self._done]
        outputs = [tensor for tensor in self._graph.outputs if has_shape(tensor)]
        produced = {tensor.name for tensor in outputs if tensor.name in self._values}
        wanted = [tensor for tensor in outputs if tensor.name not in produced]
        found = self._compute(pending, wanted, {**self._values, **from_here}) if wanted else {}
        return found | {name: self._values[name] for name in produced}

    def _run(self, stretch: list[gs.Node]) -> None:
        if not stretch:
            return
        self._done.update(id(node) for node in stretch)
        read = self._still_read()
        made = [tensor for node in stretch for tensor in node.outputs if tensor.name in read]
        self._values |= self._compute(stretch, made, self._values)
        self._drop_dead()

    def _compute(self, nodes: list[gs.Node], wanted: list[gs.Tensor], values: Arrays) -> dict[str, np.ndarray]:
        if not wanted:
            return {}
        made = {id(tensor) for node in nodes for tensor in node.outputs}
        read = {tensor.name: tensor for node in nodes for tensor in node.inputs if isinstance(tensor, gs.Variable)}
        given = {name: tensor for name, tensor in read.items() if name in values and id(tensor) not in made}
        stretch = gs.Graph(
            nodes, list(given.values()), wanted, opset=self._graph.opset,
            import_domains=self._graph.import_domains, ir_version=self._graph.ir_version,
        )  # fmt: skip
        session = Session(stretch, optimized=True)
        static = {tensor.name for tensor in wanted if has_shape(tensor)}
        results: dict[str, np.ndarray] = {}
        for index in range(self.batches):
            for name, value in session.run({name: values[name][index] for name in given}).items():
                if name not in results:
                    shape, dtype = (value.shape, value.dtype) if name in static else ((), np.dtype(object))
                    results[name] = np.empty((self.batches, *shape), dtype)
                results[name][index] = value
        return results

    def _still_read(self) -> set[str]:
        pending = (node for node in self._graph.nodes if id(node) not in self._done)
        read = {tensor.name for node in pending for tensor in node.inputs}
        return read | self._kept | {tensor.name for tensor in self._graph.outputs}

    def _drop_dead(self) -> None:
        read = self._still_read()
        self._values = {name: value for name, value in self._values.items() if name in read}
