"""Four published systems that train, as recipes of nnc: one table.

    python tests/bench/systems.py [prune_and_decompose low_rank gradual_quantized restructured] [--keep FOLDER]

Networks are trained here, on what this machine has; with --keep, those that are trained stay trained, and a table that
was interrupted goes on. Rows that need the sample data are left out, and said to be, where it is absent (NNC_DATA).
Exits with 1 when a figure is not reached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from gradual_quantized import gradual_quantized
from low_rank import low_rank
from prune_and_decompose import prune_and_decompose
from restructured import restructured
from table import Row, Workshop, main

#: One section per system; each is a module of this folder, called like it.
SECTIONS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "prune_and_decompose": prune_and_decompose,
    "low_rank": low_rank,
    "gradual_quantized": gradual_quantized,
    "restructured": restructured,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, Workshop))
