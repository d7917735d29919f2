"""Ranges of tensors on calibration data: batch by batch, in memory that doesn't grow with the data."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_graphsurgeon as gs

from nnc import verify
from nnc.data import Dataset
from nnc.measure import tensor_bytes
from nnc.quantize.observe import Method, Observer, observer
from nnc.quantize.scheme import Scheme
from nnc.session import Session

#: The end points of a tensor's values by its name; None where they are not finite.
Ranges = Mapping[str, tuple[float, float] | None]

#: Bytes of observed tensors that a run of the network returns; for more, the data is run several times.
_MOST_BYTES = 256 << 20


def ranges(
    graph: gs.Graph,
    tensors: Sequence[gs.Variable],
    dataset: Dataset,
    scheme: Callable[[gs.Variable], Scheme],
    method: Method,
    percentile: float = 99.99,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[float, float] | None]:
    """The ranges of tensors, which are float32 and of static shape, on the dataset.

    The graph's own batch size is kept; a last batch that is not full is filled up with samples that were seen.
    """
    parts = _parts(tensors)
    found: dict[str, tuple[float, float] | None] = {}
    total = len(parts) * len(dataset)
    for index, part in enumerate(parts):
        observers = {tensor.name: observer(method, percentile) for tensor in part}
        schemes = {tensor.name: scheme(tensor) for tensor in part}
        for done in _observe(graph, observers, dataset):
            progress(index * len(dataset) + done, total)
        found |= {name: each.range(schemes[name]) if each.finite else None for name, each in observers.items()}
    return found


def _parts(tensors: Sequence[gs.Variable]) -> list[list[gs.Variable]]:
    """The tensors in lists that one run of the network can return."""
    parts: list[list[gs.Variable]] = []
    room = 0
    for tensor in tensors:
        size = tensor_bytes(tensor)
        if size > room:
            parts.append([])
            room = _MOST_BYTES
        parts[-1].append(tensor)
        room -= size
    return parts


def _observe(graph: gs.Graph, observers: Mapping[str, Observer], dataset: Dataset) -> Iterator[int]:
    """Show every sample to the observers; says how many they have seen, first 0."""
    given = {tensor.name for tensor in graph.inputs}
    session = Session(graph, outputs=[n for n in observers if n not in given], optimized=not verify.rounds(graph))
    done = 0
    yield done
    for inputs, count in dataset.full_batches(graph.inputs[0].shape[0]):
        values = {**inputs, **session.run(inputs)}
        for name, each in observers.items():
            each.add(values[name])
        done += count
        yield done
