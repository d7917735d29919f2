"""What the network of a measured row computes: from a file of the user's, or a reference network of that name."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from nnc import graph as graphs
from nnc import networks, recipe
from nnc.context import Context
from nnc.display import units
from nnc.errors import NncError
from nnc.networks.architectures import find
from nnc.simulation.kernels import kernels
from nnc.simulation.work import Work, work
from nnc.target import load
from nnc.validation.table import Row

# What every engine does to a model before it runs it: shapes are constants, and what only moves names is gone.
# Passes that look at weights are left out: those of the reference networks are zeros here.
_SIMPLIFY = (
    "remove-dead-nodes", "simplify-shapes", "fuse-gemm", "fold-constants", "remove-identity", "merge-views",
    "fuse-padding", "fuse-gates",
)  # fmt: skip

# Engines have operators for gates that a model's own opset may not have, such as Swish.
_OPSET = 24

# Engines that run every node by itself, as it comes.
_EAGER = {"pytorch", "tensorflow"}

# The versions of reference networks that ncnn's benchmark runs, most of them Caffe's:
# https://github.com/Tencent/ncnn/tree/master/benchmark/models.
_NCNN = {
    name: f"{name}_{origin}"
    for origin, names in (
        ("caffe", ("alexnet", "googlenet", "mobilenet_v2", "resnet18", "resnet50", "shufflenet_v1", "squeezenet1_1")),
        ("ncnn", ("mobilenet_v3_large", "proxylessnas")),
    )
    for name in names
}
_VERSIONS = {"ncnn": _NCNN, "ncnn-vulkan": _NCNN}


class Workloads:
    """The networks of a table, each built once; those of `folder` come before the reference networks.

    Raises NncError where there is no such folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise NncError(f"--models {folder}: no such folder")
        self.folder = folder
        self._made: dict[tuple[str, str, str, str, bool], Work | str] = {}

    def of(self, row: Row) -> Work | str:
        """The kernels of the row's network at its input shape, or why there are none."""
        name = _version(row)
        key = row.model_id, name, row.input_shape, row.batch, row.engine in _EAGER
        if key not in self._made:
            self._made[key] = self._build(row, name)
        return self._made[key]

    def _build(self, row: Row, name: str) -> Work | str:
        path = self.folder / f"{row.model_id}.onnx" if self.folder and _is_file_name(row.model_id) else None
        shape = _shape(row)
        if isinstance(shape, str):
            return shape
        try:
            graph = _from_file(path, shape) if path and path.exists() else _reference(name, shape)
        except NncError as error:
            return error.message
        return graph if isinstance(graph, str) else work(kernels(_simplified(graph), fused=row.engine not in _EAGER))


def _version(row: Row) -> str:
    """The reference network that the row's engine runs under the row's name for it."""
    with contextlib.suppress(NncError):
        match find(row.model_id):
            case architecture, (None | 1.0), None:
                same = (name for name in networks.NAMES if networks.ARCHITECTURES[name] is architecture)
                return _VERSIONS.get(row.engine, {}).get(next(same), row.model_id)
    return row.model_id


def _is_file_name(model_id: str) -> bool:
    return bool(model_id) and Path(model_id).name == model_id


def _shape(row: Row) -> tuple[int, ...] | str:
    """The shape of the input, the images of a batch included, or why it is not known.

    Some tables say the batch in both columns, others in either of them.
    """
    if row.shape is None:
        return f"input_shape is '{row.input_shape}'"
    if not re.fullmatch("[1-9][0-9]{0,8}", row.batch):
        return f"batch is '{row.batch}'"
    first, *others = row.shape
    batch = int(row.batch)
    if first != batch and 1 not in (first, batch):
        return f"batch is '{row.batch}', but input_shape '{row.input_shape}'"
    return (max(first, batch), *others)


def _from_file(path: Path, shape: tuple[int, ...]) -> gs.Graph | str:
    """The model at a shape, whose images TensorFlow's models have with the channels last."""
    names = _input_names(path)
    if len(names) != 1:
        return f"{path.name} has {len(names)} inputs"
    orders = [shape, (shape[0], *shape[2:], shape[1])] if len(shape) > 2 else [shape]
    reasons = []
    for order in orders:
        try:
            return graphs.load(path, {names[0]: list(order)})
        except NncError as error:
            reasons.append(error.message)
    return reasons[0]


def _input_names(path: Path) -> list[str]:
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError):
        raise NncError(f"{path.name} is not an ONNX model") from None
    return [tensor.name for tensor in graph.input if tensor.name not in {each.name for each in graph.initializer}]


def _reference(name: str, shape: tuple[int, ...]) -> gs.Graph | str:
    match shape:
        case (1, 3, height, width):
            return graphs.from_model(networks.build(name, input_size=(height, width), seed=None))
    return f"reference networks read one image of 3 channels, not {units.shape(shape)}"


def _simplified(graph: gs.Graph) -> gs.Graph:
    graph.opset = max(graph.opset, _OPSET)
    context = Context(load("qcs605"))  # no pass of these asks the target anything
    for pass_ in recipe.load("simplify").passes:
        if pass_.name in _SIMPLIFY:
            pass_.run(graph, context)
            graph.cleanup()
            graphs.sort(graph)
    return graph
