"""Commands that compile: `nnc compile`, `nnc plan`, `nnc bisect`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from nnc import arguments
from nnc.arguments import (
    CropOption,
    DataOption,
    JsonOption,
    LatencyOption,
    LayoutOption,
    MeanOption,
    ModelArgument,
    QuietOption,
    RecipeArgument,
    SeedOption,
    SetOption,
    ShapeOption,
    SizeOption,
    StdOption,
    TargetOption,
    ThreadsOption,
)
from nnc.commands.output import print_json


def compile_(
    recipe: RecipeArgument,
    model: ModelArgument,
    target: TargetOption,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="The folder for the results; else ./MODEL-TARGET.")
    ] = None,
    data: DataOption = [],  # noqa: B006  # typer makes a new list
    size: SizeOption = None,
    crop: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    layout: LayoutOption = None,
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
    from nnc.compiling import compilation
    from nnc.display import console, summaries

    preprocess = {"size": size, "crop": crop, "mean": mean, "std": std, "layout": layout}
    job = arguments.job(
        recipe,
        model,
        target,
        data,
        set_,
        shape,
        preprocess=preprocess,
        out=out,
        lower=not no_lower,
        threads=threads,
        seed=seed,
        latency=latency,
    )
    with console.progress(quiet) as progress:
        report = compilation.compile_model(job, progress, partial(console.say, quiet=quiet))
    if as_json:
        print_json(report)
    elif not quiet:
        summaries.show_compiled(report, job.out)


def plan(
    recipe: RecipeArgument,
    model: ModelArgument,
    target: TargetOption,
    data: DataOption = [],  # noqa: B006
    size: SizeOption = None,
    crop: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    layout: LayoutOption = None,
    set_: SetOption = [],  # noqa: B006
    shape: ShapeOption = [],  # noqa: B006
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what each pass would do, and what it would leave alone and why. Writes nothing."""
    from nnc.compiling import compilation
    from nnc.display import console, summaries

    preprocess = {"size": size, "crop": crop, "mean": mean, "std": std, "layout": layout}
    job = arguments.job(recipe, model, target, data, set_, shape, preprocess=preprocess, threads=threads, seed=seed)
    with console.progress(quiet) as progress:
        planned = compilation.plan(job, progress, partial(console.say, quiet=quiet))
    if as_json:
        print_json(planned)
    else:
        summaries.show_plan(planned)


def bisect(
    recipe: RecipeArgument,
    model: ModelArgument,
    target: TargetOption = "x86",
    data: Annotated[
        list[str], typer.Option("--data", metavar="[KEY=]PATH", help="The test data, or calibration=PATH.")
    ] = [],  # noqa: B006
    size: SizeOption = None,
    crop: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    layout: LayoutOption = None,
    set_: SetOption = [],  # noqa: B006
    shape: ShapeOption = [],  # noqa: B006
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find the pass that costs the accuracy: it is measured after each one."""
    from nnc.compiling import compilation
    from nnc.display import console, summaries

    keyed = [each if "=" in each else f"test={each}" for each in data]
    preprocess = {"size": size, "crop": crop, "mean": mean, "std": std, "layout": layout}
    job = arguments.job(recipe, model, target, keyed, set_, shape, preprocess=preprocess, seed=seed)
    with console.progress(quiet) as progress:
        states = compilation.bisect(job, progress, partial(console.say, quiet=quiet))
    if as_json:
        print_json([{"after": name, "accuracy": accuracy} for name, accuracy in states])
    else:
        summaries.show_bisection(states)
