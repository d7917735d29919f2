"""Nodes without a template against onnxruntime, and the loops that they become."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import tvm
from onnx import TensorProto, helper
from tvm import s_tir, tirx

from nnc.errors import NncError
from nnc.lowering import generic
from nnc.lowering.kernels import loops
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.pieces import Piece

rng = np.random.default_rng(0)


AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0), tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
A75 = (
    Unit(128, 32, 2, 32 << 10, 512 << 10, 6.0),
    tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a75"}),
)


# -- nodes


@dataclass(frozen=True)
class Const:
    """An input that is an initializer."""

    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Case:
    op: str
    inputs: tuple[np.ndarray | Const | None, ...]
    attributes: Mapping[str, Any]
    outputs: int
    opset: int
    tolerance: float

    def __str__(self) -> str:
        named = [f"{key}={value}" for key, value in self.attributes.items() if not isinstance(value, TensorProto)]
        shapes = ["x".join(map(str, np.shape(getattr(x, "values", x)))) for x in self.inputs]
        return " ".join([self.op, ",".join(shapes), *named]).replace("[", "").replace("]", "").replace(" ", "_")


CASES: list[Case] = []


def case(op: str, *inputs: Any, outputs: int = 1, opset: int = 17, tolerance: float = 1e-5, **attributes: Any) -> None:
    CASES.append(Case(op, inputs, attributes, outputs, opset, tolerance))


def x(*shape: int, dtype: Any = np.float32, low: float = -2, high: float = 2) -> np.ndarray:
    """Random numbers; of integers, small ones."""
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if kind == "f":
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.integers(0 if kind == "u" else -9, 10, shape).astype(dtype)


def c(values: Any, dtype: Any = None) -> Const:
    """A constant: integers are int64 and fractions float32 if nothing else is said."""
    array = np.asarray(values)
    if dtype is None and not isinstance(values, np.ndarray):
        dtype = {"i": np.int64, "f": np.float32}[array.dtype.kind]
    return Const(array if dtype is None else array.astype(dtype))


def w(*shape: int, **options: Any) -> Const:
    return Const(x(*shape, **options))


i64, i32, u8, i8, f16, f64, boolean = np.int64, np.int32, np.uint8, np.int8, np.float16, np.float64, np.bool_

# Convolutions.
case("Conv", x(1, 6, 20), w(4, 6, 3), w(4), pads=[1, 1])
case("Conv", x(2, 6, 21), w(4, 3, 3), w(4), pads=[2, 1], group=2, strides=[2])
case("Conv", x(2, 40, 31), w(40, 1, 3), w(40), pads=[1, 1], group=40)
case("Conv", x(1, 3, 6, 7, 8), w(5, 3, 2, 3, 3), w(5), pads=[0, 1, 1, 1, 1, 1])
case("Conv", x(1, 4, 6, 7, 9), w(4, 1, 3, 3, 3), group=4, strides=[2, 1, 2], pads=[1] * 6)
case("Conv", x(2, 10, 6, 7, 8), w(18, 5, 3, 3, 3), w(18), pads=[0, 1, 1, 2, 1, 1], group=2, strides=[2, 1, 2])
case("Conv", x(1, 4, 9, 9, 9), w(6, 2, 2, 2, 2), group=2, dilations=[2, 1, 3])
case("Conv", x(1, 4, 9, 9), x(6, 4, 3, 3), x(6), pads=[1] * 4)
case("Conv", x(1, 4, 9, 9), w(6, 4, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2])
case("ConvTranspose", x(1, 6, 10), w(6, 4, 3), w(4), strides=[2], output_padding=[1], pads=[1, 1])
case("ConvTranspose", x(1, 6, 5, 7), w(6, 4, 3, 3), w(4), strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])
case("ConvTranspose", x(1, 6, 5, 7), w(6, 4, 4, 4), strides=[3, 2], output_shape=[15, 14])
case("ConvTranspose", x(1, 6, 5, 7), w(6, 4, 3, 3), strides=[2, 3], auto_pad="SAME_UPPER")
case("ConvTranspose", x(1, 6, 5, 7), w(6, 4, 3, 3), strides=[2, 3], auto_pad="SAME_LOWER")
case("ConvTranspose", x(1, 6, 5, 7), w(6, 2, 3, 3), dilations=[2, 3], strides=[1, 2], group=3, pads=[0, 1, 2, 1])
case("ConvTranspose", x(1, 6, 9, 9), w(6, 4, 2, 2), strides=[2, 2], pads=[3, 1, 0, 4])
case("ConvTranspose", x(1, 6, 4, 4), w(6, 4, 1, 1), strides=[2, 2], output_padding=[1, 0])
case("ConvTranspose", x(1, 6, 5, 7), x(6, 4, 3, 3), x(4), strides=[2, 2])
case("ConvTranspose", x(1, 4, 3, 4, 5), w(4, 3, 2, 3, 2), w(3), strides=[2, 1, 2])
case("ConvTranspose", x(1, 4, 3, 4, 5), w(4, 3, 3, 3, 3), strides=[2, 2, 2], pads=[1] * 6, group=2)
case("ConvInteger", x(1, 4, 7, 7, dtype=u8), w(5, 4, 3, 3, dtype=u8), c(3, u8), c(9, u8), pads=[1, 0, 1, 2])
case("ConvInteger", x(1, 4, 7, 7, dtype=u8), w(4, 2, 3, 3, dtype=i8), group=2)
scales = c(0.1), c(3, u8), w(5, 4, 3, 3, dtype=i8), w(5, low=0.1, high=0.3), c(np.zeros(5), i8), c(0.9), c(7, u8)
case("QLinearConv", x(1, 4, 7, 7, dtype=u8), *scales, w(5, dtype=i32), tolerance=1)  # of rounding

# Products.
case("MatMul", x(5, 7), w(7, 9))
case("MatMul", x(2, 3, 5, 7), x(2, 3, 7, 9))
case("MatMul", x(2, 1, 5, 7), x(3, 7, 19))
case("MatMul", x(7), w(7, 9))
case("MatMul", x(3, 5, 7), x(7))
case("MatMul", x(7), x(7))
case("MatMul", x(1, 4, 35, 33), x(1, 4, 33, 65))
case("MatMul", x(3, 4, dtype=i32), x(4, 5, dtype=i32))
case("MatMul", x(3, 4, dtype=f64), x(4, 5, dtype=f64))
for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
    left, right = ((7, 5) if a else (5, 7)), ((9, 7) if b else (7, 9))
    case("Gemm", x(*left), x(*right), w(9), transA=a, transB=b, alpha=0.5, beta=2.0)
case("Gemm", x(5, 7), x(7, 9))
case("Gemm", x(5, 7), x(7, 9), x(5, 1), beta=0.3)
case("Gemm", x(5, 7), x(7, 9), x(1), alpha=2.0)
case("Gemm", x(3, 4, dtype=f64), x(4, 5, dtype=f64), x(5, dtype=f64))
case("MatMulInteger", x(3, 4, dtype=u8), w(4, 5, dtype=i8), c(3, u8))
scales = c(0.1), c(3, u8), w(4, 5, dtype=i8), c(0.2), c(0, i8), c(0.3), c(7, u8)
case("QLinearMatMul", x(3, 4, dtype=u8), *scales, tolerance=1)  # of rounding
for equation, shapes in {
    "ij,jk->ik": ((3, 4), (4, 5)),
    "bhid,bhjd->bhij": ((1, 2, 5, 4), (1, 2, 6, 4)),
    "bihd,bjhd->bhij": ((1, 5, 2, 4), (1, 6, 2, 4)),
    "ij->ji": ((3, 4),),
    "ij->": ((3, 4),),
    "ii->i": ((4, 4),),
    "ii,ij->j": ((4, 4), (4, 3)),
    "i,j->ij": ((3,), (4,)),
    "bij,bj": ((2, 3, 4), (2, 4)),
    "bij,bj->bi": ((2, 3, 4), (1, 4)),
    "...ij,...jk->...ik": ((2, 3, 4), (2, 4, 5)),
    "abc,cd,de->abe": ((2, 3, 4), (4, 5), (5, 6)),
}.items():
    case("Einsum", *(x(*shape) for shape in shapes), equation=equation)

# Along axes.
for axis in (-1, 0, 1):
    case("Softmax", x(3, 5, 18), axis=axis)
    case("LogSoftmax", x(3, 5, 18), axis=axis)
case("Softmax", x(1, 1000), axis=1)
case("Softmax", x(2, 4, 33, 47, low=-50, high=50), axis=-1)
case("Softmax", x(2, 33, 47), axis=1)
case("Softmax", x(3, 18, dtype=f64))
case("Hardmax", x(3, 5, 18), axis=1)
case("LayerNormalization", x(2, 9, 40), w(40), w(40), axis=-1, epsilon=1e-6)
case("LayerNormalization", x(2, 9, 40), w(9, 40), axis=1)
case("LayerNormalization", x(2, 9, 40), w(40), w(40), outputs=3)
case("InstanceNormalization", x(2, 5, 6, 7), w(5), w(5))
case("InstanceNormalization", x(2, 5, 19), w(5), w(5), epsilon=1e-3)
case("GroupNormalization", x(2, 6, 5, 7), w(3), w(3), num_groups=3, opset=18)
case("GroupNormalization", x(2, 6, 5, 7), w(6), w(6), num_groups=3, opset=21)
for order in (1, 2):
    case("LpNormalization", x(2, 5, 6, 7), p=order, axis=1)
    case("LpNormalization", x(2, 5, 6, 7), p=order, axis=-1)
case("LRN", x(2, 9, 6, 7), size=5, alpha=1e-2, beta=0.75, bias=1.5)
case("MeanVarianceNormalization", x(2, 9, 6, 7), axes=[0, 2, 3])
for reduction in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
    data = x(3, 5, 7, 9, low=0.1)
    for axes, keep in (([2, 3], 1), ([1], 0), ([0, 2], 1), (None, 0)):
        if reduction == "Sum":
            case("ReduceSum", data, *([] if axes is None else [c(axes)]), keepdims=keep)
        else:
            case(f"Reduce{reduction}", data[:2, :2], **({} if axes is None else {"axes": axes}), keepdims=keep)
    if reduction != "Sum":
        case(f"Reduce{reduction}", x(3, 5, 70, low=0.1, high=1.2), c([1, -1]), opset=18)
case("ReduceSum", x(3, 4), c(np.zeros(0, i64)), noop_with_empty_axes=1)
case("ReduceSum", x(3, 4, dtype=i64), c([0]))
case("ReduceMax", x(3, 40, dtype=u8), axes=[1])
case("ReduceMax", x(8, 64, 256))
case("ReduceMean", np.abs(x(3, 4, dtype=i32)), axes=[0])
case("ReduceMean", x(3, 4, dtype=f64), axes=[0])
for op in ("ArgMax", "ArgMin"):
    case(op, x(3, 5, 70), axis=1)
    case(op, x(3, 5, 70), axis=-1, keepdims=0)
    for last in (0, 1):
        case(op, x(3, 90, 7, dtype=i32), axis=1, select_last_index=last)
        case(op, x(21, 90, dtype=i32), axis=1, select_last_index=last)
case("TopK", x(3, 20), c([4]), outputs=2)
case("TopK", x(3, 20, 2), c([4]), outputs=2, axis=1, largest=0)
case("TopK", x(3, 50, dtype=i64), c([50]), outputs=2)
case("CumSum", x(3, 20), c(1))
case("CumSum", x(3, 20), c(0, i32), exclusive=1)
case("CumSum", x(3, 20), c(-1), reverse=1, exclusive=1)
case("GlobalAveragePool", x(2, 5, 40))
case("GlobalMaxPool", x(2, 5, 3, 4, 5))
case("GlobalLpPool", x(2, 5, 6, 7), p=2)

# Pools.
case("MaxPool", x(1, 3, 37), kernel_shape=[3], strides=[2], pads=[1, 1])
case("MaxPool", x(1, 3, 6, 7, 8), kernel_shape=[2, 3, 2], strides=[2, 2, 2], pads=[1, 1, 0, 0, 1, 1])
case("MaxPool", x(1, 3, 10, 11), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("MaxPool", x(1, 3, 10, 11), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
case("MaxPool", x(1, 3, 10, 11, dtype=u8), kernel_shape=[2, 2])
case("MaxPool", x(2, 3, 10, 11), kernel_shape=[3, 3], strides=[2, 1], pads=[1] * 4, outputs=2)
case("MaxPool", x(2, 3, 10, 11), kernel_shape=[3, 2], dilations=[2, 2], storage_order=1, outputs=2)
case("MaxPool", x(1, 3, 7, 7), kernel_shape=[3, 3], strides=[3, 3], pads=[1] * 4, ceil_mode=1)
case("MaxUnpool", x(1, 1, 2, 2), c([[[[0, 3], [8, 11]]]]), kernel_shape=[2, 2], strides=[2, 2])
case("AveragePool", x(1, 3, 37), kernel_shape=[3], strides=[2], pads=[1, 1], count_include_pad=1)
case("AveragePool", x(1, 3, 6, 7, 8), kernel_shape=[2, 3, 2], strides=[2, 2, 2], pads=[1, 1, 0, 0, 1, 1])
for count in (0, 1):
    options = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1}
    case("AveragePool", x(1, 3, 10, 11), count_include_pad=count, **options)
case("AveragePool", x(1, 3, 10, 11), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("AveragePool", x(1, 3, 10, 11), kernel_shape=[3, 2], dilations=[2, 3], opset=19)
case("LpPool", x(1, 3, 10, 11), kernel_shape=[3, 3], strides=[2, 2], p=2)

# Movement.
case("Transpose", x(2, 3, 4, 5), perm=[0, 2, 3, 1])
case("Transpose", x(33, 47))
case("Transpose", x(40, 3, 50), perm=[2, 0, 1])
case("Transpose", x(3, 20, 2, 30), perm=[0, 3, 2, 1])
case("Transpose", x(2, 1, 17, 33), perm=[3, 1, 0, 2])
case("Transpose", x(2, 12, 9, 16), perm=[0, 2, 1, 3])
case("Transpose", x(2, 1, 17, 1), perm=[3, 1, 0, 2])
case("Transpose", x(20, 30, dtype=i32))
case("Transpose", x(20, 30, dtype=f16))
case("Transpose", x(2, 3, 4, dtype=boolean), perm=[1, 0, 2])
case("Reshape", x(2, 3, 4), c([0, -1]))
case("Flatten", x(2, 3, 4), axis=2)
case("Squeeze", x(2, 1, 4, 1), c([1]))
case("Unsqueeze", x(2, 4), c([0, -1]))
case("Concat", x(2, 3, 40), x(2, 5, 40), axis=1)
case("Concat", x(2, 3, 4), x(2, 3, 1), w(2, 3, 5), axis=-1)
case("Concat", x(3, dtype=i64), c([1, 2]), axis=0)
case("Concat", x(2, 3, dtype=f16), x(2, 4, dtype=f16), axis=1)
case("Split", x(2, 9, 4), c([2, 4, 3]), outputs=3, axis=1)
case("Split", x(2, 10, 4), outputs=3, axis=1, num_outputs=3, opset=18)
case("Slice", x(5, 9, 8), c([1, 2]), c([4, 8]))
case("Slice", x(5, 9, 8), c([-1]), c([-100]), c([1]), c([-2]))
case("Slice", x(5, 9, 8), c([1, 0]), c([100, 2**62]), c([0, -1]), c([2, 3]))
case("Slice", x(9, dtype=i64), c([-3]), c([2**63 - 1]))
case("Pad", x(2, 3, 4), c([0, 1, 2, 0, 0, 3]), c(1.5))
case("Pad", x(2, 3, 4), c([0, 1, 2, 0, 0, 3]), x())
case("Pad", x(2, 6, 7), c([0, -1, 2, 0, 1, -3]))
case("Pad", x(2, 6, 7), c([1, 2, 2, 1]), c(0.5), c([0, -1]), opset=18)
case("Pad", x(2, 3, 4, dtype=i64), c([0, 1, 2, 0, 0, 3]))
for mode in ("reflect", "edge", "wrap"):
    case("Pad", x(2, 3, 6), c([0, 1, 2, 0, 1, 3]), mode=mode, opset=19)
case("Gather", x(5, 4), c([0, 4, 2]))
case("Gather", x(5, 4, 30), c([[0, 3], [-1, 1]]), axis=1)
case("Gather", x(5, 4, 3), c(1), axis=2)
case("Gather", x(5, 4), np.array([1, -2, 3], i32))
case("Gather", x(5, dtype=i64), c(2))
case("GatherElements", x(3, 4), np.array([[0, -1, 1], [2, 2, 0]]), axis=0)
case("GatherElements", x(3, 4), c([[0, -1], [2, 3], [1, 1]]), axis=1)
case("GatherND", x(3, 4, 5), c([[0, 1], [2, -1]]))
case("GatherND", x(2, 3, 4), np.array([[1], [0]]), batch_dims=1)
case("ScatterND", x(6, 3), c([[1], [4]]), x(2, 3))
case("ScatterND", x(4, 5, 2), np.array([[[0, 1]], [[-1, 2]]]), x(2, 1, 2))
case("ScatterND", x(6), c([[1], [1]]), x(2), reduction="add")
case("ScatterElements", x(3, 5), c([[1, 0, 2], [0, 2, 1]]), x(2, 3), axis=0)
case("ScatterElements", x(3, 5), np.array([[1, -1]]), x(1, 2), axis=1)
case("ScatterElements", x(3, 5), c([[1, 1]]), x(1, 2), axis=1, reduction="max", opset=18)
case("Expand", x(3, 1), c([2, 3, 40]))
case("Expand", x(3, 4), c([1, 1]))
case("Tile", x(2, 3), c([2, 3]))
case("Tile", x(2, 3, dtype=i64), c([1, 1]))
case("DepthToSpace", x(1, 8, 3, 5), blocksize=2)
case("DepthToSpace", x(1, 8, 3, 5), blocksize=2, mode="CRD")
case("SpaceToDepth", x(1, 3, 4, 6), blocksize=2)
case("OneHot", np.array([0, 3, -1]), c(5), c([0, 1]), axis=0)
case("OneHot", np.array([[0, 3, 7]]), c(5), c([0.5, 2.5]), axis=1)
case("ReverseSequence", x(4, 3, 5), c([1, 2, 4]), time_axis=0, batch_axis=1)
case("Trilu", x(4, 5), upper=1)
case("Trilu", x(2, 4, 5), c(-1), upper=0)
case("CenterCropPad", x(3, 8), c([5, 6]), opset=18)
case("Shape", x(3, 4, 5), start=1)
case("Size", x(3, 4))
case("EyeLike", x(3, 4), k=1, dtype=1)
case("Range", c(1), c(9), c(2))
case("ConstantOfShape", c([2, 3]), value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2.5]))
case("Identity", x(3, 4, dtype=f16))
case("Dropout", x(3, 4))

# Resizing.
MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
for mode in ("nearest", "linear", "cubic"):
    for how in MODES:
        options = {"mode": mode, "coordinate_transformation_mode": how, "opset": 19}
        case("Resize", x(1, 3, 5, 7), None, None, c([1, 3, 8, 11]), **options)
        case("Resize", x(1, 3, 9, 8), None, c([1, 1, 0.6, 0.7]), **options)
for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    options = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"}
    case("Resize", x(1, 3, 5, 7), None, c([1.0, 1, 2, 2]), nearest_mode=rounding, **options)
crop = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 1.5}
case("Resize", x(1, 3, 5, 7), c([0, 0, 0.1, 0.2, 1, 1, 1.3, 0.8]), None, c([1, 3, 8, 11]), **crop)
case("Resize", x(1, 3, 5, 7), c([0.1, 0.2, 1.3, 0.8]), None, c([8, 11]), axes=[2, 3], opset=18, **crop)
case("Resize", x(1, 3, 5), None, c([1.0, 1, 2]), mode="linear")
case("Resize", x(1, 2, 3, 4, 5), None, c([1.0, 1, 2, 2, 1.5]), mode="linear")
case("Resize", x(1, 5, 7, 3), None, c([1.0, 2, 2, 1]), mode="linear")
case("Resize", x(1, 3, 4, 4, dtype=u8), None, c([1.0, 1, 2, 2]), mode="nearest")
case("Resize", x(1, 3, 5, 7), None, None, c([1, 3, 8, 11]), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)
for mode in ("linear", "cubic"):
    case("Resize", x(1, 3, 9, 9), None, c([1.0, 1, 0.5, 0.4]), mode=mode, antialias=1, opset=18)
for policy in ("stretch", "not_larger", "not_smaller"):
    options = {"axes": [2, 3], "keep_aspect_ratio_policy": policy, "mode": "linear", "opset": 18}
    case("Resize", x(1, 3, 5, 7), None, None, c([8, 11]), **options)
case("Upsample", x(1, 3, 5, 7), c([1.0, 1, 2, 2]), mode="nearest", opset=9)
case("Upsample", x(1, 3, 5, 7), c([1.0, 1, 2, 3]), mode="linear", opset=9)
case("GridSample", x(1, 3, 5, 6), x(1, 4, 4, 2))
case("GridSample", x(1, 3, 5, 6), x(1, 4, 4, 2), mode="nearest", padding_mode="border", align_corners=1)
case("AffineGrid", x(1, 2, 3), c([1, 3, 4, 5]), opset=20)

# Arithmetic.
for op in ("Add", "Sub", "Mul", "Div", "Min", "Max"):
    case(op, x(3, 4, dtype=i64), np.abs(x(1, 4, dtype=i64)) + 1)
    case(op, x(3, 4, dtype=f16), np.abs(x(3, 1, dtype=f16)) + f16(1), tolerance=2e-3)
case("Add", x(3, 4, dtype=f64), x(4, dtype=f64))
case("Div", x(3, 4, dtype=i32), c(-3, i32))
for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
    case(op, x(3, 14, dtype=i64), x(14, dtype=i64))
    case(op, x(3, 14), c(0.1))
case("Equal", x(3, 14, dtype=boolean), x(3, 14, dtype=boolean))
for op in ("And", "Or", "Xor"):
    case(op, x(3, 14, dtype=boolean), x(14, dtype=boolean))
case("Not", x(3, 14, dtype=boolean))
special = np.array([1, np.nan, np.inf, -np.inf, 0], np.float32)
case("IsNaN", special)
case("IsInf", special)
case("IsInf", special, detect_negative=0)
case("BitShift", x(3, 4, dtype=u8), c(2, u8), direction="LEFT")
case("BitShift", x(3, 4, dtype=np.uint32), c(2, np.uint32), direction="RIGHT")
case("BitwiseAnd", x(3, 4, dtype=i32), x(3, 4, dtype=i32), opset=18)
case("BitwiseNot", x(3, 4, dtype=i32), opset=18)
case("Where", x(3, 14, dtype=boolean), x(3, 14), x(14))
case("Where", x(3, 1, dtype=boolean), x(1, 14), c(2.0))
case("Where", x(3, 4, dtype=boolean), x(3, 4, dtype=i64), x(4, dtype=i64))
case("Where", x(3, 4, dtype=boolean), x(3, 4, dtype=f16), x(4, dtype=f16), tolerance=0)
TYPES = {
    np.float32: 1, u8: 2, i8: 3, np.uint16: 4, np.int16: 5, i32: 6, i64: 7, boolean: 9, f16: 10, f64: 11,
    np.uint32: 12, np.uint64: 13,
}  # fmt: skip
for number, (source, target) in enumerate((s, t) for s in TYPES for t in TYPES if s is not t):
    if number % 3 == 0:
        case("Cast", np.abs(x(3, 13) * 40).astype(source), to=TYPES[target])
for target in (u8, i8, i32, i64):
    case("Cast", (np.abs(x(3, 13)) * 50).astype(np.float32), to=TYPES[target])
case("CastLike", x(3, 4), c([1]))
case("Clip", x(3, 40), x(), None)
case("Clip", x(3, 40, dtype=i64), c(-3), c(4))
case("Mod", x(3, 4, dtype=i64), c(7))
case("Mod", x(3, 4, dtype=i32), c(-7, i32))
case("Mod", x(3, 4), c(0.7), fmod=1)
case("Mod", x(3, 4, dtype=i32), c(7, i32), fmod=1)
case("Pow", x(3, 4, low=0.1), c(2.5))
case("Pow", x(3, 4), c(3))
case("Pow", x(3, 4, low=0.1), x(4))
case("Pow", x(3, 4, dtype=i64), c(2))
case("Pow", np.abs(x(3, 4, dtype=i64)), np.array([1, 2, 3, 0]))
case("Pow", x(3, 4, dtype=f16, low=0.1), c(2.0, f16), tolerance=2e-3)
for op in ("Neg", "Abs", "Sign"):
    case(op, x(3, 4, dtype=i64))
for op in ("Ceil", "Cos", "Exp", "Floor", "Log", "Reciprocal", "Sigmoid", "Sin", "Sqrt", "Tanh"):
    case(op, x(3, 18, low=0.1))
    case(op, x(3, 18, low=0.1, dtype=f64))
for op in ("Tan", "Sinh", "Cosh", "Asinh", "Atan", "Erf", "Round", "Softplus", "Softsign", "HardSwish", "Celu"):
    case(op, x(3, 18))
for op in ("Elu", "Selu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu", "Shrink"):
    case(op, x(3, 18))
case("Mish", x(3, 18), opset=18)
case("Gelu", x(3, 18), opset=20)
case("Gelu", x(3, 18), opset=20, approximate="tanh")
case("Acos", x(3, 18, low=-0.95, high=0.95))
case("Asin", x(3, 18, low=-0.95, high=0.95))
case("Atanh", x(3, 18, low=-0.95, high=0.95))
case("Acosh", x(3, 18, low=1.01))
case("PRelu", x(2, 5, 3, 4), w(5, 1, 1))
case("PRelu", x(2, 5, 3, 4), x(5, 3, 4))
case("BatchNormalization", x(2, 5, 6, 7), w(5), w(5), w(5), w(5, low=0.1), epsilon=1e-3)
case("BatchNormalization", x(2, 5), w(5), w(5), w(5), w(5, low=0.1))
case("BatchNormalization", x(2, 5, 9), x(5), x(5), x(5), x(5, low=0.1))
for dtype, zero in ((u8, 130), (i8, 3)):
    per_channel = w(3, low=0.01, high=0.03), c([zero, zero + 1, zero - 3], dtype)
    case("QuantizeLinear", x(2, 3, 40), c(0.02), c(zero, dtype))
    case("QuantizeLinear", x(2, 3, 40) * np.float32(1000), *per_channel, axis=1)
    case("DequantizeLinear", x(2, 3, 4, dtype=dtype), c(0.02), c(zero, dtype))
    case("DequantizeLinear", x(2, 3, 4, dtype=dtype), *per_channel, axis=1)
case("QuantizeLinear", np.arange(-9, 9, dtype=np.float32) / 2, c(1.0), c(0, i8))  # ties
case("DequantizeLinear", x(3, dtype=i32), w(3, low=0.01), c([0, 0, 0], i32), axis=0)
blocks = w(2, 6, low=0.01), c(np.zeros((2, 6)), i8)
case("DequantizeLinear", x(4, 6, dtype=i8), *blocks, axis=0, block_size=2, opset=21)
case("DynamicQuantizeLinear", x(3, 4), outputs=3)

# Scalars, and axes of one element or none.
case("Add", x(), x())
case("Cast", x(), to=TensorProto.INT64)
case("Clip", x(), c(-0.1), c(0.1))
case("Concat", x(2, 0), x(2, 3), axis=1)
case("DequantizeLinear", np.array(5, u8), c(0.02), c(3, u8))
case("Expand", x(), c([2, 3]))
case("Gather", x(5), np.array(2))
case("LayerNormalization", x(3, 1), w(1))
case("MatMul", x(1, 7), x(7, 1))
case("QuantizeLinear", x(), c(0.02), c(3, u8))
case("ReduceMax", x(1, 1, 1))
case("ReduceMean", x(5, 3), c(np.zeros(0, i64)), opset=18, noop_with_empty_axes=1)
case("Resize", x(1, 1, 1, 1), None, c([1.0, 1, 3, 2]), mode="linear")
case("Softmax", x(3, 1), axis=-1)
case("Transpose", x(1, 1, 1))
case("Unsqueeze", x(), c([0]))
case("Where", np.array(True), x(), x(3))

# Half precision.
case("Softmax", x(3, 18, dtype=f16), tolerance=2e-3)
case("Conv", x(1, 6, 20, dtype=f16), w(4, 6, 3, dtype=f16), w(4, dtype=f16), tolerance=1e-2)
case("LayerNormalization", x(2, 40, dtype=f16), w(40, dtype=f16), w(40, dtype=f16), tolerance=5e-3)
case("ReduceMean", x(5, 40, dtype=f16), axes=[1], tolerance=2e-3)
case("TopK", x(3, 20, dtype=f16), c([4]), outputs=2)


def model(node: Case) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The node alone, and its inputs."""
    inputs, constants, names, fed = [], [], [], []
    for index, value in enumerate(node.inputs):
        names.append("" if value is None else f"x{index}")
        if isinstance(value, Const):
            constants.append(onnx.numpy_helper.from_array(value.values, f"x{index}"))
        elif value is not None:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(f"x{index}", kind, value.shape))
            fed.append(value)
    while names and not names[-1]:
        names.pop()
    outputs = [f"y{index}" for index in range(node.outputs)]
    made = helper.make_node(node.op, names, outputs, "the-node", **node.attributes)
    graph = helper.make_graph([made], "g", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)], ir_version=10), fed


@cache
def reference(node: Case) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    alone, fed = model(node)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), options)
    return session.run(None, {each.name: values for each, values in zip(alone.graph.input, fed, strict=True)})


@cache
def lowered(node: Case, cpu: tuple[Unit, tvm.target.Target] = AVX2) -> list[Piece]:
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model(node)[0]))
    (single,) = graph.nodes
    for tensor, expected in zip(single.outputs, reference(node), strict=True):
        tensor.dtype, tensor.shape = expected.dtype, list(expected.shape)
    return generic.lower(single, *cpu, node.opset)


# -- running them


@pytest.fixture(autouse=True, scope="module")
def everything_is_large() -> Iterator[None]:
    """Share the smallest work among the threads, so that the loops of large tensors are those under test."""
    before, loops.PARALLEL_FROM = loops.PARALLEL_FROM, 1
    yield
    loops.PARALLEL_FROM = before


BATCH = 40


@cache
def library(batch: int) -> tuple[tvm.runtime.Module, dict[Any, str]]:
    """The kernels of a number of cases in one module, and their names."""
    functions: dict[Any, tuple[str, tirx.PrimFunc]] = {}
    for node in CASES[batch * BATCH : (batch + 1) * BATCH]:
        for piece in lowered(node):
            functions.setdefault(piece.key, (f"k{len(functions)}", piece.function))
    named = {name: function.with_attr("global_symbol", name) for name, function in functions.values()}
    return tvm.compile(tvm.IRModule(named), AVX2[1]), {key: name for key, (name, _) in functions.items()}


def run(pieces: Sequence[Piece], inputs: Sequence[np.ndarray], kernels: Any, names: Mapping[Any, str]) -> dict:
    """Call the pieces in order; returns all values by kind and index."""
    values = {("input", index): array for index, array in enumerate(inputs)}
    for piece in pieces:
        arrays = [each.values if each.kind == "constant" else values[each.kind, each.index] for each in piece.operands]
        operands = [
            tvm.runtime.tensor(np.ascontiguousarray(array).reshape(each.shape))
            for array, each in zip(arrays, piece.operands, strict=True)
        ]
        results = [tvm.runtime.tensor(np.ones(each.shape, each.dtype)) for each in piece.results]
        kernels[names[piece.key]](*operands, *results)
        for each, result in zip(piece.results, results, strict=True):
            values[each.kind, each.index] = result.numpy()
    return values


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{index}-{node}" for index, node in enumerate(CASES)])
def test_agrees_with_onnxruntime(index: int) -> None:
    node = CASES[index]
    values = run(lowered(node), model(node)[1], *library(index // BATCH))
    for place, expected in enumerate(reference(node)):
        got = values["output", place]
        assert got.dtype == expected.dtype
        exact = expected.dtype.kind != "f" and node.tolerance < 1
        tolerance = 0 if exact else node.tolerance
        got, expected = got.reshape(expected.shape).astype(f64), expected.astype(f64)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


# -- their loops

# What is one scalar after the other: a heap; sums that need the sum before; elements that go where they say.
ONE_BY_ONE = {"CumSum", "MaxUnpool", "ScatterElements", "TopK"}


def is_one_task(node: Case) -> bool:
    """One row of softmax; a convolution of so few rows or channels that the template of images makes one task of it."""
    return "Conv" in node.op or (node.op == "Softmax" and len(node.inputs[0]) == 1)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{index}-{node}" for index, node in enumerate(CASES)])
def test_loops_are_parallel_and_vectorized(index: int) -> None:
    for piece in lowered(CASES[index]):
        elements = max(int(np.prod(each.shape)) for each in piece.results)
        text = vectorized(piece.function)
        assert not re.search(r"for \w+_s in", text), "TVM could not vectorize a loop"
        if elements >= 64 and not is_one_task(CASES[index]):
            assert "T.parallel" in text
        if elements >= 16 and CASES[index].op not in ONE_BY_ONE:
            assert re.search(r"T\.(Ramp|Broadcast)\(", text)


def vectorized(function: tirx.PrimFunc) -> str:
    """The text of a function after TVM's vectorization; a loop that it serialized again is called `..._s`."""
    passes = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.VectorizeLoop(),
    ]
    return tvm.transform.Sequential(passes)(tvm.IRModule({"main": function}))["main"].script()


def test_small_tensors_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "PARALLEL_FROM", 8192)
    nodes = [Case("Softmax", (x(3, 18),), {}, 1, 17, 1e-5), Case("Tile", (x(9, 9), c([2, 2])), {}, 1, 17, 1e-5)]
    for node in nodes:
        assert "T.parallel" not in "".join(piece.function.script() for piece in lowered(node))


def test_compiles_for_aarch64(tmp_path: Path) -> None:
    """One node of each operator; LLVM ends the process where it can't select an instruction."""
    first = {node.op: node for node in reversed(CASES)}
    pieces = {piece.key: piece for node in first.values() for piece in lowered(node, A75)}
    named = {f"k{n}": piece.function.with_attr("global_symbol", f"k{n}") for n, piece in enumerate(pieces.values())}
    tvm.tirx.build(tvm.IRModule(named), A75[1]).write_to_file(str(tmp_path / "kernels.o"))
    assert (tmp_path / "kernels.o").stat().st_size > 100_000


# -- what is shared and what is refused


def test_equal_problems_have_equal_keys() -> None:
    def keys(axis: int, scale: float, channels: int = 40) -> set:
        inputs = x(2, 9, channels), Const(np.full(channels, scale, np.float32))
        return {p.key for p in lowered(Case("LayerNormalization", inputs, {"axis": axis}, 1, 17, 1e-5))}

    assert keys(-1, 1.0) == keys(2, 3.0)
    assert keys(-1, 1.0) != keys(-1, 1.0, 48)


REFUSED = {
    "NonZero": "the shape of what it makes depends on values",
    "RandomNormalLike": "it draws random numbers",
    "Det": "there is no kernel for it",
}


@pytest.mark.parametrize("op", REFUSED)
def test_refusals_name_the_node(op: str) -> None:
    shape = None if op == "NonZero" else [3, 3]
    node = gs.Node(op, "n0", {}, [gs.Variable("x", np.float32, [3, 3])], [gs.Variable("y", np.float32, shape)])
    with pytest.raises(NncError, match=f"node 'n0' \\({op}\\): nnc can't lower it: {REFUSED[op]}") as raised:
        generic.lower(node, *AVX2)
    assert raised.value.hint == "--no-lower writes model.onnx, which runs in onnxruntime"


def _wrong(
    op: str, inputs: Sequence[gs.Tensor], shape: Sequence[int], dtype: Any = np.float32, **attrs: Any
) -> gs.Node:
    return gs.Node(op, "n0", attrs, list(inputs), [gs.Variable("y", dtype, list(shape))])


def _quantized_convolution() -> tuple[gs.Node, str]:
    """Weights of another depth than the image's."""
    one, zero = gs.Constant("s", np.array(1, np.float32)), gs.Constant("z", np.array(0, np.uint8))
    W = gs.Constant("W", np.ones((5, 3, 3, 3), np.uint8))
    operands = [gs.Variable("x", np.uint8, [1, 4, 7, 7]), one, zero, W, one, zero, one, zero]
    return _wrong("QLinearConv", operands, [1, 5, 5, 5], np.uint8), "its Conv: .+"


def _scattered() -> tuple[gs.Node, str]:
    """A reduction that is not of the standard."""
    operands = [
        gs.Variable("x", np.float32, [3, 3]),
        gs.Constant("i", np.array([[0]])),
        gs.Variable("u", np.float32, [1, 3]),
    ]
    return _wrong("ScatterND", operands, [3, 3], reduction="median"), "'median' is not known"


def _summed() -> tuple[gs.Node, str]:
    """An index of the result that no operand has."""
    operands = [gs.Variable("x", np.float32, [3, 4]), gs.Variable("z", np.float32, [4, 5])]
    return _wrong("Einsum", operands, [3, 5], equation="ij,jk->iz"), ".*'z'.*"


WRONG = {"Einsum": _summed, "QLinearConv": _quantized_convolution, "ScatterND": _scattered}


def test_says_which_inner_operator_is_refused() -> None:
    y = gs.Variable("y", np.float32, [3])
    node = gs.Node("Bernoulli", "n0", {}, [gs.Variable("x", np.float32, [3])], [y])
    with pytest.raises(NncError, match=r"n0.*its RandomUniformLike: it draws random numbers"):
        generic.lower(node, *AVX2)


@pytest.mark.parametrize("op", WRONG)
def test_nodes_that_are_wrong_are_named(op: str) -> None:
    """Whoever stumbles over them, and over whatever."""
    node, message = WRONG[op]()
    with pytest.raises(NncError, match=rf"node 'n0' \({op}\): nnc can't lower it: {message}") as raised:
        generic.lower(node, *AVX2)
    assert "\n" not in raised.value.message


def test_quantized_rows_have_scales_of_their_own() -> None:
    """QLinearMatMul, of which onnxruntime knows no such thing."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (3, 4), np.uint8), rng.integers(0, 256, (4, 5), np.uint8)
    scales, zeros = np.array([0.02, 0.05, 0.01], np.float32), np.array([120, 7, 200], np.uint8)
    one, middle = np.float32(0.03), np.uint8(128)
    constants = [scales, zeros, b, one, middle, np.float32(0.1), middle]
    operands = [
        gs.Variable("a", np.uint8, [3, 4]),
        *(gs.Constant(f"c{i}", np.array(v)) for i, v in enumerate(constants)),
    ]
    node = gs.Node("QLinearMatMul", "n0", {}, operands, [gs.Variable("y", np.uint8, [3, 5])])
    pieces = generic.lower(node, *AVX2)
    functions = {piece.key: (f"k{index}", piece.function) for index, piece in enumerate(pieces)}
    named = {name: function.with_attr("global_symbol", name) for name, function in functions.values()}
    kernels = tvm.compile(tvm.IRModule(named), AVX2[1])
    found = run(pieces, [a], kernels, {key: name for key, (name, _) in functions.items()})["output", 0].reshape(3, 5)
    product = ((a.astype(int) - zeros[:, None]) * scales[:, None].astype(f64)) @ ((b.astype(int) - 128) * f64(one))
    assert np.abs(found - np.clip(np.rint(product / 0.1) + 128, 0, 255)).max() <= 1


def test_the_same_tensor_twice() -> None:
    """An operand that is read twice is two operands of the node."""
    t = gs.Variable("x", np.float32, [5, 5])
    (piece,) = generic.lower(gs.Node("MatMul", "n0", {}, [t, t], [gs.Variable("y", np.float32, [5, 5])]), *AVX2)
    assert [(each.kind, each.index) for each in piece.operands] == [("input", 0), ("input", 1)]
