"""The training loop: steps, schedule, early stop, checkpoints and progress."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
import torch

from nnc import accuracy
from nnc.data import Dataset
from nnc.errors import NncError
from nnc.measure import has_shape
from nnc.training import hidden, steps
from nnc.training.feed import Batch, Feed
from nnc.training.losses import Loss, Teacher
from nnc.training.module import GraphModule
from nnc.training.options import Options
from nnc.training.state import State

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """How, on what and where a network is trained."""

    name: str
    """What progress calls it."""
    options: Options
    data: Dataset
    seed: int
    teacher: gs.Graph | None = None
    """The network that `options.distill` learns from."""
    folder: Path | None = None
    """Where checkpoints are kept; without it a run that is killed begins anew."""
    progress: Progress = lambda step, done, total: None

    def parts(self) -> tuple[Dataset, Dataset | None]:
        """The samples to train on and, with early stop, those that it judges on."""
        data = self.data if self.options.samples is None else self.data.subset(self.seed, self.options.samples)
        return (data, None) if self.options.patience is None else data.split(self.seed, self.options.holdout)

    def check(self, graph: gs.Graph) -> None:
        """Raises NncError where data or teacher don't fit a network with the inputs and outputs of `graph`."""
        data, held = self.parts()
        if len(data) < 2:
            hint = f"leave out 'patience', which holds {len(held)} back" if held else None
            raise NncError(f"{data.path}: 1 sample is not enough to train on", hint)
        if data.labels is None and self.options.distill is None:
            hint = "add labels, or distill = {} to learn from what the model says"
            raise NncError(f"{data.path}: has no labels to train with", hint)
        for part in (data, held) if held else (data,):
            _check_labels(part, graph)
        if self.options.distill is not None:
            assert self.teacher is not None, "the caller has the teacher"
            _check_outputs(graph, self.teacher)
            if self.options.distill.compares:
                hidden.check_taught(self.teacher, self.options.distill.layers)


@dataclass(frozen=True)
class Span:
    """The epochs from `first` up to `last`, without it, of a schedule over `total`."""

    first: int
    last: int
    total: int


@dataclass
class Result:
    """What a run came to."""

    losses: list[float] = field(default_factory=list)
    """Mean loss of every epoch."""
    accuracies: list[float] = field(default_factory=list)
    """Share of right classes in training, of every epoch; none without labels."""
    resumed: int = 0
    """Epochs that an earlier run had done."""


def train(
    module: GraphModule, plan: Plan, span: Span | None = None, constrain: Callable[[float], None] | None = None
) -> Result:
    """Train the parameters of `module` in place, and the statistics of BatchNormalization.

    `constrain` is called after every step with the share of the schedule that is done, 0 to 1, and at the begin of
    every epoch: it may change parameters, but may depend on nothing except them and that share. On a processor the same
    plan gives the same weights, interrupted or not, with the same number of threads; some sums of a GPU have no fixed
    order. Raises NncError where the plan doesn't fit the network or the GPU's memory, and where the loss or its
    gradient stops being a number.
    """
    span = span or Span(0, plan.options.epochs, plan.options.epochs)
    if span.first >= span.last:
        return Result()
    if not list(module.parameters()):
        raise NncError("the network has no weights in float32 to train", "train before it is quantized")
    try:
        with steps.deterministic(plan.seed):
            return _Run(module, plan, span, constrain or (lambda done: None)).run()
    except torch.OutOfMemoryError as error:
        message = f"steps of {plan.options.batch} samples need more memory than the GPU has"
        raise NncError(message, "lower 'batch', or close other programs that use the GPU") from error


class _Run:
    """One run of the loop."""

    def __init__(self, module: GraphModule, plan: Plan, span: Span, constrain: Callable[[float], None]) -> None:
        self.plan, self.span, self.constrain, self.options = plan, span, constrain, plan.options
        self.state = State.of(module, plan, span)
        self.device = steps.device()
        plan.check(module.graph)
        self.module = module.to(self.device)
        steps.put_channels_last(module)
        data, held = plan.parts()
        self.held = self._feed(held) if held else None
        self.feed = self._feed(data)
        self.loss = Loss(module, self.options, self._teacher()).to(self.device)
        self.optimizer = steps.optimizer(
            [*steps.grouped(module, self.options), *steps.grouped(self.loss, self.options)], self.options
        )
        self.dtype = steps.sixteen_bits(self.options, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.result = Result()
        self.best: dict[str, Any] | None = None
        self.since_best = 0

    def _feed(self, data: Dataset) -> Feed:
        options, progress = self.options, self.plan.progress
        return Feed(data, options.batch, options.augment, self.plan.seed, lambda d, t: progress("decode images", d, t))

    def _teacher(self) -> Teacher | None:
        distill, graph = self.options.distill, self.plan.teacher
        if distill is None:
            return None
        assert graph is not None, "the plan was checked"
        found = hidden.pairs(self.module.graph, graph, distill.layers) if distill.compares else []
        teacher = Teacher(GraphModule(graph), distill, found)
        teacher.to_device(self.device)
        return teacher

    def run(self) -> Result:
        first = self._resume()
        started = time.monotonic()
        for epoch in range(first, self.span.last):
            if self._has_stopped():
                break
            self._epoch(epoch, self._text(epoch, first, started))
            self._judge()
            self.state.save(self._state(epoch + 1))
        if self.best is not None:
            self._put(self.best["values"])
        self.plan.progress(self.plan.name, self._total, self._total)
        self.module.to("cpu").eval()
        return self.result

    @property
    def _total(self) -> int:
        return (self.span.last - self.span.first) * self.feed.steps

    @property
    def _number(self) -> int:
        """The epoch that runs, counted from 1 over all spans of the schedule."""
        return self.span.first + len(self.result.losses) + 1

    def _epoch(self, epoch: int, text: str) -> None:
        self.module.train()
        self.loss.train()
        first, total = epoch * self.feed.steps, self.span.total * self.feed.steps
        losses, right, count = 0.0, 0, 0
        self.constrain(epoch / self.span.total)
        for step, batch in enumerate(self.feed.epoch(epoch), start=first):
            self.plan.progress(text, step - self.span.first * self.feed.steps, self._total)
            loss, found, size = self._step(batch, step / total)
            losses, right, count = losses + loss * size, right + found, count + size
            self.constrain((step + 1) / total)
        self.result.losses.append(losses / count)
        if self.feed.data.labels is not None:
            self.result.accuracies.append(right / count)

    def _step(self, batch: Batch, done: float) -> tuple[float, int, int]:
        """One step; returns its loss, how many classes were right, and of how many samples."""
        batch = batch.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * steps.rate(done, self.options.warmup)
        self.optimizer.zero_grad()
        loss, outputs = self._forward(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NncError(f"the loss is {value} in epoch {self._number}", "lower 'learning_rate'")
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        length = steps.shorten(self.optimizer, self.options.gradient_norm)
        if not self.scaler.is_enabled() and not math.isfinite(length):  # a scaler leaves such steps out
            hint = "lower 'learning_rate', unless the model takes a root of 0 or divides by what may be 0"
            raise NncError(f"the gradient is {length} in epoch {self._number}, and the loss is {value:.3g}", hint)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value, _right(outputs, batch.labels), len(outputs)

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            found = self.module(batch.inputs, self.loss.wanted)
            return self.loss(batch, found), found[self.module.outputs[0]]

    def _judge(self) -> None:
        """Early stop: is the network better than it ever was on what is held out?"""
        if self.held is None:
            return
        score = self._held_out()
        if self.best is None or score > self.best["score"]:
            self.best, self.since_best = {"score": score, "values": self._values()}, 0
        else:
            self.since_best += 1

    def _held_out(self) -> float:
        """The share of right classes on what is held out, or without labels the loss, negative."""
        assert self.held is not None
        self.module.eval()
        self.loss.eval()
        losses, right, count = 0.0, 0, 0
        with torch.no_grad():
            for batch in self.held.plain():
                moved = batch.to(self.device)
                loss, outputs = self._forward(moved)
                size = len(outputs)
                losses, right, count = losses + float(loss) * size, right + _right(outputs, moved.labels), count + size
        return -losses / count if self.held.data.labels is None else right / count

    def _has_stopped(self) -> bool:
        return self.options.patience is not None and self.since_best >= self.options.patience

    def _text(self, epoch: int, first: int, started: float) -> str:
        """'fine-tune, epoch 3 of 10, loss 0.412, accuracy 93.1 %, 4 min left'"""
        parts = [f"{self.plan.name}, epoch {epoch + 1} of {self.span.total}"]
        if self.result.losses:
            parts.append(f"loss {self.result.losses[-1]:.3g}")
        if self.result.accuracies:
            parts.append(f"accuracy {self.result.accuracies[-1]:.1%}".replace("%", " %"))
        if epoch > first:
            left = (time.monotonic() - started) / (epoch - first) * (self.span.last - epoch)
            parts.append(f"{left / 60:.0f} min left" if left >= 60 else f"{left:.0f} s left")
        return ", ".join(parts)

    # -- state

    def _values(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def _put(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(values[name])

    def _state(self, epochs: int) -> dict[str, Any]:
        return {
            "epochs": epochs,
            "values": self._values(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "since_best": self.since_best,
            "losses": self.result.losses,
            "accuracies": self.result.accuracies,
        }

    def _resume(self) -> int:
        """The first epoch that is left to do."""
        saved = self.state.load()
        if saved is None:
            return self.span.first
        self._put(saved["values"])
        self.loss.load_state_dict(saved["loss"])
        self.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        self.scaler.load_state_dict(saved["scaler"])
        self.best, self.since_best = saved["best"], saved["since_best"]
        self.result = Result(saved["losses"], saved["accuracies"], saved["epochs"] - self.span.first)
        return int(saved["epochs"])


def _right(outputs: torch.Tensor, labels: torch.Tensor | None) -> int:
    return 0 if labels is None else int((outputs.detach().flatten(1).argmax(1) == labels).sum())


def _check_labels(data: Dataset, graph: gs.Graph) -> None:
    classes = accuracy.classes(graph)
    if classes and data.labels is not None and data.labels.max() >= classes:
        raise NncError(
            f"{data.path}: label {data.labels.max()} is out of range: the model has {classes} classes",
            "leave the labels out and give 'distill' to learn from a teacher alone",
        )


def _check_outputs(student: gs.Graph, teacher: gs.Graph) -> None:
    for what in ("inputs", "outputs"):
        tensors = getattr(student, what), getattr(teacher, what)
        if not all(has_shape(*each) for each in tensors):
            continue
        own, other = ([list(tensor.shape[1:]) for tensor in each] for each in tensors)
        if own != other:
            raise NncError(f"distill: the teacher's {what} are {other}, and the model's {own}", "take another teacher")
