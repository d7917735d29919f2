"""What training makes small: the distance from labels, from a teacher's outputs, and from its hidden layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs
import torch
from torch import nn
from torch.nn import functional as F  # as everybody calls it

from nnc.logits import logits
from nnc.training.feed import Batch
from nnc.training.hidden import Pair
from nnc.training.module import GraphModule
from nnc.training.options import Distill, Options
from nnc.training.site import Tensor

Tensors = Mapping[str, Tensor]


class Loss(nn.Module):
    """The loss of a batch; its own parameters are connectors to a teacher's hidden layers."""

    def __init__(self, student: GraphModule, options: Options, teacher: Teacher | None) -> None:
        super().__init__()
        self._compared, self._options, self.teacher = compared(student.graph), options, teacher

    @property
    def wanted(self) -> list[str]:
        """Tensors of the student that it looks at."""
        return [*self._compared, *(pair.student for pair in (self.teacher.pairs if self.teacher else ()))]

    def forward(self, batch: Batch, found: Tensors) -> Tensor:
        """The mean over the batch, from the student's wanted tensors."""
        outputs = [found[name] for name in self._compared]
        labelled = self._labelled(outputs[0], batch)
        if self.teacher is None:
            assert labelled is not None, "without a teacher there are labels"
            return labelled
        return self.teacher(batch.inputs, outputs, found, labelled)

    def _labelled(self, scores: Tensor, batch: Batch) -> Tensor | None:
        """The cross-entropy, of blended images in the shares of both labels; None without labels."""
        if batch.labels is None:
            return None
        own = self._cross_entropies(scores, batch.labels)
        if batch.shares is None:
            return own.mean()
        other = self._cross_entropies(scores, batch.labels.flip(0))
        return (batch.shares * own + (1 - batch.shares) * other).mean()

    def _cross_entropies(self, scores: Tensor, labels: Tensor) -> Tensor:
        smoothing = self._options.label_smoothing
        return F.cross_entropy(scores.flatten(1).float(), labels, label_smoothing=smoothing, reduction="none")


class Teacher(nn.Module):
    """A network in its final form, and what a student learns from it."""

    def __init__(self, module: GraphModule, distill: Distill, pairs: list[Pair]) -> None:
        super().__init__()
        self._module, self.distill, self.pairs = [module.eval()], distill, pairs  # a list: its weights stay
        self._compared = compared(module.graph)
        self.connectors = nn.ModuleList(
            nn.Identity() if pair.narrow == pair.wide else Connector(pair.narrow, pair.wide) for pair in pairs
        )

    def to_device(self, device: torch.device) -> None:
        self._module[0].to(device)

    def forward(self, inputs: Tensors, outputs: Sequence[Tensor], found: Tensors, labelled: Tensor | None) -> Tensor:
        with torch.no_grad():
            taught = self._module[0](inputs, [*self._compared, *(pair.teacher for pair in self.pairs)])
        share = self.distill.logits if labelled is not None else 1.0
        loss = share * self._outputs(outputs, [taught[name] for name in self._compared]) if share else torch.zeros(())
        loss = loss if labelled is None or share == 1 else loss + (1 - share) * labelled
        for pair, connector in zip(self.pairs, self.connectors, strict=True):
            student, teacher = connector(found[pair.student].float()), taught[pair.teacher].float()
            if self.distill.activation_boundary:
                loss = loss + self.distill.activation_boundary / len(self.pairs) * boundary(student, teacher)
            if self.distill.features:
                loss = loss + self.distill.features / len(self.pairs) * relative_error(student, teacher)
        return loss

    def _outputs(self, outputs: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
        """Of class scores, the divergence of softened probabilities; of anything else, the relative squared error."""
        losses = []
        for own, other in zip(outputs, taught, strict=True):
            if _are_scores(own.shape):
                losses.append(divergence(own, other, self.distill.temperature))
            else:
                losses.append(relative_error(own.float(), other.float()))
        return torch.stack(losses).mean()


class Connector(nn.Sequential):
    """From a narrower hidden layer to a wider one: a 1x1 convolution, normalized (Heo et al. 2019, section 3.2)."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide))


def compared(graph: gs.Graph) -> list[str]:
    """For every output the tensor that losses read: the scores of classes, where the output is their softmax.

    Losses take the softmax themselves; that of probabilities is nearly the same for all classes.
    """
    return [_scores(output).name for output in graph.outputs]


def _scores(output: gs.Tensor) -> gs.Tensor:
    """The logits, where there is one per class; else the output."""
    found = logits(output)
    return found if _are_scores(found.shape) else output


def _are_scores(shape: Sequence[int]) -> bool:
    """Whether a shape [N, ...] has one value per class."""
    return sum(size > 1 for size in shape[1:]) == 1


def divergence(scores: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher | student) of softmax(scores / T), the mean over the batch.

    Hinton, Vinyals, Dean, Distilling the knowledge in a neural network, 2015.
    """
    student = F.log_softmax(scores.flatten(1).float() / temperature, 1)
    teacher = F.log_softmax(taught.flatten(1).float() / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """How far neurons, before their activation, are on the wrong side of a margin: the mean square.

    Heo et al., Knowledge transfer via distillation of activation boundaries formed by hidden neurons, AAAI 2019,
    equation 5; the margin is in standard deviations of the student's layer.
    """
    margin_ = margin * student.detach().std().clamp_min(1e-6)
    active = teacher > 0
    wrong = torch.where(active, margin_ - student, margin_ + student).clamp_min(0.0)
    return (wrong / margin_).square().mean()


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """|student - teacher|^2 / |teacher|^2 over the batch (Romero et al., FitNets, ICLR 2015, made relative)."""
    return F.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)
