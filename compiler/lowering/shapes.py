"""Static shapes and types of the tensors of a graph."""

import numpy as np
import onnx_graphsurgeon as gs

from nnc.errors import NncError


def static_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape of a tensor, None where it is open."""
    shape = tensor.shape
    if shape is None or not all(isinstance(size, int | np.integer) for size in shape):
        return None
    return tuple(map(int, shape))


def shape_of(tensor: gs.Tensor) -> tuple[int, ...]:
    """The static shape of a tensor; NncError where it is open."""
    shape = static_shape(tensor)
    if shape is None:
        raise NncError(f"tensor '{tensor.name}' has no static shape", "fix the model's inputs with --shape")
    return shape


def dtype_of(tensor: gs.Tensor) -> str:
    """numpy's name of the type of a tensor; NncError where it is open."""
    if tensor.dtype is None:
        raise NncError(f"tensor '{tensor.name}' has no type", "export the model again")
    return np.dtype(tensor.dtype).name
