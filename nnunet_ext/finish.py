"""Closing a run: which checkpoint becomes its checkpoint_final, and nnU-Net's validation in a process of its own."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.checkpoint import Checkpoint, whole
from nnunet_ext.control import Control
from nnunet_ext.errors import Damaged, NnxError, Refused, Unfit
from nnunet_ext.export_workers import VARIABLE
from nnunet_ext.history import History
from nnunet_ext.host import HERE
from nnunet_ext.layout import CHECKPOINT_KINDS, ROOTS, Layout
from nnunet_ext.promote import promote
from nnunet_ext.run import Run
from nnunet_ext.running import is_running, stock_trainings

CHUNK_BYTES = 2**20
CHOOSE = "Choose another one: --checkpoint best or --checkpoint latest. See: nnx runs"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint file of a run: its kind (`final`, `latest`, `best`, `previous best`, ...), completed epochs and EMA
    pseudo Dice, and when it was written (unix seconds). Without an epoch it cannot be read; `trouble` says why."""

    kind: str
    path: Path
    epoch: int | None
    ema: float | None = None
    trouble: str = ""
    written_at: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The checkpoint that is, or becomes, checkpoint_final, and why."""

    source: Candidate
    reason: str

    @property
    def is_final(self) -> bool:
        """Whether there is nothing to promote."""
        return self.source.kind == "final"


@dataclass(frozen=True)
class Origin:
    """What checkpoint_final is a copy of, when nnx made it; `kind` is `final` when the training wrote it itself."""

    kind: str
    promoted_at: str | None


@dataclass(frozen=True)
class Outcome:
    """What the validation gave; None is not known. The Dice is the mean over classes of the mean over cases."""

    cases: int | None
    skipped: int | None
    mean_dice: float | None
    summary: Path


def check_may_finish(run: Run, layout: Layout[Path]) -> None:
    """Raises Refused when the run is running or moved away, Unfit when the validation could not be evaluated."""
    if is_running(run, layout, stock_trainings()):
        raise Refused(f"{run} is running.", "Stop it first, or wait: it writes its own checkpoint_final and validates.")
    moved = Control(layout.control_folder(run)).moved()
    if moved is not None:
        raise Refused(f"{run} moved to {moved.to} after epoch {moved.epoch} ({moved.at}).", "Finish it there.")
    truth = layout.gt_segmentations(run.dataset)
    if not truth.is_dir():
        copy = ["cp", "-r", str(layout.raw_labels(run.dataset)), str(truth)]
        raise Unfit(
            f"There is no folder {truth}, against which nnU-Net evaluates its validation.",
            f"It is a copy of the raw dataset's labels: {shlex.join(copy)}",
        )


def candidates(run: Run, layout: Layout[Path]) -> list[Candidate]:
    """Every checkpoint file of the run, in nnU-Net's order, and the generations before them; their facts are read,
    their weights not checked."""
    places = [(kind, layout.checkpoint(run, kind)) for kind in CHECKPOINT_KINDS]
    places += [(f"previous {kind}", layout.previous_checkpoint(run, kind)) for kind in CHECKPOINT_KINDS]
    return [_candidate(kind, path) for kind, path in places if path.exists()]


def choose(found: Sequence[Candidate], asked: str | None) -> Choice:
    """The checkpoint to close the run with: the one asked for; else checkpoint_final, unless the run was continued
    since; else the newest readable one.

    Raises Refused when it is not there, Damaged when it cannot be read.
    """
    kinds = {candidate.kind: candidate for candidate in found}
    if asked is not None and asked not in kinds:
        there = ", ".join(kinds) or "none"
        raise Refused(f"The run has no checkpoint_{asked}.", f"It has: {there}. See: nnx runs")
    if asked is not None:
        return Choice(_readable(kinds[asked]), "you asked for it")
    if not found:
        raise Refused("The run has no checkpoint.", "There is nothing to finish. See: nnx runs")
    newest = max(found, key=lambda candidate: -1 if candidate.epoch is None else candidate.epoch)
    final = kinds.get("final")
    if final is not None and (final.epoch is None or newest.written_at <= final.written_at):
        return Choice(_readable(final), "it is there")
    return Choice(_readable(newest), "it is the newest readable one")


def make_final(choice: Choice, run: Run, layout: Layout[Path]) -> Origin:
    """Give the run its checkpoint_final, with the old one kept, and say where it comes from.

    The event `promoted` ties the copy to its origin by its SHA-256. Raises Damaged when the checkpoint is not whole,
    Refused when a training holds the fold.
    """
    final = layout.checkpoint(run, "final")
    control = Control(layout.control_folder(run))
    with control.lock():
        source = choice.source
        problem = whole(source.path)
        if problem is not None:
            raise Damaged(problem, CHOOSE)
        digest = sha256_of(source.path)
        known = _origin(control, digest)
        if choice.is_final:
            return known or Origin("final", None)
        if not final.exists() or sha256_of(final) != digest:
            promote(source.path, final)
        if known is None or known.kind != source.kind:
            control.log("promoted", kind=source.kind, epoch=source.epoch, ema=source.ema, sha256=digest)
    return _origin(control, digest) or Origin(source.kind, None)


def commands(choice: Choice, run: Run, layout: Layout[Path]) -> list[list[str]]:
    """What `make_final` does, as commands that could be typed."""
    final, previous = layout.checkpoint(run, "final"), layout.previous_checkpoint(run, "final")
    if choice.is_final:
        return []
    keep = [["mkdir", "-p", str(previous.parent)], ["mv", str(final), str(previous)]] if final.exists() else []
    return [*keep, ["cp", str(choice.source.path), str(final)]]


def validation_command(run: Run, device: str, npz: bool) -> list[str]:
    """The child process that validates: nnUNetv2_train's arguments behind our launcher."""
    argv = [sys.executable, "-m", "nnunet_ext.trainers.launch", *run.words(), "--val", "-device", device]
    return [*argv, "--npz"] if npz else argv


def validation_environment(run: Run, layout: Layout[Path], workers: int) -> dict[str, str]:
    """What the child process is told besides its arguments."""
    roots = zip(ROOTS, (layout.raw, layout.preprocessed, layout.results), strict=True)
    told = {root: str(folder) for root, folder in roots}
    return told | {"NNX_FOLD_FOLDER": str(layout.fold_folder(run)), "PYTHONSAFEPATH": "1", VARIABLE: str(workers)}


def outcome(run: Run, layout: Layout[Path], launch: str) -> Outcome:
    """What the validation that was started as `launch` gave. Raises Damaged when there is no summary to read."""
    events = Control(layout.control_folder(run)).events()
    mine = [event for event in events if event.get("event") == "validated" and event.get("launch") == launch]
    facts = mine[-1] if mine else {}
    summary = layout.validation_summary(run)
    return Outcome(facts.get("cases"), facts.get("skipped"), mean_dice_in(summary), summary)


def mean_dice_in(summary: Path) -> float | None:
    """The mean validation Dice in nnU-Net's summary.json; None when no case has any foreground. Raises Damaged."""
    try:
        dice = float(json.loads(HERE.read(summary))["foreground_mean"]["Dice"])
    except (OSError, ValueError, KeyError, TypeError) as wrong:
        raise Damaged(f"{summary} is no summary of a validation: {wrong!r}.", "Validate again: nnx finish") from wrong
    return dice if math.isfinite(dice) else None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _candidate(kind: str, path: Path) -> Candidate:
    try:
        facts = Checkpoint.read(path)
    except (NnxError, OSError) as trouble:
        return Candidate(kind, path, None, trouble=str(trouble))
    history = History.from_logging(facts.logging)
    ema = history.ema[-1] if history.ema else None
    finite = ema if ema is not None and math.isfinite(ema) else None
    return Candidate(kind, path, facts.current_epoch, finite, written_at=path.stat().st_mtime)


def _readable(candidate: Candidate) -> Candidate:
    if candidate.epoch is None:
        raise Damaged(candidate.trouble, CHOOSE)
    return candidate


def _origin(control: Control, digest: str) -> Origin | None:
    """The newest record of how a file with these bytes became checkpoint_final."""
    promoted = [
        event for event in control.events() if event.get("event") == "promoted" and event.get("sha256") == digest
    ]
    return Origin(str(promoted[-1].get("kind")), str(promoted[-1].get("at"))) if promoted else None
