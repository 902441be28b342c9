"""Fused optimizer steps for GPUs in Triton: one pass over parameters, gradients and states, factors drawn in registers.

The arithmetic is float32 whatever the tensors' dtypes are, in the order of torch's fused steps, and every operation
rounds once (see ``flatwise.noise.triton``): the results are the same bits on every device. The factor multiplies the
learning rate, before the parameter is rounded; an element whose factor is 0 keeps its bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flatwise.noise.triton import chunk_of, column, factor, key_of, load, narrow, store, widen, word


@triton.jit
def _rate(lr, LR_ON_DEVICE: tl.constexpr):
    """The learning rate, float32: an argument, or read from a tensor on the device."""
    if LR_ON_DEVICE:
        return tl.load(lr).to(tl.float32)
    else:
        return tl.cast(lr, tl.float32)


@triton.jit
def _moved(stored, parameter, f, DTYPE: tl.constexpr):
    """The parameter to be stored; as it was where the factor is 0, even where the update is infinite."""
    return tl.where(f == 0.0, stored, narrow(parameter, DTYPE))


@triton.jit
def _sgd_block(
    param,
    grad,
    buffer,
    at,
    length,
    x,
    k0,
    k1,
    numbers,
    rate,
    momentum,
    undamped,
    weight_decay,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    FIRST: tl.constexpr,
    MASKED: tl.constexpr,
):
    stored = load(param, at, length, MASKED)
    p, g = widen(stored), widen(load(grad, at, length, MASKED))
    if MAXIMIZE:
        g = -g
    if DECAY:
        g = g + weight_decay * p
    if MOMENTUM:
        if FIRST:
            b = g
        else:
            b = momentum * widen(load(buffer, at, length, MASKED)) + undamped * g
        store(buffer, at, length, narrow(b, STATE), MASKED)
        if NESTEROV:
            g = g + momentum * b
        else:
            g = b
    f = factor(word(x + at.to(tl.uint32), k0, k1), numbers, KIND)
    store(param, at, length, _moved(stored, p - rate * f * g, f, DTYPE), MASKED)


@triton.jit(do_not_specialize=["stream"])
def sgd_kernel(
    tensors,
    chunks,
    numbers,
    clock,
    stream,
    lr,
    momentum,
    undamped,
    weight_decay,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Columns: parameter, gradient, and with momentum its buffer. ``undamped``: 1 − dampening."""
    COLUMNS: tl.constexpr = 3 if MOMENTUM else 2
    row, offset, length = chunk_of(tensors, chunks, COLUMNS)
    param = column(row, 0, offset, DTYPE, ALIGNED)
    grad = column(row, 1, offset, GRAD, ALIGNED)
    buffer = column(row, COLUMNS - 1, offset, STATE if MOMENTUM else GRAD, ALIGNED)
    k0, k1, x = key_of(row, offset, clock, stream, COLUMNS)
    rate = _rate(lr, LR_ON_DEVICE)
    at = tl.arange(0, BLOCK)
    whole = length // BLOCK * BLOCK
    # fmt: off
    for begin in range(0, whole, BLOCK):
        _sgd_block(param, grad, buffer, begin + at, length, x, k0, k1, numbers, rate, momentum, undamped, weight_decay,
                   KIND, DTYPE, STATE, DECAY, MOMENTUM, NESTEROV, MAXIMIZE, FIRST, False)
    if whole < length:
        _sgd_block(param, grad, buffer, whole + at, length, x, k0, k1, numbers, rate, momentum, undamped, weight_decay,
                   KIND, DTYPE, STATE, DECAY, MOMENTUM, NESTEROV, MAXIMIZE, FIRST, True)
    # fmt: on


@triton.jit
def _bias_correction(step, log_beta, log_beta_rest):
    """``1 − beta ** step``, float32; the logarithm in two float32 numbers, for its exponential is taken in float64."""
    exponent = step.to(tl.float64) * (tl.cast(log_beta, tl.float64) + tl.cast(log_beta_rest, tl.float64))
    return (1.0 - tl.exp(exponent)).to(tl.float32)


@triton.jit
def _adam_block(
    param,
    grad,
    average,
    square,
    maximum,
    at,
    length,
    x,
    k0,
    k1,
    numbers,
    rate,
    step_rate,
    root_correction,
    beta1,
    rest1,
    beta2,
    rest2,
    eps,
    weight_decay,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    MASKED: tl.constexpr,
):
    stored = load(param, at, length, MASKED)
    p, g = widen(stored), widen(load(grad, at, length, MASKED))
    f = factor(word(x + at.to(tl.uint32), k0, k1), numbers, KIND)
    if MAXIMIZE:
        g = -g
    if DECAY:
        if DECOUPLED:
            p = p - rate * f * weight_decay * p
        else:
            g = g + weight_decay * p
    m = beta1 * widen(load(average, at, length, MASKED)) + rest1 * g
    v = beta2 * widen(load(square, at, length, MASKED)) + rest2 * g * g
    store(average, at, length, narrow(m, STATE), MASKED)
    store(square, at, length, narrow(v, STATE), MASKED)
    if AMSGRAD:
        v = tl.maximum(widen(load(maximum, at, length, MASKED)), v, propagate_nan=tl.PropagateNan.ALL)
        store(maximum, at, length, narrow(v, STATE), MASKED)
    denominator = tl.div_rn(tl.sqrt_rn(v), root_correction) + eps
    p = p - tl.div_rn(step_rate * f * m, denominator)
    store(param, at, length, _moved(stored, p, f, DTYPE), MASKED)


@triton.jit(do_not_specialize=["stream"])
def adam_kernel(
    tensors,
    chunks,
    numbers,
    clock,
    stream,
    lr,
    beta1,
    rest1,
    beta2,
    rest2,
    log_beta1,
    log_beta1_rest,
    log_beta2,
    log_beta2_rest,
    eps,
    weight_decay,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    """Columns: parameter, gradient, the two averages, with AMSGrad the maximum, and the step. ``rest``: 1 − beta."""
    COLUMNS: tl.constexpr = 6 if AMSGRAD else 5
    row, offset, length = chunk_of(tensors, chunks, COLUMNS)
    param = column(row, 0, offset, DTYPE, ALIGNED)
    grad = column(row, 1, offset, GRAD, ALIGNED)
    average = column(row, 2, offset, STATE, ALIGNED)
    square = column(row, 3, offset, STATE, ALIGNED)
    maximum = column(row, COLUMNS - 2, offset, STATE, ALIGNED)
    step = tl.load(tl.load(row + COLUMNS - 1).to(tl.pointer_type(tl.float32)))
    k0, k1, x = key_of(row, offset, clock, stream, COLUMNS)
    rate = _rate(lr, LR_ON_DEVICE)
    step_rate = tl.div_rn(rate, _bias_correction(step, log_beta1, log_beta1_rest))
    root_correction = tl.sqrt_rn(_bias_correction(step, log_beta2, log_beta2_rest))
    at = tl.arange(0, BLOCK)
    whole = length // BLOCK * BLOCK
    # fmt: off
    for begin in range(0, whole, BLOCK):
        _adam_block(param, grad, average, square, maximum, begin + at, length, x, k0, k1, numbers, rate, step_rate,
                    root_correction, beta1, rest1, beta2, rest2, eps, weight_decay,
                    KIND, DTYPE, STATE, DECAY, DECOUPLED, AMSGRAD, MAXIMIZE, False)
    if whole < length:
        _adam_block(param, grad, average, square, maximum, whole + at, length, x, k0, k1, numbers, rate, step_rate,
                    root_correction, beta1, rest1, beta2, rest2, eps, weight_decay,
                    KIND, DTYPE, STATE, DECAY, DECOUPLED, AMSGRAD, MAXIMIZE, True)
    # fmt: on


@triton.jit
def _rmsprop_block(
    param,
    grad,
    square,
    buffer,
    average,
    at,
    length,
    x,
    k0,
    k1,
    numbers,
    rate,
    alpha,
    rest,
    eps,
    weight_decay,
    momentum,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    CENTERED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    MASKED: tl.constexpr,
):
    stored = load(param, at, length, MASKED)
    p, g = widen(stored), widen(load(grad, at, length, MASKED))
    if MAXIMIZE:
        g = -g
    if DECAY:
        g = g + weight_decay * p
    v = alpha * widen(load(square, at, length, MASKED)) + rest * g * g
    store(square, at, length, narrow(v, STATE), MASKED)
    if CENTERED:
        a = widen(load(average, at, length, MASKED))
        a = a + rest * (g - a)
        store(average, at, length, narrow(a, STATE), MASKED)
        v = v - a * a
    g = tl.div_rn(g, tl.sqrt_rn(v) + eps)
    if MOMENTUM:
        g = momentum * widen(load(buffer, at, length, MASKED)) + g
        store(buffer, at, length, narrow(g, STATE), MASKED)
    f = factor(word(x + at.to(tl.uint32), k0, k1), numbers, KIND)
    store(param, at, length, _moved(stored, p - rate * f * g, f, DTYPE), MASKED)


@triton.jit(do_not_specialize=["stream"])
def rmsprop_kernel(
    tensors,
    chunks,
    numbers,
    clock,
    stream,
    lr,
    alpha,
    rest,
    eps,
    weight_decay,
    momentum,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    LR_ON_DEVICE: tl.constexpr,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    CENTERED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    """Columns: parameter, gradient, average of squares, then the momentum's buffer and the average, where used."""
    COLUMNS: tl.constexpr = 3 + (1 if MOMENTUM else 0) + (1 if CENTERED else 0)
    row, offset, length = chunk_of(tensors, chunks, COLUMNS)
    param = column(row, 0, offset, DTYPE, ALIGNED)
    grad = column(row, 1, offset, GRAD, ALIGNED)
    square = column(row, 2, offset, STATE, ALIGNED)
    buffer = column(row, 3 if MOMENTUM else 2, offset, STATE, ALIGNED)
    average = column(row, COLUMNS - 1, offset, STATE, ALIGNED)
    k0, k1, x = key_of(row, offset, clock, stream, COLUMNS)
    rate = _rate(lr, LR_ON_DEVICE)
    at = tl.arange(0, BLOCK)
    whole = length // BLOCK * BLOCK
    # fmt: off
    for begin in range(0, whole, BLOCK):
        _rmsprop_block(param, grad, square, buffer, average, begin + at, length, x, k0, k1, numbers, rate, alpha, rest,
                       eps, weight_decay, momentum, KIND, DTYPE, STATE, DECAY, MOMENTUM, CENTERED, MAXIMIZE, False)
    if whole < length:
        _rmsprop_block(param, grad, square, buffer, average, whole + at, length, x, k0, k1, numbers, rate, alpha, rest,
                       eps, weight_decay, momentum, KIND, DTYPE, STATE, DECAY, MOMENTUM, CENTERED, MAXIMIZE, True)
    # fmt: on
