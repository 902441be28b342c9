"""How image models are trained: what the settings of all tasks lack."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from flatwise.study.task import ClassificationSettings


class ImageSettings(ClassificationSettings):
    """Settings of an image task.

    Attributes:
        augment: whether every training image is padded by 4 black pixels on each side, cropped to its size at a random
            place, and mirrored with probability 0.5 (not on MNIST, where a mirrored digit is no digit).
        cutout: side of the square hole that is cut into every training image at a random place, in pixels; 0: none.
            RALR's paper has 8 on CIFAR-100.
        mixup: α of the Beta(α, α) distribution of the weights by which pairs of images and their losses are mixed, one
            weight for a batch; 0: none. RALR's paper has 1.
        cutmix: α of the Beta(α, α) distribution of the share of an image that a box from another one leaves, one box
            for a batch; 0: none. RALR's paper has 1. Not together with mixup.
        cutmix_probability: probability in (0, 1] that a batch is mixed by ``cutmix``; default 0.5, as in RALR's paper.
        label_smoothing: in [0, 1): share of the target that is spread evenly over all classes. RALR's paper has 0.1.
        precision: of the forward pass. ``"float32"``; ``"bfloat16"`` or ``"float16"``: mixed precision by autocast,
            with parameters in float32. With ``"float16"`` the loss is scaled, and a step whose gradients are not finite
            is left out: it draws no noise and does not count as a step of the perturbation.
        channels_last: whether images and kernels are stored with the channels last, which some devices are faster with.
    """

    augment: bool = True
    cutout: int = Field(default=0, ge=0)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    cutmix_probability: float = Field(default=0.5, gt=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False

    @field_validator("cutmix")
    @classmethod
    def _one_mixture(cls, cutmix: float, info: ValidationInfo) -> float:
        if cutmix and info.data.get("mixup"):
            raise PydanticCustomError("cutmix", "mixup is on too: set one of the two to 0")
        return cutmix

    @field_validator("cutmix_probability")
    @classmethod
    def _has_cutmix(cls, probability: float, info: ValidationInfo) -> float:
        if probability != cls.model_fields["cutmix_probability"].default and info.data.get("cutmix") == 0:
            raise PydanticCustomError("cutmix", "cutmix is off: set cutmix, as in cutmix = 1")
        return probability


class DropoutImageSettings(ImageSettings):
    """Settings of an image task whose model has dropout.

    Attributes:
        dropout: probability in [0, 1) that a feature is dropped; which features, each model says. 0: none.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)
