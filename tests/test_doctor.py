"""What is found, which versions count, and what it costs to look."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnc import doctor


def named(name: str) -> doctor.Check:
    return next(check for check in doctor.checks() if check.name == name)


def test_names_are_distinct_and_what_is_missing_has_a_hint() -> None:
    found = doctor.checks()
    assert len({check.name for check in found}) == len(found)
    assert all((check.hint is None) == check.found and check.needed_for for check in found)


def test_an_installed_package_has_its_version() -> None:
    check = named("onnxruntime")
    assert check.found
    assert check.version == importlib.metadata.version("onnxruntime")


def test_a_version_that_crashes_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.1.15.post2")
    check = named("apache-tvm-ffi")
    assert (check.found, check.version) == (False, "0.1.15.post2")
    assert check.hint == "pip install apache-tvm-ffi==0.1.14.post1"
    assert named("ziglang").found


def test_programs_are_looked_up_in_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: sys.executable if name == "clang" else None)
    assert named("cc").version == sys.version.split()[0]
    missing = named("qemu-aarch64")
    assert (missing.found, missing.version, missing.hint) == (False, None, "apt install qemu-user")


def test_the_cpp_library_is_looked_for_where_the_emulator_takes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor.host, "_AARCH64_ROOTS", ())
    monkeypatch.setenv("QEMU_LD_PREFIX", str(tmp_path))
    assert not named("AArch64 C++ library").found
    (tmp_path / "usr/lib64").mkdir(parents=True)
    (tmp_path / "usr/lib64/libstdc++.so.6.0.33").touch()
    (tmp_path / "usr/lib64/libstdc++.so.6").symlink_to("libstdc++.so.6.0.33")
    assert named("AArch64 C++ library").version == "6.0.33"
    assert next(doctor.host.aarch64_roots())[0] == tmp_path


def test_pins_are_those_of_the_package() -> None:
    required = importlib.metadata.requires("nnc") or []
    for name, _, pin in doctor._PACKAGES:
        if pin is not None:
            assert f"{name}=={pin}" in required


def test_looking_imports_nothing_heavy() -> None:
    code = "import sys; from nnc import doctor; doctor.checks(); assert not {'tvm', 'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_extras_bring_is_looked_for() -> None:
    """All but what developers and benchmarks take."""
    names = {check.name for check in doctor.checks()}
    for requirement in importlib.metadata.requires("nnc") or []:
        if extra := re.search(r"extra == ['\"](\w+)['\"]", requirement):
            (package,) = re.findall(r"^[\w-]+", requirement)
            assert package in names or extra[1] in ("dev", "bench"), requirement
    assert names >= {"llvm-mca", "llvm-mc", "qemu-aarch64", "qemu-x86_64"}


def test_what_runs_emulated_libraries_is_there_or_pip_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert named("AArch64 TVM runtime").found == (importlib.util.find_spec("pip") is not None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    missing = named("AArch64 TVM runtime")
    assert (missing.found, missing.hint) == (False, "python -m ensurepip")
    (tmp_path / "nnc" / "aarch64-key").mkdir(parents=True)
    (tmp_path / "nnc" / "aarch64-key" / "libtvm_runtime.so").touch()
    assert named("AArch64 TVM runtime").found
