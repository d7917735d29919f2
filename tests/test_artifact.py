"""The folder of a compile, opened and run again."""

import hashlib
import json
import multiprocessing
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnc import benchmark, recipe, target
from nnc.artifact import Artifact, load_arrays, save_arrays
from nnc.compiling import compilation
from nnc.compiling.compilation import Job
from nnc.errors import NncError
from nnc.hardware import host
from nnc.session import Session

x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine runs no x86 library")


def silent(step: str, done: int, total: int) -> None:
    pass


def compiled(project: Path, spec: str = "qcs605", lower: bool = False) -> Path:
    job = Job(recipe.load(project / "recipe.toml"), project / "model.onnx", target.load(spec), project / "out", {})
    compilation.compile_model(replace(job, lower=lower))
    return project / "out"


def test_what_a_folder_knows(project: Path) -> None:
    artifact = Artifact.open(compiled(project, "jetson-xavier:cpu@15W"))
    assert [str(tensor) for tensor in artifact.inputs] == ["'image' float32 [1, 3, 8, 8]"]
    assert artifact.outputs == ("scores",)
    assert artifact.target == target.load("jetson-xavier:cpu@15W")
    assert artifact.preprocess.mean == (0.5,)
    assert (artifact.has_library, artifact.emulated) == (False, platform.machine() != "aarch64")
    assert artifact.model_path.exists()


def test_a_library_says_what_it_computes_in_integers(project: Path) -> None:
    artifact = Artifact.open(compiled(project))
    layers = [{"macs": 9, "dtype": "int8"}, {"macs": 0, "dtype": "int8"}, {"macs": 9, "dtype": "float32"}, {"macs": 1}]
    where = artifact.runtime
    assert re.fullmatch("the library for aarch64(, emulated)?", where)
    quantized = replace(artifact, report={**artifact.report, "layers": layers})
    assert quantized.runtime == f"{where}: exact int8 in 1 of 3 layers"


def test_a_board_of_ones_own_is_in_the_lock(project: Path) -> None:
    text = Path(target.__file__).parent.parent.joinpath("targets/qcs605.toml").read_text()
    (project / "mine.toml").write_text(text.replace("threads = 2 ", "threads = 1 "))
    out = compiled(project, str(project / "mine.toml"))
    (project / "mine.toml").unlink()
    assert Artifact.open(out).target.label == "mine:cpu"
    assert Artifact.open(out).threads == 1


def break_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda out: (out / name).write_text(text)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "out: no such folder"),
        (lambda out: (out / "nnc.lock").unlink(), "out: holds no finished compile"),
        (lambda out: (out / "model.onnx").unlink(), "out: model.onnx is missing"),
        (break_file("nnc.lock", "{"), "out: report.json or nnc.lock is damaged"),
        (break_file("report.json", "[]"), "out: report.json or nnc.lock is damaged"),
        (break_file("report.json", '{"model": {}}'), "out: report.json or nnc.lock is damaged"),
        (lambda out: (out / "report.json").unlink(), "out: report.json or nnc.lock is damaged"),
    ],
)
def test_folders_that_hold_no_compile(project: Path, break_it: Callable[[Path], object], message: str) -> None:
    out = compiled(project)
    break_it(out)
    with pytest.raises(NncError, match=message):
        Artifact.open(out)


def test_a_model_is_not_a_folder(project: Path) -> None:
    with pytest.raises(NncError, match="a model, not the folder of a compile") as caught:
        Artifact.open(project / "model.onnx")
    assert "nnc compile RECIPE" in str(caught.value.hint)


IMAGE = np.zeros((1, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "x.npz: 'image' is missing; found nothing"),
        ({"imag": IMAGE}, "x.npz: 'image' is missing; found 'imag'"),
        ({"image": IMAGE, "more": IMAGE}, "x.npz: the model has no input 'more'"),
        (
            {"image": IMAGE[0]},
            r"x.npz: 'image' float32 \[3, 8, 8\], but the model reads 'image' float32 \[1, 3, 8, 8\]",
        ),
        ({"image": IMAGE.astype(np.uint8)}, r"x.npz: 'image' uint8 \[1, 3, 8, 8\], but the model reads"),
    ],
)
def test_inputs_that_do_not_fit(project: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    artifact = Artifact.open(compiled(project))
    with pytest.raises(NncError, match=message):
        artifact.checked(arrays, "x.npz")
    artifact.checked({"image": IMAGE})


def test_arrays_are_saved_whole(tmp_path: Path) -> None:
    save_arrays(tmp_path / "y", {"y": IMAGE})
    (values,) = load_arrays(tmp_path / "y").values()
    np.testing.assert_array_equal(values, IMAGE)
    assert [file.name for file in tmp_path.iterdir()] == ["y"]


def test_threads_are_those_that_there_are_processors_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "processors", lambda: 2)
    board = Artifact.open(compiled(project))
    assert [replace(board, threads=count).threads_here(None) for count in (1, 2, 500)] == [1, 2, 2]
    assert [board.threads_here(count) for count in (1, 2)] == [1, 2]
    with pytest.raises(NncError, match="--threads 500: this machine has 2 processors") as caught:
        board.library(500)
    assert caught.value.hint == "give 1 to 2"
    for kind in ("gpu", "dsp"):
        other = replace(board, target=target.load(f"qcs605:{kind}"))
        with pytest.raises(NncError, match=f"--threads 1: the library of a {kind} runs as it was compiled"):
            other.library(1)


def test_an_emulated_library_takes_the_threads(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Artifact.open(compiled(project))
    monkeypatch.setattr(Artifact, "emulated", True)
    monkeypatch.setattr(Artifact, "library_path", project / "module.so")
    monkeypatch.setattr(Artifact, "check_library", lambda self: None)
    monkeypatch.setattr("nnc.lowering.emulate.EmulatedLibrary", lambda path, target, threads: threads)
    assert board.library(1) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an .npz file of numbers"),
        (b"PK\x03\x04 broken", "not an .npz file of numbers"),
        (None, "no such file"),
    ],
)
def test_files_that_hold_no_arrays(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(NncError, match=message):
        load_arrays(tmp_path / "x.npz")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{}], object))
    with pytest.raises(NncError, match=r"not an \.npz file of numbers"):
        load_arrays(tmp_path / "x.npz")


def test_a_single_array_has_no_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGE)
    with pytest.raises(NncError, match="a single array without a name"):
        load_arrays(tmp_path / "x.npy")


# Libraries


def agrees_with_onnxruntime(out: Path) -> None:
    from nnc import graph as graphs

    artifact = Artifact.open(out)
    inputs = artifact.random_inputs(seed=3)
    expected = Session(graphs.load(artifact.model_path)).run(inputs)
    outputs = artifact.run(inputs)
    assert outputs.keys() == expected.keys()
    np.testing.assert_allclose(outputs["scores"], expected["scores"], rtol=1e-4, atol=1e-5)


@x86
def test_a_library_of_this_machine(project: Path) -> None:
    out = compiled(project, "x86", lower=True)
    agrees_with_onnxruntime(out)
    first = (out / "module.so").read_bytes()
    shutil.rmtree(out)
    compiled(project, "x86", lower=True)
    assert (out / "module.so").read_bytes() == first, "the same inputs give the same bytes"
    artifact = Artifact.open(out)
    timing = benchmark.compare(artifact, 2, 1, silent)
    assert timing.to_dict().keys() == {"nnc_ms", "onnxruntime_ms", "ratio", "rounds", "threads", "round_ratios"}
    assert timing.ratio == timing.to_dict()["onnxruntime_ms"] / timing.nnc_ms > 0
    assert (timing.to_dict()["rounds"], timing.threads) == (2, 1)
    timing = benchmark.compare(artifact, 3, None, silent, artifact)
    found = timing.to_dict()
    assert found.keys() == {"nnc_ms", "against_ms", "against", "ratio", "rounds", "threads", "round_ratios"}
    assert found["ratio"] == found["against_ms"] / found["nnc_ms"] > 0
    assert found["against"] == str(out)
    assert (found["rounds"], len(found["round_ratios"]), found["threads"]) == (3, 3, artifact.threads)
    profile = benchmark.profile(artifact, 1)
    assert [row["name"] for row in profile] == [kernel["name"] for kernel in artifact.report["kernels"]]
    assert all(row["ms"] >= 0 for row in profile)


@pytest.mark.qemu
def test_a_library_of_another_machine(project: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    out = compiled(project, "qcs605", lower=True)
    agrees_with_onnxruntime(out)
    with pytest.raises(NncError, match="compiled for aarch64, which can't be timed on this machine"):
        benchmark.compare(Artifact.open(out), 1, 1, silent)


def with_library(project: Path, tvm: dict[str, object]) -> Path:
    """A compile for x86 whose library is a file of one byte, and whose target says something else of the code."""
    out = compiled(project, "x86")
    (out / "module.so").write_bytes(b"?")
    lock, written = (json.loads((out / name).read_text()) for name in ("nnc.lock", "report.json"))
    lock["results"]["module.so"] = hashlib.sha256(b"?").hexdigest()
    lock["target"]["unit"]["tvm"] |= tvm
    (out / "nnc.lock").write_text(json.dumps(lock))
    (out / "report.json").write_text(json.dumps(written | {"library_bytes": 1}))
    return out


@x86
def test_two_compiles_that_can_not_be_compared(project: Path) -> None:
    """Every reason is told before anything is started."""
    own = Artifact.open(with_library(project, {}))
    image, small = own.inputs[0], replace(own.inputs[0], shape=(1, 3, 4, 4))
    others = {
        "reads 'image' float32 [1, 3, 4, 4], but": replace(own, inputs=(small,)),
        "reads 'picture' float32 [1, 3, 8, 8], but": replace(own, inputs=(replace(image, name="picture"),)),
        "reads 'image' float32 [1, 3, 8, 8] and 'more'": replace(own, inputs=(image, replace(image, name="more"))),
        f"compiled for 99 threads, {own.folder} for {own.threads}": replace(own, threads=99),
        "compiled for aarch64, which can't be timed": replace(own, target=target.load("qcs605")),
        "was compiled with --no-lower": replace(own, report={}),
    }
    for message, other in others.items():
        with pytest.raises(NncError, match=re.escape(f"{own.folder}: {message}")):
            benchmark.compare(own, 1, None, silent, other)
    (own.folder / "module.so").write_bytes(b"")
    with pytest.raises(NncError, match=r"module\.so: not the file that the compile wrote"):
        benchmark.compare(own, 1, None, silent, own)


def test_the_ratio_is_that_of_the_peer() -> None:
    """Above 1 this library is the faster one, whoever the peer is."""
    timing = benchmark.Timing([2.0, 1.0, 2.0], [4.0, 4.0, 3.0], 2, "before", "after")
    expected = {"nnc_ms": 2.0, "against_ms": 4.0, "against": "before", "ratio": 2.0, "rounds": 3, "threads": 2}
    assert timing.to_dict() == expected | {"round_ratios": [2.0, 4.0, 1.5]}


def test_a_damaged_library_is_refused(project: Path) -> None:
    out = with_library(project, {})
    (out / "module.so").write_bytes(b"")
    with pytest.raises(NncError, match=r"module\.so: not the file that the compile wrote"):
        Artifact.open(out).library()


@x86
def test_a_damaged_model_is_refused(project: Path) -> None:
    out = with_library(project, {})
    artifact = Artifact.open(out)
    assert artifact.checked_model() == out / "model.onnx"
    content = bytearray((out / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "model.onnx").write_bytes(content)
    with pytest.raises(NncError, match=r"model\.onnx: not the file that the compile wrote"):
        benchmark.compare(artifact, 1, None, silent)


def onnxruntime_on(model: Path) -> benchmark.Side:
    return benchmark.Side("onnxruntime", benchmark._onnxruntime, model, [IMAGE])


def test_a_model_that_the_peer_refuses_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"?")
    with (
        benchmark._process(onnxruntime_on(tmp_path / "model.onnx"), 1) as side,
        pytest.raises(NncError, match=r"model\.onnx: onnxruntime can't run it: \w"),
    ):
        side.ask()
    assert "Traceback" not in capfd.readouterr().err


def test_a_side_that_dies_is_named(project: Path) -> None:
    with benchmark._process(onnxruntime_on(project / "model.onnx"), 1) as side:
        assert side.ask() == []
        assert len(side.ask(2)) == 2
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        with pytest.raises(NncError, match="onnxruntime: the process that is timed died"):
            side.ask(1)


def test_code_for_a_newer_processor_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = with_library(project, {"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]})
    here = {"tvm": {"mcpu": "x86-64-v2", "mattr": []}}
    monkeypatch.setattr(host, "figures", lambda: here)
    with pytest.raises(NncError, match=r"out: code for x86-64-v3 \+avxvnni, this machine is x86-64-v2"):
        Artifact.open(out).check_library()
    here["tvm"] |= {"mcpu": "x86-64-v4", "mattr": ["+avxvnni"]}
    Artifact.open(out).check_library()
