"""How well an engine's code uses a machine: the coefficients of the roofline, fitted on published measurements.

Coefficients belong to an engine on a family of units ("arm/ncnn") and to a type of arithmetic. `targets/profiles.toml`
holds those that `python -m nnc.validation.fit` found in measurements, and `compiler/simulation/profiles.toml` those of
nnc's own code, "arm/nnc", that it found in emulation; a unit of a target names a profile or has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat

from nnc import toml
from nnc.errors import NncError

#: The file of profiles, in targets/.
FILE = "profiles.toml"

#: Types in the order in which the coefficients of one stand for those of another.
NEAREST: dict[str, tuple[str, ...]] = {
    "float32": ("float32", "float16", "int8"),
    "float16": ("float16", "float32", "int8"),
    "int8": ("int8", "float16", "float32"),
}

# Winograd does fewer multiplications than are counted, so that a convolution can pass the peak.
Factor = Annotated[float, Field(gt=0, le=5)]


class Efficiency(toml.Table):
    """The coefficients of `nnc.simulation.roofline`."""

    winograd: Factor
    """Share of the peak in 3x3 convolutions of stride 1."""
    conv: Factor
    """In other convolutions that sum over channels and places."""
    pointwise: Factor
    """In 1x1 convolutions and matrix products."""
    grouped: Factor
    """In convolutions of several groups of more than one channel."""
    depthwise: Factor
    packing: NonNegativeFloat = 0.0
    """Output channels at which half of the share is reached: inputs are rearranged for all of them at once."""
    narrow: NonNegativeFloat
    """Products per output value at which half of the share is reached."""
    occupancy: NonNegativeFloat
    """Outputs per lane at which half of the share is reached."""
    issue: Annotated[float, Field(ge=0, le=1)]
    """Exponent of the instructions that a core issues per multiplication."""
    element: NonNegativeFloat
    """Multiplications in whose time a value is read or written, besides what the caches take."""
    function: NonNegativeFloat = 0.0
    """Multiplications in whose time an exponential, a logarithm or a power is computed."""
    cache: Factor
    """Share of the bandwidth of the caches."""
    dram: Factor
    """Share of what streaming code sees of the memory."""
    alone: Factor
    """Share of what one core can draw from the memory."""
    serial: Annotated[float, Field(ge=0, lt=1)]
    """Share of the work that does not spread over the cores (Amdahl)."""
    uneven: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much it counts that vectors of output channels don't divide evenly among the cores, as an exponent."""
    kernel_us: NonNegativeFloat
    """Microseconds to start one kernel, for a host of 2 GHz."""
    regroup: Annotated[float, Field(ge=0, le=1)]
    """Share of the groups of a convolution that are started one after the other."""
    sync_us: NonNegativeFloat
    """Microseconds to spread a kernel over the threads and wait for them, for every doubling of the threads."""
    unfused: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the sums, gates and activations behind a layer that are kernels of their own after all."""
    network_us: NonNegativeFloat
    """Microseconds per inference to reach the unit and come back."""
    error: Annotated[float, Field(ge=0)] | None = None
    """Mean relative error to expect of predictions: that for networks, or for chips, that were left out of the fit, the
    larger of the two. None where no chip could be left out, and in a type without a fit of its own."""


def names() -> list[str]:
    """The profiles that nnc ships."""
    return sorted({profile["name"] for profile in _profiles()})


def profile(name: str) -> dict[str, dict[str, float]]:
    """By dtype, the coefficients of a profile; of a dtype without a fit those of the nearest one, without its error.

    Raises ValueError for a name that is none.
    """
    found = {each["dtype"]: each["efficiency"] for each in _profiles() if each["name"] == name}
    if not found:
        near = toml.nearest(name, names()) or f"there are {', '.join(names())}"
        raise ValueError(f"no profile '{name}': {near}")
    return {dtype: found.get(dtype) or _borrowed(found, dtype) for dtype in NEAREST}


def _borrowed(found: Mapping[str, dict[str, float]], dtype: str) -> dict[str, float]:
    nearest = next(found[other] for other in NEAREST[dtype] if other in found)
    return {name: value for name, value in nearest.items() if name != "error"}  # nothing was compared in this dtype


@cache
def _profiles() -> list[dict[str, Any]]:
    files = {"targets": "nnc.targets", "compiler/simulation": "nnc.simulation"}
    texts = {f"{folder}/{FILE}": resources.files(package).joinpath(FILE) for folder, package in files.items()}
    return [profile for place, file in texts.items() for profile in _listed(file.read_text("utf-8"), place)]


def _listed(text: str, place: str) -> list[dict[str, Any]]:
    """The profiles of a file; NncError where there are none."""
    profiles: list[dict[str, Any]] = toml.parse(text, place).get("profile", [])
    if not profiles:
        raise NncError(f"{place}: holds no profiles", "restore it as nnc ships it")
    return profiles
