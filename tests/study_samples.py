"""Studies for the report's tests: hand-made, deterministic, with searches, failures, odd names and a missing cell."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flatwise.study.comparison import Comparison
from flatwise.study.plan import TuningResult
from flatwise.study.results import CellResult
from flatwise.study.search import best
from flatwise.study.spec import StudySpec
from flatwise_papers.replication.claims import Claim, Reported
from flatwise_papers.replication.ledger import Entry, Ledger
from flatwise_papers.replication.rules import BaselineCheck, Measured
from report_samples import NAN, sample

ODD_ARM = """leap <b onclick=alert(1)>&"' [red]"""
ODD_CELL = """<img src=x onerror=alert(1)>&"'</script>[bold]"""
RATES, DECAYS, SIGMAS = (0.01, 0.05, 0.1, 0.2), (0.0, 1e-4, 5e-4), (0.1, 0.05, 0.01, 0.005, 0.001)


def study(sampler: str = "grid", **changes: Any) -> StudySpec:
    """Three cells and three arms: one cell has an odd name, and so has one arm."""
    content: dict[str, Any] = {
        "name": "sample",
        "title": "LEAP and RALR on two data sets",
        "description": "A sample: made numbers.\n\nIts budget leaves the papers' other data sets out.",
        "settings": {"epochs": 20},
        "cells": [
            {"task": "digits-mlp"},
            {"task": "mnist-mlp-3", "name": ODD_CELL, "settings": {"batch_size": 128}},
            {"task": "mnist-mlp-4"},
        ],
        "arms": [
            {"method": "vanilla", "space": {"learning_rate": {"times": [0.5, 0.7, 1, 1.4, 2]}}},
            {"method": "leap", "name": ODD_ARM, "space": {"sigma": list(SIGMAS)}},
            {"method": "ralr", "space": {"high": [1.5, 2, 3, 4, 6]}},
        ],
        "tuning": {"baseline": {"learning_rate": list(RATES), "weight_decay": list(DECAYS)}, "seeds": 2},
        "final": {"seeds": 8},
    }
    if sampler != "grid":
        rate = {"low": 0.01, "high": 1.0, "log": True}
        content["tuning"] |= {"sampler": sampler, "trials": 12, "baseline_trials": 12}
        content["arms"] = [
            {"method": "vanilla", "space": {"learning_rate": rate}},
            {
                "method": "leap",
                "name": ODD_ARM,
                "space": {"sigma": {"low": 0.001, "high": 0.1, "log": True}, "optimizer": ["sgd", "nesterov"]},
            },
            {"method": "ralr", "space": {"high": {"low": 1.5, "high": 6}, "learning_rate": rate}},
        ]
    return StudySpec.model_validate({**content, **changes})


def searched(arm: str, values: Mapping[str, Sequence[Any]], found: Sequence[float]) -> TuningResult:
    """A search over the product of ``values`` with what came out."""
    configurations = tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
    return TuningResult(arm, tuple(values), configurations, tuple(found), best(found, "lower"))


def drawn(arm: str, configurations: Sequence[Mapping[str, Any]], found: Sequence[float]) -> TuningResult:
    """A search over configurations that a sampler drew."""
    given = tuple(dict(configuration) for configuration in configurations)
    return TuningResult(arm, tuple(given[0]), given, tuple(found), best(found, "lower"))


BASELINE = searched(
    "vanilla",
    {"learning_rate": RATES, "weight_decay": DECAYS},
    (5.2, 5.1, 5.15, 3.4, 3.3, 3.35, 3.1, 2.96, 3.02, 3.6, 88.5, NAN),
)
VANILLA = searched("vanilla", {"learning_rate": (0.05, 0.07, 0.1, 0.14, 0.2)}, (3.3, 3.1, 2.96, 3.0, NAN))
LEAP = searched(ODD_ARM, {"sigma": SIGMAS}, (2.8, 2.9, 2.95, 2.97, 2.96))
RALR = searched("ralr", {"high": (1.5, 2.0, 3.0, 4.0, 6.0)}, (2.95, 2.9, 2.93, 3.2, 12.0))
FAILED = searched("ralr", {"high": (1.5, 2.0, 3.0, 4.0, 6.0)}, (NAN,) * 5)


def comparison(name: str, leap: str = "leap") -> Comparison:
    """The report's sample with vanilla, ``leap`` under its odd name, and ralr with its control, called ``name``."""
    whole = sample()
    kept = {"vanilla": "vanilla", leap: ODD_ARM, "ralr": "ralr", "ralr (control)": "ralr (control)"}
    arms = {arm.name: arm for arm in whole.arms}
    return dataclasses.replace(
        whole,
        task=name,
        arms=tuple(dataclasses.replace(arms[name], name=called) for name, called in kept.items()),
        records=tuple(dataclasses.replace(r, arm=kept[r.arm]) for r in whole.records if r.arm in kept),
    )


def results(of: StudySpec) -> list[CellResult]:
    """One cell is done; in the next an arm fails while tuned and one in its final runs; the last has not begun."""
    first, second, third = of.cells
    return [
        CellResult(first, BASELINE, (VANILLA, LEAP, RALR), comparison(first.name)),
        CellResult(second, BASELINE, (VANILLA, LEAP, FAILED), comparison(second.name, leap="diverging")),
        CellResult(third, None, (), None),
    ]


def sampled_result(of: StudySpec) -> CellResult:
    """The first cell with searches that a sampler made, before its final runs."""
    spread = [0.01 * 100 ** (i / 11) for i in range(12)]
    values = [3 + abs(math.log(rate / 0.08)) for rate in spread]
    return CellResult(
        of.cells[0],
        drawn("vanilla", [{"learning_rate": r, "weight_decay": DECAYS[i % 3]} for i, r in enumerate(spread)], values),
        (
            drawn("vanilla", [{"learning_rate": rate} for rate in spread], values),
            drawn(
                ODD_ARM,
                [{"sigma": 0.1 * r, "optimizer": ("sgd", "nesterov")[i % 2]} for i, r in enumerate(spread)],
                [NAN, *values[:0:-1]],
            ),
            drawn("ralr", [{"high": 1.5 + 0.4 * i, "learning_rate": rate} for i, rate in enumerate(spread)], values),
        ),
        None,
    )


def ledger(of: StudySpec) -> Ledger:
    """A claim of every verdict."""
    claim = Claim(
        cell=of.cells[0].name,
        arm="ralr",
        paper="leap",
        table="3",
        dataset="MNIST",
        model="MLP-3",
        optimizer="SGD",
        schedule="",
        baseline=Reported(8.6, 0.1, 5),
        result=Reported(8.3, 0.12, 5),
        epoch="best",
        from_accuracy=True,
        notes="",
    )
    agrees = BaselineCheck("agrees", Measured(8.75, 0.13, 8), 0.15, -0.05, 0.35)
    worse = BaselineCheck("worse", Measured(9.9, 0.13, 8), 1.3, 1.1, 1.5)
    entry = Entry(
        claim=claim,
        task="digits-mlp",
        outcome="reproduced",
        check=agrees,
        baseline=Measured(8.75, 0.13, 8),
        result=Measured(8.44, 0.15, 8),
        difference=-0.31,
        low=-0.45,
        high=-0.17,
        p=0.0156,
        expected=-0.3,
        credit="noise",
        seeds_range=None,
        explanation="ralr changes vanilla's 8.75 % by −0.31 points.",
    )
    missing = {"difference": NAN, "low": NAN, "high": NAN, "p": NAN, "expected": NAN, "credit": None}
    odd = dataclasses.replace(claim, cell=ODD_CELL, arm=ODD_ARM)
    return Ledger(
        study=of.name,
        title=of.title,
        level=0.05,
        entries=(
            entry,
            dataclasses.replace(entry, credit="rate"),
            dataclasses.replace(
                entry, outcome="not reproduced", difference=-0.02, low=-0.1, high=0.06, p=0.6, credit=None
            ),
            dataclasses.replace(
                entry, outcome="inconclusive", p=0.2, low=-0.7, high=0.08, credit=None, seeds_range=(37, None)
            ),
            dataclasses.replace(entry, check=worse, claim=odd),
            dataclasses.replace(
                entry, claim=odd, outcome="failed", result=None, explanation="3 runs failed.", **missing
            ),
            dataclasses.replace(
                entry,
                claim=dataclasses.replace(claim, cell=of.cells[2].name),
                outcome="not run",
                check=None,
                baseline=None,
                result=None,
                explanation="There is no result of this cell and arm.",
                **missing,
            ),
        ),
    )
