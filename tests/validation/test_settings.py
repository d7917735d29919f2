"""The machine of a measured row: of a target, of core types, or a reason why not."""

import dataclasses
import re
from pathlib import Path

import pytest

from nnc import target, toml
from nnc.simulation import cores
from nnc.validation.settings import Setting, known_targets, setting
from nnc.validation.table import Row

ROW = Row(2, "some-chip", "cpu", "4", "Cortex-A76", "2.4", "ncnn", "fp32", "resnet18", "1x3x224x224", 10.0)


def of(**changes: str) -> Setting | str:
    return setting(dataclasses.replace(ROW, **changes), known_targets())  # type: ignore[arg-type]


def found(**changes: str) -> Setting:
    place = of(**changes)
    assert isinstance(place, Setting), place
    return place


def test_a_chip_that_nobody_describes_has_the_figures_of_its_cores() -> None:
    place = found()
    core = cores.find("cpu", "Cortex-A76")
    assert core is not None
    assert (place.family, place.dtype) == ("arm", "float32")
    assert place.machine.threads == 4
    assert place.machine.macs_per_second == core.macs_per_cycle["float32"] * 2.4e9
    assert place.machine.dram_bytes_per_second == core.dram_gbps * 1e9


@pytest.mark.parametrize(
    ("core_type", "name"),
    [
        ("Cortex-A78AE", "Cortex-A78"),
        ("Cortex-A75 (Kryo 385 Gold)", "Cortex-A75"),
        ("Kryo (4xKryo, 2 big)", "Kryo"),
        ("Kryo 485 Gold", "Cortex-A76"),
        ("Kryo 385 Silver", "Cortex-A55"),
        ("Emerald Rapids AVX-512", "AVX-512, Emerald Rapids"),
        ("Skylake-SP AVX-512", "AVX-512, Skylake-SP"),
        ("Zen2 AVX2", "AVX2"),
        ("Airmont SSE4.2", "Airmont"),
    ],
)
def test_core_types_by_what_tables_call_them(core_type: str, name: str) -> None:
    core = cores.find("cpu", core_type)
    assert core is not None
    assert core.name == name


@pytest.mark.parametrize("core_type", ["Cortex-A730", "Cortex-A7", "Cortex-X10", "SiFive U74", ""])
def test_unknown_cores_are_not_taken_for_known_ones(core_type: str) -> None:
    assert of(core_type=core_type) == f"no core type is known for the cpu '{core_type}'"


def test_clusters_of_unequal_cores_wait_for_the_slower() -> None:
    eight = found(core_type="4xA73+4xA53 (some phone)", cores_used="8", clock_ghz="2.2+1.8")
    four = found(core_type="4xA73+4xA53 (some phone)", cores_used="4", clock_ghz="2.2+1.8")
    assert (eight.machine.threads, four.machine.threads) == (8, 4)
    assert four.machine.macs_per_second == pytest.approx(4 * 2.2e9)
    assert eight.machine.macs_per_second == pytest.approx(4 * 1.8e9)


@pytest.mark.parametrize(
    ("core_type", "count"),
    [("4xA73+4xA53", 8), ("Kryo 260 (4xA73+4xA53)", 8), ("1xA77+3xA77+4xA55", 8), ("4xCortex-A76", 4)],
)
def test_a_row_that_counts_its_cores_has_no_more(core_type: str, count: int) -> None:
    assert found(core_type=core_type, cores_used=str(count)).machine.threads == count
    more = str(count + 1)
    assert of(core_type=core_type, cores_used=more) == f"cores_used is '{more}', of {count} cores"


def test_every_cluster_has_its_own_clock() -> None:
    gold, prime = {"cores_used": "4"}, {"cores_used": "1"}
    for core_type, clock_ghz in (("1xA77+3xA77+4xA55", "2.8+2.4+1.8"), ("4xA55+3xA77+1xA77", "1.8+2.4+2.8")):
        taken = {"core_type": core_type, "clock_ghz": clock_ghz}
        assert found(**taken, **prime).machine.macs_per_second == pytest.approx(8 * 2.8e9)
        assert found(**taken, **gold).machine.macs_per_second == pytest.approx(8 * 2.4e9)
        eight = found(**taken, cores_used="8").machine
        assert (eight.threads, eight.macs_per_second) == (8, pytest.approx(4 * 1.8e9))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cores_used": "?"}, "cores_used is '?'"),
        ({"clock_ghz": ""}, "clock_ghz is ''"),
        ({"clock_ghz": "0"}, "clock_ghz is '0'"),
        ({"cores_used": "0"}, "cores_used is '0'"),
        ({"clock_ghz": "2.84+3x2.4"}, "clock_ghz is '2.84+3x2.4'"),
        ({"core_type": "1xX1+3xA78+A55"}, "'1xX1+3xA78+A55' does not say which cores took part"),
        ({"core_type": "Cortex-A72+A53"}, "'Cortex-A72+A53' does not say which cores took part"),
        ({"core_type": "Denver2|Cortex-A57"}, "'Denver2|Cortex-A57' does not say which cores took part"),
        ({"dtype": "fp16|fp32"}, "'fp16|fp32' is not one type of arithmetic"),
        ({"unit": "gpu", "core_type": "PowerVR"}, "no core type is known for the gpu 'PowerVR'"),
        ({"unit": "dsp", "core_type": "Hexagon 690"}, "Hexagon HVX context does not compute in float32"),
    ],
)
def test_why_a_row_has_no_machine(changes: dict[str, str], reason: str) -> None:
    assert of(**changes) == reason


def test_a_target_that_knows_the_chip_gives_its_figures_and_the_row_its_clock_and_cores() -> None:
    place = found(chip="rpi4", core_type="Cortex-A72", clock_ghz="1.8", cores_used="2")
    board = target.load("raspberry-pi-4")
    assert place.machine.threads == 2
    assert place.machine.macs_per_second == pytest.approx(4 * 1.8e9)
    assert place.machine.dram_bytes_per_second == pytest.approx(board.dram.gbps * board.dram.efficiency * 1e9)


def test_the_row_says_which_cluster_of_a_target_took_part() -> None:
    gold = found(chip="sd845", core_type="Cortex-A75 (Kryo 385 Gold)", clock_ghz="2.8", cores_used="1")
    silver = found(chip="sd845", core_type="Cortex-A55", clock_ghz="1.77", cores_used="1")
    assert gold.machine.macs_per_second == pytest.approx(4 * 2.8e9)
    assert silver.machine.macs_per_second == pytest.approx(4 * 1.77e9)
    assert gold.machine.private_bytes == 2 * silver.machine.private_bytes


def test_mixed_cores_of_a_target() -> None:
    mixed = {"chip": "sd845", "core_type": "4xCortex-A75+4xCortex-A55"}
    four, eight = (found(**mixed, clock_ghz="2.6+1.5", cores_used=cores_used).machine for cores_used in ("4", "8"))
    assert (four.threads, four.macs_per_second) == (4, pytest.approx(4 * 2.6e9))
    assert (eight.threads, eight.macs_per_second) == (8, pytest.approx(4 * 1.5e9))  # the row's clock, not the target's
    spelled = found(**mixed | {"core_type": "4xGold+4xCortex-A55"}, clock_ghz="2.6+1.5", cores_used="4").machine
    assert spelled == four
    few = found(**mixed | {"core_type": "2xCortex-A75+4xCortex-A55"}, clock_ghz="2.6+1.5", cores_used="3").machine
    assert few.macs_per_second == pytest.approx(4 * 1.5e9)


@pytest.mark.parametrize(
    ("core_type", "cores_used", "count"), [("Cortex-A75", "5", 4), ("4xA75+4xA55", "9", 8), ("big.LITTLE", "9", 8)]
)
def test_a_target_has_no_more_cores_than_it_says(core_type: str, cores_used: str, count: int) -> None:
    assert (
        of(chip="sd845", core_type=core_type, cores_used=cores_used)
        == f"cores_used is '{cores_used}', of {count} cores"
    )


def test_a_gpu_takes_part_as_a_whole() -> None:
    place = found(unit="gpu", core_type="Volta iGPU sm_72 512 cores", chip="another", clock_ghz="1.377", dtype="fp16")
    assert (place.family, place.machine.threads) == ("nvidia", 8)
    assert place.machine.lanes == 8 * 512


@pytest.mark.parametrize(
    ("framework", "core_type", "clock_ghz", "lanes"),
    [
        ("PyTorch eager", "Maxwell iGPU 128 cores", "0.92", 128),  # no tensor cores: sums in float32 take its time
        ("TensorRT 5", "Maxwell iGPU 128 cores", "0.92", 256),
        ("PyTorch eager", "Volta iGPU", "1.377", 8 * 512),
    ],
)
def test_engines_that_sum_up_in_float32_gain_no_rate(
    framework: str, core_type: str, clock_ghz: str, lanes: int
) -> None:
    place = found(
        unit="gpu", framework=framework, core_type=core_type, clock_ghz=clock_ghz, chip="another", dtype="fp16"
    )
    assert (place.dtype, place.machine.lanes) == ("float16", lanes)


def test_a_gpu_that_says_nothing_of_float32_multiplies_at_the_rate_of_float16(tmp_path: Path) -> None:
    text = toml.read(Path(target.__file__).parents[1] / "targets/qcs605.toml")
    figures = r'(?s)(# --- Adreno.*?)"float32", (.*?)float32 = 256.0, (.*?)float32 = 10.0, '
    text = re.sub(figures, r"\1\2\3", text)
    (tmp_path / "board.toml").write_text(text)
    row = dataclasses.replace(ROW, chip="qcs605", unit="gpu", framework="PyTorch eager", dtype="fp16")
    place = setting(row, (target.load(str(tmp_path / "board.toml")),))
    assert isinstance(place, Setting), place
    assert (place.dtype, place.machine.lanes) == ("float16", 512)


def test_the_cpu_of_its_chip_is_the_host_of_a_gpu() -> None:
    described = found(chip="jetson-nano", unit="gpu", core_type="Maxwell", clock_ghz="0.9216", dtype="fp16")
    assert described.machine.host_ghz == target.load("jetson-nano").unit.clusters[0].clock_ghz
    listed = found(chip="another", unit="gpu", core_type="Adreno 630", clock_ghz="0.71", dtype="fp16")
    core = cores.find("gpu", "Adreno 630")
    assert core is not None
    assert listed.machine.host_ghz == core.host_ghz > 2.5
    assert found().machine.host_ghz == 2.4


def test_every_core_type_is_found_by_its_names_and_makes_a_machine() -> None:
    for core in cores.cores():
        for name in core.names:
            other = cores.find(core.kind, name)
            assert other is core, name
        for dtype in core.macs_per_cycle:
            count = core.count or 1
            assert cores.chip([(core, count, 1.0)], count, dtype).lanes == core.macs_per_cycle[dtype] * count
