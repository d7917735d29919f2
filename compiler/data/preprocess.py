"""From an image to the input that a model was trained with."""

from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from nnc.errors import NncError

_Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]
_PositiveChannels = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=4)]


class Preprocess(BaseModel):
    """From an image to the input that a model was trained with: crop, resize (bilinear), (pixel / 255 - mean) / std.

    A model that reads integers gets the pixels as they are, 0 to 255, where neither mean nor std is given.
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
