"""The CPU kernels against the reference, bit for bit, and the fall-back where they are not installed."""

import pytest
import torch

import flatwise
from flatwise._attach.factors import blend, draws
from flatwise._kernels import backend
from flatwise._kernels.backend import Blender, can_blend
from flatwise._kernels.forms import Piece
from flatwise._kernels.numba import runtime
from flatwise._noise.keys import SEGMENT
from flatwise._noise.reference import runs

SEED, COUNTER, STREAM, ID = 2**63 + 5, 2**33 + 77, 3, 2**64 - 59
FACTORS = {
    "normal": flatwise.Normal(1.0, 0.3),
    "normal, wide and cut": flatwise.Normal(1.0, 2.0, minimum=0.0),
    "bernoulli": flatwise.Bernoulli(0.4),
    "uniform": flatwise.Uniform(0.0, 3.0),
}
BITS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bfloat16: torch.int16}


def reference(old, new, start, distribution):
    """The same by plain torch operations; a new tensor."""
    draw = draws(flatwise.Perturbation(distribution), SEED, COUNTER, STREAM, [ID])[0]
    result = new.clone()
    for offset, length in runs(start, new.numel()):
        here = slice(offset, offset + length)
        factor = draw.run(start + offset, length, new.device)
        result.view(-1)[here] = blend(old.view(-1)[here], new.view(-1)[here], factor)
    return result


def bits(tensor):
    return tensor.reshape(-1).view(BITS[tensor.dtype])


def tensors(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(shape, generator=generator).to(dtype)
    new = old + (0.1 * torch.randn(shape, generator=generator)).to(dtype)
    if new.numel() > 4:  # elements that the optimizer did not move, -0.0 and infinity among them
        new.view(-1)[1:4] = old.view(-1)[1:4] = torch.tensor([0.5, -0.0, torch.inf])
    return old, new


@pytest.mark.parametrize("start", [0, SEGMENT - 500, 2**33 + 17])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (1000, 37)])
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("name", FACTORS)
def test_kernel_has_the_references_bits(name, dtype, shape, start):
    old, new = tensors(shape, dtype)
    expected = reference(old, new, start, FACTORS[name])
    Blender(FACTORS[name].kernel_form, STREAM).blend([Piece(new, old, start, ID)], SEED, COUNTER)
    assert torch.equal(bits(new), bits(expected))
    if new.numel() > 100:
        assert not torch.equal(new, tensors(shape, dtype)[1])


def test_many_tensors_at_once_and_again(monkeypatch):
    """One call for tensors of several dtypes; the second call uses what the first prepared, with another counter."""
    shapes = [((40, 50), torch.float32), ((3,), torch.float32), ((70,), torch.bfloat16), ((2**16,), torch.float32)]
    olds, news = zip(*(tensors(shape, dtype) for shape, dtype in shapes), strict=True)
    pieces = [Piece(new, old, 0, ID) for old, new in zip(olds, news, strict=True)]
    own = Blender(FACTORS["normal"].kernel_form, STREAM)
    prepared = []
    monkeypatch.setattr(own, "_prepare", lambda *given: prepared.append(1) or Blender._prepare(own, *given))
    for counter in (5, 6):
        befores = [new.clone() for new in news]
        own.blend(pieces, SEED, counter)
        for old, before, new in zip(olds, befores, news, strict=True):
            draw = draws(flatwise.Perturbation(FACTORS["normal"]), SEED, counter, STREAM, [ID])[0]
            factor = draw.run(0, new.numel(), new.device).view(new.shape)
            assert torch.equal(new, blend(old, before, factor))
    assert len(prepared) == 1


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("pool", ["torch's", "python's"])
def test_threads_change_nothing(count, pool, monkeypatch):
    old, new = tensors((300_000,), torch.float32)
    expected = reference(old, new, 0, FACTORS["normal"])
    if pool == "python's":
        monkeypatch.setattr(runtime, "_torchs_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    Blender(FACTORS["normal"].kernel_form, STREAM).blend([Piece(new, old, 0, ID)], SEED, COUNTER)
    assert torch.equal(new, expected)


def train(perturbation, dtype):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((50, 40), (40,), ())]
    parameters.append(torch.randn(4, 3, 5, 5, generator=generator).to(dtype).to(memory_format=torch.channels_last))
    parameters[-1].requires_grad_()
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    flatwise.perturb(optimizer, perturbation, seed=SEED)
    for _ in range(4):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()
    return parameters


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("method", [flatwise.leap(0.3), flatwise.lr_dropout(0.4)], ids=["leap", "lr_dropout"])
def test_training_is_the_same_with_and_without_kernels(method, dtype, monkeypatch):
    fast = train(method, dtype)
    monkeypatch.setattr(backend, "load", lambda _: None)  # as where numba is not installed
    slow = train(method, dtype)
    assert all(torch.equal(one, two) for one, two in zip(fast, slow, strict=True))


def test_what_the_kernels_do_not_know_is_left_to_the_reference():
    plain = torch.zeros(4, 3, 5, 5)
    assert can_blend(plain, plain)
    strided = plain.to(memory_format=torch.channels_last)
    assert not can_blend(strided, strided)
    assert not can_blend(plain.half(), plain.half())
    assert not can_blend(plain.to("meta"), plain.to("meta"))
    assert flatwise.ralr().distribution.kernel_form is None
