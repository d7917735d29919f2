"""Fixtures of all tests: the shared data folder, and small models."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images and pretrained networks; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("NNC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no data folder {folder} (set NNC_DATA)")
    return folder
