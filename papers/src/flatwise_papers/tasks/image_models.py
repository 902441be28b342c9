"""Networks for small images by name, and those without shortcuts: VGG-16, NIN, All-CNN-C and the small CNNs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from flatwise.study.tasks.training import Dropout
from flatwise_papers.tasks.residual_networks import Drop, GlobalAverage, densenet, resnet, resnet_cifar, wide_resnet

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(classes: int, drop: Drop) -> nn.Sequential:
    """Return VGG-16 (Simonyan and Zisserman 2015, D) for ``(3, 32, 32)``: 14,728,266 parameters with 10 classes.

    As is usual for CIFAR: batch normalization after every convolution, and one linear layer where ImageNet's has three.
    RN's paper has a VGG16 with and without dropout and does not say where: here on the 512 features that the linear
    layer reads.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for block in VGG16:
        for outputs in block:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), drop(), nn.Linear(512, classes))


def nin(classes: int, drop: Drop, *, channels: int = 3) -> nn.Sequential:
    """Return network in network (Lin et al. 2014), their CIFAR-10 network: 966,986 parameters with 10 classes.

    The peak-LR paper trains NIN on MNIST too, and does not give that network's widths: use these with one channel.

    Args:
        classes: number of outputs.
        drop: makes the dropout after each of the two poolings; Lin et al. have 0.5.
        channels: of the images, whose height and width may be any from 8 pixels.
    """
    return nn.Sequential(
        *_mlpconv(channels, 5, 192, 160, 96),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        drop(),
        *_mlpconv(96, 5, 192, 192, 192),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        drop(),
        *_mlpconv(192, 3, 192, 192, classes),
        GlobalAverage(),
    )


def all_cnn_c(classes: int, drop: Drop) -> nn.Sequential:
    """Return All-CNN-C (Springenberg et al. 2015) for ``(3, 32, 32)``: 1,369,738 parameters with 10 classes.

    The peak-LR paper's "large model". Features are dropped after each of the two convolutions with stride 2, pixels of
    the image with two fifths of the probability: Springenberg et al. have 0.5 and 0.2.
    """
    return nn.Sequential(
        drop(0.4),
        *_conv(3, 96, 3, padding=1),
        *_conv(96, 96, 3, padding=1),
        *_conv(96, 96, 3, stride=2, padding=1),
        drop(),
        *_conv(96, 192, 3, padding=1),
        *_conv(192, 192, 3, padding=1),
        *_conv(192, 192, 3, stride=2, padding=1),
        drop(),
        *_conv(192, 192, 3),
        *_conv(192, 192, 1),
        *_conv(192, classes, 1),
        GlobalAverage(),
    )


def small_cnn(classes: int) -> nn.Sequential:
    """Return the CNN that stands for the peak-LR paper's "small model": 89,578 parameters with 10 classes.

    The paper says no more than "baseline convolutional neural networks (Krizhevsky et al., 2012)", 18.79 % error on
    CIFAR-10. The closest network with a name is Krizhevsky's for CIFAR-10 in cuda-convnet (``layers-18pct``; Caffe's
    ``cifar10_full``), which is known for 18 %: three 5×5 convolutions, poolings of 3×3 with stride 2, local response
    normalization after the first two (as in Caffe, over three channels).
    """
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.ReLU(),
        nn.LocalResponseNorm(3, alpha=5e-5, beta=0.75),
        *_conv(32, 32, 5, padding=2),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        nn.LocalResponseNorm(3, alpha=5e-5, beta=0.75),
        *_conv(32, 64, 5, padding=2),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, classes),
    )


def naive_cnn(classes: int, drop: Drop) -> nn.Sequential:
    """Return the CNN that stands for RN's "naive CNN" on MNIST, for ``(1, 28, 28)``: 1,199,882 parameters.

    The paper, which used Keras, says "two convolutional layers followed by two fully connected ones". Keras's own
    example for MNIST (``mnist_cnn.py``) is such a network, and this is it: 32 and 64 channels, 128 hidden features.
    Hidden features are dropped before the last layer, and half as many after the pooling: Keras's example has 0.5 and
    0.25, the paper does not say.
    """
    return nn.Sequential(
        *_conv(1, 32, 3),
        *_conv(32, 64, 3),
        nn.MaxPool2d(2),
        drop(0.5),
        nn.Flatten(),
        nn.Linear(64 * 12 * 12, 128),
        nn.ReLU(),
        drop(),
        nn.Linear(128, classes),
    )


def _conv(inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding), nn.ReLU()]


def _mlpconv(inputs: int, size: int, first: int, second: int, third: int) -> list[nn.Module]:
    """A convolution, and a perceptron of two layers at every position."""
    return [*_conv(inputs, first, size, padding=size // 2), *_conv(first, second, 1), *_conv(second, third, 1)]


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A network for images.

    Attributes:
        title: its name in print, such as ``"ResNet-20"``.
        build: makes it from the number of classes, and for a model that has dropout from a function that makes dropout
            layers.
        has_dropout: whether it has dropout that can be set.
    """

    title: str
    build: Callable[..., nn.Module]
    has_dropout: bool = True


def _densenet(layers: tuple[int, ...], growth: int, *, compact: bool) -> Callable[..., nn.Module]:
    return partial(densenet, layers=layers, growth=growth, compact=compact)


IMAGE_MODELS: dict[str, ImageModel] = {
    **{
        f"resnet{depth}": ImageModel(f"ResNet-{depth}", partial(resnet_cifar, depth=depth), has_dropout=False)
        for depth in (20, 56, 110)
    },
    **{f"resnet{depth}": ImageModel(f"ResNet-{depth}", partial(resnet, depth=depth)) for depth in (18, 34, 50, 101)},
    "wrn-16-8": ImageModel("WRN-16-8", partial(wide_resnet, depth=16, width=8)),
    "wrn-28-10": ImageModel("WRN-28-10", partial(wide_resnet, depth=28, width=10)),
    "densenet-40-12": ImageModel("DenseNet-40-12", _densenet((12, 12, 12), 12, compact=False)),
    "densenet-bc-100-12": ImageModel("DenseNet-BC-100-12", _densenet((16, 16, 16), 12, compact=True)),
    "densenet121": ImageModel("DenseNet-121", _densenet((6, 12, 24, 16), 32, compact=True)),
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

    Convolutions have He et al.'s normal initial weights (2015, fan-in) and zero biases, other layers torch's.

    Args:
        name: a key of :data:`IMAGE_MODELS`.
        classes: number of outputs.
        dropout: probability that a feature is dropped, in [0, 1); where, each model says.
        generator: of the dropout's masks, on the device where the model will run; needed if ``dropout`` is not 0.

    Raises:
        ValueError: dropout for a model that has none, or without a generator.
    """
    model = IMAGE_MODELS[name]
    if dropout and not model.has_dropout:
        raise ValueError(f"dropout = {dropout:g}, but {name} has no dropout: use 0, or another model")
    if dropout and generator is None:
        raise ValueError(f"dropout = {dropout} needs a generator for its masks: give generator=torch.Generator(device)")

    def drop(share: float = 1.0) -> nn.Module:
        return nn.Identity() if generator is None or dropout == 0 else Dropout(share * dropout, generator)

    network = model.build(classes, drop) if model.has_dropout else model.build(classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
