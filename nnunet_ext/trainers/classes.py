"""nnx's powers as classes of their own, for people who type `nnUNetv2_train -tr nnUNetTrainerNNX`."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.trainers.early_stop import EarlyStop
from nnunet_ext.trainers.extend import POWERS
from nnunet_ext.trainers.memory import MemoryCare


class nnUNetTrainerNNX(*POWERS, nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 - nnU-Net's way of naming
    """Everything: early stopping, graceful stop, safe checkpoints, reproducible resume, memory care, schedule."""


class nnUNetTrainerEMAStop(EarlyStop, nnUNetTrainer):  # type: ignore[misc]  # noqa: N801
    """Early stopping on the EMA pseudo Dice, and nothing else. Settings: NNX_TARGET, NNX_PATIENCE, ... or nnx.toml."""


class nnUNetTrainerMemoryCare(MemoryCare, nnUNetTrainer):  # type: ignore[misc]  # noqa: N801
    """Memory hygiene and nothing else. Settings: NNX_MEMORY_LIMIT, NNX_CLEANUP_EVERY, or nnx.toml."""
