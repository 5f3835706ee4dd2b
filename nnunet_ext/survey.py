"""What each run under nnUNet_results is up to: its epoch, EMA, checkpoints and state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_ext.control import Control
from nnunet_ext.errors import NnxError
from nnunet_ext.host import HERE
from nnunet_ext.layout import CHECKPOINT_KINDS, Layout
from nnunet_ext.remembered import Facts, Remembered, remembered_here
from nnunet_ext.run import Run
from nnunet_ext.running import StockTraining, is_running, stock_trainings

State = Literal["running", "stopped", "finished", "moved", "new"]


@dataclass(frozen=True)
class Saved:
    """One checkpoint file of a run. `valid` means that its facts could be read and agree; the checksums of its
    weights are not read here (checkpoint.whole does)."""

    kind: str
    path: Path
    epoch: int | None
    valid: bool
    size_bytes: int
    trouble: str = ""


@dataclass(frozen=True)
class Status:
    """A run as it stands. `epoch` counts completed epochs in the newest valid checkpoint; None is not known."""

    run: Run
    folder: Path
    state: State
    epoch: int | None
    num_epochs: int | None
    ema: float | None
    best_ema: float | None
    checkpoints: tuple[Saved, ...]
    trouble: str = ""


def survey(layout: Layout[Path]) -> list[Status]:
    """The status of every run under nnUNet_results, in the order of their names."""
    runs = list(layout.runs(HERE))
    stock = stock_trainings() if runs else []
    remembered = remembered_here()
    found = [status(run, layout, stock, remembered) for run in runs]
    remembered.keep()
    return found


def status(run: Run, layout: Layout[Path], stock: list[StockTraining], remembered: Remembered) -> Status:
    """One run's status; what cannot be read is left unknown and named in `trouble`."""
    facts = {kind: _facts(layout.checkpoint(run, kind), remembered) for kind in CHECKPOINT_KINDS}
    saved = tuple(_saved(kind, layout.checkpoint(run, kind), known) for kind, known in facts.items() if known)
    newest = max(
        (f for f in facts.values() if f and f.epoch is not None), key=lambda f: f.epoch or 0, default=Facts(None)
    )
    trouble = [f"checkpoint_{s.kind}: {s.trouble}" for s in saved if s.trouble]
    try:
        state = _state(run, layout, stock, saved)
    except (NnxError, OSError) as hidden:
        state = "stopped" if saved else "new"
        trouble.append(str(hidden))
    return Status(
        run=run,
        folder=layout.fold_folder(run),
        state=state,
        epoch=newest.epoch,
        num_epochs=_num_epochs(layout.debug_json(run)),
        ema=newest.ema,
        best_ema=newest.best_ema,
        checkpoints=saved,
        trouble="; ".join(trouble),
    )


def _facts(path: Path, remembered: Remembered) -> Facts | None:
    try:
        return remembered.facts(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as hidden:
        return Facts(None, trouble=str(hidden))


def _saved(kind: str, path: Path, facts: Facts) -> Saved:
    size_bytes = path.stat().st_size if path.exists() else 0
    return Saved(kind, path, facts.epoch, facts.epoch is not None, size_bytes, facts.trouble)


def _state(run: Run, layout: Layout[Path], stock: list[StockTraining], saved: tuple[Saved, ...]) -> State:
    if is_running(run, layout, stock):
        return "running"
    if Control(layout.control_folder(run)).moved() is not None:
        return "moved"
    newest = max((one.epoch for one in saved if one.epoch is not None), default=None)
    if any(one.kind == "final" and one.valid and one.epoch == newest for one in saved):
        return "finished"  # a run that was continued from its final checkpoint is not, until it has a newer one
    return "stopped" if saved else "new"


def _num_epochs(debug_json: Path) -> int | None:
    """nnU-Net keeps the planned number of epochs in no checkpoint, but in debug.json, as a string."""
    try:
        return int(json.loads(debug_json.read_bytes())["num_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
