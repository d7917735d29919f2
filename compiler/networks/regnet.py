"""RegNet (Radosavovic et al., https://arxiv.org/abs/2003.13678)."""

import math
from dataclasses import dataclass
from itertools import groupby

from nnc.networks.blocks import classifier, conv_bn, squeeze_excite
from nnc.networks.network import Network, Value, divisible


@dataclass(frozen=True)
class Design:
    """A network of the family: its depth, and where and how fast widths grow (table 1 and section 3.3 of the paper)."""

    depth: int
    initial: int
    slope: float
    step: float
    group_width: int
    excited: bool

    def stages(self, width: float) -> list[tuple[int, int, int]]:
        """Channels, blocks and the width of a group of each stage."""
        widths = []
        for block in range(self.depth):
            exponent = round(math.log(1 + self.slope * block / self.initial) / math.log(self.step))
            widths.append(round(self.initial * self.step**exponent / 8) * 8)
        stages = []
        for channels, blocks in groupby(widths):
            group = min(self.group_width, channels)
            stages.append((divisible(channels * width, group), len(list(blocks)), group))
        return stages


#: By billions of multiply-accumulates. Y has squeeze-and-excitation, X has not.
Y_DESIGNS = {
    "400mf": Design(16, 48, 27.89, 2.09, 8, excited=True),
    "800mf": Design(14, 56, 38.84, 2.4, 16, excited=True),
    "1_6gf": Design(27, 48, 20.71, 2.65, 24, excited=True),
    "3_2gf": Design(21, 80, 42.63, 2.66, 24, excited=True),
}
X_DESIGNS = {
    "400mf": Design(22, 24, 24.48, 2.54, 16, excited=False),
    "800mf": Design(16, 56, 35.73, 2.28, 16, excited=False),
    "1_6gf": Design(18, 80, 34.01, 2.25, 24, excited=False),
    "3_2gf": Design(25, 88, 26.31, 2.25, 48, excited=False),
}


def regnet(net: Network, design: Design) -> Value:
    x = conv_bn(net, net.input, "stem", net.scaled(32), 3, 2)
    for stage, (channels, blocks, group) in enumerate(design.stages(net.width), start=1):
        for index in range(blocks):
            name = f"trunk_output.block{stage}.block{stage}-{index}"
            x = _block(net, x, name, channels, group, 2 if index == 0 else 1, design.excited)
    return classifier(net, x, "fc")


def _block(net: Network, x: Value, name: str, channels: int, group: int, stride: int, excited: bool) -> Value:
    shortcut = x
    if stride > 1 or x.channels != channels:
        shortcut = conv_bn(net, x, f"{name}.proj", channels, 1, stride, None)
    y = conv_bn(net, x, f"{name}.f.a", channels)
    y = conv_bn(net, y, f"{name}.f.b", channels, 3, stride, groups=channels // group)
    if excited:
        y = squeeze_excite(net, y, f"{name}.f.se", round(x.channels / 4))
    y = conv_bn(net, y, f"{name}.f.c", channels, activation=None)
    return net.relu(net.add(shortcut, y, f"{name}.add"), f"{name}.activation")
