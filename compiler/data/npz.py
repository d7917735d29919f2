"""The samples and labels of an .npz file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from nnc.data.arrays import Member, Tensors
from nnc.data.images import ImageArray, ImageBlob
from nnc.data.preprocess import Preprocess
from nnc.data.source import Source
from nnc.errors import NncError


def open_npz(path: Path, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> tuple[Source, np.ndarray | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise NncError(f"{path}: not an .npz file", "give a file of numpy.savez, or a folder of images") from error
    source = _source(path, names, preprocess, inputs)
    return source, _labels(path, len(source)) if "labels" in names else None


def _source(path: Path, names: set[str], preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> Source:
    wanted = [tensor.name for tensor in inputs]
    if {"jpeg", "offsets"} <= names and not names.issuperset(wanted):
        return ImageBlob(path, preprocess, inputs)
    if "images" in names and (wanted != ["images"] or Member(path, "images").dtype == np.uint8):
        return ImageArray(path, Member(path, "images"), preprocess, inputs)
    if names.issuperset(wanted):
        return Tensors(path, {name: Member(path, name) for name in wanted}, inputs)
    found = ", ".join(map(repr, sorted(names))) or "nothing"
    raise NncError(
        f"{path}: holds {found}, but neither 'images' nor {' and '.join(map(repr, wanted))}",
        "give 'images' (uint8 [N, height, width, channels]), or 'jpeg' (uint8, files one behind the other) and "
        "'offsets', and 'labels', or one array per input of the model",
    )


def _labels(path: Path, count: int) -> np.ndarray:
    labels = Member(path, "labels").values()
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise NncError(f"{path}: 'labels' is {labels.dtype} {list(labels.shape)}, not integers [N]")
    if len(labels) != count:
        raise NncError(f"{path}: {len(labels)} labels for {count} samples")
    if labels.min(initial=0) < 0:
        raise NncError(f"{path}: label {labels.min()} of sample {labels.argmin()} is negative")
    return labels.astype(np.int64)
