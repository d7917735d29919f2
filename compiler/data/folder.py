"""The images and labels of a folder: listed in a labels.csv, or by one folder per class."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from nnc.data.images import ImageFiles
from nnc.data.preprocess import Preprocess
from nnc.data.source import Source
from nnc.errors import NncError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def open_folder(path: Path, preprocess: Preprocess, inputs: Sequence[gs.Variable]) -> tuple[Source, np.ndarray | None]:
    files, labels = listed(path)
    if not files:
        raise NncError(
            f"{path}: holds no images", "put a labels.csv (file,label) there, or one folder of images per class"
        )
    return ImageFiles(path, files, preprocess, inputs), None if labels is None else np.array(labels, np.int64)


def listed(path: Path) -> tuple[list[Path], list[int] | None]:
    """The images of a folder in their order, and their labels where it has such."""
    listing = path / "labels.csv"
    return _read(listing) if listing.exists() else _found(path)


def _read(listing: Path) -> tuple[list[Path], list[int]]:
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
