"""Kernels and networks in emulation: what their code must cost, and what is said where they can't be emulated."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest

from nnc import graph as graphs
from nnc import target
from nnc.context import Context
from nnc.errors import NncError
from nnc.lowering import build
from nnc.simulation import emulated
from nnc.simulation.emulated import emulation, latency
from nnc.simulation.emulated.core import chip
from nnc.simulation.emulated.isa import AARCH64, X86_64
from nnc.simulation.emulated.layers import layers
from nnc.simulation.emulated.trace import Trace

QCS605, XAVIER = target.load("qcs605"), target.load("jetson-xavier")

pytestmark = pytest.mark.qemu

SUM = "float s = 0; float* x = arguments[0].array[0]; for (long i = 0; i < %d; ++i) s += x[i]; x[0] = s;"


def test_instructions_are_counted_exactly(kernel: Callable[..., Path]) -> None:
    flags = ("-O2", "-fno-unroll-loops", "-fno-tree-vectorize")
    library = kernel(SUM % 1000, flags=flags)
    one = emulated.kernel(library, "kernel", ["float32:4000"], QCS605, caches=False)
    library = kernel(SUM % 3000, flags=flags)
    three = emulated.kernel(library, "kernel", ["float32:4000"], QCS605, caches=False)
    # Each of the 2000 elements more costs the same: a load, an addition, a branch and what counts for it.
    each, rest = divmod(three.instructions - one.instructions, 2000)
    assert rest == 0
    assert 3 <= each <= 6
    assert three.cycles > 2.5 * one.cycles
    assert one.accesses == one.l1_misses == one.dram_bytes == 0  # nobody looked


def test_a_sum_of_floats_takes_the_latency_of_additions(kernel: Callable[..., Path]) -> None:
    step = emulated.kernel(kernel(SUM % 10000), "kernel", ["+float32:10000"], QCS605)
    assert 4 <= step.cycles / 10000 <= 8  # fadd of the Cortex-A57 takes 5 cycles, and the next one waits for it
    assert step.bound == "compute"


def test_arrays_come_from_memory_unless_they_were_just_computed(kernel: Callable[..., Path]) -> None:
    library, size = kernel(SUM % 8192), 4 * 8192  # half of level 1
    cold = emulated.kernel(library, "kernel", ["float32:8192"], QCS605)
    warm = emulated.kernel(library, "kernel", ["+float32:8192"], QCS605)
    assert cold.dram_bytes == pytest.approx(size, rel=0.02)
    assert (warm.l1_misses, warm.dram_bytes) < (10, 640)
    assert cold.milliseconds >= warm.milliseconds


def test_what_does_not_fit_comes_from_memory_again(kernel: Callable[..., Path]) -> None:
    count = 1 << 20  # 4 MB, more than all caches
    step = emulated.kernel(kernel(SUM % count), "kernel", [f"+float32:{count}"], QCS605)
    assert step.dram_bytes == pytest.approx(4 * count, rel=0.3)


def test_far_apart_lines_make_a_core_wait(kernel: Callable[..., Path]) -> None:
    """The same number of lines, one after the other and in a chain of addresses that nothing can see coming."""
    many = 4096
    near = f"float s = 0; float* x = arguments[0].array[0]; for (long i = 0; i < {many}; ++i) s += x[16 * i]; x[0] = s;"
    far = f"float s = 0; float* x = arguments[0].array[0]; unsigned at = 1; for (long i = 0; i < {many}; ++i) {{ at = at * 1664525u + 1013904223u; s += x[16 * (at >> 20)]; }} x[0] = s;"  # fmt: skip  # noqa: E501
    arguments = [f"float32:{16 * many}"]
    streamed, alone = (emulated.kernel(kernel(body), "kernel", arguments, QCS605) for body in (near, far))
    assert alone.l1_misses <= streamed.l1_misses * 1.05
    assert alone.milliseconds > 1.5 * streamed.milliseconds
    assert alone.bound == "memory"


_PARALLEL = """
static int Part(int index, void* group, void* data) {
  int count = *(int*)((char*)group + 8);
  float s = 0, *x = data;
  for (long i = %d * index / count; i < %d * (index + 1) / count; ++i) s += x[i];
  x[16 * index] = s;
  return 0;
}
"""


def test_cores_share_the_work_and_the_slowest_decides(kernel: Callable[..., Path]) -> None:
    count = 60000
    library = kernel("return __TVMBackendParallelLaunch(Part, arguments[0].array[0], 0);", _PARALLEL % (count, count))
    arguments = [f"+float32:{count}"]
    one, two, eight = (emulated.kernel(library, "kernel", arguments, QCS605, threads) for threads in (1, 2, 8))
    assert two.instructions == pytest.approx(one.instructions, rel=0.01)
    assert two.milliseconds == pytest.approx(one.milliseconds / 2, rel=0.15)
    # A Cortex-A55 at 1.7 GHz does an eighth, in which two Cortex-A75 at 2.5 GHz would wait for it.
    assert one.milliseconds / 8 < eight.milliseconds < two.milliseconds


def test_the_same_kernel_costs_the_same_in_every_run(kernel: Callable[..., Path]) -> None:
    library = kernel(SUM % 5000)
    runs = [emulated.kernel(library, "kernel", ["+float32:5000"], QCS605, threads=2) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("conv", ["float32:4000"], "kernel.so: the library has no function 'conv'"),
        ("kernel", ["float31:4000"], "kernel.so: numbers of type 'float31' are not known"),
        ("kernel", ["4000"], "kernel.so: '4000' is not TYPE:SHAPE"),
        ("kernel", [], "kernel.so: killed by signal 11"),
    ],
)
def test_wrong_kernels_are_one_line(
    kernel: Callable[..., Path], function: str, arguments: list[str], message: str
) -> None:
    with pytest.raises(NncError) as caught:
        emulated.kernel(kernel(SUM % 1000), function, arguments, QCS605)
    assert caught.value.message.endswith(message)
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_library_is_one_line(tmp_path: Path, tools: None) -> None:
    (tmp_path / "module.so").write_bytes(b"nothing")
    with pytest.raises(NncError, match=r"module.so: .*(too short|invalid ELF)"):
        emulated.network(tmp_path / "module.so", QCS605)
    with pytest.raises(NncError, match=r"missing.so: no such file"):
        emulated.network(tmp_path / "missing.so", QCS605)


def test_more_cores_than_there_are_caches_for_are_told() -> None:
    with pytest.raises(NncError, match=r"^qcs605:cpu: no more than 64 cores are emulated, not 65$"):
        emulated.require(QCS605, 65)


def test_a_cache_that_cores_share_is_there_once() -> None:
    (big, little), l3 = QCS605.unit.clusters, QCS605.unit.l3_bytes
    shared = big.model_copy(update={"count": 4, "l2_shared_by": 2})
    unit = QCS605.unit.model_copy(update={"clusters": (shared, little)})
    chosen = QCS605.model_copy(update={"unit": unit})
    for threads, caches in ((1, 1), (2, 1), (3, 2), (4, 2)):
        expected = threads * big.l1d_bytes + caches * big.l2_bytes + l3
        assert chip(chosen, threads).cache_bytes == expected
    assert chip(chosen, 5).cache_bytes == expected + little.l1d_bytes + little.l2_bytes


@pytest.mark.parametrize(
    ("spec", "what"), [("qcs605:gpu", "a gpu"), ("qcs605:dsp", "a dsp"), ("jetson-nano:gpu", "a gpu")]
)
def test_only_processors_are_emulated(spec: str, what: str) -> None:
    with pytest.raises(NncError, match=f"only code of .* processors is emulated, not {what}") as caught:
        emulated.require(target.load(spec))
    assert "leave out --latency emulated" in caught.value.hint


def test_a_qemu_without_plugins_is_told(monkeypatch: pytest.MonkeyPatch, tools: None) -> None:
    monkeypatch.setattr(emulation.cross, "run", lambda *_: "usage: qemu-aarch64 [options] program")
    with pytest.raises(NncError, match="this QEMU has no plugins"):
        emulation.emulator(AARCH64)


def test_a_trace_that_ends_early_is_told(tmp_path: Path) -> None:
    for text in ("", "B 1000 1f2003d5\nS 0 1 5 0 0 0 0 0 0 0 0:1", "B 1000 1f2003d5\nS 0 1 5 0\nE"):
        (tmp_path / "trace.txt").write_text(text)
        with pytest.raises(NncError, match="the emulation was cut short"):
            Trace.read(tmp_path / "trace.txt", AARCH64)


def test_blocks_that_qemu_cut_are_put_together(tmp_path: Path) -> None:
    nop, branch, fmla = "1f2003d5", "c1ffff54", "c0cf3f4e"
    text = [
        f"B 1000 {fmla} {fmla}",
        f"B 1008 {fmla} {branch}",
        f"B 1010 {nop}",
        "S 0 1 0 0 0 0 0 0 0 0 0:7 1:7 2:7",
        "E",
    ]
    (tmp_path / "trace.txt").write_text("\n".join(text))
    trace = Trace.read(tmp_path / "trace.txt", AARCH64)
    assert len(trace.blocks[0]) == 4  # the branch ends it
    assert dict(trace.shares[0, 1].counts) == {0: 7, 2: 7}


def test_an_instruction_across_the_end_of_a_page_is_counted_once(tmp_path: Path) -> None:
    """QEMU shows of it what is in front of the end, leaves it out, and begins a block with it."""
    nop, fma, jne = "90", "c4e265b8d1", "75f0"
    text = [f"B 1ffb {nop} {nop} {fma[:6]}", f"B 1ffd {fma} {jne}", "S 0 1 0 0 0 0 0 0 0 0 0:5 1:5", "E"]
    (tmp_path / "trace.txt").write_text("\n".join(text))
    trace = Trace.read(tmp_path / "trace.txt", X86_64)
    assert trace.blocks[0] == tuple(map(bytes.fromhex, (nop, nop, fma, jne)))
    assert dict(trace.shares[0, 1].counts) == {0: 5}


@pytest.mark.parametrize(
    ("code", "leaves"),
    [
        ("75f0", True), ("0f8400010000", True), ("e8fcffffff", True), ("ffe0", True), ("41ffd4", True), ("c3", True),
        ("f2c3", True), ("0f05", True), ("ffc0", False), ("48ffc7", False), ("c4e265b8d1", False), ("0f1f00", False),
        ("4883c001", False), ("90", False),
    ],
)  # fmt: skip
def test_x86_instructions_that_leave_a_block(code: str, leaves: bool) -> None:
    assert X86_64.is_branch(bytes.fromhex(code)) is leaves


# --- x86

_X86 = """kind = "cpu"
vector_bits = %d
vector_registers = 16
channel_multiple = 8
int8_dot = false
tvm = { kind = "llvm", mtriple = "x86_64-unknown-linux-gnu", mcpu = "x86-64-v3" }"""


def x86(folder: Path, bits: int = 256) -> target.Target:
    """This machine with vectors of so many bits."""
    text = resources.files("nnc.targets").joinpath("x86.toml").read_text("utf-8")
    (folder / "avx2.toml").write_text(text.replace('kind = "cpu"', _X86 % bits, 1), "utf-8")
    return target.load(str(folder / "avx2.toml"))


def test_vectors_that_qemu_does_not_execute_are_told(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="QEMU executes no vectors of 512 bits") as caught:
        emulated.require(x86(tmp_path, bits=512))
    assert "vector_bits = 256" in caught.value.hint


@pytest.mark.skipif(platform.machine() != "x86_64", reason="code of x86 is emulated on x86")
def test_code_of_x86_is_emulated_on_x86(kernel: Callable[..., Path], tmp_path: Path) -> None:
    chosen = x86(tmp_path)
    emulated.require(chosen)
    one, three = (
        emulated.kernel(
            kernel(SUM % count, architecture="x86_64"),
            "kernel",
            ["+float32:12000"],
            chosen,
        )
        for count in (4000, 12000)
    )
    assert 2.5 <= (three.cycles - one.cycles) / 8000 <= 5  # one addss after another
    assert three.bound == "compute"


# --- networks


NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[1, 3, 32, 32] x) => (float[1, 10] y)
<float[16, 3, 3, 3] W = {%s}, float[16, 1, 3, 3] D = {%s}, float[10, 16] G = {%s}>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, W)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1], group = 16>(b, D)
    d = GlobalAveragePool(c)
    e = Flatten(d)
    y = Gemm<transB = 1>(e, G)
}
"""


def small() -> graphs.gs.Graph:
    rng = np.random.default_rng(0)
    weights = [", ".join(map(str, rng.standard_normal(count).round(3))) for count in (432, 144, 160)]
    return graphs.from_model(onnx.parser.parse_model(NETWORK % tuple(weights)))


@pytest.mark.slow
@pytest.mark.parametrize("chip_name", ["qcs605", "jetson-xavier"])
def test_every_layer_of_a_network_is_timed(chip_name: str, tmp_path: Path, tools: None) -> None:
    chosen, graph = target.load(chip_name), small()
    built = build(graph, chosen, tmp_path, threads=2)
    steps = emulated.network(built.files[0], chosen, 2)
    assert len(steps) == len(built.kernels)
    context = Context(chosen, threads=2)
    made = layers(graph, context.predict(graph), built.kernels, steps, halves=False)
    assert sum(layer["latency_ms"] for layer in made) == pytest.approx(sum(step.milliseconds for step in steps))
    assert sorted(name for layer in made for name in layer["kernels"]) == sorted(each.name for each in built.kernels)
    conv = made[0]
    assert conv["op"] == "Conv+Relu"
    # At peak, a core multiplies this often per cycle; both of them share the work.
    peak = chosen.unit.clusters[0].macs_per_cycle["float32"]
    assert conv["macs"] / 2 / peak < conv["cycles"] < 20 * conv["macs"] / 2 / peak
    assert [step.milliseconds for step in steps] == [
        step.milliseconds for step in emulated.network(built.files[0], chosen, 2)
    ]


@pytest.mark.slow
def test_a_step_that_never_ran_costs_nothing(tmp_path: Path, tools: None) -> None:
    built = build(small(), QCS605, tmp_path, threads=1)
    cores = chip(QCS605, 1)
    trace = emulation.run(built.files[0], cores)
    for key in [key for key in trace.shares if key[0] == 1]:
        del trace.shares[key]
    steps = latency.steps(trace, cores)
    assert (steps[1].milliseconds, steps[1].cycles, steps[1].instructions) == (0, 0, 0)
    assert steps[0].milliseconds > 0
    assert json.loads(json.dumps(asdict(steps[1])))["bound"] == "compute"
