"""CPU kernels of the fused optimizers, compiled by numba when first used: update and noise in one pass.

A kernel is a C function of one pointer to a *job*, like those of ``noise.cpu``, whose helpers it is built from: any
number of threads may call it with the same job, and each takes chunks until none is left. A job refers to two
tables: *rows*, one for each parameter, with the addresses of its tensors, and *chunks*, runs of at most
``CHUNK`` elements of one parameter. Only the rows' gradients and the job's numbers change from step to step.

The arithmetic is that of torch's single-tensor path, operation by operation and rounding by rounding, with the factor
in the rate. 16-bit numbers are calculated with in float32 and rounded when they are stored.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import carray, njit
from numba.extending import overload

from flatwise.noise import cpu
from flatwise.noise.cpu import (
    BERNOULLI,
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    NORMAL,
    STRIDE,
    UNIFORM,
    checksum,
    compiled,
    double_of,
    fma,
    normal,
    own_share,
    pointer,
    start,
    stored,
    take,
    wide,
    word,
)
from flatwise.noise.threads import JOB_HEAD
from flatwise.noise.vectorize import loop

u32, i32, f32, f64 = np.uint32, np.int32, np.float32, np.float64

CHUNK = 1 << 13

# One more kind of factor: a Normal one that can be neither 0 nor cut, which need not be tested for every element.
POSITIVE = 3

# The words of a job. The factor's parameters and the optimizer's numbers are float64.
CHUNKS, CHUNK_TABLE, ROWS, ROW_TABLE, SEED, TICK, STREAM, FACTOR, NUMBERS, JOB_WORDS = (
    JOB_HEAD + word for word in (0, 1, 2, 3, 4, 5, 6, 7, 10, 16)
)  # fmt: skip
# The columns of a chunk: row of its parameter, position of its first element in what is held here, length.
ROW, OFFSET, LENGTH, CHUNK_COLUMNS = range(4)
# The columns of a row: addresses of the parameter, its gradient, up to three states and the step counter; logical
# index of its first element, unit, whether its momentum starts now, and two float64 that ``count`` leaves.
PARAMETER, GRADIENT, STATE, COUNTER, FIRST, UNIT, FRESH, RATE, ROOT, ROW_COLUMNS = 0, 1, 2, 5, 6, 7, 8, 9, 10, 11

_source = checksum(*cpu.SOURCES, cpu.__file__)


@njit(inline="always")
def _factor(kind, w, a, b, c):
    """The factor that a word becomes, as ``distributions`` say; float32."""
    if kind == BERNOULLI:
        return f32(1) if w < u32(a) else f32(0)
    if kind == UNIFORM:
        return f32((f64(w) + 0.5) * 2.0**-32 * b + a)
    f = f32(f32(normal(w) * f32(b)) + f32(a))
    return f if kind == POSITIVE else max(f, f32(c))


@njit(inline="always")
def _lerp(start, end, weight, from_start):
    """``torch.lerp``, with the end that it starts from and the weight from there chosen before the loop."""
    return fma(weight, end - start, start if from_start else end)


@njit(inline="always")
def _lerp_weight(weight):
    """The last two arguments of ``_lerp`` for a weight of ``torch.lerp``."""
    from_start = abs(weight) < type(weight)(0.5)
    return (weight if from_start else weight - type(weight)(1)), from_start


@loop
def _sgd(
    param, grad, buffer, n, x0, k1, kind, a, b, c, rate, kept, undamped, ahead, decay,
    remembers, nesterov, decays, ascends,
):  # fmt: skip
    params, grads, buffers = carray(param, n), carray(grad, n), carray(buffer, n)
    x = x0
    for i in range(n):
        f = type(rate)(_factor(kind, word(x, k1), a, b, c))
        x = u32(x + STRIDE)
        was = params[i]
        p, g = wide(was), wide(grads[i])
        if ascends:
            g = -g
        if decays:
            g = fma(p, decay, g)
        if remembers:
            m = fma(g, undamped, wide(buffers[i]) * kept)
            buffers[i] = stored(m, was)
            g = fma(m, ahead, g) if nesterov else m
        moved = stored(fma(g, rate * f, p), was)
        params[i] = was if kind != POSITIVE and f == 0 else moved


@loop
def _adam(
    param, grad, average, square, peak, n, x0, k1, kind, a, b, c, rate, root, rest1, beta2, rest2, eps, decay, shrink,
    amsgrad, decays, decoupled, ascends,
):  # fmt: skip
    params, grads, averages, squares, peaks = (
        carray(param, n), carray(grad, n), carray(average, n), carray(square, n), carray(peak, n),
    )  # fmt: skip
    one = type(rate)(1)
    weight, from_start = _lerp_weight(rest1)
    x = x0
    for i in range(n):
        f = type(rate)(_factor(kind, word(x, k1), a, b, c))
        x = u32(x + STRIDE)
        was = params[i]
        p, g = wide(was), wide(grads[i])
        if ascends:
            g = -g
        if decays:
            if decoupled:
                p = p * (shrink - (f - one) * decay)  # 1 − decay · f, with the bits of torch's 1 − decay where f is 1
            else:
                g = fma(p, decay, g)
        m = _lerp(wide(averages[i]), g, weight, from_start)
        averages[i] = stored(m, was)
        v = fma(rest2 * g, g, wide(squares[i]) * beta2)
        squares[i] = stored(v, was)
        if amsgrad:
            high = wide(peaks[i])
            v = v if v > high or v != v else high  # a NaN stays, as torch.maximum keeps it
            peaks[i] = stored(v, was)
        moved = stored(p + (rate * f * m) / (math.sqrt(v) / root + eps), was)
        params[i] = was if kind != POSITIVE and f == 0 else moved


@loop
def _rmsprop(
    param, grad, square, buffer, average, n, x0, k1, kind, a, b, c, rate, alpha, rest, eps, momentum, decay,
    remembers, centered, decays, ascends,
):  # fmt: skip
    params, grads, squares, buffers, averages = (
        carray(param, n), carray(grad, n), carray(square, n), carray(buffer, n), carray(average, n),
    )  # fmt: skip
    mean_rest, from_start = _lerp_weight(rest)
    x = x0
    for i in range(n):
        f = type(rate)(_factor(kind, word(x, k1), a, b, c))
        x = u32(x + STRIDE)
        was = params[i]
        p, g = wide(was), wide(grads[i])
        if ascends:
            g = -g
        if decays:
            g = fma(p, decay, g)
        v = fma(rest * g, g, wide(squares[i]) * alpha)
        squares[i] = stored(v, was)
        if centered:
            mean = _lerp(wide(averages[i]), g, mean_rest, from_start)
            averages[i] = stored(mean, was)
            v = fma(-mean, mean, v)
        scale = math.sqrt(v) + eps
        if remembers:
            m = wide(buffers[i]) * momentum + g / scale
            buffers[i] = stored(m, was)
            moved = stored(fma(m, rate * f, p), was)
        else:
            moved = stored(p + (rate * f * g) / scale, was)
        params[i] = was if kind != POSITIVE and f == 0 else moved


@njit(inline="always")
def _open(address, chunk_type):
    """The job's words as integers and as floating point, its chunks and its rows."""
    job = carray(address, JOB_WORDS, dtype=np.int64)
    numbers = carray(address, JOB_WORDS, dtype=np.float64)
    chunks = carray(pointer(job[CHUNK_TABLE], chunk_type), (job[CHUNKS], CHUNK_COLUMNS))
    rows = carray(pointer(job[ROW_TABLE], chunk_type), (job[ROWS], ROW_COLUMNS))
    return job, numbers, chunks, rows


@njit(inline="always")
def _start(row, chunk, job):
    """(x0, k1) of a chunk: what the hash of its first element starts from."""
    return start(job[SEED], job[TICK], job[STREAM], row[UNIT], row[FIRST] + chunk[OFFSET])


def _at(row, column, chunk, like):
    """Where a chunk begins in the tensor of a row's column, as a pointer to numbers of ``like``'s type."""


@overload(_at, inline="always")
def _(row, column, chunk, like):
    size = like.bitwidth // 8
    return lambda row, column, chunk, like: pointer(row[column] + chunk[OFFSET] * size, like)


KINDS = {"positive": POSITIVE, "normal": NORMAL, "bernoulli": BERNOULLI, "uniform": UNIFORM}

_WIDE = {FLOAT32: f32, FLOAT64: f64, BFLOAT16: f32}


@cache
def sgd_kernel(kind: int, dtype: int, remembers: bool, nesterov: bool, decays: bool, ascends: bool) -> int:
    """Address of the kernel of SGD. Its numbers: lr, momentum, 1 − dampening, weight decay; its state: the momentum.

    Args:
        kind: kind of factor, as in ``noise.cpu``.
        dtype: kind of parameter, likewise.
        remembers: whether there is momentum.
        nesterov: whether it looks ahead.
        decays: whether there is weight decay.
        ascends: whether it maximizes.

    Returns:
        The address of a C function ``void (job *)``; compiled at the first call, then read from numba's cache.
    """
    like, T, source = cpu.STORED[dtype], _WIDE[dtype], _source

    @compiled(error_model="numpy")
    def sgd(address):
        built_from = source  # noqa: F841
        job, numbers, chunks, rows = _open(address, np.int64(0))
        own = own_share(job)
        while True:
            taken = take(job, own)
            if taken < 0:
                return
            chunk = chunks[taken]
            row = rows[chunk[ROW]]
            x0, k1 = _start(row, chunk, job)
            fresh = row[FRESH] != 0  # then the momentum becomes the gradient itself: 1 · g + 0 · −0
            _sgd(
                _at(row, PARAMETER, chunk, like), _at(row, GRADIENT, chunk, like), _at(row, STATE, chunk, like),
                i32(chunk[LENGTH]), x0, k1, kind, numbers[FACTOR], numbers[FACTOR + 1], numbers[FACTOR + 2],
                T(-numbers[NUMBERS]), T(0.0 if fresh else numbers[NUMBERS + 1]),
                T(1.0 if fresh else numbers[NUMBERS + 2]), T(numbers[NUMBERS + 1]), T(numbers[NUMBERS + 3]),
                remembers, nesterov, decays, ascends,
            )  # fmt: skip

    address: int = sgd.address
    return address


@cache
def adam_kernel(kind: int, dtype: int, amsgrad: bool, decays: bool, decoupled: bool, ascends: bool) -> int:
    """Address of the kernel of Adam and AdamW. Its numbers: lr, beta1, beta2, eps, weight decay.

    Its states: the averages of gradient and squared gradient, and their peak. :func:`count` must have been called.

    Args:
        kind: kind of factor, as in ``noise.cpu``.
        dtype: kind of parameter, likewise.
        amsgrad: whether it divides by the peak.
        decays: whether there is weight decay.
        decoupled: whether that is AdamW's.
        ascends: whether it maximizes.

    Returns:
        As :func:`sgd_kernel`.
    """
    like, T, source = cpu.STORED[dtype], _WIDE[dtype], _source

    @compiled(error_model="numpy")
    def adam(address):
        built_from = source  # noqa: F841
        job, numbers, chunks, rows = _open(address, np.int64(0))
        own = own_share(job)
        while True:
            taken = take(job, own)
            if taken < 0:
                return
            chunk = chunks[taken]
            row = rows[chunk[ROW]]
            x0, k1 = _start(row, chunk, job)
            beta1, beta2 = numbers[NUMBERS + 1], numbers[NUMBERS + 2]
            decay = numbers[NUMBERS + 4]
            if decoupled:
                decay *= numbers[NUMBERS]
            _adam(
                _at(row, PARAMETER, chunk, like), _at(row, GRADIENT, chunk, like), _at(row, STATE, chunk, like),
                _at(row, STATE + 1, chunk, like), _at(row, STATE + 2, chunk, like), i32(chunk[LENGTH]), x0, k1,
                kind, numbers[FACTOR], numbers[FACTOR + 1], numbers[FACTOR + 2],
                T(double_of(row[RATE])), T(double_of(row[ROOT])), T(1.0 - beta1), T(beta2), T(1.0 - beta2),
                T(numbers[NUMBERS + 3]), T(decay), T(1.0 - decay), amsgrad, decays, decoupled, ascends,
            )  # fmt: skip

    address: int = adam.address
    return address


@cache
def rmsprop_kernel(kind: int, dtype: int, remembers: bool, centered: bool, decays: bool, ascends: bool) -> int:
    """Address of the kernel of RMSprop. Its numbers: lr, alpha, eps, momentum, weight decay.

    Its states: the average of the squared gradient, the momentum, the average of the gradient.

    Args:
        kind: kind of factor, as in ``noise.cpu``.
        dtype: kind of parameter, likewise.
        remembers: whether there is momentum.
        centered: whether it divides by the variance.
        decays: whether there is weight decay.
        ascends: whether it maximizes.

    Returns:
        As :func:`sgd_kernel`.
    """
    like, T, source = cpu.STORED[dtype], _WIDE[dtype], _source

    @compiled(error_model="numpy")
    def rmsprop(address):
        built_from = source  # noqa: F841
        job, numbers, chunks, rows = _open(address, np.int64(0))
        own = own_share(job)
        while True:
            taken = take(job, own)
            if taken < 0:
                return
            chunk = chunks[taken]
            row = rows[chunk[ROW]]
            x0, k1 = _start(row, chunk, job)
            alpha = numbers[NUMBERS + 1]
            _rmsprop(
                _at(row, PARAMETER, chunk, like), _at(row, GRADIENT, chunk, like), _at(row, STATE, chunk, like),
                _at(row, STATE + 1, chunk, like), _at(row, STATE + 2, chunk, like), i32(chunk[LENGTH]), x0, k1,
                kind, numbers[FACTOR], numbers[FACTOR + 1], numbers[FACTOR + 2],
                T(-numbers[NUMBERS]), T(alpha), T(1.0 - alpha), T(numbers[NUMBERS + 2]), T(numbers[NUMBERS + 3]),
                T(numbers[NUMBERS + 4]), remembers, centered, decays, ascends,
            )  # fmt: skip

    address: int = rmsprop.address
    return address


@cache
def count_kernel() -> int:
    """Address of the function that adds 1 to the step counters of a job's rows (0-d float32), for one thread.

    For Adam it also leaves in each row the rate ``−lr / (1 − beta1**step)`` and the root ``√(1 − beta2**step)``,
    from the job's numbers lr, beta1 and beta2; calculated in float64, as torch does.
    """
    source = _source

    @compiled(error_model="numpy")
    def count(address):
        built_from = source  # noqa: F841
        job, numbers, _, rows = _open(address, np.int64(0))
        results = carray(pointer(job[ROW_TABLE], f64(0)), (job[ROWS], ROW_COLUMNS))
        lr, beta1, beta2 = numbers[NUMBERS], numbers[NUMBERS + 1], numbers[NUMBERS + 2]
        for i in range(job[ROWS]):
            counter = carray(pointer(rows[i, COUNTER], f32(0)), 1)
            counter[0] += f32(1)
            step = f64(counter[0])
            results[i, RATE] = -(lr / (1.0 - beta1**step))
            results[i, ROOT] = math.sqrt(1.0 - beta2**step)

    address: int = count.address
    return address
