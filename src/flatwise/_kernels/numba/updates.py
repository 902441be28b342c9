"""The fused optimizers' updates: update and noise in one pass.

The arithmetic is that of torch's single-tensor path, operation by operation and rounding by rounding, with the factor
in the rate. 16-bit numbers are calculated with in float32 and rounded when they are stored.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numba import carray, njit

from flatwise._kernels import forms
from flatwise._kernels.numba.blend import (
    FACTOR,
    NUMBERS,
    ROW_TABLE,
    ROWS,
    STORED,
    STRIDE,
    at,
    double_of,
    factor,
    fma,
    open_job,
    own_share,
    pointer,
    start,
    stored,
    take,
    wide,
    word,
)
from flatwise._kernels.numba.runtime import SOURCE, compiled, loop

u32, i32, f32, f64 = np.uint32, np.int32, np.float32, np.float64

_WIDE = {torch.float32: f32, torch.float64: f64, torch.bfloat16: f32}


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
        f = type(rate)(factor(kind, word(x, k1), a, b, c))
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
        params[i] = was if kind != forms.POSITIVE and f == 0 else moved


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
        f = type(rate)(factor(kind, word(x, k1), a, b, c))
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
        params[i] = was if kind != forms.POSITIVE and f == 0 else moved


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
        f = type(rate)(factor(kind, word(x, k1), a, b, c))
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
        params[i] = was if kind != forms.POSITIVE and f == 0 else moved


@cache
def update_kernel(optimizer: int, kind: int, dtype: torch.dtype, options: tuple[bool, ...]) -> int:
    """Address of the kernel of an optimizer, in terms of ``forms``. For Adam, :func:`count_kernel` must have run.

    Args:
        optimizer: ``SGD``, ``ADAM`` or ``RMSPROP``.
        kind: of factor.
        dtype: one of ``STORED``.
        options: the optimizer's.

    Returns:
        The address of a C function ``void (job *)``; compiled at the first call, then read from numba's cache.
    """
    like, T, source = STORED[dtype], _WIDE[dtype], SOURCE
    first, second, third, fourth = options
    is_sgd, is_adam = optimizer == forms.SGD, optimizer == forms.ADAM

    @compiled
    def kernel(address):
        built_from = source  # noqa: F841
        job, numbers, chunks, rows = open_job(address)
        a, b, c = numbers[FACTOR], numbers[FACTOR + 1], numbers[FACTOR + 2]
        lr = numbers[NUMBERS]
        own = own_share(job)
        while True:
            taken = take(job, own)
            if taken < 0:
                return
            chunk = chunks[taken]
            row = rows[chunk[forms.ROW]]
            x0, k1 = start(job, row, chunk)
            n = i32(chunk[forms.LENGTH])
            param, grad = at(row, forms.PARAMETER, chunk, like), at(row, forms.GRADIENT, chunk, like)
            one, two = at(row, forms.STATE, chunk, like), at(row, forms.STATE + 1, chunk, like)
            three = at(row, forms.STATE + 2, chunk, like)
            if is_sgd:
                momentum, undamped, decay = numbers[NUMBERS + 1], numbers[NUMBERS + 2], numbers[NUMBERS + 3]
                is_fresh = row[forms.FRESH] != 0  # then the momentum becomes the gradient itself: 1 · g + 0 · −0
                _sgd(
                    param, grad, one, n, x0, k1, kind, a, b, c,
                    T(-lr), T(0.0 if is_fresh else momentum), T(1.0 if is_fresh else undamped), T(momentum), T(decay),
                    first, second, third, fourth,
                )  # fmt: skip
            elif is_adam:
                beta1, beta2, eps = numbers[NUMBERS + 1], numbers[NUMBERS + 2], numbers[NUMBERS + 3]
                decay = numbers[NUMBERS + 4] * lr if third else numbers[NUMBERS + 4]
                rate, root = double_of(row[forms.RATE]), double_of(row[forms.ROOT])
                _adam(
                    param, grad, one, two, three, n, x0, k1, kind, a, b, c,
                    T(rate), T(root), T(1.0 - beta1), T(beta2), T(1.0 - beta2), T(eps), T(decay), T(1.0 - decay),
                    first, second, third, fourth,
                )  # fmt: skip
            else:
                alpha, eps = numbers[NUMBERS + 1], numbers[NUMBERS + 2]
                momentum, decay = numbers[NUMBERS + 3], numbers[NUMBERS + 4]
                _rmsprop(
                    param, grad, one, two, three, n, x0, k1, kind, a, b, c,
                    T(-lr), T(alpha), T(1.0 - alpha), T(eps), T(momentum), T(decay),
                    first, second, third, fourth,
                )  # fmt: skip

    address: int = kernel.address
    return address


@cache
def count_kernel() -> int:
    """Address of the function that adds 1 to the steps of a job's rows (0-d float32), for one thread.

    For Adam it also leaves in each row the rate ``−lr / (1 − beta1**step)`` and the root ``√(1 − beta2**step)``,
    from the job's numbers lr, beta1 and beta2; calculated in float64, as torch does.
    """
    source = SOURCE

    @compiled
    def kernel(address):
        built_from = source  # noqa: F841
        job, numbers, _, rows = open_job(address)
        results = carray(pointer(job[ROW_TABLE], f64(0)), (job[ROWS], forms.ROW_COLUMNS))
        lr, beta1, beta2 = numbers[NUMBERS], numbers[NUMBERS + 1], numbers[NUMBERS + 2]
        for i in range(job[ROWS]):
            counter = carray(pointer(rows[i, forms.STEP], f32(0)), 1)
            counter[0] += f32(1)
            step = f64(counter[0])
            results[i, forms.RATE] = -(lr / (1.0 - beta1**step))
            results[i, forms.ROOT] = math.sqrt(1.0 - beta2**step)

    address: int = kernel.address
    return address
