"""The arithmetic of quantization, on every value that a float32 can have."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnc import quantize, testing
from nnc.quantize import LEAST_SCALE, Scheme
from nnc.session import Session

SCHEMES = [
    Scheme(dtype, symmetric, bits=bits) for dtype in ("int8", "uint8") for symmetric in (True, False) for bits in (4, 8)
]
ENDS = st.floats(-(2.0**127), 2.0**127, width=32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@given(one=ENDS, other=ENDS)
def test_scale_and_zero_point(scheme: Scheme, one: float, other: float) -> None:
    """Zero is exact, the ends are off by half a step at most, and the product of two scales is a normal float32."""
    low, high = sorted((one, other))
    scale, zero = quantize.scale_zero_point(low, high, scheme)
    assert scale.dtype == np.float32
    assert zero.dtype == scheme.dtype
    assert LEAST_SCALE <= scale < np.inf
    assert not quantize.fake_quantized(np.zeros(1), scale, zero, scheme).any()
    ends = np.array([min(low, 0), max(high, 0)])
    off = np.abs(quantize.fake_quantized(ends, scale, zero, scheme) - ends)
    assert (off <= (1.0 if not scheme.symmetric else 0.5) * scale * (1 + 1e-5)).all()


@pytest.mark.parametrize("low", [-np.inf, np.nan])
def test_ends_must_be_finite(low: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        quantize.scale_zero_point(low, 1.0, SCHEMES[0])


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme.bits == 8], ids=str)
def test_the_same_as_onnxruntime(scheme: Scheme) -> None:
    scale, zero = quantize.scale_zero_point(-1.3, 2.7, scheme)
    dtype = scheme.dtype
    text = f"""net (float[4096] x) => ({dtype}[4096] q, float[4096] y) <float scale, {dtype} zero>
    {{ q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, scale, zero) }}"""
    x = np.random.default_rng(0).uniform(-2, 4, 4096).astype(np.float32)
    found = Session(testing.graph(text, scale=scale, zero=zero)).run({"x": x})
    clipped = np.clip(found["q"], *scheme.limits)  # a symmetric scheme never writes the least integer
    integers = quantize.quantized(x, scale, zero, scheme)
    assert np.abs(integers.astype(int) - clipped.astype(int)).max() <= 1  # a tie of float32 is none of float64
    assert (integers != clipped).mean() < 1e-3
    np.testing.assert_allclose(quantize.dequantized(found["q"], scale, zero), found["y"], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_scales_of_weights(axis: int | None, bits: int) -> None:
    W = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    scheme = Scheme("int8", True, axis is not None, bits)
    errors = []
    for method in ("min-max", "mse"):
        scale, zero = quantize.weight_scale(W, scheme, axis, method)
        assert scale.shape == zero.shape == (() if axis is None else (W.shape[axis],))
        errors.append(np.square(W - quantize.fake_quantized(W, scale, zero, scheme, axis)).sum())
    assert errors[1] < errors[0] or (bits == 8 and errors[1] == errors[0])


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        ("Conv(x, W)", 0), ("ConvTranspose(x, W)", 1), ("ConvTranspose<group = 2>(x, W)", None), ("MatMul(x, W)", 3),
        ("MatMul(W, x)", None),
    ],
)  # fmt: skip
def test_axis_of_output_channels(layer: str, axis: int | None) -> None:
    graph = testing.graph(f"net (float[1, 4, 4, 4] x) => (float y) <float[4, 4, 4, 4] W> {{ y = {layer} }}")
    node: gs.Node = graph.nodes[0]
    assert quantize.scale_axis(node) == axis


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_neighbours_share_the_scales_and_zero_points_of_a_block(axis: int) -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(-8, 8, (5, 7)).astype(np.int8)
    sizes = [5, 7]
    sizes[axis] = -(-sizes[axis] // 3)
    scale, zero = rng.random(sizes).astype(np.float32), rng.integers(-3, 3, sizes).astype(np.int8)
    values = quantize.dequantized(integers, scale, zero, axis, 3)
    for place in np.ndindex(5, 7):
        block = tuple(at // 3 if index == axis % 2 else at for index, at in enumerate(place))
        expected = (float(integers[place]) - float(zero[block])) * float(scale[block])
        assert values[place] == pytest.approx(expected)
