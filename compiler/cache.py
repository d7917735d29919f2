"""Where nnc keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """XDG_CACHE_HOME or ~/.cache, and nnc in it."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "nnc" if home else Path.home() / ".cache" / "nnc"
