"""onnxruntime sessions over a graph, without serializing its weights."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from nnc import graph as graphs
from nnc import wire
from nnc.errors import NncError


class Session:
    """A graph in onnxruntime, every optimization off by default: the reference that rewrites are compared with.

    The weights are handed over by address; they are neither copied nor written anywhere.
    """

    def __init__(
        self, graph: gs.Graph, *, outputs: Sequence[str] = (), optimized: bool = False, threads: int | None = None
    ) -> None:
        """`outputs` names tensors to return besides the graph's own outputs."""
        import onnxruntime as ort  # a third of a second, and `nnc --help` doesn't need it

        skeleton, weights = graphs.split(graph)
        self._weights = {name: _native(values) for name, values in weights.items()}
        for name, values in self._weights.items():
            skeleton.graph.initializer.append(wire.external_tensor(name, values, "in memory", 0))
        known = {info.name: info for info in skeleton.graph.value_info}
        own = {info.name for info in skeleton.graph.output}
        skeleton.graph.output.extend(known[name] for name in outputs if name not in own)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
        options.add_external_initializers(list(self._weights), values)
        try:
            self._session = ort.InferenceSession(skeleton.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class for what it refuses
            raise NncError(f"onnxruntime can't run the graph: {reason(error)}") from error
        self._names = [info.name for info in skeleton.graph.output]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self._names, self._session.run(None, dict(inputs)), strict=True))


def reason(error: Exception) -> str:
    """The cause in an onnxruntime message, without its code and C++ location."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).splitlines()[0])
    return re.sub(r"\S+\.(cc|h):\d+ \S+( \([^)]*\))? ?", "", text)[:300]


def _native(values: np.ndarray) -> np.ndarray:
    """`values` where onnxruntime can read them in place: contiguous and aligned to their element."""
    return np.require(values, requirements=("C", "A"))
