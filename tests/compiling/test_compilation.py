"""A compile from end to end: what it leaves behind, what it uses again, and that a failing one leaves nothing."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

import nnc
from nnc import graph as graphs
from nnc import recipe, target
from nnc.compiling import compilation, emulation, lock
from nnc.compiling.compilation import Job
from nnc.compiling.job import command
from nnc.context import silent
from nnc.errors import NncError
from nnc.recipe import Recipe
from nnc.simulation.kernels import Storage

#: A pass that ends the process when the environment says so, as `kill -9` does.
_DEADLY = '''
import os, signal
from nnc.rewrite import Pass

class Die(Pass):
    """End the process."""

    name = "die"
    effect = "exact"

    def run(self, graph, context):
        if "DEADLY" in os.environ:
            os.kill(os.getpid(), int(os.environ["DEADLY"]))
        return 0

class Fail(Pass):
    """Raise."""

    name = "fail"
    effect = "exact"

    def run(self, graph, context):
        raise ZeroDivisionError("oops")

class Compare(Pass):
    """Raise where passes in front changed the model."""

    name = "compare"
    effect = "exact"

    def looks_back(self):
        return True

    def run(self, graph, context):
        if len(graph.nodes) < len(context.imported.nodes):
            raise ZeroDivisionError("oops")
        return 0
'''


def job(project: Path, out: str | Path = "out", **changes: Any) -> Job:
    read = recipe.load(project / "recipe.toml")
    made = Job(read, project / "model.onnx", target.load("qcs605"), project / out, {}, lower=False)
    return replace(made, **changes)


def add_pass(project: Path, name: str) -> None:
    """Put one of the deadly passes at the end of the recipe."""
    (project / "deadly.py").write_text(_DEADLY)
    text = (project / "recipe.toml").read_text().replace('use = ["passes.py"]', 'use = ["passes.py", "deadly.py"]')
    (project / "recipe.toml").write_text(f'{text}\n[[pass]]\nname = "{name}"\n')


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def results(folder: Path) -> dict[str, bytes]:
    """The files that the same inputs must give again, byte for byte."""
    names = ("model.onnx", "module.so", "nnc.lock")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def in_a_process(project: Path, deadly: str | None = None, prepare: Callable[[], None] | None = None) -> Any:
    command = [sys.executable, "-m", "nnc", "compile", "recipe.toml", "model.onnx", "--target", "qcs605"]
    environment = os.environ | ({} if deadly is None else {"DEADLY": deadly})
    options: dict[str, Any] = {"cwd": project, "env": environment, "capture_output": True, "text": True}
    return subprocess.run([*command, "--no-lower", "-o", "out"], preexec_fn=prepare, **options)


def test_what_a_compile_leaves_behind(project: Path) -> None:
    report = compilation.compile_model(job(project))
    out = project / "out"
    assert {file.name for file in out.iterdir()} == {".nnc", "model.onnx", "nnc.lock", "report.html", "report.json"}
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert [node.op_type for node in onnx.load(out / "model.onnx").graph.node][:2] == ["Conv", "Relu"]
    assert ort.InferenceSession(out / "model.onnx").get_outputs()[0].shape == [1, 10]


def test_the_report_has_the_keys_of_the_interface(project: Path) -> None:
    report = compilation.compile_model(job(project))
    figures = {"params", "weight_bytes", "macs", "file_bytes", "latency_ms", "peak_activation_bytes", "energy_mj"}
    passes = {"name", "effect", "changed", "seconds", "params", "macs", "weight_bytes", "latency_ms", "snr_db"}
    assert report["model"]["name"] == "model.onnx"
    assert report["model"]["inputs"] == [{"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32"}]
    assert report["target"] == {"name": "qcs605", "unit": "cpu", "mode": None, "spec": "qcs605:cpu"}
    for side in ("before", "after"):
        assert figures | {"accuracy", "accuracy_runtime"} <= report[side].keys()
    assert report["ratios"].keys() == {"size", "macs", "latency", "memory"}
    assert report["ratios"]["macs"] == report["before"]["macs"] / report["after"]["macs"]
    assert all(passes | {"accuracy", "skipped"} <= row.keys() for row in report["passes"])
    layer = {"name", "op", "shape", "macs", "params", "latency_ms", "bound"}
    assert all(layer <= entry.keys() for entry in report["layers"])
    assert report["latency_source"] == "analytic"
    assert report["before"]["file_bytes"] == (project / "model.onnx").stat().st_size
    assert report["after"]["file_bytes"] == (project / "out" / "model.onnx").stat().st_size


def test_accuracy_before_after_and_per_pass(project: Path) -> None:
    report = compilation.compile_model(job(project))
    exact, approximate = report["passes"]
    assert report["before"]["accuracy"] == 1.0
    assert (exact["accuracy"], exact["snr_db"], exact["proof"]) == (None, None, "outputs equal")
    assert approximate["accuracy"] == report["after"]["accuracy"] < 1.0
    assert 0 < approximate["snr_db"] < 60


def test_the_page_shows_how_to_compile_again(project: Path) -> None:
    read = recipe.load(project / "recipe.toml", ["round-weights.step=0.5"])
    compilation.compile_model(job(project, recipe=read, seed=3))
    page = (project / "out" / "report.html").read_text("utf-8")
    command = "nnc compile recipe.toml model.onnx --target qcs605:cpu --data test=... --set round-weights.step=0.5"
    assert f"{command} --seed 3 --no-lower" in page


def test_command_lines_are_quoted() -> None:
    written = command(
        "my recipe.toml", "m.onnx", "x86", data=["test=..."], overrides=["compress.budget={ macs = 0.5 }"],
        shapes={"in": [1, 3]}, threads=2, seed=7, lower=True, latency="emulated",
    )  # fmt: skip
    assert written == (
        "nnc compile 'my recipe.toml' m.onnx --target x86 --data test=... --set 'compress.budget={ macs = 0.5 }' "
        "--shape in=1,3 --threads 2 --seed 7 --latency emulated"
    )


def test_metadata_and_lock_say_where_the_result_is_from(project: Path) -> None:
    compilation.compile_model(job(project))
    metadata = {entry.key: entry.value for entry in onnx.load(project / "out" / "model.onnx").metadata_props}
    lock = json.loads((project / "out" / "nnc.lock").read_text())
    assert metadata["nnc.passes"] == "drop-one,round-weights"
    assert metadata["nnc.recipe"] == lock["recipe"]["resolved"]
    assert "step = 1.0" in lock["recipe"]["resolved"]
    assert lock["recipe"]["sha256"].keys() == {"recipe.toml", "passes.py"}
    assert lock["model"]["sha256"].keys() == {"model.onnx"}
    assert lock["data"]["sha256"].keys() == {"test"}
    assert {"onnx", "onnxruntime", "numpy", "scipy", "tensorly", "pillow", "apache-tvm"} <= lock["packages"].keys()


def test_the_same_inputs_give_the_same_bytes_elsewhere(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(project, other)
    compilation.compile_model(job(project))
    compilation.compile_model(job(other, "result"))
    assert results(project / "out") == results(other / "result")


@pytest.mark.parametrize(
    "change",
    [
        lambda project: np.savez(project / "test.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1]),
        lambda project: edit(project / "passes.py", "import numpy as np", "# changed\nimport numpy as np"),
        lambda project: edit(project / "recipe.toml", "mean = [0.5]", "mean = [0.4]"),
        lambda project: edit(project / "recipe.toml", "round-weights", "drop-one"),
    ],
)
def test_the_lock_changes_with_every_input(project: Path, change: Callable[[Path], object]) -> None:
    compilation.compile_model(job(project))
    before = (project / "out" / "nnc.lock").read_text()
    change(project)
    compilation.compile_model(job(project))
    assert (project / "out" / "nnc.lock").read_text() != before


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_second_compile_uses_what_did_not_change(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compilation.compile_model(job(project))
    evaluated = counted(monkeypatch, "nnc.accuracy.evaluate")
    second = compilation.compile_model(job(project))
    assert [row["reused"] for row in first["passes"]] == [False, False]
    assert [row["reused"] for row in second["passes"]] == [True, True]
    assert evaluated == []
    edit(project / "recipe.toml", 'name = "round-weights"', 'name = "round-weights"\nstep = 0.5')
    third = compilation.compile_model(job(project))
    assert [row["reused"] for row in third["passes"]] == [True, False]
    assert len(evaluated) == 1  # after the pass; the model's is known


def test_other_preprocessing_is_another_accuracy(project: Path) -> None:
    compilation.compile_model(job(project))
    edit(project / "recipe.toml", "mean = [0.5]", "mean = [9.0]")
    report = compilation.compile_model(job(project))
    assert not any(row["reused"] for row in report["passes"])
    assert report["before"]["accuracy"] < 1.0


def counted(monkeypatch: pytest.MonkeyPatch, place: str) -> list[object]:
    """The first arguments of every call of the function at `place`, which goes on working."""
    module, _, name = place.rpartition(".")
    original, calls = getattr(sys.modules[module], name), []

    def function(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[0])
        return original(*arguments, **named)

    monkeypatch.setattr(place, function)
    return calls


# What passes measure and explain

#: A pass that measures once, notes every time that it does, and explains what it decides.
_CAREFUL = '''
from nnc.digests import digest, graph_digest
from nnc.rewrite import Pass

class Careful(Pass):
    """Scale weights as sensitivities say."""

    name = "careful"
    effect = "approximate"
    budget: float = 0.5

    def run(self, graph, context):
        def measure():
            with open(NOTES, "a") as file:
                file.write("measured")
            return {"features": (1, 0.25)}

        key = digest(graph_digest(graph), context.data_key)
        error = context.once("sensitivities", key, measure)["features"][1]
        layer = graph.nodes[0]
        layer.inputs[1].values = layer.inputs[1].values * layer.inputs[1].values.dtype.type(self.budget)
        context.decide(layer.name, "halve", macs=(27648, 13824), params=(432, 216), error=error)
        context.curve("macs", [{"budget": self.budget, "error": error, "chosen": True}])
        context.predicted(macs=14000, error=error)
        return 1
'''


@pytest.fixture
def careful(project: Path) -> Path:
    """The project with the pass at the end; `notes` grows with every measurement."""
    (project / "careful.py").write_text(_CAREFUL.replace("NOTES", repr(str(project / "notes"))))
    (project / "calibration.npz").write_bytes((project / "test.npz").read_bytes())
    edit(project / "recipe.toml", '["passes.py"]', '["passes.py", "careful.py"]')
    edit(project / "recipe.toml", "[data]", '[data]\ncalibration = "calibration.npz"')
    edit(project / "recipe.toml", 'name = "round-weights"', 'name = "careful"\nbudget = 0.5')
    return project


def times_measured(project: Path) -> int:
    return (project / "notes").read_text().count("measured")


def test_another_budget_uses_what_was_measured(careful: Path) -> None:
    first = compilation.compile_model(job(careful))
    edit(careful / "recipe.toml", "budget = 0.5", "budget = 0.25")
    edit(careful / "recipe.toml", "Remove and round", "another recipe")
    second = compilation.compile_model(job(careful))
    assert not second["passes"][1]["reused"]
    assert times_measured(careful) == 1
    assert [report["passes"][1]["decisions"][0]["error"] for report in (first, second)] == [0.25, 0.25]
    compilation.compile_model(job(careful, "elsewhere"))
    assert times_measured(careful) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda project: edit(project / "careful.py", "import Pass", "import Pass  # changed"),
        lambda project: edit(project / "recipe.toml", "mean = [0.5]", "mean = [0.4]"),
        lambda project: edit(project / "recipe.toml", 'name = "drop-one"', 'name = "round-weights"'),
        lambda project: np.savez(project / "calibration.npz", images=np.zeros((2, 8, 8, 3), np.uint8)),
    ],
)
def test_what_the_measurement_depends_on_is_measured_again(careful: Path, change: Callable[[Path], object]) -> None:
    compilation.compile_model(job(careful))
    change(careful)
    compilation.compile_model(job(careful))
    assert times_measured(careful) == 2


def test_other_test_data_need_no_other_measurement(careful: Path) -> None:
    compilation.compile_model(job(careful))
    np.savez(careful / "test.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1])
    report = compilation.compile_model(job(careful))
    assert not report["passes"][1]["reused"]
    assert times_measured(careful) == 1


def test_a_plan_reads_what_a_compile_measured_and_writes_nothing(careful: Path) -> None:
    compilation.compile_model(job(careful))
    before = {file: file.stat().st_mtime_ns for file in careful.rglob("*")}
    planned = compilation.plan(job(careful))
    assert times_measured(careful) == 1
    assert {file: file.stat().st_mtime_ns for file in careful.rglob("*")} == before
    compilation.plan(job(careful, "elsewhere"))
    assert times_measured(careful) == 2
    assert planned["passes"][1]["curve"]["points"] == [{"budget": 0.5, "error": 0.25, "accuracy": None, "chosen": True}]


def test_the_report_says_what_was_decided_predicted_and_reached(careful: Path) -> None:
    first = compilation.compile_model(job(careful))["passes"]
    again = json.loads((careful / "out" / "report.json").read_text())["passes"]
    assert [again[0][key] for key in ("decisions", "curve", "predicted")] == [[], None, None]
    assert (
        again[1]["decisions"]
        == first[1]["decisions"]
        == [{"layer": "features", "choice": "halve", "macs": [27648, 13824], "params": [432, 216], "error": 0.25}]
    )
    assert again[1]["predicted"]["macs"] == {"before": 27808, "predicted": 14000.0, "reached": 27808}
    assert again[1]["predicted"]["error"]["reached"] == pytest.approx(0.5, abs=0.05)  # half of all weights
    reused = compilation.compile_model(job(careful))["passes"]
    assert reused[1]["reused"]
    assert [row | {"reused": False} for row in reused] == first


# What fails


def test_a_failing_compile_leaves_nothing(project: Path) -> None:
    add_pass(project, "fail")
    before = contents(project)
    with pytest.raises(NncError, match="pass fail: ZeroDivisionError: oops") as caught:
        compilation.compile_model(job(project, "deep/out"))
    assert not (project / "deep" / "out").exists()
    shutil.rmtree(project / "deep")  # the reproduction is all that is there
    assert contents(project) == before
    assert f"nnc compile {project}/deep/out-failed/recipe.toml" in str(caught.value.hint)


def test_a_failing_compile_goes_on_where_its_work_took_long(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnc.compiling.output._LONG", -1.0)
    add_pass(project, "fail")
    with pytest.raises(NncError, match="pass fail: ZeroDivisionError: oops"):
        compilation.compile_model(job(project, "deep/out"))
    assert [file.name for file in (project / "deep/out").iterdir()] == [".nnc"]
    edit(project / "deadly.py", 'raise ZeroDivisionError("oops")', "return 0")
    report = compilation.compile_model(job(project, "deep/out"))
    assert [row["reused"] for row in report["passes"]] == [True, True, False]


def test_the_error_of_a_pass_is_told_where_its_reproduction_can_not_be_saved(project: Path) -> None:
    add_pass(project, "fail")
    (project / "out-failed").write_text("a file")
    with pytest.raises(NncError, match="pass fail: ZeroDivisionError: oops") as caught:
        compilation.compile_model(job(project))
    assert str(caught.value.hint).endswith(f"could not be saved: {project}/out-failed: file exists")


def test_the_recipe_of_a_reproduction_is_whole_or_not_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_pass(project, "fail")
    replaced = counted(monkeypatch, "nnc.model.wire.replacing")
    with pytest.raises(NncError):
        compilation.compile_model(job(project))
    assert project / "out-failed" / "recipe.toml" in replaced


def test_the_reproduction_holds_the_pass_and_its_input(project: Path) -> None:
    add_pass(project, "fail")
    with pytest.raises(NncError):
        compilation.compile_model(job(project))
    failed = project / "out-failed"
    assert 'name = "fail"' in (failed / "recipe.toml").read_text()
    assert [node.op for node in graphs.load(failed / "before.onnx").nodes][:2] == ["Conv", "Relu"]
    again = replace(job(project), recipe=recipe.load(failed / "recipe.toml"), model=failed / "before.onnx")
    with pytest.raises(NncError, match="pass fail: ZeroDivisionError: oops"):
        compilation.compile_model(again)


def test_the_reproduction_of_a_pass_that_looks_back_holds_what_is_in_front_of_it(project: Path) -> None:
    add_pass(project, "compare")
    with pytest.raises(NncError, match="pass compare: ZeroDivisionError: oops"):
        compilation.compile_model(job(project))
    failed = project / "out-failed"
    again = replace(job(project), recipe=recipe.load(failed / "recipe.toml"), model=failed / "before.onnx")
    with pytest.raises(NncError, match="pass compare: ZeroDivisionError: oops"):
        compilation.compile_model(again)


def test_the_command_that_reproduces_a_failure_has_the_seed(project: Path) -> None:
    add_pass(project, "fail")
    with pytest.raises(NncError) as caught:
        compilation.compile_model(job(project, out="my out", seed=5))
    failed = project / "my out-failed"
    command = f"nnc compile '{failed}/recipe.toml' '{failed}/before.onnx' --target qcs605:cpu --seed 5 --no-lower"
    assert str(caught.value.hint).endswith(f"this reproduces it: {command}")


def test_commands_name_a_board_of_ones_own_as_it_was_given(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the name of a shipped chip that its file happens to have."""
    shutil.copy(Path(nnc.__file__).parents[1] / "targets/qcs605.toml", project)
    monkeypatch.chdir(project)
    mine = target.load("./qcs605.toml")
    compilation.compile_model(job(project, target=mine))
    page = (project / "out/report.html").read_text("utf-8")
    assert "nnc compile recipe.toml model.onnx --target ./qcs605.toml:cpu " in page
    assert "for qcs605:cpu - nnc</title>" in page
    assert str(project) not in page
    compilation.compile_model(job(project, "shipped"))
    assert results(project / "out") == results(project / "shipped")
    add_pass(project, "fail")
    with pytest.raises(NncError) as caught:
        compilation.compile_model(job(project, "failing", target=mine))
    assert str(caught.value.hint).endswith("before.onnx --target ./qcs605.toml:cpu --no-lower")


def test_a_failing_compile_leaves_the_earlier_result(project: Path) -> None:
    compilation.compile_model(job(project))
    before = results(project / "out")
    add_pass(project, "fail")
    with pytest.raises(NncError):
        compilation.compile_model(job(project))
    assert results(project / "out") == before
    assert not (project / "out" / ".nnc" / "new").exists()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_compile_goes_on_and_ends_the_same(project: Path, sign: signal.Signals) -> None:
    def heard() -> None:  # shells let what they run in the background ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    add_pass(project, "die")
    stopped = in_a_process(project, deadly=str(sign.value), prepare=heard)
    assert stopped.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[sign]
    assert [file.name for file in (project / "out").iterdir()] == [".nnc"]
    report = compilation.compile_model(job(project))
    assert [row["reused"] for row in report["passes"]] == [True, True, False]
    compilation.compile_model(job(project, "uninterrupted"))
    assert results(project / "out") == results(project / "uninterrupted")


def test_a_full_disk(project: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    before = contents(project)
    done = in_a_process(project, prepare=small_files)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "nnc: error: out: the file is larger than this system allows"
    assert contents(project) == before


def test_a_folder_that_can_not_be_made(project: Path) -> None:
    with pytest.raises(NncError, match=r"/proc/self/nnc.*: no such file or directory"):
        compilation.compile_model(job(project, out=Path("/proc/self/nnc")))


def test_a_pass_that_fails_in_the_current_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_pass(project, "fail")
    here = project / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(NncError, match="pass fail"):
        compilation.compile_model(replace(job(project), out=Path(".")))
    assert list(here.iterdir()) == [here / ".nnc"]
    assert (project / "here-failed" / "before.onnx").exists()


def test_operators_that_nobody_knows(project: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
    g (float[1, 4] x) => (float[1, 7] y) { k = my.domain.Strange(x) l = Relu(k) y = my.domain.Strange(l) }"""
    model = onnx.parser.parse_model(text)
    onnx.save(model, project / "model.onnx")
    edit(project / "recipe.toml", 'test = "test.npz"', "")
    report = compilation.compile_model(job(project))
    assert report["model"]["outputs"] == [{"name": "y", "shape": [1, 7], "dtype": "float32"}]
    assert "+".join(layer["op"] for layer in report["layers"]) == "Strange+Relu+Strange"


def without_code() -> target.Target:
    """A chip with a unit that no code can be generated for."""
    chip = target.load("qcs605:dsp")
    tvm = {**chip.unit.tvm, "mtriple": "xtensa-unknown-elf"}
    return chip.model_copy(update={"unit": chip.unit.model_copy(update={"tvm": tvm})})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 9}, "--threads 9: qcs605:cpu has 8 cores"),
        ({"target": without_code(), "lower": True}, "no code can be generated for its dsp yet"),
        ({"shapes": {"imag": [1, 3, 8, 8]}}, "has no input 'imag'"),
        ({"model": Path(os.fsdecode(b"\xff.onnx"))}, "its name, which the results tell, is not text in UTF-8"),
    ],
)
def test_what_can_not_work_is_refused_first(project: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NncError, match=message):
        compilation.compile_model(job(project, **changes))
    assert not (project / "out").exists()


def test_a_model_is_never_replaced_by_its_result(project: Path) -> None:
    with pytest.raises(NncError, match="would replace its own model"):
        compilation.compile_model(replace(job(project), out=project / "x" / ".."))


@pytest.mark.parametrize("name", ["model.onnx", "report.html", "report.json", "nnc.lock"])
def test_files_that_no_compile_wrote_are_never_replaced(project: Path, name: str) -> None:
    mine = project / "out" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(NncError, match=rf"out/{name}: there is such a file already, which no compile wrote"):
        compilation.compile_model(job(project))
    assert contents(mine.parent) == {name: b"mine"}


def test_a_library_that_no_compile_wrote_is_never_replaced(project: Path, lowering: "_Lowering") -> None:
    compilation.compile_model(job(project))
    (project / "out" / "module.so").write_text("mine")
    before = results(project / "out")
    with pytest.raises(NncError, match=r"module\.so: there is such a file already"):
        compilation.compile_model(job(project, lower=True))
    assert results(project / "out") == before


@pytest.mark.parametrize("damaged", ["report.json", "nnc.lock"])
def test_a_damaged_compile_is_made_again(project: Path, damaged: str) -> None:
    compilation.compile_model(job(project))
    before = results(project / "out")
    (project / "out" / damaged).write_text("{")
    compilation.compile_model(job(project))
    assert results(project / "out") == before


def test_a_teacher_is_never_replaced_by_the_result(project: Path) -> None:
    compilation.compile_model(job(project))
    read = recipe.load(project / "recipe.toml", data=[f"teacher={project / 'out' / 'model.onnx'}"])
    with pytest.raises(NncError, match="the compile would replace its own teacher"):
        compilation.compile_model(job(project, recipe=read))


def test_packages_that_go_by_another_name_are_no_obstacle(
    project: Path, lowering: "_Lowering", monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name in ("onnxruntime", "ziglang"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(lock, "version", version)
    compilation.compile_model(job(project, lower=True))
    found = json.loads((project / "out" / "nnc.lock").read_text())["packages"]
    assert (found["onnxruntime"], found["ziglang"], found["onnx"]) == (None, None, "1.0")


# Data


def image_folder(project: Path, *names: str | bytes) -> Recipe:
    """The recipe with a folder of two classes as test data, and one image of these names in the first."""
    rng = np.random.default_rng(0)
    for place in ("a/1.png", "b/2.png", *(f"a/{os.fsdecode(name)}" for name in names)):
        file = project / "images" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
    return recipe.load(project / "recipe.toml", data=[f"test={project / 'images'}"])


def test_names_of_images_need_not_be_text(project: Path) -> None:
    report = compilation.compile_model(job(project, recipe=image_folder(project, b"\xff\xe9.png")))
    assert report["accuracy_samples"] == 3


def test_only_what_is_read_of_a_folder_counts(project: Path) -> None:
    read = image_folder(project)
    before = lock.data_digests(read, silent)
    (project / "images" / "a" / "notes.txt").write_text("more")
    (project / "images" / ".nnc").mkdir()
    (project / "images" / ".nnc" / "1.png").write_text("no image")
    assert lock.data_digests(read, silent) == before
    (project / "images" / "a").rename(project / "images" / "c")  # the same images, other labels
    assert lock.data_digests(read, silent) != before


def test_data_are_hashed_once_and_show_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = image_folder(project).data.test
    read = recipe.load(project / "recipe.toml", data=[f"test={test}", f"calibration={test}"])
    hashed = counted(monkeypatch, "nnc.compiling.lock.file_digest")
    steps = []
    compilation.compile_model(job(project, recipe=read), lambda *step: steps.append(step))
    assert [path.name for path in hashed if path.suffix == ".png"] == ["1.png", "2.png"] * 2  # of two kinds of data
    assert ("hash the calibration data", 1, 2) in steps
    hashed.clear()
    compilation.plan(job(project, recipe=read))
    assert len([path for path in hashed if path.suffix == ".png"]) == 2


# Libraries


@dataclass
class _Kernel:
    name: str = "conv_0"
    template: str = "conv2d"
    op: str = "Conv+Relu"
    nodes: tuple[str, ...] = ("features",)
    layout: str = "NCHW4c"
    dtype: str = "float32"
    shape: tuple[int, ...] = (1, 16, 8, 8)


@dataclass
class _Built:
    files: list[Path]
    kernels: list[_Kernel]
    workspace_bytes: int = 4096
    weight_bytes: int = 2368
    packed_bytes: int = 2368
    tuned: dict[str, Any] = field(default_factory=dict)


class _Lowering:
    """nnc.lowering without TVM: the library holds the number of the build."""

    def __init__(self) -> None:
        self.builds = 0
        self.error: Exception | None = None

    def build(
        self, graph: Any, chip: Any, out: Path, *, threads: int | None, progress: Any, schedules: Any = None
    ) -> _Built:
        if self.error:
            raise self.error
        self.builds += 1
        (out / "module.so").write_text(f"build {self.builds}")
        return _Built([out / "module.so"], [_Kernel()])

    def storage(self, *_: Any) -> Storage:
        return Storage()


@pytest.fixture
def lowering(monkeypatch: pytest.MonkeyPatch) -> _Lowering:
    fake = _Lowering()
    monkeypatch.setattr(nnc, "lowering", fake, raising=False)
    return fake


def test_a_library_and_what_is_said_about_it(project: Path, lowering: _Lowering) -> None:
    report = compilation.compile_model(job(project, lower=True))
    assert (project / "out" / "module.so").read_text() == "build 1"
    assert (report["library_bytes"], report["workspace_bytes"]) == (7, 4096)
    assert report["kernels"][0]["template"] == "conv2d"
    assert report["files"] == ["model.onnx", "module.so", "report.json", "report.html"]


def test_a_library_is_built_again_only_for_another_graph_or_machine(project: Path, lowering: _Lowering) -> None:
    out = project / "out"
    first = compilation.compile_model(job(project, lower=True))
    second = compilation.compile_model(job(project, lower=True))
    assert lowering.builds == 1
    assert (second["kernels"], second["library_bytes"]) == (json.loads(json.dumps(first["kernels"])), 7)
    edit(project / "recipe.toml", "Remove and round", "another description")
    compilation.compile_model(job(project, lower=True))
    assert (lowering.builds, (out / "module.so").read_text()) == (1, "build 1")
    compilation.compile_model(job(project, lower=True, threads=1))
    assert (lowering.builds, (out / "module.so").read_text()) == (2, "build 2")
    edit(project / "recipe.toml", 'name = "round-weights"', 'name = "round-weights"\nstep = 0.5')
    compilation.compile_model(job(project, lower=True, threads=1))
    assert lowering.builds == 3
    (out / "module.so").write_text("damaged")
    compilation.compile_model(job(project, lower=True, threads=1))
    assert (lowering.builds, (out / "module.so").read_text()) == (4, "build 4")


@pytest.mark.parametrize("other", ["x86", "qcs605:gpu"])
def test_a_library_is_emulated_only_where_it_could_run(project: Path, lowering: _Lowering, other: str) -> None:
    compilation.compile_model(job(project, lower=True))
    with pytest.raises(NncError, match=rf"out: compiled for qcs605:cpu, whose code {other}.* can't execute"):
        emulation.of_folder(project / "out", other, None, lambda *_: None)


def test_no_lower_removes_the_library_of_another_graph(project: Path, lowering: _Lowering) -> None:
    compilation.compile_model(job(project, lower=True))
    report = compilation.compile_model(job(project))
    assert not (project / "out" / "module.so").exists()
    assert "kernels" not in report
    compilation.compile_model(job(project, lower=True))
    assert lowering.builds == 2


def test_a_failing_build_leaves_the_earlier_result(project: Path, lowering: _Lowering) -> None:
    compilation.compile_model(job(project, lower=True))
    before = results(project / "out")
    edit(project / "recipe.toml", 'name = "round-weights"', 'name = "round-weights"\nstep = 0.5')
    lowering.error = NncError("no compiler")
    with pytest.raises(NncError, match="no compiler"):
        compilation.compile_model(job(project, lower=True))
    assert results(project / "out") == before


# External data, plan, bisect


def test_external_data_counts(project: Path) -> None:
    model = graphs.to_model(graphs.load(project / "model.onnx"))
    onnx.save(model, project / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    compilation.compile_model(job(project))
    lock = json.loads((project / "out" / "nnc.lock").read_text())
    assert lock["model"]["sha256"].keys() == {"model.onnx", "weights.bin"}
    size = sum((project / name).stat().st_size for name in ("model.onnx", "weights.bin"))
    assert json.loads((project / "out" / "report.json").read_text())["before"]["file_bytes"] == size


def test_external_data_of_one_name_in_two_folders(project: Path) -> None:
    model = onnx.load(project / "model.onnx")
    for folder, tensor in zip(("a", "b"), model.graph.initializer, strict=False):
        (project / folder).mkdir()
        (project / folder / "w.bin").write_bytes(onnx.numpy_helper.to_array(tensor).tobytes())
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{folder}/w.bin")
    (project / "model.onnx").write_bytes(model.SerializeToString())
    found = lock.lock(job(project), {})["model"]["sha256"]
    assert found.keys() == {"model.onnx", "a/w.bin", "b/w.bin"}


def test_the_weights_of_a_teacher_count(project: Path) -> None:
    model = graphs.to_model(graphs.load(project / "model.onnx"))
    onnx.save(model, project / "teacher.onnx", save_as_external_data=True, location="t.bin", size_threshold=1024)
    read = recipe.load(project / "recipe.toml", data=[f"teacher={project / 'teacher.onnx'}"])
    before = lock.data_digests(read, silent)
    content = (project / "t.bin").read_bytes()
    (project / "t.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    after = lock.data_digests(read, silent)
    assert [key for key in before if before[key] != after[key]] == ["teacher"]
    (project / "teacher.onnx").write_text("no model")
    with pytest.raises(NncError, match=r"teacher: .*teacher\.onnx: not an ONNX model"):
        lock.data_digests(read, silent)


def test_a_plan_writes_nothing(project: Path) -> None:
    before = contents(project)
    planned = compilation.plan(job(project))
    assert contents(project) == before
    assert [(row["name"], row["changed"]) for row in planned["passes"]] == [("drop-one", 1), ("round-weights", 1)]
    assert planned["passes"][1]["skipped"] == [{"node": "features", "reason": "the weights are multiples already"}]
    assert planned["before"]["nodes"] == planned["after"]["nodes"] + 1


@pytest.mark.parametrize("passes", ["round-weights", "round-weights drop-one"])
def test_the_figures_of_a_plan_are_those_of_the_compile(project: Path, passes: str) -> None:
    """A row has the accuracy, or it is measured behind the last pass."""
    text = (project / "recipe.toml").read_text().partition("[[pass]]")[0]
    chosen = "".join(f'[[pass]]\nname = "{name}"\n' for name in passes.split())
    (project / "recipe.toml").write_text(text + chosen)
    planned, compiled = compilation.plan(job(project)), compilation.compile_model(job(project))
    for side in ("before", "after"):
        assert planned[side] == compiled[side] | {"file_bytes": None}
    assert planned["after"]["accuracy"] < planned["before"]["accuracy"]


def test_a_plan_goes_on_where_a_compile_stops(project: Path) -> None:
    with (project / "recipe.toml").open("a") as file:
        file.write('[[pass]]\nname = "check-accuracy"\nmax_drop = 0.0\n')
    *_, row = compilation.plan(job(project))["passes"]
    assert "nnc compile stops here" in row["skipped"][0]["reason"]
    with pytest.raises(NncError, match="pass check-accuracy: the accuracy dropped"):
        compilation.compile_model(job(project))


def test_bisect_finds_the_pass_that_costs(project: Path) -> None:
    states = compilation.bisect(job(project))
    assert [name for name, _ in states] == ["(model)", "drop-one", "round-weights"]
    accuracies = [accuracy for _, accuracy in states]
    assert accuracies[0] == accuracies[1] == 1.0 > accuracies[2]


def test_bisect_tells_what_is_missing_before_it_begins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(project / "recipe.toml", 'name = "round-weights"', 'name = "compress"\nbudget = { macs = 0.5 }')
    evaluated = counted(monkeypatch, "nnc.accuracy.evaluate")
    with pytest.raises(NncError, match="pass compress: needs calibration data"):
        compilation.bisect(job(project))
    assert evaluated == []


def test_bisect_needs_data(project: Path) -> None:
    edit(project / "recipe.toml", 'test = "test.npz"', "")
    with pytest.raises(NncError, match="bisect needs test data"):
        compilation.bisect(job(project))
