"""From an image to the input that a model was trained with."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from nnc import toml
from nnc.errors import NncError

#: Options of the command line by key of [data.preprocess]; None: not given.
Options = Mapping[str, str | int | None]

_Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]
_PositiveChannels = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=4)]


class Preprocess(BaseModel):
    """From an image to the input that a model was trained with: crop, resize (bilinear), (pixel / 255 - mean) / std.

    A model that reads integers gets the pixels as they are, 0 to 255, where mean is 0 and std is 1, as they are where
    they are not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="[height, width]; the model's own if absent"
    )
    crop: PositiveInt | None = Field(
        default=None, description="side of the square cut from the centre before the resize"
    )
    mean: _Channels = Field(default=(0.0,), description="per channel or one for all; pixels go from 0 to 1")
    std: _PositiveChannels = Field(default=(1.0,), description="per channel or one for all; pixels go from 0 to 1")
    layout: Literal["NCHW", "NHWC"] = Field(default="NCHW", description="order of the input's dimensions")

    def apply(self, image: Image.Image, place: str) -> np.ndarray:
        """The image as float32 in `layout` without N; `place` names the image in errors."""
        return self.normalized(self.pixels(image, place))

    def pixels(self, image: Image.Image, place: str) -> np.ndarray:
        """The image, cropped and resized, as uint8 [height, width, channels]."""
        if self.crop is not None:
            image = _crop(image, self.crop, place)
        if self.size is not None and image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.uint8)
        return pixels.reshape(*pixels.shape[:2], -1)

    @property
    def is_plain(self) -> bool:
        """Whether mean and std leave pixels where they are, from 0 to 1."""
        return not any(self.mean) and all(each == 1 for each in self.std)

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., height, width, channels] as float32 [..., *layout without N]."""
        scaled: np.ndarray = pixels.astype(np.float32) / np.float32(255)
        return self.arranged((scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32))

    def arranged(self, values: np.ndarray) -> np.ndarray:
        """[..., height, width, channels] as [..., *layout without N]."""
        return values if self.layout == "NHWC" else np.moveaxis(values, -1, -3)


def _crop(image: Image.Image, side: int, place: str) -> Image.Image:
    if min(image.size) < side:
        raise NncError(
            f"{place}: the image is {image.width}x{image.height}, smaller than the crop of {side}",
            "crop is in pixels of the image as it is on disk",
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def replaced(default: Preprocess, options: Options) -> Preprocess:
    """The preprocessing with the options that were given instead; NncError for one that can't be."""
    given: dict[str, Any] = {}
    for key, text in options.items():
        if text is not None:
            given[key] = _numbers(key, text) if key in ("size", "mean", "std") and isinstance(text, str) else text
    try:
        return Preprocess.model_validate(default.model_dump() | given)
    except ValidationError as error:
        raise _explained(error, options) from None


def _numbers(key: str, text: str) -> list[float]:
    """'0.5,0.4,0.3' -> [0.5, 0.4, 0.3]; sizes are whole numbers, and one stands for a square."""
    words = text.split(",")
    pattern = r"\s*\d+\s*" if key == "size" else r"\s*-?(\d+\.?\d*|\.\d+)(e-?\d+)?\s*"
    if not all(re.fullmatch(pattern, word) for word in words) or (key == "size" and len(words) > 2):
        raise NncError(f"--{key} {text}: not numbers separated by commas", f"such as --{key} {_EXAMPLES[key]}")
    if key == "size":
        return [int(word) for word in (words * 2)[:2]] if len(words) == 1 else [int(word) for word in words]
    return [float(word) for word in words]


_EXAMPLES = {"size": "224,224", "mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}


def _explained(error: ValidationError, options: Options) -> NncError:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    hint = toml.nearest(str(options[key]), ("NCHW", "NHWC")) if key == "layout" else None
    return NncError(f"--{key} {options[key]}: {first['msg'][:1].lower()}{first['msg'][1:]}", hint)
