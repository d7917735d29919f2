"""Fixtures of the kernels' tests."""

from pathlib import Path

import pytest

from nnc.lowering.kernels.unit import Unit


@pytest.fixture
def runnable(cpu: Unit) -> None:
    """Skips where this machine can't run code for the parameter `cpu`."""
    feature = {128: "sse4_2", 256: "avx2", 512: "avx512f"}[cpu.vector_bits]
    if feature not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this machine has no {feature}")
