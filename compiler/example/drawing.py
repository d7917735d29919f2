"""The example's images: ten shapes of random place, size, angle and colours under noise, drawn from a seed."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

#: Pixels of a side.
SIZE = 32

#: Images are drawn this many times larger: the reduction smooths the edges.
_OVERSAMPLED = 4

Outline = list[tuple[float, float]]


def draw(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` images, uint8 [count, SIZE, SIZE, 3], and their labels, int64 [count]: indices into CLASSES."""
    labels = rng.integers(0, len(CLASSES), count)
    return np.stack([_image(CLASSES[label], rng) for label in labels]), labels


def _image(name: str, rng: np.random.Generator) -> np.ndarray:
    shape = _mask(name, rng)[:, :, None]
    ground, colour = _two_colours(rng)
    light = 1 + rng.uniform(-0.3, 0.3) * np.linspace(-1, 1, SIZE)[:, None, None]
    pixels = (ground + shape * (colour - ground)) * light
    pixels = pixels + rng.uniform(5, 40) * rng.standard_normal(pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _mask(name: str, rng: np.random.Generator) -> np.ndarray:
    """How much of each pixel the shape covers, 0 to 1, [SIZE, SIZE]."""
    side = SIZE * _OVERSAMPLED
    mask = Image.new("L", (side, side))
    radius = side * rng.uniform(0.24, 0.42)
    centre = side / 2 + rng.uniform(-1, 1, 2) * (side / 2 - radius)
    angle = rng.uniform(-0.4, 0.4)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for outline, ink in zip(_OUTLINES[name], (255, 0), strict=False):  # a second outline is a hole
        points = np.array(outline) @ turn * radius + centre
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in points], fill=ink)
    return np.asarray(mask.reduce(_OVERSAMPLED), np.float64) / 255


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the ground and of the shape, 0 to 255, the shape clearly lighter."""
    while True:
        ground, colour = rng.uniform(0, 255, (2, 3))
        if colour.mean() - ground.mean() > 50:
            return ground, colour


# Outlines fit into a circle of radius 1 around (0, 0); y points down.


def _around(corners: int, radius: Callable[[float], float] = lambda _: 1.0) -> Outline:
    """Points at equal angles from the top on; `radius` of the turn, 0 to 1."""
    turns = np.arange(corners) / corners
    return [
        (float(np.sin(2 * np.pi * turn) * radius(turn)), float(-np.cos(2 * np.pi * turn) * radius(turn)))
        for turn in turns
    ]


def _star(points: int, inner: float) -> Outline:
    return _around(2 * points, lambda turn: 1.0 if round(turn * 2 * points) % 2 == 0 else inner)


_CROSS = [
    (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
    (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
]  # fmt: skip
_ARROW = [(0.0, -1.0), (0.8, -0.1), (0.3, -0.1), (0.3, 0.9), (-0.3, 0.9), (-0.3, -0.1), (-0.8, -0.1)]
_BOLT = [(0.2, -1.0), (-0.6, 0.15), (-0.1, 0.15), (-0.3, 1.0), (0.6, -0.2), (0.1, -0.2), (0.5, -1.0)]

_OUTLINES: dict[str, tuple[Outline, ...]] = {
    "disc": (_around(48),),
    "ring": (_around(48), [(0.6 * x, 0.6 * y) for x, y in _around(48)]),
    "triangle": (_around(3),),
    "square": ([(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],),
    "frame": (
        [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
        [(-0.4, -0.4), (0.4, -0.4), (0.4, 0.4), (-0.4, 0.4)],
    ),
    "bar": ([(-1.0, -0.25), (1.0, -0.25), (1.0, 0.25), (-1.0, 0.25)],),
    "star": (_star(5, 0.42),),
    "cross": (_CROSS,),
    "arrow": (_ARROW,),
    "bolt": (_BOLT,),
}

CLASSES = tuple(_OUTLINES)
