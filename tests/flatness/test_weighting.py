"""The mean over all data is what it is of all data as one batch, or there is an error."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatwise import flatness
from flatwise.flatness import BatchLoss, FlatnessError, measuring

WEIGHT = torch.tensor([0.2, 1.0, 5.0])


def example(ignored=None, shape=()):
    torch.manual_seed(0)
    if shape:
        model = nn.Conv1d(4, 3, 1)
        x = torch.randn(23, 4, *shape)
    else:
        model, x = nn.Linear(4, 3), torch.randn(23, 4)
    y = torch.randint(0, 3, (23, *shape))
    if ignored is not None:
        y[2:9] = ignored
    return model.double(), x.double(), y


def split(x, y):
    return [(x[:3], y[:3]), (x[3:7], y[3:7]), (x[7:], y[7:])]  # with ignored targets, the second counts nothing


MEANS = {
    "module": (nn.CrossEntropyLoss(), None),
    "class weights": (nn.CrossEntropyLoss(WEIGHT), None),
    "smoothed": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2), -100),
    "ignored": (nn.CrossEntropyLoss(), -100),
    "another ignored": (nn.CrossEntropyLoss(WEIGHT, ignore_index=1), None),
    "function": (F.cross_entropy, -100),
    "partial": (partial(F.cross_entropy, weight=WEIGHT.double(), ignore_index=2), -100),
    "log-likelihood": (nn.NLLLoss(ignore_index=0), None),
}


@pytest.mark.parametrize("shape", [(), (5,)], ids=["classes", "segments"])
@pytest.mark.parametrize(("loss", "ignored"), MEANS.values(), ids=MEANS)
def test_cross_entropy_over_batches_is_that_of_all_data(loss, ignored, shape):
    if ignored == -100 and isinstance(loss, partial):
        ignored = 2
    model, x, y = example(ignored, shape)
    if isinstance(loss, nn.Module):
        loss = loss.double()
    output = model(x)
    value = loss(output, y)
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()))])
    with measuring(model, loss, split(x, y)) as objective:
        for _ in range(2):
            assert objective.loss() == pytest.approx(value.item(), rel=1e-12)
            torch.testing.assert_close(objective.gradient()[1], expected)
    vector = torch.ones(expected.numel(), dtype=torch.float64)
    whole = flatness.hvp(model, loss, (x, y), vector)
    torch.testing.assert_close(flatness.hvp(model, loss, split(x, y), vector), whole)


def test_class_probabilities_as_targets():
    model, x, _ = example()
    y = torch.rand(23, 3, dtype=torch.float64)
    loss = nn.CrossEntropyLoss(WEIGHT.double())
    with measuring(model, loss, split(x, y)) as objective:
        assert objective.loss() == pytest.approx(loss(model(x), y).item(), rel=1e-12)


SUMS = {
    "module": nn.MSELoss(reduction="sum"),
    "cross-entropy": nn.CrossEntropyLoss(reduction="sum"),
    "partial": partial(F.mse_loss, reduction="sum"),
    "lambda": lambda output, target: F.mse_loss(output, target, reduction="sum"),
    "written out": lambda output, target: (output - target).square().sum(),
}


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)
def test_sums_are_refused(loss, batches):
    model, x, y = example()
    y = y if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(23, 3, dtype=torch.float64)
    with pytest.raises(FlatnessError, match="reduction='mean'"):
        flatness.trace(model, loss, (x, y) if batches == 1 else split(x, y))


NO_MEANS = {
    "ignored": lambda output, target: F.cross_entropy(output, target, ignore_index=1),
    "class weights": lambda output, target: F.cross_entropy(output, target, WEIGHT.double()),
    "between samples": lambda output, target: F.cross_entropy(output, target) / output.std(),
}


@pytest.mark.parametrize("loss", NO_MEANS.values(), ids=NO_MEANS)
@pytest.mark.parametrize("first", [0, 1], ids=["from the first on", "in the second"])
def test_losses_that_are_no_means_are_refused_over_several_batches(loss, first):
    model, x, y = example()
    y[:3], y[3:7] = torch.tensor([[1, 0, 2], [0, 0, 0]])[first], torch.tensor([1, 0, 0, 2])
    with measuring(model, loss, (x, y)) as objective:  # one batch is right whatever the loss
        assert objective.loss() == pytest.approx(loss(model(x), y).item(), rel=1e-12)
    with pytest.raises(FlatnessError, match=r"batch 1: the loss of a batch is .* not the mean .* BatchLoss"):
        flatness.trace(model, loss, split(x, y))
    own = BatchLoss(lambda model, batch: loss(model(batch[0]), batch[1]))
    assert flatness.gradient_norm(model, own, split(x, y)) > 0


def test_a_mean_that_random_numbers_or_whole_batches_are_for():
    """The halves are not judged where the loss cannot take them, and random numbers are where they were."""
    model, x, y = example()

    def noisy(output, target):
        return F.cross_entropy(output, target) * (1 + 0 * torch.rand(()))

    def whole(output, target):
        assert len(output) in (3, 4, 16)
        return F.cross_entropy(output, target)

    draws = []

    def drawing(output, target):
        if torch.is_grad_enabled():
            draws.append(torch.rand(()).item())
        else:
            torch.rand(7)
        return F.cross_entropy(output, target)

    expected = flatness.gradient_norm(model, nn.CrossEntropyLoss(), split(x, y))
    for loss in (noisy, whole, drawing):
        assert flatness.gradient_norm(model, loss, split(x, y)) == pytest.approx(expected, rel=1e-12)
    torch.manual_seed(3)
    draws.clear()
    flatness.gradient_norm(model, drawing, split(x, y))
    torch.manual_seed(3)
    assert draws == [torch.rand(()).item() for _ in range(3)]


def test_ignored_targets_of_other_losses_are_refused():
    model, x, y = example(-100)
    with pytest.raises(FlatnessError, match="batch 0: it has targets of -100"):
        flatness.trace(model, lambda output, target: F.cross_entropy(output, target), split(x, y))
    own = BatchLoss(lambda model, batch: F.cross_entropy(model(batch["x"]), batch["labels"]))
    batches = [{"x": x, "labels": y} for x, y in split(x, y)]
    with pytest.raises(FlatnessError, match="batch 0: it has targets of -100"):
        flatness.trace(model, own, batches)
    counted = BatchLoss(own.function, count=lambda batch: (batch["labels"] != -100).sum())
    with measuring(model, counted, batches) as objective:
        assert objective.loss() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)
        assert objective.samples == 16


def test_nothing_that_counts():
    model, x, y = example()
    y[:] = -100
    with pytest.raises(FlatnessError, match="every batch has a count of 0"):
        flatness.trace(model, nn.CrossEntropyLoss(), split(x, y))
    with pytest.raises(FlatnessError, match="batch 0: its count is nan"):
        flatness.trace(model, BatchLoss(lambda m, b: m(b).mean(), count=lambda b: float("nan")), [x])
