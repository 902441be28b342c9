"""Verdicts on another package's optimizers against an oracle: a part of `benchmarks/foreign_optimizers.py`."""

import sys
import warnings
from pathlib import Path

import pytest
import pytorch_optimizer
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import foreign_optimizers

import flatwise

RIGHT = {"accepted": ("accepted rightly", "accepted rightly"), "coarse": ("refused rightly", "accepted rightly")}
RIGHT |= {"refused": ("refused rightly", "refused rightly"), "wrapper": ("wrapper, refused", "wrapper, refused")}
EXPECTED = {
    "accepted": ("AdaBelief", "AdaBound", "AdaHessian", "FAdam", "Lamb", "LoRARite", "MSVAG", "MuonClip"),
    "coarse": (
        "AccSGD", "AdamG", "DAdaptSGD", "Gravity", "MADGRAD", "Prodigy", "Ranger", "SOAP", "ScheduleFreeSGD",
    ),
    "refused": ("A2Grad", "AdaFactor", "ApolloDQN"),
    "wrapper": ("Lookahead", "PCGrad", "SAM", "SafeFP16Optimizer", "TRAC"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in EXPECTED.items() for name in names])
def test_the_verdict_is_the_oracles(kind, name, monkeypatch):
    monkeypatch.setattr(foreign_optimizers, "FACTORS", (0.5,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        fine, coarse, said = foreign_optimizers.judge(getattr(pytorch_optimizer, name))
    assert (fine, coarse) == RIGHT[kind], said


def test_compensated_summation_is_refused_in_16_bits_only():
    def optimizer(dtype):
        return pytorch_optimizer.StableAdamW([torch.nn.Parameter(torch.ones(4, 3, dtype=dtype))], kahan_sum=True)

    flatwise.perturb(optimizer(torch.float32), flatwise.leap())
    with pytest.raises(ValueError, match=r"makes up for what rounding to torch\.bfloat16 loses"):
        flatwise.perturb(optimizer(torch.bfloat16), flatwise.leap())


def test_a_warm_up_does_not_hide_or_break_the_verdict():
    """SOAP without weight decay is linear, at any present rate; and its verdict is not asked for again on resume."""
    for rate in (0.0, 1e-8, 3e-3):
        parameters = [torch.nn.Parameter(torch.ones(4, 3))]
        optimizer = pytorch_optimizer.SOAP(parameters, lr=3e-3, weight_decay=0.0)
        optimizer.param_groups[0]["lr"] = rate
        handle = flatwise.perturb(optimizer, flatwise.leap())
        assert optimizer.param_groups[0]["flatwise_support"] == 1
        saved = optimizer.state_dict()
        handle.remove()
        optimizer.load_state_dict(saved)
        flatwise.perturb(optimizer, flatwise.leap())


def test_a_rate_that_follows_from_the_present_one_is_refused():
    """The oracle of a constant factor does not see it: noise that changes would compound."""
    optimizer = pytorch_optimizer.ASGD([torch.nn.Parameter(torch.ones(4, 3))], lr=0.01)
    with pytest.raises(ValueError, match="it computes its next learning rate from the present one"):
        flatwise.perturb(optimizer, flatwise.ralr(), steps_per_epoch=2)
