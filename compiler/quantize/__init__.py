"""Quantization: how numbers become integers, which tensors of a network do, and the ranges that decide it.

`scheme` is the arithmetic, `observe` and `calibration` find ranges on data, `placement` says which tensors are
quantized and which of them share a scale, `insertion` writes the QDQ graph, and `lookup` reads it again; `grid` has few
bits in bytes. `precision` says which layers had better stay in floats. `rounding`, `biases`, `expectation` and `twins`
make up for what integers lose; `quantizing_pass` is what the passes that insert them share.
"""

from nnc.quantize import grid, precision
from nnc.quantize.calibration import Ranges, ranges
from nnc.quantize.insertion import Config, LayerConfig, insert
from nnc.quantize.lookup import QuantizedLayer, layers
from nnc.quantize.observe import METHODS, Method
from nnc.quantize.placement import Placement, place
from nnc.quantize.scheme import (
    LEAST_SCALE,
    Scheme,
    dequantized,
    fake_quantized,
    quantized,
    scale_axis,
    scale_zero_point,
    weight_scale,
)

__all__ = [
    "LEAST_SCALE", "METHODS", "Config", "LayerConfig", "Method", "Placement", "QuantizedLayer", "Ranges", "Scheme",
    "dequantized", "fake_quantized", "grid", "insert", "layers", "place", "precision", "quantized", "ranges",
    "scale_axis", "scale_zero_point", "weight_scale",
]  # fmt: skip
