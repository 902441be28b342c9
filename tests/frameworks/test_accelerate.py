"""Accelerate: perturb the optimizer before or after ``prepare``, or what ``prepare`` returned."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flatwise

EPOCHS, STEPS_PER_EPOCH = 3, 4
METHODS = [flatwise.leap(0.3), flatwise.ralr(p=1.0)]


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Accelerate keeps its settings in singletons."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def data() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    samples = TensorDataset(torch.randn(16, 4, generator=generator), torch.randn(16, 2, generator=generator))
    return DataLoader(samples, batch_size=4)


def parts(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)


def perturb(optimizer: torch.optim.Optimizer) -> flatwise.Handle:
    return flatwise.perturb(optimizer, METHODS, seed=5, steps_per_epoch=STEPS_PER_EPOCH)


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return (model(inputs) - targets).square().mean()


def plain_run() -> tuple[nn.Module, list[float]]:
    model = network()
    optimizer, scheduler = parts(model)
    perturb(optimizer)
    rates = []
    for _ in range(EPOCHS):
        for inputs, targets in data():
            loss(model, inputs, targets).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            rates.append(scheduler.get_last_lr()[0])
    return model, rates


def accelerated_run(
    accelerator: Accelerator,
    before: Callable[[torch.optim.Optimizer], flatwise.Handle] | None,
    after: Callable[[torch.optim.Optimizer], flatwise.Handle] | None,
) -> tuple[nn.Module, list[float], flatwise.Handle]:
    model = network()
    optimizer, scheduler = parts(model)
    handle = before(optimizer) if before else None
    model, optimizer, scheduler, batches = accelerator.prepare(model, optimizer, scheduler, data())
    handle = after(optimizer.optimizer) if after else handle
    rates = []
    for _ in range(EPOCHS):
        for inputs, targets in batches:
            with accelerator.accumulate(model):
                accelerator.backward(loss(model, inputs, targets))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            rates.append(scheduler.get_last_lr()[0])
    return model, rates, handle


@pytest.mark.parametrize(("before", "after"), [(perturb, None), (None, perturb)], ids=["before", "after"])
def test_prepared_training_is_plain_training(before: Callable | None, after: Callable | None) -> None:
    expected, expected_rates = plain_run()
    model, rates, handle = accelerated_run(Accelerator(cpu=True), before, after)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))
    assert rates == expected_rates
    assert rates == pytest.approx([0.1 * 0.9 ** (step + 1) for step in range(EPOCHS * STEPS_PER_EPOCH)])
    assert handle.step == EPOCHS * STEPS_PER_EPOCH


def test_an_accumulated_gradient_is_one_step() -> None:
    _, rates, handle = accelerated_run(Accelerator(cpu=True, gradient_accumulation_steps=2), perturb, None)
    assert handle.step == EPOCHS * STEPS_PER_EPOCH // 2
    assert rates[-1] == pytest.approx(0.1 * 0.9 ** (EPOCHS * STEPS_PER_EPOCH // 2))


def test_the_wrapper_is_unwrapped() -> None:
    """Perturbing what ``prepare`` returned is perturbing what went into it."""
    expected, expected_rates = plain_run()
    model = network()
    optimizer, scheduler = parts(model)
    wrapped_model, wrapped, scheduler, batches = Accelerator(cpu=True).prepare(model, optimizer, scheduler, data())
    handle = perturb(wrapped)
    assert handle.optimizer is optimizer
    assert "step" not in vars(wrapped)
    with pytest.raises(ValueError, match="this optimizer is perturbed already"):
        perturb(wrapped)
    for _ in range(EPOCHS):
        for inputs, targets in batches:
            loss(wrapped_model, inputs, targets).backward()
            wrapped.step()
            scheduler.step()
            wrapped.zero_grad()
    assert all(map(torch.equal, model.parameters(), expected.parameters()))
    assert scheduler.get_last_lr() == expected_rates[-1:]
    assert handle.step == EPOCHS * STEPS_PER_EPOCH


def scaled(attach_to_wrapper: bool) -> tuple[AcceleratedOptimizer, torch.optim.Optimizer, flatwise.Handle]:
    """A perturbed optimizer under the gradient scaler that accelerate uses with fp16, which needs no GPU itself."""
    Accelerator(cpu=True)  # its singletons must be there
    parameter = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    handle = None if attach_to_wrapper else perturb(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    wrapped = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
    return wrapped, optimizer, handle or perturb(wrapped)


@pytest.mark.parametrize("attach_to_wrapper", [False, True])
def test_a_skipped_step_does_not_count(attach_to_wrapper: bool) -> None:
    wrapped, optimizer, handle = scaled(attach_to_wrapper)
    (parameter,) = optimizer.param_groups[0]["params"]
    plain = nn.Parameter(parameter.detach().clone())
    alone = torch.optim.SGD([plain], lr=0.1, momentum=0.9)
    perturb(alone)
    for step in range(5):
        gradient = torch.full((3,), torch.inf) if step == 2 else torch.sin(parameter.detach() + step)
        before = parameter.detach().clone()
        parameter.grad = wrapped.scaler.scale(gradient.clone())
        wrapped.step()
        assert wrapped.step_was_skipped == (step == 2)
        if step == 2:
            assert torch.equal(parameter, before)
        else:
            plain.grad = gradient
            alone.step()
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert handle.step == 4
    torch.testing.assert_close(parameter, plain)


@pytest.mark.parametrize("attach_to_wrapper", [False, True])
def test_a_step_that_raises_leaves_the_clean_rate(attach_to_wrapper: bool) -> None:
    wrapped, optimizer, handle = scaled(attach_to_wrapper)
    (parameter,) = optimizer.param_groups[0]["params"]
    for step in range(2):  # the wrapper puts back the step that it knows after every step
        parameter.grad = wrapped.scaler.scale(torch.ones(3))
        wrapped.step()
        assert handle.step == step + 1
    parameter.grad = wrapped.scaler.scale(torch.ones(3))
    optimizer.state[parameter]["momentum_buffer"] = torch.ones(2)
    with pytest.raises(RuntimeError):
        wrapped.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert (handle.step, handle.in_step) == (2, False)


def test_gradients_accumulate_under_the_perturbed_wrapper() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    optimizer, _ = parts(model)
    model, wrapped, batches = accelerator.prepare(model, optimizer, data())
    handle = perturb(wrapped)
    counts = []
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, inputs, targets))
            wrapped.step()
            wrapped.zero_grad()
        counts.append(handle.step)
    assert counts == [0, 1, 1, 2]


def test_a_saved_state_is_continued(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer, _ = parts(model)
    handle = perturb(optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)

    def train() -> list[Tensor]:
        for inputs, targets in data():
            accelerator.backward(loss(model, inputs, targets))
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().clone() for parameter in model.parameters()]

    train()
    accelerator.save_state(tmp_path, safe_serialization=False)
    unbroken = train()
    assert handle.step == 2 * STEPS_PER_EPOCH
    accelerator.load_state(tmp_path)
    assert handle.step == STEPS_PER_EPOCH
    assert all(map(torch.equal, train(), unbroken))
