"""Channel groups: which channels of which tensors go together, and how to remove or copy some of them.

A channel is traced from the layer that writes it through everything that moves, scales or joins it to the layers that
read it. Channels that meet, such as those that a residual connection adds, go together: they have one id. Zeroing
channels everywhere and removing them are the same to all others.
"""

from nnc.channels.duplication import duplicate, refusal
from nnc.channels.groups import Channels, Group, Use, trace
from nnc.channels.removal import remove

__all__ = ["Channels", "Group", "Use", "duplicate", "refusal", "remove", "trace"]
