"""Commands that tune schedules: `nnc tune`, `nnc records`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnc import arguments
from nnc.arguments import (
    EitherArgument,
    JsonOption,
    QuietOption,
    RecordsOption,
    ShapeOption,
    TargetOption,
    ThreadsOption,
)
from nnc.commands.output import print_json
from nnc.errors import NncError


def tune(
    model: EitherArgument,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="T", help="A name, name:unit or a file; of DIR, its own."),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Search for about so long: 90s, 10m, 1h.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, metavar="N", help="At most so many schedules; else 32 per layer."),
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
    from nnc import autotune
    from nnc.display import console, listings
    from nnc.tuning.records import own_file
    from nnc.tuning.tune import Budget

    tracker = autotune.tracker(rpc, key)
    chip = autotune.target_of(model, target, tracker)
    budget = Budget(trials, None if time is None else autotune.seconds(time))
    job = autotune.Job(model, chip, file or own_file(chip), threads, arguments.shapes(shape), budget, resume, tracker)
    with console.progress(quiet) as progress:
        result = autotune.run(job, progress)
    if as_json:
        print_json(result.to_dict())
    elif not quiet:
        listings.show_tuning(result.to_dict())


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
    from nnc import autotune
    from nnc import target as targets
    from nnc.display import console, listings
    from nnc.model import wire
    from nnc.tuning.records import own_file

    if export is not None:
        wire.refuse_folder(export)
    elif import_ and threads is not None:
        raise NncError("--import: --threads has no say in what is added", "leave it out, or give it to --export")
    chip = targets.load(target)
    chip.require_threads(threads)
    own = file or own_file(chip)
    if import_:
        console.say(f"{autotune.imported(import_, own)} records added to {own}")
    if export is not None:
        console.say(f"{autotune.exported(chip, threads, export, own)} records written to {export}")
    if import_ or export is not None:
        return
    rows = autotune.listing(chip, threads, own, console.say)
    print_json(rows) if as_json else listings.show_records(rows)
