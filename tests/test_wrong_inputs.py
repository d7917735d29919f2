"""Everything a user can get wrong, through the real command line: one line, a hint, exit 1, and nothing is written."""

import io
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from nnc import cli, target, testing

Change = Callable[[onnx.ModelProto], object]

NET = """
net (float[N, 3, 8, 8] x) => (float[N, 4] logits)
<float[4, 3, 3, 3] W, float[4] scale, float[4] bias, float[4] mean, float[4] var>
{
    c = Conv(x, W)
    b = BatchNormalization(c, scale, bias, mean, var)
    r = Relu(b)
    p = GlobalAveragePool(r)
    logits = Flatten(p)
}
"""
FOLD = '[[pass]]\nname = "fold-batchnorm"\n'
CHECK = FOLD + '[[pass]]\nname = "check-accuracy"\nmax_drop = 0.01\n'
INSERT = '[[pass]]\nname = "insert-qdq"\n'
NO_CALIBRATION = "give it with --data calibration=PATH or in the recipe's [data]"
RECIPE = f'[data]\ntest = "test.npz"\n{CHECK}'
IMAGES, LABELS = np.zeros((5, 8, 8, 3), np.uint8), np.arange(5) % 4
COMPILE = "compile recipe.toml model.onnx --target x86 --no-lower"


def model(change: Change = lambda model: None, text: str = NET) -> bytes:
    changed = testing.model(text)
    change(changed)
    return changed.SerializeToString()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def image(kind: str = "PNG", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, kind)
    return file.getvalue()


MODEL, DATA = model(), npz(images=IMAGES, labels=LABELS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, and the one for temporary files, with a model, a recipe and data that are all right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nnc"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write({"model.onnx": MODEL, "recipe.toml": RECIPE, "test.npz": DATA})
    return tmp_path


def write(files: Mapping[str, bytes | str]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


class Refusal:
    """Runs a command that must fail with status 1, and keeps what it said."""

    def __init__(self, command: str, capfd: pytest.CaptureFixture[str]) -> None:
        before = state(Path.cwd())
        sys.argv = ["nnc", *shlex.split(command)]  # the fixture puts it back
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        told = r"nnc: [\w -]+ \(\d+/\d+\)|nnc: images are given as they are, .*"
        lines = [line for line in said.err.splitlines() if line and not re.fullmatch(told, line)]
        assert ended.value.code == 1, said.err
        assert len(lines) in (1, 2), said.err
        assert lines[0].startswith("nnc: error: "), said.err
        assert lines[-1].startswith("hint: ") or len(lines) == 1, said.err
        assert said.out == ""
        assert state(Path.cwd()) == before
        self.message = lines[0].removeprefix("nnc: error: ").replace(f"{Path.cwd()}/", "")
        self.hint = lines[1].removeprefix("hint: ") if len(lines) == 2 else None


def rows(table: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Rows that end with a message and a hint, called after the message."""
    return [pytest.param(*row, id=re.sub(r"[^\w.=-]+", " ", row[-2])[:70].strip()) for row in table]


def test_the_inputs_are_right_before_anything_is_broken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nnc", *COMPILE.split(), "-o", "out"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert (here / "out" / "model.onnx").exists()


# -- recipes

UTF8 = "TOML is text in UTF-8"
FIRST = 'write [[pass]] and below it name = "simplify-shapes", for example'
SHARE = "recipe.toml: pass 2 (check-accuracy): 'max_drop' must be a number from 0 to 1, not"

RECIPES = [
    ("", "recipe.toml: no pass", FIRST),
    ("[[passes]]\nname = 'fold-batchnorm'", "recipe.toml: no pass", FIRST),
    (b"\xff\xfe\x00\x81", "recipe.toml: not a text file", UTF8),
    (RECIPE.encode("utf-16"), "recipe.toml: not a text file", UTF8),
    ("[[pass]\nname = 3", "recipe.toml: not valid TOML: expected ']]' at the end of an array declaration", None),
    ("passes:\n  - fold-batchnorm", "recipe.toml: not valid TOML: expected '=' after a key in a key/value pair", None),
    (FOLD + 'name = "again"', "recipe.toml: not valid TOML: cannot overwrite a value", None),
    ("[pass]\nname = 'x'", "recipe.toml: 'pass' must be an array of tables, not a table", "write [[pass]], not [pass]"),
    ("pass = ['x']", "recipe.toml: item 1 of 'pass' must be a table, not the string 'x'", None),
    ("[[pass]]", "recipe.toml: pass 1: 'name' is missing", "nnc passes lists the names"),
    ("[[pass]]\nname = 3", "recipe.toml: pass 1: 'name' must be a string, not 3", None),
    (
        "[[pass]]\nname = 'fold-batchnrom'",
        "recipe.toml: pass 1: no pass is called 'fold-batchnrom'",
        "did you mean 'fold-batchnorm'?",
    ),
    (
        "[[pass]]\nname = 'quantum'",
        "recipe.toml: pass 1: no pass is called 'quantum'",
        "nnc passes lists the names",
    ),
    ("descripion = 'x'\n" + FOLD, "recipe.toml: unknown key 'descripion'", "did you mean 'description'?"),
    (FOLD + "colour = 3", "recipe.toml: pass 1 (fold-batchnorm): unknown key 'colour'", None),
    (
        CHECK.replace("max_drop", "max_drp"),
        "recipe.toml: pass 2 (check-accuracy): unknown key 'max_drp'",
        "did you mean 'max_drop'?",
    ),
    (CHECK.replace("0.01", "'0.01'"), f"{SHARE} the string '0.01'", "write max_drop = 0.01"),
    (CHECK.replace("0.01", "2"), f"{SHARE} 2", "it is a share: write max_drop = 0.02"),
    (CHECK.replace("0.01", "-0.5"), f"{SHARE} -0.5", None),
    (CHECK.replace("0.01", "nan"), f"{SHARE} nan", None),
    (CHECK.replace("0.01", "true"), f"{SHARE} true", None),
    (CHECK.replace("0.01", "[0.01]"), f"{SHARE} [0.01]", None),
    (
        "[[pass]]\nname = 'pack-weights'\nmin_saving = '5 %'",
        "recipe.toml: pass 1 (pack-weights): 'min_saving' must be a number of at least 0 and below 1, not the string "
        "'5 %'",
        None,
    ),
    (FOLD + "include = 'conv*'", "recipe.toml: pass 1 (fold-batchnorm): 'include' must be an array of strings, not the "
     "string 'conv*'", 'write include = ["conv*"]'),
    (RECIPE.replace("test =", "tests ="), "recipe.toml: data: unknown key 'tests'", "did you mean 'test'?"),
    (RECIPE.replace('"test.npz"', "3"), "recipe.toml: 'data.test' must be a string, not 3", None),
    (
        RECIPE.replace("test.npz", "absent.npz"),
        "recipe.toml: data: 'test': no such file or folder: absent.npz",
        "--data test=PATH gives another",
    ),
    (INSERT, "pass insert-qdq: needs calibration data", NO_CALIBRATION),
    (
        f"{INSERT}weight_only = true\nbudget = {{ drop = 0.01 }}",
        "pass insert-qdq: needs calibration data",
        NO_CALIBRATION,
    ),
    (f"{INSERT}budget = {{ macs = 0.5 }}", "recipe.toml: pass 1 (insert-qdq): budget: unknown key 'macs'", None),
    (f"{INSERT}budget = {{}}", "recipe.toml: pass 1 (insert-qdq): budget: 'drop' is missing", None),
    (
        f"{INSERT}budget = 0.005",
        "recipe.toml: pass 1 (insert-qdq): 'budget' must be a table of 'drop', not 0.005",
        "write budget = { drop = 0.005 }",
    ),
    (
        f"{INSERT}budget = {{ drop = -0.5 }}",
        "recipe.toml: pass 1 (insert-qdq): 'budget.drop' must be a number of at least 0 and below 1, not -0.5",
        None,
    ),
    (
        f"{INSERT}weight_only = true\ngroup_size = 32",
        "pass insert-qdq: group_size: needs a model of opset 21 or newer, not 17",
        "leave it out, or convert the model with onnx.version_converter",
    ),
    (f"{INSERT}group_size = 32", "recipe.toml: pass 1 (insert-qdq): 'group_size' is for 'weight_only'", None),
    (CHECK, "pass check-accuracy: needs test data", "give it with --data test=PATH or in the recipe's [data]"),
]  # fmt: skip

PREPROCESS = [
    ("means = [0.5]", "recipe.toml: data: preprocess: unknown key 'means'", "did you mean 'mean'?"),
    ("std = [0.0]", "recipe.toml: item 1 of 'data.preprocess.std' must be a number above 0, not 0.0", None),
    ("size = 8", "recipe.toml: 'data.preprocess.size' must be an array of 2 values, not 8", "write size = [8, 8]"),
    (
        "layout = 'nchw'",
        "recipe.toml: 'data.preprocess.layout' must be 'NCHW' or 'NHWC', not the string 'nchw'",
        "did you mean 'NCHW'?",
    ),
    ("mean = [0.5, 0.5]", "[data.preprocess]: mean has 2 numbers, but input 'x' has 3 channels", None),
    ("size = [9, 9]", "[data.preprocess]: size is [9, 9], but input 'x' is [8, 8]", "write size = [8, 8]"),
    (
        "layout = 'NHWC'",
        "[data.preprocess]: input 'x' has 8 channels; images have 1 or 3",
        'if its layout is NCHW, write layout = "NCHW"',
    ),
    (
        "crop = 9",
        "test.npz: image 0: the image is 8x8, smaller than the crop of 9",
        "crop is in pixels of the image as it is on disk",
    ),
]

# The text of a Python file that the recipe uses.
MINE = "from nnc.rewrite import Pass\nclass Mine(Pass):\n"
USED = [
    ("def f(:", "my.py:1: invalid syntax", None),
    (b"\xff\xfe", "my.py:1: (unicode error) 'utf-8' codec can't decode byte 0xff in position 0", None),
    ("import sys\nimport nowhere", "my.py:2: ModuleNotFoundError: No module named 'nowhere'", None),
    ("raise SystemExit('bye')", "my.py:1: SystemExit: bye", None),
    (
        "x = 1",
        "my.py: defines no pass",
        "a pass is a class derived from nnc.rewrite.PatternPass or Pass, with a name and an effect",
    ),
    (
        f"{MINE}    name: str = 'mine'\n    effect = 'exact'",
        "my.py: Mine: name is no parameter",
        'write name = "..." without a type',
    ),
    (f"{MINE}    name = 'mine'", "my.py: Mine: effect must be 'exact', 'approximate' or 'trained'", None),
    (
        f"{MINE}    name = 'My Pass'\n    effect = 'exact'",
        "my.py: Mine: name must be words joined by hyphens, not 'My Pass'",
        'such as "fold-batchnorm"',
    ),
    (
        f"{MINE}    name = 'fold-batchnorm'\n    effect = 'exact'",
        "my.py: there is a pass 'fold-batchnorm' already",
        "give yours another name",
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), rows(RECIPES))
def test_recipe(here: Path, capfd: pytest.CaptureFixture[str], text: str, message: str, hint: str | None) -> None:
    write({"recipe.toml": text})
    check(Refusal(COMPILE, capfd), message, hint)


@pytest.mark.parametrize(("line", "message", "hint"), rows(PREPROCESS))
def test_preprocess(here: Path, capfd: pytest.CaptureFixture[str], line: str, message: str, hint: str | None) -> None:
    write({"recipe.toml": f"{RECIPE}[data.preprocess]\n{line}"})
    check(Refusal(COMPILE, capfd), message, hint)


@pytest.mark.parametrize(("text", "message", "hint"), rows(USED))
def test_use(here: Path, capfd: pytest.CaptureFixture[str], text: str, message: str, hint: str | None) -> None:
    write({"recipe.toml": f"use = ['my.py']\n{FOLD}", "my.py": text})
    check(Refusal(COMPILE, capfd), message, hint)


# -- models

DAMAGED = ("model.onnx: not an ONNX model, or a damaged one", "export or copy the file again")

NO_MODELS = {
    "text": "I am a model\n" * 20,
    "html": "<!DOCTYPE html><html>404</html>",
    "jpeg": image("JPEG", 64),
    "png": image("PNG", 64),
    "npz": DATA,
    "zip header": b"PK\x03\x04archive/data.pkl",
    "recipe": RECIPE,
    "random": np.random.default_rng(0).bytes(2000),
    "zeros": bytes(2000),
    "half a model": MODEL[: len(MODEL) // 2],
    "all but one byte": MODEL[:-1],
}


def node(index: int, **fields: Any) -> Change:
    """Sets fields of a node."""

    def change(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            setattr(model.graph.node[index], name, value)

    return change


def attribute(index: int, **attributes: Any) -> Change:
    return lambda model: model.graph.node[index].attribute.extend(
        helper.make_attribute(name, value) for name, value in attributes.items()
    )


def reads(index: int, name: str) -> Change:
    return lambda model: model.graph.node[index].input.__setitem__(0, name)


def opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


def open_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"


def not_a_number(model: onnx.ModelProto) -> None:
    tensor(model, np.full((4, 3, 3, 3), np.nan, np.float32).tobytes())


def tensor(model: onnx.ModelProto, data: bytes) -> None:
    """Replaces the data of W."""
    model.graph.initializer[0].CopyFrom(
        TensorProto(name="W", dims=(4, 3, 3, 3), data_type=TensorProto.FLOAT, raw_data=data)
    )


def external(location: str) -> Change:
    """W lies in another file."""

    def change(model: onnx.ModelProto) -> None:
        weights = TensorProto(name="W", dims=(4, 3, 3, 3), data_type=TensorProto.FLOAT)
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        model.graph.initializer[0].CopyFrom(weights)

    return change


def sparse(model: onnx.ModelProto) -> None:
    values, indices = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("i", 7, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


STANDARD = "the model breaks the ONNX standard; export it again"
CONTRADICT = "the shapes of the graph contradict each other"
UNFIT = "model.onnx: the data of initializer 'W' does not fit its type and shape"

MODELS = [
    (opset(8), "model.onnx: opset 8; nnc reads opset 9 to ", "export the model with opset 17"),
    (opset(99), "model.onnx: opset 99; nnc reads opset 9 to ", "export the model with opset 17"),
    (lambda m: m.ClearField("opset_import"), "model.onnx: the model does not say its opset", "export it again"),
    (lambda m: m.graph.ClearField("output"), "model.onnx: the model has no output", None),
    (lambda m: m.graph.ClearField("node"), "model.onnx: nothing computes the output 'logits'", STANDARD),
    (sparse, "model.onnx: initializer 's' is sparse", "store it dense; prune-channels makes it small"),
    (not_a_number, "model.onnx: initializer 'W' holds NaN", "the training run diverged; use an earlier checkpoint"),
    (lambda m: tensor(m, bytes(100)), f"{UNFIT} [4, 3, 3, 3]", "export the model again"),
    (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), f"{UNFIT} [-4, 3, 3, 3]", "export the model again"),
    (
        lambda m: m.graph.initializer.append(m.graph.initializer[1]),
        "model.onnx: two initializers are called 'scale'",
        "export it again",
    ),
    (external("w.bin"), "model.onnx: 'w.bin', which holds its weights, is missing", "put it beside model.onnx"),
    (external("../w.bin"), "model.onnx: initializer 'W' lies outside the model's folder, in '../w.bin'", None),
    (
        external("test.npz"),
        f"model.onnx: initializer 'W' holds {len(DATA)} bytes, which do not make a float32 of shape [4, 3, 3, 3]",
        None,
    ),
    (reads(0, "absent"), "model.onnx: node 'c' (Conv) reads 'absent', which nothing computes", STANDARD),
    (reads(0, "r"), "model.onnx: node 'c' (Conv) reads 'r' before it is computed", STANDARD),
    (lambda m: m.graph.node[1].output.__setitem__(0, "c"), "model.onnx: 'c' is computed twice", STANDARD),
    (reads(3, "b2"), "model.onnx: node 'p' (GlobalAveragePool) reads 'b2', which nothing computes", STANDARD),
    (node(2, op_type="Rellu"), "onnxruntime can't run the graph: ", None),  # it would only pass without data
    (
        node(2, domain="com.acme"),
        "model.onnx: node 'r' (Relu) is of the domain 'com.acme', which the model does not import",
        None,
    ),
    (attribute(0, strides=[0, 0]), "model.onnx: (op_type:Conv): Attribute strides must", CONTRADICT),
    (attribute(0, stride=[1, 1]), "model.onnx: unrecognized attribute: stride for operator Conv", STANDARD),
    (open_size, "model.onnx: input 'x' has open dimensions: 1,3,H,8", "--shape x=1,3,224,8"),
    (
        lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
        "model.onnx: input 'x' has no shape",
        "--shape x=1,3,224,224",
    ),
    (
        lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
        "model.onnx: input 'x' is not a tensor",
        None,
    ),
]

BRANCH = """
net (float[1, 3] x, bool c) => (float[1, 3] y) {
    y = If(c) <then_branch = g1 () => (float[1, 3] a) { a = Relu(x) },
               else_branch = g2 () => (float[1, 3] b) { b = Neg(x) }>
}
"""
LOOP = """
net (float[1, 3] x, int64 n, bool c) => (float[1, 3] y) {
    y = Loop(n, c, x) <body = g (int64 i, bool go, float[1, 3] a) => (bool on, float[1, 3] b) {
        on = Identity(go)
        b = Relu(a)
    }>
}
"""


@pytest.mark.parametrize("content", NO_MODELS.values(), ids=NO_MODELS)
def test_no_model(here: Path, capfd: pytest.CaptureFixture[str], content: bytes | str) -> None:
    write({"model.onnx": content})
    check(Refusal(COMPILE, capfd), *DAMAGED)


@pytest.mark.parametrize(("change", "message", "hint"), rows(MODELS))
def test_model(here: Path, capfd: pytest.CaptureFixture[str], change: Change, message: str, hint: str | None) -> None:
    write({"model.onnx": model(change)})
    check(Refusal(COMPILE, capfd), message, hint)


@pytest.mark.parametrize(("text", "op"), [(BRANCH, "If"), (LOOP, "Loop")])
def test_control_flow(here: Path, capfd: pytest.CaptureFixture[str], text: str, op: str) -> None:
    write({"model.onnx": model(text=text), "recipe.toml": FOLD})
    check(
        Refusal(COMPILE, capfd),
        f"model.onnx: node 'y' ({op}) holds a subgraph; nnc takes graphs without control flow",
        "export the model with fixed control flow, for example by tracing it",
    )


# -- data

SAVEZ = "give a file of numpy.savez, or a folder of images"
IMAGES_OR_ARRAYS = (
    "give 'images' (uint8 [N, height, width, channels]), or 'jpeg' (uint8, files one behind the other) and 'offsets', "
    "and 'labels', or one array per input of the model"
)
FLOATS = "floats that are ready for the model go into an array named 'x'"
FLOAT_IMAGES = np.zeros((5, 3, 8, 8), np.float32)

TEST_DATA = [
    ("hello", "test.npz: not an .npz file", SAVEZ),
    ("", "test.npz: not an .npz file", SAVEZ),
    (image(), "test.npz: not an .npz file", SAVEZ),
    (DATA[:-200], "test.npz: not an .npz file", SAVEZ),
    (DATA[:300] + b"\x55" + DATA[301:], "test.npz: 'images' is ", "write the file with numpy.savez"),
    (npz(), "test.npz: holds nothing, but neither 'images' nor 'x'", IMAGES_OR_ARRAYS),
    (npz(X=IMAGES, y=LABELS), "test.npz: holds 'X', 'y', but neither 'images' nor 'x'", IMAGES_OR_ARRAYS),
    (npz(images=IMAGES), "test.npz: has no labels, which the accuracy needs", "add 'labels' or a labels.csv"),
    (
        npz(images=IMAGES.astype(float), labels=LABELS),
        "test.npz: 'images' is float64 [5, 8, 8, 3], not uint8 [N, height, width, 1 or 3]",
        FLOATS,
    ),
    (
        npz(images=IMAGES.transpose(0, 3, 1, 2), labels=LABELS),
        "test.npz: 'images' is uint8 [5, 3, 8, 8], not uint8 [N, height, width, 1 or 3]",
        FLOATS,
    ),
    (
        npz(images=IMAGES[0], labels=LABELS),
        "test.npz: 'images' is uint8 [8, 8, 3], not uint8 [N, height, width, 1 or 3]",
        FLOATS,
    ),
    (
        npz(images=np.array([{}]), labels=LABELS),
        "test.npz: 'images' holds pickled objects, not numbers",
        "objects are never loaded: they can run code",
    ),
    (npz(images=IMAGES[:0], labels=LABELS[:0]), "test.npz: holds no samples", None),
    (
        npz(images=IMAGES, labels=LABELS + 1),
        "test.npz: label 4 is out of range: the model has 4 classes",
        "labels go from 0 to 3",
    ),
    (npz(images=IMAGES, labels=LABELS - 1), "test.npz: label -1 of sample 0 is negative", None),
    (npz(images=IMAGES, labels=LABELS[1:]), "test.npz: 4 labels for 5 samples", None),
    (npz(images=IMAGES, labels=LABELS + 0.5), "test.npz: 'labels' is float64 [5], not integers [N]", None),
    (npz(images=IMAGES, labels=np.eye(5, dtype=int)), "test.npz: 'labels' is int64 [5, 5], not integers [N]", None),
    (
        npz(x=FLOAT_IMAGES[..., 1:], labels=LABELS),
        "test.npz: 'x' is [5, 3, 8, 7], but the model's input is [N, 3, 8, 8]",
        None,
    ),
    (
        npz(x=FLOAT_IMAGES + np.nan, labels=LABELS),
        "test.npz: 'x' of sample 0 holds NaN",
        "leave the sample out, or prepare it anew",
    ),
]

# The files of a folder of test images.
LISTED = "file,label\n"
FOLDERS = [
    (
        {".keep": ""},
        "images: holds no images",
        "put a labels.csv (file,label) there, or one folder of images per class",
    ),
    ({"a.png": image()}, "images: has no labels, which the accuracy needs", "add 'labels' or a labels.csv"),
    (
        {"labels.csv": "name,class\na.png,1"},
        "images/labels.csv: the header has no column 'file'",
        "its first line is file,label",
    ),
    (
        {"labels.csv": LISTED + "a.png,1"},
        "images/labels.csv:2: no such file: 'a.png'",
        "files are relative to the folder of labels.csv",
    ),
    (
        {"labels.csv": LISTED + "a.png,cat", "a.png": image()},
        "images/labels.csv:2: the label must be a class index from 0 on, not 'cat'",
        None,
    ),
    (
        {"labels.csv": LISTED + "a.png,-1", "a.png": image()},
        "images/labels.csv:2: the label must be a class index from 0 on, not '-1'",
        None,
    ),
    (
        {"labels.csv": LISTED + "a.png,4", "a.png": image()},
        "images: label 4 is out of range: the model has 4 classes",
        "labels go from 0 to 3",
    ),
    ({"labels.csv": b"\xff\xfe\x00"}, "images/labels.csv: not a CSV file in UTF-8: ", None),
    (
        {"labels.csv": LISTED + "a.jpg,1", "a.jpg": image("JPEG", 64)[:300]},
        "images/a.jpg: not a readable image: ",
        "replace the file, or remove it",
    ),
    (
        {"cat/a.jpg": "I am a cat", "dog/b.jpg": image("JPEG")},
        "images/cat/a.jpg: not a readable image: ",
        "replace the file, or remove it",
    ),
]


@pytest.mark.parametrize(("content", "message", "hint"), rows(TEST_DATA))
def test_data(
    here: Path, capfd: pytest.CaptureFixture[str], content: bytes | str, message: str, hint: str | None
) -> None:
    write({"test.npz": content})
    check(Refusal(COMPILE, capfd), message, hint)


@pytest.mark.parametrize(("files", "message", "hint"), rows(FOLDERS))
def test_image_folder(
    here: Path, capfd: pytest.CaptureFixture[str], files: Mapping[str, bytes | str], message: str, hint: str | None
) -> None:
    write({f"images/{name}": content for name, content in files.items()})
    check(Refusal(f"{COMPILE} --data test=images", capfd), message, hint)


# -- passes that compress and quantize

# Two layers, so that there are channels which may go.
DEEP = """
net (float[N, 3, 8, 8] x) => (float[N, 4] logits)
<float[16, 3, 3, 3] V, float[4, 16, 3, 3] W>
{
    a = Conv(x, V)
    r = Relu(a)
    c = Conv(r, W)
    p = GlobalAveragePool(c)
    logits = Flatten(p)
}
"""
WITHOUT_LAYERS = "net (float[N, 3, 8, 8] x) => (float y) { r = Relu(x)\n y = GlobalAveragePool(r) }"
SHARES = "must be a number above 0 and of at most 1, not"
METHODS = "'min-max', 'moving-average', 'percentile', 'entropy' or 'mse'"
GIVE_DATA = "give it with --data calibration=PATH or in the recipe's [data]"
ONE_OF = "give one of 'rank', 'energy' and 'budget'"
NOT_FINITE = "'a' of 'a' is not finite on the calibration data"
SPLITS = ("split-conv-svd", "split-conv-spatial", "split-conv-tucker", "split-conv-cp", "split-gemm-svd")


def of(number: int, *passes: str) -> tuple[str, str]:
    """A recipe of passes, each "name" or "name: parameters", and how errors call the one of that number."""
    parts = [each.partition(": ") for each in passes]
    text = "".join(f'[[pass]]\nname = "{name}"\n{parameters}\n' for name, _, parameters in parts)
    return text, f"recipe.toml: pass {number} ({parts[number - 1][0]}): "


# Passes; the number of the one that is wrong; what is said of it.
PARAMETERS = [
    (*of(1, "prune-channels"), "give either 'sparsity' or 'budget'", None),
    (*of(1, "prune-channels: sparsity = 0.5\nbudget = { macs = 0.5 }"), "give either 'sparsity' or 'budget'", None),
    (*of(1, "prune-channels: sparsity = 50"), "'sparsity' must be a number of at least 0 and below 1, not 50",
     "it is a share: write sparsity = 0.5"),
    (*of(1, "prune-channels: sparsity = 1.0"), "'sparsity' must be a number of at least 0 and below 1, not 1.0", None),
    (*of(1, "prune-channels: sparsity = 0.5\nimportance = 'l3'"), "'importance' must be 'l1', 'l2', ",
     "did you mean 'l2'?"),
    (*of(1, "prune-channels: sparsity = 0.5\nround_to = 0"), "'round_to' must be an integer of at least 1, not 0",
     None),
    (*of(1, "prune-channels: budget = 0.5"), "'budget' must be a table of 'macs', 'params', 'latency', not 0.5",
     "write budget = { macs = 0.5 }"),
    (*of(1, "prune-channels: budget = { mac = 0.5 }"), "budget: unknown key 'mac'", "did you mean 'macs'?"),
    (*of(1, "prune-channels: budget = { macs = 0.0 }"), f"'budget.macs' {SHARES} 0.0", None),
    (*of(1, "prune-channels: budget = { macs = 50 }"), f"'budget.macs' {SHARES} 50", "it is a share: write macs = 0.5"),
    (*of(1, "prune-channels: budget = { macs = 0.5, params = 0.5 }"),
     "budget: a budget names one of 'macs', 'params' and 'latency'", None),
    (*of(1, "compress"), "'budget' is missing", None),
    (*of(1, "compress: budget = {}"), "budget: a budget names 'macs', 'params' or 'latency', or several of them", None),
    (*of(1, "compress: budget = { macs = 0.5 }\nmethods = ['svdd']"),
     "item 1 of 'methods' must be 'prune', 'svd', 'spatial', 'tucker', 'cp', 'drop' or 'resolution', not the string "
     "'svdd'",
     "did you mean 'svd'?"),
    (*of(1, "compress: budget = { macs = 0.5 }\nmethods = []"), "'methods' must be an array of at least 1, each of it ",
     None),
    *((*of(1, name), ONE_OF, None) for name in SPLITS),
    (*of(1, "split-conv-svd: rank = 2\nenergy = 0.9"), ONE_OF, None),
    (*of(1, "split-conv-svd: rank = 0"), "'rank' must be an integer of at least 1 or 'vbmf', not 0", None),
    (*of(1, "split-conv-tucker: rank = 'vmbf'"), "'rank' must be an integer of at least 1 or 'vbmf', not the string ",
     "did you mean 'vbmf'?"),
    (*of(1, "split-conv-cp: energy = 95"), "'energy' must be a number from 0 to 1, not 95",
     "it is a share: write energy = 0.95"),
    (*of(1, "split-gemm-svd: rank = 2\nwhen = 'fast'"), "'when' must be 'faster', 'smaller' or 'always', not ",
     "did you mean 'faster'?"),
    (*of(1, "insert-qdq: method = 'minmax'"), f"'method' must be {METHODS}, not the string 'minmax'",
     "did you mean 'min-max'?"),
    (*of(1, "insert-qdq: percentile = 40"), "'percentile' must be a number above 50 and of at most 100, not 40", None),
    (*of(1, "insert-qdq: weight_bits = 9"), "'weight_bits' must be an integer from 2 to 8, not 9", None),
    (*of(1, "insert-qdq: samples = 0"), "'samples' must be an integer of at least 1, not 0", None),
    (*of(1, "insert-qdq: activation_dtype = 'int4'"), "'activation_dtype' must be 'int8' or 'uint8', not the string ",
     "did you mean 'int8'?"),
    (*of(1, "insert-qdq: layers = 'a'"), "'layers' must be a table, not the string 'a'", None),
    (*of(1, "insert-qdq: layers = { a = { weight_bit = 4 } }"), "layers: a: unknown key 'weight_bit'",
     "did you mean 'weight_bits'?"),
    (*of(1, "insert-qdq: layers = { a = { weight_bits = 1 } }"), "'layers.a.weight_bits' must be an integer from 2 to ",
     None),
    (*of(1, "train-quantized: activation_bits = 1"), "'activation_bits' must be an integer from 2 to 8, not 1", None),
    (*of(1, "train-quantized: epochs = -1"), "'epochs' must be an integer of at least 0, not -1", None),
    (*of(1, "train-quantized: distill = { temperature = 0 }"), "'distill.temperature' must be a number above 0, not 0",
     None),
    (*of(2, "insert-qdq", "round-adaptively: samples = 0"), "'samples' must be an integer of at least 1, not 0", None),
    (*of(2, "insert-qdq", "correct-bias: method = 'analytical'"), "'method' must be 'empirical' or 'analytic', not ",
     "did you mean 'analytic'?"),
    (*of(1, "equalize-ranges: samples = -1"), "'samples' must be an integer of at least 1, not -1", None),
    (*of(1, "cast-fp16: samples = 0"), "'samples' must be an integer of at least 1, not 0", None),
]  # fmt: skip

WITH_DATA = " --data calibration=calibration.npz"

# Passes; the model and the data; which pass complains of what.
UNFIT_PASSES = [
    *((f"{name}: budget = {{ macs = 0.01 }}", "deep", "", f"pass {name}: the budget of 0.01 can't be reached: ",
       "raise the budget") for name in ("prune-channels", *SPLITS)),
    *((f"{name}: budget = {{ macs = 0.5 }}", "empty", "", f"pass {name}: the budget of 0.5 can't be reached: 1 is left",
       "raise the budget") for name in ("prune-channels", *SPLITS)),
    ("compress: budget = { macs = 0.01 }", "deep", "", "pass compress: needs calibration data", GIVE_DATA),
    ("compress: budget = { macs = 0.01 }", "deep", WITH_DATA, "pass compress: the budget of 0.01 can't be reached: ",
     "raise the budget"),
    ("compress: budget = { macs = 0.5 }", "empty", WITH_DATA, "pass compress: the budget of 0.5 can't be reached: 1 is",
     "raise the budget"),
    ("prune-channels: budget = { macs = 0.5 }\ninclude = ['nowhere*']", "deep", "",
     "pass prune-channels: the budget of 0.5 can't be reached: 1 is left", "raise the budget"),
    ("prune-channels: sparsity = 0.5\nimportance = 'activation'", "deep", "",
     "pass prune-channels: ", GIVE_DATA),
    ("prune-channels: sparsity = 0.5\nround_to = 8", "deep", " --data calibration=huge.npz",
     "pass prune-channels: ", "check the data and [data.preprocess]"),
    ("split-conv-svd: rank = 2\nwhen = 'always'", "deep", " --data calibration=huge.npz",
     f"pass split-conv-svd: {NOT_FINITE}", "check the data and [data.preprocess]"),
    ("compress: budget = { macs = 0.8 }", "deep", " --data calibration=huge.npz", "pass compress: ",
     "check the data and [data.preprocess]"),
    ("insert-qdq", "deep", "", "pass insert-qdq: needs calibration data", GIVE_DATA),
    ("insert-qdq", "deep", " --data calibration=nothing", "nothing: holds no images", "put a labels.csv"),
    ("insert-qdq", "deep", " --data calibration=none.npz", "none.npz: holds no samples", None),
    ("insert-qdq", "deep", " --data calibration=absent", "--data calibration=absent: 'calibration': no such file or ",
     "--data calibration=PATH gives another"),
    ("insert-qdq", "deep", " --data calibration=floats.npz", "floats.npz: 'x' is [4, 3, 8, 7], but the model's ",
     None),
    ("equalize-ranges", "deep", " --data calibration=broken.npz", "pass equalize-ranges: broken.npz: 'x' of sample 1 "
     "holds NaN", "leave the sample out"),
    ("insert-qdq", "deep", " --data calibration=broken.npz", "pass insert-qdq: broken.npz: 'x' of sample 1 holds NaN",
     "leave the sample out"),
    ("cast-fp16", "deep", " --data calibration=broken.npz", "pass cast-fp16: broken.npz: 'x' of sample 1 holds NaN",
     "leave the sample out"),
    ("insert-qdq: layers = { aa = { weight_bits = 4 } }", "deep", WITH_DATA,
     "pass insert-qdq: layers: no layer is called 'aa'", "did you mean 'a'?"),
    ("train-quantized", "deep", WITH_DATA, "pass train-quantized: needs train data", "give it with --data train=PATH"),
    ("round-adaptively", "deep", WITH_DATA, "pass round-adaptively: no layer is quantized",
     "insert-qdq must be in front"),
    ("correct-bias", "deep", WITH_DATA, "pass correct-bias: no layer is quantized", "insert-qdq must be in front"),
    ("correct-bias: method = 'empirical'", "deep", "", "pass correct-bias: ", GIVE_DATA),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "message", "hint"), rows(PARAMETERS))
def test_parameters_of_passes(
    here: Path, capfd: pytest.CaptureFixture[str], text: str, place: str, message: str, hint: str | None
) -> None:
    write({"recipe.toml": text})
    check(Refusal(COMPILE, capfd), place + message, hint)


@pytest.mark.parametrize(("text", "network", "data", "message", "hint"), rows(UNFIT_PASSES))
def test_passes_that_can_not_do_it(
    here: Path, capfd: pytest.CaptureFixture[str], text: str, network: str, data: str, message: str, hint: str | None
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    broken = FLOAT_IMAGES.copy()
    broken[1, 0, 3, 3] = np.nan
    write(
        {
            "recipe.toml": of(1, text)[0],
            "model.onnx": model(text=DEEP if network == "deep" else WITHOUT_LAYERS),
            "calibration.npz": npz(images=images),
            "huge.npz": npz(x=np.full((4, 3, 8, 8), 3e38, np.float32)),
            "broken.npz": npz(x=broken),
            "floats.npz": npz(x=FLOAT_IMAGES[:4, :, :, 1:]),
            "none.npz": npz(images=IMAGES[:0]),
            "nothing/.keep": "",
        }
    )
    check(Refusal(COMPILE + data, capfd), message, hint)


@pytest.mark.parametrize("name", ["round-adaptively", "correct-bias"])
def test_what_insert_qdq_found_nothing_for(here: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    write({"recipe.toml": of(1, "insert-qdq", name)[0], "model.onnx": model(text=WITHOUT_LAYERS)})
    refusal = Refusal(f"{COMPILE} --data calibration=test.npz", capfd)
    check(refusal, f"pass {name}: no layer is quantized", "insert-qdq must be in front of it")


# -- targets

TARGETS = [
    ("x87", "no target 'x87'", "did you mean 'x86'?"),
    ("toaster", "no target 'toaster'", "a file of your own is given by its path, such as ./my-board.toml"),
    ("qcs605:npu", "qcs605 has no unit 'npu'", "did you mean 'gpu'?"),
    ("jetson-xavier@31W", "jetson-xavier has no mode '31W'", "did you mean '30W'?"),
    ("x86@15W", "x86 has no mode '15W'", "leave out '@15W'"),
    ("''", "'' is not a target", "write name, name:unit or name:unit@mode, such as qcs605:cpu"),
    ("qcs605:", "'qcs605:' is not a target", "write name, name:unit or name:unit@mode, such as qcs605:cpu"),
    ("./absent.toml", "absent.toml: no such file or directory", None),
    ("./recipe.toml", "./recipe.toml: unknown key 'data'", "did you mean 'dram'?"),
]

# What is replaced in a copy of qcs605.toml, and by what.
BOARDS = [
    ("[dram]", "[dram", "./board.toml: not valid TOML: expected ']' at the end of a table declaration", None),
    ("clock_ghz = 2.5 ", "#", "./board.toml: unit 1 (cpu): cluster 1 (gold): 'clock_ghz' is missing", None),
    (
        "clock_ghz = 2.5 ",
        "clock_ghz = -2.5 ",
        "./board.toml: unit 1 (cpu): cluster 1 (gold): 'clock_ghz' must be greater than or equal to 0.001, not -2.5",
        None,
    ),
    (
        "clock_ghz = 2.5 ",
        "clock_ghz = inf ",
        "./board.toml: unit 1 (cpu): cluster 1 (gold): 'clock_ghz' must be a finite number, not inf",
        None,
    ),
    (
        "issue_width = 3 ",
        "issue_widht = 3 ",
        "./board.toml: unit 1 (cpu): cluster 1 (gold): unknown key 'issue_widht'",
        "did you mean 'issue_width'?",
    ),
    (
        "picojoule_per_mac = { float32 = 10.0, ",
        "picojoule_per_mac = { ",
        "./board.toml: unit 2 (gpu): cluster 'shader': picojoule_per_mac has float16, int8, but dtypes has float16, ",
        None,
    ),
    (
        "active_watts = 1.2 ",
        "active_watts = -1.2 ",
        "./board.toml: unit 1 (cpu): cluster 1 (gold): 'active_watts' must be greater than or equal to 0.000001, not ",
        None,
    ),
    (
        "active_watts = 1.2 ",
        "active_watts = { float32 = 1.2 } ",
        "./board.toml: unit 1 (cpu): cluster 1 (gold): 'active_watts' must be a number, not a table",
        None,
    ),
    (
        "host = {",
        'host = "llvm" # {',
        "./board.toml: unit 2 (gpu): 'tvm' needs a table 'host', such as { kind = \"llvm\", mtriple = ",
        None,
    ),
    ("host = {", "# {", "./board.toml: unit 2 (gpu): 'tvm' needs a table 'host', such as { kind = \"llvm\", ", None),
    (
        'host = { kind = "llvm", mtriple',
        'host = { kind = "llvm", triple',
        "./board.toml: unit 2 (gpu): 'host' needs",
        None,
    ),
    (
        "clock_ghz = 2.5 ",
        "clock_ghz = 2500 ",
        "./board.toml: unit 1 (cpu): cluster 1 (gold): 'clock_ghz' must be less than or equal to 20, not 2500",
        None,
    ),
    ("int8_dot = false", "int8_dot = 0", "./board.toml: unit 1 (cpu): 'int8_dot' must be a boolean, not 0", None),
    ('kind = "llvm"', 'kind = "gcc"', "./board.toml: unit 1 (cpu): 'tvm' of a cpu must be of kind 'llvm'", None),
    (
        '"cortex-a75"',
        '"cortex-a57x"',
        "board: unit 'cpu': tvm: LLVM knows no processor 'cortex-a57x' for aarch64-linux-gnu",
        "did you mean 'cortex-a57'?",
    ),
    (
        "-dotprod",
        "-dotproduct",
        "board: unit 'cpu': tvm: LLVM knows no feature 'dotproduct' of aarch64-linux-gnu",
        "did you mean 'dotprod'?",
    ),
    ("aarch64-linux-gnu", "zx81-sinclair", "board: no code can be generated for zx81 yet", "use --no-lower"),
]


@pytest.mark.parametrize(("spec", "message", "hint"), rows(TARGETS))
def test_target(here: Path, capfd: pytest.CaptureFixture[str], spec: str, message: str, hint: str | None) -> None:
    check(Refusal(COMPILE.replace("x86", spec), capfd), message, hint)


@pytest.mark.parametrize(("old", "new", "message", "hint"), rows(BOARDS))
def test_board(
    here: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, message: str, hint: str | None
) -> None:
    shipped = (Path(target.__file__).parents[1] / "targets/qcs605.toml").read_text()
    assert old in shipped
    write({"board.toml": shipped.replace(old, new)})
    check(Refusal("compile recipe.toml model.onnx --target ./board.toml", capfd), message, hint)


DSPS = [
    (
        "hexagon-unknown-elf",
        "xtensa-unknown-elf",
        "board: no code can be generated for its dsp yet",
        "use --no-lower, or --target ./board.toml:cpu",
    ),
    (
        '"+hvxv65", "+hvx-length128b"',
        '"+hvxv65"',
        "./board.toml: unit 3 (dsp): 'mattr' of 'tvm' needs \"+hvx-length128b\"",
        None,
    ),
    (
        "+hvxv65",
        "+hvxv64",
        "board: unit 'dsp': tvm: LLVM knows no feature 'hvxv64' of hexagon-unknown-elf",
        "did you mean",
    ),
    ("hexagonv65", "hexagonv6", "board: unit 'dsp': tvm: LLVM knows no processor 'hexagonv6'", "did you mean"),
]


@pytest.mark.parametrize(("old", "new", "message", "hint"), rows(DSPS))
def test_dsp(here: Path, capfd: pytest.CaptureFixture[str], old: str, new: str, message: str, hint: str | None) -> None:
    shipped = (Path(target.__file__).parents[1] / "targets/qcs605.toml").read_text()
    assert old in shipped
    write({"board.toml": shipped.replace(old, new)})
    check(Refusal("compile recipe.toml model.onnx --target ./board.toml:dsp", capfd), message, hint)


# -- options and other commands

FORM = "such as --shape input=1,3,224,224"
A_FILE = "give the name of a file in it"
GIVE_A_COMPILE = "compile it first: nnc compile RECIPE model.onnx --target TARGET -o DIR"

COMMANDS = [
    ("compile absent.toml model.onnx --target x86", "absent.toml: no such file or directory", None),
    ("compile folder.toml model.onnx --target x86", "folder.toml: is a directory", None),
    ("compile simplfy model.onnx --target x86", "no recipe 'simplfy'", "did you mean 'simplify'?"),
    ("compile model.onnx recipe.toml --target x86", "model.onnx: a model, not a recipe", "the recipe comes before the"),
    ("compile recipe.toml absent.onnx --target x86", "absent.onnx: no such file", None),
    ("compile recipe.toml folder.toml --target x86", "folder.toml: a folder, not an ONNX model", None),
    ("compile recipe.toml empty --target x86", "empty: the file is empty", None),
    ("compile recipe.toml pointer --target x86", "pointer: a Git LFS pointer, not the model itself", "git lfs pull"),
    (f"{COMPILE} --shape input=1,3,8,8", "--shape: model.onnx has no input 'input'", "its inputs are 'x'"),
    (f"{COMPILE} --shape x=1,3,8", "--shape: input 'x' of model.onnx is ?,3,8,8, not 1,3,8", None),
    (f"{COMPILE} --shape x=1,3,9,9", "--shape: input 'x' of model.onnx is ?,3,8,8, not 1,3,9,9", None),
    (f"{COMPILE} --shape x=0,3,8,8", "--shape x=0,3,8,8: not of the form INPUT=N,C,H,W", FORM),
    (f"{COMPILE} --shape x=-1,3,8,8", "--shape x=-1,3,8,8: not of the form INPUT=N,C,H,W", FORM),
    (f"{COMPILE} --shape x=1x3x8x8", "--shape x=1x3x8x8: not of the form INPUT=N,C,H,W", FORM),
    (f"{COMPILE} --shape 1,3,8,8", "--shape 1,3,8,8: not of the form INPUT=N,C,H,W", FORM),
    (f"{COMPILE} --shape x=99999999999999999999,3,8,8", "--shape x=99999999999999999999,3,8,8: not of the form", FORM),
    (
        "compile recipe.toml any.onnx --target x86 --shape x=1,3,1,8",
        "any.onnx: node 'c' (Conv) would have an output of 1x4x-1x6",
        "the input of the model is too small; --shape sets its size",
    ),
    (f"{COMPILE} --data tets=test.npz", "--data tets=test.npz: there is no data 'tets'", "did you mean 'test'?"),
    (f"{COMPILE} --data test.npz", "--data test.npz: not of the form KEY=PATH", "such as --data test=test.npz"),
    (f"{COMPILE} --data test=", "--data test=: not of the form KEY=PATH", "such as --data test=test.npz"),
    (
        f"{COMPILE} --data test=absent.npz",
        "--data test=absent.npz: 'test': no such file or folder: absent.npz",
        "--data test=PATH gives another",
    ),
    (
        f"{COMPILE} --set max_drop=0.02",
        "--set max_drop=0.02: not of the form pass.key=value",
        "such as --set check-accuracy.max_drop=0.02",
    ),
    (
        f"{COMPILE} --set check-acuracy.max_drop=0.5",
        "--set check-acuracy.max_drop=0.5: recipe.toml has no pass 'check-acuracy'",
        "did you mean 'check-accuracy'?",
    ),
    (
        f"{COMPILE} --set check-accuracy.maxdrop=0.5",
        "--set check-accuracy.maxdrop=0.5: unknown key 'maxdrop'",
        "did you mean 'max_drop'?",
    ),
    (
        f"{COMPILE} --set check-accuracy.max_drop=lots",
        "--set check-accuracy.max_drop=lots: 'max_drop' must be a number from 0 to 1, not the string 'lots'",
        None,
    ),
    (
        f"{COMPILE} --set check-accuracy.max_drop=5",
        "--set check-accuracy.max_drop=5: 'max_drop' must be a number from 0 to 1, not 5",
        "it is a share: write max_drop = 0.05",
    ),
    (
        f"{COMPILE} --set check-accuracy.max_drop=[1",
        "--set check-accuracy.max_drop=[1: '[1' is not a value of TOML",
        "numbers and true are written as they are, ",
    ),
    (
        f"{COMPILE} --set check-accuracy#2.max_drop=1",
        "--set check-accuracy#2.max_drop=1: recipe.toml has 1 of 'check-accuracy', not 2",
        None,
    ),
    (f"{COMPILE} -o model.onnx", "model.onnx: a file, not a folder", "choose another output folder with -o"),
    (f"{COMPILE} -o model.onnx/out", "model.onnx/out: not a directory", None),
    (f"{COMPILE} -o /proc/nnc", "/proc/nnc: ", None),
    (f"{COMPILE} --threads 100000", "--threads 100000: x86:cpu has ", "give 1 to "),
    ("plan absent.toml model.onnx --target x86", "absent.toml: no such file or directory", None),
    (
        "bisect simplify model.onnx",
        "bisect needs test data",
        "give it with --data test=PATH or in the recipe's [data]",
    ),
    ("run absent --input random", "absent: no such folder", None),
    ("run folder.toml --input random", "folder.toml: holds no finished compile", "give the folder that nnc compile"),
    ("run model.onnx --input random", "model.onnx: a model, not the folder of a compile", GIVE_A_COMPILE),
    ("bench folder.toml", "folder.toml: holds no finished compile", "give the folder that nnc compile"),
    ("bench absent", "absent: no such folder", None),
    ("package absent", "absent: no such folder", None),
    ("package model.onnx", "model.onnx: a model, not the folder of a compile", "compile it first: nnc compile"),
    ("eval absent.onnx --data test.npz", "absent.onnx: no such file", None),
    ("eval model.onnx --data absent.npz", "absent.npz: no such file or folder", None),
    (
        "eval model.onnx --data test.npz --mean a,b",
        "--mean a,b: not numbers separated by commas",
        "such as --mean 0.485,0.456,0.406",
    ),
    ("eval model.onnx --data test.npz --layout NHCW", "--layout NHCW: ", "did you mean 'NHWC'?"),
    ("eval model.onnx --data test.npz --threads 100000", "--threads 100000: this machine has ", "give 1 to "),
    ("tune absent.onnx --target x86", "absent.onnx: no such file", None),
    ("tune model.onnx", "--target is missing", "such as --target x86"),
    ("tune folder.toml", "folder.toml: holds no finished compile", "give the folder that nnc compile"),
    ("tune model.onnx --target jetson-xavier:gpu", "jetson-xavier:gpu@", "name a unit, such as qcs605:cpu"),
    (
        "tune model.onnx --target x86 --time soon",
        "--time: expected seconds, minutes or hours, not 'soon'",
        "such as 90s",
    ),
    ("tune model.onnx --target x86 --time 0m", "--time: expected seconds, minutes or hours, not '0m'", "such as 90s"),
    ("tune model.onnx --target x86 --rpc board:9190", "--rpc and --key belong together", "such as --rpc 192.168.1.10"),
    (
        "tune model.onnx --target x86 --rpc board --key k",
        "--rpc: expected HOST:PORT, not 'board'",
        "such as --rpc 192.",
    ),
    ("tune model.onnx --target x86 --rpc board:0 --key k", "--rpc: expected HOST:PORT, not 'board:0'", "such as --rpc"),
    ("tune model.onnx --target x86 --threads 100000", "--threads 100000: x86:cpu has ", "give 1 to "),
    ("records --target x86 --threads 100000", "--threads 100000: x86:cpu has ", "give 1 to "),
    ("records --target x86 --import absent.jsonl", "absent.jsonl: no such file", None),
    ("records --target x86 --import empty", "empty: holds no records", "nnc records --export writes such files"),
    ("records --target x86 --threads 1 --import empty", "--import: --threads has no say", "leave it out"),
    ("records --target x86 --records empty --export o", "empty: holds no records", "nnc tune MODEL --target x86:cpu"),
    ("records --target x86 --records folder.toml", "folder.toml: is a directory", "give the file of nnc records"),
    ("inspect model.onnx --threads 2", "--threads 2: nothing is predicted without --target", "such as --target x86"),
    (
        "inspect folder.toml --latency emulated --groups",
        "--groups: --latency emulated shows kernels, not channels",
        "leave one of them out",
    ),
    (
        "inspect folder.toml --latency emulated --shape x=1",
        "--shape: --latency emulated executes a library, which has its shapes",
        "compile again with it",
    ),
    ("inspect absent.onnx", "absent.onnx: no such file", None),
    ("inspect model.onnx --target x87", "no target 'x87'", "did you mean 'x86'?"),
    ("network resnet51", "unknown network 'resnet51'", "did you mean 'resnet56'?"),
    ("network resnet18 --width nan", "resnet18: the width must be a number above 0, not nan", "1.0 is as published"),
    ("network foo/bar", "unknown network 'foo/bar'", "'nnc network list' shows all"),
    ("network resnet18 --input 0", "resnet18: an input of 0x0 is too small", "32 is the smallest"),
    ("network mobilenet_v1_0.25_0", "mobilenet_v1_0.25_0: an input of 0x0 is too small", "32 is the smallest"),
    ("network resnet18 --input 3", "resnet18: an input of 3x3 is too small", "32 is the smallest"),
    ("network resnet18 --classes 0", "resnet18: the number of classes must be at least 1, not 0", None),
    ("network squeezenet1_1 -o absent/m.onnx", "absent/m.onnx: no such file or directory", None),
    ("network squeezenet1_1 -o folder.toml", "folder.toml: a folder, not a file", A_FILE),
    ("network resnet50 -o .", ".: a folder, not a file", A_FILE),
    ("run absent --input random -o .", ".: a folder, not a file", A_FILE),
    ("validate absent.csv --plot .", ".: a folder, not a file", A_FILE),
    ("records --target x86 --records empty --export .", ".: a folder, not a file", A_FILE),
    ("example .", "model.onnx: there is such a file already", "choose another folder, or remove it"),
    ("example model.onnx", "model.onnx: a file, not a folder", None),
    ("passes fold-batchnrom", "no pass is called 'fold-batchnrom'", "did you mean 'fold-batchnorm'?"),
    ("targets qcs606", "no target 'qcs606'", "did you mean 'qcs605'?"),
    ("recipes simplfy", "no recipe is called 'simplfy'", "did you mean 'simplify'?"),
    ("schema --use absent.py", "absent.py: no such Python file", "paths in 'use' are relative to the recipe"),
]


@pytest.mark.parametrize(("command", "message", "hint"), rows(COMMANDS))
def test_command(here: Path, capfd: pytest.CaptureFixture[str], command: str, message: str, hint: str | None) -> None:
    write(
        {
            "folder.toml/.keep": "",
            "empty": "",
            "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "any.onnx": model(open_size),
        }
    )
    check(Refusal(command, capfd), message, hint)


USAGE = [
    ("compile recipe.toml model.onnx", "Missing option '--target'"),
    ("compile recipe.toml", "Missing argument 'MODEL'"),
    (f"{COMPILE} --threads 0", "Invalid value for '--threads'"),
    (f"{COMPILE} --threads two", "Invalid value for '--threads'"),
    (f"{COMPILE} --seed -1", "Invalid value for '--seed'"),
    (f"{COMPILE} --taget x86", "No such option: --taget"),
    (f"{COMPILE} more", "Got unexpected extra argument"),
    ("compil recipe.toml model.onnx", "Did you mean 'compile'?"),
]


@pytest.mark.parametrize(("command", "message"), USAGE, ids=[row[0][-30:] for row in USAGE])
def test_usage(
    here: Path, capfd: pytest.CaptureFixture[str], command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(here)
    monkeypatch.setattr(sys, "argv", ["nnc", *shlex.split(command)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr()
    assert ended.value.code == 2
    assert message in said.err
    assert said.out == ""
    assert state(here) == before


def check(refusal: Refusal, message: str, hint: str | None) -> None:
    """Texts may go on after what is expected, where they end with a system's or a library's words."""
    assert refusal.message.startswith(message)
    assert (refusal.hint is None) if hint is None else (refusal.hint or "").startswith(hint)
