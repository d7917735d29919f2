"""Tables of measured latencies, and energies: CSV with one measured network per row."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnc import toml
from nnc.errors import NncError
from nnc.hardware.chip import Dtype

#: Columns that a table must have; others are read where they are there.
REQUIRED = (
    "chip", "unit", "cores_used", "core_type", "clock_ghz", "framework", "dtype", "model_id", "input_shape",
    "latency_ms",
)  # fmt: skip

_DTYPES: dict[str, Dtype] = {
    "fp32": "float32", "float32": "float32", "f32": "float32",
    "fp16": "float16", "float16": "float16", "f16": "float16",
    "int8": "int8", "uint8": "int8", "i8": "int8",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A measurement, as it is written."""

    line: int
    chip: str
    unit: str
    cores_used: str
    core_type: str
    clock_ghz: str
    framework: str
    dtype: str
    model_id: str
    input_shape: str
    latency_ms: float
    batch: str = "1"
    quality: str = ""
    """From A, raw logs, to D, suspect."""
    energy_mj: float | None = None
    """Of one inference, idle power included; None where it was not measured."""
    avg_power_w: float | None = None
    """While it ran."""
    idle_power_w: float | None = None
    """Before it ran."""
    power_scope: str = ""
    """What was metered: "whole board...", or something else, such as the rails of a module."""

    @property
    def arithmetic(self) -> Dtype | None:
        """The type that the network is computed in; None where the row does not say one."""
        return _DTYPES.get(self.dtype.strip().lower())

    @property
    def engine(self) -> str:
        """The framework without its version: "ncnn-vulkan" of "ncnn-vulkan 2021", "tflite" of "tflite-v2.4.1-ruy"."""
        return engine(self.framework)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """[N, C, H, W] of the input; None where the row does not say it."""
        sizes = self.input_shape.strip().lower().split("x")
        return tuple(map(int, sizes)) if all(re.fullmatch("[1-9][0-9]{0,8}", size) for size in sizes) else None

    @property
    def weight(self) -> float:
        """How much the measurement counts in a fit."""
        return {"C": 0.5, "D": 0.2}.get(self.quality.strip().upper(), 1.0)


def engine(framework: str) -> str:
    """The name of a framework without what tells its versions and builds apart."""
    words = re.match(r"[a-z]+(?:[- ]?(?:lite|vulkan|rt)\b)?", framework.strip().lower())
    return re.sub("[ -]", "-", words[0]) if words else "unknown"


def read(path: Path) -> list[Row]:
    """The rows of a table; NncError where it is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [column or "" for column in reader.fieldnames or ()]
            for name in REQUIRED:
                if name not in columns:
                    hint = toml.nearest(name, columns) if columns else None
                    raise NncError(f"{path}: the column '{name}' is missing", hint or f"it needs {', '.join(REQUIRED)}")
            return [_row(path, reader.line_num, record) for record in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = "not a text file" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None)
        raise NncError(f"{path}: {(reason or str(error)).lower()}", "it must be CSV in UTF-8") from None


def _row(path: Path, line: int, record: Mapping[str | None, str | None]) -> Row:
    def cell(name: str, default: str = "") -> str:
        return (record.get(name) or default).strip()

    def figure(name: str) -> float | None:
        """None where it says something else, such as "n/a"."""
        try:
            value = float(cell(name))
        except ValueError:
            return None
        return value if math.isfinite(value) and value > 0 else None

    latency = figure("latency_ms")
    if latency is None:
        raise NncError(f"{path}: line {line}: 'latency_ms' must be a number above 0, not '{cell('latency_ms')}'")
    cells: dict[str, Any] = {name: cell(name) for name in (*REQUIRED, "quality", "power_scope")}
    cells["batch"] = cell("batch", "1")
    cells["latency_ms"] = latency
    cells |= {name: figure(name) for name in ("energy_mj", "avg_power_w", "idle_power_w")}
    return Row(line, **cells)
