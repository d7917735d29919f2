"""Quantization: what the passes share that place integers, which is their parameters."""

from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from nnc.quantize import Method
from nnc.rewrite import Pass

Dtype = Literal["int8", "uint8"]
Bits = Annotated[int, Field(ge=2, le=8)]
WeightMethod = Literal["min-max", "mse"]


class LayerOptions(BaseModel):
    """What is different for some layers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_bits: Bits | None = Field(default=None, description="bits of their weights")
    activation_bits: Bits | None = Field(default=None, description="bits of the activations that they read")
    per_channel: bool | None = Field(default=None, description="a scale for every output channel")
    weight_only: bool | None = Field(default=None, description="quantize their weights, and let them read floats")
    keep_float: bool = Field(default=False, description="leave them in floats")


class QuantizingPass(Pass):
    """A pass that turns weights and activations into integers."""

    quantizes: ClassVar[bool] = True

    weight_bits: Bits = Field(8, description="bits of weights")
    activation_bits: Bits = Field(8, description="bits of what layers read; element-wise operators read 8")
    method: Method = Field("min-max", description="how the ranges of activations are found")
    percentile: float = Field(99.99, gt=50, le=100, description="what 'percentile' keeps of the values, in percent")
    activation_dtype: Dtype | None = Field(None, description="type of activations; without it, the target's")
    activation_symmetric: bool | None = Field(None, description="zero is in the middle; without it, as the target's")
    weight_dtype: Dtype | None = Field(None, description="type of weights; without it, the target's")
    weight_method: WeightMethod = Field("min-max", description="how the ranges of weights are found")
    per_channel: bool | None = Field(None, description="a scale for every output channel; without it, as the target's")
    layers: dict[str, LayerOptions] = Field({}, description="other options for layers, by name or glob")
    include: tuple[str, ...] = Field(("*",), description="quantize only layers whose name fits one of these globs")
    exclude: tuple[str, ...] = Field((), description="leave layers in floats whose name fits one of these globs")

    def _options(self, name: str) -> LayerOptions:
        """Of the entries of `layers` that fit a name, the last."""
        fitting = [options for glob, options in self.layers.items() if fnmatchcase(name, glob)]
        return fitting[-1] if fitting else LayerOptions()
