"""The Triton kernels against the reference, bit for bit.

Without a GPU the tests of kernels run in a second process, under Triton's interpreter, on CPU tensors; with one they
run here, on the GPU. Triton's interpreter computes ``tl.fma`` with one rounding, as hardware does. The reference rounds
a float64 sum instead, which gives another last bit about once in 2**29 operations, and for none of the words below.
"""

import os
import re
from collections import Counter

import numpy as np
import pytest
import torch

import flatwise
from flatwise._attach.factors import blend, draws
from flatwise._kernels import backend, forms
from flatwise._kernels.backend import Blender, can_blend
from flatwise._kernels.forms import KernelForm, Piece, Update
from flatwise._noise import keys, reference
from flatwise._noise.keys import SEGMENT
from interpreter import run_interpreted

triton = pytest.importorskip("triton", reason="triton is not installed")

import triton.language as tl  # noqa: E402

from flatwise._kernels.triton import backend as gpu  # noqa: E402
from flatwise._kernels.triton import blend as kernels  # noqa: E402
from flatwise._kernels.triton import updates  # noqa: E402

normal, uniform, word, key = kernels.normal, kernels.uniform, kernels.word, kernels.key

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")

CHUNK = 2048 if INTERPRETED else forms.CHUNK  # the interpreter is slow

on_kernels = pytest.mark.skipif(
    not (GPU or INTERPRETED), reason="no CUDA device; test_under_the_interpreter runs this test on the CPU"
)
on_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device, and the interpreter cannot stand in for it")
compiled = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")

SEED, COUNTER, STREAM, ID = 2**63 + 5, 2**33 + 77, 3, 2**64 - 59
FACTORS = {
    "normal": flatwise.Normal(1.0, 0.3),
    "normal, wide and cut": flatwise.Normal(1.0, 2.0, minimum=0.0),
    "bernoulli": flatwise.Bernoulli(0.4),
    "uniform": flatwise.Uniform(0.0, 3.0),
}
BITS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


@pytest.mark.skipif(INTERPRETED or GPU, reason="the tests of kernels run in this process")
def test_under_the_interpreter():
    run_interpreted(__file__, at_least=100)


@pytest.fixture(autouse=True)
def _triton_serves_the_device(monkeypatch):
    if INTERPRETED:
        monkeypatch.setitem(backend.BACKENDS, "cpu", "triton")
        monkeypatch.setattr(forms, "CHUNK", CHUNK)
    with np.errstate(all="ignore"):  # the interpreter computes with numpy, which warns of every infinity
        yield


def bits(tensor):
    return tensor.reshape(-1).view(BITS[tensor.dtype])


def tensors(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(shape, generator=generator).to(dtype)
    new = old + (0.1 * torch.randn(shape, generator=generator)).to(dtype)
    if new.numel() > 8:  # elements that the optimizer did not move, and numbers too small for full precision
        new.view(-1)[1:4] = old.view(-1)[1:4] = torch.tensor([0.5, -0.0, torch.inf])
        smallest = torch.finfo(dtype).smallest_normal
        old.view(-1)[4:8] = torch.tensor([smallest, smallest / 2, -smallest / 4, 0.0], dtype=dtype)
        new.view(-1)[4:8] = torch.tensor([smallest / 2, -smallest / 2, smallest, smallest / 8], dtype=dtype)
    return old.to(DEVICE), new.to(DEVICE)


def factors(distribution, start, count, counter=COUNTER, unit=ID, stream=STREAM):
    """By the reference, on the CPU; float32."""
    draw = draws(flatwise.Perturbation(distribution), SEED, counter, stream, [unit])[0]
    parts = [draw.run(start + at, length, torch.device("cpu")) for at, length in reference.runs(start, count)]
    return torch.cat([torch.empty(0), *parts])


def blended(old, new, factor):
    """By the reference, on the CPU."""
    return blend(old.cpu(), new.cpu(), factor.view(old.shape))


# Words and what is made of them


def probe(words=None, index=None):
    """What the device functions make of words, or of indices: a dict of CPU tensors."""
    count = len(words if words is not None else index)
    source = (words if words is not None else index).to(DEVICE)
    made = {"word": torch.int32, "normal": torch.float32, "uniform": torch.float64}
    out = {name: torch.empty(count, dtype=dtype, device=DEVICE) for name, dtype in made.items()}
    k0, k1 = 0xDEADBEEF, 0x12345678
    key = torch.tensor([k0, k1], dtype=torch.int64, device=DEVICE)
    probe_kernel[(triton.cdiv(count, 1024),)](
        source, key, *out.values(), count, GIVEN=words is not None, BLOCK=1024, **kernels.EXACT
    )
    return {name: tensor.cpu() for name, tensor in out.items()}


@triton.jit
def probe_kernel(source, k, words, normals, uniforms, count, GIVEN: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    w = tl.load(source + at, mask=mask, other=0).to(tl.uint32, bitcast=True)
    if not GIVEN:
        w = word(w, tl.load(k).to(tl.uint32), tl.load(k + 1).to(tl.uint32))
    tl.store(words + at, w.to(tl.int32, bitcast=True), mask=mask)
    tl.store(normals + at, normal(w), mask=mask)
    tl.store(uniforms + at, uniform(w), mask=mask)


@triton.jit
def key_kernel(arguments, out):
    row = arguments + tl.program_id(0) * 5
    seed, counter = tl.load(row), tl.load(row + 1)
    seed0, seed1, counter0, counter1 = seed.to(tl.int32), seed >> 32, counter.to(tl.int32), counter >> 32
    k0, k1 = key(seed0, seed1, counter0, counter1, tl.load(row + 2), tl.load(row + 3), tl.load(row + 4))
    tl.store(out + tl.program_id(0) * 2, k0.to(tl.int64))
    tl.store(out + tl.program_id(0) * 2 + 1, k1.to(tl.int64))


@on_kernels
def test_words():
    index = torch.cat([torch.arange(5000), torch.tensor([1000003, SEGMENT - 1])]).int()
    made = probe(index=index)["word"]
    assert torch.equal(made, reference.words(index, (0xDEADBEEF, 0x12345678)))
    assert f"{made[0] & 0xFFFFFFFF:08X} {made[1] & 0xFFFFFFFF:08X} {made[5000] & 0xFFFFFFFF:08X}" == (
        "4A9C2A94 199237A7 14D0559A"
    )


def awkward_words():
    """Many words, with all powers of two and their neighbours, where the logarithm changes its exponent."""
    powers = [(1 << p) + d for p in range(32) for d in (-2, -1, 0, 1, 2)]
    some = np.array([w & 0xFFFFFFFF for w in powers], dtype=np.uint32)
    many = np.random.default_rng(0).integers(0, 1 << 32, 60_000, dtype=np.uint32)
    return torch.from_numpy(np.concatenate([some, many]).view(np.int32))


@on_kernels
def test_normals_have_the_references_bits():
    words = awkward_words()
    assert torch.equal(bits(probe(words=words)["normal"]), bits(reference.normal(words)))


@on_kernels
def test_uniforms_have_the_references_bits():
    words = awkward_words()
    assert torch.equal(bits(probe(words=words)["uniform"]), bits(reference.uniform(words)))


@on_kernels
def test_keys():
    rows = [
        (0, 0, 0, 0, 0),
        (SEED, COUNTER, STREAM, ID, 5),
        (2**64 - 1, 2**40 - 1, 2**8 - 1, 2**64 - 1, 2**16 - 1),
        (1, 2**32, 128, 2**32, 2**15),
        (2**32, 2**32 - 1, 1, 2**32 - 1, 0),
    ]
    arguments = torch.from_numpy(np.array(rows, dtype=np.uint64).view(np.int64)).to(DEVICE)
    out = torch.empty(len(rows), 2, dtype=torch.int64, device=DEVICE)
    key_kernel[(len(rows),)](arguments, out, **kernels.EXACT)
    for (seed, counter, stream, unit, segment), made in zip(rows, out.tolist(), strict=True):
        assert made == keys.derive_keys(seed, counter, stream, [unit], segment)[0].tolist()


@on_kernels
@pytest.mark.parametrize("threshold", [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32])
def test_bernoulli_masks(threshold):
    """Bit for bit, to the ends: a threshold of 2**32 keeps every element, one of 0 none."""
    old, new = torch.zeros(5000, device=DEVICE), torch.ones(5000, device=DEVICE)
    Blender(KernelForm("bernoulli", (float(threshold),)), STREAM).blend([Piece(new, old, 0, ID)], SEED, COUNTER)
    k0, k1 = keys.derive_keys(SEED, COUNTER, STREAM, [ID])[0].tolist()
    words = reference.words(torch.arange(5000, dtype=torch.int32), (k0, k1))
    assert torch.equal(new.cpu() == 1, reference.below(words, threshold))


# The blend


@on_kernels
@pytest.mark.parametrize(
    ("shape", "start"),
    [
        ((), 0),
        ((0,), 0),
        ((7,), 2**33 + 17),
        ((30, 41), SEGMENT - 500),
        ((CHUNK + 30,), 2**33 + 2**28 - 4),
    ],
)
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("name", FACTORS)
def test_blend_has_the_references_bits(name, dtype, shape, start):
    old, new = tensors(shape, dtype)
    plain = new.clone()
    expected = blended(old, new, factors(FACTORS[name], start, new.numel()))
    Blender(FACTORS[name].kernel_form, STREAM).blend([Piece(new, old, start, ID)], SEED, COUNTER)
    assert torch.equal(bits(new.cpu()), bits(expected))
    if new.numel() > 100:
        assert not torch.equal(new, plain)


@on_kernels
def test_rounding_to_16_bits_is_to_nearest_even():
    """All kinds of bits behind the cut, ties among them: what a truncation would get wrong."""
    old = torch.linspace(-3, 3, 4001).to(torch.bfloat16).to(DEVICE)
    new = (old.float() * 1.7 + 0.01).to(torch.bfloat16)
    expected = blended(old, new, factors(flatwise.Uniform(0, 1), 0, 4001))
    truncated = blend(old.cpu().float(), new.cpu().float(), factors(flatwise.Uniform(0, 1), 0, 4001)).view(torch.int32)
    assert not torch.equal(expected.view(torch.int16), (truncated >> 16).short())
    Blender(flatwise.Uniform(0, 1).kernel_form, STREAM).blend([Piece(new, old, 0, ID)], SEED, COUNTER)
    assert torch.equal(bits(new.cpu()), bits(expected))


@on_kernels
def test_many_tensors_again_and_again():
    """Tensors of several dtypes, one of them at an odd address; later counters use what the first prepared."""
    kinds = [((40, 50), torch.float32), ((3,), torch.float32), ((70,), torch.bfloat16), ((), torch.float64)]
    olds, news = map(list, zip(*(tensors(shape, dtype) for shape, dtype in kinds), strict=True))
    base = tensors((101,), torch.float32)
    olds.append(base[0][1:])
    news.append(base[1][1:])
    assert news[-1].data_ptr() % gpu.ALIGNMENT
    pieces = [Piece(new, old, 0, ID + i) for i, (old, new) in enumerate(zip(olds, news, strict=True))]
    own = Blender(FACTORS["normal"].kernel_form, STREAM)
    blends = []
    for counter in (5, 2**32 - 1, 2**32, 2**35):
        befores = [new.clone() for new in news]
        own.blend(pieces, SEED, counter)
        for i, (old, before, new) in enumerate(zip(olds, befores, news, strict=True)):
            expected = blended(old, before, factors(FACTORS["normal"], 0, new.numel(), counter, ID + i))
            assert torch.equal(bits(new.cpu()), bits(expected))
        blends.append(own._blends)
    assert all(blend is blends[0] for blend in blends)
    assert len(blends[0][0]._launches._launches) == 4  # three dtypes, and the odd address


def train(perturbation, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((50, 40), (40,), (), (4, 3, 5, 5))
    parameters = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes]
    parameters[-1] = parameters[-1].to(memory_format=torch.channels_last)
    parameters = [parameter.requires_grad_() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    flatwise.perturb(optimizer, perturbation, seed=SEED)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype).to(DEVICE)
        optimizer.step()
    return parameters


@on_kernels
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("method", [flatwise.leap(0.3), flatwise.lr_dropout(0.4)], ids=["leap", "lr_dropout"])
def test_training_is_the_same_with_and_without_kernels(method, dtype, monkeypatch):
    launched = []
    assert gpu.works(DEVICE)
    monkeypatch.setattr(gpu.Blend, "run", lambda *a, run=gpu.Blend.run: launched.append(1) or run(*a))
    fast = train(method, dtype)
    assert len(launched) == 2
    monkeypatch.setattr(backend, "BACKENDS", {})
    slow = train(method, dtype)
    assert len(launched) == 2
    assert all(torch.equal(bits(one), bits(two)) for one, two in zip(fast, slow, strict=True))


@on_kernels
def test_kernels_that_differ_from_the_reference_are_not_used(monkeypatch):
    gpu.works.cache_clear()
    monkeypatch.setattr(reference, "normal", lambda words: torch.zeros(words.shape, device=words.device))
    with pytest.warns(UserWarning, match="a normal factor differs from the reference"):
        assert not gpu.works(DEVICE)
    gpu.works.cache_clear()


@on_kernels
def test_where_kernels_cannot_run_the_reference_serves(monkeypatch):
    """A missing C compiler or an old GPU is told once, and training goes on."""

    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    old, new = tensors((5,), torch.float32)
    assert can_blend(new, old)
    gpu.works.cache_clear()
    monkeypatch.setattr(gpu.Blend, "run", fail)
    with pytest.warns(UserWarning, match="slower torch operations.*Failed to find C compiler"):
        assert not can_blend(new, old)
    assert not can_blend(new, old)
    gpu.works.cache_clear()


def test_chunks():
    sizes, starts = [CHUNK + 1, 0, 5, 2 * SEGMENT], [0, 0, SEGMENT - 2, 8]
    table = forms.chunks_of(sizes, starts)
    for tensor, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        rows = table[table[:, 0] == tensor]
        offsets, lengths = rows[:, 1], rows[:, 2]
        assert lengths.sum() == size
        assert (np.cumsum(lengths) == np.append(offsets[1:], size)[: len(rows)]).all()  # without gaps
        assert (lengths > 0).all()
        assert (lengths <= CHUNK).all()
        assert ((start + offsets) // SEGMENT == (start + offsets + lengths - 1) // SEGMENT).all()
    assert len(table[table[:, 0] == 2]) == 2


# Fused steps. A second implementation, operation by operation in float32


def root(x):
    return x.double().sqrt().float()  # torch's own float32 root is not always rounded to nearest


def number(x):
    return torch.tensor(x, dtype=torch.float32)


def sgd(p, g, states, f, step, o):
    lr, momentum, decay = (number(o.get(k, 0.0)) for k in ("lr", "momentum", "weight_decay"))
    g = -g if o.get("maximize") else g
    g = g + decay * p if decay else g
    if momentum:
        b = g if step == 1 else momentum * states[0] + number(1 - o.get("dampening", 0.0)) * g
        states[0] = b
        g = g + momentum * b if o.get("nesterov") else b
    return p - lr * f * g


def adam(p, g, states, f, step, o):
    lr, decay, eps = (number(o.get(k, d)) for k, d in (("lr", 0), ("weight_decay", 0.0), ("eps", 1e-8)))
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    g = -g if o.get("maximize") else g
    if decay:
        p, g = (p - lr * f * decay * p, g) if o.get("decoupled") else (p, g + decay * p)
    states[0] = number(beta1) * states[0] + number(1 - beta1) * g
    states[1] = v = number(beta2) * states[1] + number(1 - beta2) * g * g
    if o.get("amsgrad"):
        states[2] = v = torch.maximum(states[2], v)
    denominator = root(v) / root(number(1 - beta2**step)) + eps
    return p - lr / number(1 - beta1**step) * f * states[0] / denominator


def rmsprop(p, g, states, f, step, o):
    lr, decay, momentum = (number(o.get(k, 0.0)) for k in ("lr", "weight_decay", "momentum"))
    alpha = o.get("alpha", 0.99)
    g = -g if o.get("maximize") else g
    g = g + decay * p if decay else g
    states[0] = v = number(alpha) * states[0] + number(1 - alpha) * g * g
    if o.get("centered"):
        states[-1] = a = states[-1] + number(1 - alpha) * (g - states[-1])
        v = v - a * a
    g = g / (root(v) + number(o.get("eps", 1e-8)))
    if momentum:
        g = states[1] = momentum * states[1] + g
    return p - lr * f * g


OPTIMIZERS = {
    "sgd": (sgd, torch.optim.SGD, {"lr": 0.1}),
    "sgd, momentum": (sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd, nesterov": (sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "sgd, dampening": (sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "adam": (adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "adam, amsgrad": (adam, torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "maximize": True, "betas": (0.0, 0.95)}),
    "adamw": (adam, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "decoupled": True}),
    "rmsprop": (rmsprop, torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.01, "maximize": True}),
    "rmsprop, centered": (rmsprop, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
}
SHAPES = [(30, 41), (), (0,), (7,), (1024,)]
ALWAYS_ONE = flatwise.Normal(1.0, 0.0)
STEPS = 2


def state_count(step_of, o):
    if step_of is sgd:
        return 1 if o.get("momentum") else 0
    if step_of is adam:
        return 3 if o.get("amsgrad") else 2
    return 1 + bool(o.get("momentum")) + bool(o.get("centered"))


def settings(step_of, o):
    """Name, options and numbers of the kernel."""
    lr, momentum, decay, maximize = (o.get(key, 0.0) for key in ("lr", "momentum", "weight_decay", "maximize"))
    eps = o.get("eps", 1e-8)
    if step_of is sgd:
        options = (momentum != 0, o.get("nesterov", False), decay != 0, bool(maximize))
        return "sgd", options, (lr, momentum, 1 - o.get("dampening", 0.0), decay)
    if step_of is adam:
        options = (o.get("amsgrad", False), decay != 0, o.get("decoupled", False), bool(maximize))
        return "adam", options, (lr, *o.get("betas", (0.9, 0.999)), eps, decay)
    options = (momentum != 0, o.get("centered", False), decay != 0, bool(maximize))
    return "rmsprop", options, (lr, o.get("alpha", 0.99), eps, momentum, decay)


def run_fused(name, dtype, form, starts, state_dtype=torch.float32, lr_on_device=False):
    """The parameters before and after each fused step, and the states at the end."""
    step_of, _, given = OPTIMIZERS[name]
    optimizer, options, numbers = settings(step_of, given)
    if lr_on_device:
        numbers = (torch.tensor(numbers[0], device=DEVICE), *numbers[1:])
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in SHAPES]
    states = [[torch.zeros_like(p, dtype=state_dtype) for p in params] for _ in range(state_count(step_of, given))]
    columns = list(states)
    if step_of is rmsprop and not given.get("momentum"):
        columns.insert(1, [])
    steps = [torch.zeros((), device=DEVICE) for _ in params] if step_of is adam else []
    fresh = [step_of is sgd] * len(params)
    ids = [ID - i for i in range(len(params))]
    update = Update(params, params, tuple(columns), steps, "", options, numbers, fresh, starts, ids)
    group = gpu.Step(update, optimizer, form, STREAM)
    track, gradients = [[p.clone() for p in params]], []
    for step in range(1, STEPS + 1):
        grads = [torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in SHAPES]
        gradients.append(grads)
        group.run(grads, numbers, SEED, COUNTER + step)
        track.append([p.clone() for p in params])
    return track, gradients, states


def check_against_the_second_implementation(name, dtype, distribution, **how):
    starts = [SEGMENT - 500, 0, 0, 2**33 + 17, 16]
    track, gradients, states = run_fused(name, dtype, distribution.kernel_form, starts, **how)
    step_of, _, options = OPTIMIZERS[name]
    state_dtype = how.get("state_dtype", torch.float32)
    for i, shape in enumerate(SHAPES):
        own = [torch.zeros(shape) for _ in states]
        for step in range(1, STEPS + 1):
            before, grad, after = track[step - 1][i].cpu(), gradients[step - 1][i].cpu().float(), track[step][i].cpu()
            f = factors(distribution, starts[i], before.numel(), COUNTER + step, ID - i).view(shape)
            moved = step_of(before.float(), grad, own, f, step, options).to(dtype)
            assert torch.equal(bits(after), bits(torch.where(f == 0, before, moved)))
            own = [state.to(state_dtype).float() for state in own]
        for state, expected in zip(states, own, strict=True):
            assert torch.equal(state[i].cpu().float(), expected)


@on_kernels
@pytest.mark.parametrize("method", [ALWAYS_ONE, flatwise.Normal(1.0, 0.3), flatwise.Bernoulli(0.5)], ids=repr)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_steps_bit_for_bit(name, method):
    check_against_the_second_implementation(name, torch.float32, method)


@on_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sgd, momentum", "adamw", "rmsprop, centered"])
def test_fused_steps_of_16_bit_parameters(name, dtype):
    """float32 states, and the update scaled before it is rounded."""
    check_against_the_second_implementation(name, dtype, flatwise.Normal(1.0, 0.3))


@on_kernels
def test_fused_step_with_16_bit_states_and_a_rate_on_the_device():
    check_against_the_second_implementation(
        "adamw", torch.bfloat16, flatwise.Normal(1.0, 0.3), state_dtype=torch.bfloat16, lr_on_device=True
    )


@on_kernels
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plain_fused_steps_are_torchs(name):
    """Within 3 ulp a step, of the largest that a parameter or its update has been."""
    track, gradients, _ = run_fused(name, torch.float32, ALWAYS_ONE.kernel_form, [0] * len(SHAPES))
    _, optimizer_of, options = OPTIMIZERS[name]
    options = {k: v for k, v in options.items() if k != "decoupled"}
    params = [p.cpu().clone().requires_grad_() for p in track[0]]
    sizes = [torch.zeros(shape) for shape in SHAPES]
    optimizer = optimizer_of(params, foreach=False, **options)
    for step in range(1, STEPS + 1):
        before = [p.detach().clone() for p in params]
        for p, grad in zip(params, gradients[step - 1], strict=True):
            p.grad = grad.cpu()
        optimizer.step()
        for p, old, ours, size in zip(params, before, track[step], sizes, strict=True):
            new = p.detach()
            size.copy_(torch.stack([size, new.abs(), old.abs(), (new - old).abs()]).amax(0))
            ulp = torch.nextafter(size, torch.tensor(torch.inf)) - size
            assert ((new - ours.cpu()).abs() <= 3 * step * ulp).all()


def plain_sgd(p, grad):
    """The update of one parameter without momentum."""
    return Update([p], [grad], (), [], "", (False,) * 4, (0.1, 0.0, 1.0, 0.0), [False], [0], [ID])


@on_kernels
def test_an_infinite_update_does_not_touch_what_the_mask_keeps():
    p, grad = torch.ones(100, device=DEVICE), torch.full((100,), torch.inf, device=DEVICE)
    update, form = plain_sgd(p, grad), flatwise.Bernoulli(0.5).kernel_form
    gpu.Step(update, "sgd", form, STREAM).run([grad], update.numbers, SEED, COUNTER)
    kept = factors(flatwise.Bernoulli(0.5), 0, 100) == 0
    assert (p.cpu()[kept] == 1).all()
    assert (p.cpu()[~kept] == -torch.inf).all()


@on_kernels
def test_fused_steps_tell_autograd():
    p, grad = torch.ones(10, device=DEVICE), torch.ones(10, device=DEVICE)
    update, version = plain_sgd(p, grad), p._version
    gpu.Step(update, "sgd", ALWAYS_ONE.kernel_form, 0).run([grad], update.numbers, SEED, COUNTER)
    assert p._version == version + 1


@on_kernels
def test_fused_steps_refuse_what_they_do_not_know():
    p, form = torch.ones(2, 5, device=DEVICE), ALWAYS_ONE.kernel_form
    assert backend.objection(plain_sgd(p, p.clone()), "sgd", form) is None
    assert "float64" in backend.objection(plain_sgd(p.double(), p.double()), "sgd", form)
    assert "not contiguous" in backend.objection(plain_sgd(p.T, p.T.contiguous()), "sgd", form)
    short = plain_sgd(p, p.clone())._replace(
        states=([torch.ones(5, device=DEVICE)],), options=(True, False, False, False)
    )
    assert "not shaped" in backend.objection(short, "sgd", form)


# What only a GPU can show


@on_gpu
def test_more_than_2_to_the_32_elements():
    count = 2**32 + 5000
    if torch.cuda.mem_get_info()[0] < 5 * count:
        pytest.skip("needs 21 GB of free GPU memory")
    old, new = (torch.full((count,), x, dtype=torch.bfloat16, device=DEVICE) for x in (0.0, 1.0))
    Blender(FACTORS["bernoulli"].kernel_form, STREAM).blend([Piece(new, old, 0, ID)], SEED, COUNTER)
    for start in (0, SEGMENT - 100, 2**31 - 100, 2**32 - 100, count - 5000):
        assert torch.equal(
            new[start : start + 5000].float().cpu(), factors(FACTORS["bernoulli"], start, 5000)[: count - start]
        )


# What the compiler makes of the kernels; it needs no GPU


def assembly(kernel, constants, capability, exact=True):
    """PTX of a kernel whose arguments are at aligned addresses."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"rows": "*i64", "chunks": "*i64", "numbers": "*fp64"}
    types = pointers | dict.fromkeys(("seed0", "seed1", "counter0", "counter1", "stream"), "i32")
    signature = {name: "constexpr" if name in constants else types.get(name, "fp32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in pointers}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {**kernels.EXACT, "num_warps": kernels.WARPS, "enable_fp_fusion": not exact}
    ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    return Counter(re.findall(r"^\s+(?:@!?%p\d+ )?([a-z]\w*(?:\.\w+)+)", ptx, re.MULTILINE))


COMMON = {"ALIGNED": True, "BLOCK": kernels.BLOCK, "KIND": forms.NORMAL}
STEP_FLAGS = {**gpu._NO_FLAGS, "LR_ON_DEVICE": False, "DECAY": True}
KERNELS = {
    "blend": {},
    "sgd": {**STEP_FLAGS, "OPTIMIZER": forms.SGD, "MOMENTUM": True, "NESTEROV": True},
    "adam": {**STEP_FLAGS, "OPTIMIZER": forms.ADAM, "DECOUPLED": True, "AMSGRAD": True},
    "rmsprop": {**STEP_FLAGS, "OPTIMIZER": forms.RMSPROP, "MOMENTUM": True, "CENTERED": True},
}


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_compiler_rounds_as_written(name, dtype, capability, monkeypatch, tmp_path):
    """Only the normals' 13 operations are fused, no root or quotient is approximate, and loads are 16 bytes wide."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    dtypes = {"fp32": tl.float32, "bf16": tl.bfloat16}
    kernel = kernels.blend_kernel if name == "blend" else updates.update_kernel
    constants = {**COMMON, **KERNELS[name], "DTYPE": dtypes[dtype]}
    if name != "blend":
        constants["STATE_DTYPE"] = tl.float32
    found = assembly(kernel, constants, capability)
    elements = 2 * kernels.BLOCK // (32 * kernels.WARPS)  # of a thread, with and without mask
    assert found["fma.rn.f32"] == 13 * elements
    del found["abs.ftz.f32"]  # in the exponential of Adam's bias correction, which tests a part of its float64 argument
    assert not [operation for operation in found if "approx" in operation or ".full" in operation or "ftz" in operation]
    assert found["sqrt.rn.f32"] >= elements
    assert sum(n for operation, n in found.items() if operation.startswith("ld.global.v4.b32")) >= 2
    if dtype == "bf16":
        assert [operation for operation in found if operation.startswith("cvt.rn.bf16")]


@compiled
def test_without_the_option_the_compiler_would_fuse(monkeypatch, tmp_path):
    """The guard of the test above: were ``EXACT`` dropped from a launch, bits would change."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {**COMMON, "DTYPE": tl.float32}
    exact, loose = (assembly(kernels.blend_kernel, constants, 90, exact)["fma.rn.f32"] for exact in (True, False))
    assert loose > exact
    assert kernels.EXACT["enable_fp_fusion"] is False
