"""A compile that trains and is killed goes on from its last epoch, to the same bytes."""

import json
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nnc import graph as graphs
from nnc import testing
from nnc.cli import app

NET = """
net (float[1, 3, 8, 8] x) => (float[1, 4] y)
<float[8, 3, 3, 3] W1, float[8] B1, float[8, 8, 3, 3] W2, float[8] B2, float[8, 4] W3, float[4] B3>
{
    c1 = Conv<pads = [1, 1, 1, 1]>(x, W1, B1)
    r1 = Relu(c1)
    c2 = Conv<pads = [1, 1, 1, 1]>(r1, W2, B2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm(f, W3, B3)
}
"""

RECIPE = """
[data]
train = "images.npz"
test = "images.npz"

[[pass]]
name = "train-quantized"
weight_bits = 4
activation_bits = 4
epochs = {epochs}
batch = 8
distill = {{}}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 256, (128, 8, 8, 3), np.uint8), labels=np.arange(128) % 4)
    graphs.save(testing.graph(NET), tmp_path / "model.onnx")
    return tmp_path


WORDS = ("compile", "recipe.toml", "model.onnx", "--target", "x86", "--no-lower", "-o")


def compiled(out: str) -> bytes:
    """The model that the command makes in this process."""
    result = CliRunner().invoke(app, [*WORDS, out], prog_name="nnc")
    assert result.exit_code == 0, result.output
    return Path(out, "model.onnx").read_bytes()


def test_a_compile_that_fails_keeps_its_epochs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    recipe = RECIPE.format(epochs=1).replace("[data]", '[data]\ncalibration = "images.npz"')
    training = here / "out/.nnc/training"
    (here / "recipe.toml").write_text(recipe + '\n[[pass]]\nname = "insert-qdq"\nlayers = { nobody = {} }\n')
    failed = CliRunner().invoke(app, [*WORDS, "out"], prog_name="nnc")
    assert "no layer is called 'nobody'" in failed.output
    assert len([*training.glob("*.pt")]) == 1
    (here / "recipe.toml").write_text(recipe)
    compiled("out")
    assert not training.exists(), "a complete one needs them no more"


def test_the_lock_says_what_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    for epochs in (1, 0):
        (here / "recipe.toml").write_text(RECIPE.format(epochs=epochs))
        compiled("out")
        lock = json.loads((here / "out/nnc.lock").read_text())
        assert ("torch" in lock["packages"], "training" in lock) == (epochs > 0, epochs > 0)
        if epochs:
            assert lock["packages"]["torch"] == version("torch")
            assert lock["training"]["threads"] == torch.get_num_threads()
            assert lock["training"]["device"]


@pytest.mark.slow
def test_the_same_bytes_after_a_kill(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    (here / "recipe.toml").write_text(RECIPE.format(epochs=8))
    process = subprocess.Popen(
        [sys.executable, "-m", "nnc", *WORDS, "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    training, until = here / "killed/.nnc/training", time.monotonic() + 120
    while not any(training.glob("*.pt")):  # when the first epoch is over, the second has begun
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (here / "killed/model.onnx").exists(), "nothing of it is finished"
    assert compiled("killed") == compiled("whole")
