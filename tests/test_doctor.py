"""What is found, which versions count, and what it costs to look."""

import importlib.metadata
import subprocess
import sys

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


def test_pins_are_those_of_the_package() -> None:
    required = importlib.metadata.requires("nnc") or []
    for name, _, pin in doctor._PACKAGES:
        if pin is not None:
            assert f"{name}=={pin}" in required


def test_looking_imports_nothing_heavy() -> None:
    code = "import sys; from nnc import doctor; doctor.checks(); assert not {'tvm', 'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
