"""VGG (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556)."""

from nnc.networks.network import Network, Value

#: Filters per convolution, stage by stage; a max pooling follows each stage. D is the letter in table 1 of the paper.
PLAN_D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg(net: Network, stages: tuple[tuple[int, ...], ...]) -> Value:
    """The classifier reads a grid of 7x7, or of the largest size below it that divides the feature map's."""
    x, index = net.input, 0
    for stage in stages:
        for filters in stage:
            x = net.conv(x, f"features.{index}", net.scaled(filters), 3, bias=True)
            x = net.relu(x, f"features.{index + 1}")
            index += 2
        x = net.max_pool(x, f"features.{index}", 2, 2)
        index += 1
    x = net.flatten(net.adaptive_average_pool(x, "avgpool", 7), "flatten")
    x = net.relu(net.linear(x, "classifier.0", net.scaled(4096)), "classifier.1")
    x = net.relu(net.linear(x, "classifier.3", net.scaled(4096)), "classifier.4")
    return net.linear(x, "classifier.6", net.classes)
