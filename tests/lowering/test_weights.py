"""Packed weights in a library: decoded once, whoever comes first, and refused where they are damaged."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import lowering, packing, target, testing, verify
from nnc.errors import NncError
from nnc.lowering import emulate, lower
from nnc.lowering.build import unit_of
from nnc.lowering.emulate import EmulatedLibrary
from nnc.lowering.library import Library
from nnc.lowering.machine import machine as known_machine
from nnc.lowering.program import Constant
from nnc.lowering.weights import Weights
from nnc.session import Session

NET = """
net (float[1, 32, 12, 12] x, float[1, 600] v) => (float[1, 24] y, float[1, 32, 12, 12] z, float[1, 600] w)
<
    float[32, 32, 3, 3] U, float[32] B, float[32, 1, 3, 3] V, float[48, 32, 1, 1] W, float[24, 48] G,
    float[1, 32, 12, 12] A, float[1, 600] K
>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, U, B)
    b = Conv<pads = [1, 1, 1, 1], group = 32>(a, V)
    c = Relu(b)
    d = Conv(c, W)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    y = Gemm<transB = 1>(f, G)
    z = Add(c, A)
    w = Mul(v, K)
}
"""


def net(seed: int = 0) -> gs.Graph:
    """A network whose weights are multiples of 1/8, all of them marked."""
    graph = testing.graph(NET, **{name: _few(seed, name, shape) for name, shape in SHAPES.items()})
    packing.mark(graph, SHAPES)
    return graph


SHAPES = {
    "U": (32, 32, 3, 3), "B": (32,), "V": (32, 1, 3, 3), "W": (48, 32, 1, 1), "G": (24, 48), "A": (1, 32, 12, 12),
    "K": (1, 600),
}  # fmt: skip


def _few(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng([seed, ord(name)])
    return (rng.integers(-8, 8, shape) / 8).astype(np.float32)


def unmarked(graph: gs.Graph) -> gs.Graph:
    copy = graphs.copy(graph)
    packing.mark(copy, [])
    return copy


def build(graph: gs.Graph, folder: Path, chip: str = "x86") -> lowering.Built:
    folder.mkdir(exist_ok=True)
    return lowering.build(graph, target.load(chip), folder, threads=2)


def inputs() -> list[np.ndarray]:
    return list(verify.probe_inputs(net(), 0).values())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    build(net(), folder)
    return folder / "module.so"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The outputs of the same library with its weights as they are."""
    folder = tmp_path_factory.mktemp("raw")
    built = build(unmarked(net()), folder)
    assert built.weight_bytes <= built.packed_bytes < built.weight_bytes + 64 * len(built.kernels)
    return Library(folder / "module.so", 2).run(inputs())


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_kind_of_layer_is_packed(tmp_path: Path) -> None:
    built = build(net(), tmp_path)
    assert built.packed_bytes < 0.5 * built.weight_bytes


def test_the_outputs_have_the_same_bits(packed: Path, expected: list[np.ndarray]) -> None:
    assert same(Library(packed, 2).run(inputs()), expected)
    assert same(Library(packed, 1).run(inputs()), expected)


def test_two_libraries_in_one_process(packed: Path, expected: list[np.ndarray], tmp_path: Path) -> None:
    build(net(seed=1), tmp_path)
    one, other = Library(packed, 2), Library(tmp_path / "module.so", 2)
    results = [library.run(inputs()) for library in (one, other, one)]
    assert same(results[0], expected)
    assert same(results[2], expected)
    assert not same(results[1], expected)


def test_the_first_inference_decodes_what_nobody_loaded(
    packed: Path, expected: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many threads come first at once, as in a server of somebody who knows only the runtime of TVM."""
    (tmp_path / "module.so").write_bytes(packed.read_bytes())  # another file is another library
    monkeypatch.setattr(Library, "_call", lambda self, name, *arguments: None)
    libraries = [Library(tmp_path / "module.so", 1) for _ in range(6)]
    start, found = threading.Barrier(len(libraries)), []

    def infer(library: Library) -> None:
        start.wait()
        found.append(library.run(inputs()))

    threads = [threading.Thread(target=infer, args=[library]) for library in libraries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(libraries)
    assert all(same(each, expected) for each in found)


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    """The head that all levels of a detector share, which exporters write once for each."""
    text = """
    net (float[1, 32, 9, 9] x, float[1, 32, 5, 5] z) => (float[1, 32, 9, 9] y, float[1, 32, 5, 5] w)
    <float[32, 32, 3, 3] U, float[32, 32, 3, 3] V>
    {
        y = Conv<pads = [1, 1, 1, 1]>(x, U)
        w = Conv<pads = [1, 1, 1, 1]>(z, V)
    }
    """
    U = _few(0, "U", SHAPES["U"])
    for marked in ([], ["U", "V"]):
        sizes = []
        for values in ({"U": U, "V": U.copy()}, {"U": U, "V": 2 * U}):
            graph = testing.graph(text, **values)
            packing.mark(graph, marked)
            sizes.append(build(graph, tmp_path))
        assert sizes[1].weight_bytes >= 2 * U.nbytes
        assert sizes[0].weight_bytes == sizes[1].weight_bytes // 2
        assert sizes[0].packed_bytes <= 0.6 * sizes[1].packed_bytes
        drawn = verify.probe_inputs(graph, 0)
        library = Library(tmp_path / "module.so", 1)
        for expected, found in zip(Session(graph).run(drawn).values(), library.run(list(drawn.values())), strict=True):
            assert verify.difference(expected, found) < 5e-5


def test_packed_weights_are_never_all_in_memory(tmp_path: Path) -> None:
    layers, width = 12, 256
    body = "".join(f"x{i + 1} = Gemm(x{i}, W{i}) " for i in range(layers))
    weights = ", ".join(f"float[{width}, {width}] W{i}" for i in range(layers))
    graph = testing.graph(f"net (float[4, {width}] x0) => (float[4, {width}] x{layers}) <{weights}> {{ {body} }}")
    written = Weights(tmp_path, frozenset(), 64)
    machine = known_machine(target.load("x86"))
    unit = unit_of(target.load("x86"), machine, 1)
    lower.lower(graph, unit, machine, lambda values, nodes: Constant(values.shape, str(values.dtype), "", 0))  # imports
    tracemalloc.start()
    try:
        lower.lower(graph, unit, machine, written.place)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert written.bytes >= layers * 4 * width**2
    assert peak < 2 / layers * written.bytes, "those of one layer, and what lowering takes itself"


def damaged(library: Path, folder: Path) -> Path:
    """A copy in which one bit of the packed weights is wrong."""
    pieces = packing.pack(_few(0, "K", SHAPES["K"]))  # the library has it in the same order
    content = bytearray(library.read_bytes())
    place = content.find(pieces[0].streams)
    assert place > 0
    content[place + len(pieces[0].streams) // 2] ^= 4
    (folder / "damaged.so").write_bytes(content)
    return folder / "damaged.so"


def test_damaged_weights_are_one_line(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(NncError, match=r"damaged\.so: can't be loaded .*: .*the weights in the library are damaged"):
        Library(damaged(packed, tmp_path), 2)


@pytest.mark.qemu
def test_on_another_processor(tmp_path: Path) -> None:
    try:
        emulate.emulator()
    except NncError as error:
        pytest.skip(error.message)
    chip = target.load("qcs605")
    built = [build(graph, tmp_path / name, "qcs605") for name, graph in (("p", net()), ("r", unmarked(net())))]
    assert built[0].packed_bytes < 0.5 * built[1].packed_bytes
    results = [EmulatedLibrary(each.files[0], chip).run(inputs()) for each in built]
    assert same(*results)
    with pytest.raises(NncError, match="the weights in the library are damaged"):
        EmulatedLibrary(damaged(built[0].files[0], tmp_path), chip).run(inputs())
