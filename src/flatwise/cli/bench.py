"""``flatwise bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from flatwise.bench import OPTIMIZERS, Timing, measure, table, write_csv
from flatwise.cli.program import app, fail


@app.command()
def bench(
    models: Annotated[str, typer.Option(help="Which of mlp, resnet18 and 50m to step.")] = "mlp,resnet18",
    optimizers: Annotated[str, typer.Option(help="Which of SGD, Adam, AdamW and RMSprop.")] = ",".join(OPTIMIZERS),
    rounds: Annotated[int, typer.Option(min=1, help="How many turns every contender has.")] = 15,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch \\[default: torch's].")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table here, as CSV.")] = None,
) -> None:
    """Measure what the noise costs: optimizer steps with and without it, taking turns on this machine."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        rows: list[Timing] = []
        for row in measure(models.split(","), optimizers.split(","), rounds=rounds):
            typer.echo("\n".join(table([row]).splitlines()[bool(rows) :]))  # the header once
            rows.append(row)
        if out is not None:
            write_csv(rows, out)
    except ValueError as error:
        fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"cannot write {error.filename}: {error.strerror}")
