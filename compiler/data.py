"""Data for calibration, training and accuracy: .npz files and folders of images, read a batch at a time.

Whatever the source, a model sees the same thing: `Dataset.batches` yields one array per graph input, preprocessed as
the recipe's [data.preprocess] says, in the order of the file, of labels.csv, or of the sorted class folders.
"""

import csv
import io
import itertools
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Literal, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from nnc.errors import NncError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]
_PositiveChannels = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=4)]


class Preprocess(BaseModel):
    """From an image to the input that a model was trained with: crop, resize (bilinear), (pixel / 255 - mean) / std."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="[height, width]; the model's own if absent"
    )
    crop: PositiveInt | None = Field(
        default=None, description="side of the square cut from the centre before the resize"
    )
    mean: _Channels = Field(default=(0.0,), description="per channel or one for all; pixels go from 0 to 1")
    std: _PositiveChannels = Field(default=(1.0,), description="per channel or one for all; pixels go from 0 to 1")
    layout: Literal["NCHW", "NHWC"] = Field(default="NCHW", description="order of the input's dimensions")

    def apply(self, image: Image.Image, place: str) -> np.ndarray:
        """The image as float32 in `layout` without N; `place` names the image in errors."""
        return self.normalized(self.pixels(image, place))

    def pixels(self, image: Image.Image, place: str) -> np.ndarray:
        """The image, cropped and resized, as uint8 [height, width, channels]."""
        if self.crop is not None:
            image = _crop(image, self.crop, place)
        if self.size is not None and image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.uint8)
        return pixels.reshape(*pixels.shape[:2], -1)

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., height, width, channels] as float32 [..., *layout without N]."""
        scaled: np.ndarray = pixels.astype(np.float32) / np.float32(255)
        scaled = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return scaled if self.layout == "NHWC" else np.moveaxis(scaled, -1, -3)


def _crop(image: Image.Image, side: int, place: str) -> Image.Image:
    if min(image.size) < side:
        raise NncError(
            f"{place}: the image is {image.width}x{image.height}, smaller than the crop of {side}",
            "crop is in pixels of the image as it is on disk",
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


class Source(Protocol):
    """Samples: per graph input one array without the batch dimension."""

    def __len__(self) -> int: ...

    def samples(self, indices: Iterable[int]) -> Iterator[dict[str, np.ndarray]]: ...


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
        source, labels = (
            _open_folder(path, preprocess, inputs) if path.is_dir() else _open_npz(path, preprocess, inputs)
        )
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

    @property
    def images(self) -> "Images | None":
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
        return preprocess.model_copy(update={"size": size})

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
        values = self._preprocess.normalized(pixels)
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return {self._input: values.astype(self._dtype, copy=False)}


class _ImageFiles(Images):
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


class _ImageArray(Images):
    def __init__(self, path: Path, pixels: "_Member", preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> None:
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


class _ImageBlob(Images):
    """Images that are still compressed, one behind the other in an array of bytes."""

    def __init__(self, path: Path, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> None:
        super().__init__(path, preprocess, inputs)
        blob, offsets = _Member(path, "jpeg"), _Member(path, "offsets").values()
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


class _Tensors:
    """Arrays that are ready for the model, one per graph input."""

    def __init__(self, path: Path, arrays: Mapping[str, "_Member"], inputs: Sequence[gs.Variable]) -> None:
        for tensor in inputs:
            shape = arrays[tensor.name].shape
            if shape[1:] != tuple(tensor.shape[1:]):
                wanted = ["N", *tensor.shape[1:]]
                raise NncError(
                    f"{path}: '{tensor.name}' is {_brackets(shape)}, but the model's input is {_brackets(wanted)}"
                )
        lengths = {name: array.shape[0] for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise NncError(f"{path}: the inputs have different numbers of samples: {found}")
        self._path = path
        self._arrays = arrays
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in inputs}

    def __len__(self) -> int:
        return next(iter(self._arrays.values())).shape[0]

    def samples(self, indices: Iterable[int]) -> Iterator[dict[str, np.ndarray]]:
        indices = list(indices)
        for index, *rows in zip(indices, *(array.rows(indices) for array in self._arrays.values()), strict=True):
            sample = dict(zip(self._arrays, rows, strict=True))
            for name, row in sample.items():
                if row.dtype.kind == "f" and np.isnan(row).any():
                    hint = "leave the sample out, or prepare it anew"
                    raise NncError(f"{self._path}: '{name}' of sample {index} holds NaN", hint)
            yield {name: row.astype(self._dtypes[name], copy=False) for name, row in sample.items()}


class _Member:
    """One array of an .npz, read row by row: the file may be larger than memory."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._file_name = path, f"{name}.npy"
        self._place = f"{path}: '{name}'"
        try:
            with zipfile.ZipFile(path) as archive, archive.open(self._file_name) as file:
                read_header = _HEADERS[np.lib.format.read_magic(file)]
                self.shape, fortran, self.dtype = read_header(file)
                self._start = file.tell()
        except _BROKEN as error:
            raise NncError(f"{self._place} is not a readable array", "write the file with numpy.savez") from error
        if self.dtype.kind not in "biuf":
            kind = "pickled objects" if self.dtype.hasobject else str(self.dtype)
            raise NncError(f"{self._place} holds {kind}, not numbers", "objects are never loaded: they can run code")
        if not self.shape:
            raise NncError(f"{self._place} is a single number, not an array of samples")
        if fortran and len(self.shape) > 1:
            raise NncError(f"{self._place} is stored in Fortran order", "save numpy.ascontiguousarray(...) of it")

    def rows(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """The rows at `indices`; ascending ones cost one pass through the file."""
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with zipfile.ZipFile(self._path) as archive, archive.open(self._file_name) as file:
            for index in indices:
                data = self._read(file, self._start + index * size, size)
                yield np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def values(self) -> np.ndarray:
        with zipfile.ZipFile(self._path) as archive, archive.open(self._file_name) as file:
            size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
            return np.frombuffer(self._read(file, self._start, size), self.dtype).reshape(self.shape)

    def _read(self, file: IO[bytes], start: int, count: int) -> bytes:
        try:
            file.seek(start)
            data = file.read(count)
        except _BROKEN as error:
            raise NncError(f"{self._place} is damaged: {error}") from error
        if len(data) != count:
            raise NncError(f"{self._place} is damaged: it ends early")
        return data


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, RuntimeError)


def _open_npz(path: Path, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> tuple[Source, np.ndarray | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise NncError(f"{path}: not an .npz file", "give a file of numpy.savez, or a folder of images") from error
    source = _npz_source(path, names, preprocess, inputs)
    return source, _npz_labels(path, len(source)) if "labels" in names else None


def _npz_source(path: Path, names: set[str], preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> Source:
    wanted = [tensor.name for tensor in inputs]
    if {"jpeg", "offsets"} <= names and not names.issuperset(wanted):
        return _ImageBlob(path, preprocess, inputs)
    if "images" in names and (wanted != ["images"] or _Member(path, "images").dtype == np.uint8):
        return _ImageArray(path, _Member(path, "images"), preprocess, inputs)
    if names.issuperset(wanted):
        return _Tensors(path, {name: _Member(path, name) for name in wanted}, inputs)
    found = ", ".join(map(repr, sorted(names))) or "nothing"
    raise NncError(
        f"{path}: holds {found}, but neither 'images' nor {' and '.join(map(repr, wanted))}",
        "give 'images' (uint8 [N, height, width, channels]) and 'labels', or one array per input of the model",
    )


def _npz_labels(path: Path, count: int) -> np.ndarray:
    labels = _Member(path, "labels").values()
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise NncError(f"{path}: 'labels' is {labels.dtype} {list(labels.shape)}, not integers [N]")
    if len(labels) != count:
        raise NncError(f"{path}: {len(labels)} labels for {count} samples")
    if labels.min(initial=0) < 0:
        raise NncError(f"{path}: label {labels.min()} of sample {labels.argmin()} is negative")
    return labels.astype(np.int64)


def _open_folder(path: Path, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> tuple[Source, np.ndarray | None]:
    listing = path / "labels.csv"
    files, labels = _listed(listing) if listing.exists() else _found(path)
    if not files:
        raise NncError(
            f"{path}: holds no images", "put a labels.csv (file,label) there, or one folder of images per class"
        )
    return _ImageFiles(path, files, preprocess, inputs), None if labels is None else np.array(labels, np.int64)


def _listed(listing: Path) -> tuple[list[Path], list[int]]:
    """The files and labels of a labels.csv, in its order."""
    try:
        with listing.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            missing = {"file", "label"} - set(rows.fieldnames or ())
            if missing:
                raise NncError(f"{listing}: the header has no column '{min(missing)}'", "its first line is file,label")
            entries = [_entry(listing, rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise NncError(f"{listing}: not a CSV file in UTF-8: {error}") from error
    return [file for file, _ in entries], [label for _, label in entries]


def _entry(listing: Path, line: int, row: Mapping[str, str | None]) -> tuple[Path, int]:
    name, label = row["file"] or "", (row["label"] or "").strip()
    file = listing.parent / name
    if not file.is_file():
        raise NncError(f"{listing}:{line}: no such file: '{name}'", "files are relative to the folder of labels.csv")
    if not re.fullmatch("[0-9]{1,9}", label):
        raise NncError(f"{listing}:{line}: the label must be a class index from 0 on, not '{label}'")
    return file, int(label)


def _found(path: Path) -> tuple[list[Path], list[int] | None]:
    """The images of two or more class folders, sorted; otherwise those in `path` and in a lone folder, unlabelled."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    classes = [_images_in(folder) for folder in folders]
    if len(classes) < 2:
        return _images_in(path) + [file for files in classes for file in files], None
    return [file for files in classes for file in files], [label for label, files in enumerate(classes) for _ in files]


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _described(inputs: Sequence[gs.Variable]) -> str:
    return " and ".join(f"'{tensor.name}' {_brackets(tensor.shape)}" for tensor in inputs)


def _brackets(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"
