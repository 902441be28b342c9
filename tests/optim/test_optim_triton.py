"""The fused optimizers on GPUs: whole classes of flatwise.optim, their updates done by the Triton kernels.

Without a GPU the tests run in a second process, under Triton's interpreter, on CPU tensors; with one they run here, on
the GPU, where torch keeps Adam's step counters on the CPU, as it does by default.
"""

import copy
import os

import numpy as np
import pytest
import torch

import flatwise
from flatwise import optim
from flatwise._kernels import backend, forms
from interpreter import run_interpreted

pytest.importorskip("triton", reason="triton is not installed")

from flatwise._kernels.triton import backend as gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")

on_kernels = pytest.mark.skipif(
    not (GPU or INTERPRETED), reason="no CUDA device; test_under_the_interpreter runs this test on the CPU"
)
on_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device, and the interpreter cannot stand in for it")

LEAP, LRD = flatwise.leap(0.3), flatwise.lr_dropout(0.5)
UNIFORM = flatwise.Perturbation(flatwise.Uniform(0.5, 1.5))
SHAPES = [(30, 41), (), (0, 3), (7,)]
CASES = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True, "betas": (0.3, 0.9)}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "alpha": 0.4}),
]
IDS = [f"{name}-{'-'.join(options)}" for name, options in CASES]


@pytest.mark.skipif(INTERPRETED or GPU, reason="the tests run in this process")
def test_under_the_interpreter():
    run_interpreted(__file__, at_least=50)


@pytest.fixture(autouse=True)
def _triton_serves_the_device(monkeypatch):
    if INTERPRETED:
        monkeypatch.setitem(backend.BACKENDS, "cpu", "triton")
    with np.errstate(all="ignore"):  # the interpreter computes with numpy, which warns of every infinity
        yield


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_() for shape in shapes]


def train(optimizer, steps, start=0):
    """Takes steps with gradients that depend on the step alone."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(DEVICE, p.dtype)
        optimizer.step()


def make(package, name, params, options, **noise):
    return getattr(package, name)(params, **{"lr": 0.01, **options}, **noise)


def reference(name, params, options, perturbation, **noise):
    """Torch's optimizer, scaled afterwards by torch operations."""
    optimizer = make(torch.optim, name, params, options)
    flatwise.perturb(optimizer, perturbation, **noise)
    return optimizer


def train_by_torch(optimizer, steps, monkeypatch, start=0):
    with monkeypatch.context() as patch:
        patch.setattr(backend, "BACKENDS", {})
        train(optimizer, steps, start)


def assert_states_alike(one, two):
    """The same names, shapes, dtypes and devices."""
    first, second = one.state_dict()["state"], two.state_dict()["state"]
    assert first.keys() == second.keys()
    for key in first:
        assert list(first[key]) == list(second[key])
        for name, value in first[key].items():
            other = second[key][name]
            assert (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
            assert torch.allclose(value, other, rtol=1e-6, atol=1e-6), name


@on_kernels
@pytest.mark.parametrize("perturbation", [LEAP, LRD, UNIFORM], ids=["leap", "lrd", "uniform"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_step_is_torchs_scaled_by_the_factors(name, options, perturbation, monkeypatch):
    ours, theirs = parameters(), parameters()
    two = make(optim, name, ours, options, perturbation=perturbation, seed=5)
    one = reference(name, theirs, options, perturbation, seed=5)
    for step in range(2):
        before = [(p.detach().clone(), q.detach().clone()) for p, q in zip(ours, theirs, strict=True)]
        train(two, 1, start=step)
        train_by_torch(one, 1, monkeypatch, start=step)
        assert two.fallback is None
        for p, q, (p_old, q_old) in zip(ours, theirs, before, strict=True):
            assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)
            if perturbation is LRD:
                mask = two.handle.factor(step, p)
                assert torch.equal(p.detach() == p_old, mask == 0)
                assert torch.equal(q.detach() == q_old, mask == 0)
    assert_states_alike(one, two)
    assert one.param_groups[0]["flatwise_step"] == two.param_groups[0]["flatwise_step"] == 2


@on_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "options"), [CASES[3], CASES[7], CASES[9]], ids=str)
def test_16_bit_parameters_are_float32_rounded_once(name, options, dtype, monkeypatch):
    ours = parameters(dtype)
    wide = [p.detach().float().requires_grad_() for p in ours]
    two = make(optim, name, ours, options, perturbation=LEAP, seed=5)
    one = reference(name, wide, options, LEAP, seed=5)
    train(two, 1)
    generator = torch.Generator().manual_seed(100)
    for p in wide:
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE, dtype).float()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "BACKENDS", {})
        one.step()
    assert two.fallback is None
    for p, q in zip(ours, wide, strict=True):
        ulp = torch.finfo(dtype).eps * q.abs()
        assert ((p.float() - q).abs() <= ulp / 2 + 1e-6).all()


@on_kernels
def test_states_in_float32_beside_16_bit_parameters():
    """Torch does not make them, but a user may."""
    (param,) = parameters(torch.bfloat16, [(50,)])
    optimizer = optim.AdamW([param], lr=0.01, perturbation=LEAP)
    train(optimizer, 1)
    state = optimizer.state[param]
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = state[key].float()
    train(optimizer, 1, start=1)
    assert optimizer.fallback is None
    assert not torch.equal(state["exp_avg"], state["exp_avg"].bfloat16().float())  # not rounded
    state["exp_avg"] = state["exp_avg"].bfloat16()
    with pytest.warns(UserWarning, match="states of a parameter"):
        train(optimizer, 1, start=2)


@on_kernels
def test_groups_have_their_own_settings_and_gradients_may_be_missing(monkeypatch):
    """A parameter that joins later has its first momentum then, undamped; a group may have no gradient at all."""

    def grouped(package, params, **noise):
        groups = [{"params": params[:3], "lr": 0.1, "weight_decay": 0.1}, {"params": params[3:]}]
        return package.SGD(groups, lr=0.01, momentum=0.9, dampening=0.4, **noise)

    ours, theirs = parameters(), parameters()
    two, one = grouped(optim, ours, perturbation=LEAP, seed=1), grouped(torch.optim, theirs)
    flatwise.perturb(one, LEAP, seed=1)
    for step in range(4):
        for params, optimizer in ((ours, two), (theirs, one)):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
            if step < 2:
                params[0].grad = params[3].grad = None
            with monkeypatch.context() as patch:
                if optimizer is one:
                    patch.setattr(backend, "BACKENDS", {})
                optimizer.step()
        assert two.fallback is None
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)
    assert_states_alike(one, two)


@on_kernels
@pytest.mark.parametrize(("name", "options"), [CASES[2], CASES[5], CASES[9]], ids=str)
def test_resume_from_a_checkpoint_is_exact(name, options):
    params = parameters()
    optimizer = make(optim, name, params, options, perturbation=LEAP, seed=9)
    train(optimizer, 2)
    saved = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params]))
    train(optimizer, 2, start=2)

    again = [p.clone().requires_grad_() for p in saved[1]]
    resumed = make(optim, name, again, options, perturbation=LEAP, seed=9)
    train(resumed, 1)  # a plan exists when the state is replaced
    for p, value in zip(again, saved[1], strict=True):
        p.data.copy_(value)
    resumed.load_state_dict(saved[0])
    train(resumed, 2, start=2)
    assert all(map(torch.equal, params, again))
    assert resumed.fallback is None


@on_kernels
def test_a_checkpoint_of_torch_goes_on_here():
    theirs = parameters()
    one = torch.optim.AdamW(theirs, lr=0.01)
    train(one, 2)
    ours = [p.detach().clone().requires_grad_() for p in theirs]
    two = optim.AdamW(ours, lr=0.01, perturbation=flatwise.Perturbation(flatwise.Bernoulli(1 - 2**-32)))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    train(one, 2, start=2)
    train(two, 2, start=2)
    assert two.fallback is None
    assert_states_alike(one, two)
    for p, q in zip(theirs, ours, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)


@on_kernels
def test_step_counters_that_a_kernel_cannot_read_are_sent_to_it():
    """On a GPU torch keeps them on the CPU; here they are float64, as the default dtype asks. They are its own."""
    found = []
    for dtype in (torch.float32, torch.float64):
        params = parameters()
        torch.set_default_dtype(dtype)
        try:
            optimizer = optim.Adam(params, lr=0.01, perturbation=LEAP)
            train(optimizer, 1)
            counter = optimizer.state[params[0]]["step"]
            assert (counter.dtype, counter.device.type) == (dtype, "cpu")
            counter.fill_(7)  # in place, as a distributed checkpoint is loaded
            train(optimizer, 1, start=1)
        finally:
            torch.set_default_dtype(torch.float32)
        assert optimizer.fallback is None
        assert counter == 8
        found.append(params)
    assert all(map(torch.equal, *found))


@on_kernels
def test_a_rate_on_the_device_and_coarser_noise(monkeypatch):
    noise = [flatwise.ralr(p=1.0, low=2.0, high=3.0), LEAP]
    ours, theirs = parameters(), parameters()
    two = optim.SGD(ours, lr=torch.tensor(0.01, device=DEVICE), perturbation=noise, steps_per_epoch=2)
    one = reference("SGD", theirs, {}, noise, steps_per_epoch=2)
    train(two, 2)
    train_by_torch(one, 2, monkeypatch)
    assert two.fallback is None
    assert two.param_groups[0]["lr"] == torch.tensor(0.01)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)


@on_kernels
def test_infinite_updates_of_masked_elements_leave_no_trace():
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1, perturbation=LRD)
    factor = optimizer.handle.factor(parameter=params[0])
    for p in params:
        p.grad = torch.full_like(p, torch.inf)
    optimizer.step()
    assert torch.equal(params[0].isinf(), factor == 1)


@on_kernels
def test_a_gradient_that_is_not_contiguous_is_read_in_order():
    param, other = (torch.zeros(30, 20, device=DEVICE).requires_grad_() for _ in range(2))
    gradient = torch.randn(20, 30, device=DEVICE).t()
    for p, g in ((param, gradient), (other, gradient.contiguous())):
        optimizer = optim.SGD([p], lr=0.1, perturbation=LEAP)
        p.grad = g
        optimizer.step()
        assert optimizer.fallback is None
    assert torch.equal(param, other)


@on_kernels
def test_only_what_has_changed_is_sent_again(monkeypatch):
    sent = []
    monkeypatch.setattr(gpu, "_send", lambda rows, *a, send=gpu._send: sent.append(rows.shape) or send(rows, *a))
    (param,) = parameters(shapes=[(64,)])
    optimizer = optim.Adam([param], lr=0.01, perturbation=LEAP)
    train(optimizer, 1)
    param.grad = torch.ones_like(param)
    sent.clear()
    optimizer.step()
    assert sent == [(1, forms.ROW_COLUMNS)]  # the gradient's address
    optimizer.step()
    assert sent == [(1, forms.ROW_COLUMNS)]


@on_kernels
def test_autograd_learns_of_the_write():
    param = torch.ones(3, device=DEVICE).requires_grad_()
    optimizer = optim.SGD([param], lr=0.1, momentum=0.9, perturbation=LEAP)
    loss = (param * param).sum()
    train(optimizer, 1)
    version = optimizer.state[param]["momentum_buffer"]._version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    train(optimizer, 1, start=1)
    assert optimizer.state[param]["momentum_buffer"]._version > version


def unsupported():
    yield "float64", {}, lambda p: p.double()
    yield "foreach=True", {"foreach": True}, lambda p: p
    yield "a setting other than the learning rate is a tensor", {"weight_decay": torch.tensor(0.1)}, lambda p: p
    yield "not contiguous", {}, lambda p: p.expand(2, 3, 4, 5).clone().to(memory_format=torch.channels_last)


@on_kernels
@pytest.mark.parametrize(("reason", "options", "change"), list(unsupported()), ids=lambda v: str(v)[:20])
def test_what_the_kernels_cannot_do_falls_back_visibly_and_rightly(reason, options, change):
    ours, theirs = ([change(torch.full((5,), 0.5, device=DEVICE)).detach().requires_grad_()] for _ in range(2))
    options = {"momentum": 0.9, **options}
    two = make(optim, "SGD", ours, options, perturbation=LEAP, seed=4)
    one = reference("SGD", theirs, options, LEAP, seed=4)
    with pytest.warns(UserWarning, match=reason):
        train(two, 1)
    train(two, 1, start=1)  # and says so once
    train(one, 2)
    assert reason in two.fallback
    assert torch.equal(ours[0], theirs[0])


@on_kernels
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("wrong", ["factor", "mask"])
def test_kernels_that_differ_from_torch_are_not_used(name, wrong, monkeypatch):
    """Both guards of the trial: values, and masks to the bit."""
    assert gpu.works(DEVICE)
    gpu._failure.cache_clear()
    right = gpu._factors

    def factors(*given):
        f = right(*given)
        return f * 1.01 if wrong == "factor" else f.index_fill(0, (f == 1).nonzero()[:1, 0], 0.0)

    monkeypatch.setattr(gpu, "_factors", factors)
    if wrong == "mask":  # the one element differs by less than the other guard would notice
        monkeypatch.setattr(torch, "finfo", lambda _: type("", (), {"eps": 1.0}))
    ours, theirs = parameters(), parameters()
    two, one = make(optim, name, ours, {}, perturbation=LRD), reference(name, theirs, {}, LRD)
    message = "differs from torch's" if wrong == "factor" else "moved an element whose factor is 0"
    with pytest.warns(UserWarning, match=f"failed a first trial.*{message}"):
        train(two, 1)
    train(one, 1)
    gpu._failure.cache_clear()
    assert message in two.fallback
    assert all(map(torch.equal, ours, theirs))


@on_kernels
def test_where_there_are_no_kernels_torch_serves(monkeypatch):
    backends = {"the kernels of triton": {DEVICE.type: "triton"}, "kernels for xpu": {"xpu": "triton"}}
    monkeypatch.setattr(backend, "load", lambda _: None)
    for reason, of in (
        (r"flatwise\[fast\]", backends["the kernels of triton"]),
        ("for xpu", backends["kernels for xpu"]),
    ):
        monkeypatch.setattr(backend, "BACKENDS", of)
        optimizer = optim.SGD(parameters(), lr=0.1, perturbation=LEAP)
        with pytest.warns(UserWarning, match=reason):
            train(optimizer, 1)


@on_gpu
def test_a_group_on_several_devices_is_not_fused():
    params = [torch.ones(3, device=device).requires_grad_() for device in ("cpu", DEVICE)]
    optimizer = optim.SGD(params, lr=0.1, perturbation=LEAP)
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="several devices: cpu, cuda:0"):
        optimizer.step()


@on_gpu
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_step_counters_are_where_torch_has_them(options):
    params = parameters()
    optimizer = optim.Adam(params, lr=0.01, perturbation=LEAP, **options)
    train(optimizer, 2)
    assert optimizer.fallback is None
    counter = optimizer.state[params[0]]["step"]
    assert counter.device.type == ("cuda" if options else "cpu")
    assert counter == 2


@on_gpu
def test_capture_is_refused():
    params = parameters()
    optimizer = optim.Adam(params, lr=0.01, capturable=True, perturbation=LEAP)
    train(optimizer, 2)
    with pytest.raises(RuntimeError, match="step outside the graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    assert optimizer.handle.step == 2
