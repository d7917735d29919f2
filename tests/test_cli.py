"""The command line as a user meets it: what is printed where, exit statuses, and what an interruption leaves."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from nnc import __version__, benchmark
from nnc.artifact import Artifact
from nnc.cli import app
from nnc.compiling import compilation
from nnc.display import runs

COMMANDS = [
    *("bench", "bisect", "compile", "doctor", "eval", "inspect", "network", "passes", "plan", "recipes", "run"),
    *("records", "schema", "targets", "tune"),
]


def nnc(*words: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, list(map(str, words)), prog_name="nnc")


def output_of(*words: object) -> str:
    result = nnc(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def json_of(*words: object) -> Any:
    return json.loads(output_of(*words, "--json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def error_of(*words: object) -> str:
    """Stderr of a command that must fail by the user's mistake, the hint left out."""
    result = nnc(*words)
    assert (result.exit_code, result.stdout) == (1, "")
    message, _, hint = result.stderr.partition("\n\nhint: ")
    assert "\n" not in message.strip()
    assert "\n" not in hint.strip()
    return message.strip()


def usage_error_of(*words: object) -> str:
    """Stderr of a command that can't be understood, without its frame."""
    result = nnc(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    return " ".join(re.sub(r"[│╭╰─╮╯]", " ", result.stderr).split())


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as the current folder."""
    monkeypatch.chdir(project)
    return project


COMPILE = ("compile", "recipe.toml", "model.onnx", "--target", "qcs605", "--no-lower")


# Help and usage


def test_help_names_every_command() -> None:
    text = output_of("--help")
    assert all(re.search(rf"^│ {name} ", text, re.MULTILINE) for name in COMMANDS)
    assert nnc().exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    text = output_of(command, "--help")
    assert f"Usage: nnc {command}" in text
    assert "│ " in text


def test_version() -> None:
    assert output_of("--version") == f"nnc {__version__}\n"


def test_the_other_side_of_bench(here: Path) -> None:
    output_of(*COMPILE, "--no-lower", "-o", "after")
    (here / "onnxruntime").mkdir()
    assert error_of("bench", "after", "--against", "tvm") == "nnc: error: --against tvm: no such folder"
    assert error_of("bench", "after", "--against", "./onnxruntime").endswith("onnxruntime: holds no finished compile")
    assert "onnxruntime, or" in nnc("bench", "after", "--against", "tvm").stderr
    assert "a model, not the folder of a compile" in error_of("bench", "after", "--against", "model.onnx")
    assert "after: compiled for aarch64, which can't be timed" in error_of("bench", "after", "--against", "after")


def test_two_compiles_are_called_by_their_folders(capsys: pytest.CaptureFixture[str]) -> None:
    runs.show_timing(benchmark.Timing([2.0], [4.0], 2, "before", "after"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["before", "/", "after", "2.00x", "2.00x", "2.00x"] in lines


def test_help_imports_nothing_heavy() -> None:
    heavy = ["numpy", "onnx", "onnxruntime", "pydantic", "tvm", "torch", "jinja2", "PIL"]
    code = f"import sys; from nnc import cli; print(*set({heavy}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["compile"], "Missing argument 'RECIPE'"),
        (["compile", "r.toml", "m.onnx"], "Missing option '--target'"),
        (["compile", "r.toml", "m.onnx", "--target", "x86", "--threads", "0"], "Invalid value for '--threads'"),
        (["compile", "r.toml", "m.onnx", "--targe", "x86"], "No such option: --targe"),
        (["bench", "m.onnx"], "compile it first (nnc compile RECIPE m.onnx --target x86 -o DIR), then nnc bench DIR"),
        (["bench", "out", "--against", "old", "--profile"], "it times the kernels of one library"),
    ],
)
def test_usage_errors(words: Sequence[str], message: str) -> None:
    assert message in usage_error_of(*words)


# Compile


def test_compile_says_what_shrank_and_where_the_files_are(here: Path) -> None:
    result = nnc(*COMPILE, "-o", "out")
    assert result.exit_code == 0
    text = result.stdout
    assert text.startswith("model.onnx for qcs605:cpu, recipe recipe.toml\n")
    assert re.search(r"nodes +6 +5 +1.20x fewer", text)
    assert re.search(r"top-1 accuracy +100.0 % +\d", text)
    assert re.search(r"drop-one +1 +5 .* equal", text)
    assert re.search(r"round-weights +1 +5 .* dB SNR", text)
    assert re.search(r"out/report.html +the report: open it in a browser", text)
    assert "nnc: drop-one (0/2)" in result.stderr.splitlines()


def test_compile_in_silence_and_as_json(here: Path) -> None:
    quiet = nnc(*COMPILE, "-o", "out", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")
    report = json_of(*COMPILE, "-o", "out")
    assert report == json.loads((here / "out" / "report.json").read_text())


@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("qcs605", "model-qcs605"),
        ("qcs605:dsp", "model-qcs605-dsp"),
        ("jetson-xavier@MAXN", "model-jetson-xavier"),
        ("jetson-xavier@15W", "model-jetson-xavier-15W"),
        ("jetson-xavier:gpu@30W", "model-jetson-xavier-gpu-30W"),
    ],
)
def test_where_results_go_by_default(here: Path, target: str, folder: str) -> None:
    output_of(*COMPILE[:3], "--target", target, "--no-lower")
    assert (here / folder / "model.onnx").exists()


def test_parameters_and_data_from_the_command_line(here: Path) -> None:
    (here / "other.npz").write_bytes((here / "test.npz").read_bytes())
    edited = (here / "recipe.toml").read_text().replace('test = "test.npz"', "")
    (here / "recipe.toml").write_text(edited)
    report = json_of(*COMPILE, "--data", "test=other.npz", "--set", "round-weights.step=0.001", "-o", "out")
    assert report["after"]["accuracy"] == 1.0
    assert "step = 0.001" in (here / "out" / "nnc.lock").read_text()


def test_preprocessing_from_the_command_line(here: Path) -> None:
    (here / "recipe.toml").write_text((here / "recipe.toml").read_text().replace("mean = [0.5]", "mean = [9.0]"))
    options = ("--mean", "0.5", "--std", "1,1,1", "--size", "8")
    report = json_of(*COMPILE, *options, "-o", "out", "--quiet")
    planned = json_of("plan", *COMPILE[1:5], *options, "--quiet")
    states = json_of("bisect", "recipe.toml", "model.onnx", *options, "--quiet")
    assert report["before"]["accuracy"] == planned["before"]["accuracy"] == states[0]["accuracy"] == 1.0
    assert json_of("eval", "out", "--data", "test.npz")["preprocess"].startswith("{ size = [8, 8], mean = [0.5]")
    lock = json.loads((here / "out" / "nnc.lock").read_text())
    assert lock["recipe"]["preprocess"] == {"size": "8", "mean": "0.5", "std": "1,1,1"}
    assert "mean = [0.5]" in lock["recipe"]["resolved"]
    page = (here / "out" / "report.html").read_text("utf-8")
    assert "--data test=... --size 8 --mean 0.5 --std 1,1,1 --no-lower" in page
    assert error_of(*COMPILE, "--std", "0", "--quiet") == "nnc: error: --std 0: input should be greater than 0"


def test_images_that_nobody_prepares_are_told_of(here: Path) -> None:
    told = "nnc: images are given as they are, from 0 to 1: "
    (here / "recipe.toml").write_text((here / "recipe.toml").read_text().replace("mean = [0.5]", ""))
    (here / "bare.toml").write_text('use = ["passes.py"]\n[[pass]]\nname = "drop-one"\n')
    assert told not in nnc("compile", "recipe.toml", *COMPILE[2:]).stderr  # it says that it means it
    bare = ("model.onnx", "--target", "qcs605", "--data", "test=test.npz")
    for words in (
        ("compile", "bare.toml", *bare, "--no-lower", "-o", "out"),
        *((command, "bare.toml", *bare) for command in ("plan", "bisect")),
    ):
        assert nnc(*words).stderr.count(told) == 1
        for said in (("--mean", "0.5"), ("--quiet",)):
            assert told not in nnc(*words, *said).stderr


def test_shapes_from_the_command_line(here: Path) -> None:
    report = json_of(*COMPILE, "--shape", "image=4,3,8,8", "-o", "out")
    assert report["model"]["outputs"] == [{"name": "scores", "shape": [4, 10], "dtype": "float32"}]


@pytest.mark.parametrize(
    "shape", ["image", "image=", "=1,3", "image=1,x", "image=1,0,8,8", "image=1,-3,8,8", "image=1.5"]
)
def test_wrong_shapes(here: Path, shape: str) -> None:
    assert error_of(*COMPILE, "--shape", shape) == f"nnc: error: --shape {shape}: not of the form INPUT=N,C,H,W"


def test_an_error_is_one_line_with_a_hint_and_leaves_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    result = nnc("compile", "recipe.toml", "modle.onnx", "--target", "qcs606", "-o", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "nnc: error: no target 'qcs606'\n\nhint: did you mean 'qcs605'?\n"
    assert sorted(here.iterdir()) == before


def test_control_characters_of_a_file_do_not_reach_the_terminal(here: Path) -> None:
    (here / "bad.toml").write_text('[[pass]]\nname = "\\u001b[31m\\nred"\n')
    assert "\x1b" not in error_of("compile", "bad.toml", "model.onnx", "--target", "x86")
    model = onnx.load(here / "model.onnx")
    model.graph.node[0].name = "\x1b[31mred\n"
    onnx.save(model, here / "red.onnx")
    assert "\x1b" not in output_of("inspect", "red.onnx")


def test_a_bug_is_reported_with_its_traceback_in_a_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(compilation, "compile_model", fail)
    monkeypatch.setattr(sys, "argv", ["nnc", os.fsdecode(b"\xff")])
    monkeypatch.setattr("tempfile.tempdir", str(here))
    message = error_of(*COMPILE)
    found = re.fullmatch(r"nnc: error: internal error: IndexError: list index .*; the traceback is in (.*)", message)
    assert found is not None
    assert "in fail" in Path(found[1]).read_text()
    monkeypatch.setenv("NNC_TRACEBACK", "1")
    assert isinstance(nnc(*COMPILE).exception, IndexError)


# Plan, bisect, inspect, eval


def test_plan_says_what_would_happen_and_why_not(here: Path) -> None:
    text = output_of("plan", "recipe.toml", "model.onnx", "--target", "qcs605")
    assert re.search(r"\(model\) +6 ", text)
    assert "not compared" not in text
    assert re.search(r"round-weights +1 +the weights are multiples already +features", text)
    assert "of the time is in layers bound by" in text
    planned = json_of("plan", "recipe.toml", "model.onnx", "--target", "qcs605")
    assert [row["changed"] for row in planned["passes"]] == [1, 1]


_PRUNE = '''
from nnc.rewrite import Pass

class Prune(Pass):
    """Say what pruning would do."""

    name = "prune"
    effect = "exact"

    def run(self, graph, context):
        context.progress("sensitivities", 0, 2)
        context.decide("features", "16 to 8", macs=(27648, 13824), params=(432, 216), error=0.125)
        context.curve("macs", [{"budget": 0.5, "error": 0.125, "chosen": True}, {"budget": 1.0, "error": float("nan")}])
        context.predicted(macs=13904)
        context.progress("sensitivities", 2, 2)
        return 0
'''


@pytest.fixture
def pruning(here: Path) -> Path:
    (here / "prune.py").write_text(_PRUNE)
    (here / "prune.toml").write_text('use = ["prune.py"]\n[[pass]]\nname = "prune"\n')
    return here


def test_plan_explains_decisions(pruning: Path) -> None:
    result = nnc("plan", "prune.toml", "model.onnx", "--target", "qcs605")
    assert re.search(r"^prune: 1 of 1 layer changed; predicted MACs 50.0 %, reached 100.0 %$", result.stdout, re.M)
    assert re.search(r"^features +16 to 8 +27.6 k → 13.8 k +432 → 216 +12.5 %$", result.stdout, re.M)
    assert re.search(r"^ +50.0 % +12.5 % +█+ ◀ chosen$", result.stdout, re.M)
    assert "nnc: sensitivities (0/2)" in result.stderr.splitlines()
    (row,) = json_of("plan", "prune.toml", "model.onnx", "--target", "qcs605")["passes"]
    assert row["decisions"][0]["error"] == 0.125
    assert [point["error"] for point in row["curve"]["points"]] == [0.125, None]
    assert row["predicted"] == {"macs": {"before": 27808, "predicted": 13904.0, "reached": 27808}}


def test_compile_says_in_one_line_what_was_predicted(pruning: Path) -> None:
    text = output_of("compile", "prune.toml", "model.onnx", "--target", "qcs605", "--no-lower", "-o", "out")
    assert "\nprune: 1 of 1 layer changed; predicted MACs 50.0 %, reached 100.0 %\n" in text
    assert "16 to 8" not in text


def test_bisect(here: Path) -> None:
    text = output_of("bisect", "recipe.toml", "model.onnx", "--data", "test=test.npz")
    assert output_of("bisect", "recipe.toml", "model.onnx", "--data", "test.npz") == text
    assert re.search(r"drop-one +100.0 % +the same", text)
    assert re.search(r"round-weights +\d+.\d % +-\d+.\d points", text)
    assert json_of("bisect", "recipe.toml", "model.onnx")[0] == {"after": "(model)", "accuracy": 1.0}


def test_inspect(here: Path) -> None:
    text = output_of("inspect", "model.onnx")
    assert re.search(r"features +Conv\+Mul\+Relu +1x16x8x8 +27.6 k +432", text)
    assert "latency" not in text
    predicted = output_of("inspect", "model.onnx", "--target", "jetson-xavier", "--threads", "1")
    assert re.search(r"predicted latency +[\d.]+ us on jetson-xavier:cpu@MAXN", predicted)
    inspected = json_of("inspect", "model.onnx", "--target", "qcs605")
    assert inspected["totals"]["macs"] == sum(layer["macs"] for layer in inspected["layers"]) == 27648 + 160
    assert {layer["bound"] for layer in inspected["layers"]} <= {"compute", "cache", "memory", "dispatch"}


def test_a_model_that_onnxruntime_cannot_run_is_not_compared(here: Path) -> None:
    model = onnx.load("model.onnx")
    model.graph.node[2].domain = "com.acme"
    model.opset_import.add(domain="com.acme", version=1)
    shape = onnx.helper.make_tensor_value_info("positive", onnx.TensorProto.FLOAT, ["N", 16, 8, 8])
    model.graph.value_info.append(shape)
    onnx.save(model, "custom.onnx")
    (here / "recipe.toml").write_text('use = ["passes.py"]\n[[pass]]\nname = "drop-one"\n')
    text = output_of("compile", "recipe.toml", "custom.onnx", "--target", "x86", "--no-lower")
    assert re.search(r"^drop-one +1 .* not compared ", text, re.MULTILINE)
    assert re.search(r"^Outputs not compared: onnxruntime can't run the graph: .*com.acme", text, re.MULTILINE)


def test_inspect_the_result_of_a_compile(here: Path) -> None:
    output_of(*COMPILE, "-o", "out")
    assert "Conv+Relu" in output_of("inspect", "out")


def test_eval_of_a_model_and_of_a_compile(here: Path) -> None:
    model = json_of("eval", "model.onnx", "--data", "test.npz", "--mean", "0.5")
    assert (model["top1"], model["count"], model["runtime"]) == (1.0, 40, "onnxruntime")
    assert json_of("eval", "model.onnx", "--data", "test.npz", "--samples", "7")["count"] == 7
    output_of(*COMPILE, "-o", "out", "--set", "round-weights.step=0.001")
    assert json_of("eval", "out", "--data", "test.npz")["top1"] == 1.0  # it knows the recipe's mean
    text = output_of("eval", "out", "--data", "test.npz")
    assert text.startswith("top-1  100.0 %\n")
    assert "computed by onnxruntime" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mean", "a"], "--mean a: not numbers separated by commas"),
        (["--size", "8,8,8"], "--size 8,8,8: not numbers separated by commas"),
        (["--size", "9"], "size is [9, 9], but input 'image' is [8, 8]"),
        (["--std", "0"], "--std 0: input should be greater than 0"),
        (["--layout", "NCWH"], "--layout NCWH: input should be 'NCHW' or 'NHWC'"),
        (["--crop", "9"], "the image is 8x8, smaller than the crop of 9"),
    ],
)
def test_wrong_preprocessing(here: Path, words: list[str], message: str) -> None:
    assert message in error_of("eval", "model.onnx", "--data", "test.npz", "--quiet", *words)


# Networks and lists


def test_network(here: Path) -> None:
    text = output_of("network", "squeezenet1_1", "--input", "64", "--classes", "7", "-o", "net.onnx")
    assert re.match(r"net.onnx: [\d.]+ k parameters, [\d.]+ M MACs, \d+ nodes\n", text)
    assert json_of("inspect", "net.onnx")["layers"][-1]["shape"] == [1, 7]
    assert re.search(r"^resnet50 +224x224 +25\.6 M +4\.09 G$", output_of("network", "list", "--quiet"), re.M)
    listed = {row["name"]: row for row in json_of("network", "list", "--quiet")}
    assert listed["resnet56"] == {"name": "resnet56", "input": [32, 32], "params": 853_018, "macs": 125_485_696}
    output_of("network", "mobilenet_v1_0.25", "--input", "64x96", "-o", "wide.onnx", "--quiet")
    assert json_of("inspect", "wide.onnx")["layers"][0]["shape"] == [1, 8, 32, 48]
    assert error_of("network", "resnet50", "--input", "224,224").startswith("nnc: error: --input: expected a number")
    assert error_of("network", "resnet51") == "nnc: error: unknown network 'resnet51'"
    assert error_of("network", "squeezenet1_1", "--input", "64", "-o", "no/net.onnx") == (
        "nnc: error: no/net.onnx: no such file or directory"
    )


def test_a_network_that_goes_nowhere(here: Path) -> None:
    text = output_of("network", "squeezenet1_1", "--input", "64", "-o", "/dev/null")
    assert re.match(r"/dev/null: [\d.]+ M parameters, [\d.]+ M MACs, \d+ nodes\n", text)
    assert Path("/dev/null").is_char_device()


def test_passes(here: Path) -> None:
    listed = output_of("passes", "--use", "passes.py")
    assert re.search(r"round-weights +Round the weights of Conv to multiples of a step +approximate\n", listed)
    text = output_of("passes", "round-weights", "--use", "passes.py")
    assert "Declines where they are." in text
    assert re.search(r"step +a number above 0 and of at most 10 +1.0 +distance of the values that are left", text)
    assert error_of("passes", "round-weight", "--use", "passes.py") == "nnc: error: no pass is called 'round-weight'"


def test_targets() -> None:
    assert re.search(r"^qcs605 +Qualcomm QCS605.* +cpu, gpu, dsp$", output_of("targets"), re.MULTILINE)
    text = output_of("targets", "jetson-xavier:gpu@30W")
    assert "30W *" in text
    assert "jetson-xavier:gpu *" in text
    assert json_of("targets", "x86")["figures"][0]["threads"] >= 1
    assert error_of("targets", "qcs605:npu") == "nnc: error: qcs605 has no unit 'npu'"


def test_recipes_are_printed_as_they_are() -> None:
    for entry in json_of("recipes"):
        assert output_of("recipes", entry["name"]) == entry["toml"]
    assert error_of("recipes", "nothing-like-it") == "nnc: error: no recipe is called 'nothing-like-it'"


@pytest.mark.parametrize("command", ["compile", "plan", "bisect"])
def test_recipes_are_listed_without_the_packages_that_they_need(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("nnc.recipe.find_spec", lambda name: None)
    assert "quantize-trained" in output_of("recipes")
    assert "train-quantized" in output_of("recipes", "quantize-trained")
    message = error_of(command, "quantize-trained", "absent.onnx", "--target", "x86")
    assert re.fullmatch(
        r"nnc: error: quantize-trained: pass \d+ \([a-z-]+\): needs torch, which is not installed", message
    )


def test_schema(here: Path) -> None:
    schema = json.loads(output_of("schema", "--use", "passes.py"))
    assert schema["$defs"]["RoundWeights"]["properties"]["step"]["maximum"] == 10


def test_doctor() -> None:
    assert re.search(r"yes +onnxruntime +\d", output_of("doctor"))
    assert {"name", "found", "version", "needed_for", "hint"} == json_of("doctor")[0].keys()


# Runs of whole processes


def process(*words: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "nnc", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m nnc schema | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")


def test_a_closed_stdout_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m nnc targets >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_that_lacks_a_sign_is_no_error(pruning: Path, encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    planning = process("plan", "prune.toml", "model.onnx", "--target", "qcs605", cwd=pruning, env=environment)
    stdout, stderr = planning.communicate(timeout=60)
    assert planning.returncode == 0, stderr
    assert "? chosen" in stdout


def test_results_may_go_where_the_name_is_no_text(here: Path) -> None:
    folder, environment = os.fsdecode(b"out\xff"), os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    for options in ((), ("--json",)):
        compiling = process(*COMPILE, "-o", folder, *options, cwd=here, env=environment)
        _, stderr = compiling.communicate(timeout=60)
        assert compiling.returncode == 0, stderr
    assert (here / folder / "nnc.lock").exists()


def test_interrupted_by_the_keyboard(here: Path) -> None:
    (here / "slow.py").write_text(
        "import time\nfrom nnc.rewrite import Pass\n"
        "class Slow(Pass):\n"
        "    '''Sleep.'''\n"
        "    name, effect = 'slow', 'exact'\n"
        "    def run(self, graph, context):\n"
        "        open('started', 'w').close()\n"
        "        time.sleep(60)\n"
        "        return 0\n"
    )
    (here / "slow.toml").write_text('use = ["slow.py"]\n[[pass]]\nname = "slow"\n')
    running = process("compile", "slow.toml", "model.onnx", "--target", "x86", "--no-lower", "-o", "out", cwd=here)
    deadline = time.monotonic() + 30
    while not (here / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 130
    assert stderr.splitlines()[-1] == "nnc: interrupted"
    assert "Traceback" not in stderr
    assert [file.name for file in (here / "out").iterdir()] == [".nnc"]
    assert not list((here / "out").rglob("*.part"))


def test_colours_only_on_a_terminal(here: Path) -> None:
    environment = os.environ | {"TERM": "xterm-256color"}
    running = process("plan", "recipe.toml", "model.onnx", "--target", "x86", cwd=here, env=environment)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "\x1b" not in stdout + stderr


class _Instant:
    """A library that is done at once."""

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [np.zeros((1, 10), np.float32)]


def test_run_and_inspect_show_what_they_do_unless_they_must_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_of(*COMPILE, "-o", "out")
    monkeypatch.setattr(Artifact, "library", lambda self, threads: _Instant())
    for words, line in (
        (("run", "out", "--input", "random"), "nnc: run the network (0/1)"),
        (("inspect", "model.onnx"), "nnc: read the model (0/2)"),
        (("inspect", "model.onnx", "--groups"), "nnc: look at its layers (1/2)"),
    ):
        assert line in nnc(*words).stderr.splitlines()
        quiet = nnc(*words, "--quiet")
        assert (quiet.exit_code, quiet.stderr) == (0, "")


def test_random_inputs_do_not_need_a_file_called_random(here: Path) -> None:
    output_of(*COMPILE, "-o", "out")
    message = error_of("run", "out", "--input", "random")
    assert message == "nnc: error: out: was compiled with --no-lower, there is no library in it"
    np.savez(here / "x.npz", image=np.zeros((1, 3, 8, 8), np.float64))
    assert error_of("run", "out", "--input", "x.npz") == (
        "nnc: error: x.npz: 'image' float64 [1, 3, 8, 8], but the model reads 'image' float32 [1, 3, 8, 8]"
    )
