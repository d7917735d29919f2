"""onnxruntime sessions over a graph, without serializing its weights."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from nnc import errors
from nnc.errors import NncError
from nnc.model import proto, wire


class Session:
    """A graph in onnxruntime, every optimization off by default: the reference that rewrites are compared with.

    Weights that lie in a file are read from there by onnxruntime, as pages that the system can drop. Others are handed
    over by address, as inputs; only an optimized session, which has to know them beforehand, copies them.
    """

    def __init__(
        self,
        graph: gs.Graph,
        *,
        outputs: Sequence[str] = (),
        optimized: bool = False,
        integer_kernels: bool = False,
        threads: int | None = None,
    ) -> None:
        """`outputs` names tensors to return besides the graph's own outputs.

        What lies between DequantizeLinear and QuantizeLinear is computed in floats, as the graph says; an optimized
        session with `integer_kernels` may take those of integers instead, which saturate on processors without VNNI.
        """
        model, weights = proto.split(graph)
        known = {info.name: info for info in model.graph.value_info}
        own = {info.name for info in model.graph.output}
        model.graph.output.extend(known[name] for name in outputs if name not in own)
        options = _options(optimized, threads)
        options.add_session_config_entry("session.disable_quant_qdq", str(int(not integer_kernels)))
        in_memory = _refer_to_files(model, weights, options)
        self._fed: dict[str, np.ndarray] = {}
        self._copied: list[np.ndarray] = []
        if optimized:
            self._copied = _copy(model, in_memory, options)
        else:
            self._fed = _feed(model, in_memory)
        self._session = _start(model, options)
        self._names = [info.name for info in model.graph.output]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self._names, _run(self._session, {**inputs, **self._fed}), strict=True))


def compute(
    nodes: Iterable[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    opset_imports: Iterable[onnx.OperatorSetIdProto],
) -> list[np.ndarray]:
    """The tensors `wanted` that `nodes`, which are in order, compute from `constants`."""
    graph = onnx.GraphProto(name="constants", node=nodes, output=[onnx.ValueInfoProto(name=name) for name in wanted])
    model = onnx.ModelProto(graph=graph, opset_import=opset_imports)
    model.ir_version = proto.ir_version_for(model.opset_import)
    fed = _feed(model, constants)
    return _run(_start(model, _options(optimized=False, threads=1)), fed)


def cause(error: Exception) -> str:
    """The cause in an onnxruntime message, without its code and C++ location."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", errors.reason(error))
    return re.sub(r"\S+\.(cc|h):\d+ \S+( \([^)]*\))? ?", "", text)


def _options(optimized: bool, threads: int | None) -> Any:
    import onnxruntime as ort  # not needed by most commands

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may need the cores
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _feed(model: onnx.ModelProto, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make weights inputs of the model; small ones, and types that can't be fed, become initializers."""
    fed = {}
    for name, values in weights.items():
        if proto.is_large(values) and values.dtype.kind != "V":  # the types of ml_dtypes can't be fed
            fed[name] = np.ascontiguousarray(values)
            model.graph.input.append(proto.value_info(name, values.dtype, values.shape))
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return fed


def _copy(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], options: Any) -> list[np.ndarray]:
    """Make weights initializers; returns the arrays, which must live until onnxruntime has copied what it wants."""
    import onnxruntime as ort

    copied: dict[str, np.ndarray] = {}
    for name, values in weights.items():
        if values.dtype.kind == "V":
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        else:
            model.graph.initializer.append(wire.external_tensor(name, values, "in memory", 0))
            copied[name] = np.require(values, requirements=("C", "A"))  # a new array where they lie otherwise
    options.add_external_initializers(list(copied), [*map(ort.OrtValue.ortvalue_from_numpy, copied.values())])
    return list(copied.values())


def _refer_to_files(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], options: Any) -> dict[str, np.ndarray]:
    """Add initializers that refer to the file with most of the weights; returns the weights that lie elsewhere."""
    places = {name: place for name, values in weights.items() if (place := wire.origin(values)) is not None}
    bytes_in = Counter[Path]()
    for name, (path, _) in places.items():
        bytes_in[path] += weights[name].nbytes
    chosen = next((path for path, _ in bytes_in.most_common() if wire.is_current(path)), None)
    if chosen is None:
        return dict(weights)
    folder, file = chosen.resolve().parent, chosen.resolve().name  # onnxruntime refuses links that leave the folder
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    elsewhere = {}
    for name, values in weights.items():
        place = places.get(name)
        if place is not None and place[0] == chosen:
            model.graph.initializer.append(wire.external_tensor(name, values, file, place[1]))
        else:
            elsewhere[name] = values
    return elsewhere


def _start(model: onnx.ModelProto, options: Any) -> Any:
    import onnxruntime as ort

    try:
        return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class for what it refuses
        raise NncError(f"onnxruntime can't run the graph: {cause(error)}") from error


def _run(session: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(None, dict(inputs))
    except Exception as error:  # as above
        raise NncError(f"onnxruntime can't run the graph: {cause(error)}") from error
