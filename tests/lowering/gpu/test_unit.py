"""The figures of a GPU, as its target's file gives them."""

import re
from pathlib import Path

from nnc import target, toml
from nnc.lowering.gpu.machine import machine
from nnc.lowering.gpu.unit import gpu_unit


def test_a_file_that_says_nothing_of_float32_has_figures_for_it(tmp_path: Path) -> None:
    text = toml.read(Path(target.__file__).parents[1] / "targets/qcs605.toml")
    figures = r'(?s)(# --- Adreno.*?)"float32", (.*?)float32 = 256.0, (.*?)float32 = 10.0, '
    text = re.sub(figures, r"\1\2\3", text)
    (tmp_path / "board.toml").write_text(text)
    board = target.load(f"{tmp_path / 'board.toml'}:gpu")
    assert board.unit.dtypes == ("float16", "int8")
    assert gpu_unit(board, machine(board)).macs_per_cycle == 512
