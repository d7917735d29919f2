"""What commands are given: arguments and options that several share, and their texts read into what they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nnc.errors import NncError

if TYPE_CHECKING:
    from nnc.artifact import Artifact
    from nnc.compiling.compilation import Job
    from nnc.data.preprocess import Options
    from nnc.target import Target

COLUMNS = (
    "A CSV file of measured latencies, one per row: chip, unit, cores_used, core_type, clock_ghz, framework, dtype, "
    "model_id, input_shape, latency_ms; batch and quality (A to D) are read where they are there, and of energies "
    "energy_mj and power_scope ('whole board' is compared); other columns are left alone."
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")]
EitherArgument = Annotated[Path, typer.Argument(metavar="MODEL|DIR", help="An ONNX file, or the folder of a compile.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that nnc compile wrote.")]
NameArgument = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="One of them, in detail.", show_default=False)
]
TargetOption = Annotated[
    str, typer.Option("--target", "-t", metavar="T", help="A name, name:unit or name:unit@mode, or a TOML file.")
]
DataOption = Annotated[
    list[str],
    typer.Option(
        "--data", metavar="KEY=PATH", help="calibration, test, train or teacher=PATH, in place of the recipe's."
    ),
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="PASS.KEY=VALUE", help="A parameter of a pass, in place of the recipe's.")
]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="H,W", help="Of the images; else as the recipe or the model says.")
]
CropOption = Annotated[
    int | None,
    typer.Option("--crop", min=1, metavar="N", help="Side of the centre to cut out of images; else the recipe's."),
]
MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="Of pixels from 0 to 1; else the recipe's, or 0.")
]
StdOption = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="Of pixels from 0 to 1; else the recipe's, or 1.")
]
LayoutOption = Annotated[
    str | None, typer.Option("--layout", metavar="NCHW|NHWC", help="Of the input; else the recipe's, or NCHW.")
]
ShapeOption = Annotated[
    list[str],
    typer.Option("--shape", metavar="INPUT=N,C,H,W", help="The shape of an input that the model leaves open."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Cores that share the work; else as the target says."),
]
LatencyOption = Annotated[
    Literal["analytic", "emulated"],
    typer.Option("--latency", help="Of layers: from the target's figures, or from the code itself (AArch64)."),
]
RecordsOption = Annotated[
    Path | None,
    typer.Option(
        "--records", metavar="FILE", help="Of tuning records; else that of NNC_TUNING or the cache, as nnc compile."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, and no tables where files result.")]
UseOption = Annotated[list[Path], typer.Option("--use", metavar="FILE", help="A Python file with passes of your own.")]


TableArgument = Annotated[Path, typer.Argument(metavar="TABLE", help=COLUMNS)]


def job(
    recipe: str,
    model: Path,
    target: str,
    data: Sequence[str],
    overrides: Sequence[str],
    shape: Sequence[str],
    *,
    preprocess: Options,
    out: Path | None = None,
    lower: bool = False,
    threads: int | None = None,
    seed: int,
    latency: Literal["analytic", "emulated"] = "analytic",
) -> Job:
    """Everything that the arguments name, read and checked."""
    from nnc import recipe as recipes
    from nnc import target as targets
    from nnc.compiling.compilation import Job

    chip = targets.load(target)
    read = recipes.load(recipe, overrides, data, preprocess)
    read.require_packages()
    return Job(read, model, chip, out or _folder(model, chip), shapes(shape), threads, lower, seed, latency)


def _folder(model: Path, chip: Target) -> Path:
    """Where results go by default: the unit and the power mode are named where they aren't the first of the chip."""
    unit = f"-{chip.unit.name}" if chip.unit != chip.units[0] else ""
    mode = f"-{chip.mode}" if chip.mode and chip.mode != chip.modes[0] else ""
    return Path(f"{model.stem}-{chip.name}{unit}{mode}")


def other_side(folder: str) -> Artifact:
    """The compile that `nnc bench --against` names."""
    from nnc.artifact import Artifact

    if not Path(folder).exists():
        raise NncError(f"--against {folder}: no such folder", "give onnxruntime, or the folder of another compile")
    return Artifact.open(Path(folder))


def sides(text: str) -> int | tuple[int, int]:
    """What --input says of a network: one side, or height and width."""
    if not (match := re.fullmatch(r"(-?\d+)(?:x(\d+))?", text)):
        raise NncError(f"--input: expected a number of pixels or HEIGHTxWIDTH, not '{text}'", "such as 224 or 384x512")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


def shapes(options: Sequence[str]) -> dict[str, list[int]]:
    """['input=1,3,224,224'] -> {'input': [1, 3, 224, 224]}."""
    found = {}
    for option in options:
        name, equals, sizes = option.rpartition("=")
        words = [word.strip() for word in sizes.split(",")]
        if not name or not equals or not all(re.fullmatch("0*[1-9][0-9]{0,8}", word) for word in words):
            raise NncError(f"--shape {option}: not of the form INPUT=N,C,H,W", "such as --shape input=1,3,224,224")
        found[name] = [int(word) for word in words]
    return found
