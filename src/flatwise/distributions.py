"""Distributions of the factor that multiplies the learning rate: frozen values with moments and a map from random bits.

Each maps one 32-bit word per draw to a float32 factor. The map is part of the meaning: the same word gives the same
factor on every device.
"""

from __future__ import annotations

import math
import numbers
import operator
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatwise._kernels.forms import KernelForm
from flatwise._noise import reference


@dataclass(frozen=True)
class Distribution:
    """A distribution of the factor. Its subclasses are final: compose with :class:`Mixture`, do not derive."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """Expected value of the factor."""

    @property
    @abstractmethod
    def variance(self) -> float:
        """Variance of the factor."""

    @property
    def std(self) -> float:
        """Standard deviation of the factor."""
        return math.sqrt(self.variance)

    @abstractmethod
    def cdf(self, x: float) -> float:
        """Probability that the factor is at most ``x``."""

    @abstractmethod
    def sample(self, words: Tensor) -> Tensor:
        """Factors from random words.

        Args:
            words: int32, any shape: the bits of independent uniform 32-bit words.

        Returns:
            float32, same shape.
        """

    @property
    def kernel_form(self) -> KernelForm | None:
        """The distribution as the fast kernels know it, or ``None`` if they do not."""
        return None

    @property
    def is_one(self) -> bool:
        """Whether the factor is always 1: then nothing needs to be done, and nothing is."""
        return self.mean == 1.0 and self.variance == 0.0

    def to_dict(self) -> dict[str, Any]:
        """The distribution as plain data: its class name and its fields, numbers as floats (8 is 8.0)."""
        fields = {
            name: value.to_dict() if isinstance(value, Distribution) else float(value)
            for name, value in vars(self).items()
        }
        return {"distribution": type(self).__name__, **fields}


def plain_number(value: Any) -> Any:
    """A number of numpy or ``fractions`` as Python's own, which every checkpoint can hold; all else as it is."""
    if type(value) in (int, float, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def as_integer(value: Any) -> int | None:
    """An integer of Python or numpy as Python's own; ``None`` for all else, truth values and tensors too."""
    if isinstance(value, (bool, Tensor)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _check_finite(owner: object, **values: float) -> None:
    """Checks the fields of a frozen value; numbers of other libraries, such as ``numpy.float32``, become Python's."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"{type(owner).__name__}: {name} must be a finite number, got {value!r}")
        object.__setattr__(owner, name, plain_number(value))


def _check_probability(owner: object, **values: float) -> None:
    _check_finite(owner, **values)
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{type(owner).__name__}: {name} is a probability and must lie in [0, 1], got {value!r}")


@dataclass(frozen=True)
class Constant(Distribution):
    """Always ``value``. The matched-rate controls are made of it.

    Raises:
        ValueError: ``value`` is not finite or is negative.
    """

    value: float

    def __post_init__(self) -> None:
        _check_finite(self, value=self.value)
        if self.value < 0:
            raise ValueError(f"Constant: value must not be negative (it would ascend the loss), got {self.value!r}")

    @property
    def mean(self) -> float:
        return float(self.value)

    @property
    def variance(self) -> float:
        return 0.0

    def cdf(self, x: float) -> float:
        return float(x >= self.value)

    def sample(self, words: Tensor) -> Tensor:
        return torch.full(words.shape, self.value, dtype=torch.float32, device=words.device)


@dataclass(frozen=True)
class Bernoulli(Distribution):
    """1 with probability ``keep``, else 0: ``f = 1 where w < round(keep · 2**32)``.

    Args:
        keep: probability of the factor 1, that is of being *updated* (the opposite of torch's ``Dropout(p)``).

    Raises:
        ValueError: ``keep`` is not in (0, 1].
    """

    keep: float

    def __post_init__(self) -> None:
        _check_probability(self, keep=self.keep)
        if self.keep == 0:
            raise ValueError(
                "Bernoulli: keep is the probability of being updated; 0 would train nothing: give a value in (0, 1]"
            )

    @property
    def threshold(self) -> int:
        """``round(keep · 2**32)``: words below it are kept."""
        return round(self.keep * 2**32)

    @property
    def mean(self) -> float:
        return float(self.keep)

    @property
    def variance(self) -> float:
        return self.keep * (1 - self.keep)

    def cdf(self, x: float) -> float:
        return 1.0 if x >= 1 else (1.0 - self.keep if x >= 0 else 0.0)

    @property
    def kernel_form(self) -> KernelForm | None:
        # Kernels hold the threshold in 32 bits: where every word is below it, it does not fit.
        return KernelForm("bernoulli", (float(self.threshold),)) if self.threshold < 1 << 32 else None

    def sample(self, words: Tensor) -> Tensor:
        return KernelForm("bernoulli", (float(self.threshold),)).factors(words)


@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform on [low, high]: ``f = low + (high − low) · u``, computed in float64 and rounded to float32.

    Raises:
        ValueError: a bound is not finite, ``low`` is negative, or ``high < low``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_finite(self, low=self.low, high=self.high)
        if not 0 <= self.low <= self.high:
            raise ValueError(f"Uniform: needs 0 <= low <= high, got low={self.low!r}, high={self.high!r}")

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    @property
    def variance(self) -> float:
        return (self.high - self.low) ** 2 / 12

    def cdf(self, x: float) -> float:
        if self.low == self.high:
            return float(x >= self.low)
        return min(1.0, max(0.0, (x - self.low) / (self.high - self.low)))

    @property
    def kernel_form(self) -> KernelForm:
        return KernelForm("uniform", (self.low, self.high - self.low))

    def sample(self, words: Tensor) -> Tensor:
        return self.kernel_form.factors(words)


@dataclass(frozen=True)
class Normal(Distribution):
    """Normal with the given mean and standard deviation, cut off below: ``f = max(loc + scale · z, minimum)``.

    Args:
        loc: mean before the cut.
        scale: standard deviation before the cut, ≥ 0.
        minimum: values below it become it (a point mass, not a truncation); default: no cut.

    Raises:
        ValueError: an argument is not finite (``minimum`` may be −inf), or ``scale`` is negative.
    """

    loc: float
    scale: float
    minimum: float = -math.inf

    def __post_init__(self) -> None:
        _check_finite(self, loc=self.loc, scale=self.scale)
        object.__setattr__(self, "minimum", plain_number(self.minimum))
        if self.scale < 0:
            raise ValueError(f"Normal: the standard deviation must not be negative, got {self.scale!r}")
        if not self.minimum < math.inf:
            raise ValueError(f"Normal: minimum must be a number or -inf, got {self.minimum!r}")

    @property
    def _cut(self) -> float:
        """The cut in standard deviations from the mean."""
        return (self.minimum - self.loc) / self.scale

    @property
    def mean(self) -> float:
        if self.scale == 0 or self.minimum == -math.inf:
            return float(max(self.loc, self.minimum))
        # E max(X, c) = loc + scale · (a Φ(a) + φ(a)),  a = (c − loc) / scale
        return self.loc + self.scale * (self._cut * _normal_cdf(self._cut) + _normal_pdf(self._cut))

    @property
    def variance(self) -> float:
        if self.scale == 0 or self.minimum == -math.inf:
            return float(self.scale**2)
        a = self._cut
        first = a * _normal_cdf(a) + _normal_pdf(a)
        second = a * a * _normal_cdf(a) + _normal_cdf(-a) + a * _normal_pdf(a)
        return self.scale**2 * (second - first**2)

    def cdf(self, x: float) -> float:
        if x < self.minimum:
            return 0.0
        return float(x >= self.loc) if self.scale == 0 else _normal_cdf((x - self.loc) / self.scale)

    @property
    def kernel_form(self) -> KernelForm:
        return KernelForm("normal", (self.loc, self.scale, self.minimum))

    def sample(self, words: Tensor) -> Tensor:
        return self.kernel_form.factors(words)


@dataclass(frozen=True)
class LogUniform(Distribution):
    """Uniform in the logarithm on [low, high]: ``f = low · (high / low)**u``, in float64, rounded to float32.

    Raises:
        ValueError: a bound is not finite, or not ``0 < low <= high``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_finite(self, low=self.low, high=self.high)
        if not 0 < self.low <= self.high:
            raise ValueError(f"LogUniform: needs 0 < low <= high, got low={self.low!r}, high={self.high!r}")

    @property
    def _span(self) -> float:
        return math.log(self.high / self.low)

    @property
    def mean(self) -> float:
        return float(self.low) if self._span == 0 else (self.high - self.low) / self._span

    @property
    def variance(self) -> float:
        if self._span == 0:
            return 0.0
        return max(0.0, (self.high**2 - self.low**2) / (2 * self._span) - self.mean**2)

    def cdf(self, x: float) -> float:
        if x < self.low:
            return 0.0
        return 1.0 if x >= self.high else math.log(x / self.low) / self._span

    def sample(self, words: Tensor) -> Tensor:
        return reference.uniform(words).mul_(self._span).exp_().mul_(self.low).float()


@dataclass(frozen=True)
class Mixture(Distribution):
    """``first`` with probability ``p``, else ``second``; one word chooses and draws.

    Args:
        p: probability of ``first``.
        first: any distribution, another mixture too.
        second: any distribution.

    Raises:
        ValueError: ``p`` is not in [0, 1].
        TypeError: a component is not a :class:`Distribution`.
    """

    p: float
    first: Distribution
    second: Distribution

    def __post_init__(self) -> None:
        _check_probability(self, p=self.p)
        for component in (self.first, self.second):
            if not isinstance(component, Distribution):
                raise TypeError(f"Mixture: a component must be a Distribution, got {component!r}")

    @property
    def mean(self) -> float:
        return self.p * self.first.mean + (1 - self.p) * self.second.mean

    @property
    def variance(self) -> float:
        means = self.first.mean, self.second.mean
        within = self.p * self.first.variance + (1 - self.p) * self.second.variance
        return within + self.p * (1 - self.p) * (means[0] - means[1]) ** 2

    def cdf(self, x: float) -> float:
        return self.p * self.first.cdf(x) + (1 - self.p) * self.second.cdf(x)

    def sample(self, words: Tensor) -> Tensor:
        threshold = round(self.p * 2**32)
        if threshold == 0:
            return self.second.sample(words)
        if threshold == 1 << 32:
            return self.first.sample(words)
        return torch.where(
            reference.below(words, threshold),
            self.first.sample(reference.rescale(words, 0, threshold)),
            self.second.sample(reference.rescale(words, threshold, 1 << 32)),
        )


def _normal_pdf(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
