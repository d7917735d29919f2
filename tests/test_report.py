"""The evidence: strict JSON, a page that needs nothing else, and remarks that follow from the figures."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nnc import recipe, report, target
from nnc.compiling import compilation
from nnc.compiling.compilation import Job
from nnc.simulation.analytic import Layer, Prediction

NASTY = '<script>alert("x")</script> & </title>'


@pytest.fixture
def folder(project: Path) -> Path:
    job = Job(recipe.load(project / "recipe.toml"), project / "model.onnx", target.load("qcs605"), project / "out", {})
    compilation.compile_model(replace(job, lower=False))
    return project / "out"


class _Page(HTMLParser):
    """The text of a page; fails on tags that do not match."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f" {data}"


def page_of(folder: Path, **changes: Any) -> _Page:
    """The page of a report in which entries were replaced."""
    lock = json.loads((folder / "nnc.lock").read_text())
    report.write(json.loads((folder / "report.json").read_text()) | changes, lock, folder)
    return _Page((folder / "report.html").read_text("utf-8"))


def words(page: _Page) -> str:
    return " ".join(page.text.split())


def test_the_page_tells_the_story(folder: Path) -> None:
    page = page_of(folder)
    text = words(page)
    for part in ("What each pass did", "Where the time goes", "What was left alone, and why", "How it was verified"):
        assert part in text
    assert "model.onnx for qcs605:cpu" in text
    assert "nnc compile recipe.toml model.onnx --target qcs605:cpu --data test=... --no-lower" in text
    assert "the weights are multiples already" in text
    assert re.search(r"top-1 accuracy \d+.\d % from 100.0 %", text)
    assert "in onnxruntime, on 40 samples" in text


def test_the_page_needs_nothing_else(folder: Path) -> None:
    html = (folder / "report.html").read_text("utf-8")
    page = page_of(folder)
    assert not re.search(r"(https?:)?//", re.sub(r"xmlns=\S+", "", html))
    assert not [attrs for tag, attrs in page.tags if tag in ("script", "link", "img") or "src" in attrs]
    assert len(html) < 200_000


def test_the_page_says_how_equal_outputs_were(folder: Path) -> None:
    assert "Equal means: to 0.0001 of the largest value after drop-one." in words(page_of(folder))
    row = json.loads((folder / "report.json").read_text())["passes"][0]
    rows = [row, row, row | {"name": "fold", "tolerance": 0.05}, row | {"name": "other", "tolerance": None}]
    text = words(page_of(folder, passes=rows))
    assert "to 0.0001 of the largest value after drop-one. Equal" in text
    assert "to 0.05 of the largest value after fold, where values are rounded" in text
    assert "after other" not in text


def test_names_from_files_are_escaped(folder: Path) -> None:
    written = json.loads((folder / "report.json").read_text())
    layer, row = written["layers"][0], written["passes"][1]
    page = page_of(
        folder,
        model=written["model"] | {"name": NASTY},
        layers=[layer | {"name": NASTY, "op": NASTY}],
        passes=[row | {"name": NASTY, "skipped": [{"node": NASTY, "reason": NASTY}]}],
        remarks=[NASTY],
    )
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(NASTY) >= 7


def test_a_page_without_accuracy_energy_and_refusals(folder: Path) -> None:
    written = json.loads((folder / "report.json").read_text())
    unknown = {"accuracy": None, "energy_mj": None}
    rows = [row | {"accuracy": None, "skipped": []} for row in written["passes"]]
    changes = {"before": written["before"] | unknown, "after": written["after"] | unknown, "passes": rows}
    text = words(page_of(folder, **changes))
    assert "no test data was given" in text
    assert "every place that a pass looks for was changed" in text
    assert "energy" not in text.split("What each pass did")[0].lower()


def test_a_page_with_a_library(folder: Path) -> None:
    kernel = {"name": "conv_0", "template": "winograd", "op": "Conv+Relu", "nodes": ["features"]}
    kernel |= {"layout": "NCHW16c", "dtype": "float32", "shape": [1, 1, 8, 8, 16]}
    text = words(page_of(folder, kernels=[kernel], library_bytes=2_000_000, workspace_bytes=4096))
    assert "The 1 kernel of the library" in text
    assert "2.00 MB of library; 4.10 kB of memory" in text
    assert "winograd" in text
    assert "--no-lower" not in text


def test_a_page_of_a_model_without_layers(folder: Path) -> None:
    assert "The layers, slowest first" in words(page_of(folder, layers=[], passes=[]))


def explained(folder: Path, **changes: Any) -> dict[str, Any]:
    """A row of a pass that explains what `changes` hold."""
    row = json.loads((folder / "report.json").read_text())["passes"][1]
    return row | {"decisions": [], "curve": None, "predicted": None} | changes


def decision(layer: str, after: int, **known: Any) -> dict[str, Any]:
    return {
        "layer": layer,
        "choice": "keep" if after == 2000 else "halve",
        "macs": [2000, after],
        "params": [100, after // 20],
        **known,
    }


def point(budget: float, error: float | None, **known: Any) -> dict[str, Any]:
    return {"budget": budget, "error": error, "accuracy": None, "chosen": False, **known}


def test_the_page_shows_what_was_decided(folder: Path) -> None:
    decisions = [decision("first", 1000, error=0.0312, latency_ms=[2.0, 1.0]), decision("kept", 2000)]
    points = [point(0.25, 0.5, accuracy=0.8), point(0.5, 0.1, accuracy=0.9, chosen=True), point(1.0, 0.0, accuracy=1.0)]
    predicted = {"macs": {"before": 200, "predicted": 100.0, "reached": 99}}
    row = explained(folder, decisions=decisions, curve={"metric": "macs", "points": points}, predicted=predicted)
    page = page_of(folder, passes=[row])
    text = words(page)
    assert "1 of 2 layers changed; predicted MACs 50.0 %, reached 49.5 %" in text
    assert "first halve 2.00 k → 1.00 k 100 → 50 2.00 ms → 1.00 ms 3.12 %" in text
    assert "1 layer left as they are kept" in text
    assert "chosen: 50 % kept, 10 %" in text
    assert "chosen: 50 % kept, 90 %" in text
    circles = [attrs for tag, attrs in page.tags if tag == "circle"]
    assert len(circles) == 2 * (3 + 1)
    assert [attrs.get("class") for attrs in circles].count("chosen") == 2


def test_layers_that_stay_in_floats_are_shown_and_not_counted_as_changed(folder: Path) -> None:
    decisions = [decision("head", 2000) | {"choice": report.FLOATS}, decision("first", 1000), decision("kept", 2000)]
    text = words(page_of(folder, passes=[explained(folder, decisions=decisions)]))
    assert "1 of 3 layers changed" in text
    assert "1 layer changed, 2 left as they are" in text
    assert "head stays in floats" in text


@pytest.mark.parametrize(
    ("snr_db", "proof", "expected"),
    [
        (31.23, "measured", "31.2 dB SNR"),
        (math.inf, "measured", "equal"),
        (-math.inf, "all noise", "all noise"),
        (None, "outputs equal", "equal"),
        (None, "not compared: it can't run", "not compared"),
    ],
)
def test_outputs_in_words(snr_db: float | None, proof: str, expected: str) -> None:
    row = {"snr_db": snr_db, "proof": proof}
    assert report.outputs(row) == report.outputs(report.strict(row)) == expected


def test_a_page_of_passes_that_decide_nothing(folder: Path) -> None:
    assert "What the passes decided" not in words(page_of(folder, passes=[explained(folder)]))


@pytest.mark.parametrize("points", [[point(0.5, None, chosen=True)], [point(0.5, math.nan), point(1.0, math.inf)]])
def test_a_curve_of_unknown_errors_is_not_drawn(folder: Path, points: list[dict[str, Any]]) -> None:
    page = page_of(folder, passes=[explained(folder, curve={"metric": "macs", "points": points})])
    assert not [tag for tag, _ in page.tags if tag == "circle"]


def test_a_thousand_decisions_are_folded_away(folder: Path) -> None:
    row = explained(folder)
    for count, shown in ((3, True), (1000, False)):
        decisions = [decision(f"layer{index}", 1000) for index in range(count)]
        page = page_of(folder, passes=[row | {"decisions": decisions}])
        assert any(tag == "details" and "open" in attrs for tag, attrs in page.tags) == shown
        assert f"{count} layers changed" in words(page)


def test_names_in_decisions_are_escaped(folder: Path) -> None:
    decisions = [decision(NASTY, 1000) | {"choice": NASTY}, decision(NASTY, 2000)]
    row = explained(folder, decisions=decisions, curve={"metric": NASTY, "points": [point(0.5, 0.5)]})
    page = page_of(folder, passes=[row])
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(NASTY) >= 4


def test_json_is_strict(folder: Path) -> None:
    content = {"a": math.inf, "b": [math.nan, 1.5, None], "c": {"d": -math.inf}, 3: (1, "x", True)}
    assert report.strict(content) == {"a": None, "b": [None, 1.5, None], "c": {"d": None}, "3": [1, "x", True]}
    row = json.loads((folder / "report.json").read_text())["passes"][0] | {"snr_db": math.inf}
    report.write(json.loads((folder / "report.json").read_text()) | {"passes": [row]}, _lock(folder), folder)
    text = (folder / "report.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["passes"][0]["snr_db"] is None


def _lock(folder: Path) -> Any:
    return json.loads((folder / "nnc.lock").read_text())


# Remarks


def layer(latency_ms: float, bound: str, name: str = "conv", channels: int = 16, macs: int = 1) -> Layer:
    return Layer(name, "Conv", (1, channels, 8, 8), macs, 1, latency_ms, bound, "float32")


def remarks(*layers: Layer) -> list[str]:
    return report.remarks(Prediction(0.0, 0, None, list(layers)), target.load("qcs605"))


def test_remarks_say_what_bounds_the_time() -> None:
    said = remarks(layer(6.0, "memory"), layer(3.6, "compute"), layer(0.4, "dispatch"), *[layer(0.0, "cache")] * 3)
    assert said[0].startswith("60.0 % of the time is in layers bound by memory: reading weights")
    assert said[1].startswith("36.0 % of the time is in layers bound by compute")
    assert "60.0 % of the time is in one layer, conv (Conv)" in said
    assert not [line for line in said if "dispatch" in line or "cache:" in line]


def test_remarks_on_widths() -> None:
    layers = [layer(1.0, "compute", f"c{index}", channels) for index, channels in enumerate((6, 8, 10, 3, 5, 16))]
    (said,) = [line for line in remarks(*layers) if "multiple" in line]
    assert "the channels of 4 layers are no multiple of 4" in said
    assert said.endswith("c0 (6), c2 (10), c3 (3) and 1 more")


def test_nothing_to_remark() -> None:
    assert remarks() == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (100, 50, "2.00x smaller"),
        (100, 97, "3.0 % smaller"),
        (100, 104, "4.0 % larger"),
        (100, 300, "3.00x larger"),
        (100, 100, "the same"),
        (100, 0, "100.0 % smaller"),
        (0, 0, "the same"),
        (0, 5, ""),
    ],
)
def test_changes_in_words(before: float, after: float, expected: str) -> None:
    assert report.change(report.figures("analytic")[0], before, after) == expected


def test_remarks_on_a_dsp() -> None:
    """Floats have no vectors there, and a board needs the vendor's tools."""
    scalar = Layer("b", "Conv", (1, 32, 8, 8), 3, 1, 1.0, "compute", "float32, scalar")
    layers = [layer(1.0, "compute", channels=32), scalar]
    said = report.remarks(Prediction(0.0, 0, None, layers), target.load("qcs605:dsp"))
    (floats,) = [line for line in said if "floats" in line]
    assert floats.startswith("1 layer with 75.0 % of the MACs would compute in floats, one value at a time")
    assert any("FastRPC loads" in line for line in said)
    assert not any("FastRPC" in line for line in remarks(*layers))
