"""What engines compute of a network: some fuse its nodes, and all of them know its gates."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from nnc import networks
from nnc.errors import NncError
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


@pytest.mark.parametrize(("spelled", "more"), [("mobilenet_v2_1.0", 1), ("mobilenet_v2", 1), ("mobilenet_v2_0.5", 0)])
def test_ncnn_runs_its_own_version_of_a_network(of: Callable[[str, str], Work], spelled: str, more: int) -> None:
    """Caffe's MobileNetV2 expands in front of its first block too, to the 32 channels that are there."""
    own, published = (of(framework, spelled) for framework in ("ncnn", "TFLite"))
    assert own.macs.sum() - published.macs.sum() == more * 32 * 32 * 32 * 32


def row(model_id: str, input_shape: str, batch: str = "1", framework: str = "ncnn") -> Row:
    return Row(2, "chip", "cpu", "1", "Cortex-A76", "2.0", framework, "fp32", model_id, input_shape, 10.0, batch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Networks whose batch is open."""
    for name, source in (("resnet50", "squeezenet1_1"), ("resnet50_caffe", "mobilenet_v1_0.25")):
        model = networks.build(source, input_size=64, seed=None)
        for tensor in (*model.graph.input, *model.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
        onnx.save(model, tmp_path / f"{name}.onnx")
    return tmp_path


@pytest.mark.parametrize(("input_shape", "batch"), [("1x3x64x64", "8"), ("8x3x64x64", "8"), ("8x3x64x64", "1")])
def test_a_batch_is_computed_wherever_the_row_says_it(folder: Path, input_shape: str, batch: str) -> None:
    made = Workloads(folder)
    one, eight = made.of(row("resnet50", "1x3x64x64")), made.of(row("resnet50", input_shape, batch))
    assert isinstance(one, Work), one
    assert isinstance(eight, Work), eight
    assert eight.macs.sum() == 8 * one.macs.sum()


def test_a_model_of_the_folder_is_not_taken_for_the_version_of_another(folder: Path) -> None:
    """ncnn's resnet50 is resnet50_caffe among the reference networks, and the folder has both names."""
    made = Workloads(folder)
    first, second = made.of(row("resnet50", "1x3x64x64")), made.of(row("resnet50_caffe", "1x3x64x64"))
    assert isinstance(first, Work), first
    assert isinstance(second, Work), second
    assert first.macs.sum() != second.macs.sum()


@pytest.mark.parametrize(
    ("input_shape", "batch", "reason"),
    [
        ("224", "1", "is ?,3,64,64, not 224"),
        ("64x64", "1", "is ?,3,64,64, not 64,64"),
        ("?", "1", "input_shape is '?'"),
        ("1x3x64x64", "8?", "batch is '8?'"),
        ("4x3x64x64", "8", "batch is '8', but input_shape '4x3x64x64'"),
    ],
)
def test_shapes_that_a_model_of_the_folder_does_not_have(
    folder: Path, input_shape: str, batch: str, reason: str
) -> None:
    found = Workloads(folder).of(row("resnet50", input_shape, batch))
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize(
    ("input_shape", "batch", "shape"),
    [
        ("224", "1", "224"),
        ("1x1x64x64", "1", "1x1x64x64"),
        ("1x64x64x3", "1", "1x64x64x3"),
        ("1x3x64x64", "8", "8x3x64x64"),
    ],
)
def test_reference_networks_read_one_image_of_three_channels(input_shape: str, batch: str, shape: str) -> None:
    found = Workloads().of(row("resnet18", input_shape, batch))
    assert found == f"reference networks read one image of 3 channels, not {shape}"


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NncError, match=r"--models .*absent: no such folder"):
        Workloads(tmp_path / "absent")
