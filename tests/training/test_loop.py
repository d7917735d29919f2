"""The training loop: what it makes of a network, the same whatever happens in between."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
import torch
from PIL import Image

from nnc import graph as graphs
from nnc import testing
from nnc.data import Dataset, Preprocess
from nnc.errors import NncError
from nnc.training import feed, hidden, loop, losses, state, steps
from nnc.training.loop import Plan, Result, Span, train
from nnc.training.module import GraphModule
from nnc.training.options import Augment, Distill, Options
from nnc.training.steps import rate

NET = """
net (float[1, 3, 8, 8] x) => (float[1, 4] y)
<
    float[8, 3, 3, 3] W1, float[8] s1, float[8] b1, float[8] m1, float[8] v1,
    float[8, 8, 3, 3] W2, float[8] B2, float[8, 4] W3, float[4] B3
>
{
    c1 = Conv<pads = [1, 1, 1, 1]>(x, W1)
    n1 = BatchNormalization(c1, s1, b1, m1, v1)
    r1 = Relu(n1)
    c2 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r1, W2, B2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm(f, W3, B3)
}
"""


def network(seed: int = 0) -> gs.Graph:
    rng = np.random.default_rng(seed)
    shapes = {"W1": (8, 3, 3, 3), "W2": (8, 8, 3, 3), "W3": (8, 4)}
    scaled = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return testing.graph(NET, s1=np.ones(8), b1=np.zeros(8), m1=np.zeros(8), v1=np.ones(8), **scaled)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four colours: a task that a small network learns in a few steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 4
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 40]])[labels]
    noise = rng.integers(-40, 40, (96, 8, 8, 3))
    np.savez(tmp_path / "images.npz", images=(colours[:, None, None] + noise).astype(np.uint8), labels=labels)
    return tmp_path / "images.npz"


PREPROCESS = Preprocess(mean=(0.5,), std=(0.25,))


def opened(path: Path, graph: gs.Graph) -> Dataset:
    return Dataset.open(path, PREPROCESS, graph.inputs)


def trained(
    path: Path, graph: gs.Graph | None = None, folder: Path | None = None, span: Span | None = None,
    teacher: gs.Graph | None = None, seed: int = 0, **options: object,
) -> tuple[gs.Graph, Result]:  # fmt: skip
    graph = graph or network()
    module = GraphModule(graph)
    given = Options(**({"epochs": 4, "batch": 16, "learning_rate": 0.05} | options))  # type: ignore[arg-type]
    result = train(module, Plan("test", given, opened(path, graph), seed, teacher, folder), span)
    module.write_back()
    return graph, result


def same(one: gs.Graph, other: gs.Graph) -> bool:
    first, second = testing.weights(one), testing.weights(other)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_learns(images: Path, optimizer: str) -> None:
    _, result = trained(images, optimizer=optimizer, epochs=8, label_smoothing=0.1)
    assert result.accuracies[-1] > 0.95 > result.accuracies[0]
    assert result.losses[-1] < result.losses[0]


def test_zero_epochs_are_the_identity(images: Path) -> None:
    graph, result = trained(images, epochs=0)
    assert same(graph, network())
    assert result == Result()


def test_a_seed_decides_everything(images: Path) -> None:
    assert same(trained(images)[0], trained(images)[0])
    assert not same(trained(images)[0], trained(images, seed=1)[0])


def test_mixed_precision_learns_too(images: Path) -> None:
    _, result = trained(images, precision="mixed", epochs=8)
    assert result.accuracies[-1] > 0.95


def test_a_schedule_in_parts_has_the_rates_of_the_whole() -> None:
    assert rate(0.0, 0.1) < 0.05
    assert rate(0.1, 0.1) == pytest.approx(1.0)
    assert rate(1.0, 0.1) == pytest.approx(0.0)
    falling = [rate(done, 0.1) for done in np.linspace(0.1, 1, 50)]
    assert falling == sorted(falling, reverse=True)


KILLED = """
import sys, os, signal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_loop
def kill(step, done, total):
    if step.startswith("test") and done == 15:  # in the middle of the third epoch of 6 steps
        os.kill(os.getpid(), signal.SIGKILL)
from nnc.training.loop import Plan, train
from nnc.training.module import GraphModule
from nnc.training.options import Options
graph = test_loop.network()
options = Options(epochs=4, batch=16, learning_rate=0.05)
plan = Plan("test", options, test_loop.opened(Path(sys.argv[2]), graph), 0, None, Path(sys.argv[3]), kill)
train(GraphModule(graph), plan)
"""


def test_killed_in_the_middle_of_an_epoch(images: Path, tmp_path: Path) -> None:
    expected, _ = trained(images)
    folder = tmp_path / "training"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(images), str(folder)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = folder.iterdir()
    found, result = trained(images, folder=folder)
    assert result.resumed == 2
    assert len(result.losses) == 4
    assert same(found, expected)
    assert [*folder.iterdir()] == [left]
    again, result = trained(images, folder=folder)
    assert result.resumed == 4, "a finished run is not run again"
    assert same(again, expected)


def test_a_damaged_checkpoint_begins_anew(images: Path, tmp_path: Path) -> None:
    expected, _ = trained(images, folder=tmp_path / "training")
    (file,) = (tmp_path / "training").iterdir()
    for content in (b"", file.read_bytes()[:1000], b"nothing of torch"):
        file.write_bytes(content)
        found, result = trained(images, folder=tmp_path / "training")
        assert result.resumed == 0
        assert same(found, expected)


def test_other_options_are_another_run(images: Path, tmp_path: Path) -> None:
    trained(images, folder=tmp_path / "training")
    for changed in ({"learning_rate": 0.01}, {"batch": 32}, {"seed": 3}, {"graph": network(1)}):
        _, result = trained(images, folder=tmp_path / "training", **changed)  # type: ignore[arg-type]
        assert result.resumed == 0
    os.utime(images, (time.time() + 10, time.time() + 10))
    assert trained(images, folder=tmp_path / "training")[1].resumed == 0


def test_a_run_goes_on_that_is_kept_among_its_images(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classes"
    with np.load(images) as arrays:
        for index, (pixels, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
            file = folder / f"{label}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    kept = folder / ".nnc" / "training"
    trained(folder, folder=kept, epochs=1)
    assert trained(folder, folder=kept, epochs=1)[1].resumed == 1
    (folder / "0").rename(folder / "9")  # the same images, other labels
    assert trained(folder, folder=kept, epochs=1)[1].resumed == 0


def test_other_code_is_another_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(images, folder=tmp_path / "training")
    monkeypatch.setattr(state, "code_digest", lambda: "edited")
    assert trained(images, folder=tmp_path / "training")[1].resumed == 0


def test_images_that_are_prepared_otherwise_are_another_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(images, folder=tmp_path / "training")
    monkeypatch.setattr(sys.modules[__name__], "PREPROCESS", PREPROCESS.model_copy(update={"mean": (0.3,)}))
    assert trained(images, folder=tmp_path / "training")[1].resumed == 0


class Killed(BaseException):
    pass


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """The weights after each epoch of a run that is best after its second."""
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def held_out(run: loop._Run) -> float:
        number = len(run.result.losses)
        seen[number] = run._values()
        return {1: 0.5, 2: 0.8, 3: 0.8, 4: 0.7}[number]

    monkeypatch.setattr(loop._Run, "_held_out", held_out)
    return seen


def test_early_stop_keeps_the_best_weights(
    images: Path, tmp_path: Path, judged: dict[int, dict[str, torch.Tensor]]
) -> None:
    """In one go, killed in any epoch, and once more when it has stopped."""

    def run(killed_in: int | None = None) -> tuple[dict[str, np.ndarray], Result]:
        def kill(step: str, done: int, total: int) -> None:
            if f"epoch {killed_in} of 9" in step and done % 2:
                raise Killed

        graph, options = network(), Options(epochs=9, batch=16, learning_rate=0.05, patience=2, holdout=0.25)
        module = GraphModule(graph)
        result = train(module, Plan("test", options, opened(images, graph), 0, None, tmp_path / "training", kill))
        return {name: each.detach().numpy() for name, each in module.named_parameters()}, result

    for epoch in (2, 4):
        with pytest.raises(Killed):
            run(epoch)
    found, result = run()
    assert (len(result.losses), result.resumed) == (4, 3)
    again, result = run()
    assert (len(result.losses), result.resumed) == (4, 4)
    assert judged.keys() == {1, 2, 3, 4}
    assert not any(torch.equal(judged[2][name], judged[4][name]) for name in found)
    for name in found:
        np.testing.assert_array_equal(found[name], judged[2][name].numpy())
        np.testing.assert_array_equal(again[name], found[name])


def test_early_stop_stops_where_nothing_gets_better(images: Path) -> None:
    """The task is learned after few epochs."""
    _, result = trained(images, epochs=40, patience=2, holdout=0.25, learning_rate=0.05)
    assert 3 <= len(result.losses) < 40


def test_distilled_without_labels(images: Path, tmp_path: Path) -> None:
    teacher, _ = trained(images, epochs=10)
    with np.load(images) as data:
        np.savez(tmp_path / "unlabelled.npz", images=data["images"])
        labels = data["labels"]
    student, result = trained(
        tmp_path / "unlabelled.npz", network(1), teacher=teacher, distill=Distill(logits=1.0), epochs=15
    )
    assert not result.accuracies
    inputs = next(feed.Feed(opened(images, student), 96, Augment(), 0).plain()).inputs
    with torch.no_grad():
        right = GraphModule(student).eval()(inputs)["y"].argmax(1).numpy() == labels
    assert right.mean() > 0.9


@pytest.mark.parametrize(
    "given", [{"activation_boundary": 1.0}, {"features": 1.0}, {"features": 0.5, "layers": ("n1",)}]
)
def test_hidden_layers_come_nearer_to_the_teachers(images: Path, given: dict[str, object]) -> None:
    teacher, _ = trained(images, epochs=6)
    distill = Distill(**({"logits": 0.0} | given))  # type: ignore[arg-type]
    before, after = network(1), trained(images, network(1), teacher=teacher, distill=distill, epochs=8)[0]
    measure = losses.boundary if distill.activation_boundary else losses.relative_error
    inputs = next(feed.Feed(opened(images, before), 96, Augment(), 0).plain()).inputs
    name = distill.layers[0] if distill.layers else "c2"
    with torch.no_grad():
        taught, first, last = (GraphModule(each).eval()(inputs, [name])[name] for each in (teacher, before, after))
    assert measure(last, taught) < 0.8 * measure(first, taught)


def test_the_teacher_itself_has_no_distance() -> None:
    x = torch.randn(4, 8, 5, 5)
    assert losses.relative_error(x, x) == 0
    assert losses.divergence(x[:, :, 0, 0], x[:, :, 0, 0], 4.0).abs() < 1e-5
    far = 10 * x.sign() * (x.abs() + 1) / x.std()
    assert losses.boundary(far, x) < losses.boundary(-far, x)


def test_hidden_layers_are_the_last_of_each_size() -> None:
    found = hidden.pairs(network(), network(1), ())
    assert [(pair.student, pair.teacher) for pair in found] == [("n1", "n1"), ("c2", "c2")]
    assert hidden.pairs(network(), network(), ("c1=n1",)) == [hidden.Pair("c1", "n1", 8, 8)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("c9",), "the model has no layer 'c9'"),
        (("c2=c8",), "the teacher has no layer 'c8'"),
        (("c1=c2",), "'c1' and 'c2' are 8x8 and 4x4, not of one size"),
    ],
)
def test_wrong_hidden_layers(layers: tuple[str, ...], message: str) -> None:
    with pytest.raises(NncError, match=message):
        hidden.pairs(network(), network(), layers)


def test_wrong_data(images: Path, tmp_path: Path) -> None:
    with np.load(images) as data:
        pixels, labels = data["images"], data["labels"]
    for name, arrays, message in (
        ("unlabelled", {"images": pixels}, "has no labels to train with"),
        ("classes", {"images": pixels, "labels": labels + 5}, "label 8 is out of range: the model has 4 classes"),
        ("one", {"images": pixels[:1], "labels": labels[:1]}, "1 sample is not enough"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(NncError, match=message):
            trained(tmp_path / f"{name}.npz")
    with pytest.raises(NncError, match=r"the loss is .* in epoch"):
        trained(images, learning_rate=1e30)
    with pytest.raises(NncError, match=r"the loss is .* in epoch 4"):
        trained(images, learning_rate=1e30, span=Span(3, 4, 4))


def test_a_gradient_that_is_not_finite_is_told_at_once(images: Path) -> None:
    """In the very last step, too: nothing else would tell that all weights are lost."""
    text = NET.replace("r2 = Relu(c2)", "n2 = Relu(c2)\n none = Mul(n2, nil)\n r2 = Sqrt(none)")
    graph = testing.graph(text.replace("float[4] B3", "float[4] B3, float nil"), nil=0.0)
    with pytest.raises(NncError, match=r"the gradient is nan in epoch 3, and the loss is \d") as error:
        trained(images, graph, batch=96, span=Span(2, 3, 3))
    assert "root of 0" in str(error.value.hint)


def test_a_gpu_that_is_too_small(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(losses.Loss, "forward", full)
    with pytest.raises(NncError, match="steps of 16 samples need more memory than the GPU has"):
        trained(images)


@pytest.mark.parametrize(
    ("samples", "batch", "sizes"), [(5, 2, [3, 2]), (4, 2, [2, 2]), (3, 2, [3]), (2, 128, [2]), (9, 4, [3, 3, 3])]
)
def test_no_batch_is_of_one_sample(images: Path, samples: int, batch: int, sizes: list[int]) -> None:
    data = opened(images, network()).subset(0, samples)
    given = feed.Feed(data, batch, Augment(), 0)
    assert [len(each.inputs["x"]) for each in given.epoch(0)] == sizes
    assert given.steps == len(sizes)


def test_statistics_of_single_values(images: Path) -> None:
    """BatchNormalization of [N, C, 1, 1], on an odd number of samples."""
    text = NET.replace("c1 = Conv<pads = [1, 1, 1, 1]>(x, W1)", "g = GlobalAveragePool(x)\n c1 = Conv(g, W1)")
    graph = testing.graph(text.replace("8, 3, 3, 3] W1", "8, 3, 1, 1] W1"))
    assert len(trained(images, graph, samples=5, batch=2, epochs=1)[1].losses) == 1


def test_what_is_left_to_train_on_is_counted(images: Path) -> None:
    with pytest.raises(NncError, match="1 sample is not enough to train on") as error:
        trained(images, samples=2, patience=1)
    assert error.value.hint == "leave out 'patience', which holds 1 back"


def test_images_move_and_turn_by_the_seed_alone(images: Path) -> None:
    data = opened(images, network())
    first, again = (next(feed.Feed(data, 32, Augment(crop=2, mixup=1.0), 0).epoch(3)) for _ in range(2))
    torch.testing.assert_close(vars(first), vars(again), rtol=0, atol=0)
    other = next(feed.Feed(data, 32, Augment(crop=2), 0).epoch(4))
    assert not torch.equal(first.labels, other.labels)
    seen = torch.cat([each.labels for each in feed.Feed(data, 32, Augment(), 0).epoch(0) if each.labels is not None])
    assert sorted(seen.tolist()) == sorted(data.labels.tolist()), "every sample once"  # type: ignore[union-attr]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["images", "arrays"])
def test_more_than_memory_holds_is_read_batch_by_batch(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, save: Callable[..., None]
) -> None:
    """The samples are the same, and no batch reads a file more than once."""
    with np.load(images) as data:
        ready = data["images"].transpose(0, 3, 1, 2) / np.float32(255)
        save(
            tmp_path / "large.npz",
            labels=data["labels"],
            **({"images": data["images"]} if kind == "images" else {"x": ready}),
        )
    data = opened(tmp_path / "large.npz", network()).subset(0, 90)
    expected = list(feed.Feed(data, 16, Augment(crop=1), 0).epoch(3))
    monkeypatch.setattr(feed, "_MOST_BYTES", 1)
    count, original = [0], zipfile.ZipExtFile.read

    def read(file: zipfile.ZipExtFile, size: int | None = -1) -> bytes:
        found = original(file, size)
        count[0] += len(found)
        return found

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    large = feed.Feed(data, 16, Augment(crop=1), 0)
    for one, other in zip(large.epoch(3), expected, strict=True):
        torch.testing.assert_close(vars(one), vars(other), rtol=0, atol=0)
    size = 96 * ready[0].size * (1 if kind == "images" else 4)
    passes = large.steps if save is np.savez_compressed else 0
    assert count[0] <= passes * size + 2000


def test_crops_are_parts_of_the_image_over_black() -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (200, 6, 6, 1)).astype(np.uint8)
    moved = feed.varied(pixels, Augment(crop=2, flip=False), np.random.default_rng(0))
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = set()
    for image, whole in zip(moved, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(image, whole[y : y + 6, x : x + 6])]
        assert found
        places.update(found)
    assert len(places) == 25, "each place is taken"
    flipped = feed.varied(pixels, Augment(crop=0), np.random.default_rng(0))
    mirrored = (flipped == pixels[:, :, ::-1]).all((1, 2, 3))
    assert 60 < mirrored.sum() < 140
    np.testing.assert_array_equal(flipped[~mirrored], pixels[~mirrored])


def test_blends_are_of_two_images(images: Path) -> None:
    data = opened(images, network())
    plain, blend = (
        next(feed.Feed(data, 32, Augment(crop=0, flip=False, mixup=alpha), 0).epoch(0)) for alpha in (0.0, 0.5)
    )
    assert plain.shares is None
    assert blend.shares is not None
    assert blend.shares.min() >= 0.5
    assert blend.shares.std() > 0.1
    own = blend.shares.reshape(-1, 1, 1, 1)
    expected = own * plain.inputs["x"] + (1 - own) * plain.inputs["x"].flip(0)
    torch.testing.assert_close(blend.inputs["x"], expected)
    assert next(feed.Feed(data, 32, Augment(mixup=0.5), 0).plain()).shares is None, "nobody is judged on blends"


def test_blends_have_the_labels_of_both() -> None:
    """The cross-entropy is that of the blended labels."""
    module = GraphModule(network())
    loss = losses.Loss(module, Options(label_smoothing=0.1), None)
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    shares = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    found = loss(feed.Batch({}, labels, shares), {"y": scores})
    hot = torch.eye(4)[labels]
    smooth = 0.9 * (shares[:, None] * hot + (1 - shares[:, None]) * hot.flip(0)) + 0.1 / 4
    assert float(found) == pytest.approx(float(-(smooth * scores.log_softmax(1)).sum(1).mean()), rel=1e-5)


ENDS = [
    "y = Softmax(z)",
    "y = LogSoftmax(z)",
    "wide = Unsqueeze(z, last)\n soft = Softmax<axis = 1>(wide)\n y = Squeeze(soft, last)",
]


def classifier(end: str, seed: int = 0) -> gs.Graph:
    """The network with another end behind its scores z."""
    rng = np.random.default_rng(seed)
    text = NET.replace("y = Gemm(f, W3, B3)", f"z = Gemm(f, W3, B3)\n {end}")
    text = text.replace("float[4] B3", "float[4] B3, int64[1] last = {2}") if "last" in end else text
    shapes = {"W1": (8, 3, 3, 3), "W2": (8, 8, 3, 3), "W3": (8, 4)}
    return testing.graph(text, **{name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("distills", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_a_network_that_ends_in_softmax_learns_like_one_that_does_not(images: Path, end: str, distills: bool) -> None:
    options = {"epochs": 2, "distill": Distill() if distills else None}
    plain, scored = (
        trained(images, classifier(each), teacher=classifier(each, 1), **options)  # type: ignore[arg-type]
        for each in ("y = Identity(z)", end)
    )
    assert scored[1] == plain[1]
    found = testing.weights(scored[0])
    assert all(np.array_equal(found[name], values) for name, values in testing.weights(plain[0]).items())


@pytest.mark.parametrize("end", ["y = Identity(z)", "y = Softmax<axis = 1>(z)"])
def test_probabilities_of_many_places_are_compared_as_they_are(end: str) -> None:
    graph = testing.graph(f"net (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) {{ z = Relu(x)\n {end} }}")
    assert losses.compared(graph) == ["y"]


def test_a_teacher_says_what_blends_are(images: Path) -> None:
    """A copy of the teacher has nothing to learn from it, blended or not."""
    teacher, _ = trained(images, epochs=3)
    frozen = {"epochs": 1, "distill": Distill(logits=1.0), "augment": Augment(mixup=1.0), "learning_rate": 1e-9}
    _, taught = trained(images, graph=graphs.copy(teacher), teacher=teacher, **frozen)  # type: ignore[arg-type]
    _, apart = trained(images, graph=network(1), teacher=teacher, **frozen)  # type: ignore[arg-type]
    assert taught.losses[0] < 0.2 * apart.losses[0]


def test_what_is_decayed_are_kernels_and_matrices() -> None:
    """Slopes and factors per channel are none, whatever axes of size 1 they have."""
    text = """
    net (float[1, 4, 8, 8] x) => (float[1, 5, 6, 6] y)
    <float[4, 1, 1] s, float[1, 4, 1, 1] f, float[4, 1, 1, 1] d, float[4, 1, 3, 3] W, float[5, 4, 1, 1] V, float[5] B>
    {
        p = PRelu(x, s)
        m = Mul(p, f)
        c = Conv<group = 4>(m, d)
        e = Conv<group = 4>(c, W)
        y = Conv(e, V, B)
    }
    """
    module = GraphModule(testing.graph(text))
    names = {id(each): name for name, each in module.named_parameters()}
    groups = steps.grouped(module, Options(weight_decay=0.1))
    found = {group["weight_decay"]: {names[id(each)] for each in group["params"]} for group in groups}
    assert found == {0.1: {"W", "V"}, 0.0: {"s", "f", "d", "B"}}


def test_gradients_are_cut_to_a_length() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:]}], 1.0)
    for factor, expected in ((10.0, 1.0), (0.1, 0.1 * 7**0.5)):
        for each in weights:
            each.grad = torch.full_like(each, factor)
        steps.shorten(optimizer, 1.0)
        length = torch.cat([each.grad.flatten() for each in weights if each.grad is not None]).norm()
        assert float(length) == pytest.approx(expected, rel=1e-4)


def test_a_network_that_nothing_normalizes_learns(images: Path) -> None:
    """Without a limit, the first long gradients throw its weights to where it learns no more."""

    def learned(most: float) -> float:
        rng = np.random.default_rng(0)
        folded = NET.replace("BatchNormalization(c1, s1, b1, m1, v1)", "Mul(c1, s1)").replace("float[8] s1", "float s1")
        shapes = {"W1": (8, 3, 3, 3), "W2": (8, 8, 3, 3), "W3": (8, 4)}
        weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        graph = testing.graph(folded.replace(" float[8] b1, float[8] m1, float[8] v1,", ""), s1=8.0, **weights)
        return trained(images, graph, learning_rate=0.1, epochs=6, gradient_norm=most)[1].accuracies[-1]

    assert learned(1.0) > 0.95
    assert learned(1e9) < 0.6
