"""From a graph to a library for the target's unit: `build` is the whole of it.

fuse.py     which nodes one kernel computes
lower.py    layouts, templates and calls: a Program; lowering.py is where every tensor is meanwhile
layers/     which nodes go to which schedule template; views.py, those that only move memory
kernels/    the schedule templates
kinds/      how their problems are planned; workload.py and layout.py choose among what is measured
generic.py  what the templates don't take: operators/ on plain tensors, or TVM's frontend with schedule.py
build.py    code, weights and the runner of the calls, linked into module.so
library.py, emulate.py   run it
gpu/        the same for GPUs
dsp/        the same for Hexagon DSPs
"""

from nnc.lowering.build import Built, Kernel, storage
from nnc.lowering.units import build

__all__ = ["Built", "Kernel", "build", "storage"]
