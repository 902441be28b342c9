"""A factor of 1 is the plain optimizer to the bit, on the short way round and through every step of the machinery."""

from dataclasses import dataclass
from typing import get_args

import pytest
import torch

import flatwise
from contract.registry import OPTIMIZERS
from contract.training import attach, make_optimizer, memory, same_bits, train
from flatwise.perturbation import Scope

SCOPES = get_args(Scope)
STEPS = 4


@dataclass(frozen=True)
class BlindOnes(flatwise.Distribution):
    """Always 1, but does not know it: nothing is cut short, and the update goes through the noisy path."""

    mean = 1.0
    variance = 1e-30

    def cdf(self, x):
        return float(x >= 1)

    def sample(self, words):
        return torch.ones(words.shape, device=words.device)


IDENTITIES = {
    "leap(0)": flatwise.leap(0),
    "lr_dropout(1)": flatwise.lr_dropout(keep=1),
    "ralr(p=0)": flatwise.ralr(p=0),
    "mixture": flatwise.Perturbation(flatwise.Mixture(1, flatwise.Constant(1), flatwise.Normal(2, 1))),
    **{f"Constant(1), {scope}": flatwise.Perturbation(flatwise.Constant(1), scope) for scope in SCOPES},
}
UNAWARE = {
    **{f"blind, {scope}": flatwise.Perturbation(BlindOnes(), scope) for scope in SCOPES},
    "blind, composed": [flatwise.Perturbation(BlindOnes(), scope) for scope in SCOPES],
    # In float32 these are 1 too, and the compiled kernels draw them.
    "normal kernel": flatwise.Perturbation(flatwise.Normal(1, 1e-30)),
    "uniform kernel": flatwise.Perturbation(flatwise.Uniform(1, 1 + 1e-12)),
    "wide bounds": flatwise.Perturbation(flatwise.Constant(1), "all", min_lr=0.0, max_lr=100.0),
    "half of the words": flatwise.Perturbation(
        flatwise.Mixture(0.5, flatwise.Constant(1), flatwise.Uniform(1, 1 + 1e-12)), "element"
    ),
}


@pytest.mark.parametrize("identity", IDENTITIES | UNAWARE)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factor_one_is_the_plain_optimizer(name, identity):
    plain, perturbed = make_optimizer(name), make_optimizer(name)
    attach(perturbed, (IDENTITIES | UNAWARE)[identity])
    assert same_bits(train(perturbed, STEPS), train(plain, STEPS))
    assert same_bits(memory(perturbed), memory(plain))


@pytest.mark.parametrize("identity", IDENTITIES)
def test_identities_know_that_they_are(identity):
    assert IDENTITIES[identity].is_identity


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_unaware_do_go_through_the_noisy_path(name):
    """The same machinery with a factor that is not 1 must change the training: otherwise the test above is empty."""
    for scope in SCOPES:
        plain, perturbed = make_optimizer(name), make_optimizer(name)
        attach(perturbed, flatwise.Perturbation(flatwise.Uniform(0.5, 0.9), scope))
        assert not same_bits(train(perturbed, 2), train(plain, 2)), scope
