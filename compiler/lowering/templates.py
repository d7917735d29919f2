"""The templates of a kind of unit, where CPUs, GPUs and DSPs have their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnc.lowering.dsp import relayout as dsp_relayout
from nnc.lowering.dsp.unit import Dsp
from nnc.lowering.gpu import conv2d as gpu_conv2d
from nnc.lowering.gpu import depthwise as gpu_depthwise
from nnc.lowering.gpu import pool as gpu_pool
from nnc.lowering.gpu import relayout as gpu_relayout
from nnc.lowering.gpu.unit import Gpu
from nnc.lowering.kernels import conv2d, depthwise, pool, relayout
from nnc.lowering.kernels.unit import Unit


@dataclass(frozen=True)
class Templates:
    """Modules with the functions that the docstring of `nnc.lowering.kernels` lists."""

    conv2d: Any
    depthwise: Any
    pool: Any
    relayout: Any

    def of(self, problem: Any) -> Any:
        """The module that takes a convolution."""
        return self.depthwise if isinstance(problem, depthwise.Depthwise) else self.conv2d


_CPU = Templates(conv2d, depthwise, pool, relayout)
_GPU = Templates(gpu_conv2d, gpu_depthwise, gpu_pool, gpu_relayout)
_DSP = Templates(conv2d, depthwise, pool, dsp_relayout)


def templates_of(unit: Unit) -> Templates:
    if isinstance(unit, Dsp):
        return _DSP
    return _GPU if isinstance(unit, Gpu) else _CPU
