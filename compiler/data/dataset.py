"""Samples for one model, read a batch at a time."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from nnc.data.folder import open_folder
from nnc.data.images import Images
from nnc.data.npz import open_npz
from nnc.data.preprocess import Preprocess
from nnc.data.source import Source
from nnc.errors import NncError


class Dataset:
    """Samples for one model, and their labels where the data has them.

    `labels` is int64 [len(self)], or None for data without labels, which is enough for calibration.
    """

    def __init__(
        self, path: Path, source: Source, labels: np.ndarray | None, indices: np.ndarray | None = None
    ) -> None:
        self.path = path
        self._source = source
        self._labels = labels
        self._indices = np.arange(len(source)) if indices is None else indices

    @classmethod
    def open(cls, path: Path, preprocess: Preprocess | None, inputs: Sequence[gs.Variable]) -> "Dataset":
        """The data at `path` for a graph with these inputs (`graph.inputs`: names, static shapes, dtypes).

        Images need a graph of one input, of rank 4. Raises NncError for whatever is wrong with the data that can be
        seen without decoding every image; a broken image is reported when `batches` gets to it.
        """
        preprocess = preprocess or Preprocess()
        if not path.exists():
            raise NncError(f"{path}: no such file or folder")
        source, labels = open_folder(path, preprocess, inputs) if path.is_dir() else open_npz(path, preprocess, inputs)
        if len(source) == 0:
            raise NncError(f"{path}: holds no samples")
        return cls(path, source, labels)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels[self._indices]

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Arrays [size, ...] by input name; the last batch may be smaller. One batch is in memory at a time."""
        samples = self._source.samples(self._indices.tolist())
        while batch := list(itertools.islice(samples, size)):
            yield {name: np.stack([sample[name] for sample in batch]) for name in batch[0]}

    def full_batches(self, size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """`batches`, all of them full, and how many samples each has: a smaller one is filled up with its samples."""
        for batch in self.batches(size):
            count = len(next(iter(batch.values())))
            yield {name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.items()}, count

    def samples(self, places: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The samples at these places of the dataset, one by one and without the batch dimension, by input name.

        Ascending places are read fastest.
        """
        return self._source.samples(self._indices[places].tolist())

    @property
    def images(self) -> Images | None:
        """The images as they are before normalization; None for arrays that are ready for the model."""
        return self._source if isinstance(self._source, Images) else None

    @property
    def indices(self) -> np.ndarray:
        """Which samples of the source these are, int64 [len(self)]."""
        return self._indices

    def split(self, seed: int, share: float) -> tuple["Dataset", "Dataset"]:
        """Two parts without a common sample, the second with this share of the samples, each at least 1."""
        count = min(max(1, round(share * len(self))), len(self) - 1)
        order = np.random.default_rng(seed).permutation(len(self))
        parts = (self._indices[np.sort(each)] for each in (order[count:], order[:count]))
        first, second = (Dataset(self.path, self._source, self._labels, each) for each in parts)
        return first, second

    def subset(self, seed: int, count: int) -> "Dataset":
        """`count` samples (all where there are fewer) drawn without replacement, in the order of the data."""
        if count < 1:
            raise NncError(f"{self.path}: a subset must have at least 1 sample, not {count}")
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return Dataset(self.path, self._source, self._labels, self._indices[np.sort(drawn)])
