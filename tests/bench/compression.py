"""What pruning and splitting keep of networks, without training: one table.

    python tests/bench/compression.py [coverage resnet56 mobilenet_v2 vgg16 exactness speed]

Plain magnitude pruning and plain truncated SVD stand in the same table at the same budgets: neither of them sees data.
Rows that need the sample data are left out, and said to be, where it is absent (NNC_DATA). Exits with 1 when a figure
is not reached.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_graphsurgeon as gs
from table import DATA, THREADS, Refused, Row, Workshop, facts, main, nnc, samples, usage

from nnc import channels, measure, networks, pipeline, target, testing, verify
from nnc import graph as graphs
from nnc.passes import GRAPH_PASSES
from nnc.passes.prune_channels import PruneChannels
from nnc.passes.simplify_shapes import SimplifyShapes
from nnc.session import Session

COVERED = (
    *("resnet18", "resnet50", "resnet56", "mobilenet_v2", "vgg16", "densenet201", "squeezenet1_1", "shufflenet_v2"),
    "efficientnet_b0",
)
WITH_DEAD_CHANNELS = ("resnet18", "resnet56", "mobilenet_v2", "densenet121", "shufflenet_v2", "efficientnet_b0")
CONVOLUTIONS = ("Conv", "ConvTranspose")
SEED = 0

#: How far above a budget a network may end.
NEAR = 1.02

#: Of the dead channels: a layer keeps one where the target's cost model calls it faster with it.
MOST = 0.99

Pass = dict[str, object]


def coverage(shop: Workshop) -> Iterator[Row]:
    """Half of all channels go: which convolutions lose some, and whether the others compute what they did."""
    pretrained = [model for model in samples() if facts(model)["dataset"] == "cifar10"]
    if not pretrained:
        yield Row("coverage: CIFAR networks", "all", f"left out: no data folder {DATA}", None)
    for model in [*map(shop.network, COVERED), *pretrained]:
        narrower, wanted, difference = covered(graphs.load(model))
        measured = f"{narrower} of {wanted} narrower, difference {difference:.1e}"
        yield Row(f"coverage: {model.stem}", "all, < 1e-4", measured, narrower == wanted and difference < 1e-4)


def covered(graph: gs.Graph) -> tuple[int, int, float]:
    """How many convolutions lose channels, how many may, and how far the outputs are from those of zeroed channels."""
    context = pipeline.Context(target.load("x86"), imported=graph)
    SimplifyShapes().run(graph, context)
    traced = channels.trace(graph)
    with patch.object(channels, "remove", wraps=channels.remove) as remove:
        pruned = testing.run(PruneChannels(sparsity=0.5, ranking="per-layer", round_to=1), graph, context).graph
    (ids,) = (call.args[2] for call in remove.mock_calls if not call.kwargs.get("hollow"))
    may = {name: width for name, width in widths(graph).items() if not writes_output(traced, name)}
    narrower = sum(width < may[name] for name, width in widths(pruned).items() if name in may)
    inputs = verify.probe_inputs(graph, SEED)
    expected, found = (Session(each).run(inputs) for each in (testing.zeroed(graph, traced, ids), pruned))
    return narrower, len(may), verify.largest_difference(expected, found)


def widths(graph: gs.Graph) -> dict[str, int]:
    return {node.name: node.outputs[0].shape[1] for node in graph.nodes if node.op in CONVOLUTIONS}


def writes_output(traced: channels.Channels, name: str) -> bool:
    return traced.fixed.get(name, "").endswith("is an output of the graph")


def resnet56(shop: Workshop) -> Iterator[Row]:
    """ResNet-56 on CIFAR-10: top-1 within a budget of MACs, with 4000 images to calibrate on."""
    for model in samples("cifar10_resnet56"):
        data = {"calibration": DATA / "cifar10/calibration.npz", "test": DATA / "cifar10/test.npz"}
        for share, least in ((0.7, 0.93), (0.5, 0.91)):
            yield accuracy(shop, model, "compress", compress(share), share, data, least)
            yield from others(shop, model, share, data, "split-conv-spatial")
        yield accuracy(shop, model, "compress", compress(0.35), 0.35, data)
        return
    yield Row("resnet56", ">= 93.0%, >= 91.0%", f"left out: no data folder {DATA}", None)


def mobilenet_v2(shop: Workshop) -> Iterator[Row]:
    """MobileNetV2 on ImageNet: the drop, calibrated on one half of the sample and tested on the other, both ways.

    Of 250 images a network gets some more right than another by chance, so that the mean of both ways counts.
    """
    for model in samples("imagenet_mobilenet_v2_1.0_224"):
        both = [{"calibration": one, "test": other} for one, other in permutations(halves(shop.folder).values())]
        found = [reached(shop, model, compress(0.8), data) for data in both]
        for each, half in zip(found, ("one", "the other"), strict=True):
            yield Row(f"{model.stem} at 80%: compress, tested on {half} half", "", str(each), None)
        drop = float(np.mean([each.before - each.after for each in found]))
        kept = drop <= 0.03 and all(each.left <= NEAR * 0.8 for each in found)
        yield Row(
            f"{model.stem} at 80%: compress, mean of both", "drop <= 3 points", f"a drop of {100 * drop:.1f}", kept
        )
        yield from others(shop, model, 0.8, both[0], "split-conv-svd")
        return
    yield Row("mobilenet_v2", "drop <= 3 points", f"left out: no data folder {DATA}", None)


@cache
def halves(folder: Path) -> dict[str, Path]:
    """Two folders with one half each of the sample of ImageNet, drawn at random."""
    with (DATA / "imagenet_sample/labels.csv").open(newline="") as file:
        rows = [{"file": row["file"], "label": row["label"]} for row in csv.DictReader(file)]
    order = np.random.default_rng(SEED).permutation(len(rows))
    made = {"calibration": folder / "calibration", "test": folder / "test"}
    for half, indices in zip(made.values(), np.array_split(order, 2), strict=True):
        half.mkdir()
        (half / "images").symlink_to((DATA / "imagenet_sample/images").resolve())
        with (half / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "label"])
            writer.writeheader()
            writer.writerows(rows[index] for index in indices)
    return made


def compress(share: float) -> Pass:
    return {"name": "compress", "budget": {"macs": share}, "round_to": 1}


def others(shop: Workshop, model: Path, share: float, data: Mapping[str, Path], split: str) -> Iterator[Row]:
    """A network within a budget of MACs: the parts of compress alone, and those without data."""
    budget = {"macs": share}
    prune: Pass = {"name": "prune-channels", "budget": budget, "round_to": 1}
    plain: Pass = {**prune, "importance": "l2"}
    alone: Pass = {"name": split, "budget": budget, "when": "always"}
    test = {"test": data["test"]}
    yield accuracy(shop, model, "prune-channels", prune, share, data)
    yield accuracy(shop, model, split, alone, share, data)
    yield accuracy(shop, model, "plain magnitude pruning", plain, share, test, exact=False)
    yield accuracy(shop, model, f"plain truncated SVD ({split})", alone, share, test)


def accuracy(
    shop: Workshop, model: Path, what: str, pass_: Pass, share: float, data: Mapping[str, Path],
    least: float | None = None, exact: bool = True,
) -> Row:  # fmt: skip
    """What a pass that compresses reached; `least` is the top-1 that it must keep."""
    name, wanted = f"{model.stem} at {share:.0%} of the MACs: {what}", "" if least is None else f">= {least:.1%}"
    try:
        found = reached(shop, model, pass_, data, exact)
    except Refused as refused:
        return Row(name, wanted, complaint(refused), None if least is None else False)
    kept = None if least is None else found.after >= least and found.left <= NEAR * share
    return Row(name, wanted, str(found), kept)


@dataclass(frozen=True)
class Reached:
    """Top-1 before and after, the share of the MACs that is left, and seconds."""

    before: float
    after: float
    left: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.before:.1%} -> {self.after:.1%}, {self.left:.1%} of the MACs, {self.seconds:.0f} s"


def reached(shop: Workshop, model: Path, pass_: Pass, data: Mapping[str, Path], exact: bool = True) -> Reached:
    """What a pass does to a network.

    `exact`: all exact passes go before it. Magnitudes tell more of weights into which BatchNormalization is not folded.
    """
    before_it: list[Pass] = [{"name": each.name} for each in GRAPH_PASSES if exact]
    report, seconds = compiled(shop, model, [*before_it, pass_], data, facts(model))
    before, after = report["before"], report["after"]
    return Reached(before["accuracy"], after["accuracy"], after["macs"] / before["macs"], seconds)


def complaint(refused: Refused) -> str:
    """What a command said, without its own name and the hint."""
    return next(line for line in str(refused).splitlines() if line.startswith("nnc: error: ")).split("): ")[-1]


def compiled(
    shop: Workshop, model: Path, passes: Sequence[Pass], data: Mapping[str, Path], prepared: Mapping[str, Any]
) -> tuple[dict[str, Any], float]:
    """The report and the seconds of a compile in a process of its own, from a folder without earlier results."""
    out = fresh(shop.folder)
    used = usage("compile", recipe(out, passes, data, prepared), model, "--target", "x86", "-o", out, "--no-lower")
    return report_of(out), used.seconds


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def fresh(folder: Path) -> Path:
    """A path that nothing has."""
    return folder / f"compile-{sum(1 for _ in folder.iterdir())}"


def recipe(out: Path, passes: Sequence[Pass], data: Mapping[str, Path], prepared: Mapping[str, Any]) -> Path:
    """The recipe of a compile as a file beside its folder."""
    path = out.with_suffix(".toml")
    keys = ("crop", "mean", "std")
    sections = [
        ("[data]", {key: str(value.resolve()) for key, value in data.items()}),
        ("[data.preprocess]", {key: prepared[key] for key in keys if prepared.get(key)}),
        *(("[[pass]]", pass_) for pass_ in passes),
    ]
    lines = [line for title, entries in sections for line in (title, *(f"{k} = {toml(v)}" for k, v in entries.items()))]
    path.write_text("\n".join(['description = "A row of the table"', *lines]) + "\n")
    return path


def toml(value: object) -> str:
    """JSON, but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def vgg16(shop: Workshop) -> Iterator[Row]:
    """The fully connected layers of VGG-16 to a fifth of their parameters."""
    model, fifth, out = shop.network("vgg16"), 1 / 5, fresh(shop.folder)
    graph = graphs.load(model)
    whole = measure.measure(graph).params
    dense = sum(measure.params(node) for node in graph.nodes if node.op == "Gemm")
    del graph
    pass_: Pass = {"name": "split-gemm-svd", "budget": {"params": 1 - (1 - fifth) * dense / whole}}
    used = usage(
        *("compile", recipe(out, [pass_], {}, {}), model, "--target", "x86", "-o", out, "--no-lower", "--quiet")
    )
    left = dense - (whole - report_of(out)["after"]["params"])
    share = left / dense
    peak = used.peak_bytes / model.stat().st_size
    name = "vgg16: split-gemm-svd"
    measured = f"{share:.2%} ({left / 1e6:.1f} of {dense / 1e6:.1f} M)"
    yield Row(f"{name}, parameters of the Gemm layers", "<= 20%", measured, share <= fifth)
    yield Row(f"{name}, seconds", "< 60 s", f"{used.seconds:.1f} s", used.seconds < 60)
    yield Row(f"{name}, peak memory", "< 3x the model", f"{peak:.2f}x", peak < 3)


RANK = 3

#: Weights [K, C, k, k] of rank RANK as sums over r, and the shapes of their factors.
LOW_RANK = {
    "split-conv-svd": ("kr,rcij->kcij", ("kr", "rcij")),
    "split-conv-spatial": ("krj,rci->kcij", ("krj", "rci")),
    "split-conv-cp": ("kr,rc,ri,rj->kcij", ("kr", "rc", "ri", "rj")),
    "split-conv-tucker": ("ks,srij,rc->kcij", ("ks", "srij", "rc")),
    "split-gemm-svd": ("kr,rc->kc", ("kr", "rc")),
}
TWO_CONVOLUTIONS = """
net (float[1, 12, 10, 10] x) => (float[1, 12, 4, 4] y)
<float[12, 12, 3, 3] W, float[12] B, float[12, 12, 3, 3] V, float[12] D>
{
    c = Conv<pads = [1, 1, 1, 1]>(x, W, B)
    r = Relu(c)
    y = Conv<strides = [2, 2]>(r, V, D)
}
"""
TWO_GEMMS = """
net (float[1, 12] x) => (float[1, 12] y) <float[12, 12] W, float[12] B, float[12, 12] V, float[12] D>
{
    c = Gemm<transB = 1>(x, W, B)
    r = Relu(c)
    y = Gemm<transB = 1>(r, V, D)
}
"""


def exactness(shop: Workshop) -> Iterator[Row]:
    """Where nothing is lost, nothing changes: two layers at their true rank, and channels that are always 0."""
    for name in LOW_RANK:
        yield at_true_rank(shop, name)
    for name in WITH_DEAD_CHANNELS:
        yield without_dead_channels(shop, name)


def at_true_rank(shop: Workshop, name: str) -> Row:
    before = testing.graph(TWO_GEMMS if name == "split-gemm-svd" else TWO_CONVOLUTIONS, W=low_rank(name, 1),
                           V=low_rank(name, 2))  # fmt: skip
    model, calibration = shop.folder / f"{name}.onnx", shop.folder / f"{name}.npz"
    graphs.save(before, model)
    shape = (256, *before.inputs[0].shape[1:])
    np.savez(calibration, x=np.random.default_rng(SEED).standard_normal(shape, np.float32))
    pass_: Pass = {"name": name, "rank": RANK, "when": "always"}
    differences, splits = [], []
    for data in ({}, {"calibration": calibration}):
        out = fresh(shop.folder)
        nnc("compile", recipe(out, [pass_], data, {}), model, "--target", "x86", "-o", out, "--no-lower", "--quiet")
        differences.append(moved(model, out))
        splits.append(report_of(out)["passes"][0]["changed"])
    measured = "{:.1e}, with calibration data {:.1e}".format(*differences)
    return Row(f"true rank: {name}", "< 1e-4", measured, max(differences) < 1e-4 and splits == [2, 2])


def low_rank(name: str, seed: int) -> np.ndarray:
    sum_, factors = LOW_RANK[name]
    sizes, rng = dict(k=12, c=12, i=3, j=3, r=RANK, s=RANK), np.random.default_rng(seed)
    arrays = [rng.standard_normal([sizes[axis] for axis in axes]) for axes in factors]
    return np.einsum(sum_, *arrays) / np.sqrt(RANK * sizes["c"])


def moved(model: Path, out: Path) -> float:
    """How far the outputs of a compressed model are from those of the original, relative to the largest."""
    graph = graphs.load(model)
    inputs = verify.probe_inputs(graph, SEED)
    before, after = (Session(each).run(inputs) for each in (graph, graphs.load(out / "model.onnx")))
    return verify.largest_difference(before, after)


def without_dead_channels(shop: Workshop, name: str) -> Row:
    graph = graphs.from_model(networks.build(name, input_size=64 if name != "resnet56" else 32, width=0.5))
    SimplifyShapes().run(graph, pipeline.Context(target.load("x86"), imported=graph))
    dead = kill(graph)
    model, out = shop.folder / f"{name}-dead.onnx", fresh(shop.folder)
    graphs.save(graph, model)
    pass_: Pass = {"name": "prune-channels", "sparsity": 0.5, "importance": "l2", "ranking": "per-layer", "round_to": 1}
    nnc("compile", recipe(out, [pass_], {}, {}), model, "--target", "x86", "-o", out, "--no-lower", "--quiet")
    gone = sum(widths(graph).values()) - sum(widths(graphs.load(out / "model.onnx")).values())
    difference = moved(model, out)
    measured = f"{gone} of {dead} removed, difference {difference:.1e}"
    reached = MOST * dead <= gone <= dead and difference < 1e-4
    return Row(f"dead channels: {name}", f"{MOST:.0%}, < 1e-4", measured, reached)


def kill(graph: gs.Graph) -> int:
    """Make half of the channels of every group 0, drawn at random; returns how many convolutions write."""
    traced, rng = channels.trace(graph), np.random.default_rng(SEED)
    ids = [one for group in traced.groups for one in rng.permutation(group.ids)[: len(group.ids) // 2].tolist()]
    for use in traced.uses:
        constant = use.node.inputs[use.input]
        index = np.moveaxis(np.array(constant.values), use.axis, -1)
        index[..., np.isin(use.ids, ids)] = 0
        constant.values = np.ascontiguousarray(np.moveaxis(index, -1, use.axis))
    written = (traced.written(node) for node in graph.nodes if node.op in CONVOLUTIONS)
    return sum(int(np.isin(each, ids).sum()) for each in written)


def speed(shop: Workshop) -> Iterator[Row]:
    """Before / after at half of the MACs, on this machine, in one interleaved run."""
    for name in ("resnet50", "vgg16"):
        model, before, after = shop.network(name), shop.folder / f"{name}-before", shop.folder / f"{name}-after"
        uniform = ("--set", 'prune-channels.ranking="per-layer"')  # without data nothing tells layers apart
        for each, out, options in (("simplify", before, ()), ("prune", after, uniform)):
            nnc("compile", each, model, "--target", "x86", "-o", out, "--threads", THREADS, "--quiet", *options)
        timed = json.loads(nnc("bench", after, "--against", before, "--threads", THREADS, "--json"))
        left = 1 / report_of(after)["ratios"]["macs"]
        times = f"{timed['against_ms']:.1f} / {timed['nnc_ms']:.1f} ms"
        measured = f"{timed['ratio']:.2f} ({times}) at {left:.1%} of the MACs"
        yield Row(f"speed: before / after, {name}", ">= 1.6", measured, timed["ratio"] >= 1.6 and left <= NEAR * 0.5)


SECTIONS: dict[str, Callable[[Workshop], Iterator[Row]]] = {
    "coverage": coverage,
    "resnet56": resnet56,
    "mobilenet_v2": mobilenet_v2,
    "vgg16": vgg16,
    "exactness": exactness,
    "speed": speed,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, SECTIONS, Workshop))
