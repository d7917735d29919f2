"""Tables of measurements: what is read, and what is said about wrong ones."""

from pathlib import Path

import pytest

from nnc.errors import NncError
from nnc.validation import table

HEADER = "chip,unit,cores_used,core_type,clock_ghz,framework,dtype,model_id,input_shape,latency_ms,batch,quality"
ROW = "board,cpu,4,Cortex-A72,1.5,ncnn,fp32,resnet18,1x3x224x224,120.5,1,B"


def read(tmp_path: Path, *lines: str) -> list[table.Row]:
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return table.read(path)


def test_a_row(tmp_path: Path) -> None:
    (row,) = read(tmp_path, HEADER, ROW)
    assert (row.line, row.chip, row.latency_ms, row.arithmetic, row.shape) == (
        2, "board", 120.5, "float32", (1, 3, 224, 224),
    )  # fmt: skip


def test_columns_come_in_any_order_and_there_may_be_others(tmp_path: Path) -> None:
    lines = [",".join(reversed(line.split(","))) + ",more" for line in (HEADER, ROW)]
    assert read(tmp_path, *lines) == read(tmp_path, HEADER, ROW)


def test_energies_are_read_where_they_are_there(tmp_path: Path) -> None:
    columns = ",energy_mj,avg_power_w,idle_power_w,power_scope"
    rows = (ROW + ",500.5,6.5,3.5,whole board at wall", ROW + ",,,,", ROW + ",n/a,0,-,")
    known, unknown, unsaid = read(tmp_path, HEADER + columns, *rows)
    assert (known.energy_mj, known.avg_power_w, known.idle_power_w) == (500.5, 6.5, 3.5)
    assert known.power_scope == "whole board at wall"
    assert (unknown.energy_mj, unknown.avg_power_w, unknown.idle_power_w, unknown.power_scope) == (None, None, None, "")
    assert (unsaid.energy_mj, unsaid.avg_power_w, unsaid.idle_power_w) == (None, None, None)


@pytest.mark.parametrize(
    ("framework", "engine"),
    [
        ("tflite-v2.4.1-ruy (MLPerf v1.0)", "tflite"),
        ("TFLite (2019, pre-XNNPACK)", "tflite"),
        ("TFLite NNAPI", "tflite"),
        ("Paddle-Lite 2.11 armv8", "paddle-lite"),
        ("ncnn", "ncnn"),
        ("ncnn-vulkan", "ncnn-vulkan"),
        ("TensorRT 5 (JetPack 4.2.1)", "tensorrt"),
        ("armnn-v21.02-neon (MLPerf v1.0)", "armnn"),
        ("Bolt 1.0 (gcc8.3)", "bolt"),
        ("tkDNN/TensorRT", "tkdnn"),
        ("42", "unknown"),
    ],
)
def test_versions_are_no_part_of_an_engine(framework: str, engine: str) -> None:
    assert table.engine(framework) == engine


@pytest.mark.parametrize(
    ("dtype", "arithmetic"),
    [("fp16", "float16"), ("FP32", "float32"), ("uint8", "int8"), ("fp16|fp32", None), ("bf16", None)],
)
def test_types(tmp_path: Path, dtype: str, arithmetic: str | None) -> None:
    (row,) = read(tmp_path, HEADER, ROW.replace("fp32", dtype))
    assert row.arithmetic == arithmetic


@pytest.mark.parametrize("shape", ["?", "1x3x320x320?", "", "0x3x224x224", "1x3x-1x4"])
def test_a_shape_that_is_none(tmp_path: Path, shape: str) -> None:
    (row,) = read(tmp_path, HEADER, ROW.replace("1x3x224x224", shape))
    assert row.shape is None


def test_suspect_rows_count_less(tmp_path: Path) -> None:
    weights = [read(tmp_path, HEADER, ROW[:-1] + quality)[0].weight for quality in "ABCD"]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == weights[1] > weights[2] > weights[3] > 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER.replace("model_id", "model"), ROW], "table.csv: the column 'model_id' is missing"),
        ([], "table.csv: the column 'chip' is missing"),
        ([HEADER, ROW.replace("120.5", "fast")], "line 2: 'latency_ms' must be a number above 0, not 'fast'"),
        ([HEADER, ROW.replace("120.5", "-1")], "line 2: 'latency_ms' must be a number above 0, not '-1'"),
        ([HEADER, ROW.replace("120.5", "nan")], "line 2: 'latency_ms' must be a number above 0, not 'nan'"),
        ([HEADER, ROW.replace("120.5", "")], "line 2: 'latency_ms' must be a number above 0, not ''"),
        ([HEADER, "board,cpu"], "line 2: 'latency_ms' must be a number above 0, not ''"),
    ],
)
def test_wrong_tables(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(NncError) as caught:
        read(tmp_path, *lines)
    assert caught.value.message.endswith(message)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (binary, tmp_path / "absent.csv", tmp_path):
        with pytest.raises(NncError, match=path.name):
            table.read(path)
