"""An example to try nnc on: a small trained network, labelled images and a recipe, made here in a few seconds.

The network is a ResNet in miniature, with BatchNormalization left unfolded as training frameworks export it. It tells
ten shapes from each other in images that are drawn for the purpose.
"""

from importlib import resources
from pathlib import Path

import numpy as np
import onnx

from nnc.context import Progress, silent
from nnc.errors import NncError
from nnc.example import drawing, training
from nnc.model import wire
from nnc.networks.network import Network, Value

#: What `write` leaves in the folder.
FILES = ("model.onnx", "calibration.npz", "test.npz", "recipe.toml")

_MEAN, _STD = 0.5, 0.25  # recipe.toml says the same
_TRAINING_IMAGES, _CALIBRATION_IMAGES, _TEST_IMAGES = 5000, 1000, 1000
_STEPS = 500


def write(folder: Path, seed: int = 0, progress: Progress = silent) -> list[Path]:
    """Write the example into `folder`; returns its FILES. The same seed gives the same images and weights.

    Raises NncError when one of the files is there already.
    """
    if folder.exists() and not folder.is_dir():
        raise NncError(f"{folder}: a file, not a folder")
    files = [folder / name for name in FILES]
    for path in files:
        if path.exists():
            raise NncError(f"{path}: there is such a file already", "choose another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    progress("drawing images", 0, 1)
    images, labels = drawing.draw(_TRAINING_IMAGES, rng)
    test_images, test_labels = drawing.draw(_TEST_IMAGES, rng)
    model = network(seed)
    training.train(model, preprocessed(images), labels, rng, steps=_STEPS, progress=progress)
    model_file, calibration_file, test_file, recipe_file = files
    try:
        with wire.replacing(calibration_file) as file:
            np.savez(file, images=images[:_CALIBRATION_IMAGES], labels=labels[:_CALIBRATION_IMAGES])
        with wire.replacing(test_file) as file:
            np.savez(file, images=test_images, labels=test_labels)
        with wire.replacing(recipe_file) as file:
            file.write(resources.files("nnc.example").joinpath("recipe.toml").read_bytes())
        with wire.replacing(model_file) as file:  # the last, so that make takes no half of an example for one
            file.write(model.SerializeToString(deterministic=True))
    except BaseException:  # Ctrl-C, too: a half would be in the way of the next try
        for path in files:
            path.unlink(missing_ok=True)
        raise
    return files


def network(seed: int = 0) -> onnx.ModelProto:
    """The untrained network: `input` float32 [1, 3, 32, 32] -> `logits` [1, 10]."""
    net = Network("shapes", drawing.SIZE, len(drawing.CLASSES), seed=seed)
    x = _conv_bn_relu(net, net.input, "stem", 16, 3, 2)
    x = _conv_bn_relu(net, x, "stage1.down", 32, 3, 2)
    x = _residual(net, x, "stage1.block", _conv_bn_relu(net, x, "stage1.block.0", 32, 3), 3)
    x = _conv_bn_relu(net, x, "stage2.down", 64, 3, 2)
    x = _residual(net, x, "stage2.block", _conv_bn_relu(net, x, "stage2.block.0", 64, 3, groups=64), 1)
    x = net.flatten(net.global_average_pool(x, "pool"), "flatten")
    return net.finish(net.linear(x, "classifier", net.classes))


def preprocessed(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] as the network reads them, float32 [N, 3, H, W]."""
    return ((images.astype(np.float32) / 255 - np.float32(_MEAN)) / np.float32(_STD)).transpose(0, 3, 1, 2)


def _conv_bn_relu(
    net: Network, x: Value, name: str, filters: int, kernel: int, stride: int = 1, groups: int = 1
) -> Value:
    x = net.conv(x, f"{name}.conv", filters, kernel, stride, groups=groups)
    return net.relu(net.batch_norm(x, f"{name}.bn"), f"{name}.relu")


def _residual(net: Network, x: Value, name: str, y: Value, kernel: int) -> Value:
    """relu(x + bn(conv(y)))"""
    y = net.batch_norm(net.conv(y, f"{name}.1.conv", x.channels, kernel), f"{name}.1.bn")
    return net.relu(net.add(x, y, f"{name}.add"), f"{name}.relu")
