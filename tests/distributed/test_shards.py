"""Which global elements a rank holds, for every rank of many meshes: a fake process group needs no processes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import _clear_fast_path_sharding_prop_cache, _clear_sharding_prop_cache
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

import flatwise
from flatwise._attach.parameters import local_part


@contextmanager
def as_rank(rank: int, shape: tuple[int, ...]) -> Iterator[DeviceMesh]:
    """A mesh as one of its ranks sees it."""
    dist.init_process_group("fake", rank=rank, world_size=math.prod(shape), store=FakeStore())
    try:
        yield init_device_mesh("cpu", shape, mesh_dim_names=("outer", "middle", "inner")[-len(shape) :])
    finally:
        dist.destroy_process_group()
        # torch remembers meshes by their shape, with the rank that it was when it met them.
        _clear_sharding_prop_cache()
        _clear_fast_path_sharding_prop_cache()


def numbered(*shape: int) -> Tensor:
    """A tensor whose elements are their own logical indices."""
    return torch.arange(float(math.prod(shape))).view(shape)


def assert_located(parameter: DTensor) -> None:
    """The block says of every element held here what the element, a logical index, says itself."""
    local, block = local_part(parameter)
    held = local.detach()
    assert block.local_shape == tuple(held.shape)
    assert torch.equal(block.index().float(), held)
    if block.start is not None and held.numel():
        assert torch.equal(held.flatten(), torch.arange(float(held.numel())) + block.start)
    for dimension in range(held.dim()):
        stride = math.prod(parameter.shape[dimension + 1 :])
        assert torch.equal(
            block.channel(dimension).expand(held.shape), held.long() // stride % parameter.shape[dimension]
        )


MESHES: list[tuple[tuple[int, ...], list[Placement]]] = [
    ((2,), [Shard(0)]),
    ((2,), [Shard(1)]),
    ((2,), [Shard(-1)]),
    ((2,), [Replicate()]),
    ((3,), [Shard(0)]),
    ((2, 2), [Shard(0), Shard(0)]),
    ((2, 2), [Shard(0), Shard(1)]),
    ((2, 2), [Shard(1), Shard(0)]),
    ((2, 2), [Replicate(), Shard(0)]),
    ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
    ((2, 3), [_StridedShard(0, split_factor=3), Shard(0)]),
    ((4, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
    ((2, 2), [_StridedShard(1, split_factor=2), Shard(1)]),
    ((2, 2), [Shard(0), _StridedShard(0, split_factor=2)]),
    ((2, 2), [_StridedShard(0, split_factor=3), Replicate()]),
    ((2, 2, 2), [Replicate(), _StridedShard(0, split_factor=2), Shard(0)]),
]


@pytest.mark.parametrize(("mesh_shape", "placements"), MESHES, ids=str)
def test_every_rank_knows_which_elements_it_holds(mesh_shape: tuple[int, ...], placements: list[Placement]) -> None:
    for rank in range(math.prod(mesh_shape)):
        with as_rank(rank, mesh_shape) as mesh:
            for shape in ((8, 8, 3), (5, 7, 1), (1, 3, 2), (9, 10, 1)):
                # Without a source rank nothing is sent: the local part is cut from the tensor given.
                assert_located(distribute_tensor(numbered(*shape), mesh, placements, src_data_rank=None))


@pytest.mark.parametrize("rows", [1, 3, 5, 8, 9, 10, 17])
@pytest.mark.parametrize("mesh_shape", [(2, 2), (4, 2), (2, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("columnwise", [True, False], ids=["columnwise", "rowwise"])
def test_fully_shard_over_tensor_parallel(rows: int, mesh_shape: tuple[int, ...], columnwise: bool) -> None:
    """With 9 rows on (4, 2) the real parts are not those that torch's own definition of the placement names."""
    placements = [Shard(0 if columnwise else 1)] * (len(mesh_shape) - 1)
    for rank in range(math.prod(mesh_shape)):
        with as_rank(rank, mesh_shape) as mesh:
            data, *tensor = mesh.mesh_dim_names
            module = nn.Module()
            whole = distribute_tensor(numbered(rows, 8), mesh[tuple(tensor)], placements, src_data_rank=None)
            module.weight = nn.Parameter(whole)
            fully_shard(module, mesh=mesh[data])
            assert_located(module.weight)


def test_a_replicated_scalar_is_whole() -> None:
    with as_rank(1, (2,)) as mesh:
        assert_located(distribute_tensor(torch.tensor(0.0), mesh, [Replicate()], src_data_rank=None))


def test_a_process_outside_the_mesh_holds_nothing() -> None:
    with as_rank(3, (4,)):
        mesh = DeviceMesh("cpu", [0, 1])
        parameter = nn.Parameter(distribute_tensor(numbered(4, 3), mesh, [Shard(0)], src_data_rank=None))
        assert math.prod(local_part(parameter)[1].local_shape) == 0


def test_partial_sums_are_refused() -> None:
    with as_rank(0, (2,)) as mesh:
        parameter = nn.Parameter(DTensor.from_local(numbered(4, 3), mesh, [Partial()]))
        with pytest.raises(ValueError, match=r"placement .*: only replicated and sharded ones have elements"):
            local_part(parameter)

        parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        handle = flatwise.perturb(optimizer, flatwise.leap())
        with pytest.raises(ValueError, match="only replicated and sharded ones have elements"):
            optimizer.step()
        assert handle.step == 0


def test_shards_that_are_not_cut_by_chunk_are_refused() -> None:
    with as_rank(0, (2,)) as mesh:
        parameter = DTensor.from_local(numbered(3, 2), mesh, [Shard(0)], shape=torch.Size((4, 2)), stride=(2, 1))
        with pytest.raises(ValueError, match="cannot tell which 3 of 4 positions"):
            local_part(parameter)
