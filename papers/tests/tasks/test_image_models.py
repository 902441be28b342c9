"""The networks for images are the published ones: parameters counted, shapes, shortcuts, dropout, initial weights."""

import math
import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatwise.study.tasks.training import Dropout
from flatwise_papers.tasks.image_models import IMAGE_MODELS, build_image_model
from flatwise_papers.tasks.residual_networks import BasicBlock, resnet_cifar, wide_resnet

# With 10 classes. From the literature where it counts exactly; WRN and DenseNet-121 by public implementations.
PARAMETERS = {
    "resnet20": 269_722,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "wrn-16-8": 10_961_370,
    "wrn-28-10": 36_479_194,
    "densenet-40-12": 1_019_722,
    "densenet-bc-100-12": 769_162,
    "densenet121": 6_956_298,
    "vgg16": 14_728_266,
    "nin": 966_986,
    "nin-mnist": 957_386,
    "all-cnn-c": 1_369_738,
    "small-cnn": 89_578,
    "naive-cnn": 1_199_882,
}
MNIST = ("nin-mnist", "naive-cnn")
# Layers with weights, the shortcuts' convolutions aside.
DEPTHS = {
    "resnet20": 20,
    "resnet56": 56,
    "resnet110": 110,
    "resnet18": 18,
    "resnet34": 34,
    "resnet50": 50,
    "resnet101": 101,
    "wrn-16-8": 16 - 2,  # the paper counts the three shortcuts and not the linear layer
    "wrn-28-10": 28 - 2,
    "densenet-40-12": 40,
    "densenet-bc-100-12": 100,
    "densenet121": 121,
    "vgg16": 16 - 2,  # one linear layer where ImageNet's has three
}


def on_meta(name, classes):
    with torch.device("meta"):
        return build_image_model(name, classes)


def test_every_model_is_counted():
    assert set(PARAMETERS) == set(IMAGE_MODELS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_output_shape(name):
    model = on_meta(name, 10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    shape = (1, 28, 28) if name in MNIST else (3, 32, 32)
    assert on_meta(name, 100)(torch.empty(2, *shape, device="meta")).shape == (2, 100)


@pytest.mark.parametrize("name", DEPTHS)
def test_depth(name):
    model = on_meta(name, 10)
    layers = [path for path, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len([path for path in layers if "shortcut" not in path]) == DEPTHS[name]


@pytest.mark.parametrize(("name", "size"), [("resnet20", 8), ("resnet18", 4), ("wrn-16-8", 8), ("densenet121", 4)])
def test_last_features_are_as_small_as_published(name, size):
    seen = []
    model = on_meta(name, 10)
    average = next(m for m in model.modules() if type(m).__name__ == "GlobalAverage")
    average.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2:]))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert seen == [(size, size)]


def test_option_a_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros():
    block = BasicBlock(4, 8, stride=2, padded=True).eval()
    nn.init.zeros_(block.bn2.weight)  # the convolutions add nothing: the shortcut alone is left
    x = torch.randn(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    for channel in range(4):
        for row in range(3):
            for column in range(3):
                expected[:, 2 + channel, row, column] = x[:, channel, 2 * row, 2 * column].clamp(min=0)
    assert torch.equal(block(x), expected)


def test_a_block_adds_its_input():
    block = BasicBlock(4, 4, stride=1, padded=True).eval()
    x = torch.randn(2, 4, 6, 6)
    y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), F.relu(x + y))


@pytest.mark.parametrize("depth", [2, 21, 8.5])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(ValueError, match="6 n \\+ 2 layers"):
        resnet_cifar(10, depth=depth)
    with pytest.raises(ValueError, match="6 n \\+ 4 layers"):
        wide_resnet(10, nn.Identity, depth=depth, width=1)


def test_initial_weights_are_he_normal():
    torch.manual_seed(0)
    for name in ("resnet20", "vgg16"):
        for module in build_image_model(name, 10).modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.15)
                assert module.bias is None or not module.bias.any()


# Dropout

WITHOUT = ("resnet20", "resnet56", "resnet110", "small-cnn")
SMALL = ("densenet-40-12", "nin", "all-cnn-c", "naive-cnn")


def test_models_without_dropout_refuse_it():
    assert {name for name, model in IMAGE_MODELS.items() if not model.has_dropout} == set(WITHOUT)
    for name in WITHOUT:
        with pytest.raises(ValueError, match=f"dropout = 0.1, but {name} has no dropout"):
            build_image_model(name, 10, dropout=0.1, generator=torch.Generator())


@pytest.mark.parametrize("name", [name for name in IMAGE_MODELS if name not in WITHOUT])
def test_models_with_dropout_use_it(name):
    with torch.device("meta"):
        plain = build_image_model(name, 10)
        model = build_image_model(name, 10, dropout=0.25, generator=torch.Generator())
    assert not any(isinstance(m, Dropout) for m in plain.modules())
    assert max(m.dropout for m in model.modules() if isinstance(m, Dropout)) == 0.25
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", SMALL)
def test_dropout_acts_in_training_alone_and_by_its_own_generator(name):
    generator = torch.Generator()
    model = build_image_model(name, 10, dropout=0.5, generator=generator)
    x = torch.randn(2, *((1, 28, 28) if name in MNIST else (3, 32, 32)))
    state = torch.get_rng_state()
    outputs = []
    with torch.no_grad():
        for seed in (0, 0, 1):
            generator.manual_seed(seed)
            outputs.append(model(x))
        plain = model.eval()(x)
        assert torch.equal(plain, model(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], plain)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_keeps_the_mean_and_drops_the_share():
    layer = Dropout(0.2, torch.Generator().manual_seed(0))
    x = torch.ones(100_000, requires_grad=True)
    y = layer(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(y[y != 0], torch.full_like(y[y != 0], 1.25))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the gradient of what is dropped is 0


def test_dropout_without_a_generator():
    with pytest.raises(ValueError, match="needs a generator for its masks"):
        build_image_model("nin", 10, dropout=0.5)


def test_models_with_dropout_can_be_copied_and_pickled():
    model = build_image_model("nin", 10, dropout=0.5, generator=torch.Generator().manual_seed(3)).eval()
    x = torch.randn(1, 3, 8, 8)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copy(x), model(x))
