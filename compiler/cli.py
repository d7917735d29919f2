"""The command line: `nnc compile`, and everything around it.

Commands import what they use when they run, so that `nnc --help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nnc import __version__
from nnc.errors import NncError

if TYPE_CHECKING:
    from nnc.artifact import Artifact
    from nnc.compilation import Job


class _Commands(TyperGroup):
    """Turns the errors of every command into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        from nnc.console import failing

        with failing():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make neural networks smaller and faster: a recipe, an ONNX model and a target in, ONNX and a library out.",
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
    list[str], typer.Option("--data", metavar="KEY=PATH", help="calibration=PATH or test=PATH, not the recipe's.")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="PASS.KEY=VALUE", help="A parameter of a pass, not the recipe's.")
]
ShapeOption = Annotated[
    list[str],
    typer.Option("--shape", metavar="INPUT=N,C,H,W", help="The shape of an input that the model leaves open."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="Cores that share the work, not all of the unit's.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, and no tables where files result.")]
UseOption = Annotated[list[Path], typer.Option("--use", metavar="FILE", help="A Python file with passes of your own.")]


def main() -> None:
    """Entry point of the command `nnc`."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # the shell closed it: nnc ... >&-
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
    try:
        app(prog_name="nnc")
    except KeyboardInterrupt:  # while the arguments are read
        raise SystemExit(130) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"nnc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("compile")
def compile_(
    recipe: RecipeArgument,
    model: ModelArgument,
    target: TargetOption,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="The folder for the results; else ./MODEL-TARGET.")
    ] = None,
    data: DataOption = [],  # noqa: B006  # typer makes a new list
    set_: SetOption = [],  # noqa: B006
    shape: ShapeOption = [],  # noqa: B006
    no_lower: Annotated[bool, typer.Option("--no-lower", help="Build no library, only the compressed model.")] = False,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a model and compile it for a target."""
    from nnc import compilation, console, summaries

    job = _job(recipe, model, target, data, set_, shape, out=out, lower=not no_lower, threads=threads, seed=seed)
    with console.progress(quiet) as progress:
        report = compilation.compile_model(job, progress)
    if as_json:
        _print_json(report)
    elif not quiet:
        summaries.show_compiled(report, job.out)


@app.command()
def plan(
    recipe: RecipeArgument,
    model: ModelArgument,
    target: TargetOption,
    data: DataOption = [],  # noqa: B006
    set_: SetOption = [],  # noqa: B006
    shape: ShapeOption = [],  # noqa: B006
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what each pass would do, and what it would leave alone and why. Writes nothing."""
    from nnc import compilation, console, summaries

    job = _job(recipe, model, target, data, set_, shape, threads=threads, seed=seed)
    with console.progress(quiet) as progress:
        planned = compilation.plan(job, progress)
    if as_json:
        _print_json(planned)
    else:
        summaries.show_plan(planned)


@app.command()
def bisect(
    recipe: RecipeArgument,
    model: ModelArgument,
    target: TargetOption = "x86",
    data: Annotated[
        list[str], typer.Option("--data", metavar="[KEY=]PATH", help="The test data, or calibration=PATH.")
    ] = [],  # noqa: B006
    set_: SetOption = [],  # noqa: B006
    shape: ShapeOption = [],  # noqa: B006
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find the pass that costs the accuracy: it is measured after each one."""
    from nnc import compilation, console, summaries

    keyed = [each if "=" in each else f"test={each}" for each in data]
    job = _job(recipe, model, target, keyed, set_, shape, seed=seed)
    with console.progress(quiet) as progress:
        states = compilation.bisect(job, progress)
    if as_json:
        _print_json([{"after": name, "accuracy": accuracy} for name, accuracy in states])
    else:
        summaries.show_bisection(states)


@app.command()
def run(
    folder: FolderArgument,
    inputs: Annotated[
        str, typer.Option("--input", "-i", metavar="FILE", help="An .npz with one array per input, or 'random'.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="An .npz for the outputs.")] = None,
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a compiled model: here, or an AArch64 one in an emulator."""
    from nnc import measurements
    from nnc.artifact import Artifact, load_arrays, save_arrays

    artifact = Artifact.open(folder)
    given = artifact.random_inputs(seed) if inputs == "random" else load_arrays(Path(inputs))
    outputs = artifact.run(given, threads, place=inputs)
    if out is not None:
        save_arrays(out, outputs)
    if as_json:
        _print_json({"runtime": artifact.runtime, "outputs": measurements.described(outputs)})
    elif not quiet:
        measurements.show_outputs(outputs, artifact.runtime, out)


@app.command()
def bench(
    folder: FolderArgument,
    against: Annotated[
        str, typer.Option("--against", metavar="DIR", help="The folder of another compile, or onnxruntime.")
    ] = "onnxruntime",
    rounds: Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="How often each side has its turn.")] = 20,
    threads: ThreadsOption = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time every kernel of the library instead.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Time a compiled model on this machine, in turns with onnxruntime on the same model or with another compile.

    The ratio says how many times faster than the other side DIR is: give the compile before as --against.
    """
    if folder.suffix == ".onnx":
        hint = f"compile it first (nnc compile RECIPE {folder} --target x86 -o DIR), then nnc bench DIR"
        raise typer.BadParameter(f"{folder} is a model, not the folder of a compile: {hint}", param_hint="DIR")
    if profile and against != "onnxruntime":
        raise typer.BadParameter("it times the kernels of one library, there is no other side", param_hint="--profile")
    from nnc import benchmark, console, measurements
    from nnc.artifact import Artifact

    artifact = Artifact.open(folder)
    if profile:
        kernels = benchmark.profile(artifact, threads or artifact.threads)
        _print_json(kernels) if as_json else measurements.show_profile(kernels)
        return
    other = None if against == benchmark.ONNXRUNTIME else _other_side(against)
    with console.progress(quiet) as progress:
        timing = benchmark.compare(artifact, rounds, threads, progress, other)
    _print_json(timing.to_dict()) if as_json else measurements.show_timing(timing)


@app.command("eval")
def evaluate(
    model: EitherArgument,
    data: Annotated[Path, typer.Option("--data", metavar="D", help="An .npz or a folder of images, with labels.")],
    size: Annotated[str | None, typer.Option("--size", metavar="H,W", help="Of the images; else the model's.")] = None,
    crop: Annotated[
        int | None, typer.Option("--crop", min=1, metavar="N", help="Side of the centre to cut out.")
    ] = None,
    mean: Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="Of pixels from 0 to 1; else 0.")] = None,
    std: Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="Of pixels from 0 to 1; else 1.")] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", metavar="NCHW|NHWC", help="Of the input; else NCHW.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, metavar="N", help="Only N, drawn at random.")
    ] = None,
    shape: ShapeOption = [],  # noqa: B006
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the accuracy of a model in onnxruntime, or of a compiled one in its library.

    The preprocessing is that of the recipe where the model is a compiled one; options replace parts of it.
    """
    from nnc import console, evaluation, measurements

    options = {"size": size, "crop": crop, "mean": mean, "std": std, "layout": layout}
    with console.progress(quiet) as progress:
        measured = evaluation.evaluate(
            model, data, options, _shapes(shape), samples=samples, seed=seed, threads=threads, progress=progress
        )
    if as_json:
        _print_json(measured.to_dict())
    else:
        measurements.show_accuracy(measured)


@app.command("package")
def package_(
    folder: FolderArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The .tar.gz; else beside DIR, named like it.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pack a compiled model into one file that runs on the board, with nothing to install there."""
    from nnc import console, measurements
    from nnc.package import package

    with console.progress(quiet) as progress:
        made = package(folder, out, progress)
    if as_json:
        _print_json(made.to_dict())
    elif not quiet:
        measurements.show_package(made)


@app.command()
def inspect(
    model: EitherArgument,
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="T", help="Predict the latency on this target.")
    ] = None,
    shape: ShapeOption = [],  # noqa: B006
    threads: ThreadsOption = None,
    groups: Annotated[bool, typer.Option("--groups", help="Show which channels go together, and which stay.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the layers of a model: shapes, MACs, parameters, and on a target what they cost."""
    from nnc import inspection, summaries
    from nnc import target as targets

    path = model / "model.onnx" if model.is_dir() else model
    chip = None if target is None else targets.load(target)
    inspected = inspection.inspect(path, chip, _shapes(shape), threads, groups)
    if as_json:
        _print_json(inspected)
    elif groups:
        summaries.show_groups(inspected)
    else:
        summaries.show_inspection(inspected)


_COLUMNS = (
    "A CSV file of measured latencies, one per row: chip, unit, cores_used, core_type, clock_ghz, framework, dtype, "
    "model_id, input_shape, latency_ms; other columns are left alone."
)


@app.command()
def validate(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help=_COLUMNS)],
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="T", help="Only the rows of its chip, by its own figures.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", metavar="DIR", help="Where MODEL_ID.onnx is; else reference networks.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw predictions over measurements, as SVG.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare predicted latencies with a table of measured ones."""
    from nnc import console, validation, wire
    from nnc.validation import listing, scatter

    with console.progress(quiet) as progress:
        found = validation.validate(table, target, models, progress)
    if plot is not None:
        with wire.replacing(plot) as file:
            file.write(scatter.svg(found["rows"]).encode())
    _print_json(found) if as_json else listing.show(found)


@app.command()
def network(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Such as resnet50 or mobilenet_v1_0.25_128; 'list' shows all of them.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="The file; else ./NAME.onnx.")] = None,
    size: Annotated[
        str | None, typer.Option("--input", metavar="N|HxW", help="Side of the image in pixels, or height and width.")
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", metavar="N", help="Outputs; else as published.")] = None,
    width: Annotated[
        float | None, typer.Option("--width", metavar="F", help="Factor on the channels of every layer; else 1.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a reference network of the literature, with seeded weights."""
    from nnc import console, inspection, listings, networks, summaries, wire

    if name == "list":
        with console.progress(quiet) as progress:
            rows = networks.listing(progress)
        _print_json(rows) if as_json else listings.show_networks(rows)
        return
    path, sides = out or Path(f"{name}.onnx"), None if size is None else _sides(size)
    with console.progress(quiet) as progress, wire.replacing(path) as file:
        model = networks.build(name, input_size=sides, classes=classes, width=width, seed=seed, progress=progress)
        progress("write", 1, 2)
        file.write(model.SerializeToString(deterministic=True))
    figures = {"file": str(path)} | inspection.inspect(path, None, {})["totals"]
    if as_json:
        _print_json(figures)
    elif not quiet:
        summaries.show_network(figures)


@app.command()
def example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for the files; made where it is missing.")],
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Write an example to try nnc on: a small trained network, labelled images and a recipe."""
    from nnc import console
    from nnc import example as examples

    with console.progress(quiet) as progress:
        files = examples.write(folder, seed, progress)
    if not quiet:
        print("\n".join(map(str, files)))


@app.command()
def passes(name: NameArgument = None, use: UseOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """List the passes that a recipe can name."""
    from nnc import catalog, listings

    entries = catalog.passes(use)
    if name is None:
        _print_json(list(entries.values())) if as_json else listings.show_list(entries, ("effect",))
    else:
        entry = catalog.find("pass", name, entries)
        _print_json(entry) if as_json else listings.show_pass(entry)


@app.command()
def targets(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the targets, or show the figures of one; x86 shows what was detected here."""
    from nnc import catalog, listings

    if name is None:
        entries = catalog.targets()
        _print_json(list(entries.values())) if as_json else listings.show_list(entries, ("units", "modes"))
    else:
        entry = catalog.target(name)
        _print_json(entry) if as_json else listings.show_target(entry)


@app.command()
def recipes(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """List the recipes that nnc ships, or print one: a start for your own."""
    from nnc import catalog, listings

    entries = catalog.recipes()
    if name is None:
        _print_json(list(entries.values())) if as_json else listings.show_list(entries, ())
    else:
        entry = catalog.find("recipe", name, entries)
        _print_json(entry) if as_json else print(entry["toml"], end="")


@app.command()
def schema(use: UseOption = []) -> None:  # noqa: B006
    """Print the JSON Schema of recipes, for editors."""
    from nnc import recipe

    _print_json(recipe.schema(use))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show which optional tools are there, and how to get the others."""
    from dataclasses import asdict

    from nnc import listings
    from nnc.doctor import checks

    found = checks()
    if as_json:
        _print_json([asdict(check) for check in found])
    else:
        listings.show_checks(found)


def _job(
    recipe: str,
    model: Path,
    target: str,
    data: Sequence[str],
    overrides: Sequence[str],
    shape: Sequence[str],
    *,
    out: Path | None = None,
    lower: bool = False,
    threads: int | None = None,
    seed: int,
) -> Job:
    """Everything that the arguments name, read and checked."""
    from nnc import recipe as recipes
    from nnc import target as targets
    from nnc.compilation import Job

    chip = targets.load(target)
    default = Path(f"{model.stem}-{chip.name}" + (f"-{chip.unit.name}" if chip.unit != chip.units[0] else ""))
    read = recipes.load(recipe, overrides, data)
    return Job(read, model, chip, out or default, _shapes(shape), threads, lower, seed)


def _other_side(folder: str) -> Artifact:
    """The compile that `nnc bench --against` names."""
    from nnc.artifact import Artifact

    if not Path(folder).exists():
        raise NncError(f"--against {folder}: no such folder", "give onnxruntime, or the folder of another compile")
    return Artifact.open(Path(folder))


def _sides(text: str) -> int | tuple[int, int]:
    """What --input says of a network: one side, or height and width."""
    if not (match := re.fullmatch(r"(-?\d+)(?:x(\d+))?", text)):
        raise NncError(f"--input: expected a number of pixels or HEIGHTxWIDTH, not '{text}'", "such as 224 or 384x512")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


def _shapes(options: Sequence[str]) -> dict[str, list[int]]:
    """['input=1,3,224,224'] -> {'input': [1, 3, 224, 224]}."""
    shapes = {}
    for option in options:
        name, equals, sizes = option.rpartition("=")
        words = [word.strip() for word in sizes.split(",")]
        if not name or not equals or not all(re.fullmatch("0*[1-9][0-9]{0,8}", word) for word in words):
            raise NncError(f"--shape {option}: not of the form INPUT=N,C,H,W", "such as --shape input=1,3,224,224")
        shapes[name] = [int(word) for word in words]
    return shapes


def _print_json(content: Any) -> None:
    from nnc.report import strict

    print(json.dumps(strict(content), indent=2, ensure_ascii=False))
