"""Target files: what is read from them, and what is said about wrong ones."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnc import target, toml
from nnc.errors import NncError
from nnc.hardware import chip, efficiency

SHIPPED = Path(target.__file__).parents[1] / "targets"

BOARD = """
description = "a board"
idle_watts = 1.0

[dram]
gbps = 10.0
efficiency = 0.5
picojoule_per_byte = 50.0

[[unit]]
name = "cpu"
kind = "cpu"
dtypes = ["float32", "int8"]
int8_dot = false
channel_multiple = 4
vector_bits = 128
vector_registers = 32
threads = 3
tvm = { kind = "llvm", mtriple = "aarch64-linux-gnu", mcpu = "cortex-a72" }
profile = "arm/ncnn"

[unit.quantization]
weights = { dtype = "int8", granularity = "per-channel", symmetric = true }
activations = { dtype = "uint8", granularity = "per-tensor", symmetric = false }

[[unit.cluster]]
name = "big"
core = "Cortex-A72"
count = 4
clock_ghz = 2.0
macs_per_cycle = { float32 = 4.0, int8 = 4.0 }
l1d_bytes = 32_768
l2_bytes = 1_048_576
l2_shared_by = 4
l2_bytes_per_cycle = 8.0
active_watts = 0.8
picojoule_per_mac = { float32 = 100.0, int8 = 60.0 }

[[mode]]
name = "full"
dram_gbps = 10.0
unit.cpu.big = { count = 4, clock_ghz = 2.0 }

[[mode]]
name = "slow"
dram_gbps = 5.0
unit.cpu.big = { count = 2, clock_ghz = 1.0 }
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "board.toml"
    path.write_text(BOARD)
    return path


def test_every_shipped_target_loads_with_every_unit_and_mode() -> None:
    assert {"jetson-xavier", "qcs605", "x86"} <= set(target.names())
    for name in target.names():
        default = target.load(name)
        for unit in default.units:
            for mode in default.modes or [None]:
                spec = f"{name}:{unit.name}" + (f"@{mode}" if mode else "")
                assert target.load(spec).spec == spec


@pytest.mark.parametrize("name", ["qcs605", "jetson-xavier"])
def test_a_chip_without_the_dot_product_says_so_to_llvm(name: str) -> None:
    unit = target.load(name).unit
    assert unit.kind == "cpu"
    assert not unit.int8_dot
    assert unit.tvm["mattr"] == ["-dotprod", "+fullfp16"]


def test_every_figure_of_a_shipped_target_says_where_it_is_from() -> None:
    for file in sorted(SHIPPED.glob("*.toml")):
        if file.name == efficiency.FILE:  # which a program writes, and says so on top
            continue
        units, _, _ = file.read_text().partition("# --- Power modes")  # whose one source stands above them
        for paragraph in units.split("\n\n"):
            commented = False  # a comment covers the figures that follow it in its paragraph
            for line in paragraph.splitlines():
                commented = commented or "#" in line
                assert commented or not re.match(r"[\w.]+ = (\{ \w+ = )?\d", line), f"{file.name}: {line}"


def test_a_file_is_given_by_its_path(board: Path) -> None:
    loaded = target.load(f"{board}:cpu")
    assert (loaded.name, loaded.unit.name, loaded.mode) == ("board", "cpu", "full")
    assert loaded.unit.l2_bytes == 262_144  # a quarter of what four cores share
    assert loaded.unit.architecture == "aarch64"


@pytest.mark.parametrize("name", target.names())
def test_a_copy_of_a_shipped_file_is_a_board_of_ones_own(name: str, tmp_path: Path) -> None:
    board = tmp_path / "my-board.toml"
    board.write_text(toml.read(SHIPPED / f"{name}.toml"))
    mine, shipped = target.load(str(board)), target.load(name)
    assert mine.name == "my-board"
    assert mine.model_copy(update={"name": name, "given": ""}) == shipped


def test_a_mode_sets_cores_clocks_memory_and_energy(board: Path) -> None:
    slow = target.load(f"{board}@slow")
    (cluster,) = slow.unit.clusters
    assert (cluster.count, cluster.clock_ghz, slow.dram.gbps) == (2, 1.0, 5.0)
    assert slow.unit.threads == 2  # of three by default, two are left
    assert cluster.picojoule_per_mac == {"float32": 25.0, "int8": 15.0}  # half the clock, a quarter of the energy
    assert cluster.active_watts == pytest.approx(0.1)  # and half as often


def test_xavier_10w_has_two_cores_and_half_the_gpu() -> None:
    low = target.load("jetson-xavier:gpu@10W")
    cpu, gpu = low.units
    assert (cpu.cores, cpu.clusters[0].clock_ghz) == (2, 1.2)
    assert (gpu.cores, gpu.clusters[0].clock_ghz) == (4, 0.52)
    assert low.unit == gpu


def test_a_host_target_can_overrule_what_is_detected(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text((SHIPPED / "x86.toml").read_text().replace("profile", "channel_multiple = 8\nprofile"))
    assert target.load(str(mine)).unit.channel_multiple == 8
    assert target.load(str(mine)).unit.clusters == target.load("x86").unit.clusters


@pytest.mark.parametrize("selected", ["", ":cpu", "@slow", ":cpu@slow"])
def test_a_spec_selects_a_board_of_ones_own_again(board: Path, selected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(board.parent)
    for given in (str(board), "./board.toml", "board.toml"):
        loaded = target.load(given + selected)
        assert loaded.spec == f"{given}:cpu@{'slow' if 'slow' in selected else 'full'}"
        assert target.load(loaded.spec) == loaded
        assert loaded.label == loaded.spec.replace(given, "board")


def test_where_a_board_is_does_not_show_in_what_is_kept_of_it(board: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    board.rename(elsewhere / "board.toml")
    moved = target.load(str(elsewhere / "board.toml"))
    assert str(tmp_path) not in moved.model_dump_json()


def test_a_unit_without_code_generation_is_refused_with_a_way_out(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text((SHIPPED / "qcs605.toml").read_text().replace("hexagon-unknown-elf", "tensilica-unknown-elf"))
    with pytest.raises(NncError) as caught:
        target.load(f"{other}:dsp").require_lowerable()
    assert caught.value.message == "other: no code can be generated for its dsp yet"
    assert caught.value.hint == f"use --no-lower, or --target {other}:cpu"
    target.load("qcs605").require_lowerable()
    target.load("qcs605:dsp").require_lowerable()


SPECS = [
    ("x87", "no target 'x87'", "did you mean 'x86'?"),
    ("zzz", "no target 'zzz'", "a file of your own is given by its path, such as ./my-board.toml"),
    ("qcs605:cpuu", "qcs605 has no unit 'cpuu'", "did you mean 'cpu'?"),
    ("qcs605:npx", "qcs605 has no unit 'npx'", "it has cpu, dsp, gpu"),
    ("qcs605@15W", "qcs605 has no mode '15W'", "leave out '@15W'"),
    ("jetson-xavier@31W", "jetson-xavier has no mode '31W'", "did you mean '30W'?"),
    ("qcs605:", "'qcs605:' is not a target", "write name, name:unit or name:unit@mode, such as qcs605:cpu"),
    ("", "'' is not a target", "write name, name:unit or name:unit@mode, such as qcs605:cpu"),
    ("./absent.toml", "absent.toml: no such file or directory", None),
]


@pytest.mark.parametrize(("spec", "message", "hint"), SPECS)
def test_wrong_spec(spec: str, message: str, hint: str | None) -> None:
    with pytest.raises(NncError) as caught:
        target.load(spec)
    assert (caught.value.message, caught.value.hint) == (message, hint)


# What is replaced in BOARD, by what, and what is said.
FILES = [
    ("[dram]", "[dram", "not valid TOML: expected ']' at the end of a table declaration (at line 5, column 6)"),
    ("[[unit.cluster]]", "[unit.cluster]", "unit 1 (cpu): 'cluster' must be an array, not a table"),
    (
        "[dram]\ngbps = 10.0\nefficiency = 0.5\npicojoule_per_byte = 50.0\n",
        "dram = 3\n",
        "'dram' must be a table, not 3",
    ),
    ("idle_watts", "idle_wats", "unknown key 'idle_wats'"),
    (
        "idle_watts = 1.0",
        "idle_watts = -1.0",
        "'idle_watts' must be greater than or equal to 0.000001, not -1.0",
    ),
    ('description = "a board"', "description = 3", "'description' must be a string, not 3"),
    ("gbps = 10.0\n", "\n", "dram: 'gbps' is missing"),
    ("gbps = 10.0", "gbps = '10'", "dram: 'gbps' must be a number, not the string '10'"),
    ("efficiency = 0.5", "efficiency = 50", "dram: 'efficiency' must be less than or equal to 1, not 50"),
    ('kind = "cpu"', 'kind = "npu"', "unit 1 (cpu): 'kind' must be 'cpu', 'gpu' or 'dsp', not the string 'npu'"),
    ('name = "cpu"\n', "", "unit 1: 'name' is missing"),
    ('name = "cpu"', 'name = "a b"', r"unit 1 (a b): 'name' must match"),
    (
        'dtypes = ["float32", "int8"]',
        'dtypes = ["float33"]',
        "unit 1 (cpu): dtypes 1 must be 'float32', 'float16' or 'int8', not the string 'float33'",
    ),
    (
        'dtypes = ["float32", "int8"]',
        "dtypes = []",
        "unit 1 (cpu): 'dtypes' must have at least 1 item, not an empty array",
    ),
    (
        'dtypes = ["float32", "int8"]',
        'dtypes = ["float32"]',
        "unit 1 (cpu): cluster 'big': macs_per_cycle has float32, int8, but dtypes has float32",
    ),
    (
        "macs_per_cycle = { float32 = 4.0, int8 = 4.0 }",
        "macs_per_cycle = { float32 = 4.0 }",
        "unit 1 (cpu): cluster 'big': macs_per_cycle has float32, but dtypes has float32, int8",
    ),
    (
        "macs_per_cycle = { float32 = 4.0, int8 = 4.0 }",
        "macs_per_cycle = { float32 = 4.0, fp16 = 4.0 }",
        "unit 1 (cpu): cluster 1 (big): macs_per_cycle: 'fp16' must be 'float32', 'float16' or 'int8'",
    ),
    (
        "picojoule_per_mac = { float32 = 100.0, int8 = 60.0 }",
        "picojoule_per_mac = { float32 = 100.0 }",
        "unit 1 (cpu): cluster 'big': picojoule_per_mac has float32, but dtypes has float32, int8",
    ),
    (
        'dtypes = ["float32", "int8"]',
        'dtypes = ["float32", "int8", "int8"]',
        "unit 1 (cpu): two dtypes are called 'int8'",
    ),
    ("count = 4\nclock", "count = 0\nclock", "unit 1 (cpu): cluster 1 (big): 'count' must be greater than 0, not 0"),
    ("count = 4\nclock", "count = 1.5\nclock", "unit 1 (cpu): cluster 1 (big): 'count' must be an integer, not 1.5"),
    (
        "count = 4\nclock",
        "count = 1_000_000_000_000\nclock",
        "unit 1 (cpu): cluster 1 (big): 'count' must be less than or equal to 4096, not 1000000000000",
    ),
    (
        "count = 4\nclock",
        f"count = {'9' * 4000}\nclock",
        "unit 1 (cpu): cluster 1 (big): 'count' must be less than or equal to 4096, not a number of ",
    ),
    (
        "clock_ghz = 2.0\nmacs",
        "clock_ghz = 2500\nmacs",
        "unit 1 (cpu): cluster 1 (big): 'clock_ghz' must be less than or equal to 20, not 2500",
    ),
    (
        "clock_ghz = 2.0\nmacs",
        "clock_ghz = 1e-300\nmacs",
        "unit 1 (cpu): cluster 1 (big): 'clock_ghz' must be greater than or equal to 0.001, not 1e-300",
    ),
    (
        "{ count = 2, clock_ghz = 1.0 }",
        "{ count = 2, clock_ghz = 1000 }",
        "mode 2 (slow): unit: cpu: big: 'clock_ghz' must be less than or equal to 20, not 1000",
    ),
    (
        "macs_per_cycle = { float32 = 4.0,",
        "macs_per_cycle = { float32 = 1e-300,",
        "unit 1 (cpu): cluster 1 (big): macs_per_cycle: 'float32' must be greater than or equal to 0.000001, not ",
    ),
    (
        "vector_bits = 128",
        "vector_bits = 16",
        "unit 1 (cpu): 'vector_bits' must be greater than or equal to 32, not 16",
    ),
    ("vector_bits = 128", "vector_bits = 96", "unit 1 (cpu): 'vector_bits' must be a power of two, not 96"),
    (
        "vector_bits = 128",
        "vector_bits = 65536",
        "unit 1 (cpu): 'vector_bits' must be less than or equal to 4096, not 65536",
    ),
    (
        "vector_registers = 32",
        "vector_registers = 1_000_000_000",
        "unit 1 (cpu): 'vector_registers' must be less than or equal to 4096, not 1000000000",
    ),
    (
        "channel_multiple = 4",
        "channel_multiple = 1_000_000",
        "unit 1 (cpu): 'channel_multiple' must be less than or equal to 4096, not 1000000",
    ),
    ("clock_ghz = 2.0\nmacs", "macs", "unit 1 (cpu): cluster 1 (big): 'clock_ghz' is missing"),
    ("l2_bytes = ", "# ", "unit 1 (cpu): cluster 1 (big): 'l2_bytes' is missing"),
    ("l2_bytes = ", "l2_byts = ", "unit 1 (cpu): cluster 1 (big): unknown key 'l2_byts'"),
    (
        "clock_ghz = 2.0",
        "clock_ghz = inf",
        "unit 1 (cpu): cluster 1 (big): 'clock_ghz' must be a finite number, not inf",
    ),
    ("l2_bytes = ", "l2_kib = 1\nl2_bytes = ", "unit 1 (cpu): cluster 1 (big): unknown key 'l2_kib'"),
    ("threads = 3", "threads = 5", "unit 1 (cpu): 'threads' is 5, but there are 4 cores"),
    ("threads = 3", "threads = true", "unit 1 (cpu): 'threads' must be an integer, not true"),
    ('tvm = { kind = "llvm",', "tvm = {", "unit 1 (cpu): 'tvm' needs a 'kind', such as \"llvm\""),
    ('kind = "llvm"', 'kind = "cuda"', "unit 1 (cpu): 'tvm' of a cpu must be of kind 'llvm', not 'cuda'"),
    ('mtriple = "aarch64-linux-gnu"', "mtriple = 64", "unit 1 (cpu): 'tvm' needs an 'mtriple'"),
    ('mtriple = "aarch64-linux-gnu"', 'mtriple = ""', "unit 1 (cpu): 'tvm' needs an 'mtriple'"),
    ('mtriple = "aarch64-linux-gnu"', 'mtriple = "aarch64-linux-gnu "', "unit 1 (cpu): 'tvm' needs an 'mtriple'"),
    ('mcpu = "cortex-a72"', "mcpu = 72", "unit 1 (cpu): 'mcpu' of 'tvm' must be a string"),
    ('mcpu = "cortex-a72"', 'mattr = "+sve"', "unit 1 (cpu): 'mattr' of 'tvm' must be an array of strings"),
    ('mcpu = "cortex-a72"', 'host = "llvm"', "unit 1 (cpu): 'tvm' needs a table 'host', such as { kind = \"llvm\", "),
    ('mcpu = "cortex-a72"', 'host = { kind = "llvm" }', "unit 1 (cpu): 'host' needs an 'mtriple'"),
    (
        'mcpu = "cortex-a72"',
        'host = { kind = "llvm", mtriple = "aarch64-linux-gnu", mcpu = 72 }',
        "unit 1 (cpu): 'mcpu' of 'host' must be a string",
    ),
    ("symmetric = true", "symmetric = 1", "unit 1 (cpu): quantization: weights: 'symmetric' must be a boolean, not 1"),
    ("threads = 3", "threads = 3\nl3_bytes = 1024", "unit 1 (cpu): 'l3_bytes' needs 'l3_gbps'"),
    ('profile = "arm/ncnn"', "", "unit 1 (cpu): it needs a 'profile', such as \"arm/ncnn\", or "),
    ('profile = "arm/ncnn"', 'profile = "arm/nccn"', "unit 1 (cpu): no profile 'arm/nccn': did you mean 'arm/ncnn'?"),
    (
        'profile = "arm/ncnn"',
        'profile = "arm/ncnn"\nefficiency = 3',
        "unit 1 (cpu): 'efficiency' must be a table, not 3",
    ),
    ('profile = "arm/ncnn"', "profile = 3", "unit 1 (cpu): 'profile' must be a string, not 3"),
    (
        'profile = "arm/ncnn"',
        'profile = "arm/ncnn"\nefficiency.float32 = { conv = 0.8 }',
        "unit 1 (cpu): efficiency: float32: 'winograd' is missing",
    ),
    (
        'profile = "arm/ncnn"',
        'profile = "arm/ncnn"\nefficiency.float16 = { conv = 0.8 }',
        "unit 1 (cpu): efficiency: float16: 'winograd' is missing",
    ),
    ('name = "slow"', 'name = "full"', "two modes are called 'full'"),
    (
        "unit.cpu.big = { count = 2",
        "unit.cpu.bigg = { count = 2",
        "mode 'slow' names a cluster that is not there: 'cpu.bigg'",
    ),
    (
        "unit.cpu.big = { count = 2",
        "unit.cpu.big = { count = 6",
        "mode 'slow' runs 6 cores of cluster 'big', which has 4",
    ),
    (
        "unit.cpu.big = { count = 2, clock_ghz = 1.0 }",
        "unit.cpu.big = { count = 2 }",
        "mode 2 (slow): unit: cpu: big: 'clock_ghz' is missing",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), FILES, ids=[row[2][:60] for row in FILES])
def test_wrong_file(board: Path, old: str, new: str, message: str) -> None:
    assert BOARD.count(old) >= 1
    board.write_text(BOARD.replace(old, new, 1))
    with pytest.raises(NncError) as caught:
        target.load(str(board))
    assert caught.value.message.startswith(f"{board}: {message}")
    assert "\n" not in caught.value.message


Path_ = tuple[str | int, ...]


def figures(content: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Where the numbers of a target file are; those in a table for TVM are TVM's to check."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            if key != "tvm":
                yield from figures(value, (*path, key))
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield path


def changed(table: dict[str, Any], path: Path_, value: object) -> str:
    """The file with another value at `path`; None takes the key out."""
    table = copy.deepcopy(table)
    inner: Any = table
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return "\n".join(f"{key} = {toml.value(content)}" for key, content in table.items() if content is not None)


@pytest.mark.parametrize("name", target.names())
def test_every_figure_is_checked(name: str) -> None:
    table = toml.parse(toml.read(SHIPPED / f"{name}.toml"), name)
    found = list(figures(table))
    assert found
    for path in found:
        for value in (-1.0, "12"):
            with pytest.raises(NncError, match=rf"^board: .*'{path[-1]}' must be .*, not (-1.0|the string '12')$"):
                chip.parse(changed(table, path, value), "board")
    told = [error for path in found if (error := refusal(changed(table, path, None)))]  # others have a default
    assert len(told) > len(found) / 2
    assert all(re.match(r"board: .*( is missing| needs 'l3_gbps'|, but dtypes has .*)$", error) for error in told)


def refusal(text: str) -> str | None:
    try:
        chip.parse(text, "board")
    except NncError as error:
        return error.message
    return None


@pytest.mark.parametrize(("right", "wrong"), [("l2_shared_by", "l2_share_by"), ("unit", "units")])
def test_a_misspelt_key_is_named_with_the_right_one(board: Path, right: str, wrong: str) -> None:
    board.write_text(BOARD.replace(f"\n{right}", f"\n{wrong}"))
    with pytest.raises(NncError) as caught:
        target.load(str(board))
    assert caught.value.message.endswith(f"unknown key '{wrong}'")
    assert caught.value.hint == f"did you mean '{right}'?"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"unit = 3", b"detect = 'host'\nunit = [3]"])
def test_a_file_that_is_no_target(board: Path, content: bytes) -> None:
    board.write_bytes(content)
    with pytest.raises(NncError, match=re.escape(str(board))):
        target.load(str(board))


def test_reading_targets_imports_neither_tvm_nor_torch() -> None:
    code = (
        "import sys; from nnc import target; target.load('x86'); assert not {'tvm', 'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("selected", "unit", "mode"), [("", "cpu", "full"), (":cpu", "cpu", "full"), ("@slow", "cpu", "slow")]
)
def test_a_board_may_lie_below_any_folder(board: Path, selected: str, unit: str, mode: str) -> None:
    place = board.parent / "me@corp.com"
    place.mkdir()
    loaded = target.load(f"{board.rename(place / 'board.toml')}{selected}")
    assert (loaded.name, loaded.unit.name, loaded.mode) == ("board", unit, mode)
    assert target.load(loaded.spec) == loaded
