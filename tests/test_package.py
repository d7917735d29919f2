"""The file that is copied to a board: what is in it, and that it runs with nothing else."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tarfile
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest

from nnc import package, recipe, target, testing
from nnc.artifact import Artifact
from nnc.compiling import compilation, library
from nnc.compiling.compilation import Job
from nnc.errors import NncError
from nnc.lowering import cross, emulate
from nnc.lowering.gpu import nvrtc

x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine runs no x86 library")

SCORES = """
net (float[1, 3, 8, 8] image) => (float[1, 10] scores)
<float[10, 3, 3, 3] W>
{
    c = Conv(image, W)
    r = Relu(c)
    p = GlobalAveragePool(r)
    scores = Flatten(p)
}
"""


def silent(step: str, done: int, total: int) -> None:
    pass


def compiled(folder: Path, text: str = SCORES, spec: str = "x86", lower: bool = True) -> Path:
    onnx.save(testing.model(text), folder / "model.onnx")
    (folder / "recipe.toml").write_text('[[pass]]\nname = "remove-dead-nodes"\n')
    threads = None if ":gpu" in spec else 2
    read = recipe.load(str(folder / "recipe.toml"))
    compilation.compile_model(Job(read, folder / "model.onnx", target.load(spec), folder / "out", {}, threads, lower))
    return folder / "out"


def unpacked(file: Path, folder: Path) -> Path:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside


def run(folder: Path, *words: str | Path, emulator: list[str | Path] = []) -> subprocess.CompletedProcess[str]:  # noqa: B006
    """What `./run` prints, with nothing in its environment."""
    command = [str(word) for word in (*emulator, folder / "run", *words)]
    return subprocess.run(command, env={}, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("x86"))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, out: Path) -> Path:
    """An unpacked package."""
    made = package.package(out, tmp_path_factory.mktemp("package") / "net.tar.gz", silent)
    return unpacked(made.path, tmp_path_factory.mktemp("board"))


def needed(program: Path) -> set[str]:
    """The shared libraries that the loader looks for."""
    return set(re.findall(r"\b(?:lib[\w+-]+|ld-linux[\w-]*)\.so\.\d+", program.read_bytes().decode("latin-1")))


LIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@x86
def test_it_runs_with_nothing_else(out: Path, board: Path) -> None:
    checked = run(board, "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "'scores' float32 [1, 10]: the largest difference is 0 of" in checked.stdout
    image = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)
    np.save(board / "image.npy", image)
    done = run(board, "image.npy", "-o", "scores.npy", "--repeat", "4", "--threads", "1")
    assert done.returncode == 0, done.stderr
    scores = np.load(board / "scores.npy")
    np.testing.assert_array_equal(scores, Artifact.open(out).run({"image": image})["scores"])
    shown = re.findall(r"^ +(\d+)  (\S+)$", done.stdout, re.MULTILINE)
    best = np.argsort(-scores[0], kind="stable")[:5]
    assert [int(index) for index, _ in shown] == best.tolist()
    np.testing.assert_allclose([float(value) for _, value in shown], scores[0][best], rtol=1e-5)
    assert re.search(r"^median \S+ ms, lowest \S+ ms, highest \S+ ms of 4 on 1 thread$", done.stdout, re.MULTILINE)


@x86
def test_it_needs_the_c_library_alone(board: Path) -> None:
    assert "libc.so.6" in needed(board / "run") <= LIBC
    assert needed(board / "module.so") <= LIBC


@pytest.mark.qemu
def test_a_board_with_another_processor(tmp_path: Path) -> None:
    try:
        emulator = emulate.emulator()
    except NncError as error:
        pytest.skip(error.message)
    made = package.package(compiled(tmp_path, spec="jetson-xavier"), None, silent)
    assert made.path == tmp_path / "out-jetson-xavier.tar.gz"
    folder = unpacked(made.path, tmp_path / "board")
    assert needed(folder / "run") | needed(folder / "module.so") <= LIBC
    checked = run(folder, "--check", "--threads", "2", emulator=emulator)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    assert "jetson-xavier:cpu@MAXN" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("spec", "kernels"), [("qcs605:gpu", {"kernels.cl"}), ("jetson-xavier:gpu", {"kernels.ptx"})])
def test_a_gpu_has_its_own_program(tmp_path: Path, spec: str, kernels: set[str]) -> None:
    out = compiled(tmp_path, spec=spec)
    if not all((out / name).exists() for name in kernels):
        pytest.skip("NVRTC is not installed")
    made = package.package(out, None, silent)
    assert made.path.name == f"out-{spec.replace(':', '-')}.tar.gz"
    assert made.command == "./run . input.bin output.bin"
    folder = unpacked(made.path, tmp_path / "board")
    files = {file.name for file in folder.iterdir()}
    assert files >= {"run", "README.md", "network.json", "weights.bin", "input.bin", "expected.bin", "source"} | kernels
    assert (folder / "input.bin").stat().st_size == 4 * 3 * 8 * 8
    driver = {"libOpenCL.so.1"} if "kernels.cl" in kernels else {"libcuda.so.1"}
    assert needed(folder / "run") <= LIBC | driver
    assert "./run . input.bin output.bin" in (folder / "README.md").read_text()


def test_cuda_kernels_that_nobody_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "ptx", lambda *_: None)
    out = compiled(tmp_path, spec="jetson-xavier:gpu")
    with pytest.raises(NncError, match="its CUDA kernels were not compiled") as caught:
        package.package(out, None, silent)
    assert caught.value.hint == "pip install nvidia-cuda-nvrtc-cu12, and compile again"


def test_what_compiles_cuda_kernels_counts_when_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, version in ((None, None), ("// PTX", "12.9")):
        monkeypatch.setattr(nvrtc, "ptx", lambda *_, text=text: text)
        monkeypatch.setattr(nvrtc, "resources", lambda *_: {})
        monkeypatch.setattr(library, "installed", lambda name, version=version: version)
        out = compiled(tmp_path, spec="jetson-xavier:gpu")
        assert (out / "kernels.ptx").exists() == (text is not None)
        assert set(json.loads((out / "nnc.lock").read_text())["cuda"].values()) == {version}


@x86
def test_the_same_compile_gives_the_same_bytes(tmp_path: Path, out: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        package.package(out, tmp_path / name / "net.tgz", silent)
    assert (tmp_path / "a/net.tgz").read_bytes() == (tmp_path / "b/net.tgz").read_bytes()
    with tarfile.open(tmp_path / "a/net.tgz") as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert all(entry.isfile() and entry.name.startswith("net/") for entry in entries)
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) for entry in entries} == {(0, 0, 0, "", "")}
    assert [entry.name for entry in entries if entry.mode & 0o111] == ["net/run"]


@x86
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_program_is_built_as_the_readme_says(tmp_path: Path, board: Path) -> None:
    folder = shutil.copytree(board, tmp_path / "board")
    (folder / "run").unlink()
    (command,) = re.findall(r"^    (cd source .*)$", (folder / "README.md").read_text(), re.MULTILINE)
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    assert run(folder, "--check").returncode == 0


@x86
def test_a_board_that_computes_something_else(tmp_path: Path, board: Path) -> None:
    folder = shutil.copytree(board, tmp_path / "board")
    expected = np.load(folder / "expected.npy")
    np.save(folder / "expected.npy", expected + 0.01 * np.abs(expected).max())
    done = run(folder, "--check")
    assert done.returncode == 1
    assert "NOT as expected" in done.stdout
    assert run(folder, "--check", "--tolerance", "0.02").returncode == 0
    np.save(folder / "expected.npy", np.full_like(expected, np.nan))
    assert run(folder, "--check", "--tolerance", "1").returncode == 1


IMAGE = np.zeros((1, 3, 8, 8), np.float32)
WANTED = r"but the model has 'image' float32 \[1, 3, 8, 8\]"


@x86
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGE[0], rf"float32 \[3, 8, 8\], {WANTED}"),
        (IMAGE[:, :2], rf"float32 \[1, 2, 8, 8\], {WANTED}"),
        (IMAGE.astype(np.float64), rf"float64 \[1, 3, 8, 8\], {WANTED}"),
        (IMAGE.astype(">f4"), rf">f4 \[1, 3, 8, 8\], {WANTED}"),
        (np.asfortranarray(IMAGE), "in Fortran order, save it with numpy.ascontiguousarray"),
        (np.zeros(1, [("a", "f4")]), "holds records, not numbers"),
        (np.array(["abc"]), rf"<U3 \[1\], {WANTED}"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, board: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    done = run(board, tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    assert done.returncode == 1
    assert re.fullmatch(rf"run: error: {tmp_path}/x.npy: {message}\n", done.stderr), done.stderr
    assert not (tmp_path / "y.npy").exists()


@x86
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "not an .npy file, write it with numpy.save"),
        (lambda data: b"PK" + data, "not an .npy file, write it with numpy.save"),
        (lambda data: data[:40], "the file is truncated"),
        (lambda data: data[:-1], "the file is truncated"),
        (lambda data: data[:8] + b"\xff\xff" + data[10:], "the file is truncated"),
        (lambda data: data.replace(b"'shape'", b"'shaqe'"), "its header is damaged, there is no 'shape'"),
        (None, "No such file or directory"),
    ],
)
def test_files_that_hold_no_array(tmp_path: Path, board: Path, change: object, message: str) -> None:
    if change is not None:
        (tmp_path / "x.npy").write_bytes(change((board / "input.npy").read_bytes()))  # type: ignore[operator]
    done = run(board, tmp_path / "x.npy")
    assert (done.returncode, done.stderr) == (1, f"run: error: {tmp_path}/x.npy: {message}\n")


@x86
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("input.npy input.npy", 1, "the model reads 1 input, not 2: 'image' float32 [1, 3, 8, 8]"),
        ("input.npy -o nothing/y.npy", 1, "nothing/y.npy: No such file or directory"),
        ("input.npy --module nothing.so", 1, "nothing.so: No such file or directory"),
        ("input.npy --module README.md", 1, "README.md: invalid ELF header"),
        (".", 1, ".: a folder, not an .npy file"),
        ("", 2, "give the inputs, or --check"),
        ("--check input.npy", 2, "give the inputs, or --check"),
        ("input.npy --threads 0", 2, "not a positive number: --threads"),
        ("input.npy --repeat many", 2, "not a positive number: --repeat"),
        ("input.npy --repeat", 2, "a value is missing: --repeat"),
        ("input.npy --fast", 2, "no such option: --fast"),
        ("--check --tolerance -1", 2, "not a share: --tolerance -1"),
    ],
)
def test_wrong_commands(board: Path, words: str, status: int, message: str) -> None:
    done = run(board, *shlex.split(words))
    first = done.stderr.splitlines()[0].replace(f"{board}/", "")
    assert (done.returncode, first) == (status, f"run: error: {message}")


@x86
def test_every_type_and_rank_goes_through(tmp_path: Path) -> None:
    text = """
    net (float a, float16[3] b, int32[1, 3, 2, 1] e, int64[1, 1, 2, 1, 2] f, uint8[2, 2] g, int8[4] h)
    => (float v, float16[3] w, int32[1, 3, 2, 1] z, int64[1, 1, 2, 1, 2] u, uint8[4] s, int8[2, 2] t)
    <int64[1] four = {4}, int64[2] two = {2, 2}>
    {
        v = Add(a, a)
        w = Add(b, b)
        z = Add(e, e)
        u = Add(f, f)
        s = Reshape(g, four)
        t = Reshape(h, two)
    }
    """
    made = package.package(compiled(tmp_path, text), None, silent)
    folder = unpacked(made.path, tmp_path / "board")
    inputs = [np.load(folder / f"input{index}.npy") for index in range(6)]
    assert [each.dtype.name for each in inputs] == ["float32", "float16", "int32", "int64", "uint8", "int8"]
    done = run(folder, *(f"input{index}.npy" for index in range(6)), "-o", "y.npy")
    assert done.returncode == 0, done.stderr
    outputs = [np.load(folder / f"y{index}.npy") for index in range(6)]
    for given, returned in zip(inputs[:4], outputs[:4], strict=True):
        assert (returned.dtype, returned.shape) == (given.dtype, given.shape)
        np.testing.assert_array_equal(returned, given + given)
    np.testing.assert_array_equal(outputs[4], inputs[4].reshape(4))
    np.testing.assert_array_equal(outputs[5], inputs[5].reshape(2, 2))
    assert run(folder, "--check").returncode == 0


# Launches many jobs, of more tasks than threads and with jobs inside of jobs; the last one fails.
JOBS = """
#include <stdatomic.h>
#include "nnc.h"
int (*__TVMBackendParallelLaunch)(int (*)(int, void*, void*), void*, int);
extern void TVMFFIErrorSetRaisedFromCStr(const char*, const char*);
static atomic_int done;
static int Inner(int task, void* group, void* data) { return atomic_fetch_add(&done, 1), 0; }
static int Outer(int task, void* group, void* data) { return __TVMBackendParallelLaunch(Inner, 0, 5); }
static int Failing(int task, void* group, void* data) { return task == 2 ? -1 : 0; }
static int Load(void) { return 0; }
static int Run(void* const* arrays) {
  for (int job = 0; job < 20000; ++job) {
    if (__TVMBackendParallelLaunch(Outer, 0, 1 + job % 7)) return -1;
  }
  *(int32_t*)arrays[0] = done;
  if (!__TVMBackendParallelLaunch(Failing, 0, 3)) return 0;
  if (TRAP) __builtin_trap();
  if (done == 399985) return 0;
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "tasks were lost");
  return -1;
}
static const int64_t shape[] = {1};
static const NncTensor tensors[] = {{"done", "<i4", 0, shape}};
const NncNetwork nnc_network = {0, 1, tensors, 4, 1, Load, Run};
"""


@x86
@pytest.mark.parametrize("trap", [0, 1])
def test_every_task_of_every_job_runs_once(tmp_path: Path, board: Path, trap: int) -> None:
    """And an instruction that the processor does not have is one line."""
    (tmp_path / "jobs.c").write_text(JOBS)
    (tmp_path / "threads.c").write_text(resources.files("nnc.lowering").joinpath("threads.c").read_text("utf-8"))
    flags = ["-shared", "-fPIC", "-O1", "-pthread", f"-DTRAP={trap}", f"-I{board / 'source'}", *cross.includes()]
    sources = (tmp_path / "jobs.c", tmp_path / "threads.c")
    cross.run([*cross.compiler("x86_64"), *flags, *sources, "-o", tmp_path / "jobs.so"])
    shutil.copytree(board, tmp_path / "board")
    np.save(tmp_path / "board/expected.npy", np.array(5 * sum(1 + job % 7 for job in range(20000)), np.int32))
    done = run(tmp_path / "board", "--check", "--module", tmp_path / "jobs.so")
    if trap:
        assert done.returncode == 1
        assert done.stderr.startswith("run: error: this processor lacks instructions")
    else:
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


@x86
def test_without_an_emulator_onnxruntime_says_what_is_expected(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise NncError("qemu-aarch64 is not installed")

    monkeypatch.setattr(Artifact, "run", missing)
    made = package.package(out, tmp_path / "net.tar.gz", silent)
    assert made.expected_from == "onnxruntime"
    folder = unpacked(made.path, tmp_path / "board")
    assert "The expected outputs are onnxruntime's" in (folder / "README.md").read_text()
    assert run(folder, "--check").returncode == 0


@x86
def test_a_link_to_the_folder(tmp_path: Path, out: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    made = package.package(tmp_path / "link", None, silent)
    assert made.path == tmp_path / "link-x86.tar.gz"
    assert json.loads(json.dumps(made.to_dict()))["folder"] == "link-x86"


@x86
def test_what_can_not_be_packaged(tmp_path: Path, out: Path) -> None:
    copy = shutil.copytree(out, tmp_path / "copy")
    library = (copy / "module.so").read_bytes()
    (copy / "module.so").write_bytes(library[:-1])
    (tmp_path / "folder.tar.gz").mkdir()
    for folder, file, message in (
        (copy, "x.tar.gz", "not the file that the compile wrote"),
        (tmp_path / "nothing", "x.tar.gz", "no such folder"),
        (out, "x.zip", "a package is a gzipped tar file"),
        (out, ".tar.gz", "a package is a gzipped tar file"),
        (out, "folder.tar.gz", "a folder, not a file"),
        (out, "nothing/x.tar.gz", "nothing: no such folder"),
    ):
        with pytest.raises(NncError, match=message):
            package.package(folder, tmp_path / file, silent)
    assert sorted(os.listdir(tmp_path)) == ["copy", "folder.tar.gz"]


def test_a_compile_without_a_library(tmp_path: Path) -> None:
    folder = compiled(tmp_path, lower=False)
    with pytest.raises(NncError, match="compiled with --no-lower"):
        package.package(folder, None, silent)
