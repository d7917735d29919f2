"""Reading an x86 machine from /proc and /sys."""

from pathlib import Path

import pytest

from nnc import target
from nnc.hardware import host

AVX2 = "avx avx2 fma bmi1 bmi2 f16c abm movbe"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"


def machine(root: Path, flags: str, **files: str) -> dict:
    """The figures of a machine with these CPU flags and files under /sys."""
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(f"model name\t: Test CPU\ncpu MHz\t\t: 2300.000\nflags\t\t: {flags}\n")
    for name, text in files.items():
        path = root / "sys" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return host.figures(root / "proc", root / "sys")


@pytest.mark.parametrize(
    ("flags", "mcpu", "mattr", "bits", "registers", "dot"),
    [
        ("sse4_2", "x86-64-v2", [], 128, 16, False),
        (AVX2, "x86-64-v3", [], 256, 16, False),
        (f"{AVX2} avx_vnni", "x86-64-v3", ["+avxvnni"], 256, 16, True),
        (AVX512, "x86-64-v4", [], 512, 32, False),
        (f"{AVX512} avx512_vnni", "x86-64-v4", ["+avx512vnni"], 512, 32, True),
        # A virtual machine that masks a part of AVX-512 gets code without it.
        (f"{AVX2} avx512f avx512cd", "x86-64-v3", [], 256, 16, False),
        # And code without what a level has beside its vectors, where that is masked.
        (AVX2.replace("movbe", ""), "x86-64-v2", [], 128, 16, False),
        (AVX512.replace("abm", ""), "x86-64-v2", [], 128, 16, False),
    ],
)
def test_flags_decide_the_code(
    tmp_path: Path, flags: str, mcpu: str, mattr: list[str], bits: int, registers: int, dot: bool
) -> None:
    figures = machine(tmp_path, flags)
    assert (figures["tvm"]["mcpu"], figures["tvm"]["mattr"]) == (mcpu, mattr)
    assert (figures["vector_bits"], figures["vector_registers"], figures["int8_dot"]) == (bits, registers, dot)


def test_caches_and_clock(tmp_path: Path) -> None:
    cache = "devices__system__cpu__cpu0__cache__"
    levels = {"0": ("1", "Data", "48K"), "1": ("1", "Instruction", "32K"), "2": ("2", "Unified", "2048K")}
    files = {}
    for index, (level, kind, size) in levels.items():
        folder = f"{cache}index{index}"
        files |= {f"{folder}__level": level, f"{folder}__type": kind, f"{folder}__size": size}
    figures = machine(tmp_path, AVX512, **files)
    (cluster,) = figures["cluster"]
    assert (cluster["l1d_bytes"], cluster["l2_bytes"], figures["l3_bytes"]) == (48 * 1024, 2048 * 1024, 0)
    assert (cluster["clock_ghz"], cluster["core"]) == (2.3, "Test CPU")


def test_threads_of_one_core_count_once_and_a_quota_limits_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4, 5})
    pairs = {0: "0,3", 3: "0,3", 1: "1,4", 4: "1,4", 2: "2,5", 5: "2,5"}
    files = {f"devices__system__cpu__cpu{cpu}__topology__thread_siblings_list": pair for cpu, pair in pairs.items()}
    assert machine(tmp_path, AVX512, **files)["threads"] == 3
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    assert host.figures(tmp_path / "proc", tmp_path / "sys")["threads"] == 2


def test_a_machine_that_tells_nothing_is_an_avx2_desktop(tmp_path: Path) -> None:
    figures = host.figures(tmp_path / "proc", tmp_path / "sys")
    assert figures["tvm"]["mcpu"] == "x86-64-v3"
    assert figures["cluster"][0]["l2_bytes"] > figures["cluster"][0]["l1d_bytes"] > 0


def test_x86_is_this_machine() -> None:
    unit = target.load("x86").unit
    assert unit.threads == unit.cores >= 1
    assert unit.channel_multiple * 32 == unit.vector_bits
