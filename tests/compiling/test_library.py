"""What the library of a compile depends on, and what the model before the first pass is compared with."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import pytest

from nnc import recipe, target, testing
from nnc.compiling import compilation, emulation
from nnc.compiling.compilation import Job
from nnc.compiling.library import library_key
from nnc.tuning.records import Record, Records

EXPANDED = """
net (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[16, 4, 1, 1] U, float[16, 1, 3, 3] V, float[4, 16, 1, 1] W>
{
    e = Conv(x, U)
    d = Conv<group = 16, pads = [1, 1, 1, 1]>(e, V)
    y = Conv(d, W)
}
"""

NORMALIZED = """
net (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[16, 4, 1, 1] U, float[16, 1, 3, 3] V, float[4, 16, 1, 1] W,
 float[16] scale, float[16] shift, float[16] mean, float[16] variance>
{
    c = Conv(x, U)
    e = BatchNormalization(c, scale, shift, mean, variance)
    r = Relu(e)
    d = Conv<group = 16, pads = [1, 1, 1, 1]>(r, V)
    y = Conv(d, W)
}
"""


class Paired(Records):
    """Records that know nothing but that pairs are faster."""

    def __init__(self) -> None:
        super().__init__((), (), {})
        self.best = {"pair": Record({"op": "expand_depthwise"}, {}, {}, 2.0, 1.0, "measured")}

    def find(self, workload: Any) -> None:
        return None

    def times(self, workloads: Iterable[Any]) -> Callable[[Any], float]:
        return lambda workload: 1.0 if workload.op == "expand_depthwise" else 2.0


def job(folder: Path, text: str, pass_: str, latency: Any = "analytic") -> Job:
    onnx.save(testing.model(text), folder / "model.onnx")
    (folder / "recipe.toml").write_text(f'[[pass]]\nname = "{pass_}"\n')
    read = recipe.load(str(folder / "recipe.toml"))
    return Job(read, folder / "model.onnx", target.load("x86"), folder / "out", {}, threads=1, latency=latency)


@pytest.mark.parametrize(
    ("text", "pass_"),
    [(EXPANDED, "remove-dead-nodes"), (NORMALIZED, "fold-batchnorm")],
    ids=["nothing changes", "batchnorm"],
)
def test_memory_is_that_of_libraries_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, pass_: str
) -> None:
    monkeypatch.setattr(Records, "load", lambda *_: Paired())
    report = compilation.compile_model(job(tmp_path, text, pass_))
    assert [kernel["template"] for kernel in report["kernels"]].count("expand_depthwise") == 1
    peaks = [report[side]["peak_activation_bytes"] for side in ("before", "after")]
    assert peaks == [report["workspace_bytes"]] * 2
    assert report["ratios"]["memory"] == 1.0


def test_a_model_that_is_not_changed_is_not_faster_in_emulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(library: Path, kernels: list[Any], *_: Any) -> dict[str, Any]:
        return {"latency_ms": float(len(kernels)), "layers": []}

    monkeypatch.setattr(Records, "load", lambda *_: Paired())
    monkeypatch.setattr(emulation, "check", lambda *_: None)
    monkeypatch.setattr(emulation, "timed", timed)
    report = compilation.compile_model(job(tmp_path, EXPANDED, "remove-dead-nodes", "emulated"))
    assert report["after"]["latency_ms"] == len(report["kernels"])
    assert report["ratios"]["latency"] == 1.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "emulated latency" in page
    assert "predicted latency" not in page


def test_other_records_are_another_library(tmp_path: Path) -> None:
    asked, graph = job(tmp_path, EXPANDED, "remove-dead-nodes"), testing.graph(EXPANDED)
    assert library_key(asked, graph, Paired()) == library_key(asked, graph, Paired())
    assert library_key(asked, graph, Paired()) != library_key(asked, graph, Records((), (), {}))
