"""Kernels that stand for the neighbours of one that is timed alone."""

import platform

import numpy as np
import pytest
import tvm

from nnc.lowering.kernels import touch
from nnc.tuning.devices import compiled


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs what it builds")
@pytest.mark.parametrize(("shape", "dtype"), [((3, 5, 7), "float32"), ((1, 2, 9, 9, 16), "float16"), ((5,), "int64")])
def test_neighbours_touch_every_line_and_change_nothing(shape: tuple[int, ...], dtype: str) -> None:
    values = np.arange(1, 1 + np.prod(shape)).astype(dtype).reshape(shape)
    x, one = tvm.runtime.tensor(values), tvm.runtime.tensor(np.ones(1, np.float32))
    sums = tvm.runtime.tensor(np.zeros(touch.sums_shape(2), np.float32))
    built = [
        compiled(each, {"kind": "llvm"})["kernel"]
        for each in (make(shape, dtype, 2) for make in (touch.write, touch.read))
    ]
    built[0](one, x)
    assert (x.numpy() == values).all()
    built[1](x, sums)
    lines = values.reshape(-1)[:: 64 // values.itemsize].astype(np.float32)
    assert sums.numpy()[:, 0].sum() == pytest.approx(lines.sum())
    doubled = tvm.runtime.tensor(np.full(1, 2, np.float32))
    built[0](doubled, x)
    assert (x.numpy() != values).sum() == len(lines)
