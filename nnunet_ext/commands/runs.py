"""`nnx runs`: every run under nnUNet_results, as a table or as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnunet_ext.layout import Layout
from nnunet_ext.options import Voice, as_json, in_layout, speaking

if TYPE_CHECKING:
    from nnunet_ext.survey import Saved, Status


@click.command()
@as_json
@in_layout
@speaking
@click.pass_obj
def runs(voice: Voice, layout: Layout[Path], as_json: bool) -> None:
    """Show every run under nnUNet_results: epoch, EMA pseudo Dice, checkpoints, and whether it is running.

    The EMA is that of the newest readable checkpoint. Nothing inside a checkpoint is executed to read it.
    """
    from nnunet_ext.survey import survey

    found = survey(layout)
    if as_json:
        voice.answer_json([_json(status) for status in found])
    elif not found:
        voice.say(f"There are no runs under {layout.results}.")
    else:
        _print_table(found)
    for status in found:
        if status.trouble and not as_json:
            voice.trouble(f"{status.run}: {status.trouble}")


def _json(status: Status) -> dict[str, Any]:
    """The keys scripts rely on."""
    run = status.run
    return {
        "dataset": run.dataset,
        "configuration": run.configuration,
        "trainer": run.trainer,
        "plans": run.plans,
        "fold": run.fold,
        "folder": str(status.folder),
        "epoch": status.epoch,
        "num_epochs": status.num_epochs,
        "ema": _finite(status.ema),
        "best_ema": _finite(status.best_ema),
        "state": status.state,
        "checkpoints": [_saved_json(saved) for saved in status.checkpoints],
    }


def _saved_json(saved: Saved) -> dict[str, Any]:
    return {
        "kind": saved.kind,
        "path": str(saved.path),
        "epoch": saved.epoch,
        "valid": saved.valid,
        "size_bytes": saved.size_bytes,
    }


def _print_table(found: list[Status]) -> None:
    """A run is named by the words that name it to every verb, below its dataset."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("epoch", "EMA", "best EMA"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("checkpoints", overflow="fold")
    dataset = ""
    for status in found:
        if status.run.dataset != dataset:
            dataset = status.run.dataset
            table.add_row(f"[bold]{dataset}[/bold]")
        table.add_row(
            f"  {' '.join(status.run.words())}",
            status.state,
            f"{_or_dash(status.epoch)}/{_or_dash(status.num_epochs)}",
            _dice(status.ema),
            _dice(status.best_ema),
            ", ".join(_saved_word(saved) for saved in status.checkpoints) or "-",
        )
    Console().print(table)


def _saved_word(saved: Saved) -> str:
    return f"{saved.kind} {saved.epoch}" if saved.valid else f"{saved.kind} damaged"


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
