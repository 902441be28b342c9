"""The methods of the papers, each a value: a distribution, a scope, a cadence and a window."""

from __future__ import annotations

from flatwise.distributions import Bernoulli, Constant, LogUniform, Mixture, Normal, Uniform
from flatwise.perturbation import Perturbation, Window


def leap(sigma: float = 0.05) -> Perturbation:
    """LEAP (Algorithm 1, Eq. 1): every element's rate is ``h = η · (1 + σ ζ)``, ζ ~ Normal(0, 1), anew at every step.

    The noise multiplies the *update*, after momentum and adaptivity, not the gradient: under Adam too σ is the relative
    noise of the update. The mean factor is 1.

    Args:
        sigma: standard deviation σ of the factor; 0 is the plain optimizer. The paper searches {0.1, 0.05, 0.01,
            5e-3, 1e-3, 5e-4, 1e-4} on a validation set and states no default; ours is 0.05.

    Raises:
        ValueError: ``sigma`` is negative or not finite.
    """
    return Perturbation(Normal(1.0, sigma))


def lr_dropout(keep: float = 0.5) -> Perturbation:
    """Learning-rate dropout (Algorithm 1): every element is updated with probability ``keep``, else keeps its bits.

    Momentum and second moments are updated for all elements; only the write to the parameter is masked. The mean
    factor is ``keep``.

    Args:
        keep: probability of being *updated*, in (0, 1]; the paper's p, default 0.5, 0.3 to 0.7 advised. Mind that
            torch's ``Dropout(p)`` names the opposite.

    Raises:
        ValueError: ``keep`` is not in (0, 1].
    """
    return Perturbation(Bernoulli(keep))


def random_lr(
    alpha: float = 8.0, beta: float = 0.6, *, min_lr: float | None = None, max_lr: float | None = None
) -> Perturbation:
    """Random learning rate, RN (Eq. 2, 3): ``h = η · α · p``, p ~ Uniform(0, 1), one draw per epoch for all parameters.

    It acts in the last β of the epochs: ``e ≥ (1 − β) S`` for the 0-based epoch e of S. The mean factor there is
    α/2 = 4 by default: compare with a matched rate before crediting the noise.

    Args:
        alpha: scale α of the factor; default 8.
        beta: share β of the epochs that are perturbed, in (0, 1]; default 0.6.
        min_lr: lower bound of the noisy rate (the paper's Figure 2 asks for one); default none. In the window it holds
            for every group, also one whose scheduled rate is 0.
        max_lr: upper bound of the noisy rate; default none.

    Raises:
        ValueError: ``alpha`` is not positive, ``beta`` is not in (0, 1], or the bounds are out of order.
    """
    if not alpha > 0:
        raise ValueError(f"random_lr: alpha must be positive, got {alpha!r}")
    return Perturbation(Uniform(0.0, alpha), "all", "epoch", _last(beta, "random_lr"), min_lr, max_lr)


def random_lr_normal(
    mean: float = 4.0, std: float = 1.0, beta: float = 0.6, *, min_lr: float | None = None, max_lr: float | None = None
) -> Perturbation:
    """RN with a Normal factor: ``h = η · max(p, 0)``, p ~ Normal(mean, std²); all else as :func:`random_lr`.

    Args:
        mean: mean of p; the paper tries 4 (the default) and 2.
        std: standard deviation of p; default 1, the paper's.
        beta: share of the epochs that are perturbed, in (0, 1]; default 0.6.
        min_lr: lower bound of the noisy rate; default none.
        max_lr: upper bound of the noisy rate; default none.

    Raises:
        ValueError: ``mean`` is not positive, ``std`` is negative, ``beta`` is not in (0, 1], or the bounds are out of
            order.
    """
    if not mean > 0:
        raise ValueError(f"random_lr_normal: mean must be positive, got {mean!r}")
    window = _last(beta, "random_lr_normal")
    return Perturbation(Normal(mean, std, minimum=0.0), "all", "epoch", window, min_lr, max_lr)


def ralr(p: float = 0.5, low: float = 1.0, high: float = 3.0) -> Perturbation:
    """RALR (Algorithm 1): each epoch is amplified with probability p: ``h = η · r``, r ~ Uniform(low, high).

    The epochs are drawn independently; the base rate decays as usual underneath. The mean factor is
    ``1 + p · ((low + high) / 2 − 1)``, 1.5 by default.

    Args:
        p: probability that an epoch is amplified; default 0.5.
        low: smallest amplification; default 1.
        high: largest amplification; default 3.

    Raises:
        ValueError: ``p`` is not in [0, 1], or not ``0 <= low <= high``.
    """
    return Perturbation(Mixture(p, Uniform(low, high), Constant(1.0)), "all", "epoch")


def alrao(low: float = 1e-5, high: float = 10.0) -> Perturbation:
    """Rates as in Alrao (Blier et al., 2018): ``h = η · f``, f log-uniform, drawn once for every output feature.

    Give the optimizer a rate of 1 to read ``low`` and ``high`` as rates. A weight and its bias draw separately here,
    and Alrao's averaging of several output layers is a model, not a rate: it is not included.

    Args:
        low: smallest factor; default 1e-5.
        high: largest factor; default 10.

    Raises:
        ValueError: not ``0 < low <= high``.
    """
    return Perturbation(LogUniform(low, high), "channel", "once")


def _last(beta: float, name: str) -> Window:
    if not 0 < beta <= 1:
        raise ValueError(f"{name}: beta is the share of the epochs that are perturbed, in (0, 1]; got {beta!r}")
    return Window(start=round(1 - beta, 12))
