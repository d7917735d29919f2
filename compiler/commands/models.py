"""Commands that write models: `nnc network`, `nnc example`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnc import arguments
from nnc.arguments import JsonOption, QuietOption, SeedOption
from nnc.commands.output import print_json


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
    from nnc import graph as graphs
    from nnc import inspection, networks
    from nnc.display import console, listings, summaries
    from nnc.model import wire

    if name == "list":
        with console.progress(quiet) as progress:
            rows = networks.listing(progress)
        print_json(rows) if as_json else listings.show_networks(rows)
        return
    networks.find(name)  # a name that is none may hold what files can't be called
    path, sides = out or Path(f"{name}.onnx"), None if size is None else arguments.sides(size)
    with console.progress(quiet) as progress, wire.replacing(path) as file:
        model = networks.build(name, input_size=sides, classes=classes, width=width, seed=seed, progress=progress)
        progress("write", 1, 2)
        file.write(model.SerializeToString(deterministic=True))
    figures = {"file": str(path)} | inspection.totals_of(graphs.from_model(model))
    if as_json:
        print_json(figures)
    elif not quiet:
        summaries.show_network(figures)


def example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for the files; made where it is missing.")],
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Write an example to try nnc on: a small trained network, labelled images and a recipe."""
    from nnc import example as examples
    from nnc.display import console

    with console.progress(quiet) as progress:
        files = examples.write(folder, seed, progress)
    if not quiet:
        print("\n".join(map(str, files)))
