"""The arms of a comparison: what is done to the learning rate, and the control that each method is held against."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from flatwise import methods
from flatwise.exceptions import FlatwiseError
from flatwise.perturbation import Perturbation
from flatwise.stats import Better, Judgement, Verdict, judge
from flatwise.study.hints import did_you_mean
from flatwise.study.spec import VANILLA as VANILLA


class ArmError(FlatwiseError, ValueError):
    """The arm does not exist or cannot be built. The message is one line."""


@dataclass(frozen=True)
class Peak:
    """A peak schedule in place of the training's own, relative to its usual maximum rate.

    Args:
        shape: ``"gaussian"`` or ``"laplacian"``.
        height: peak rate as a multiple of the usual maximum; default 3, the paper's.
        depth: final rate as a share of the peak rate; default 1/10000, the paper's.
        mean_only: the control: the training's own schedule, scaled to have this peak's mean rate.

    Raises:
        ArmError: an unknown shape, a height below 1, or a depth outside (0, 1).
    """

    shape: Literal["gaussian", "laplacian"] = "gaussian"
    height: float = 3.0
    depth: float = 1e-4
    mean_only: bool = False

    def __post_init__(self) -> None:
        if self.shape not in ("gaussian", "laplacian"):
            raise ArmError(f"Peak: shape must be 'gaussian' or 'laplacian', got {self.shape!r}")
        if not 1 <= self.height < math.inf:
            raise ArmError(f"Peak: height is a multiple of the usual maximum rate, at least 1; got {self.height!r}")
        if not 0 < self.depth < 1:
            raise ArmError(f"Peak: depth is the final rate as a share of the peak's, in (0, 1); got {self.depth!r}")


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison.

    Args:
        name: what the table calls it.
        perturbation: a perturbation or several whose factors multiply; default: none.
        peak: a peak schedule in place of the training's own; default: none.
        description: one line for the report; default: made from the rest.
        control: name of the arm with the same mean rate and no randomness, filled in by :func:`with_controls`.
        is_control: whether this arm is such a control.
        settings: changes to the task's settings in this arm alone, such as ``{"learning_rate": 0.05}``; default: none.

    Raises:
        ArmError: an empty name, or something that is not a perturbation.
    """

    name: str
    perturbation: Perturbation | Sequence[Perturbation] = ()
    peak: Peak | None = None
    description: str = ""
    control: str | None = None
    is_control: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = self.perturbation
        perturbations = (given,) if isinstance(given, Perturbation) else tuple(given)
        for p in perturbations:
            if not isinstance(p, Perturbation):
                raise ArmError(f"arm {self.name!r}: expected a perturbation such as flatwise.leap(0.05), got {p!r}")
        if not self.name:
            raise ArmError(f"an arm needs a name, got {self.name!r}")
        object.__setattr__(self, "perturbation", perturbations)
        if not self.description:
            object.__setattr__(self, "description", self._describe())

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        """The perturbations, always as a tuple."""
        assert isinstance(self.perturbation, tuple)
        return self.perturbation

    def to_dict(self) -> dict[str, Any]:
        """What the arm does to the learning rate, as plain data: what a trial is identified by. Its name is not."""
        return {
            "perturbations": [p.to_dict() for p in self.perturbations],
            "peak": None if self.peak is None else asdict(self.peak),
        }

    def _describe(self) -> str:
        parts = []
        if self.peak is not None:
            parts.append(
                f"own schedule at the mean rate of a {self.peak.shape} peak"
                if self.peak.mean_only
                else f"{self.peak.shape} peak schedule, {self.peak.height:g} × the usual maximum rate"
            )
        parts += [_describe(p) for p in self.perturbations]
        if not parts:
            parts.append("the training as it is")
        if self.settings:
            parts.append(", ".join(f"{name} {_shown(value)}" for name, value in self.settings.items()))
        return "; ".join(parts)

    def is_same(self, other: Arm) -> bool:
        """Whether both do the same, whatever they are called."""
        return self.to_dict() == other.to_dict() and dict(self.settings) == dict(other.settings)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe(p: Perturbation) -> str:
    words = [f"{p.distribution} per {p.scope}, {'once' if p.cadence == 'once' else f'every {p.cadence}'}"]
    if not p.window.is_always:
        words.append(f"from {p.window.start:.0%} to {p.window.stop:.0%} of the epochs")
    if p.is_bounded:
        words.append(f"rate kept in [{p.bounds[0]:g}, {p.bounds[1]:g}], so no control has its mean rate")
    return ", ".join(words)


METHODS: dict[str, Callable[..., Any]] = {
    "leap": methods.leap,
    "lr_dropout": methods.lr_dropout,
    "random_lr": methods.random_lr,
    "random_lr_normal": methods.random_lr_normal,
    "ralr": methods.ralr,
    "alrao": methods.alrao,
    "gaussian_peak": lambda height=3.0, depth=1e-4: Peak("gaussian", height, depth),
    "laplacian_peak": lambda height=3.0, depth=1e-4: Peak("laplacian", height, depth),
}
DEFAULT_ARMS = ("leap", "lr_dropout", "random_lr", "ralr", "gaussian_peak", "laplacian_peak")


def make_arm(
    method: str, arguments: Mapping[str, float], *, name: str = "", settings: Mapping[str, Any] | None = None
) -> Arm:
    """Builds an arm from a method and its arguments.

    Args:
        method: ``"vanilla"`` or one of :data:`METHODS`.
        arguments: its arguments by name; the others have the paper's defaults.
        name: what the table calls it; default: the method.
        settings: changes to the task's settings in this arm alone.

    Raises:
        ArmError: an unknown method or argument, or a value that the method refuses.
    """
    known = arguments_of(method)
    for argument in arguments:
        if argument not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ArmError(f"{method} has no setting {argument!r}: {has}")
    chosen = dict(settings or {})
    if method == VANILLA:
        return Arm(name or VANILLA, settings=chosen)
    try:
        made = METHODS[method](**arguments)
    except ValueError as error:
        raise ArmError(str(error)) from None
    if isinstance(made, Peak):
        return Arm(name or method, peak=made, settings=chosen)
    return Arm(name or method, made, settings=chosen)


def arguments_of(method: str) -> dict[str, float]:
    """The arguments of a method with their defaults.

    Raises:
        ArmError: there is no such method; the message has the closest name and all names.
    """
    if method == VANILLA:
        return {}
    if method not in METHODS:
        hint = did_you_mean(method, (VANILLA, *METHODS))
        raise ArmError(f"there is no method {method!r}: {hint}The methods are {', '.join((VANILLA, *METHODS))}")
    return {name: parameter.default for name, parameter in inspect.signature(METHODS[method]).parameters.items()}


def parse_arm(text: str) -> Arm:
    """Builds an arm from its name, with or without settings: ``leap`` or ``leap(sigma=0.1)``; the text is its name.

    Raises:
        ArmError: an unknown method or setting, or a value that the method refuses.
    """
    text = text.strip()
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", text)
    method = match[1] if match else text
    if match is None or (method not in METHODS and method != VANILLA):
        raise ArmError(f"there is no arm {text!r}: choose from {VANILLA}, {', '.join(METHODS)}; as in leap(sigma=0.1)")
    arguments = {}
    for item in filter(None, (match[2] or "").split(",")):
        setting, _, value = (part.strip() for part in item.partition("="))
        if setting in arguments_of(method):
            try:
                arguments[setting] = float(value)
            except ValueError:
                raise ArmError(f"{method}: {setting} must be a number, got {value!r}") from None
        else:
            arguments[setting] = math.nan  # refused by name, whatever its value
    return make_arm(method, arguments, name=VANILLA if method == VANILLA else text)


def split_arms(text: str) -> list[str]:
    """Splits ``leap(sigma=0.1),random_lr(alpha=8,beta=0.5)`` at the commas between arms."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def with_controls(arms: Iterable[Arm], *, controls: bool = True) -> tuple[Arm, ...]:
    """The arms to run: vanilla first, and each method followed by its matched-rate control.

    A control is the same arm with every factor replaced by its mean, or the training's own schedule scaled to a peak's
    mean rate. A method whose mean factor is 1 has vanilla as its control. One with bounds on the rate has none: its
    mean rate depends on the schedule.

    Args:
        arms: the arms; vanilla is added if it is not among them.
        controls: whether to add controls.

    Raises:
        ArmError: two arms with one name, or an arm named vanilla that is not.
    """
    given = list(arms)
    vanilla = next((arm for arm in given if _is_vanilla(arm)), Arm(VANILLA))
    chosen = [arm for arm in given if not _is_vanilla(arm)]
    result = [vanilla]
    for arm in chosen:
        control = _control_of(arm) if controls and not arm.is_control and arm.control is None else None
        if control is None:
            result.append(arm)
        elif control.is_same(vanilla):
            result.append(replace(arm, control=VANILLA))
        else:
            result += [replace(arm, control=control.name), control]
    names = [arm.name for arm in result]
    for name in names:
        if names.count(name) > 1:
            raise ArmError(f"two arms are named {name!r}: give each its own name")
    for arm in result:
        if arm.control is not None and arm.control not in names:
            raise ArmError(
                f"the control {arm.control!r} of arm {arm.name!r} is not among the arms: add it, or omit control="
            )
    return tuple(result)


def _is_vanilla(arm: Arm) -> bool:
    return arm.name == VANILLA and arm.to_dict() == Arm(VANILLA).to_dict()


def _control_of(arm: Arm) -> Arm | None:
    if not arm.perturbations and arm.peak is None:
        return None  # nothing is done to the rate: there is no randomness to take away
    if any(p.is_bounded for p in arm.perturbations):
        return None  # with bounds the mean rate follows from the schedule: no one factor has it
    matched = tuple(p.matched_rate() for p in arm.perturbations)
    kept = tuple(p for p in matched if not p.is_identity)
    peak = None if arm.peak is None else replace(arm.peak, mean_only=True)
    if peak:
        what = f"own schedule at the mean rate of {arm.name}"
    elif kept:
        mean = ", ".join(f"{p.distribution.mean:g}" for p in kept)
        what = f"no randomness: rate × {mean} in the same epochs"
    else:
        what = f"the settings of {arm.name} without its noise"
    return Arm(f"{arm.name} (control)", kept, peak, description=what, is_control=True, settings=arm.settings)


def judge_arms(
    values: Mapping[str, Sequence[float]],
    arms: Sequence[Arm],
    *,
    better: Better,
    level: float,
    barred: Mapping[tuple[str, str], Verdict] | None = None,
    absent: int = 0,
) -> tuple[dict[str, Judgement], dict[str, Judgement]]:
    """Judge every arm against vanilla, and every method against its control, as one family of tests.

    The family consists of the methods against vanilla. Two more comparisons stand behind each method's verdict: the
    method against its control, and that control against vanilla. See :func:`flatwise.stats.judge`.

    Args:
        values: of each arm, one number per seed.
        arms: the arms, vanilla first.
        better: whether ``"lower"`` or ``"higher"`` is better.
        level: family-wise level of all these tests.
        barred: by arm and baseline, the verdict of comparisons that must not be tested; default: none.
        absent: number of arms that belong to the family but whose values are not available; default: 0.

    Returns:
        The judgements against vanilla and those against the controls, by arm.
    """
    pairs = {arm.name: (arm.name, VANILLA) for arm in arms if arm.name != VANILLA}
    behind: dict[str, str] = {}
    against_control: dict[str, str] = {}
    for arm in arms:
        if arm.control is None or arm.control == VANILLA:
            continue
        against_control[arm.name] = f"{arm.name}\n{arm.control}"  # no other comparison has a line break in its name
        pairs[against_control[arm.name]] = (arm.name, arm.control)
        if not arm.is_control:
            behind[against_control[arm.name]] = arm.name
            if next(other for other in arms if other.name == arm.control).is_control:
                behind.setdefault(arm.control, arm.name)
    judged = judge(
        {name: (values[arm], values[baseline]) for name, (arm, baseline) in pairs.items()},
        better=better,
        level=level,
        behind=behind,
        barred={name: barred[pair] for name, pair in pairs.items() if pair in barred} if barred else None,
        absent=absent,
    )
    vs_vanilla = {arm.name: judged[arm.name] for arm in arms if arm.name != VANILLA}
    return vs_vanilla, {arm: judged[name] for arm, name in against_control.items()}
