"""Images for the one input of a graph: files, an array of pixels, or compressed ones in an array of bytes."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import onnx_graphsurgeon as gs
from PIL import Image

from nnc.data.arrays import Member, brackets
from nnc.data.preprocess import Preprocess
from nnc.errors import NncError


class Images:
    """Images, opened by a subclass, for the one input of a graph."""

    def __init__(self, path: Path, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> None:
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise NncError(
                f"{path}: images fit a model with one input of rank 4, not {_described(inputs)}",
                "give an .npz with one array per input, named like it",
            )
        self._input = inputs[0].name
        self._dtype = np.dtype(inputs[0].dtype)
        _, *sizes = inputs[0].shape
        height, width, self._channels = sizes if preprocess.layout == "NHWC" else (*sizes[1:], sizes[0])
        self._preprocess = self._fitted(preprocess, (height, width))

    def _fitted(self, preprocess: Preprocess, size: tuple[int, int]) -> Preprocess:
        """The preprocessing with its size filled in, checked against the model's input."""
        if self._channels not in (1, 3):
            other = "NCHW" if preprocess.layout == "NHWC" else "NHWC"
            raise NncError(
                f"[data.preprocess]: input '{self._input}' has {self._channels} channels; images have 1 or 3",
                f'if its layout is {other}, write layout = "{other}"',
            )
        if preprocess.size not in (None, size):
            raise NncError(
                f"[data.preprocess]: size is {list(preprocess.size or ())}, but input '{self._input}' is {list(size)}",
                f"write size = {list(size)}",
            )
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            if len(values) not in (1, self._channels):
                raise NncError(
                    f"[data.preprocess]: {name} has {len(values)} numbers, but input '{self._input}' has "
                    f"{self._channels} channels"
                )
        if self._dtype == np.int8 and preprocess.is_plain:  # some models subtract 128, others halve
            raise NncError(
                f"[data.preprocess]: input '{self._input}' is int8, which can't hold pixels from 0 to 255",
                "give mean and std so that (pixel / 255 - mean) / std is what it reads; "
                "mean = [0.50196], std = [0.00392157] subtract 128",
            )
        return preprocess.model_copy(update={"size": size})

    @property
    def reads_floats(self) -> bool:
        """Whether the input is one of floats, which pixels have to be prepared for."""
        return self._dtype.kind not in "iu"

    def __len__(self) -> int:
        raise NotImplementedError

    def opened(self, indices: Iterable[int]) -> Iterator[tuple[Image.Image, str]]:
        """The images, each with what errors call it."""
        raise NotImplementedError

    def samples(self, indices: Iterable[int]) -> Iterator[dict[str, np.ndarray]]:
        for pixels in self.pixels(indices):
            yield self.prepared(pixels)

    def pixels(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """uint8 [height, width, channels] of each, as large as the model's input."""
        mode = "RGB" if self._channels == 3 else "L"
        for image, place in self.opened(indices):
            yield self._preprocess.pixels(image.convert(mode), place)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """[height, width, channels]."""
        assert self._preprocess.size is not None, "it is filled in"
        return (*self._preprocess.size, self._channels)

    def prepared(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The model's input from pixels, of one image or, with one more axis in front, of several."""
        if not self.reads_floats and self._preprocess.is_plain:
            values = self._preprocess.arranged(pixels.astype(np.float32))
        else:
            values = self._preprocess.normalized(pixels)
        if not self.reads_floats:
            limits = np.iinfo(self._dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return {self._input: values.astype(self._dtype, copy=False)}


class ImageFiles(Images):
    def __init__(
        self, path: Path, files: Sequence[Path], preprocess: Preprocess, inputs: Sequence[gs.Variable]
    ) -> None:
        super().__init__(path, preprocess, inputs)
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def opened(self, indices: Iterable[int]) -> Iterator[tuple[Image.Image, str]]:
        for index in indices:
            yield _decode(self._files[index], str(self._files[index])), str(self._files[index])


def _decode(file: Path | IO[bytes], place: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for broken files
        raise NncError(f"{place}: not a readable image: {error}", "replace the file, or remove it") from error


class ImageArray(Images):
    def __init__(self, path: Path, pixels: Member, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> None:
        super().__init__(path, preprocess, inputs)
        if pixels.dtype != np.uint8 or len(pixels.shape) != 4 or pixels.shape[3] not in (1, 3):
            raise NncError(
                f"{path}: 'images' is {pixels.dtype} {list(pixels.shape)}, not uint8 [N, height, width, 1 or 3]",
                f"floats that are ready for the model go into an array named '{self._input}'",
            )
        self._path, self._pixels = path, pixels

    def __len__(self) -> int:
        return self._pixels.shape[0]

    def opened(self, indices: Iterable[int]) -> Iterator[tuple[Image.Image, str]]:
        indices = list(indices)
        for index, pixels in zip(indices, self._pixels.rows(indices), strict=True):
            yield Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]), f"{self._path}: image {index}"


class ImageBlob(Images):
    """Images that are still compressed, one behind the other in an array of bytes."""

    def __init__(self, path: Path, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> None:
        super().__init__(path, preprocess, inputs)
        blob, offsets = Member(path, "jpeg"), Member(path, "offsets").values()
        if blob.dtype != np.uint8 or len(blob.shape) != 1:
            raise NncError(f"{path}: 'jpeg' is {blob.dtype} {list(blob.shape)}, not uint8 [bytes]")
        rising = (
            offsets.ndim == 1 and offsets.dtype.kind in "iu" and bool(np.all(np.diff(offsets.astype(np.int64)) > 0))
        )
        if not rising or offsets.min(initial=0) < 0 or offsets.max(initial=0) > blob.shape[0]:
            raise NncError(
                f"{path}: 'offsets' is not where the images in 'jpeg' begin, and where the last one ends",
                "image i is jpeg[offsets[i]:offsets[i + 1]]",
            )
        self._path, self._bytes, self._offsets = path, blob.values(), offsets.astype(np.int64)

    def __len__(self) -> int:
        return max(0, len(self._offsets) - 1)

    def opened(self, indices: Iterable[int]) -> Iterator[tuple[Image.Image, str]]:
        for index in indices:
            place = f"{self._path}: image {index}"
            yield (
                _decode(io.BytesIO(self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes()), place),
                place,
            )


def _described(inputs: Sequence[gs.Variable]) -> str:
    return " and ".join(f"'{tensor.name}' {brackets(tensor.shape)}" for tensor in inputs)
