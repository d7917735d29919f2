"""AlexNet (Krizhevsky, https://arxiv.org/abs/1404.5997; with Sutskever and Hinton, NIPS 2012) and VGG (Simonyan and
Zisserman, https://arxiv.org/abs/1409.1556)."""

from nnc.networks.network import Network, Value

#: Filters per convolution, stage by stage; a max pooling follows each stage. The letters of table 1 of the paper.
PLAN_A = ((64,), (128,), (256, 256), (512, 512), (512, 512))
PLAN_B = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))
PLAN_D = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
PLAN_E = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def vgg(net: Network, stages: tuple[tuple[int, ...], ...], normalized: bool = False) -> Value:
    """The classifier reads a grid of 7x7, or of the largest size below it that divides the feature map's."""
    x, index = net.input, 0
    for stage in stages:
        for filters in stage:
            x = net.conv(x, f"features.{index}", net.scaled(filters), 3, bias=True)
            if normalized:
                index += 1
                x = net.batch_norm(x, f"features.{index}")
            x = net.relu(x, f"features.{index + 1}")
            index += 2
        x = net.max_pool(x, f"features.{index}", 2, 2)
        index += 1
    x = net.flatten(net.adaptive_average_pool(x, "avgpool", 7), "flatten")
    return _classifier(net, x, ("classifier.0", "classifier.3", "classifier.6"))


def alexnet(net: Network) -> Value:
    x = net.conv(net.input, "features.0", net.scaled(64), 11, 4, padding=2, bias=True)
    x = net.max_pool(net.relu(x, "features.1"), "features.2", 3, 2)
    x = net.conv(x, "features.3", net.scaled(192), 5, bias=True)
    x = net.max_pool(net.relu(x, "features.4"), "features.5", 3, 2)
    for index, filters in ((6, 384), (8, 256), (10, 256)):
        x = net.relu(net.conv(x, f"features.{index}", net.scaled(filters), 3, bias=True), f"features.{index + 1}")
    x = net.max_pool(x, "features.12", 3, 2)
    x = net.flatten(net.adaptive_average_pool(x, "avgpool", 6), "flatten")
    return _classifier(net, x, ("classifier.1", "classifier.4", "classifier.6"))


def alexnet_caffe(net: Network) -> Value:
    """The network of 2012, as Caffe trained it: two groups, and normalized over neighbouring channels."""
    x = net.relu(net.conv(net.input, "conv1", net.scaled(96), 11, 4, padding=0, bias=True), "relu1")
    x = net.max_pool(net.local_response_norm(x, "norm1"), "pool1", 3, 2)
    x = net.relu(net.conv(x, "conv2", net.scaled(256), 5, groups=2, bias=True), "relu2")
    x = net.max_pool(net.local_response_norm(x, "norm2"), "pool2", 3, 2)
    for index, filters, groups in ((3, 384, 1), (4, 384, 2), (5, 256, 2)):
        x = net.relu(net.conv(x, f"conv{index}", net.scaled(filters), 3, groups=groups, bias=True), f"relu{index}")
    x = net.flatten(net.max_pool(x, "pool5", 3, 2), "flatten")
    return _classifier(net, x, ("fc6", "fc7", "fc8"))


def _classifier(net: Network, x: Value, names: tuple[str, str, str]) -> Value:
    for name in names[:2]:
        x = net.relu(net.linear(x, name, net.scaled(4096)), f"{name}.relu")
    return net.linear(x, names[2], net.classes)
