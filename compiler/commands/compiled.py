"""Commands on what a compile left behind: `nnc run`, `nnc bench`, `nnc eval`, `nnc package`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnc import arguments
from nnc.arguments import (
    CropOption,
    EitherArgument,
    FolderArgument,
    JsonOption,
    LayoutOption,
    MeanOption,
    QuietOption,
    SeedOption,
    ShapeOption,
    SizeOption,
    StdOption,
    ThreadsOption,
)
from nnc.commands.output import print_json


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
    from nnc.artifact import Artifact, load_arrays, save_arrays
    from nnc.display import console, runs
    from nnc.model import wire

    if out is not None:
        wire.refuse_folder(out)
    artifact = Artifact.open(folder)
    given = artifact.random_inputs(seed) if inputs == "random" else load_arrays(Path(inputs))
    with console.progress(quiet) as progress:
        outputs = artifact.run(given, threads, place=inputs, progress=progress)
    if out is not None:
        save_arrays(out, outputs)
    if as_json:
        print_json({"runtime": artifact.runtime, "outputs": runs.described(outputs)})
    elif not quiet:
        runs.show_outputs(outputs, artifact.runtime, out)


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
    from nnc import benchmark
    from nnc.artifact import Artifact
    from nnc.display import console, runs

    artifact = Artifact.open(folder)
    if profile:
        kernels = benchmark.profile(artifact, threads)
        print_json(kernels) if as_json else runs.show_profile(kernels)
        return
    other = None if against == benchmark.ONNXRUNTIME else arguments.other_side(against)
    with console.progress(quiet) as progress:
        timing = benchmark.compare(artifact, rounds, threads, progress, other)
    print_json(timing.to_dict()) if as_json else runs.show_timing(timing)


def evaluate(
    model: EitherArgument,
    data: Annotated[Path, typer.Option("--data", metavar="D", help="An .npz or a folder of images, with labels.")],
    size: SizeOption = None,
    crop: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    layout: LayoutOption = None,
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
    from nnc import evaluation
    from nnc.display import console, runs

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
        print_json(measured.to_dict())
    else:
        runs.show_accuracy(measured)


def package_(
    folder: FolderArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The .tar.gz; else beside DIR, named like it.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pack a compiled model into one file that runs on the board, with nothing to install there."""
    from nnc.display import console, runs
    from nnc.package import package

    with console.progress(quiet) as progress:
        made = package(folder, out, progress)
    if as_json:
        print_json(made.to_dict())
    elif not quiet:
        runs.show_package(made)
