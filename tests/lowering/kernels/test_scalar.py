"""Scalar functions against float64 over the ranges that networks use, and the code that comes out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from nnc import target, testing
from nnc.lowering import machine, scalar
from nnc.lowering.build import unit_of
from nnc.lowering.kernels import elementwise
from nnc.lowering.kernels.unit import Unit
from nnc.lowering.lower import lower
from nnc.lowering.weights import Weights

AVX2 = Unit(256, 16, 2, 32 << 10, 512 << 10, 6.0)

POINTS = 4099  # not a multiple of any vector


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


_erf = np.vectorize(math.erf)

Function = Callable[[np.ndarray], np.ndarray]

# Operator -> float64 function, and the range of its argument.
FUNCTIONS: dict[str, tuple[Function, float, float]] = {
    "Acos": (np.arccos, -1, 1),
    "Acosh": (np.arccosh, 1, 50),
    "Asin": (np.arcsin, -1, 1),
    "Asinh": (np.arcsinh, -50, 50),
    "Atan": (np.arctan, -50, 50),
    "Atanh": (np.arctanh, -0.999, 0.999),
    "Celu": (lambda x: np.maximum(x, 0) + np.minimum(0, np.expm1(x)), -20, 20),
    "Cos": (np.cos, -500, 500),
    "Cosh": (np.cosh, -80, 80),
    "Elu": (lambda x: np.where(x > 0, x, np.expm1(x)), -20, 20),
    "Erf": (_erf, -5, 5),
    "Exp": (np.exp, -87, 88.3),
    "Gelu": (lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))), -10, 10),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), -10, 10),
    "Log": (np.log, 1e-30, 50),
    "Mish": (lambda x: x * np.tanh(_softplus(x)), -20, 20),
    "Round": (np.round, -20, 20),
    "Sigmoid": (_sigmoid, -30, 30),
    "Sin": (np.sin, -500, 500),
    "Sinh": (np.sinh, -80, 80),
    "Softplus": (_softplus, -30, 30),
    "Softsign": (lambda x: x / (1 + np.abs(x)), -30, 30),
    "Swish": (lambda x: x * _sigmoid(x), -30, 30),
    "Tan": (np.tan, -1.5, 1.5),
    "Tanh": (np.tanh, -12, 12),
}
POWERS = [-1.0, -0.5, 0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 2.2, 3.0, 4.0, 7.0]


def _kernel(function: Callable[[list[tirx.Expr]], tirx.Expr], operands: int) -> tirx.PrimFunc:
    ins = [te.placeholder((POINTS,), name=f"x{i}") for i in range(operands)]
    return te.create_prim_func([*ins, elementwise.compute(ins, (POINTS,), AVX2, function)])


@pytest.fixture(scope="module")
def library() -> tvm.runtime.Executable:
    """One kernel per function, compiled for AVX2."""
    kernels = {op: _kernel(lambda x, op=op: scalar.FUNCTIONS[op](x[0]), 1) for op in FUNCTIONS}
    for exponent in POWERS:
        kernels[f"Pow_{exponent}"] = _kernel(lambda x, y=exponent: scalar.power(x[0], scalar.real(y)), 1)
    kernels["Pow"] = _kernel(lambda x: scalar.power(*x), 2)
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    return tvm.compile(module, tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))


def _run(library: tvm.runtime.Executable, name: str, *operands: np.ndarray) -> np.ndarray:
    out = tvm.runtime.tensor(np.zeros(POINTS, np.float32))
    library[name](*map(tvm.runtime.tensor, operands), out)
    return out.numpy()


@pytest.mark.parametrize("op", FUNCTIONS)
def test_agrees_with_float64(library: tvm.runtime.Executable, op: str) -> None:
    function, low, high = FUNCTIONS[op]
    x = np.linspace(low, high, POINTS).astype(np.float32)
    np.testing.assert_allclose(_run(library, op, x), function(x.astype(np.float64)), rtol=2e-6, atol=3e-7)


@pytest.mark.parametrize("op", ["Exp", "Log", "Sin", "Tanh", "Atan", "Asinh", "Sinh", "Asin", "Erf"])
def test_small_arguments_keep_their_digits(library: tvm.runtime.Executable, op: str) -> None:
    x = np.geomspace(1e-7, 1, POINTS).astype(np.float32)
    np.testing.assert_allclose(_run(library, op, x), FUNCTIONS[op][0](x.astype(np.float64)), rtol=5e-7, atol=1e-7)


@pytest.mark.parametrize("exponent", POWERS)
def test_power_by_a_constant(library: tvm.runtime.Executable, exponent: float) -> None:
    x = np.linspace(0.01, 20, POINTS).astype(np.float32)
    got = _run(library, f"Pow_{exponent}", x)
    np.testing.assert_allclose(got, x.astype(np.float64) ** np.float32(exponent).astype(np.float64), rtol=3e-6)


def test_power_of_every_sign(library: tvm.runtime.Executable) -> None:
    rng = np.random.default_rng(0)
    x = rng.choice(np.float32([-3, -1.5, -0.5, 0, 0.5, 1, 2.5]), POINTS)
    y = rng.choice(np.float32([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3]), POINTS)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.power(x.astype(np.float64), y)
    np.testing.assert_allclose(_run(library, "Pow", x, y), expected, rtol=3e-6)


def test_logarithm_at_the_edges(library: tvm.runtime.Executable) -> None:
    edges = np.float32([0, -1, np.inf, np.nan, 1e-40, 1.17549435e-38, 1, 3e38])
    x = np.resize(edges, POINTS)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_allclose(_run(library, "Log", x), np.log(x.astype(np.float64)), rtol=1e-6)


def test_saturates_where_float32_does(library: tvm.runtime.Executable) -> None:
    x = np.resize(np.float32([-1000, -100, 100, 1000]), POINTS)
    np.testing.assert_array_equal(_run(library, "Sigmoid", x)[2:4], 1)
    np.testing.assert_array_equal(np.abs(_run(library, "Tanh", x)), 1)
    np.testing.assert_allclose(_run(library, "Softplus", x)[:4], [0, 0, 100, 1000], atol=1e-30)
    assert np.isfinite(_run(library, "Exp", x)).all()


def test_no_function_calls_the_c_library(library: tvm.runtime.Executable) -> None:
    called = set(re.findall(r"\bcall\w*\s+\*?([a-z]\w*)", library.mod.inspect_source("asm")))
    assert not {name for name in called if re.match(r"(exp|log|pow|sin|cos|tan|erf|a?sinh|floor|round)", name)}


@pytest.mark.parametrize("activation", ["HardSwish", "Mish", "Sigmoid"])
@pytest.mark.parametrize("layer", ["Conv(x, W, B)", "Conv<group=16,pads=[1,1,1,1]>(x, V, B)"])
def test_values_that_are_used_twice_stay_in_registers(layer: str, activation: str, tmp_path: Path) -> None:
    """Memory from the heap for each of them took several times as long as the layer."""
    graph = testing.graph(
        f"net (float[1,16,14,14] x) => (float[1,16,14,14] y) <float[16,16,1,1] W, float[16,1,3,3] V, float[16] B>"
        f" {{ c = {layer} y = {activation}(c) }}"
    )
    chip = target.load("qcs605")
    processor = machine.machine(chip)
    unit = unit_of(chip, processor, 1)
    for call in lower(graph, unit, processor, Weights(tmp_path, frozenset(), unit.alignment).place).calls:
        kernel = tvm.IRModule({"kernel": call.function.with_attr("global_symbol", "kernel")})
        assert "AllocWorkspace" not in tvm.tirx.build(kernel, processor).inspect_source("s")
