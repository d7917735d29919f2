"""Running a library in QEMU under the plugin: what is compiled for that, and the run itself."""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from nnc.errors import NncError
from nnc.lowering import cross, emulate
from nnc.simulation.emulated.core import Chip
from nnc.simulation.emulated.isa import AARCH64, Isa
from nnc.simulation.emulated.trace import Trace

_PLUGIN = ("plugin.c", "caches.c")
_DRIVER = ("driver.c",)
_HINT = (
    "apt install qemu-user libstdc++6-arm64-cross; QEMU from 4.2 to 8.2 has these plugins, where they are compiled in"
)


def run(library: Path, chip: Chip, arguments: Sequence[str] = (), *, warm: int = 0, caches: bool = True) -> Trace:
    """What the driver executes of the library; `arguments` name a kernel and its arrays, none the network.

    Raises NncError where a tool is missing, or where the run fails.
    """
    if not library.is_file():
        raise NncError(f"{library}: no such file")
    command, files = emulator(chip.isa), _made(chip.isa.architecture)
    with tempfile.TemporaryDirectory(prefix="nnc-") as name:
        folder = Path(name)
        out, linked = folder / "trace.txt", folder / "library.so"
        linked.symlink_to(library.resolve())
        (folder / "driver").symlink_to(files / "driver")
        plugin = f"{files / 'plugin.so'},out={out}" + (f",caches={chip.description}" if caches else "")
        words: list[str | Path] = [folder / "driver", str(len(chip.cores)), str(warm), linked, *arguments]
        # The same addresses in every run, and so the same misses: names and the environment are in memory too.
        try:
            cross.run(["env", "-i", *command, "-plugin", plugin, *words], subject=str(library))
        except NncError as error:
            raise NncError(error.message.replace(str(linked), library.name), error.hint) from None
        return Trace.read(out, chip.isa)


def emulator(isa: Isa) -> list[str | Path]:
    """The command that a program is appended to; NncError where QEMU has no plugins."""
    if isa.architecture == platform.machine():
        name = f"qemu-{isa.architecture}"
        qemu = shutil.which(name)
        if qemu is None:
            raise NncError(f"{name} is not installed, which counts instructions of this processor too", _HINT)
        command: list[str | Path] = [qemu, "-cpu", "max"]
    elif isa is AARCH64:
        command = emulate.emulator()
    else:
        raise NncError(f"code of {isa.architecture} is emulated on such a machine only", "leave out --latency emulated")
    try:
        listed = cross.run([command[0], "--help"])
    except NncError as error:
        listed = error.message
    if "-plugin" not in listed:
        raise NncError(f"{command[0]}: this QEMU has no plugins", _HINT)
    return command


def _made(architecture: str) -> Path:
    """The folder with plugin.so and driver; compiled once and kept in the cache folder."""
    sources = {file: _source(file) for file in (*_PLUGIN, *_DRIVER, "caches.h", "marks.h", "plugin_api.h", "nnc.h")}
    key = hashlib.sha256(repr((sorted(sources.items()), platform.machine(), architecture)).encode()).hexdigest()[:16]
    folder = cross.cache_folder() / f"emulated-{key}"
    if not (folder / "driver").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="emulated-", dir=folder.parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            for file, text in sources.items():
                (made / file).write_text(text, "utf-8")
            _compile(made, architecture)
            if not folder.exists():  # another process may have been faster
                made.rename(folder)
    return folder


def _source(name: str) -> str:
    package = "nnc.lowering" if name == "nnc.h" else "nnc.simulation.emulated"
    return resources.files(package).joinpath(name).read_text("utf-8")


def _compile(folder: Path, architecture: str) -> None:
    flags, here = ["-std=gnu11", "-O2"], platform.machine()
    plugin = [folder / name for name in _PLUGIN]
    cross.run([*cross.compiler(here), *flags, "-fPIC", "-shared", *plugin, "-o", folder / "plugin.so"])
    driver = [folder / name for name in _DRIVER]
    options = [*flags, *cross.includes(), "-rdynamic"]
    cross.run([*cross.compiler(architecture), *options, *driver, "-ldl", "-o", folder / "driver"])
