"""What engines compute of a network: some fuse its nodes, and all of them know its gates."""

from collections.abc import Callable

import pytest

from nnc.simulation.work import Work
from nnc.validation.table import Row
from nnc.validation.workloads import Workloads


@pytest.fixture(scope="module")
def of() -> Callable[[str, str], Work]:
    made = Workloads()

    def work(framework: str, network: str) -> Work:
        row = Row(2, "chip", "gpu", "1", "Maxwell", "0.92", framework, "fp16", network, "1x3x64x64", 10.0)
        found = made.of(row)
        assert isinstance(found, Work), found
        return found

    return work


def test_eager_frameworks_start_a_kernel_for_every_node(of: Callable[[str, str], Work]) -> None:
    compiled, eager = (of(framework, "resnet18") for framework in ("TensorRT 5", "PyTorch eager"))
    assert compiled.macs.sum() == eager.macs.sum()
    # 20 convolutions and the last layer with their batch normalizations, rectifiers and sums behind them.
    assert eager.starts.sum() - compiled.starts.sum() == 20 + 17 + 8
    assert compiled.followers.sum() == 8  # the sums
    assert eager.followers.sum() == 0


def test_a_gate_of_its_own_input_is_one_node_behind_its_layer(of: Callable[[str, str], Work]) -> None:
    """x * sigmoid(x), which the opset of the reference networks has no operator for."""
    # Convolutions and the last layer, means of 17 images, and the products that scale 16 of them.
    assert len(of("ncnn", "efficientnet_b0")) == 82 + 17 + 16
