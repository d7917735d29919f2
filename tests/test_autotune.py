"""What is tuned, for which target, and where it is measured."""

import json
import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnc import autotune, recipe
from nnc import target as targets
from nnc.compiling import compilation
from nnc.context import silent
from nnc.errors import NncError
from nnc.hardware import host
from nnc.tuning.boards import Tracker

x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="measures on this machine")


def compiled(project: Path, spec: str, threads: int) -> Path:
    chip = targets.load(spec)
    job = compilation.Job(recipe.load(project / "recipe.toml"), project / "model.onnx", chip, project / "out", {})
    compilation.compile_model(replace(job, lower=False, threads=threads))
    return project / "out"


def test_a_folder_is_tuned_for_the_threads_that_it_was_compiled_for(project: Path) -> None:
    assert targets.load("qcs605").unit.threads != 3
    assert autotune.target_of(compiled(project, "qcs605", 3), None).unit.threads == 3


@x86
def test_a_folder_of_another_core_is_not_tuned_here(project: Path) -> None:
    out = compiled(project, "x86", 1)
    autotune.target_of(out, None)
    lock = json.loads((out / "nnc.lock").read_text())
    (cluster,) = lock["target"]["unit"]["cluster"]
    cluster["core"] = "Other CPU"
    (out / "nnc.lock").write_text(json.dumps(lock))
    with pytest.raises(NncError, match="out: compiled for Other CPU, this machine is ") as caught:
        autotune.target_of(out, None)
    assert caught.value.hint == "--target x86:cpu tunes its model for this machine"
    assert autotune.target_of(out, "x86") == targets.load("x86")
    board = autotune.target_of(out, None, Tracker("board", 9190, "other"))
    assert board.unit.clusters[0].core == "Other CPU"


def test_the_model_of_a_folder_is_the_one_that_the_compile_wrote(project: Path) -> None:
    out, chip = compiled(project, "qcs605", 1), targets.load("qcs605")
    job = autotune.Job(out, chip, project / "records.jsonl")
    assert autotune._graph(job, silent).inputs[0].shape == [1, 3, 8, 8]
    with pytest.raises(NncError, match="'picture'"):
        autotune._graph(replace(job, shapes={"picture": [1, 3, 8, 8]}), silent)
    (out / "model.onnx").write_bytes((project / "model.onnx").read_bytes())
    with pytest.raises(NncError, match=r"model\.onnx: not the file that the compile wrote"):
        autotune._graph(job, silent)


@x86
def test_code_that_does_not_run_here_is_not_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = targets.load("x86")
    autotune.device_of(chip, 1)
    unit = chip.unit.model_copy(update={"tvm": chip.unit.tvm | {"mcpu": "x86-64-v4"}})
    here = host.figures()
    monkeypatch.setattr(host, "figures", lambda: here | {"tvm": here["tvm"] | {"mcpu": "x86-64-v3"}})
    with pytest.raises(NncError, match=r"x86:cpu: code for x86-64-v4.*, this machine is x86-64-v3") as caught:
        autotune.device_of(chip.model_copy(update={"unit": unit}), 1)
    assert caught.value.hint == "--rpc measures on boards"


def test_code_of_another_architecture_is_refused() -> None:
    unit = SimpleNamespace(architecture="riscv64", tvm={})
    with pytest.raises(NncError, match=f"board:cpu: code for riscv64, this machine is {platform.machine()}"):
        host.require(unit, "board:cpu", "compile it here")  # type: ignore[arg-type]
