"""Networks for small images, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from flatwise_papers.tasks.image_models.densenet import densenet
from flatwise_papers.tasks.image_models.plain import all_cnn_c, naive_cnn, nin, small_cnn, vgg16
from flatwise_papers.tasks.image_models.resnet import resnet
from flatwise_papers.tasks.image_models.resnet_cifar import resnet_cifar
from flatwise_papers.tasks.image_models.wide_resnet import wide_resnet

__all__ = ["IMAGE_MODELS", "ImageModel", "build_image_model"]


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A network for images.

    Attributes:
        title: its name in print, such as ``"ResNet-20"``.
        build: makes it, with initial weights from the global random state: ``build(classes)``, and for a model that has
            dropout also ``build(classes, dropout=, generator=)``.
        has_dropout: whether it has dropout that can be set.
    """

    title: str
    build: Callable[..., nn.Module]
    has_dropout: bool = True


IMAGE_MODELS: dict[str, ImageModel] = {
    **{
        f"resnet{depth}": ImageModel(f"ResNet-{depth}", partial(resnet_cifar, depth=depth), has_dropout=False)
        for depth in (20, 56, 110)
    },
    **{f"resnet{depth}": ImageModel(f"ResNet-{depth}", partial(resnet, depth=depth)) for depth in (18, 34, 50, 101)},
    "wrn-16-8": ImageModel("WRN-16-8", partial(wide_resnet, depth=16, width=8)),
    "wrn-28-10": ImageModel("WRN-28-10", partial(wide_resnet, depth=28, width=10)),
    "densenet-40-12": ImageModel("DenseNet-40-12", partial(densenet, layers=(12, 12, 12), growth=12, compact=False)),
    "densenet-bc-100-12": ImageModel(
        "DenseNet-BC-100-12", partial(densenet, layers=(16, 16, 16), growth=12, compact=True)
    ),
    "densenet121": ImageModel("DenseNet-121", partial(densenet, layers=(6, 12, 24, 16), growth=32, compact=True)),
    "vgg16": ImageModel("VGG-16", vgg16),
    "nin": ImageModel("NIN", nin),
    "nin-mnist": ImageModel("NIN", partial(nin, channels=1)),
    "all-cnn-c": ImageModel("All-CNN-C", all_cnn_c),
    "small-cnn": ImageModel("the small CNN of cuda-convnet", small_cnn, has_dropout=False),
    "naive-cnn": ImageModel("the naive CNN of RN's paper", naive_cnn),
}


def build_image_model(
    name: str, classes: int, *, dropout: float = 0.0, generator: torch.Generator | None = None
) -> nn.Module:
    """Return a new network, on the CPU, with initial weights from the global random state.

    Args:
        name: a key of :data:`IMAGE_MODELS`.
        classes: number of outputs.
        dropout: probability that a feature is dropped, in [0, 1); where, each model says.
        generator: of the dropout's masks, on the device where the model will run; needed where ``dropout`` is not 0.

    Raises:
        ValueError: dropout for a model that has none, or without a generator.
    """
    model = IMAGE_MODELS[name]
    if model.has_dropout:
        return model.build(classes, dropout=dropout, generator=generator)
    if dropout:
        raise ValueError(f"dropout = {dropout:g}, but {name} has no dropout: use 0, or another model")
    return model.build(classes)
