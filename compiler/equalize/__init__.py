"""Channels that are scaled so that their ranges are alike.

A channel that is divided by s where it is written and multiplied by s where it is read leaves the network as it was,
if everything between is positively homogeneous, f(s x) = s f(x) for s > 0: Relu, PRelu, pooling, sums, everything that
only moves elements. `scalable` finds such channels, `ranges` and `noise` find factors, `scaling` applies them, and
`absorb` moves what a channel always exceeds into biases.

Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019, section 4.1.
"""

from nnc.equalize.noise import Noise, quietest
from nnc.equalize.ranges import alike, groups
from nnc.equalize.scalable import Scalable, trace
from nnc.equalize.scaling import scale

__all__ = ["Noise", "Scalable", "alike", "groups", "quietest", "scale", "trace"]
