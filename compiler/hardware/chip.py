"""Chips: what one TOML file says of a system on chip, and what is wrong with it.

A file describes the whole chip: one `[[unit]]` per compute unit (cpu, gpu, dsp), the memory they share, and the power
modes. Nothing outside the file knows a chip by name.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from nnc import toml
from nnc.hardware import efficiency, host
from nnc.hardware.efficiency import Efficiency
from nnc.toml import Table

Dtype = Literal["float32", "float16", "int8"]

#: Instruction sets that `nnc.lowering` generates code for.
ARCHITECTURES = ("aarch64", "x86_64")

#: Languages of GPU kernels that it generates, by TVM's name.
GPU_LANGUAGES = ("cuda", "opencl")

Share = Annotated[float, Field(gt=0, le=1)]
# Beyond what any chip has are figures in other units, such as MHz, and slips of the keyboard.
Count = Annotated[int, Field(gt=0, le=4096)]
Bytes = Annotated[int, Field(gt=0, le=1 << 40)]
Gigahertz = Annotated[float, Field(ge=1e-3, le=20)]
Figure = Annotated[float, Field(ge=1e-6, le=1e6)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Scheme(Table):
    """How one kind of tensor is quantized."""

    dtype: Literal["int8", "uint8"]
    granularity: Literal["per-channel", "per-tensor"]
    symmetric: bool


class Quantization(Table):
    """The scheme that the unit's int8 kernels expect; a recipe may override it."""

    weights: Scheme
    activations: Scheme


class Cluster(Table):
    """Identical cores: of a CPU, the multiprocessors of a GPU, the vector contexts of a DSP."""

    name: Name
    core: str
    count: Count
    clock_ghz: Gigahertz
    macs_per_cycle: dict[Dtype, Figure]
    """Multiply-accumulates of one core in one cycle, at peak."""
    issue_width: Count | None = None
    """Instructions that one core starts in a cycle; without it, enough."""
    l1d_bytes: Bytes
    l2_bytes: Bytes
    l2_shared_by: Count = 1
    """Cores that share one level-2 cache of `l2_bytes`."""
    l2_bytes_per_cycle: Figure
    """Sustained bytes per cycle from level 2 into one core."""
    dram_gbps: Figure | None = None
    """GB/s that one core alone can draw from memory; without it, what the memory gives."""
    active_watts: Figure | None = None
    """What one core draws above idle for as long as a network runs on it."""
    picojoule_per_mac: dict[Dtype, Figure] | None = None
    """What a multiply-accumulate takes, on top of `active_watts` where there are both."""


class Unit(Table):
    """One compute unit, its clusters fastest first."""

    name: Name
    kind: Literal["cpu", "gpu", "dsp"]
    tvm: dict[str, Any]
    """Handed to `tvm.target.Target` unchanged."""
    dtypes: Annotated[tuple[Dtype, ...], Field(strict=False, min_length=1)]
    int8_dot: bool
    """Whether an instruction multiplies and adds four int8 pairs into an int32 lane."""
    channel_multiple: Count
    """Channels that one vector holds; other widths are padded to it."""
    vector_bits: Annotated[int, Field(ge=32, le=4096)]
    """A power of two."""
    vector_registers: Count
    threads: Count
    """Cores a network runs on by default, fastest first."""
    quantization: Quantization
    clusters: Annotated[tuple[Cluster, ...], Field(alias="cluster", strict=False, min_length=1)]
    l3_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    """Last cache level, shared by all cores; 0 where there is none."""
    l3_gbps: Figure | None = None
    profile: str | None = None
    """The engine whose measured code predictions assume, of targets/profiles.toml."""
    efficiency: dict[Dtype, Efficiency]
    """How well that code uses the unit: the profile's, unless the file has coefficients of its own."""

    @model_validator(mode="before")
    @classmethod
    def _with_profile(cls, table: Any) -> Any:
        match table:
            case {"profile": str() as name, "dtypes": list() as dtypes}:
                fitted = {key: value for key, value in efficiency.profile(name).items() if key in dtypes}
                own = table.get("efficiency", {})
                return table | {"efficiency": fitted | own if isinstance(own, dict) else own}
            case dict() if not {"profile", "efficiency"} & set(table):
                raise ValueError("it needs a 'profile', such as \"arm/ncnn\", or an 'efficiency' of its own")
        return table

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _check_tvm(self.tvm, self.kind)
        tables = {"efficiency": set(self.efficiency)}
        for cluster in self.clusters:
            tables[f"cluster '{cluster.name}': macs_per_cycle"] = set(cluster.macs_per_cycle)
            if cluster.picojoule_per_mac is not None:
                tables[f"cluster '{cluster.name}': picojoule_per_mac"] = set(cluster.picojoule_per_mac)
        for place, dtypes in tables.items():
            if dtypes != set(self.dtypes):
                raise ValueError(f"{place} has {listed(dtypes)}, but dtypes has {listed(self.dtypes)}")
        _refuse_duplicates("dtype", self.dtypes)
        _refuse_duplicates("cluster", [cluster.name for cluster in self.clusters])
        if self.int8_dot and "int8" not in self.dtypes:
            raise ValueError("'int8_dot' is true, but dtypes has no int8")
        if self.vector_bits.bit_count() > 1:
            raise ValueError(f"'vector_bits' must be a power of two, not {self.vector_bits}")
        if self.l3_bytes and self.l3_gbps is None:
            raise ValueError("'l3_bytes' needs 'l3_gbps'")
        if self.threads > self.cores:
            raise ValueError(f"'threads' is {self.threads}, but there are {self.cores} cores")
        return self

    @property
    def cores(self) -> int:
        return sum(cluster.count for cluster in self.clusters)

    @property
    def l1d_bytes(self) -> int:
        """Level-1 data cache of one of the fastest cores."""
        return self.clusters[0].l1d_bytes

    @property
    def l2_bytes(self) -> int:
        """Level-2 cache that one of the fastest cores can count on."""
        return self.clusters[0].l2_bytes // self.clusters[0].l2_shared_by

    @property
    def architecture(self) -> str:
        """Instruction set of the code that runs or starts the kernels, as in the first part of a target triple."""
        return self.tvm.get("host", self.tvm).get("mtriple", "unknown").split("-")[0]

    @property
    def halves(self) -> bool:
        """Whether libraries compute in float16 on it: AArch64 has the arithmetic since ARMv8.2, x86 converts only."""
        return self.kind == "cpu" and self.architecture == "aarch64" and "float16" in self.dtypes

    @property
    def lowerable(self) -> bool:
        """Whether `nnc.lowering` can build a library for it."""
        if self.kind == "gpu":
            return self.tvm["kind"] in GPU_LANGUAGES
        if self.kind == "dsp":
            return self.tvm["kind"] == "llvm" and self.architecture == "hexagon"
        return self.architecture in ARCHITECTURES


class Memory(Table):
    """Main memory, shared by all units."""

    gbps: Figure
    efficiency: Share
    """Share of `gbps` that streaming code sees."""
    picojoule_per_byte: Figure | None = None


class Clocks(Table):
    """What a power mode leaves of a cluster."""

    count: Count
    clock_ghz: Gigahertz


class Mode(Table):
    """A power mode: memory speed, and cores and clocks per unit and cluster."""

    name: Name
    description: str = ""
    dram_gbps: Figure
    unit: dict[str, dict[str, Clocks]]


class Chip(Table):
    """A target file as it is written."""

    description: str
    detect: Literal["host"] | None = None
    """"host": figures that the first unit leaves out are read from the machine that nnc runs on."""
    chips: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What tables of measurements call the chip."""
    idle_watts: Figure | None = None
    """Of the whole board."""
    dram: Memory
    units: Annotated[tuple[Unit, ...], Field(alias="unit", strict=False, min_length=1)]
    modes: Annotated[tuple[Mode, ...], Field(alias="mode", strict=False)] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _refuse_duplicates("unit", [unit.name for unit in self.units])
        _refuse_duplicates("mode", [mode.name for mode in self.modes])
        for mode in self.modes:
            clusters = {(unit.name, cluster.name): cluster.count for unit in self.units for cluster in unit.clusters}
            for (unit, cluster), clocks in mode_clocks(mode).items():
                if (unit, cluster) not in clusters:
                    raise ValueError(f"mode '{mode.name}' names a cluster that is not there: '{unit}.{cluster}'")
                if clocks.count > clusters[unit, cluster]:
                    raise ValueError(
                        f"mode '{mode.name}' runs {clocks.count} cores of cluster '{cluster}', which has "
                        f"{clusters[unit, cluster]}"
                    )
        return self


#: The tables of a file.
_WRITTEN = (Chip, Mode, Clocks, Memory, Unit, Cluster, Quantization, Scheme, Efficiency)


def parse(text: str, place: str) -> Chip:
    """The chip that the TOML `text` describes; `place` begins every error message."""
    table = toml.parse(text, place)
    match table:
        case {"detect": "host", "unit": [dict() as first, *others]}:
            table["unit"] = [host.figures() | first, *others]
    try:
        return Chip.model_validate(table)
    except ValidationError as error:
        raise toml.explained(error, table, place, _WRITTEN) from None


def mode_clocks(mode: Mode) -> dict[tuple[str, str], Clocks]:
    """Clocks by (unit, cluster)."""
    return {(unit, name): clocks for unit, clusters in mode.unit.items() for name, clocks in clusters.items()}


def _refuse_duplicates(word: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {word}s are called '{name}'")


def _check_tvm(table: dict[str, Any], kind: str) -> None:
    """Refuse what `tvm.target.Target` would, and what LLVM takes silently or dies of; other keys are TVM's to check."""
    if not isinstance(table.get("kind"), str):
        raise ValueError("'tvm' needs a 'kind', such as \"llvm\"")
    is_hexagon = str(table.get("mtriple")).startswith("hexagon")
    if (kind == "cpu" or is_hexagon) and table["kind"] != "llvm":
        raise ValueError(f"'tvm' of a {kind} must be of kind 'llvm', not '{table['kind']}'")
    if kind == "cpu" or "mtriple" in table:
        _check_llvm(table, "tvm")
    if table["kind"] in GPU_LANGUAGES or "host" in table:
        _check_host(table.get("host"))
    if kind == "dsp" and is_hexagon and "+hvx-length128b" not in table.get("mattr", []):
        raise ValueError("'mattr' of 'tvm' needs \"+hvx-length128b\": kernels for Hexagon have vectors of 128 bytes")


def _check_host(table: Any) -> None:
    """Refuse what does not say which processor starts the kernels of a GPU."""
    if not isinstance(table, dict) or table.get("kind") != "llvm":
        raise ValueError("'tvm' needs a table 'host', such as { kind = \"llvm\", mtriple = \"aarch64-linux-gnu\" }")
    _check_llvm(table, "host")


def _check_llvm(table: dict[str, Any], name: str) -> None:
    """Refuse the table `name` where it does not describe a processor in LLVM's way."""
    if not isinstance(triple := table.get("mtriple"), str) or not re.fullmatch(r"\w+(-[\w.]+)*", triple):
        raise ValueError(f"'{name}' needs an 'mtriple', such as \"aarch64-linux-gnu\"")
    if not isinstance(table.get("mcpu", ""), str):
        raise ValueError(f"'mcpu' of '{name}' must be a string, such as \"cortex-a75\"")
    features = table.get("mattr", [])
    if not isinstance(features, list) or not all(isinstance(each, str) for each in features):
        raise ValueError(f"'mattr' of '{name}' must be an array of strings, such as [\"+fullfp16\"]")


def listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "none"
