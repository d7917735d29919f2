"""How steps are taken: learning rates, optimizers, their parameters, and the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nnc.measure import is_matrix
from nnc.training.options import Options


def device() -> torch.device:
    """What trains: a GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rate(done: float, warmup: float) -> float:
    """The learning rate as a share of its peak: up over the warm-up, then down to 0 along a cosine.

    Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, ICLR 2017, without restarts.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * (done - warmup) / (1 - warmup))


def grouped(module: torch.nn.Module, options: Options) -> list[dict[str, Any]]:
    """Parameters with weight decay, which are kernels and matrices, and those without."""
    parameters = [each for each in module.parameters() if each.requires_grad]
    wide, narrow = ([each for each in parameters if is_matrix(each.shape) is matrix] for matrix in (True, False))
    groups = [{"params": wide, "weight_decay": options.weight_decay}, {"params": narrow, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def optimizer(groups: list[dict[str, Any]], options: Options) -> torch.optim.Optimizer:
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, options.learning_rate)
    return torch.optim.SGD(groups, options.learning_rate, momentum=0.9, nesterov=True)


def shorten(optimizer: torch.optim.Optimizer, most: float) -> float:
    """Cut the gradient of all parameters together to a length of `most`, where it is longer; returns what it was.

    Where BatchNormalization is folded, nothing else keeps steps from growing: at the rate at which the unfolded network
    trains well, losses would double from step to step (Pascanu et al., On the difficulty of training recurrent neural
    networks, ICML 2013).
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return float(torch.nn.utils.clip_grad_norm_(parameters, most))


def sixteen_bits(options: Options, device: torch.device) -> torch.dtype | None:
    """The type that mixed precision computes in; None for float32 alone."""
    if options.precision == "float32" or (options.precision == "auto" and device.type == "cpu"):
        return None
    return torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16


def put_channels_last(module: torch.nn.Module) -> None:
    """Let convolutions read their weights in the order in which they are fastest."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """torch's own random numbers from a seed, as they were afterwards; cuDNN takes no algorithm that varies."""
    kept = torch.get_rng_state()
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_rng_state(kept)
