"""fine-tune: weights change, the graph doesn't, and a recipe says before any work what is missing."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from nnc import graph as graphs
from nnc import pipeline, recipe, target, testing
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.passes.fine_tune import FineTune
from nnc.rewrite import Pass
from nnc.training.options import Distill

pytest.importorskip("torch")

NET = """
net (float[1, 3, 8, 8] x) => (float[1, 4] y)
<float[8, 3, 3, 3] W1, float[8] s1, float[8] b1, float[8] m1, float[8] v1, float[8, 4] W3, float[4] B3>
{
    c1 = Conv<pads = [1, 1, 1, 1]>(x, W1)
    n1 = BatchNormalization(c1, s1, b1, m1, v1)
    r1 = Relu(n1)
    p = GlobalAveragePool(r1)
    f = Flatten(p)
    y = Gemm(f, W3, B3)
}
"""


def network(seed: int = 0) -> gs.Graph:
    rng = np.random.default_rng(seed)
    W1, W3 = 0.3 * rng.standard_normal((8, 3, 3, 3)), 0.3 * rng.standard_normal((8, 4))
    return testing.graph(NET, W1=W1, s1=np.ones(8), b1=np.zeros(8), m1=np.zeros(8), v1=np.ones(8), W3=W3)


@pytest.fixture
def context(tmp_path: Path) -> pipeline.Context:
    """Four colours as training and test data."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 4
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])[labels]
    images = (colours[:, None, None] + rng.integers(-40, 40, (64, 8, 8, 3))).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    graph = network()
    data = Dataset.open(tmp_path / "images.npz", Preprocess(mean=(0.5,), std=(0.25,)), graph.inputs)
    return pipeline.Context(target.load("x86"), train=data, test=data, imported=graph)


PASS = FineTune(epochs=8, batch=16, learning_rate=0.05)


def test_accuracy_rises_and_the_graph_stays(context: pipeline.Context) -> None:
    graph = network()
    after, (row,) = pipeline.run(graph, [PASS], context)
    assert (row.effect, row.proof) == ("trained", "measured")
    before = context.accuracy(graph)
    assert row.accuracy is not None
    assert before is not None
    assert row.accuracy > max(0.9, before)
    first, second = graphs.to_model(graph).graph, graphs.to_model(after).graph
    assert first.node == second.node
    assert [each.name for each in first.initializer] == [each.name for each in second.initializer]
    assert row.changed == 7


def test_the_same_twice(context: pipeline.Context) -> None:
    one, other = (testing.run(PASS, network(), context).graph for _ in range(2))
    assert graphs.to_model(one) == graphs.to_model(other)


def test_zero_epochs_change_nothing(context: pipeline.Context) -> None:
    assert testing.run(FineTune(epochs=0), network(), context).changed == 0


def test_a_plan_does_not_train(context: pipeline.Context) -> None:
    context.trains = False
    testing.check_unchanged(PASS, network(), "only nnc compile trains", context)


def test_a_teacher_of_a_file(context: pipeline.Context, tmp_path: Path) -> None:
    """With logits alone, the student of another network's outputs becomes that network."""
    after, _ = pipeline.run(network(), [FineTune(epochs=12, batch=16, learning_rate=0.05)], context)
    graphs.save(after, tmp_path / "teacher.onnx")
    context.teacher = tmp_path / "teacher.onnx"
    student = network(3)
    taught = FineTune(epochs=12, batch=16, learning_rate=0.05, distill=Distill(logits=1.0))
    _, (row,) = pipeline.run(student, [taught], context)
    assert row.accuracy is not None
    assert row.accuracy > 0.9
    assert taught.data_needed() == ("train",)
    context.teacher = tmp_path / "broken.onnx"
    context.teacher.write_bytes(b"no model")
    with pytest.raises(NncError, match=r"teacher: .*broken\.onnx"):
        testing.run(taught, student, context)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NET.replace("8] x", "8] data").replace("(x,", "(data,"), r"^teacher: \S*teacher\.onnx has no input 'x'$"),
        (NET.replace("8, 8] x", "9, 9] x"), r"^teacher: input 'x' of \S*teacher\.onnx is 1,3,9,9, not 1,3,8,8$"),
    ],
)
def test_a_teacher_of_another_input(context: pipeline.Context, tmp_path: Path, text: str, message: str) -> None:
    """No word of --shape, which nobody gave."""
    context.teacher = tmp_path / "teacher.onnx"
    graphs.save(testing.graph(text), context.teacher)
    with pytest.raises(NncError, match=message):
        testing.run(FineTune(distill=Distill()), network(), context)


OTHER_OUTPUTS = NET.replace("float[1, 4] y", "float[1, 5] y").replace("8, 4] W3, float[4]", "8, 5] W3, float[5]")
UNTRAINABLE = NET.replace("y = Gemm(f, W3, B3)", "z = Gemm(f, W3, B3)\n y = Hardmax(z)")


class First(Pass):
    """Stand in front of a pass that finds something wrong."""

    name = "first"
    effect = "approximate"

    def run(self, graph: gs.Graph, context: pipeline.Context) -> int:
        pytest.fail("it was told too late")


# fmt: off
@pytest.mark.parametrize(("options", "labels", "teacher", "message"), [
    ({}, None, None, "has no labels to train with"),
    ({"patience": 2}, None, None, "has no labels to train with"),
    ({}, 5, None, "label 8 is out of range: the model has 4 classes"),
    ({"distill": {}}, 5, None, "label 8 is out of range: the model has 4 classes"),
    ({"patience": 1, "samples": 2}, 0, None, "1 sample is not enough to train on"),
    ({"distill": {}}, 0, OTHER_OUTPUTS, r"the teacher's outputs are \[\[5\]\], and the model's \[\[4\]\]"),
    ({"distill": {}}, 0, NET.replace("8] x", "8] z").replace("(x, W1)", "(z, W1)"), r"teacher\.onnx has no input 'x'"),
    ({"distill": {}}, 0, UNTRAINABLE, "no operator Hardmax can be trained"),
    ({"distill": {"features": 1.0, "layers": ["c2"]}}, 0, None, "the teacher has no layer 'c2'"),
    ({"distill": {"features": 1.0, "layers": ["later=c2"]}}, 0, NET, "the teacher has no layer 'c2'"),
])
def test_what_does_not_fit_is_told_before_any_pass_runs(
    context: pipeline.Context, tmp_path: Path, options: dict[str, Any], labels: int | None, teacher: str | None,
    message: str,
) -> None:
    with np.load(tmp_path / "images.npz") as data:
        arrays = {"images": data["images"]} | ({} if labels is None else {"labels": data["labels"] + labels})
    np.savez(tmp_path / "train.npz", **arrays)
    context.train = Dataset.open(tmp_path / "train.npz", None, network().inputs)
    if teacher:
        graphs.save(testing.graph(teacher), tmp_path / "teacher.onnx")
        context.teacher = tmp_path / "teacher.onnx"
    pass_ = FineTune.model_validate_json(json.dumps(options))
    with pytest.raises(NncError, match=f"^pass fine-tune: .*{message}"):
        pipeline.run(network(), [First(), pass_], context)
    with pytest.raises(pytest.fail.Exception):  # where nothing is trained, nothing has to fit
        pipeline.run(network(), [First(), pass_.model_copy(update={"epochs": 0})], context)
# fmt: on


def test_layers_that_a_pass_makes_may_be_compared(context: pipeline.Context) -> None:
    """Only of the teacher it is known beforehand which ones it has."""
    pass_ = FineTune(epochs=1, distill=Distill(features=1.0, layers=("later=n1",)))
    pipeline.check([pass_], context)
    with pytest.raises(NncError, match="the model has no layer 'later'"):
        pipeline.run(network(), [pass_], context)


def test_integers_are_not_trained(context: pipeline.Context) -> None:
    text = """
    net (float[1, 3, 8, 8] x) => (float[1, 8, 6, 6] y) <int8[8, 3, 3, 3] W, float scale>
    { w = DequantizeLinear(W, scale)
      y = Conv(x, w) }
    """
    graph = testing.graph(text, W=np.ones((8, 3, 3, 3)), scale=0.1)
    with pytest.raises(NncError, match="no weights in float32"):
        testing.run(PASS, graph, context)


RECIPE = '[data]\ntrain = "images.npz"\ntest = "images.npz"\n\n[[pass]]\nname = "fine-tune"\n'


def test_without_torch_the_recipe_says_what_to_install(
    context: pipeline.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    read = recipe.load(tmp_path / "recipe.toml")
    read.require_packages()
    found: Callable[..., object] = importlib.util.find_spec
    monkeypatch.setattr(recipe, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(NncError, match=r"^recipe.toml: pass 1 \(fine-tune\): needs torch, which is not ins") as error:
        read.require_packages()
    assert error.value.hint == "pip install 'nnc[train]'"
    recipe.load("simplify").require_packages()


def test_training_data_are_needed(context: pipeline.Context) -> None:
    context.train = None
    with pytest.raises(NncError, match="pass fine-tune: needs train data"):
        pipeline.run(network(), [PASS], context)
