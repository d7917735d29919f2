"""A small builder of ONNX models: one method per layer, shapes tracked on the way, weights drawn from a seed.

What it writes is what torch's exporter writes for the same network in evaluation mode with BatchNormalization left
unfolded: opset 17, the parameter names of torchvision, scalars and shapes as Constant nodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from nnc import __version__
from nnc.errors import NncError
from nnc.model.wire import MAX_MESSAGE_BYTES
from nnc.networks.moments import STANDARD, Moments, mixture

OPSET = 17
IR_VERSION = 8

#: Of kernels, paddings and images: one number for both axes, or one for the rows and one for the columns.
Pair = int | tuple[int, int]

#: Of BatchNormalization's output, given the statistics that `batch_norm` draws.
_NORMALIZED_VARIANCE = 1.05

#: The share of its mean that a filter loses. Measured: at 0.5 the worst network amplifies a disturbance of its input
#: fivefold, at 1 hundredfold; at 0 the logits of two images differ four times less than at 0.5.
_CENTERING = 0.5


@dataclass(frozen=True)
class Value:
    """A tensor of the network: its name, its shape, and what its elements are expected to look like."""

    name: str
    shape: tuple[int, ...]
    moments: Moments = STANDARD

    @property
    def channels(self) -> int:
        return self.shape[1]


class Network:
    """The model under construction, and how many parameters and multiply-accumulates it has so far.

    Layers take and return `Value`s and are named like torchvision's modules; a layer's output has the layer's name.
    Every layer's weights are scaled to what it reads, see `moments`; without a seed they are zero.
    """

    def __init__(self, name: str, input_size: Pair, classes: int, width: float = 1.0, seed: int | None = 0) -> None:
        self.classes = classes
        self.width = width
        self.params = 0
        self.macs = 0
        self._values: dict[str, Value] = {}
        self._weight_bytes = 0
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="nnc", producer_version=__version__)
        self._model.opset_import.add(domain="", version=OPSET)
        self._graph = self._model.graph
        self._graph.name = name
        self.input = Value("input", (1, 3, *pair(input_size)))
        self._graph.input.append(_describe(self.input))

    def finish(self, logits: Value) -> onnx.ModelProto:
        """The model that computes `logits`, the output of the layer added last."""
        last = self._graph.node[-1]
        assert list(last.output) == [logits.name]
        last.output[0] = "logits"
        self._graph.value_info.pop()
        self._graph.output.append(_describe(Value("logits", logits.shape)))
        return self._model

    def scaled(self, channels: int) -> int:
        """The width multiplier of MobileNet: a multiple of 8 that never loses more than a tenth of the channels."""
        return channels if self.width == 1 else divisible(channels * self.width)

    def __getitem__(self, name: str) -> Value:
        """The output of the layer `name`."""
        return self._values[name]

    # Layers with weights

    def conv(
        self,
        x: Value,
        name: str,
        filters: int,
        kernel: Pair = 1,
        stride: int = 1,
        padding: Pair | None = None,
        groups: int = 1,
        bias: bool = False,
        dilation: int = 1,
    ) -> Value:
        """Conv; the padding keeps the size at stride 1 unless it is given."""
        kernel = pair(kernel)
        reach = tuple(dilation * (taps - 1) + 1 for taps in kernel)
        pads = (reach[0] // 2, reach[1] // 2) if padding is None else pair(padding)
        depth = x.channels // groups
        inputs = [x.name, self._weights(f"{name}.weight", (filters, depth, *kernel), x.moments)]
        if bias:
            inputs.append(self._normal(f"{name}.bias", filters, 0.0, 0.1))
        rows, columns = (window_count(x.shape[2 + axis], reach[axis], stride, pads[axis]) for axis in (0, 1))
        self.macs += filters * rows * columns * depth * math.prod(kernel)
        return self._layer(
            "Conv",
            name,
            inputs,
            (1, filters, rows, columns),
            dilations=[dilation] * 2,
            group=groups,
            kernel_shape=list(kernel),
            pads=[*pads, *pads],
            strides=[stride] * 2,
        )

    def conv_transpose(self, x: Value, name: str, filters: int, kernel: int, size: tuple[int, ...]) -> Value:
        """ConvTranspose of stride 2 up to `size`, [height, width], in as many groups as there are filters."""
        spare = [2 * (old - 1) + kernel - new for old, new in zip(x.shape[2:], size, strict=True)]
        weights = self._weights(f"{name}.weight", (x.channels, 1, kernel, kernel), x.moments)
        self.macs += math.prod(x.shape) * kernel**2
        return self._layer(
            "ConvTranspose",
            name,
            [x.name, weights],
            (1, filters, *size),
            dilations=[1, 1],
            group=filters,
            kernel_shape=[kernel] * 2,
            pads=[*(each // 2 for each in spare), *(each - each // 2 for each in spare)],
            strides=[2, 2],
        )

    def batch_norm(self, x: Value, name: str, gain: float = 1.0) -> Value:
        """BatchNormalization with statistics near, but not at, those of `x`: folding it must change every weight.

        Its output has a standard deviation near `gain`.
        """
        variance = x.moments.variance
        inputs = [
            x.name,
            self._uniform(f"{name}.weight", x.channels, 0.75 * gain, 1.25 * gain),
            self._normal(f"{name}.bias", x.channels, 0.0, 0.1 * gain),
            self._normal(f"{name}.running_mean", x.channels, x.moments.mean, 0.1 * math.sqrt(variance)),
            self._uniform(f"{name}.running_var", x.channels, 0.75 * variance, 1.25 * variance),
        ]
        moments = Moments(0.0, _NORMALIZED_VARIANCE * gain**2)
        return self._layer(
            "BatchNormalization", name, inputs, x.shape, moments, epsilon=1e-5, momentum=0.9, training_mode=0
        )

    def linear(self, x: Value, name: str, units: int) -> Value:
        """A fully connected layer on [1, n]."""
        weights = self._weights(f"{name}.weight", (units, x.channels), x.moments)
        inputs = [x.name, weights, self._normal(f"{name}.bias", units, 0.0, 0.1)]
        self.macs += units * x.channels
        return self._layer("Gemm", name, inputs, (1, units), alpha=1.0, beta=1.0, transB=1)

    # Activations and sums

    def relu(self, x: Value, name: str | None = None) -> Value:
        moments = x.moments.through(lambda z: np.maximum(z, 0))
        return self._layer("Relu", name or f"{x.name}.relu", [x.name], x.shape, moments)

    def relu6(self, x: Value, name: str | None = None) -> Value:
        name = name or f"{x.name}.relu6"
        bounds = [self.constant(f"{name}.{end}", np.float32(bound)) for end, bound in (("min", 0), ("max", 6))]
        return self._layer("Clip", name, [x.name, *bounds], x.shape, x.moments.through(lambda z: np.clip(z, 0, 6)))

    def sigmoid(self, x: Value, name: str | None = None) -> Value:
        return self._layer("Sigmoid", name or f"{x.name}.sigmoid", [x.name], x.shape, x.moments.through(_sigmoid))

    def silu(self, x: Value, name: str | None = None) -> Value:
        """x * sigmoid(x), also called swish."""
        inputs = [x.name, self.sigmoid(x).name]
        moments = x.moments.through(lambda z: z * _sigmoid(z))
        return self._layer("Mul", name or f"{x.name}.silu", inputs, x.shape, moments)

    def hard_sigmoid(self, x: Value, name: str | None = None) -> Value:
        name = name or f"{x.name}.hard_sigmoid"
        moments = x.moments.through(_hard_sigmoid)
        return self._layer("HardSigmoid", name, [x.name], x.shape, moments, alpha=1 / 6)

    def hard_swish(self, x: Value, name: str | None = None) -> Value:
        """x * hard_sigmoid(x) in one node."""
        moments = x.moments.through(lambda z: z * _hard_sigmoid(z))
        return self._layer("HardSwish", name or f"{x.name}.hard_swish", [x.name], x.shape, moments)

    def leaky_relu(self, x: Value, name: str | None = None) -> Value:
        """Negative values times 0.1, as in Darknet."""
        moments = x.moments.through(lambda z: np.maximum(z, 0.1 * z))
        return self._layer("LeakyRelu", name or f"{x.name}.leaky_relu", [x.name], x.shape, moments, alpha=0.1)

    def mish(self, x: Value, name: str | None = None) -> Value:
        """x * tanh(ln(1 + e^x)) (https://arxiv.org/abs/1908.08681)."""
        softplus = self.node("Softplus", f"{x.name}.softplus", [x.name])
        inputs = [x.name, self.node("Tanh", f"{x.name}.tanh", [softplus])]
        moments = x.moments.through(lambda z: z * np.tanh(np.logaddexp(0, z)))
        return self._layer("Mul", name or f"{x.name}.mish", inputs, x.shape, moments)

    def add(self, a: Value, b: Value, name: str) -> Value:
        return self._layer("Add", name, [a.name, b.name], a.shape, a.moments + b.moments)

    def scale(self, x: Value, factors: Value, name: str) -> Value:
        """x times one factor per channel."""
        return self._layer("Mul", name, [factors.name, x.name], x.shape, x.moments * factors.moments)

    def local_response_norm(self, x: Value, name: str) -> Value:
        """Divided by what the five nearest channels have, with Caffe's constants: nearly the identity at this scale."""
        return self._layer("LRN", name, [x.name], x.shape, x.moments, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    # Pooling and shapes

    def max_pool(self, x: Value, name: str, kernel: int, stride: int, padding: int = 0, ceil: bool = False) -> Value:
        rows, columns = (window_count(size, kernel, stride, padding, ceil) for size in x.shape[2:])
        return self._layer(
            "MaxPool",
            name,
            [x.name],
            (1, x.channels, rows, columns),
            x.moments.maximum(),
            ceil_mode=int(ceil),
            kernel_shape=[kernel] * 2,
            pads=[padding] * 4,
            strides=[stride] * 2,
        )

    def average_pool(self, x: Value, name: str, kernel: Pair, stride: Pair, padding: int = 0) -> Value:
        kernel, stride = pair(kernel), pair(stride)
        rows, columns = (window_count(x.shape[2 + axis], kernel[axis], stride[axis], padding) for axis in (0, 1))
        return self._layer(
            "AveragePool",
            name,
            [x.name],
            (1, x.channels, rows, columns),
            x.moments.average(kept=0.5),
            ceil_mode=0,
            count_include_pad=1,
            kernel_shape=list(kernel),
            pads=[padding] * 4,
            strides=list(stride),
        )

    def adaptive_average_pool(self, x: Value, name: str, grid: int) -> Value:
        """Average down to `grid` x `grid`, or to the next smaller grid whose cells are equal for the size of `x`."""
        rows, columns = (
            size // next(cells for cells in range(min(grid, size), 0, -1) if size % cells == 0) for size in x.shape[2:]
        )
        return self.average_pool(x, name, (rows, columns), (rows, columns))

    def global_average_pool(self, x: Value, name: str) -> Value:
        return self._layer("GlobalAveragePool", name, [x.name], (*x.shape[:2], 1, 1), x.moments.average(kept=0.2))

    def spatial_mean(self, x: Value, name: str) -> Value:
        """The mean over height and width as `x.mean([2, 3])` is exported: [1, C]."""
        return self._layer(
            "ReduceMean", name, [x.name], x.shape[:2], x.moments.average(kept=0.2), axes=[2, 3], keepdims=0
        )

    def flatten(self, x: Value, name: str) -> Value:
        return self._layer("Flatten", name, [x.name], (1, math.prod(x.shape[1:])), x.moments, axis=1)

    def concat(self, values: Sequence[Value], name: str, axis: int = 1) -> Value:
        """Join along the channels; a single value gives a Concat of one input, as torch.cat does."""
        sizes = [value.shape[axis] for value in values]
        shape = (*values[0].shape[:axis], sum(sizes), *values[0].shape[axis + 1 :])
        moments = mixture([value.moments for value in values], sizes)
        return self._layer("Concat", name, [value.name for value in values], shape, moments, axis=axis)

    def second_half(self, x: Value, name: str) -> Value:
        """The second half of the channels."""
        ends = {"start": x.channels // 2, "end": x.channels, "axis": 1}
        inputs = [self.constant(f"{name}.{end}", np.array([value], np.int64)) for end, value in ends.items()]
        return self._layer("Slice", name, [x.name, *inputs], (1, x.channels - x.channels // 2, *x.shape[2:]), x.moments)

    def resize(self, x: Value, name: str, size: tuple[int, ...], mode: str = "nearest") -> Value:
        """Up to `size`, [height, width], as torch's interpolate does: nearest or linear."""
        sizes = self.constant(f"{name}.sizes", np.array([*x.shape[:2], *size], np.int64))
        places = "asymmetric" if mode == "nearest" else "pytorch_half_pixel"
        attributes = {"coordinate_transformation_mode": places, "mode": mode, "nearest_mode": "floor"}
        return self._layer("Resize", name, [x.name, "", "", sizes], (*x.shape[:2], *size), x.moments, **attributes)

    def boxes(self, x: Value, name: str, figures: int) -> Value:
        """The output of a detector's head, [1, anchors * figures, height, width], as [1, boxes, figures]."""
        rows = self.node("Transpose", f"{name}.transpose", [x.name], perm=[0, 2, 3, 1])
        shape = self.constant(f"{name}.shape", np.array([1, -1, figures], np.int64))
        return self._layer("Reshape", name, [rows, shape], (1, math.prod(x.shape) // figures, figures), x.moments)

    # Parts of ONNX for what torch has no layer for

    def constant(self, name: str, values: Any) -> str:
        """A Constant node; returns the name of its tensor."""
        self.node("Constant", name, [], value=onnx.numpy_helper.from_array(np.asarray(values)))
        return name

    def node(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node without a declared output shape, for shape arithmetic; returns the name of its output."""
        self._graph.node.append(onnx.helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def declare(self, name: str, shape: tuple[int, ...], moments: Moments) -> Value:
        """The float output of `node` as a Value, with its shape written into the model."""
        value = self._values[name] = Value(name, shape, moments)
        self._graph.value_info.append(_describe(value))
        return value

    def _layer(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        shape: tuple[int, ...],
        moments: Moments = STANDARD,
        **attributes: Any,
    ) -> Value:
        return self.declare(self.node(op, name, inputs, **attributes), shape, moments)

    def _weights(self, name: str, shape: tuple[int, ...], read: Moments) -> str:
        """Normal weights that give outputs of mean 0 and variance 1."""
        self._weight_bytes += 4 * math.prod(shape)
        if self._weight_bytes > MAX_MESSAGE_BYTES:
            raise NncError(f"{self._graph.name}: more than 2 GiB of weights", "choose a smaller width or fewer classes")
        return self._initializer(name, shape, self._filters(shape, read))

    def _filters(self, shape: tuple[int, ...], read: Moments) -> bytes:
        """The weights' bytes, so that the array is gone before protobuf copies them: one copy of VGG's 411 MB less.

        Part of the mean of each filter over its channels is taken away. With all of it what the channels have in common
        drowns the difference between two images after a dozen layers; with none of it deep networks are chaotic, and
        amplify rounding errors as much as differences between images.
        """
        if self._rng is None:
            return bytes(4 * math.prod(shape))
        values = self._rng.standard_normal(shape, dtype=np.float32)
        power = read.power
        if shape[1] > 3:
            values -= np.float32(_CENTERING) * values.mean(axis=1, keepdims=True)
            power = read.variance + ((1 - _CENTERING) * read.mean) ** 2
        values *= np.float32(1 / math.sqrt(math.prod(shape[1:]) * power))
        return values.tobytes()

    def _normal(self, name: str, count: int, mean: float, deviation: float) -> str:
        values = np.zeros(count) if self._rng is None else self._rng.normal(mean, deviation, count)
        return self._initializer(name, (count,), values.astype(np.float32).tobytes())

    def _uniform(self, name: str, count: int, low: float, high: float) -> str:
        values = np.zeros(count) if self._rng is None else self._rng.uniform(low, high, count)
        return self._initializer(name, (count,), values.astype(np.float32).tobytes())

    def _initializer(self, name: str, shape: tuple[int, ...], data: bytes) -> str:
        self.params += 0 if ".running_" in name else math.prod(shape)
        # Filled in place: `append` would hold one more copy.
        self._graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=shape).raw_data = data
        return name


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _hard_sigmoid(z: np.ndarray) -> np.ndarray:
    return np.clip(z / 6 + 0.5, 0, 1)


def pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, or the next one where that loses more than 10 % (MobileNet)."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def window_count(size: int, kernel: int, stride: int, padding: int = 0, ceil: bool = False) -> int:
    """How many windows fit along one axis of a convolution or pooling; `ceil` counts a last, partial one."""
    steps = (size + 2 * padding - kernel) / stride
    return (math.ceil(steps) if ceil else math.floor(steps)) + 1


def _describe(value: Value) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(value.name, TensorProto.FLOAT, value.shape)
