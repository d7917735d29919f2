"""`nnc validate`: what is compared, where networks come from, and what is said of the rest."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from nnc import networks, validation
from nnc.errors import NncError
from nnc.validation import fit, listing

HEADER = "chip,unit,cores_used,core_type,clock_ghz,framework,dtype,model_id,input_shape,latency_ms"
ROWS = [
    "phone,cpu,1,Cortex-A76,2.0,ncnn,fp32,resnet18,1x3x64x64,10.0",
    "phone,cpu,1,Cortex-A76,2.0,ncnn,fp32,squeezenet_1.1,1x3x64x64,3.0",
    "phone,cpu,1,Cortex-A76,2.0,SomeEngine 3,fp32,mobilenet_v1_0.25,1x3x64x64,1.0",
    "phone,cpu,?,Cortex-A76,2.0,ncnn,fp32,resnet18,1x3x64x64,10.0",
    "phone,cpu,1,Cortex-A76,2.0,ncnn,fp32,mine,1x3x64x64,10.0",
]


def write(folder: Path, *rows: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_rows_are_predicted_from_core_types_and_reference_networks(tmp_path: Path) -> None:
    found = validation.validate(write(tmp_path, *ROWS), None, None)
    assert [row["model_id"] for row in found["rows"]] == ["resnet18", "squeezenet_1.1", "mobilenet_v1_0.25"]
    assert all(0.1 < row["predicted_ms"] < 100 for row in found["rows"])
    reasons = {entry["reason"]: entry["lines"] for entry in found["excluded"]}
    assert reasons == {"cores_used is '?'": [5], "unknown network 'mine'": [6]}


def test_a_folder_of_models_comes_before_reference_networks(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    small = networks.build("squeezenet1_1_caffe", input_size=64, seed=None)  # as ncnn runs it
    onnx.save(small, folder / "resnet18.onnx")  # the user's network of that name is another one
    onnx.save(small, folder / "mine.onnx")
    table = write(tmp_path, *ROWS)
    found = {row["line"]: row["predicted_ms"] for row in validation.validate(table, None, folder)["rows"]}
    assert found[2] == found[6] == pytest.approx(found[3])


def test_open_shapes_are_those_of_the_row_and_fixed_ones_must_be(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model = networks.build("squeezenet1_1", input_size=64, seed=None)
    onnx.save(model, folder / "fixed.onnx")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "size"
    onnx.save(model, folder / "open.onnx")
    (folder / "broken.onnx").write_bytes(b"no model")
    rows = [ROWS[0].replace("resnet18", name).replace("64x64", size) for name, size in (
        ("open", "64x64"), ("open", "128x128"), ("fixed", "64x64"), ("fixed", "128x128"), ("broken", "64x64"),
    )]  # fmt: skip
    found = validation.validate(write(tmp_path, *rows), None, folder)
    predicted = {row["line"]: row["predicted_ms"] for row in found["rows"]}
    assert set(predicted) == {2, 3, 4}
    assert predicted[2] == predicted[4] < predicted[3]
    assert sorted(line for entry in found["excluded"] for line in entry["lines"]) == [5, 6]


def test_a_target_is_judged_by_the_rows_of_its_chip_and_its_own_coefficients(tmp_path: Path) -> None:
    shipped = Path(validation.__file__).parents[2] / "targets/raspberry-pi-4.toml"
    board = tmp_path / "my-board.toml"
    shutil.copy(shipped, board)
    mine = "my-board,cpu,4,Cortex-A72,1.5,ncnn,fp32,resnet18,1x3x64x64,10.0"
    table = write(tmp_path, *ROWS, mine)
    found = validation.validate(table, str(board), None)
    assert [row["line"] for row in found["rows"]] == [7]
    slower = board.read_text().replace('profile = "arm/ncnn"', 'profile = "arm/tvm"')
    board.write_text(slower)
    again = validation.validate(table, str(board), None)
    assert again["rows"][0]["predicted_ms"] != found["rows"][0]["predicted_ms"]


@pytest.mark.parametrize(
    ("rows", "spec", "message"),
    [
        ([], None, "nothing to compare: it has no rows"),
        ([ROWS[3]], None, "nothing to compare: cores_used is '?'"),
        (ROWS, "qcs605", "no row is of the chip 'qcs605'"),
    ],
)
def test_nothing_to_compare(tmp_path: Path, rows: list[str], spec: str | None, message: str) -> None:
    with pytest.raises(NncError) as caught:
        validation.validate(write(tmp_path, *rows), spec, None)
    assert caught.value.message.endswith(message)


def test_models_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NncError, match=r"--models .*absent: no such folder"):
        validation.validate(write(tmp_path, *ROWS), None, tmp_path / "absent")


def test_a_row_whose_shape_is_no_image_is_left_out(tmp_path: Path) -> None:
    onnx.save(networks.build("squeezenet1_1", input_size=64, seed=None), tmp_path / "resnet18.onnx")
    rows = [ROWS[0], ROWS[0].replace("1x3x64x64", "224")]
    found = validation.validate(write(tmp_path, *rows), None, tmp_path)
    assert [row["line"] for row in found["rows"]] == [2]
    assert [entry["lines"] for entry in found["excluded"]] == [[3]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "table.csv: nothing to fit: it has no rows"), ([ROWS[3]], "table.csv: nothing to fit: cores_used is '?'")],
)
def test_a_fit_on_nothing_leaves_the_profiles_alone(tmp_path: Path, rows: list[str], message: str) -> None:
    profiles = tmp_path / "profiles.toml"
    profiles.write_text("what was there")
    with pytest.raises(NncError) as caught:
        fit.main([str(write(tmp_path, *rows)), "-o", str(profiles)])
    assert caught.value.message.endswith(message)
    assert profiles.read_text() == "what was there"


def test_a_fit_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NncError, match=r"--models .*typo: no such folder"):
        fit.main([str(write(tmp_path, *ROWS)), "--models", str(tmp_path / "typo")])


def test_models_beyond_those_named_are_counted() -> None:
    entry = {"reason": "why", "models": ["a", "b", "c", "d", "e"]}
    assert listing._reason(entry) == "why (a, b, c, d and 1 more)"


def nnc(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nnc", *map(str, arguments)], capture_output=True, text=True)


def test_the_command_prints_a_table_json_and_a_drawing(tmp_path: Path) -> None:
    table, drawing = write(tmp_path, *ROWS), tmp_path / "plot.svg"
    shown = nnc("validate", table, "--quiet", "--plot", drawing)
    assert shown.returncode == 0, shown.stderr
    assert "ncnn" in shown.stdout
    assert "2 rows left out" in shown.stdout
    circles = [each for each in ElementTree.parse(drawing).iter() if each.tag.endswith("circle")]
    assert len(circles) == 3
    found = json.loads(nnc("validate", table, "--quiet", "--json").stdout)
    assert found["overall"]["rows"] == 3
    assert np.isfinite(found["overall"]["mape"])
    assert found["overall"]["energy"] == {"rows": 0, "mape": None, "bias": None}
    assert {row["measured_mj"] for row in found["rows"]} == {row["predicted_mj"] for row in found["rows"]} == {None}


def test_a_wrong_table_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    shown = nnc("validate", path, "--plot", tmp_path / "plot.svg")
    assert shown.returncode == 1
    assert shown.stderr.startswith(f"nnc: error: {path}: the column 'chip' is missing")
    assert not (tmp_path / "plot.svg").exists()


def test_targets_and_predictions_say_what_to_expect(tmp_path: Path) -> None:
    shown = nnc("targets", "qcs605").stdout
    assert "predicted as" in shown
    assert "arm/ncnn" in shown
    assert "off on other networks or chips" in shown
    model = tmp_path / "model.onnx"
    onnx.save(networks.build("squeezenet1_1", input_size=64, seed=None), model)
    assert "give or take" in nnc("inspect", model, "--target", "qcs605").stdout
    assert json.loads(nnc("inspect", model, "--target", "qcs605", "--json").stdout)["totals"]["latency_error"] > 0
