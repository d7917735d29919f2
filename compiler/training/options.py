"""What a training pass can be told; its fields are parameters in a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Augment(BaseModel):
    """How images are varied, each time that they are shown."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    crop: int = Field(
        default=4, ge=0, description="pixels of black border around images, of which a random part is cut out"
    )
    flip: bool = Field(default=True, description="mirror every second image left to right")
    mixup: float = Field(
        default=0.0,
        ge=0,
        description="blend every image with another one, in shares from Beta(mixup, mixup): 1 draws all alike, 0 none",
    )


class Distill(BaseModel):
    """What a network learns from a teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    logits: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="weight of the teacher's outputs, against that of labels; 1 where there are none",
    )
    temperature: float = Field(
        default=4.0, gt=0, description="what logits are divided by before both softmax functions"
    )
    activation_boundary: float = Field(
        default=0.0, ge=0, description="weight of which hidden neurons are active in the teacher"
    )
    features: float = Field(default=0.0, ge=0, description="weight of the distance of hidden values from the teacher's")
    layers: tuple[str, ...] = Field(
        default=(),
        description="hidden tensors to compare, 'student' or 'student=teacher'; without it the last of each size",
    )

    @property
    def compares(self) -> bool:
        """Whether hidden layers are compared."""
        return bool(self.activation_boundary or self.features)


class Options(BaseModel):
    """How a network is trained."""

    epochs: int = Field(10, ge=0, description="how often every training sample is shown")
    batch: int = Field(128, ge=2, description="samples per step")
    learning_rate: float = Field(0.01, gt=0, description="at its peak; it rises over the warm-up and falls to 0")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has a momentum of 0.9, Nesterov's")
    gradient_norm: float = Field(
        1.0, gt=0, description="length to which longer gradients are cut: one batch must not throw weights far off"
    )
    weight_decay: float = Field(1e-4, ge=0, description="of weights; biases, scales and steps have none")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that all classes get alike")
    augment: Augment = Field(Augment(), description="how images are varied; arrays for the model are taken as they are")
    samples: int | None = Field(None, ge=2, description="training samples that are used at most")
    patience: int | None = Field(
        None, ge=1, description="epochs without a better result after which it stops; the best weights are kept"
    )
    holdout: float = Field(0.1, gt=0, lt=1, description="share of the training samples that 'patience' judges on")
    precision: Literal["auto", "float32", "mixed"] = Field(
        "auto", description="mixed computes in 16 bits where that is safe: auto does on GPUs"
    )
    distill: Distill | None = Field(
        None, description="learn from a teacher: the model before the first pass, or the one that [data] names"
    )
