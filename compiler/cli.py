"""The command line: `nnc compile`, and everything around it.

Commands import what they use when they run, so that `nnc --help` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nnc import __version__
from nnc.commands import compiled, compiling, listing, looking, models, tuning

#: In the order of `nnc --help`.
COMMANDS: dict[str, Callable[..., None]] = {
    "compile": compiling.compile_,
    "plan": compiling.plan,
    "bisect": compiling.bisect,
    "run": compiled.run,
    "bench": compiled.bench,
    "eval": compiled.evaluate,
    "tune": tuning.tune,
    "records": tuning.records_,
    "package": compiled.package_,
    "inspect": looking.inspect,
    "validate": looking.validate,
    "network": models.network,
    "example": models.example,
    "passes": listing.passes,
    "targets": listing.targets,
    "recipes": listing.recipes,
    "schema": listing.schema,
    "doctor": listing.doctor,
}


class _Commands(TyperGroup):
    """Turns the errors of every command into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        from nnc.display.console import failing

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
        written = getattr(sys, stream)
        if isinstance(written, io.TextIOWrapper) and written.errors == "strict":
            written.reconfigure(errors="replace")  # a locale may lack a sign, and a file's name be no text
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


for name, command in COMMANDS.items():
    app.command(name)(command)
