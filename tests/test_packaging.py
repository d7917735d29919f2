"""What is installed: everything that is in the folders, and it works without them."""

import ast
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from nnc import testing

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]

NET = """
net (float[1, 3, 16, 16] x) => (float[1, 8, 16, 16] y)
<float[8, 3, 3, 3] W, float[8] scale, float[8] bias, float[8] mean, float[8] var>
{
    c = Conv<pads = [1, 1, 1, 1]>(x, W)
    b = BatchNormalization(c, scale, bias, mean, var)
    y = Relu(b)
}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy, so that what setuptools leaves behind is not in the checkout."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS.values():
        for file in contents(folder):
            target = copy / folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / folder / file).read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(copy))
    (file,) = out.glob("nnc-*.whl")
    return file


def contents(folder: str) -> list[Path]:
    files = (file for file in (ROOT / folder).rglob("*") if file.is_file())
    return [file.relative_to(ROOT / folder) for file in files if "__pycache__" not in file.parts]


def run(*command: str, cwd: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_folder_with_code_is_a_package() -> None:
    found = set()
    for package, folder in FOLDERS.items():
        for file in contents(folder):
            if file.suffix == ".py":
                found.add(".".join([package, *file.parent.parts]))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_package_that_is_imported_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    texts = itertools.chain(PROJECT["project"]["dependencies"], *extras)
    declared = {canonical(re.split(r"[^\w.-]", text)[0]) for text in texts}
    declared |= {"protobuf", "pydantic-core"}  # of onnx and pydantic, which can't do without
    known = importlib.metadata.packages_distributions()
    files = [ROOT / folder / file for folder in FOLDERS.values() for file in contents(folder) if file.suffix == ".py"]
    imported = set().union(*map(imports, files)) - sys.stdlib_module_names - {"nnc"}
    assert {"numpy", "torch"} <= imported
    assert not [name for name in imported if not declared & {canonical(each) for each in known.get(name, [name])}]


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def imports(file: Path) -> set[str]:
    """The packages that a module imports, here or there."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


@pytest.mark.slow
def test_only_what_serves_a_compile_knows_of_it() -> None:
    """Passes, and what they call, depend on nothing that `nnc compile` does with them."""
    knowing = {
        file.relative_to(ROOT).as_posix()
        for folder in ("compiler", "passes")
        for file in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(from|import) nnc\.compiling", file.read_text("utf-8"), re.MULTILINE)
    }
    allowed = ("compiler/commands/", "compiler/compiling/", "compiler/arguments.py", "compiler/artifact.py")
    assert {file for file in knowing if not file.startswith(allowed)} == {"compiler/display/page.py"}


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    wanted = {f"{package.replace('.', '/')}/{file}" for package, folder in FOLDERS.items() for file in contents(folder)}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("nnc/")}
    assert packed == wanted


@pytest.mark.slow
def test_the_wheel_compiles_a_model_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, whose packages other than nnc are this one's: they need not be downloaded again."""
    environment, folder = tmp_path / "environment", tmp_path / "empty"
    folder.mkdir()
    venv.create(environment, with_pip=True)
    python = str(environment / "bin/python")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    (here,) = {Path(path) for path in sys.path if path.endswith("site-packages")}
    # A path file, and not PYTHONPATH: of a path file's folder no other path file is read, such as that of this nnc.
    (site / "borrowed.pth").write_text(f"{here}\n")
    assert run(python, "-c", "import nnc; print(nnc.__file__)", cwd=folder).startswith(str(site))

    (folder / "model.onnx").write_bytes(testing.model(NET).SerializeToString())
    nnc = str(environment / "bin/nnc")
    run(nnc, "compile", "simplify", "model.onnx", "--target", "x86", "-o", "out", "--quiet", cwd=folder)
    run(nnc, "compile", "simplify", "model.onnx", "--target", "qcs605", "-o", "board", "--quiet", cwd=folder)
    assert "float32" in run(nnc, "run", "out", "--input", "random", cwd=folder)
    assert (folder / "board" / "module.so").read_bytes()[18:20] == (183).to_bytes(2, "little"), "an ELF for AArch64"
    assert {file.name for file in (folder / "out").iterdir() if file.is_file()} == {
        "model.onnx", "module.so", "report.json", "report.html", "nnc.lock",
    }  # fmt: skip
