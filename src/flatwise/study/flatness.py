"""How flat a trial's final model is: what is measured, within which bounds, and what could not be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from flatwise.flatness import gradient_norm, random_weight_paths, top_eigenvalues, trace
from flatwise.flatness.guard import checked_count
from flatwise.flatness.objective import Loss
from flatwise.study.store import FlatnessRecord, Record

# A trace with a wider 95 % interval, as a share of it, counts as not converged.
TRACE_ERROR = 0.1
OnMeasure = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FlatnessSettings:
    """What is measured of each trial's final model, and how much work it may cost.

    Args:
        max_batches: measure on the first so many batches of the data; default 10.
        max_iter: at most so many Hessian-vector products for the eigenvalues, and as many for the trace, which takes
            them all; default 60.
        eigenvalues: how many of the largest eigenvalues; default 3. The largest is judged, all are recorded.
        radii: lengths of the random weight perturbations, as shares of each filter's own norm; default 0.1, 0.2, 0.4.
        directions: how many random directions, each gone both ways; default 10.

    Raises:
        ValueError: a number out of range. The message is one line.
    """

    max_batches: int = 10
    max_iter: int = 60
    eigenvalues: int = 3
    radii: tuple[float, ...] = (0.1, 0.2, 0.4)
    directions: int = 10

    def __post_init__(self) -> None:
        least = {"max_batches": 1, "eigenvalues": 1, "directions": 2}
        # Two probes are the fewest that have a spread.
        least["max_iter"] = max(2, self.eigenvalues) if isinstance(self.eigenvalues, int) else 2
        for name, lowest in least.items():
            checked_count(f"flatness: {name}", getattr(self, name), lowest)
        try:
            radii = tuple(float(radius) for radius in self.radii)
        except (TypeError, ValueError):
            radii = ()
        if not radii or len(set(radii)) < len(radii) or not all(0 < radius < math.inf for radius in radii):
            raise ValueError(f"flatness: radii must be different numbers above 0, such as (0.1, 0.2); got {self.radii}")
        object.__setattr__(self, "radii", tuple(sorted(radii)))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data that equal themselves after JSON."""
        return {**asdict(self), "radii": list(self.radii)}


Measured = Iterator[tuple[str, float, bool]]  # name, value, whether it converged


def measure_flatness(
    model: nn.Module,
    loss: Loss,
    data: Any,
    settings: FlatnessSettings,
    *,
    seed: int,
    on_measure: OnMeasure = lambda what, done, of: None,
) -> FlatnessRecord:
    """Measure a model, which comes back as it was, bit for bit, as do the random states.

    What fails is recorded with its reason, and the rest is measured all the same: a measurement must never decide
    whether a trial failed.

    Args:
        model, loss, data: as :func:`flatwise.flatness.measuring` takes them, in its mode ``"eval"``.
        settings: what to measure.
        seed: of the random directions, the probes and the eigenvalues' start. Models that are measured with one seed
            are measured along the same directions.
        on_measure: is called with what is measured, how far it is and how far it can go. Default: none.
    """

    def gradient() -> Measured:
        on_measure("gradient norm", 0, 1)
        yield "gradient_norm", gradient_norm(model, loss, data, max_batches=settings.max_batches), True

    def eigenvalues() -> Measured:
        found = top_eigenvalues(
            model,
            loss,
            data,
            settings.eigenvalues,
            tol=1e-2,  # residuals of 1 %: the eigenvalues' errors are mostly far below
            max_iter=settings.max_iter,
            seed=seed,
            max_batches=settings.max_batches,
            progress=lambda done, of: on_measure("eigenvalues", done, of),
        )
        for number, (value, residual) in enumerate(zip(found.values, found.residuals, strict=True), start=1):
            # The largest is itself; whether another is the next one is known once all are.
            converged = residual <= 1e-2 * abs(value) and (number == 1 or found.converged)
            yield eigenvalue_key(number), value, converged

    def trace_and_error() -> Measured:
        estimate = trace(
            model,
            loss,
            data,
            tol=0,  # the same number of probes for every arm; stopping early would also shorten the error bar
            max_probes=settings.max_iter,
            seed=seed,
            max_batches=settings.max_batches,
            progress=lambda done, of: on_measure("trace", done, of),
        )
        yield "trace", estimate.value, estimate.error <= TRACE_ERROR * abs(estimate.value)
        yield "trace_error", estimate.error, True

    def perturbations() -> Measured:
        """The mean increase of the loss at every radius, over random directions and both ways along each."""
        curve = random_weight_paths(
            model,
            loss,
            data,
            normalize="filter",
            directions=settings.directions,
            distances=[sign * radius for radius in settings.radii for sign in (1, -1)],
            seed=seed,
            max_batches=settings.max_batches,
            progress=lambda done, of: on_measure("weight perturbation", done, of),
        ).curve()
        yield "loss", curve.center, True
        for index, radius in enumerate(settings.radii):
            yield increase_key(radius), (curve.mean[2 * index] + curve.mean[2 * index + 1]) / 2 - curve.center, True

    # Each measurement with the names of its values. One that fails does not stop the next.
    measurements: list[tuple[Callable[[], Measured], list[str]]] = [
        (gradient, ["gradient_norm"]),
        (eigenvalues, [eigenvalue_key(number + 1) for number in range(settings.eigenvalues)]),
        (trace_and_error, ["trace", "trace_error"]),
        (perturbations, ["loss", *map(increase_key, settings.radii)]),
    ]
    start = time.perf_counter()
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    unconverged: list[str] = []
    for measure, names in measurements:
        reason = "not measured"
        try:
            for name, value, converged in measure():
                if not math.isfinite(value):
                    missing[name] = f"it is {value}"
                    continue
                values[name] = value
                if not converged:
                    unconverged.append(name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        missing |= {name: reason for name in names if name not in values and name not in missing}
    return FlatnessRecord(settings.to_dict(), values, missing, tuple(unconverged), seconds=time.perf_counter() - start)


def eigenvalue_key(number: int) -> str:
    """The name under which the number-th largest eigenvalue is recorded, from 1."""
    return f"eigenvalue_{number}"


def increase_key(radius: float) -> str:
    """The name under which the mean loss increase at a radius is recorded."""
    return f"loss_increase_{radius:g}"


def judged_measures(settings: Mapping[str, Any]) -> dict[str, str]:
    """The measures that are compared between arms: what to call each, by its name in the record.

    Args:
        settings: :meth:`FlatnessSettings.to_dict`.
    """
    return {
        eigenvalue_key(1): "top eigenvalue",
        "trace": "trace",
        "gradient_norm": "gradient norm",
        **{increase_key(radius): f"loss increase at radius {radius:g}" for radius in settings["radii"]},
    }


def is_measured(record: Record, wanted: FlatnessSettings | None) -> bool:
    """Whether a record has what is asked for. A failed trial has nothing to measure."""
    if wanted is None or record.status == "failed":
        return True
    return record.flatness is not None and record.flatness.settings == wanted.to_dict()
