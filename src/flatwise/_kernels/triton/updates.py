"""Fused optimizer steps for GPUs in Triton: one pass over parameters, gradients and states, factors drawn in registers.

The arithmetic is float32 whatever the tensors' dtypes are, in the order of torch's fused steps, and every operation
rounds once (see ``blend``): the results are the same bits on every device. The factor multiplies the learning rate,
before the parameter is rounded; an element whose factor is 0 keeps its bits, even where the update is infinite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flatwise._kernels import forms
from flatwise._kernels.triton.blend import (
    FRESH,
    GRADIENT,
    PARAMETER,
    STATE,
    STEP,
    chunk_of,
    column,
    factor,
    key_of,
    load,
    narrow,
    store,
    widen,
    word,
)

SGD, ADAM = tl.constexpr(forms.SGD), tl.constexpr(forms.ADAM)


@triton.jit
def _bias_correction(step, log_beta, log_beta_rest):
    """``1 − beta ** step``, float32; the logarithm in two float32 numbers, for its exponential is taken in float64."""
    exponent = step.to(tl.float64) * (tl.cast(log_beta, tl.float64) + tl.cast(log_beta_rest, tl.float64))
    return (1.0 - tl.exp(exponent)).to(tl.float32)


@triton.jit
def _update_block(
    param, grad, state1, state2, state3, at, length, x, k0, k1, numbers,
    rate, step_rate, root_correction, momentum, kept, undamped, beta1, rest1, beta2, rest2, eps, weight_decay,
    OPTIMIZER: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, STATE_DTYPE: tl.constexpr,
    DECAY: tl.constexpr, DECOUPLED: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr, CENTERED: tl.constexpr, MAXIMIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
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
    if OPTIMIZER == SGD:
        if MOMENTUM:
            b = kept * widen(load(state1, at, length, MASKED)) + undamped * g
            store(state1, at, length, narrow(b, STATE_DTYPE), MASKED)
            if NESTEROV:
                g = g + momentum * b
            else:
                g = b
        p = p - rate * f * g
    elif OPTIMIZER == ADAM:
        m = beta1 * widen(load(state1, at, length, MASKED)) + rest1 * g
        v = beta2 * widen(load(state2, at, length, MASKED)) + rest2 * g * g
        store(state1, at, length, narrow(m, STATE_DTYPE), MASKED)
        store(state2, at, length, narrow(v, STATE_DTYPE), MASKED)
        if AMSGRAD:
            v = tl.maximum(widen(load(state3, at, length, MASKED)), v, propagate_nan=tl.PropagateNan.ALL)
            store(state3, at, length, narrow(v, STATE_DTYPE), MASKED)
        denominator = tl.div_rn(tl.sqrt_rn(v), root_correction) + eps
        p = p - tl.div_rn(step_rate * f * m, denominator)
    else:
        v = beta2 * widen(load(state1, at, length, MASKED)) + rest2 * g * g
        store(state1, at, length, narrow(v, STATE_DTYPE), MASKED)
        if CENTERED:
            a = widen(load(state3, at, length, MASKED))
            a = a + rest2 * (g - a)
            store(state3, at, length, narrow(a, STATE_DTYPE), MASKED)
            v = v - a * a
        g = tl.div_rn(g, tl.sqrt_rn(v) + eps)
        if MOMENTUM:
            g = momentum * widen(load(state2, at, length, MASKED)) + g
            store(state2, at, length, narrow(g, STATE_DTYPE), MASKED)
        p = p - rate * f * g
    store(param, at, length, tl.where(f == 0.0, stored, narrow(p, DTYPE)), MASKED)


@triton.jit(do_not_specialize=["seed0", "seed1", "counter0", "counter1", "stream"])
def update_kernel(
    rows, chunks, numbers, seed0, seed1, counter0, counter1, stream,
    lr, momentum, undamped, beta1, rest1, beta2, rest2,
    log_beta1, log_beta1_rest, log_beta2, log_beta2_rest, eps, weight_decay,
    OPTIMIZER: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, STATE_DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, LR_ON_DEVICE: tl.constexpr,
    DECAY: tl.constexpr, DECOUPLED: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
    AMSGRAD: tl.constexpr, CENTERED: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    """One chunk of one parameter. ``undamped``: 1 − dampening; ``rest``: 1 − beta; RMSprop's alpha is ``beta2``."""
    row, offset, length = chunk_of(rows, chunks)
    param = column(row, PARAMETER, offset, DTYPE, ALIGNED)
    grad = column(row, GRADIENT, offset, DTYPE, ALIGNED)
    state1 = column(row, STATE, offset, STATE_DTYPE, ALIGNED)
    state2 = column(row, STATE + 1, offset, STATE_DTYPE, ALIGNED)
    state3 = column(row, STATE + 2, offset, STATE_DTYPE, ALIGNED)
    k0, k1, x = key_of(row, offset, seed0, seed1, counter0, counter1, stream)
    rate = tl.load(lr).to(tl.float32) if LR_ON_DEVICE else tl.cast(lr, tl.float32)
    step_rate, root_correction = rate, rate
    if OPTIMIZER == ADAM:
        step = tl.load(tl.load(row + STEP).to(tl.pointer_type(tl.float32)))
        step_rate = tl.div_rn(rate, _bias_correction(step, log_beta1, log_beta1_rest))
        root_correction = tl.sqrt_rn(_bias_correction(step, log_beta2, log_beta2_rest))
    is_fresh = tl.load(row + FRESH) != 0  # then the momentum becomes the gradient itself: 1 · g + 0 · −0
    kept = tl.where(is_fresh, 0.0, momentum)
    undamped = tl.where(is_fresh, 1.0, undamped)
    at = tl.arange(0, BLOCK)
    whole = length // BLOCK * BLOCK
    # fmt: off
    for begin in range(0, whole, BLOCK):
        _update_block(param, grad, state1, state2, state3, begin + at, length, x, k0, k1, numbers, rate, step_rate,
                      root_correction, momentum, kept, undamped, beta1, rest1, beta2, rest2, eps, weight_decay,
                      OPTIMIZER, KIND, DTYPE, STATE_DTYPE, DECAY, DECOUPLED, MOMENTUM, NESTEROV, AMSGRAD, CENTERED,
                      MAXIMIZE, False)
    if whole < length:
        _update_block(param, grad, state1, state2, state3, whole + at, length, x, k0, k1, numbers, rate, step_rate,
                      root_correction, momentum, kept, undamped, beta1, rest1, beta2, rest2, eps, weight_decay,
                      OPTIMIZER, KIND, DTYPE, STATE_DTYPE, DECAY, DECOUPLED, MOMENTUM, NESTEROV, AMSGRAD, CENTERED,
                      MAXIMIZE, True)
    # fmt: on
