"""How long training stays at a minimum: LEAP's Theorem 1 as printed, and what the update that trains really gives.

Two formulas, because they disagree. LEAP's theorem *replaces* the noise of the minibatches by the noise of the rate
(:func:`leap_escape_time`). Its algorithm *multiplies* the two (:func:`sgd_escape_time` with ``factor``).

An update is ``θ ← θ − η f ∘ g`` with a minibatch's gradient ``g`` (mean ∇L, covariance Σ) and an independent factor
``f`` (mean μ, variance v) for each element. Its mean is ``−η μ ∇L`` and its covariance

    η² [ μ² Σ + v · diag(Σ + ∇L ∇Lᵀ) ]

The factor's noise acts on the gradient itself: at a minimum, where ∇L = 0, it adds ``v · diag(Σ)`` and nothing else.
With the gradient of all data (Σ = 0) it adds nothing there, and the minimum is never left. Along one axis, and where
``∇L²`` is small beside Σ, the diffusion is that of plain SGD times ``(μ² + v)/μ`` (:func:`noise_amplification`): 1 + σ²
for LEAP, 1.01 at σ = 0.1; and exactly 1 for learning-rate dropout, whatever its ``keep``.

What both formulas assume, and where it fails:

- *Quasi-stationary*: the weights forget where they entered the valley before they leave it. A rate that decays, or an
  escape within a few relaxation times ``1/(η H)``, breaks this.
- *Low temperature*: the exponent is well above 1. At an exponent of 2 or less there is no valley to speak of.
- *Quadratic*: L is its second-order expansion up to the point where the two expansions meet. The noise follows
  ``|H|`` there (Σ ∝ H holds at a minimum of a likelihood; at a saddle ``|H|`` is a guess). For a smooth L and Σ ∝ |H|
  exactly, H is 0 somewhere between minimum and saddle: no noise there, and the diffusion would never pass.
- *Continuous time*: ``η H`` is small. SGD at rate η has a stationary variance larger by ``1/(1 − η H/2)``; above
  ``η = 2/H`` a minimum is left without any noise.
- *Gaussian noise*: what matters are rare sums of many updates that add up, and a normal factor times a normal gradient
  has heavy tails. The diffusion is right where ``L'²`` is small beside Σ, all the way up the slope.
- *White noise*: a new factor at every step. RN and RALR keep one for an epoch, and are outside all of this.
- *No momentum, no adaptivity.*
- *The escape direction is a coordinate axis* (for factors per element): ``diag(H)`` is a matrix of coordinates, and
  its "eigenvalue along e" means something only if e is one of them.

The printed pre-factor ``2π/|H_be|`` comes from a diffusion current without the term ``P · ∂D/∂θ``. SGD evaluates its
noise at the beginning of a step, so it has that term (Itô), and the pre-factor is ``2π/H_ae`` if Σ ∝ |H|:
:func:`sgd_escape_time` has it. The exponents agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flatwise.distributions import Constant, Distribution


@dataclass(frozen=True, slots=True)
class EscapeTime:
    """A mean escape time, kept as its logarithm: exponents of a thousand are common, and overflow.

    Attributes:
        exponent: what stands in the exponential; 0 where there is no barrier, infinite where there is no noise.
        log_prefactor: natural logarithm of what stands before it, in updates.
    """

    exponent: float
    log_prefactor: float

    @property
    def log_updates(self) -> float:
        """Natural logarithm of the mean number of updates until the escape."""
        return self.log_prefactor + self.exponent

    @property
    def updates(self) -> float:
        """Mean number of updates until the escape; infinite where it is beyond the float range."""
        return math.exp(self.log_updates) if self.log_updates < 709.0 else math.inf


def leap_escape_time(
    *,
    barrier: float,
    minimum_curvature: float,
    saddle_curvature: float,
    lr: float,
    sigma: float,
    path_weight: float = 0.5,
    minimum_diagonal: float | None = None,
    saddle_diagonal: float | None = None,
    determinant_ratio: float = 1.0,
) -> EscapeTime:
    """LEAP's Theorem 1, as printed: mean escape time from minimum a over saddle b along direction e.

        t = 2π C / |H_be| · exp[ 2 ΔL / (η σ²) · ( s / A_ae + (1 − s) / |A_be| ) ]

    t is continuous time, in which one update takes η: the number of updates is t/η.

    It is the escape time of SGD (Xie et al., 2021) with σ² in the place of 1/batch size, so for σ → 0 it diverges,
    though plain SGD does escape. It says what happens if the noise ``η σ A ζ``, ``A² = diag(H)``, is the *only* noise.

    Args:
        barrier: ΔL = L(b) − L(a), ≥ 0.
        minimum_curvature: H_ae > 0, the Hessian's eigenvalue at the minimum along e. The printed formula needs it only
            as the default of ``minimum_diagonal``.
        saddle_curvature: H_be < 0, that at the saddle.
        lr: η > 0.
        sigma: σ ≥ 0, standard deviation of the rate's factor.
        path_weight: s, 0 ≤ s ≤ 1: the share of the barrier that is climbed before the noise changes from the minimum's
            to the saddle's. Default: 0.5. It is no free parameter on a known path: where two parabolas meet it is
            ``|H_be| / (H_ae + |H_be|)``.
        minimum_diagonal: A_ae > 0, diag(H)'s eigenvalue at the minimum. Default: ``minimum_curvature`` (right where e
            is a coordinate axis).
        saddle_diagonal: A_be, not 0. Default: ``saddle_curvature``.
        determinant_ratio: C, from :func:`determinant_ratio`. Default: 1, which holds for diagonal Hessians.

    Returns:
        The escape time; its exponent is infinite for σ = 0 (unless the barrier is 0).

    Raises:
        ValueError: an argument is outside the range above or not finite.
    """
    _check_path(barrier, minimum_curvature, saddle_curvature, lr, path_weight)
    _check_not_negative("sigma", sigma)
    _check_positive("determinant_ratio", determinant_ratio)
    at_minimum = minimum_curvature if minimum_diagonal is None else minimum_diagonal
    at_saddle = abs(saddle_curvature if saddle_diagonal is None else saddle_diagonal)
    _check_positive("minimum_diagonal", at_minimum)
    _check_positive("|saddle_diagonal|", at_saddle)
    scale = path_weight / at_minimum + (1 - path_weight) / at_saddle
    exponent = _ratio(2 * barrier * scale, lr * sigma**2)
    return EscapeTime(exponent, math.log(2 * math.pi * determinant_ratio / abs(saddle_curvature) / lr))


def sgd_escape_time(
    *,
    barrier: float,
    minimum_curvature: float,
    saddle_curvature: float,
    lr: float,
    minimum_noise: float,
    saddle_noise: float,
    path_weight: float = 0.5,
    factor: Distribution | None = None,
) -> EscapeTime:
    """Mean escape time of SGD whose rate is multiplied by a random factor: Kramers' law with the update's own noise.

        D = η κ Σ / 2 at minimum and saddle,   κ = (μ² + v)/μ
        exponent = s ΔL / D_a + (1 − s) ΔL / D_b
        updates  = 2π / (η μ) · sqrt( D_b / (D_a H_ae |H_be|) ) · exp(exponent)

    For plain SGD with Σ = |H|/B the exponent is that of Xie et al. (2021). Left out is the factor's noise
    on the slope, ``v L'²`` beside ``(μ² + v) Σ``: it makes escapes faster than this. In more than one dimension the
    formula holds if the other directions' curvature and noise are the same at minimum and saddle.

    Args:
        barrier: ΔL = L(b) − L(a), ≥ 0.
        minimum_curvature: H_ae > 0.
        saddle_curvature: H_be < 0.
        lr: η > 0, the scheduled rate.
        minimum_noise: Σ_a ≥ 0, the variance of a minibatch's gradient along e at the minimum. 0, the gradient of all
            data, means no escape, whatever the factor.
        saddle_noise: Σ_b ≥ 0, that at the saddle.
        path_weight: s, as in :func:`leap_escape_time`. Default: 0.5; it matters where the two noises differ.
        factor: distribution of the rate's factor, one independent draw per step. Default: none (the factor is 1).

    Raises:
        ValueError: an argument is outside the range above or not finite, or the factor's mean is not positive.
    """
    _check_path(barrier, minimum_curvature, saddle_curvature, lr, path_weight)
    _check_not_negative("minimum_noise", minimum_noise)
    _check_not_negative("saddle_noise", saddle_noise)
    factor = Constant(1.0) if factor is None else factor
    half_rate = lr * noise_amplification(factor) / 2
    at_minimum, at_saddle = half_rate * minimum_noise, half_rate * saddle_noise
    exponent = _ratio(path_weight * barrier, at_minimum) + _ratio((1 - path_weight) * barrier, at_saddle)
    noise_ratio = at_saddle / at_minimum if at_minimum > 0 and at_saddle > 0 else 1.0
    prefactor = 2 * math.pi * math.sqrt(noise_ratio / (minimum_curvature * abs(saddle_curvature)))
    return EscapeTime(exponent, math.log(prefactor / (lr * factor.mean)))


def noise_amplification(factor: Distribution) -> float:
    """By how much a random factor of the rate raises the diffusion of SGD at a minimum: ``κ = (μ² + v)/μ``.

    Per unit of *descended* time, η μ per update, so a factor that is constant amplifies by itself: a doubled rate has
    twice the temperature. LEAP has 1 + σ²; learning-rate dropout has exactly 1.

    Raises:
        ValueError: the factor's mean is not positive.
    """
    _check_positive("the factor's mean", factor.mean)
    return (factor.mean**2 + factor.variance) / factor.mean


def selection_probabilities(times: Sequence[EscapeTime]) -> list[float]:
    """LEAP's minima selection: ``P(θ ∈ V_a) = t_a / Σ_v t_v``, computed from logarithms.

    Exact for the two sides of one saddle, which take turns; for more valleys it assumes that each is entered equally
    often. It is a statement about training that goes on for many escape times at a constant rate.

    Args:
        times: one escape time per minimum, at least one; infinite ones share the probability.

    Returns:
        One probability per minimum, with sum 1.

    Raises:
        ValueError: ``times`` is empty.
    """
    logs = [time.log_updates for time in times]
    if not logs:
        raise ValueError("selection_probabilities needs at least one escape time, got none")
    largest = max(logs)
    if math.isinf(largest):
        return [float(log == largest) / logs.count(largest) for log in logs]
    weights = [math.exp(log - largest) for log in logs]
    return [weight / sum(weights) for weight in weights]


def determinant_ratio(minimum_hessian: ArrayLike, saddle_hessian: ArrayLike) -> float:
    """Theorem 1's ``C = sqrt( det(H_a |diag(H_a)|⁻¹) / −det(H_b |diag(H_b)|⁻¹) )``; 1 where the Hessians are diagonal.

    The paper prints diag(H_b) without the absolute value. In one dimension that is the root of −1; and a diffusion is
    not negative.

    Args:
        minimum_hessian: shape (n, n), symmetric, positive definite.
        saddle_hessian: shape (n, n), symmetric, with exactly one negative eigenvalue and none that is 0.

    Raises:
        ValueError: a Hessian is not as described, has a 0 on its diagonal, or the shapes differ.
    """
    hessians = [np.asarray(hessian, dtype=np.float64) for hessian in (minimum_hessian, saddle_hessian)]
    for name, hessian, negative in zip(("minimum_hessian", "saddle_hessian"), hessians, (0, 1), strict=True):
        if hessian.ndim != 2 or hessian.shape != (len(hessian), len(hessian)) or not np.isfinite(hessian).all():
            raise ValueError(f"{name} must be a finite square matrix, got shape {hessian.shape}")
        if len(hessian) == 0 or not np.allclose(hessian, hessian.T):
            raise ValueError(f"{name} must be symmetric and not empty")
        eigenvalues = np.linalg.eigvalsh(hessian)
        if np.count_nonzero(eigenvalues < 0) != negative or not eigenvalues.all():
            raise ValueError(
                f"{name} must have {negative} negative eigenvalues and none that is 0; the smallest are "
                f"{eigenvalues[:2].tolist()}"
            )
        if not np.diagonal(hessian).all():
            raise ValueError(f"{name} has a 0 on its diagonal, and the theorem divides by the diagonal")
    if hessians[0].shape != hessians[1].shape:
        raise ValueError(f"the Hessians differ in shape: {hessians[0].shape} and {hessians[1].shape}")
    at_minimum, at_saddle = (
        np.linalg.slogdet(hessian)[1] - np.log(np.abs(np.diagonal(hessian))).sum() for hessian in hessians
    )
    return math.exp((at_minimum - at_saddle) / 2)


def _check_path(barrier: float, minimum: float, saddle: float, lr: float, path_weight: float) -> None:
    _check_not_negative("barrier", barrier)
    _check_positive("minimum_curvature", minimum)
    if not -math.inf < saddle < 0:
        raise ValueError(
            f"saddle_curvature must be finite and negative, got {saddle!r}: it is the Hessian's negative eigenvalue"
        )
    _check_positive("lr", lr)
    if not 0 <= path_weight <= 1:
        raise ValueError(f"path_weight is a share and must lie in [0, 1], got {path_weight!r}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")


def _ratio(energy: float, temperature: float) -> float:
    """``energy / temperature``: without energy no barrier, without temperature an infinite one."""
    if energy == 0:
        return 0.0
    return energy / temperature if temperature > 0 else math.inf
