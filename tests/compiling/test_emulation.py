"""Emulated latencies where people see them: `nnc compile` and `nnc inspect` with --latency emulated."""

import json
from pathlib import Path

import pytest

from nnc import recipe, target
from nnc.cli import main
from nnc.compiling import compilation, emulation
from nnc.compiling.compilation import Job
from nnc.errors import NncError

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """What the command prints; it must succeed."""
    monkeypatch.setattr("sys.argv", ["nnc", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    printed = capsys.readouterr()
    assert done.value.code in (0, None), printed.err
    return printed.out


@pytest.fixture(scope="module")
def tools() -> None:
    try:
        emulation.check(target.load("qcs605"))
    except NncError as error:
        pytest.skip(error.message)


@pytest.fixture
def compiled(project: Path, tools: None) -> Path:
    folder = project / "out"
    made = recipe.load(str(project / "recipe.toml"))
    compilation.compile_model(
        Job(made, project / "model.onnx", target.load("qcs605"), folder, {"image": [1, 3, 8, 8]}, latency="emulated")
    )
    return folder


def test_a_report_has_both_figures(
    compiled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads((compiled / "report.json").read_text())
    assert (report["latency_source"], report["latency_error"]) == ("emulated", None)
    after, layers = report["after"], report["layers"]
    assert after["latency_ms"] == pytest.approx(sum(layer["latency_ms"] for layer in layers))
    assert after["analytic_ms"] != after["latency_ms"]
    assert report["ratios"]["latency"] == pytest.approx(report["before"]["latency_ms"] / after["latency_ms"])
    for layer in layers:
        assert {"analytic_ms", "cycles", "ipc", "l1_misses", "l2_misses", "dram_bytes", "kernels", "why"} <= set(layer)
    assert sum(layer["instructions"] for layer in layers) > sum(layer["macs"] for layer in layers) / 4
    page = (compiled / "report.html").read_text()
    assert "executed in an emulator" in page
    assert all(layer["why"] in page for layer in layers)

    shown = json.loads(run(capsys, monkeypatch, "inspect", compiled, "--latency", "emulated", "--json"))
    assert shown["latency_ms"] == pytest.approx(after["latency_ms"])  # the same code, the same cycles
    assert shown["analytic_ms"] == pytest.approx(after["analytic_ms"])
    table = run(capsys, monkeypatch, "inspect", compiled, "--latency", "emulated")
    assert f"emulated / analytic {after['latency_ms'] / after['analytic_ms']:.2f}" in table
    for layer in layers:
        assert layer["name"] in table


def test_another_number_of_cores_and_another_chip(compiled: Path) -> None:
    one, two = (emulation.of_folder(compiled, None, threads, lambda *_: None) for threads in (1, 2))
    assert (one["threads"], two["threads"]) == (1, 2)
    assert one["latency_ms"] != two["latency_ms"]
    other = emulation.of_folder(compiled, "snapdragon-845", 1, lambda *_: None)
    assert other["target"] == "snapdragon-845:cpu"
    assert other["latency_ms"] < one["latency_ms"]  # the same cores, with faster clocks


def test_a_second_compile_emulates_nothing(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "timed", lambda *_: pytest.fail("it is known"))
    project = compiled.parent
    job = Job(
        recipe.load(str(project / "recipe.toml")),
        project / "model.onnx",
        target.load("qcs605"),
        compiled,
        {"image": [1, 3, 8, 8]},
        latency="emulated",
    )
    report = compilation.compile_model(job)
    assert report["latency_source"] == "emulated"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": target.load("qcs605:gpu")},
            "qcs605:gpu: only code of AArch64 and x86-64 processors is emulated, not a gpu",
        ),
        ({"target": target.load("qcs605:dsp")}, "qcs605:dsp: only code of AArch64 and x86-64 processors is emulated"),
        ({"lower": False}, "--latency emulated: there is no library to execute"),
    ],
)
def test_what_cannot_be_emulated_is_refused_before_anything_is_done(
    project: Path, changes: dict[str, object], message: str
) -> None:
    given = {"target": target.load("qcs605"), "latency": "emulated"} | changes
    made = recipe.load(str(project / "recipe.toml"))
    job = Job(made, project / "model.onnx", out=project / "out", shapes={"image": [1, 3, 8, 8]}, **given)
    with pytest.raises(NncError) as caught:
        compilation.compile_model(job)
    assert caught.value.message.startswith(message)
    assert not (project / "out").exists()
