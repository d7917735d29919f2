"""What calibration data tells about a layer: a network run stretch by stretch, and moments of what a layer reads.

Two flows side by side, one over the original network and one over the compressed one, let a layer be fitted to what the
original computed from what the layers before it now give.

`flow` runs the networks, `statistics` sums up what layers read and give, `extremes` what tensors hold, `fitting` solves
for weights; `shortcuts` has what is added to a layer's output.
"""

from nnc.calibrate.fitting import fitted, ridge
from nnc.calibrate.flow import FLOW_BYTES, MOST_SAMPLES, Flow, samples, unbatched
from nnc.calibrate.shortcuts import shortcut
from nnc.calibrate.statistics import Moments, NotFinite, Slack, channel_moments, input_moments, moments, shrunk

__all__ = [
    "FLOW_BYTES", "MOST_SAMPLES", "Flow", "Moments", "NotFinite", "Slack", "channel_moments", "fitted", "input_moments",
    "moments", "ridge", "samples", "shortcut", "shrunk", "unbatched",
]  # fmt: skip
