"""Graphs compiled for GPUs and run through OpenCL against onnxruntime: every class of operator, both families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import target
from nnc.errors import NncError
from nnc.lowering.build import Built
from nnc.lowering.gpu import conv2d, gemm
from nnc.lowering.gpu.build import build
from nnc.lowering.gpu.tile import Tile
from nnc.testing import graph

Compare = Callable[..., Built]

SPECS = ("qcs605:gpu", "jetson-xavier:gpu")


def drawn(body: str, inputs: str, outputs: str, weights: str, **values: Any) -> gs.Graph:
    """A graph of ONNX text; weights are drawn."""
    return graph(f"g ({inputs}) => ({outputs}) <{weights}> {{ {body} }}", **values)


CONVOLUTIONS = """
    a = Conv<pads=[1,1,1,1]>(x, A, ab)
    wide = Relu(a)
    left = Conv<strides=[2,1], pads=[2,0,1,3], dilations=[1,2]>(wide, B)
    pointwise = Conv(wide, C, cb)
    added = Add(pointwise, wide)
    residual = Clip(added, zero, six)
    sampled = Conv<strides=[2,2]>(residual, C, cb)
    grouped = Conv<group=3, pads=[1,1,1,1]>(residual, G, gb)
    deep = Conv<group=18, pads=[2,2,2,2], strides=[2,2]>(residual, D, db)
    gate = Sigmoid(deep)
    gated = Mul(deep, gate)
    flat = Conv<group=18, pads=[1,0,1,0]>(grouped, E)
    up = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,0]>(sampled, T, tb)
"""
CONVOLUTION_WEIGHTS = """
    float[18,3,3,3] A, float[18] ab, float[5,18,5,2] B, float[18,18,1,1] C, float[18] cb, float[21,6,3,3] G,
    float[21] gb, float[18,1,5,5] D, float[18] db, float[21,1,3,1] E, float[18,7,4,3] T, float[7] tb,
    float zero = {0}, float six = {6}
"""


@pytest.mark.parametrize("spec", SPECS)
def test_convolutions_of_odd_sizes(compare: Compare, spec: str) -> None:
    outputs = "float[2,5,h,w] left, float[2,18,h1,w1] sampled, float[2,18,h2,w2] gated, float[2,21,h3,w3] flat"
    body = CONVOLUTIONS.replace("group=18, pads=[1,0,1,0]", "group=21, pads=[1,0,1,0]")
    drawing = drawn(body, "float[2,3,19,15] x", f"{outputs}, float[2,7,h4,w4] up", CONVOLUTION_WEIGHTS)
    built = compare(drawing, spec)
    assert {"conv2d", "depthwise"} <= {kernel.template for kernel in built.kernels}
    assert "Conv+Add+Clip" in {kernel.op for kernel in built.kernels}, "what follows is computed in registers"


@pytest.mark.parametrize("spec", SPECS)
def test_computed_biases(compare: Compare, spec: str) -> None:
    body = """
        b = Identity(B)
        dense = Conv<pads=[1,1,1,1]>(x, W, b)
        deep = Conv<group=6>(x, D, v)
        up = ConvTranspose<strides=[2,2]>(x, T, v)
        rows = Gemm(z, G, b)
    """
    outputs = "float[2,6,7,9] dense, float[2,6,5,7] deep, float[2,6,14,18] up, float[3,6] rows"
    weights = "float[6] B, float[6,6,3,3] W, float[6,1,3,3] D, float[6,6,2,2] T, float[8,6] G"
    compare(drawn(body, "float[2,6,7,9] x, float[6] v, float[3,8] z", outputs, weights), spec)


def test_integers_with_a_computed_bias(compare: Compare) -> None:
    body = """
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        w = DequantizeLinear<axis=0>(W, ws, wz)
        y = Conv(d, w, v)
    """
    weights = "float s = {0.02}, int8 z = {0}, int8[8,8,3,3] W, float[8] ws, int8[8] wz"
    values = {"W": np.random.default_rng(0).integers(-127, 128, (8, 8, 3, 3)), "ws": np.full(8, 2.0**-9)}
    graph = drawn(body, "float[1,8,9,9] x, float[8] v", "float[1,8,7,7] y", weights, **values, wz=np.zeros(8, np.int8))
    built = compare(graph, "jetson-xavier:gpu")
    assert any(kernel.template == "conv2d" and kernel.op.startswith("Conv") for kernel in built.kernels)


@pytest.mark.parametrize("spec", SPECS)
def test_rows_are_copied_at_once(compare: Compare, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a detector: thousands of short rows that go elsewhere, within one buffer and between two."""
    import pyopencl as cl

    body = """
        t = Relu(x)
        boxes, scores = Split<axis=3>(t, sizes)
        back = Concat<axis=3>(scores, boxes)
        y = Neg(back)
        first, rest = Split<axis=3>(x, sizes)
    """
    outputs = "float[2,9,11,13] y, float[2,9,11,3] first, float[2,9,11,10] rest"
    copies: list[tuple[Any, ...]] = []
    enqueue = cl.enqueue_copy
    monkeypatch.setattr(cl, "enqueue_copy", lambda *words, **more: (copies.append(words), enqueue(*words, **more))[1])
    built = compare(drawn(body, "float[2,9,11,13] x", outputs, "int64[2] sizes = {3,10}"), spec)
    moved = [kernel for kernel in built.kernels if kernel.template == "copy"]
    assert len(moved) == 6
    assert len(copies) <= 2 * len(moved) + 4, "two for each within one buffer, and what goes in and out"


@pytest.mark.parametrize("spec", SPECS)
def test_products(compare: Compare, spec: str) -> None:
    body = """
        one = Gemm<transB=1, alpha=0.5, beta=2.0>(x, A, ab)
        hidden = Relu(one)
        many = MatMul(y, B)
        odd = MatMul(many, C)
        both = MatMul(many, other)
    """
    weights = "float[37,260] A, float[37] ab, float[33,12] B, float[12,70] C"
    inputs = "float[1,260] x, float[3,5,33] y, float[3,12,4] other"
    built = compare(drawn(body, inputs, "float[1,37] hidden, float[3,5,70] odd, float[3,5,4] both", weights), spec)
    assert [kernel.template for kernel in built.kernels].count("gemm") == 3


@pytest.mark.parametrize("spec", SPECS)
def test_pools(compare: Compare, spec: str) -> None:
    body = """
        most = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]>(x)
        mean = AveragePool<kernel_shape=[3,3], strides=[2,1], pads=[1,1,1,1], ceil_mode=1>(x)
        padded = AveragePool<kernel_shape=[2,2], pads=[1,1,0,0], count_include_pad=1>(x)
        all = GlobalAveragePool(x)
        top = GlobalMaxPool(x)
        flat = ReduceMean<axes=[2,3], keepdims=0>(x)
    """
    outputs = ("most", "mean", "padded", "all", "top")
    listed = ", ".join(f"float[2,6,{name}h,{name}w] {name}" for name in outputs)
    compare(drawn(body, "float[2,6,13,11] x", f"{listed}, float[2,6] flat", ""), spec)


@pytest.mark.parametrize("spec", SPECS)
def test_elementwise_operators_and_movement(compare: Compare, spec: str) -> None:
    body = """
        c = Conv(x, W)
        swish = HardSwish(c)
        rounded = Round(x)
        error = Erf(x)
        logs = Softplus(x)
        sharp = Tanh(error)
        turned = Transpose<perm=[0,2,3,1]>(c)
        joined = Concat<axis=1>(c, x, swish)
        first, second = Split<axis=1>(joined)
        stepped = Slice(second, starts, ends, axes, steps)
        around = Pad(stepped, pads)
        soft = Softmax<axis=-1>(turned)
        best = ArgMax<axis=1>(around)
        sizes = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , scales)
        gathered = Gather<axis=2>(x, places)
        summed = ReduceSum(x, last)
        norm = LayerNormalization(turned, gamma)
    """
    outputs = """float[1,4,9,7] rounded, float[1,4,9,7] logs, float[1,4,9,7] sharp, float[1,h,w,8] soft,
        int64[1,a,b,c1] best, float[1,4,i,j] sizes, float[1,4,2,7] gathered, float[1,4,9,1] summed,
        float[1,9,7,8] norm, float[1,10,9,7] first"""
    weights = """float[8,4,1,1] W, int64[1] starts = {0}, int64[1] ends = {9}, int64[1] axes = {2},
        int64[1] steps = {2}, int64[8] pads = {0,1,0,0,0,0,2,1}, float[4] scales = {1,1,2,1.5},
        int64[2] places = {5,1}, int64[1] last = {3}, float[8] gamma"""
    compare(drawn(body, "float[1,4,9,7] x", outputs, weights), spec)


@pytest.mark.parametrize("spec", SPECS)
def test_integers_are_multiplied_as_what_they_stand_for(compare: Compare, spec: str) -> None:
    body = """
        q = QuantizeLinear(x, sx, zx)
        d = DequantizeLinear(q, sx, zx)
        w = DequantizeLinear<axis=0>(W, sw, zw)
        c = Conv<pads=[1,1,1,1]>(d, w)
        r = Relu(c)
        qr = QuantizeLinear(r, sr, zx)
        y = DequantizeLinear(qr, sr, zx)
        deep = Conv<group=6, pads=[1,1,1,1]>(y, D)
        next = Conv<pads=[0,1,0,1]>(y, E)
    """
    weights = """float sx = {0.02}, uint8 zx = {7}, int8[6,3,3,3] W, float[6] sw = {0.25,0.5,0.125,0.25,0.5,0.25},
        int8[6] zw = {0,0,0,0,0,0}, float sr = {4.0},
        float[6,1,3,3] D, float[5,6,1,3] E"""
    W = np.random.default_rng(0).integers(-8, 8, (6, 3, 3, 3))
    outputs = "float[1,6,9,9] y, float[1,6,9,9] deep, float[1,5,9,9] next"
    built = compare(drawn(body, "float[1,3,9,9] x", outputs, weights, W=W), spec)
    read = [kernel.op for kernel in built.kernels if kernel.op.startswith("Dequantize")]
    assert len(read) == 1, "integers become floats where they are read; once more for the output"


@pytest.mark.parametrize("spec", SPECS)
def test_float16_is_in_memory_alone(compare: Compare, spec: str, tmp_path: Path) -> None:
    """OpenCL has it there on every device; what is computed is float32."""
    body = """
        c = Conv(x, W, b)
        r = Relu(c)
        wide = Cast<to=1>(r)
        padded = Pad(r, pads)
        turned = Transpose<perm=[0,3,2,1]>(padded)
        up = Resize<mode="linear">(x, , scales)
        mean = ReduceMean<axes=[3]>(r)
    """
    outputs = "float[1,4,6,7] wide, float16[1,9,7,4] turned, float16[1,4,12,14] up, float16[1,4,6,1] mean"
    weights = "float16[4,4,1,1] W, float16[4] b, int64[8] pads = {0,0,1,1,0,0,0,1}, float[4] scales = {1,1,2,2}"
    compare(drawn(body, "float16[1,4,6,7] x", outputs, weights), spec, tolerance=2e-3)
    source = (tmp_path / "kernels.cl").read_text()
    assert "cl_khr_fp16" not in source
    assert "load_half(" in source


@pytest.mark.parametrize("spec", SPECS)
def test_comparisons_and_kernels_with_two_results(compare: Compare, spec: str) -> None:
    body = """
        less = Less(x, y)
        chosen = Where(less, x, y)
        top, places = TopK<axis=1>(x, k)
    """
    outputs = "float[2,12,8,5] chosen, float[2,3,8,5] top, int64[2,3,8,5] places"
    compare(drawn(body, "float[2,12,8,5] x, float[2,12,8,5] y", outputs, "int64[1] k = {3}"), spec)


INT8 = """
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    a = DequantizeLinear<axis=0>(A, as, az)
    c = Conv<pads=[1,1,1,1]>(d, a)
    r = Relu(c)
    qr = QuantizeLinear(r, sr, z)
    dr = DequantizeLinear(qr, sr, z)
    b = DequantizeLinear<axis=0>(B, bs, bz)
    e = Conv<strides=[2,2], pads=[0,1,1,0]>(dr, b)
    qe = QuantizeLinear(e, se, z)
    de = DequantizeLinear(qe, se, z)
    flat = Flatten(de)
    w = DequantizeLinear<axis=1>(C, cs, cz)
    g = Gemm<alpha=0.5>(flat, w, bias)
    qg = QuantizeLinear(g, sg, z)
    y = DequantizeLinear(qg, sg, z)
"""
INT8_WEIGHTS = """
    float s = {0.02}, int8 z = {0}, float sr = {0.01}, float se = {0.01}, float sg = {0.01},
    int8[11,3,3,3] A, float[11] as, int8[11] az, int8[6,11,3,2] B, float[6] bs, int8[6] bz,
    int8[180,9] C, float[9] cs, int8[9] cz, float[9] bias
"""


def int8_network() -> gs.Graph:
    """Layers whose scales are powers of two, so that float32 holds every sum exactly."""
    rng = np.random.default_rng(0)
    names = {"A": (11, 3, 3, 3), "B": (6, 11, 3, 2), "C": (180, 9)}
    values = {name: rng.integers(-127, 128, shape) for name, shape in names.items()}
    values |= {f"{name.lower()}z": np.zeros(max(shape[0] % 180, 9), np.int8) for name, shape in names.items()}
    values["bz"] = np.zeros(6, np.int8)
    values |= {"as": np.full(11, 2.0**-9), "bs": np.full(6, 2.0**-8), "cs": np.full(9, 2.0**-9)}
    return drawn(INT8, "float[2,3,11,11] x", "float[2,9] y", INT8_WEIGHTS, **values)


def test_int8_is_multiplied_four_at_a_time(compare: Compare, tmp_path: Path) -> None:
    """To the last bit what onnxruntime computes; the assembler knows the instruction."""
    built = compare(int8_network(), "jetson-xavier:gpu", tolerance=0)
    kernels = {kernel.template: kernel.dtype for kernel in built.kernels if "Quantize" in kernel.op}
    assert {"conv2d": "int8", "int8_gemm": "int8"}.items() <= kernels.items()
    assert (tmp_path / "kernels.cu").read_text().count("__dp4a(") == 3
    if (tmp_path / "kernels.ptx").exists():
        assert "dp4a.s32.s32" in (tmp_path / "kernels.ptx").read_text()


@pytest.mark.parametrize("spec", ["jetson-xavier:gpu", "jetson-orin-nano:gpu"])
def test_words_in_shared_memory_are_loaded_once(spec: str, tmp_path: Path) -> None:
    body = """
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        a = DequantizeLinear<axis=0>(A, as, az)
        y = Conv(d, a)
    """
    weights = "float s = {0.02}, int8 z = {0}, int8[64,64,1,1] A, float[64] as, int8[64] az"
    zeros = {"A": np.zeros((64, 64, 1, 1), np.int8), "az": np.zeros(64, np.int8)}
    built = build(
        drawn(body, "float[1,64,28,28] x", "float[1,64,28,28] y", weights, **zeros), target.load(spec), tmp_path
    )
    if not (tmp_path / "kernels.ptx").exists():
        pytest.skip("NVRTC is not installed")
    ptx = (tmp_path / "kernels.ptx").read_text()
    assert ptx.count("dp4a.s32.s32") >= 4 * ptx.count("ld.shared") > 0
    assert not any(kernel.spilled_bytes for kernel in built.kernels)  # type: ignore[attr-defined]


def test_gpus_without_the_instruction_multiply_floats(compare: Compare, tmp_path: Path) -> None:
    compare(int8_network(), "qcs605:gpu", tolerance=0)
    assert "__dp4a" not in (tmp_path / "kernels.cl").read_text()


TILES = [
    Tile(1, 1, (32, 1)),
    Tile(4, 2, (8, 4)),
    Tile(2, 1, (4, 2), slices=4),
    Tile(8, 2, (8, 8), depth=4),
    Tile(4, 1, (16, 4), depth=1),
    Tile(2, 4, (64, 1), depth=2),
]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_computes_the_same(compare: Compare, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, columns and depths that no tile divides; few input channels, and blocks of them."""
    for template in (conv2d, gemm):
        monkeypatch.setattr(template, "best_tile", lambda shape, unit: tile)
    body = """
        a = Conv<pads=[1,1,1,1]>(x, A, ab)
        b = Conv<strides=[2,2], pads=[0,1,1,0]>(a, B)
        flat = Flatten(b)
        y = Gemm(flat, C)
    """
    weights = "float[11,3,3,3] A, float[11] ab, float[6,11,3,2] B, float[180,9] C"
    compare(drawn(body, "float[1,3,11,11] x", "float[1,9] y", weights), "jetson-xavier:gpu")
    if tile in TILES[1:4]:  # sums of words: from the caches, shared by threads, and staged
        compare(int8_network(), "jetson-xavier:gpu", tolerance=0)


def test_the_same_graph_gives_the_same_files(tmp_path: Path) -> None:
    drawing = drawn("c = Conv(x, W) y = Relu(c)", "float[1,3,9,9] x", "float[1,8,7,7] y", "float[8,3,3,3] W")
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        built = build(drawing, target.load("jetson-xavier:gpu"), tmp_path / name)
        assert sorted(tmp_path.joinpath(name).iterdir()) == sorted(built.files), "nothing else is left behind"
        contents.append({file.name: file.read_bytes() for file in built.files})
    assert contents[0] == contents[1]
    assert {"kernels.cl", "kernels.cu", "network.json", "weights.bin"} <= set(contents[0])


def test_what_no_kernel_computes_is_refused(tmp_path: Path) -> None:
    drawing = drawn("y = RandomNormalLike(x)", "float[1,3] x", "float[1,3] y", "")
    with pytest.raises(NncError, match="it draws random numbers"):
        build(drawing, target.load("qcs605:gpu"), tmp_path)
    assert list(tmp_path.iterdir()) == []
