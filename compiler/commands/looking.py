"""Commands that look at models and predictions: `nnc inspect`, `nnc validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnc import arguments
from nnc.arguments import (
    EitherArgument,
    JsonOption,
    LatencyOption,
    QuietOption,
    ShapeOption,
    TableArgument,
    ThreadsOption,
)
from nnc.commands.output import print_json
from nnc.errors import NncError


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
    from nnc import inspection
    from nnc import target as targets
    from nnc.display import console, summaries

    if latency == "emulated":
        from nnc.compiling import emulation

        if groups:
            raise NncError("--groups: --latency emulated shows kernels, not channels", "leave one of them out")
        if shape:
            raise NncError(
                "--shape: --latency emulated executes a library, which has its shapes", "compile again with it"
            )
        with console.progress(quiet) as progress:
            timed = emulation.of_folder(model, target, threads, progress)
        print_json(timed) if as_json else summaries.show_emulation(timed)
        return
    path = model / "model.onnx" if model.is_dir() else model
    chip = None if target is None else targets.load(target)
    with console.progress(quiet) as progress:
        inspected = inspection.inspect(path, chip, arguments.shapes(shape), threads, groups, progress)
    if as_json:
        print_json(inspected)
    elif groups:
        summaries.show_groups(inspected)
    else:
        summaries.show_inspection(inspected)


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
    """Compare predicted latencies and energies with a table of measured ones."""
    from nnc import validation
    from nnc.display import console
    from nnc.model import wire
    from nnc.validation import listing, scatter

    if plot is not None:
        wire.refuse_folder(plot)
    with console.progress(quiet) as progress:
        found = validation.validate(table, target, models, progress)
    if plot is not None:
        with wire.replacing(plot) as file:
            file.write(scatter.svg(found["rows"]).encode())
    print_json(found) if as_json else listing.show(found)
