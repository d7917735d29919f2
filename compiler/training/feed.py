"""Training samples, in batches of torch tensors: shuffled and varied by seed and epoch, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from nnc.data import Dataset
from nnc.errors import NncError
from nnc.training.options import Augment

Arrays = dict[str, np.ndarray]
Batch = tuple[dict[str, torch.Tensor], torch.Tensor | None]

#: Bytes of decoded samples that are held; of more, each epoch decodes them anew.
_MOST_BYTES = 2 << 30


@dataclass(frozen=True)
class Feed:
    """A dataset as batches of inputs by name, float32 [n, ...], and labels int64 [n] where it has them."""

    data: Dataset
    batch: int
    augment: Augment
    seed: int
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.data) / self.batch)

    def epoch(self, number: int) -> Iterator[Batch]:
        """All samples in a random order, images varied: the same for the same number. Batches are equal within one."""
        rng = np.random.default_rng([self.seed, number])
        for chosen in np.array_split(rng.permutation(len(self.data)), self.steps):
            yield self._batch(chosen, rng)

    def plain(self) -> Iterator[Batch]:
        """All samples as they are, in the order of the data."""
        for chosen in np.array_split(np.arange(len(self.data)), self.steps):
            yield self._batch(chosen, None)

    def _batch(self, chosen: np.ndarray, rng: np.random.Generator | None) -> Batch:
        images = self.data.images
        if images is None:
            arrays = self._arrays(chosen)
        else:
            pixels = self._pixels(chosen)
            arrays = images.prepared(pixels if rng is None else varied(pixels, self.augment, rng))
        labels = self.data.labels
        inputs = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
        return inputs, None if labels is None else torch.from_numpy(labels[chosen])

    def _pixels(self, chosen: np.ndarray) -> np.ndarray:
        if self._decoded is not None:
            return self._decoded[chosen]
        images = self.data.images
        assert images is not None
        return np.stack(list(images.pixels(self.data.indices[chosen].tolist())))

    @cached_property
    def _decoded(self) -> np.ndarray | None:
        """uint8 [samples, height, width, channels] of all images, where they fit into memory."""
        images = self.data.images
        assert images is not None
        shape = (len(self.data), *images.pixel_shape)
        if math.prod(shape) > _MOST_BYTES:
            return None
        decoded = np.empty(shape, np.uint8)
        for done, pixels in enumerate(images.pixels(self.data.indices.tolist())):
            decoded[done] = pixels
            self.progress(done, len(decoded))
        self.progress(len(decoded), len(decoded))
        return decoded

    def _arrays(self, chosen: np.ndarray) -> Arrays:
        return {name: values[chosen] for name, values in self._whole.items()}

    @cached_property
    def _whole(self) -> Arrays:
        return next(self.data.batches(len(self.data)))

    def check_labels(self, classes: int) -> None:
        """Raises NncError for a label that is not one of the classes."""
        labels = self.data.labels
        if labels is not None and labels.max() >= classes:
            raise NncError(
                f"{self.data.path}: label {labels.max()} is out of range: the model has {classes} classes",
                "leave the labels out and give 'distill' to learn from a teacher alone",
            )


def varied(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Images uint8 [n, height, width, channels]: each moved by up to `crop` pixels over black, half mirrored."""
    count, height, width, _ = pixels.shape
    if augment.flip:
        mirrored = np.less(rng.random(count), 0.5)
        pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
    if not augment.crop:
        return pixels
    border = augment.crop
    padded = np.pad(pixels, ((0, 0), (border, border), (border, border), (0, 0)))
    top, left = rng.integers(0, 2 * border + 1, (2, count))
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
