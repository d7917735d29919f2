"""Linking for AArch64, and running what was linked."""

import errno
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from nnc import target
from nnc.errors import NncError
from nnc.hardware import host
from nnc.lowering import cross, emulate

QCS605 = target.load("qcs605")
DATA = Path(os.environ.get("NNC_DATA", Path(__file__).parents[2] / "../shared/data"))


def _emulator() -> bool:
    try:
        emulate.emulator()
    except NncError:
        return False
    return True


needs_emulator = pytest.mark.skipif(not _emulator(), reason="qemu-aarch64 or its C library is not installed")
needs_zig = pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="ziglang is not installed")


def object_file(folder: Path, source: str, architecture: str = "aarch64") -> Path:
    code, compiled = folder / "code.c", folder / "code.o"
    code.write_text(source)
    cross.run([*cross.compiler(architecture), "-O2", "-fPIC", "-c", code, "-o", compiled])
    return compiled


@needs_zig
@pytest.mark.slow
def test_linking_makes_a_library_for_the_target(tmp_path: Path) -> None:
    code = object_file(tmp_path, "#include <math.h>\nfloat twice(float x) { return 2 * expf(x); }\n")
    cross.link([code], tmp_path / "code.so", QCS605)
    header = (tmp_path / "code.so").read_bytes()[:20]
    assert header[:5] == b"\x7fELF\x02"
    assert (header[16], header[18]) == (3, 183)  # ET_DYN, EM_AARCH64
    versions = {word.split(b"\0")[0] for word in (tmp_path / "code.so").read_bytes().split(b"GLIBC_")[1:]}
    assert versions <= {b"2.17"}  # boards have an older glibc than this machine


@needs_zig
@pytest.mark.slow
def test_the_same_objects_give_the_same_bytes(tmp_path: Path) -> None:
    code = object_file(tmp_path, "int one(void) { return 1; }\n")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cross.link([code], tmp_path / name / "code.so", QCS605)
    assert (tmp_path / "a/code.so").read_bytes() == (tmp_path / "b/code.so").read_bytes()


@needs_zig
@pytest.mark.slow
def test_objects_that_do_not_link_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "code.o").write_bytes(b"not an object file")
    with pytest.raises(NncError, match=r"ziglang cc .* failed: ") as caught:
        cross.link([tmp_path / "code.o"], tmp_path / "code.so", QCS605)
    assert "\n" not in caught.value.message


def test_headers_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(Path(option.removeprefix("-I")).is_dir() for option in cross.includes())
    monkeypatch.setattr(cross.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NncError, match="the headers of apache-tvm-ffi are not installed"):
        cross.includes()


def test_a_distribution_compiler_replaces_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cross.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert cross.compiler("aarch64") == ["aarch64-linux-gnu-gcc"]


@pytest.mark.parametrize(
    ("architecture", "hint"), [("aarch64", "pip install ziglang"), ("riscv64", "install riscv64-linux-gnu-gcc")]
)
def test_no_compiler_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, architecture: str, hint: str) -> None:
    monkeypatch.setattr(cross.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cross.shutil, "which", lambda name: None)
    with pytest.raises(NncError, match=f"no compiler that links for {architecture}") as caught:
        cross.compiler(architecture)
    assert caught.value.hint == hint


def test_no_emulator_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulate.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(emulate.shutil, "which", lambda name: None)
    with pytest.raises(NncError, match="qemu-aarch64 is not installed") as caught:
        emulate.emulator()
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("apt install qemu-user")


def test_no_c_library_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emulate.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(emulate.shutil, "which", lambda name: "/usr/bin/qemu-aarch64")
    monkeypatch.setattr(host, "_AARCH64_ROOTS", (str(tmp_path),))
    monkeypatch.setenv("QEMU_LD_PREFIX", str(tmp_path))
    with pytest.raises(NncError, match="no AArch64 C\\+\\+ library is installed"):
        emulate.emulator()


def test_an_aarch64_machine_runs_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulate.platform, "machine", lambda: "aarch64")
    assert emulate.emulator() == []


def test_only_aarch64_is_emulated(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="only AArch64 libraries are emulated, not hexagon"):
        emulate.EmulatedLibrary(tmp_path / "m.so", target.load("qcs605:dsp"))
    with pytest.raises(NncError, match=r"m\.so: no such file"):
        emulate.EmulatedLibrary(tmp_path / "m.so", QCS605)


def test_an_emulated_library_runs_on_the_threads_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = []
    monkeypatch.setattr(emulate, "emulator", lambda: [])
    monkeypatch.setattr(emulate, "runner", lambda: tmp_path / "runner")
    monkeypatch.setattr(emulate.host, "processors", lambda: 4)
    monkeypatch.setattr(cross, "run", lambda command, environment, subject: taken.append(environment))
    (tmp_path / "m.so").touch()
    for threads in (1, 3, 500, None):
        emulate.EmulatedLibrary(tmp_path / "m.so", QCS605, threads).run([])
    expected = ["1", "3", "4", str(min(QCS605.unit.threads, 4))]
    assert [environment["TVM_NUM_THREADS"] for environment in taken] == expected


def test_no_network_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(NncError, match="the AArch64 runtime of TVM can't be downloaded") as caught:
        emulate.runner()
    assert caught.value.hint == "this needs pip and the network, once"
    assert list((tmp_path / "nnc").iterdir()) == []


def test_two_first_runs_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that is slower takes what the other has made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(emulate, "_fetch_runtime", lambda versions, folder: None)
    monkeypatch.setattr(emulate, "_compile_runner", lambda source, folder: (folder / "runner").write_text("mine"))
    move = Path.rename

    def overtaken(source: Path, to: Path) -> Path:
        to.mkdir()
        (to / "runner").write_text("theirs")
        return move(source, to)

    monkeypatch.setattr(Path, "rename", overtaken)
    assert emulate.runner().read_text() == "theirs"

    def denied(source: Path, to: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", denied)
    shutil.rmtree(tmp_path / "nnc")
    with pytest.raises(PermissionError):
        emulate.runner()


@pytest.mark.qemu
@pytest.mark.slow
@needs_emulator
def test_every_type_of_tensor_goes_through(tmp_path: Path) -> None:
    library, inputs = _compiled_doubling(tmp_path)
    outputs = emulate.EmulatedLibrary(library, QCS605).run(inputs)
    assert [(each.dtype, each.shape) for each in outputs] == [(each.dtype, each.shape) for each in inputs]
    for given, returned in zip(inputs, outputs, strict=True):
        np.testing.assert_array_equal(returned, given + given)


@pytest.mark.qemu
@pytest.mark.slow
@needs_emulator
def test_wrong_inputs_are_one_line(tmp_path: Path) -> None:
    path, inputs = _compiled_doubling(tmp_path)
    library = emulate.EmulatedLibrary(path, QCS605)
    with pytest.raises(NncError, match=r"m\.so: the model has 6 inputs, not 1$"):
        library.run(inputs[:1])
    with pytest.raises(NncError, match=r"m\.so: .*expect Tensor with ndim 3 but get 2$") as caught:
        library.run([np.zeros((2, 3), np.float32), *inputs[1:]])
    assert "\n" not in caught.value.message
    with pytest.raises(NncError, match=r"m\.so: inputs of type <U3 are not supported$"):
        library.run([np.array(["abc"]), *inputs[1:]])


@pytest.mark.data
@pytest.mark.qemu
@pytest.mark.slow
@needs_emulator
@pytest.mark.skipif(not DATA.exists(), reason=f"no shared data at {DATA}")
@pytest.mark.parametrize("spec", ["qcs605", "jetson-xavier"])
def test_mobilenet_v2_equals_onnxruntime(tmp_path: Path, spec: str) -> None:
    import onnx
    import onnxruntime
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    chip = target.load(spec)
    model = onnx.load(DATA / "models/imagenet_mobilenet_v2_1.0_224.onnx")
    module = from_onnx(model, shape_dict={"input": [1, 3, 224, 224]}, keep_params_in_input=False)
    executable = tvm.compile(module, target=tvm.target.Target(chip.unit.tvm))
    executable.export_library(tmp_path / "m.so", fcompile=cross.linker(chip))
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    (logits,) = emulate.EmulatedLibrary(tmp_path / "m.so", chip).run([image])
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": image})
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())


def _compiled_doubling(folder: Path) -> tuple[Path, list[np.ndarray]]:
    """A library that doubles one tensor of each type, and inputs for it."""
    import tvm
    from tvm import relax

    dtypes = ("float32", "float16", "int8", "uint8", "int32", "int64")
    inputs = [np.arange(6).reshape(1, 2, 3)[..., : index % 3 + 1].astype(name) for index, name in enumerate(dtypes)]
    builder = relax.BlockBuilder()
    parameters = [
        relax.Var(f"x{index}", relax.TensorType(each.shape, str(each.dtype))) for index, each in enumerate(inputs)
    ]
    with builder.function("main", parameters):
        with builder.dataflow():
            doubled = [builder.emit(relax.op.add(each, each)) for each in parameters]
            result = builder.emit_output(relax.Tuple(doubled))
        builder.emit_func_output(result)
    executable = tvm.compile(builder.get(), target=tvm.target.Target(QCS605.unit.tvm))
    executable.export_library(folder / "m.so", fcompile=cross.linker(QCS605))
    return folder / "m.so", inputs


def test_nothing_of_a_network_stays_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZIG_LOCAL_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = Path(cross.run([sys.executable, "-c", "import os; print(os.environ['ZIG_LOCAL_CACHE_DIR'])"]).strip())
    assert not said.exists()
    assert tmp_path not in said.parents
