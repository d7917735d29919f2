"""pack-weights: what shrinks is named in the model, nothing else changes, and the library computes the same bits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import packing, pipeline, recipe, target, testing
from nnc.artifact import Artifact
from nnc.compiling import compilation
from nnc.passes.merge_duplicates import MergeDuplicates
from nnc.passes.pack_weights import PackWeights

RNG = np.random.default_rng(0)
FOUR_BITS = RNG.integers(-8, 8, (16, 16, 3, 3)).astype(np.float32)
NOISE = RNG.integers(0, 2**31 - 2**24, (16, 16, 3, 3), np.int32).view(np.float32)

NET = """
net (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y)
<float[16, 16, 3, 3] V, float[16] B, float[16, 16, 3, 3] W>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, V, B)
    b = Relu(a)
    y = Conv<pads = [1, 1, 1, 1]>(b, W)
}
"""

QUANTIZED = """
net (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y)
<float s, uint8 z, int8[16, 16, 3, 3] W, float[16] t, int8[16] u, int32[16] B, float[16] v>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    w = DequantizeLinear<axis = 0>(W, t, u)
    c = DequantizeLinear<axis = 0>(B, v)
    y = Conv<pads = [1, 1, 1, 1]>(d, w, c)
}
"""


def net() -> gs.Graph:
    return testing.graph(NET, V=FOUR_BITS, W=FOUR_BITS + 0.5)


def quantized() -> gs.Graph:
    return testing.graph(
        QUANTIZED, s=np.float32(0.05), z=np.uint8(128), t=np.full(16, 0.1, np.float32), u=np.zeros(16, np.int8),
        W=FOUR_BITS.astype(np.int8), B=np.arange(16, dtype=np.int32), v=np.full(16, 0.005, np.float32),
    )  # fmt: skip


def test_weights_that_shrink_are_named() -> None:
    before = net()
    result = testing.check(PackWeights(), before, ["Conv", "Relu", "Conv"])
    assert packing.marked(result.graph) == {"V", "W"}
    assert (result.changed, result.skipped) == (2, {})
    assert all(
        np.array_equal(values, testing.weights(before)[name]) for name, values in testing.weights(result.graph).items()
    )


def test_what_does_not_shrink_stays_and_says_why() -> None:
    result = testing.run(PackWeights(), testing.graph(NET, V=FOUR_BITS, W=NOISE))
    assert packing.marked(result.graph) == {"V"}
    assert result.skipped == {"y": "its weights would shrink by less than 5.0 %"}


def test_programs_of_gpus_read_weights_as_they_are() -> None:
    context = pipeline.Context(target.load("jetson-xavier:gpu"))
    testing.check_unchanged(PackWeights(), net(), "GPUs read weights as they are", context)


def test_how_much_must_be_saved() -> None:
    graph = testing.graph(NET, V=FOUR_BITS)
    assert testing.run(PackWeights(min_saving=0.0), graph).changed == 2
    testing.check_unchanged(PackWeights(min_saving=0.95), graph, "shrink by less than 95.0 %")


def test_quantized_weights_belong_to_the_layer_behind() -> None:
    result = testing.check(PackWeights(), quantized())
    assert packing.marked(result.graph) == {"W"}
    assert packing.marked_layers(result.graph) == {"y"}


def test_globs_choose_layers() -> None:
    assert packing.marked(testing.run(PackWeights(include=("y",)), net()).graph) == {"W"}
    result = testing.run(PackWeights(exclude=("y",)), net())
    assert packing.marked(result.graph) == {"V"}
    assert result.skipped == {"y": "excluded by the recipe"}


def test_small_constants_are_not_looked_at() -> None:
    text = "net (float[1, 4, 8, 8] x) => (float y) <float[4, 4, 1, 1] W = {%s}> { y = Conv(x, W) }"
    result = testing.run(PackWeights(), testing.graph(text % ", ".join(["1"] * 16)))
    assert (result.changed, result.skipped) == (0, {})


def test_shared_weights_are_named_once() -> None:
    graph = testing.graph(NET, V=FOUR_BITS, W=FOUR_BITS)
    shared = testing.run(MergeDuplicates(), graph).graph
    result = testing.check(PackWeights(), shared)
    assert len(packing.marked_layers(result.graph)) == 2


def test_a_second_choice_replaces_the_first() -> None:
    first = testing.run(PackWeights(), net()).graph
    second = testing.run(PackWeights(exclude=("y",)), first)
    assert (packing.marked(second.graph), second.changed) == ({"V"}, 1)
    assert packing.METADATA not in testing.run(PackWeights(exclude=("*",)), second.graph).graph.metadata


# -- compiled

RECIPE = '[[pass]]\nname = "pack-weights"\n'


@pytest.fixture
def job(tmp_path: Path) -> compilation.Job:
    graphs.save(quantized(), tmp_path / "model.onnx")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    read = recipe.load(str(tmp_path / "recipe.toml"))
    return compilation.Job(read, tmp_path / "model.onnx", target.load("x86"), tmp_path / "out", {}, lower=False)


def test_the_report_counts_without_a_library(job: compilation.Job) -> None:
    weights = compilation.compile_model(job)["weights"]
    read = graphs.load(job.out / "model.onnx")
    assert packing.marked(read) == {"W"}
    assert weights["raw_bytes"] == weights["stored_bytes"] > 2304
    assert weights["packed_bytes"] == weights["raw_bytes"] - 2304 + packing.packed_bytes(FOUR_BITS.astype(np.int8))
    assert (weights["library_stored_bytes"], weights["library_packed_bytes"]) == (None, None)
    assert json.loads((job.out / "report.json").read_text())["weights"] == weights
    assert "packed weights" in (job.out / "report.html").read_text("utf-8")


def test_a_library_computes_the_same_bits(job: compilation.Job, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text('[[pass]]\nname = "remove-dead-nodes"\n')
    raw = replace(job, recipe=recipe.load(str(tmp_path / "none.toml")), out=tmp_path / "raw", lower=True)
    reports = [compilation.compile_model(each) for each in (replace(job, lower=True), raw)]
    packed, plain = (Artifact.open(each) for each in (job.out, tmp_path / "raw"))
    inputs = plain.random_inputs()
    for name, values in plain.run(inputs).items():
        assert np.array_equal(values, packed.run(inputs)[name])
    stored, coded = (reports[0]["weights"][f"library_{key}_bytes"] for key in ("stored", "packed"))
    assert coded < 0.7 * stored
    assert reports[1]["weights"]["library_packed_bytes"] is None


def test_same_bytes_every_time(job: compilation.Job, tmp_path: Path) -> None:
    for name in ("one", "other"):
        compilation.compile_model(replace(job, out=tmp_path / name, lower=True))
    for file in ("model.onnx", "module.so"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
