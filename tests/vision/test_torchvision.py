"""torchvision's networks under every method: the factors reach each parameter, by its name, and nothing else moves."""

import pytest
import torch
import torchvision

import flatwise

METHODS = {
    "leap": flatwise.leap(0.3),
    "lr_dropout": flatwise.lr_dropout(0.5),
    "alrao": flatwise.alrao(1e-2, 10),
    "ralr": flatwise.ralr(p=1.0),
    "leap and ralr": [flatwise.leap(0.3), flatwise.ralr(p=1.0)],
}
NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "vit": lambda: torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=10),
}
SIDES = {"vit": 16}


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name]()


def gradients(name, model):
    generator = torch.Generator().manual_seed(1)
    side = SIDES.get(name, 32)
    images, labels = torch.randn(4, 3, side, side, generator=generator), torch.arange(4)
    torch.manual_seed(2)  # dropout
    torch.nn.functional.cross_entropy(model(images), labels).backward()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_moves_by_its_factors(name, method):
    noisy, plain = network(name), network(name)
    optimizer = torch.optim.SGD(noisy.named_parameters(), lr=0.05)
    handle = flatwise.perturb(optimizer, METHODS[method], seed=3, steps_per_epoch=2)
    twin = torch.optim.SGD(plain.parameters(), lr=0.05)
    gradients(name, noisy)
    gradients(name, plain)
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    factors = [handle.factor(0, parameter) for parameter in noisy.parameters()]
    optimizer.step()
    twin.step()
    for ours, theirs, old, factor in zip(noisy.parameters(), plain.parameters(), before, factors, strict=True):
        expected = old.double() + factor.double() * (theirs.detach().double() - old.double())
        torch.testing.assert_close(ours.detach().double(), expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(noisy.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert handle.step == 1


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_the_fused_step_is_the_generic_one(optimizer):
    pytest.importorskip("numba")
    fused, generic = network("resnet18"), network("resnet18")
    ours = getattr(flatwise.optim, optimizer)(
        fused.named_parameters(), lr=1e-3, perturbation=flatwise.leap(0.3), seed=3
    )
    theirs = getattr(torch.optim, optimizer)(generic.named_parameters(), lr=1e-3)
    flatwise.perturb(theirs, flatwise.leap(0.3), seed=3)
    for _ in range(2):
        ours.zero_grad()
        gradients("resnet18", fused)
        for one, two in zip(fused.parameters(), generic.parameters(), strict=True):
            two.grad = one.grad.clone()  # Adam would make much of the last bits of its own
        ours.step()
        theirs.step()
    assert ours.fallback is None
    for one, two in zip(fused.parameters(), generic.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
