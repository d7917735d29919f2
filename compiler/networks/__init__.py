"""Reference networks of the literature as ONNX with seeded weights, for people without a model and for benchmarks.

Each is built exactly as torchvision builds it, or as its authors describe it, so that its parameters and
multiply-accumulates are the published ones, with BatchNormalization unfolded. The weights are random: good for shapes,
speed and numerical checks, useless for accuracy.
"""

import math
from collections.abc import Callable
from typing import Any

import onnx

from nnc.errors import NncError
from nnc.networks.architectures import ARCHITECTURES, find
from nnc.networks.network import Network, Pair, pair

__all__ = ["ARCHITECTURES", "NAMES", "build", "find", "listing"]

Progress = Callable[[str, int, int], None]

#: The networks that `build` knows.
NAMES = tuple(ARCHITECTURES)


def listing(progress: Progress = lambda step, done, total: None) -> list[dict[str, Any]]:
    """Name, input [height, width], parameters and multiply-accumulates of each network as published."""
    rows = []
    for index, (name, architecture) in enumerate(ARCHITECTURES.items()):
        progress(name, index, len(ARCHITECTURES))
        sides = pair(architecture.input_size)
        net = Network(name, sides, architecture.classes, seed=None)
        architecture.layers(net)
        rows.append({"name": name, "input": list(sides), "params": net.params, "macs": net.macs})
    return rows


def build(
    name: str,
    *,
    input_size: Pair | None = None,
    classes: int | None = None,
    width: float | None = None,
    seed: int | None = 0,
    progress: Progress = lambda step, done, total: None,
) -> onnx.ModelProto:
    """The network `name` as an ONNX model: `input` float32 [1, 3, height, width] -> `logits`, [1, classes] or boxes.

    `input_size` is in pixels, one side or height and width (else as published); `width` multiplies the channels of
    every layer. A name may say both, `mobilenet_v1_0.25_128`. The same arguments give the same bytes. Without a seed
    all weights are zero, which is much faster and will do for figures.
    Raises NncError for a name or a figure that makes no network.
    """
    architecture, named_width, named_size = find(name)
    size = _once(name, "input size", _sides(input_size), _sides(named_size))
    sides = size or pair(architecture.input_size)
    classes = architecture.classes if classes is None else classes
    width = _once(name, "width", width, named_width)
    width = 1.0 if width is None else width
    if min(sides) < architecture.smallest:
        smallest = f"{architecture.smallest} is the smallest"
        raise NncError(f"{name}: an input of {sides[0]}x{sides[1]} is too small", smallest)
    if classes < 1:
        raise NncError(f"{name}: the number of classes must be at least 1, not {classes}")
    if not (math.isfinite(width) and width > 0):
        raise NncError(f"{name}: the width must be a number above 0, not {width:g}", "1.0 is as published")
    if seed is not None and seed < 0:
        raise NncError(f"{name}: the seed must be at least 0, not {seed}")
    progress("draw weights", 0, 2)
    net = Network(name, sides, classes, width, seed)
    return net.finish(architecture.layers(net))


def _once(name: str, what: str, given: Any, named: Any) -> Any:
    """What the caller or the name says; both may, if they agree."""
    if given is not None and named is not None and given != named:
        raise NncError(f"{name}: the name says {what} {_text(named)}, and {_text(given)} is asked for", "say it once")
    return named if given is None else given


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def _sides(size: Pair | None) -> tuple[int, int] | None:
    return None if size is None else pair(size)
