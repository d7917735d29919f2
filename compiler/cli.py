"""The command line: `nnc compile`, and everything around it.

Commands import what they use when they run, so that `nnc --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nnc import __version__, arguments
from nnc.arguments import (
    DataOption,
    EitherArgument,
    FolderArgument,
    JsonOption,
    LatencyOption,
    ModelArgument,
    NameArgument,
    QuietOption,
    RecipeArgument,
    RecordsOption,
    SeedOption,
    SetOption,
    ShapeOption,
    TableArgument,
    TargetOption,
    ThreadsOption,
    UseOption,
)


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
    latency: LatencyOption = "analytic",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a model and compile it for a target."""
    from nnc import compilation, console, summaries

    job = arguments.job(
        recipe,
        model,
        target,
        data,
        set_,
        shape,
        out=out,
        lower=not no_lower,
        threads=threads,
        seed=seed,
        latency=latency,
    )
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

    job = arguments.job(recipe, model, target, data, set_, shape, threads=threads, seed=seed)
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
    job = arguments.job(recipe, model, target, keyed, set_, shape, seed=seed)
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
    other = None if against == benchmark.ONNXRUNTIME else arguments.other_side(against)
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

    options, shapes = {"size": size, "crop": crop, "mean": mean, "std": std, "layout": layout}, arguments.shapes(shape)
    with console.progress(quiet) as progress:
        measured = evaluation.evaluate(
            model,
            data,
            options,
            shapes,
            samples=samples,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if as_json:
        _print_json(measured.to_dict())
    else:
        measurements.show_accuracy(measured)


@app.command()
def tune(
    model: EitherArgument,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="T", help="A name, name:unit or a file; of DIR, its own."),
    ] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="TIME", help="At most so long: 90s, 10m, 1h.")] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, metavar="N", help="At most so many plans; else 32 per layer."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier search ended.")] = False,
    rpc: Annotated[
        str | None, typer.Option("--rpc", metavar="HOST:PORT", help="Measure on the boards of this TVM RPC tracker.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="What the tracker calls the boards.")] = None,
    file: RecordsOption = None,
    shape: ShapeOption = [],  # noqa: B006
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search the fastest schedules for the layers of a model, and keep them: nnc compile uses them from then on.

    Of a model, what the recipe simplify makes of it is tuned; of the folder of a compile, the model in it. Code for
    this machine is measured here, code for an AArch64 board in emulation or, with --rpc, on the board.
    """
    from nnc import autotune, console, listings
    from nnc.tuning.records import own_file
    from nnc.tuning.tune import Budget

    chip = autotune.target_of(model, target)
    budget = Budget(trials, None if time is None else autotune.seconds(time))
    tracker = autotune.tracker(rpc, key)
    job = autotune.Job(model, chip, file or own_file(chip), threads, arguments.shapes(shape), budget, resume, tracker)
    with console.progress(quiet) as progress:
        result = autotune.run(job, progress)
    if as_json:
        _print_json(result.to_dict())
    elif not quiet:
        listings.show_tuning(result.to_dict())


@app.command("records")
def records_(
    target: TargetOption,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write the best record of every layer into FILE.")
    ] = None,
    import_: Annotated[
        list[Path], typer.Option("--import", metavar="FILE", help="Add the records of FILE; can be given again.")
    ] = [],  # noqa: B006
    file: RecordsOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the tuning records that nnc compile uses for a target; give them to others, or take theirs."""
    from nnc import autotune, console, listings
    from nnc import target as targets
    from nnc.tuning.records import own_file

    chip = targets.load(target)
    own = file or own_file(chip)
    if import_:
        console.say(f"{autotune.imported(import_, own)} records added to {own}")
    if export is not None:
        console.say(f"{autotune.exported(chip, export, own)} records written to {export}")
    if import_ or export is not None:
        return
    rows = autotune.listing(chip, threads, own, console.say)
    _print_json(rows) if as_json else listings.show_records(rows)


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
    latency: LatencyOption = "analytic",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the layers of a model: shapes, MACs, parameters, and on a target what they cost.

    --latency emulated shows what the library in DIR costs, kernel by kernel, beside the predictions.
    """
    from nnc import inspection, summaries
    from nnc import target as targets

    if latency == "emulated":
        from nnc import console, emulation

        with console.progress(quiet) as progress:
            timed = emulation.of_folder(model, target, threads, progress)
        _print_json(timed) if as_json else summaries.show_emulation(timed)
        return
    path = model / "model.onnx" if model.is_dir() else model
    chip = None if target is None else targets.load(target)
    inspected = inspection.inspect(path, chip, arguments.shapes(shape), threads, groups)
    if as_json:
        _print_json(inspected)
    elif groups:
        summaries.show_groups(inspected)
    else:
        summaries.show_inspection(inspected)


@app.command()
def validate(
    table: TableArgument,
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
    path, sides = out or Path(f"{name}.onnx"), None if size is None else arguments.sides(size)
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


def _print_json(content: Any) -> None:
    from nnc.report import strict

    print(json.dumps(strict(content), indent=2, ensure_ascii=False))
