"""Making one checkpoint of a run its checkpoint_final: copied whole, checked, the old one kept."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from nnunet_ext.checkpoint import Checkpoint, whole
from nnunet_ext.errors import Damaged, NnxError, Refused
from nnunet_ext.host import replace_durably
from nnunet_ext.layout import CHECKPOINT_KINDS, checkpoint_in, control_in, previous_of


def newest_checkpoint(fold_folder: Path) -> Checkpoint:
    """The readable checkpoint with the most completed epochs, previous generations included; on a tie nnU-Net's
    order final, latest, best. Raises Refused when there is none."""
    current = [checkpoint_in(fold_folder, kind) for kind in CHECKPOINT_KINDS]
    found = []
    for path in (*current, *map(previous_of, current)):
        with contextlib.suppress(NnxError, OSError):
            found.append(Checkpoint.read(path))
    if not found:
        raise Refused(
            f"There is no readable checkpoint in {fold_folder}; nnU-Net would start again at epoch 0.",
            "Start anew on purpose: --fresh instead of --c.",
        )
    return max(found, key=lambda checkpoint: checkpoint.current_epoch)


def promote(source: Path, target: Path) -> None:
    """Put a copy of `source` in the place of `target`; the old `target` becomes its previous generation.

    Raises Damaged when the source is not whole, OSError when the copy cannot be written; then nothing has changed.
    """
    problem = whole(source)
    if problem is not None:
        raise Damaged(problem, "Choose another checkpoint. See: nnx runs")
    beside = writing_place(target)
    try:
        shutil.copyfile(source, beside)
        install(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def writing_place(target: Path) -> Path:
    """Where a new generation of `target` is written: on the same disk, under the same name, out of nnU-Net's sight."""
    place = control_in(target.parent) / "writing" / target.name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def install(beside: Path, target: Path) -> None:
    """Check the bytes of a finished file, give it its name, and keep the generation before.

    Raises Damaged when what was written is not whole; `target` is then untouched.
    """
    handle = os.open(beside, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    problem = whole(beside)
    if problem is not None:
        raise Damaged(f"What was just written is damaged: {problem}.", "Is the disk full or failing?")
    held = _held(target)
    replace_durably(beside, target)
    if held is not None:
        held.replace(previous_of(target))


def _held(target: Path) -> Path | None:
    """A second name for the file that is about to be replaced, None when there is none yet. A hard link is enough,
    because the replacement is a new file.

    It becomes the previous generation only after the replacement. Were it that before, a crash between the two would
    leave one file under both names, and nnU-Net, which writes in place, would destroy both at once.
    """
    previous = previous_of(target)
    previous.parent.mkdir(parents=True, exist_ok=True)
    held = previous.with_name(f"{previous.name}.part")
    held.unlink(missing_ok=True)
    try:
        os.link(target, held)
    except FileNotFoundError:
        return None
    except OSError:  # a file system without hard links
        shutil.copyfile(target, held)
    return held
