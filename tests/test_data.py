"""Datasets: what each source yields, and one clear error for whatever can be wrong with it."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from PIL import Image
from pydantic import ValidationError

from nnc.data import Dataset, Preprocess
from nnc.data.arrays import Member
from nnc.errors import NncError

IMAGE = [gs.Variable("input", np.float32, [1, 3, 8, 8])]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5])


def image_npz(folder: Path, **changes: np.ndarray | None) -> Path:
    path = folder / "data.npz"
    arrays = {"images": PIXELS, "labels": LABELS} | changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def png(path: Path, pixels: np.ndarray = PIXELS[0]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def listed_folder(folder: Path, text: str = "file,label\nimages/a.png,7\nimages/b.png,2\n") -> Path:
    png(folder / "images" / "a.png", PIXELS[0])
    png(folder / "images" / "b.png", PIXELS[1])
    (folder / "labels.csv").write_text(text)
    return folder


def only(dataset: Dataset) -> np.ndarray:
    (batch,) = dataset.batches(len(dataset))
    (values,) = batch.values()
    return values


# What comes out


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_images_come_out_as_nchw_floats(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "data.npz", images=PIXELS, labels=LABELS)
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    dataset = Dataset.open(tmp_path / "data.npz", preprocess, IMAGE)
    expected = (PIXELS / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert len(dataset) == 5
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels, LABELS)
    values = only(dataset)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_batches_cover_the_data_in_order_and_the_last_is_smaller(tmp_path: Path) -> None:
    dataset = Dataset.open(image_npz(tmp_path), None, IMAGE)
    batches = [batch["input"] for batch in dataset.batches(2)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), only(dataset))
    np.testing.assert_array_equal(only(dataset), only(dataset))  # a second epoch reads the same


def test_layout_and_integer_inputs(tmp_path: Path) -> None:
    inputs = [gs.Variable("input", np.uint8, [1, 8, 8, 3])]
    dataset = Dataset.open(image_npz(tmp_path), Preprocess(std=(1 / 255,), layout="NHWC"), inputs)
    values = only(dataset)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, PIXELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_integer_inputs_read_pixels_as_they_are(tmp_path: Path, dtype: type) -> None:
    inputs = [gs.Variable("input", dtype, [1, 3, 8, 8])]
    values = only(Dataset.open(image_npz(tmp_path), None, inputs))
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, PIXELS.transpose(0, 3, 1, 2))


def test_int8_inputs_need_a_mean_and_std(tmp_path: Path) -> None:
    inputs = [gs.Variable("input", np.int8, [1, 3, 8, 8])]
    with pytest.raises(NncError, match=r"input 'input' is int8, which can't hold pixels") as caught:
        Dataset.open(image_npz(tmp_path), None, inputs)
    mean, std = (float(number) for number in re.findall(r"= \[([\d.]+)\]", str(caught.value.hint)))
    values = only(Dataset.open(image_npz(tmp_path), Preprocess(mean=(mean,), std=(std,)), inputs))
    np.testing.assert_array_equal(values, (PIXELS.astype(np.int16) - 128).transpose(0, 3, 1, 2))


def test_integer_inputs_saturate(tmp_path: Path) -> None:
    inputs = [gs.Variable("input", np.int8, [1, 3, 8, 8])]
    values = only(Dataset.open(image_npz(tmp_path), Preprocess(std=(1 / 255,)), inputs))
    np.testing.assert_array_equal(values, np.minimum(PIXELS, 127).transpose(0, 3, 1, 2))


def test_grey_images_for_a_model_of_one_channel(tmp_path: Path) -> None:
    inputs = [gs.Variable("input", np.float32, [1, 1, 8, 8])]
    values = only(Dataset.open(image_npz(tmp_path, images=PIXELS[..., :1]), None, inputs))
    np.testing.assert_allclose(values, PIXELS[..., :1].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_crop_is_centred_and_comes_before_the_resize(tmp_path: Path) -> None:
    pixels = np.zeros((1, 20, 30, 3), np.uint8)
    pixels[0, 5:15, 10:20] = 255  # the central 10x10
    dataset = Dataset.open(image_npz(tmp_path, images=pixels, labels=None), Preprocess(crop=10), IMAGE)
    np.testing.assert_array_equal(only(dataset), np.ones((1, 3, 8, 8), np.float32))


def test_images_are_resized_to_the_input(tmp_path: Path) -> None:
    pixels = np.full((1, 5, 31, 3), 51, np.uint8)
    dataset = Dataset.open(image_npz(tmp_path, images=pixels, labels=None), Preprocess(size=(8, 8)), IMAGE)
    np.testing.assert_allclose(only(dataset), np.full((1, 3, 8, 8), 0.2), atol=1e-6)


def test_arrays_named_like_the_inputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 7)), rng.integers(0, 9, (4, 2, 3))
    np.savez(tmp_path / "two.npz", a=a, b=b)
    inputs = [gs.Variable("a", np.float32, [1, 7]), gs.Variable("b", np.int64, [1, 2, 3])]
    dataset = Dataset.open(tmp_path / "two.npz", None, inputs)
    (batch,) = dataset.batches(4)
    assert dataset.labels is None
    np.testing.assert_array_equal(batch["a"], a.astype(np.float32))
    np.testing.assert_array_equal(batch["b"], b)
    assert batch["a"].dtype == np.float32


def test_the_last_batch_is_filled_up(tmp_path: Path) -> None:
    np.savez(tmp_path / "five.npz", x=np.arange(5, dtype=np.float32)[:, None])
    dataset = Dataset.open(tmp_path / "five.npz", None, [gs.Variable("x", np.float32, [3, 1])])
    assert [(batch["x"].tolist(), count) for batch, count in dataset.full_batches(3)] == [
        ([[0], [1], [2]], 3),
        ([[3], [4], [3]], 2),
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_input_called_images_takes_pixels_or_floats(tmp_path: Path, dtype: type) -> None:
    inputs = [gs.Variable("images", np.float32, [1, 3, 8, 8])]
    ready = PIXELS.transpose(0, 3, 1, 2).astype(np.float32)
    images = PIXELS if dtype == np.uint8 else ready
    values = only(Dataset.open(image_npz(tmp_path, images=images), Preprocess(std=(1 / 255,)), inputs))
    np.testing.assert_allclose(values, ready, rtol=1e-6)


def test_a_folder_with_labels_csv(tmp_path: Path) -> None:
    dataset = Dataset.open(
        listed_folder(tmp_path, "name,label,file\nx, 7,images/b.png\ny,2,images/a.png\n"), None, IMAGE
    )
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [7, 2]
    np.testing.assert_allclose(only(dataset), PIXELS[[1, 0]].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert len(Dataset.open(listed_folder(tmp_path, "\ufefffile,label\nimages/a.png,7\n"), None, IMAGE)) == 1


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in ("dog/2.png", "cat/1.png", "dog/10.PNG", "empty/notes.txt", ".cache/3.png"):
        png(tmp_path / name)
    dataset = Dataset.open(tmp_path, None, IMAGE)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 1]
    assert [file.name for file in dataset._source._files] == ["1.png", "10.PNG", "2.png"]


@pytest.mark.parametrize("place", ["", "images"])
def test_plain_images_have_no_labels(tmp_path: Path, place: str) -> None:
    png(tmp_path / place / "a.png")
    dataset = Dataset.open(tmp_path, None, IMAGE)
    assert len(dataset) == 1
    assert dataset.labels is None


def test_colour_modes_become_rgb(tmp_path: Path) -> None:
    png(tmp_path / "grey.png", PIXELS[0, :, :, 0])
    png(tmp_path / "rgba.png", np.concatenate([PIXELS[0], np.full((8, 8, 1), 255, np.uint8)], axis=2))
    grey, rgba = only(Dataset.open(tmp_path, None, IMAGE))
    np.testing.assert_allclose(grey, np.stack([PIXELS[0, :, :, 0]] * 3) / 255, atol=1e-6)
    np.testing.assert_allclose(rgba, PIXELS[0].transpose(2, 0, 1) / 255, atol=1e-6)


def test_subsets_are_seeded_ordered_and_keep_their_labels(tmp_path: Path) -> None:
    dataset = Dataset.open(image_npz(tmp_path), None, IMAGE)
    subset = dataset.subset(seed=1, count=3)
    same, other = dataset.subset(1, 3), [dataset.subset(seed, 3)._indices.tolist() for seed in range(9)]
    assert len(subset) == 3
    assert subset._indices.tolist() == sorted(set(subset._indices.tolist())) == same._indices.tolist()
    assert len({tuple(indices) for indices in other}) > 1
    np.testing.assert_array_equal(only(subset), only(dataset)[subset._indices])
    assert subset.labels is not None
    np.testing.assert_array_equal(subset.labels, LABELS[subset._indices])
    assert len(dataset.subset(0, 100)) == 5
    assert len(subset.subset(0, 2)) == 2


def test_reading_a_large_file_takes_the_memory_of_a_batch(tmp_path: Path) -> None:
    import tracemalloc

    images = np.zeros((400, 64, 64, 3), np.uint8)  # 4.9 MB
    dataset = Dataset.open(image_npz(tmp_path, images=images, labels=None), None, IMAGE)
    tracemalloc.start()
    assert sum(len(batch["input"]) for batch in dataset.batches(10)) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_in_any_order(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "data.npz", first=np.arange(7), images=PIXELS)
    member = Member(tmp_path / "data.npz", "images")
    for order in ([0, 1, 2, 3, 4], [4, 1, 3], [2], [3, 3, 0]):
        np.testing.assert_array_equal(np.stack(list(member.rows(order))), PIXELS[order])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 1]])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_rows_that_are_not_there(tmp_path: Path, compression: int, order: list[int]) -> None:
    """Also where other members follow."""
    array = io.BytesIO()
    np.save(array, PIXELS)
    with zipfile.ZipFile(tmp_path / "data.npz", "w", compression) as archive:
        archive.writestr("images.npy", array.getvalue()[:-100])
        archive.writestr("more.npy", array.getvalue())
    with pytest.raises(NncError, match="'images' is damaged: it ends early"):
        list(Member(tmp_path / "data.npz", "images").rows(order))


# What can be wrong


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def text_file(folder: Path) -> Path:
    (folder / "data.npz").write_text("not a zip file")
    return folder / "data.npz"


def strange_member(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        archive.writestr("images.npy", b"not an array")
    return folder / "data.npz"


def truncated_member(folder: Path) -> Path:
    array = io.BytesIO()
    np.save(array, PIXELS)
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        archive.writestr("images.npy", array.getvalue()[:-100])
    return folder / "data.npz"


def truncated_npz(folder: Path) -> Path:
    path = image_npz(folder)
    path.write_bytes(path.read_bytes()[:300])
    return path


def truncated_image(folder: Path) -> Path:
    listed_folder(folder)
    file = folder / "images" / "b.png"
    file.write_bytes(file.read_bytes()[:100])
    return folder


def text_image(folder: Path) -> Path:
    listed_folder(folder)
    (folder / "images" / "b.png").write_text("not an image")
    return folder


BROKEN: list[tuple[Callable[[Path], Path], str]] = [
    (lambda folder: folder / "absent.npz", "{path}: no such file or folder"),
    (text_file, "{path}: not an .npz file"),
    (truncated_npz, "{path}: not an .npz file"),
    (strange_member, "{path}: 'images' is not a readable array"),
    (truncated_member, "{path}: 'images' is damaged: it ends early"),
    (lambda folder: image_npz(folder, images=None), "{path}: holds 'labels', but neither 'images' nor 'input'"),
    (lambda folder: image_npz(folder, images=PIXELS[0]), "{path}: 'images' is uint8 [8, 8, 3], not uint8 [N, height,"),
    (lambda folder: image_npz(folder, images=PIXELS / 255.0), "{path}: 'images' is float64 [5, 8, 8, 3], not uint8"),
    (lambda folder: image_npz(folder, images=PIXELS.transpose(0, 3, 1, 2)), "{path}: 'images' is uint8 [5, 3, 8, 8]"),
    (lambda folder: image_npz(folder, images=np.array([{}, 1])), "{path}: 'images' holds pickled objects, not numbers"),
    (lambda folder: image_npz(folder, images=np.array(["a"])), "{path}: 'images' holds <U1, not numbers"),
    (lambda folder: image_npz(folder, images=np.uint8(3)), "{path}: 'images' is a single number"),
    (lambda folder: image_npz(folder, images=np.asfortranarray(PIXELS)), "{path}: 'images' is stored in Fortran order"),
    (lambda folder: image_npz(folder, images=PIXELS[:0], labels=None), "{path}: holds no samples"),
    (lambda folder: image_npz(folder, labels=LABELS[:3]), "{path}: 3 labels for 5 samples"),
    (lambda folder: image_npz(folder, labels=LABELS / 2), "{path}: 'labels' is float64 [5], not integers [N]"),
    (lambda folder: image_npz(folder, labels=LABELS[None]), "{path}: 'labels' is int64 [1, 5], not integers [N]"),
    (lambda folder: image_npz(folder, labels=LABELS - 2), "{path}: label -1 of sample 1 is negative"),
    (empty_folder, "{path}: holds no images"),
    (text_image, "{path}/images/b.png: not a readable image: "),
    (truncated_image, "{path}/images/b.png: not a readable image: "),
    (lambda folder: listed_folder(folder, ""), "{path}/labels.csv: the header has no column 'file'"),
    (lambda folder: listed_folder(folder, "images/a.png,7\n"), "{path}/labels.csv: the header has no column 'file'"),
    (lambda folder: listed_folder(folder, "file,class\n"), "{path}/labels.csv: the header has no column 'label'"),
    (lambda folder: listed_folder(folder, "file,label\n"), "{path}: holds no images"),
    (lambda folder: listed_folder(folder, "file,label\nc.png,1\n"), "{path}/labels.csv:2: no such file: 'c.png'"),
    (lambda folder: listed_folder(folder, "file,label\n,1\n"), "{path}/labels.csv:2: no such file: ''"),
    (lambda folder: listed_folder(folder, "file,label\nimages/a.png,dog\n"), "{path}/labels.csv:2: the label must be"),
    (lambda folder: listed_folder(folder, "file,label\nimages/a.png,-1\n"), "{path}/labels.csv:2: the label must be"),
    (lambda folder: listed_folder(folder, "file,label\nimages/a.png\n"), "{path}/labels.csv:2: the label must be"),
    (lambda folder: listed_folder(folder, f"file,label\nimages/a.png,{10**30}\n"), "{path}/labels.csv:2: the label"),
    (lambda folder: listed_folder(folder, 'file,label\n"images/a.png,1'), "{path}/labels.csv: not a CSV file in UTF-8"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN)
def test_broken_data_is_reported(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(NncError) as error:
        list(Dataset.open(path, None, IMAGE).batches(2))
    assert error.value.message.startswith(message.replace("{path}", str(path)))
    assert "\n" not in error.value.message


def test_a_csv_in_another_encoding_is_reported(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("file,label\nä.png,1\n".encode("latin-1"))
    with pytest.raises(NncError, match="not a CSV file in UTF-8"):
        Dataset.open(tmp_path, None, IMAGE)


@pytest.mark.parametrize(
    ("preprocess", "inputs", "message"),
    [
        (Preprocess(size=(4, 8)), IMAGE, "[data.preprocess]: size is [4, 8], but input 'input' is [8, 8]"),
        (Preprocess(mean=(1, 2)), IMAGE, "[data.preprocess]: mean has 2 numbers, but input 'input' has 3 channels"),
        (Preprocess(std=(1, 2)), IMAGE, "[data.preprocess]: std has 2 numbers, but input 'input' has 3 channels"),
        (Preprocess(layout="NHWC"), IMAGE, "[data.preprocess]: input 'input' has 8 channels; images have 1 or 3"),
        (Preprocess(crop=9), IMAGE, "{path}: image 0: the image is 8x8, smaller than the crop of 9"),
        (
            Preprocess(),
            [gs.Variable("x", np.float32, [1, 4])],
            "{path}: images fit a model with one input of rank 4, not 'x' [1, 4]",
        ),
    ],
)
def test_data_that_does_not_fit_the_model(
    tmp_path: Path, preprocess: Preprocess, inputs: list[gs.Variable], message: str
) -> None:
    path = image_npz(tmp_path)
    with pytest.raises(NncError) as error:
        list(Dataset.open(path, preprocess, inputs).batches(1))
    assert error.value.message == message.replace("{path}", str(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((4, 7))}, "holds 'a', but neither 'images' nor 'a' and 'b'"),
        ({"a": np.zeros((4, 7)), "b": np.zeros((3, 2))}, "different numbers of samples: 'a' 4, 'b' 3"),
        ({"a": np.zeros((4, 6)), "b": np.zeros((4, 2))}, "'a' is [4, 6], but the model's input is [N, 7]"),
    ],
)
def test_arrays_that_do_not_fit_the_inputs(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "two.npz", **arrays)
    inputs = [gs.Variable("a", np.float32, [1, 7]), gs.Variable("b", np.float32, [1, 2])]
    with pytest.raises(NncError) as error:
        Dataset.open(tmp_path / "two.npz", None, inputs)
    assert error.value.message.endswith(message)


def test_an_empty_subset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NncError, match="at least 1 sample, not 0"):
        Dataset.open(image_npz(tmp_path), None, IMAGE).subset(0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": [224]},
        {"size": [0, 8]},
        {"crop": 0},
        {"mean": []},
        {"std": [0.0]},
        {"mean": [float("nan")]},
        {"layout": "CHW"},
        {"resize": 256},
    ],
)
def test_wrong_preprocessing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocess.model_validate(fields)


@pytest.mark.parametrize(("shape", "found"), [((5, 2), "'a' 1, 'b' 5"), ((), "'a' 1, 'b' a single number")])
def test_inputs_without_a_batch_in_common(tmp_path: Path, shape: tuple[int, ...], found: str) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 7)), b=np.zeros((4, *shape[1:])))
    inputs = [gs.Variable("a", np.float32, [1, 7]), gs.Variable("b", np.float32, list(shape))]
    with pytest.raises(NncError) as error:
        Dataset.open(tmp_path / "two.npz", None, inputs)
    assert error.value.message.endswith(f"the inputs of the model have no batch in common: {found}")
