"""nnx's powers over any trainer class: a subclass of the same name, so that everything else stays nnU-Net's."""

from __future__ import annotations

from typing import Any

from nnunet_ext.trainers.early_stop import EarlyStop
from nnunet_ext.trainers.graceful_stop import GracefulStop
from nnunet_ext.trainers.memory import MemoryCare
from nnunet_ext.trainers.power import Power
from nnunet_ext.trainers.progress import Progress
from nnunet_ext.trainers.randomness import Reproducible
from nnunet_ext.trainers.safe_checkpoint import SafeCheckpoint
from nnunet_ext.trainers.schedule import Schedule
from nnunet_ext.trainers.validation import ResumableValidation

POWERS: tuple[type[Power], ...] = (
    EarlyStop,
    GracefulStop,
    Reproducible,
    SafeCheckpoint,
    MemoryCare,
    Schedule,
    Progress,
    ResumableValidation,
)


def extend(trainer: type[Any], powers: tuple[type[Power], ...] = POWERS) -> type[Any]:
    """`trainer` with the powers it lacks, leftmost. The name is kept, because the results folder, `trainer_name` in
    the checkpoint, cascades, inference and find_best_configuration go by it."""
    lacking = tuple(power for power in powers if not issubclass(trainer, power))
    if not lacking:
        return trainer
    body = {"__module__": trainer.__module__, "__qualname__": trainer.__qualname__, "__doc__": trainer.__doc__}
    return type(trainer.__name__, (*lacking, trainer), body)
