"""The fused optimizers on shards: two processes take the steps of one, to the bit."""

import warnings

import pytest
import torch
from processes import Processes
from torch import Tensor, nn

import flatwise
from flatwise import optim

pytest.importorskip("numba")

# Rows that two processes cannot share evenly, one process alone can hold, and a shard in the middle of vector width.
SHAPES = [(7, 5), (9,), (1,), (3, 2, 3), (4001, 17)]
OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "RMSprop": {"centered": True, "momentum": 0.5},
}
PERTURBATIONS = {"leap": flatwise.leap(0.3), "lrd": flatwise.lr_dropout(0.5)}
STEPS = 3


def values(shape: tuple[int, ...], phase: float) -> Tensor:
    """A function of the place, of magnitudes from 0 to 1."""
    count = torch.arange(float(torch.Size(shape).numel()))
    return torch.sin(count * 1.7 + phase).view(shape)


def steps(params: list[Tensor], name: str, method: str, distribute=lambda tensor: tensor) -> list[str | None]:
    """Some steps under names; what each step fell back on."""
    optimizer = getattr(optim, name)(
        [(f"p{i}", param) for i, param in enumerate(params)],
        lr=0.1,
        perturbation=PERTURBATIONS[method],
        seed=5,
        **OPTIMIZERS[name],
    )
    fallbacks = []
    for step in range(STEPS):
        for position, param in enumerate(params):
            param.grad = distribute(values(tuple(param.shape), 10 * step + position))
        optimizer.step()
        fallbacks.append(optimizer.fallback)
    return fallbacks


def unsharded(name: str, method: str) -> list[Tensor]:
    """What one process has in the end."""
    params: list[Tensor] = [nn.Parameter(values(shape, position)) for position, shape in enumerate(SHAPES)]
    assert steps(params, name, method) == [None] * STEPS
    return [param.detach() for param in params]


def sharded(name: str, method: str) -> tuple[list[Tensor], list[str | None], list[int]]:
    """The whole parameters in the end, the fallbacks, and how many elements this rank held."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))

    def distribute(tensor: Tensor) -> DTensor:
        return distribute_tensor(tensor, mesh, [Shard(0)])

    params = [nn.Parameter(distribute(values(shape, position))) for position, shape in enumerate(SHAPES)]
    fallbacks = steps(params, name, method, distribute)
    held = [param.to_local().numel() for param in params]
    return [param.full_tensor().detach() for param in params], fallbacks, held


@pytest.mark.parametrize("method", PERTURBATIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_take_the_steps_of_the_whole_to_the_bit(name: str, method: str, two_processes: Processes) -> None:
    expected = unsharded(name, method)
    ranks = two_processes.run(sharded, name, method)
    for whole, fallbacks, held in ranks:
        assert fallbacks == [None] * STEPS
        assert all(map(torch.equal, whole, expected))
        assert sum(held) < sum(tensor.numel() for tensor in expected)
    assert 0 in ranks[1][2]  # the single element lives on rank 0 alone


def fully_sharded() -> tuple[list[Tensor], str | None]:
    """The same under fully_shard, with gradients from a backward pass."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = linear()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9, perturbation=flatwise.leap(0.3), seed=5)
    for step in range(STEPS):
        descend(model, optimizer, step)
    return [param.full_tensor().detach() for param in model.parameters()], optimizer.fallback


def linear() -> nn.Linear:
    with torch.device("meta"):
        model = nn.Linear(6, 5)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for position, param in enumerate(model.parameters()):
            param.copy_(values(tuple(param.shape), position))
    return model


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A step on a batch that every rank has whole: the mean of two equal gradients is that gradient."""
    model.zero_grad()
    model(values((4, 6), step)).square().mean().backward()
    optimizer.step()


def test_fully_shard_takes_the_steps_of_one_process_to_the_bit(two_processes: Processes) -> None:
    model = linear()
    optimizer = optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9, perturbation=flatwise.leap(0.3), seed=5)
    for step in range(STEPS):
        descend(model, optimizer, step)
    for whole, fallback in two_processes.run(fully_sharded):
        assert fallback is None
        assert all(map(torch.equal, whole, model.parameters()))


def sharded_by_columns() -> tuple[Tensor, list[Tensor], str | None, list[str]]:
    """Steps on a weight whose columns are shared: the whole weight, the local factors, the fallback, the warnings."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    weight = nn.Parameter(distribute_tensor(values((5, 9), 0), mesh, [Shard(1)]))
    optimizer = optim.SGD([("weight", weight)], lr=0.1, momentum=0.9, perturbation=flatwise.leap(0.3), seed=5)
    assert optimizer.handle is not None
    factors = [optimizer.handle.factor(step, weight) for step in range(STEPS)]
    said: list[str] = []
    for step in range(STEPS):
        weight.grad = distribute_tensor(values((5, 9), 10 + step), mesh, [Shard(1)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        said += [str(warning.message) for warning in caught]
    return weight.full_tensor().detach(), factors, optimizer.fallback, said


def test_shared_columns_fall_back_visibly_with_the_same_noise(two_processes: Processes) -> None:
    weight = nn.Parameter(values((5, 9), 0))
    optimizer = optim.SGD([("weight", weight)], lr=0.1, momentum=0.9, perturbation=flatwise.leap(0.3), seed=5)
    assert optimizer.handle is not None
    factors = [optimizer.handle.factor(step, weight) for step in range(STEPS)]
    for step in range(STEPS):
        weight.grad = values((5, 9), 10 + step)
        optimizer.step()
    assert optimizer.fallback is None

    for rank, (whole, drawn, fallback, said) in enumerate(two_processes.run(sharded_by_columns)):
        assert fallback == "a parameter is sharded along a dimension that is not its first"
        assert len(said) == 1  # once, not at every step
        assert "runs torch's own step and scales it afterwards" in said[0]
        for ours, theirs in zip(drawn, factors, strict=True):
            assert torch.equal(ours, theirs.chunk(2, dim=1)[rank])
        # The update is the same; the fallback rounds it before it is scaled.
        torch.testing.assert_close(whole, weight.detach(), rtol=1e-6, atol=1e-7)


def partial_gradients() -> tuple[Tensor, Tensor, str | None]:
    """A replicated parameter whose gradient is a summand on each rank, as torch's own backward pass leaves it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    x = distribute_tensor(torch.arange(16.0).reshape(4, 4), mesh, [Shard(0)])
    found, reason = [], None
    for fused in (True, False):
        param = nn.Parameter(distribute_tensor(torch.zeros(3, 4), mesh, [Replicate()]))
        named, settings = [("p", param)], {"lr": 1.0}
        if fused:
            optimizer = optim.SGD(named, **settings, perturbation=PERTURBATIONS["leap"], seed=5)
        else:
            optimizer = torch.optim.SGD(named, **settings)
            flatwise.perturb(optimizer, PERTURBATIONS["leap"], seed=5)
        (x @ param.t()).sum().backward()
        assert param.grad.placements != param.placements
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        found.append(param.to_local().detach())
        reason = getattr(optimizer, "fallback", reason)
    return found[0], found[1], reason


def test_a_gradient_that_is_a_summand_is_left_to_torch(two_processes: Processes) -> None:
    ranks = two_processes.run(partial_gradients)
    for fused, generic, reason in ranks:
        assert torch.equal(fused, generic)
        assert "spread" in str(reason)
    assert torch.equal(ranks[0][0], ranks[1][0])
