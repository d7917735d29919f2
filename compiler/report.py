"""The evidence of a compile: report.json for programs, report.html for people, and remarks on what would help."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnc.display import units
from nnc.model import wire
from nnc.simulation.analytic import Layer, Prediction
from nnc.target import Target, spelled

#: What `write` writes.
FILES = ("report.json", "report.html")

Report = Mapping[str, Any]


def write(report: Report, lock: Mapping[str, Any], folder: Path) -> None:
    """Write FILES into the folder."""
    from nnc.display.page import page  # imports jinja2, which only this needs

    with wire.replacing(folder / "report.json") as file:
        file.write(json.dumps(strict(report), indent=1, ensure_ascii=False, allow_nan=False).encode())
    with wire.replacing(folder / "report.html") as file:
        file.write(page(report, lock).encode())


def strict(content: Any) -> Any:
    """The content as JSON can hold it: null for what is infinite or no number at all."""
    match content:
        case float():
            return content if math.isfinite(content) else None
        case dict():
            return {str(key): strict(value) for key, value in content.items()}
        case list() | tuple():
            return [strict(value) for value in content]
    return content


def remarks(predicted: Prediction, target: Target) -> list[str]:
    """What the target's cost model says about the network, in sentences."""
    total = sum(layer.latency_ms for layer in predicted.layers)
    if not total:
        return []
    layers = predicted.layers
    return [
        *_bounds(layers, total),
        *_heaviest(layers, total),
        *_padding(layers, target),
        *_slower(layers, target),
        *_dequantized(layers),
        *_scalar(layers, target),
        *_wide(layers, target),
        *_vendor(target),
    ]


@dataclass(frozen=True)
class Figure:
    """A figure of the model that a compile changes: its key in the report, and how people call and read it."""

    key: str
    name: str
    text: Callable[[float | None], str]
    better: str
    worse: str
    note: str


# fmt: off
_FIGURES = (
    Figure("file_bytes", "model file", units.size, "smaller", "larger", "the ONNX file, weights included"),
    Figure("latency_ms", "latency", units.milliseconds, "faster", "slower", "of one inference"),
    Figure("macs", "MACs", units.amount, "fewer", "more", "multiply-accumulates of one inference"),
    Figure("params", "parameters", units.amount, "fewer", "more", "learned values"),
    Figure("peak_activation_bytes", "peak activations", units.size, "less", "more", "the most alive at one time"),
    Figure("energy_mj", "predicted energy", units.millijoules, "less", "more", "of one inference, the whole chip"),
    Figure("nodes", "nodes", units.amount, "fewer", "more", "of the ONNX graph"),
)
# fmt: on

_LATENCIES = {"analytic": "predicted latency"}


def figures(latency_source: str) -> tuple[Figure, ...]:
    """All figures, where the report says that latencies are of this source."""
    name = _LATENCIES.get(latency_source, f"{latency_source} latency")
    return tuple(replace(each, name=name) if each.key == "latency_ms" else each for each in _FIGURES)


def change(figure: Figure, before: float, after: float) -> str:
    """'2.08x faster', '4.1 % fewer', 'the same'."""
    share = abs(1 - after / before) if before else 0.0
    if share < 0.0005:
        return "the same" if before or not after else ""
    word = figure.better if after < before else figure.worse
    if share < 0.1 or not after:
        return f"{units.percent(share)} {word}"
    return f"{units.times(max(before, after) / min(before, after))} {word}"


def points(before: float, after: float) -> str:
    """0.912, 0.9 -> '-1.2 points' of accuracy."""
    return f"{(after - before) * 100:+.1f} points" if abs(after - before) >= 0.0005 else "the same"


PACKED = Figure("packed_bytes", "packed weights", units.size, "smaller", "larger", "as the library stores them")


def packed(weights: Mapping[str, int | None]) -> str:
    """'3.61 MB of weights packed to 3.29 MB, 1.10x smaller; 4.01 MB to 3.52 MB in the order of the library'."""
    stored, coded = weights["stored_bytes"], weights["packed_bytes"]
    if stored is None or coded is None:
        return ""
    text = f"{units.size(stored)} of weights packed to {units.size(coded)}, {change(PACKED, stored, coded)}"
    placed, kept = weights["library_stored_bytes"], weights["library_packed_bytes"]
    return f"{text}; {units.size(placed)} to {units.size(kept)} in the order of the library" if kept else text


#: What a layer is bound by, what that means, and what makes it faster.
BOUNDS = {
    "compute": ("multiplying takes the longest", "fewer MACs or a narrower type make it faster"),
    "cache": ("moving data from the caches to the cores takes the longest", "fewer channels make it faster"),
    "memory": ("reading weights or activations from DRAM takes the longest", "fewer weight bytes make it faster"),
    "dispatch": ("starting the kernel takes longer than its work", "fewer layers make it faster, smaller ones do not"),
}


def shares(layers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The share of the latency, 0 to 1, that is in layers of each bound; the largest first."""
    sums = dict.fromkeys(BOUNDS, 0.0)
    for layer in layers:
        sums[layer["bound"]] += layer["latency_ms"]
    total = sum(sums.values()) or 1.0
    return {bound: value / total for bound, value in sorted(sums.items(), key=lambda entry: -entry[1])}


def _bounds(layers: list[Layer], total: float) -> Iterable[str]:
    for bound, share in shares([vars(layer) for layer in layers]).items():
        if share >= 0.1:
            meaning, advice = BOUNDS[bound]
            yield f"{units.percent(share)} of the time is in layers bound by {bound}: {meaning}; {advice}"


def _heaviest(layers: list[Layer], total: float) -> Iterable[str]:
    layer = max(layers, key=lambda layer: layer.latency_ms)
    if len(layers) > 1 and layer.latency_ms >= 0.2 * total:
        yield f"{units.percent(layer.latency_ms / total)} of the time is in one layer, {layer.name} ({layer.op})"


def _padding(layers: list[Layer], target: Target) -> Iterable[str]:
    """Widths that fill the vectors badly."""
    multiple = target.unit.channel_multiple
    odd = [layer for layer in layers if layer.macs and len(layer.shape) == 4 and layer.shape[1] % multiple]
    if odd:
        names = ", ".join(f"{layer.name} ({layer.shape[1]})" for layer in odd[:3])
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        yield (
            f"the channels of {units.plural(len(odd), 'layer')} are no multiple of {multiple}, so that the last vector "
            f"of each is partly empty: {names}{more}"
        )


def _slower(layers: list[Layer], target: Target) -> Iterable[str]:
    """Integers that cost more than floats."""
    quantized = [layer for layer in layers if layer.float_ms is not None]
    integers = sum(layer.latency_ms for layer in quantized)
    floats = sum(layer.float_ms or 0.0 for layer in quantized)
    if integers > 1.02 * floats:
        yield (
            f"the {units.plural(len(quantized), 'int8 layer')} would take {units.milliseconds(floats)} in floats "
            f"instead of {units.milliseconds(integers)}: on {target.label} int8 is smaller, but not faster"
        )


def _dequantized(layers: list[Layer]) -> Iterable[str]:
    """Layers that integers stop at."""
    for layer in layers:
        if layer.reason:
            yield f"{layer.name} ({layer.op}) computes in {layer.dtype} next to integers: {layer.reason}"


def _scalar(layers: list[Layer], target: Target) -> Iterable[str]:
    """Layers in floats on a DSP that has no vectors of them."""
    scalar = [layer for layer in layers if layer.macs and layer.dtype.endswith("scalar")]
    if scalar:
        share = sum(layer.macs for layer in scalar) / sum(layer.macs for layer in layers)
        yield (
            f"{units.plural(len(scalar), 'layer')} with {units.percent(share)} of the MACs would compute in floats, "
            "one value at a time and many times slower than predicted: the vectors of "
            f"{target.label} hold integers only; the recipe quantize makes int8 of them"
        )


def _wide(layers: list[Layer], target: Target) -> Iterable[str]:
    """Layers that the vendor of a GPU computes faster than nnc."""
    by_words = target.unit.tvm["kind"] == "cuda" and target.unit.int8_dot
    ways = {"float16": "in float32", "int8": "int8 in words of four, not in tensor cores" if by_words else "in float32"}
    for dtype, way in ways.items() if target.unit.kind == "gpu" else ():
        narrow = [layer for layer in layers if layer.macs and layer.dtype == dtype]
        if narrow:
            yield (
                f"{units.plural(len(narrow), 'layer')} in {dtype} would be as fast as predicted in the vendor's "
                f"engine; the kernels that nnc writes for GPUs multiply {way}"
            )


def _vendor(target: Target) -> Iterable[str]:
    """What a DSP needs that nnc does not have."""
    if target.unit.kind == "dsp" and target.unit.lowerable:
        yield (
            "module.o runs in QEMU here; for a board, the vendor's Hexagon SDK has to link it into a library that "
            "FastRPC loads, signed by the vendor unless the board accepts unsigned ones"
        )


def target_label(report: Report) -> str:
    """What the report's target is called: 'jetson-xavier:gpu@30W'."""
    target = report["target"]
    return spelled(target["name"], target["unit"], target["mode"])


def outputs(row: Mapping[str, Any]) -> str:
    """How the outputs compare with those before the pass."""
    if row["snr_db"] is not None and math.isfinite(row["snr_db"]):
        return f"{row['snr_db']:.1f} dB SNR"
    known = {"outputs equal": "equal", "unchanged": "-", "measured": "equal", "all noise": "all noise"}
    return known.get(row["proof"], "not compared")


#: What passes predict, and how people call it.
PREDICTED = {
    "macs": "MACs",
    "params": "parameters",
    "latency_ms": "latency",
    "error": "output error",
    "accuracy": "top-1",
}


#: The choice for a layer that a budget keeps from being quantized.
FLOATS = "stays in floats"


def explained(row: Mapping[str, Any]) -> str:
    """'27 of 55 layers changed; predicted MACs 50.0 %, reached 49.9 %': what a pass said of its decisions."""
    decided = row["decisions"]
    changed = sum(map(changes, decided))
    parts = [f"{changed} of {units.plural(len(decided), 'layer')} changed"] if decided else []
    for name, figure in (row["predicted"] or {}).items():
        whole = 1.0 if name in ("error", "accuracy") else figure["before"]
        said, reached = (share(figure[key], whole) or "unknown" for key in ("predicted", "reached"))
        parts.append(f"predicted {PREDICTED[name]} {said}, reached {reached}")
    return "; ".join(parts)


def share(value: float | None, whole: float = 1.0) -> str:
    """'12.3 %' of the whole, '1.23 %', '<0.01 %'; nothing where it is not known."""
    if value is None or not whole or not math.isfinite(value):
        return ""
    percent = value / whole * 100
    if abs(percent) < 0.005:
        return "0 %" if abs(percent) < 1e-9 else "<0.01 %"  # less than rounding is none
    return f"{percent:.1f} %" if percent >= 10 else f"{percent:.2f} %"


def changes(decision: Mapping[str, Any]) -> bool:
    """Whether a decision changes its layer."""
    return decision["choice"] not in ("keep", FLOATS)


def is_told(decision: Mapping[str, Any]) -> bool:
    """Whether a decision has a line of its own: it changes its layer, or says for a reason that it must not."""
    return bool(decision["choice"] != "keep")
