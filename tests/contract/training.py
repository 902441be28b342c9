"""A training run in miniature, deterministic and without autograd, and comparisons to the bit."""

import io
import math
import random
from contextlib import contextmanager

import numpy as np
import torch

import flatwise
from contract.registry import EPOCHS, METHODS, OPTIMIZERS, SHAPES, STEPS_PER_EPOCH
from devices import DEVICE


def wave(shape, phase=0.0, dtype=torch.float32):
    """Values without zeros, repeats or symmetry, drawn from no generator."""
    count = math.prod(shape)
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7 + phase + 0.1).reshape(shape).to(dtype)


def make_parameters(shapes=SHAPES, dtype=torch.float32):
    return [torch.nn.Parameter(wave(shape, phase, dtype).to(DEVICE)) for phase, shape in enumerate(shapes)]


def make_optimizer(name):
    """A fresh optimizer of the registry over fresh parameters: what a new process would build."""
    case = OPTIMIZERS[name]
    return case.make(make_parameters(case.shapes))


def attach(optimizer, perturbation, **options):
    """`flatwise.perturb` with a method of the registry (by its name) or any perturbation, and the calendar given."""
    perturbation = METHODS[perturbation] if isinstance(perturbation, str) else perturbation
    return flatwise.perturb(optimizer, perturbation, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS, **options)


def parameters_of(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_gradients(optimizer, step):
    """Gradients that depend on the parameters, so that one bit lost shows in every later step."""
    sparse = isinstance(optimizer, torch.optim.SparseAdam)
    for position, parameter in enumerate(parameters_of(optimizer)):
        gradient = torch.sin(3 * parameter.detach() + 0.9 * step + position)
        if sparse:
            gradient[step % len(gradient)] = 0
            gradient = gradient.to_sparse(1)
        parameter.grad = gradient


def train(optimizer, steps, start=0):
    """Steps `start … start + steps − 1`; the parameters after each of them."""
    history = []
    for step in range(start, start + steps):
        set_gradients(optimizer, step)
        optimizer.step()
        history.append(values(optimizer))
    return history


def values(optimizer):
    return [parameter.detach().clone() for parameter in parameters_of(optimizer)]


def bits(tensor):
    """The bytes of a tensor, so that −0 is not 0 and NaN is itself."""
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8, device="cpu")


def same_bits(one, two):
    """Whether two nested structures hold the same things, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(two, torch.Tensor)
            and (one.shape, one.dtype) == (two.shape, two.dtype)
            and torch.equal(bits(one), bits(two))
        )
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_bits(value, two[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same_bits, one, two))
    return one == two


def memory(optimizer):
    """What the optimizer remembers, without what flatwise wrote there."""
    saved = optimizer.state_dict()
    groups = [
        {key: value for key, value in group.items() if not key.startswith("flatwise_")}
        for group in saved["param_groups"]
    ]
    return saved["state"], groups


def checkpoint(optimizer):
    """Parameters and optimizer as the default, safe `torch.load` gives them back: no memory is shared."""
    file = io.BytesIO()
    torch.save({"parameters": values(optimizer), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def restore(optimizer, saved):
    with torch.no_grad():
        for parameter, value in zip(parameters_of(optimizer), saved["parameters"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])


def global_random_states():
    kind, keys, *rest = np.random.get_state()
    on_device = torch.cuda.get_rng_state_all() if DEVICE.type == "cuda" else []
    return [torch.get_rng_state(), on_device, kind, keys.tolist(), rest, random.getstate()]


@contextmanager
def random_states_unmoved():
    before = global_random_states()
    yield
    assert same_bits(before, global_random_states()), "a global random generator was moved"
