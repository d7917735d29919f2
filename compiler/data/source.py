"""What data are read from, whatever it is."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np


class Source(Protocol):
    """Samples: per graph input one array without the batch dimension."""

    def __len__(self) -> int: ...

    def samples(self, indices: Iterable[int]) -> Iterator[dict[str, np.ndarray]]: ...
