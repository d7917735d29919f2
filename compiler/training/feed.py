"""Training samples, in batches of torch tensors: shuffled and varied by seed and epoch, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from nnc.data import Dataset
from nnc.training.options import Augment

Arrays = dict[str, np.ndarray]
Read = TypeVar("Read")

#: Bytes of samples that are held, of images decoded ones; more are read anew in each epoch.
_MOST_BYTES = 2 << 30


@dataclass(frozen=True)
class Batch:
    """Samples that are shown together."""

    inputs: dict[str, torch.Tensor]
    """By name, float32 [n, ...]."""
    labels: torch.Tensor | None
    """int64 [n]."""
    shares: torch.Tensor | None = None
    """float32 [n], at least a half, of blended images: what each has of its own. The rest is of the one that is as far
    from the end of the batch."""

    def to(self, device: torch.device) -> Batch:
        inputs = {
            name: x.to(device, memory_format=torch.channels_last if x.dim() == 4 else torch.preserve_format)
            for name, x in self.inputs.items()
        }
        return Batch(inputs, *(None if each is None else each.to(device) for each in (self.labels, self.shares)))


@dataclass(frozen=True)
class Feed:
    """A dataset as batches, with labels where it has them."""

    data: Dataset
    batch: int
    augment: Augment
    seed: int
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def steps(self) -> int:
        """Batches of an epoch: none of one sample alone, whose statistics BatchNormalization could not take."""
        return max(1, min(math.ceil(len(self.data) / self.batch), len(self.data) // 2))

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
        images, labels, shares = self.data.images, self.data.labels, None
        if images is None:
            arrays = self._arrays(chosen)
        elif rng is None:
            arrays = images.prepared(self._pixels(chosen))
        else:
            arrays = images.prepared(varied(self._pixels(chosen), self.augment, rng))
            shares = drawn(len(chosen), self.augment, rng)
            arrays = arrays if shares is None else {name: blended(each, shares) for name, each in arrays.items()}
        return Batch(
            {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()},
            None if labels is None else torch.from_numpy(labels[chosen]),
            None if shares is None else torch.from_numpy(shares),
        )

    def _pixels(self, chosen: np.ndarray) -> np.ndarray:
        if self._decoded is not None:
            return self._decoded[chosen]
        images = self.data.images
        assert images is not None
        return np.stack(ascending(lambda places: images.pixels(self.data.indices[places].tolist()), chosen))

    def _arrays(self, chosen: np.ndarray) -> Arrays:
        if self._whole is not None:
            return {name: values[chosen] for name, values in self._whole.items()}
        samples = ascending(self.data.samples, chosen)
        return {name: np.stack([each[name] for each in samples]) for name in samples[0]}

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

    @cached_property
    def _whole(self) -> Arrays | None:
        """Samples that are ready for the model, all of them, where they fit into memory."""
        sample = next(self.data.batches(1))
        if len(self.data) * sum(values.nbytes for values in sample.values()) > _MOST_BYTES:
            return None
        return next(self.data.batches(len(self.data)))


def ascending(read: Callable[[np.ndarray], Iterable[Read]], places: np.ndarray) -> list[Read]:
    """What `read` gives for `places`, in their order; it is asked in the order in which files are read fastest."""
    order = np.argsort(places)
    found = dict(zip(order.tolist(), read(places[order]), strict=True))
    return [found[index] for index in range(len(places))]


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


def drawn(count: int, augment: Augment, rng: np.random.Generator) -> np.ndarray | None:
    """What each image keeps of its own, float32 [count], at least a half; None where none is blended."""
    if not augment.mixup:
        return None
    shares = rng.beta(augment.mixup, augment.mixup, count).astype(np.float32)
    return np.maximum(shares, 1 - shares)


def blended(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Images float32 [n, ...], each with a share of its own and the rest of the one as far from the end.

    Zhang et al., mixup: beyond empirical risk minimization, ICLR 2018. A teacher that is shown the same blend says what
    it is, which no label does: a few images become as many as training lasts (Beyer et al., Knowledge distillation: a
    good teacher is patient and consistent, CVPR 2022).
    """
    own = shares.reshape(-1, *[1] * (values.ndim - 1))
    mixed: np.ndarray = own * values + (1 - own) * values[::-1]
    return mixed
