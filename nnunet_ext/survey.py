"""What each run under nnUNet_results is up to: its epoch, EMA, checkpoints and state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_ext.checkpoint import Checkpoint
from nnunet_ext.control import Control
from nnunet_ext.errors import NnxError
from nnunet_ext.history import History
from nnunet_ext.host import HERE
from nnunet_ext.layout import CHECKPOINT_KINDS, Layout
from nnunet_ext.run import Run
from nnunet_ext.running import StockTraining, is_running, stock_trainings

State = Literal["running", "stopped", "finished", "moved", "new"]


@dataclass(frozen=True)
class Saved:
    """One checkpoint file of a run. `valid` means that its facts could be read and agree; the checksums of its
    weights are not read here (Checkpoint.verify does)."""

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
    return [status(run, layout, stock) for run in runs]


def status(run: Run, layout: Layout[Path], stock: list[StockTraining]) -> Status:
    """One run's status; what cannot be read is left unknown and named in `trouble`."""
    read = [_checkpoint(kind, layout.checkpoint(run, kind)) for kind in CHECKPOINT_KINDS]
    saved = tuple(s for s, _ in read if s is not None)
    newest = max((c for _, c in read if c is not None), key=lambda c: c.current_epoch, default=None)
    trouble = [f"checkpoint_{s.kind}: {s.trouble}" for s in saved if s.trouble]
    try:
        state = _state(run, layout, stock, saved)
    except (NnxError, OSError) as hidden:
        state = "stopped" if saved else "new"
        trouble.append(str(hidden))
    history = None if newest is None else History.from_logging(newest.logging)
    return Status(
        run=run,
        folder=layout.fold_folder(run),
        state=state,
        epoch=None if newest is None else newest.current_epoch,
        num_epochs=_num_epochs(layout.debug_json(run)),
        ema=None if history is None or not history.ema else history.ema[-1],
        best_ema=None if history is None else history.best_ema,
        checkpoints=saved,
        trouble="; ".join(trouble),
    )


def _checkpoint(kind: str, path: Path) -> tuple[Saved | None, Checkpoint | None]:
    try:
        size_bytes = path.stat().st_size
    except OSError as absent:
        missing = isinstance(absent, (FileNotFoundError, NotADirectoryError))
        return (None if missing else Saved(kind, path, None, False, 0, str(absent))), None
    try:
        known = Checkpoint.read(path)
    except (NnxError, OSError) as trouble:
        return Saved(kind, path, None, False, size_bytes, str(trouble)), None
    return Saved(kind, path, known.current_epoch, True, size_bytes), known


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
